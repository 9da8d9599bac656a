"""Arrays of numpy: npy files (memory-mapped), npz files, and tables in memory."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.data.read_base import Field, TableReader, numbers
from fluvial.errors import DataError

#: The columns of the ``labels.npy`` that lies beside the ``spectra.npy`` of GALAH.
GALAH_LABELS = ("mass", "age", "l_bol", "dist", "t_eff", "log_g", "fe_h", "SNR")


class ArraysReader(TableReader):
    """Named arrays side by side, ``[rows]`` or ``[rows, length]``: the fields of a file, sliced when asked for.

    ``arrays`` are anything with shape, dtype and slices, such as memory maps, from ``files`` (left out: ``path``). The
    number of rows is that of most of them; the rest are no columns, and asking for one says so.
    """

    def __init__(self, path: Path, arrays: Mapping[str, Any], files: Sequence[Path] | None = None) -> None:
        self.path = path
        self._files = [path] if files is None else files
        self._arrays = dict(arrays)
        self._rows = common_rows({name: tuple(a.shape) for name, a in self._arrays.items()}, path)
        self._fields = [
            Field(name, str(a.dtype), int(np.prod(a.shape[1:])) if len(a.shape) > 1 else None)
            for name, a in self._arrays.items()
            if a.shape[:1] == (self._rows,)
        ]

    def _find(self, name: str) -> tuple[Field, int | None]:
        other = self._arrays.get(name)
        if other is not None and other.shape[:1] != (self._rows,):
            raise DataError(odd_length(name, tuple(other.shape), self._rows, self.path))
        return super()._find(name)

    def parts(self) -> list[Path]:
        """See :class:`~fluvial.data.readers.Reader`."""
        return list(self._files)

    def stored(self, name: str) -> np.ndarray | None:
        """See :class:`~fluvial.data.readers.Reader`."""
        field, element = self._find(name)
        array = self._arrays[field.name]
        plain = isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.isnative
        return array if plain and array.dtype.kind == "f" and element is None else None

    def _blocks(self, names: list[str], rows: int, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for row in range(start, stop, rows):
            end = min(row + rows, stop)
            yield {n: self._piece(n, row, end) for n in names}

    def _piece(self, name: str, start: int, stop: int) -> np.ndarray:
        values = np.asarray(self._arrays[name][start:stop])
        if values.ndim > 1:
            values = values.reshape(len(values), -1)
        return numbers(values, name, str(self.path), start)


def common_rows(shapes: Mapping[str, tuple[int, ...]], path: Path) -> int:
    """Return the first dimension that most arrays have; on a tie, that of the first array.

    >>> common_rows({"wavelength": (4300,), "flux": (664, 4300), "teff": (664,)}, Path("stars.npz"))
    664
    """
    count = Counter(shape[0] for shape in shapes.values() if shape)
    if not count:
        raise DataError(f"{path} holds no arrays; expected at least one column")
    return count.most_common(1)[0][0]


def odd_length(name: str, shape: tuple[int, ...], rows: int, path: Path) -> str:
    """Say that an array is no column of a table; a message for :class:`~fluvial.errors.DataError`."""
    found = f"has {shape[0]} rows" if shape else "is a single number"
    return f"{path}: column {name!r} {found}; the others have {rows}: expected columns of one length"


def open_npy(path: Path) -> TableReader:
    """Open an npy file without reading it: a structured array is a table, a plain one a column of its own.

    The column of a plain array has the name of the file; one element of a 2-D array is ``NAME[0]``.
    """
    array = _map(path)
    if array.dtype.names is None and array.ndim not in (1, 2):
        shape = list(array.shape)
        raise DataError(f"{path}: expected an array [rows], [rows, length] or a structured one; got {shape}")
    return ArraysReader(path, _fields(array, path.stem))


def open_npz(path: Path) -> TableReader:
    """Open an npz file: each named array is a column, held in memory from when it is first asked for."""
    fields: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                with archive.open(member) as file:
                    shape, dtype = _header(file)
                stored = _Member(path, name, shape, dtype)
                fields |= _fields(stored[:], name) if dtype.names else {name: stored}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(_fault(path, error)) from error
    return ArraysReader(path, fields)


class _Member:
    """One array of an npz file: its shape and type from the header, its values when they are asked for."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.name, self.shape, self.dtype = path, name, shape, dtype
        self._values: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> np.ndarray:
        if self._values is None:
            self._values = self._load()
        return self._values[rows]

    def _load(self) -> np.ndarray:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return file[self.name]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(_fault(self.path, error)) from error


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)  # version 3.0 differs from 2.0 in the names of fields alone
    return shape, dtype


def open_side_by_side(folder: Path, files: Sequence[Path]) -> TableReader:
    """Open the npy files of one folder, each plain array a column of one table (GALAH's spectra and labels).

    A 1-D array as long as the rows of another, such as ``wavelength.npy``, is the grid of that one, and no column.
    Of a ``labels.npy [rows, 8]`` beside a ``spectra.npy`` the columns have GALAH's names as well.
    """
    arrays = {path.stem: _map(path) for path in files}
    arrays = {name: array for name, array in arrays.items() if not _is_grid(array, arrays.values())}
    fields: dict[str, Any] = {}
    for name, array in arrays.items():
        fields |= _fields(array, name)
    labels = arrays.get("labels")
    if "spectra" in arrays and labels is not None and labels.shape[1:] == (len(GALAH_LABELS),):
        fields |= {name: labels[:, i] for i, name in enumerate(GALAH_LABELS)}
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}.npy {rows}" for name, rows in lengths.items())
        raise DataError(f"{folder}: expected arrays with the same number of rows; got {found}")
    return ArraysReader(folder, fields, files)


def _is_grid(array: np.ndarray, arrays: Iterable[np.ndarray]) -> bool:
    """Say whether an array is no column but the grid of one: one row of its length, which is not the number of rows."""
    spectra = [other for other in arrays if other.ndim == 2 and len(other) > 1]
    lengths = {other.shape[1] for other in spectra} - {len(other) for other in spectra}
    return array.shape in {(n,) for n in lengths} | {(1, n) for n in lengths}


def is_plain(path: Path) -> bool:
    """Say whether an npy file holds a plain array, which is a column, rather than a table of its own."""
    return _map(path).dtype.names is None


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(_fault(path, error)) from error


def _fields(array: np.ndarray, name: str) -> dict[str, np.ndarray]:
    return {field: array[field] for field in array.dtype.names} if array.dtype.names else {name: array}


def _fault(path: Path, error: Exception) -> str:
    if any(words in str(error) for words in ("allow_pickle", "Python objects")):
        return (
            f"{path} holds Python objects (a pickle), which could run code, or is no numpy file; save plain "
            "arrays: np.save(path, array.astype(float))"
        )
    with path.open("rb") as file:
        head = file.read(6)
    if head in (b"\x93NUMPY", b"") or head[:4] == b"PK\x03\x04":
        return f"{path} looks truncated or corrupt ({error}); copy or write it again"
    return f"{path} is not a numpy file: it starts with {head!r}; mend the suffix"
