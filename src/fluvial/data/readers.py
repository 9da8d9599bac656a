"""Tables from files and from memory, and back: one small protocol, one class a format.

:func:`open_table` opens a file and gives a :class:`Reader`. Whatever the format, numbers come out as float64
and missing values as NaN, for :func:`fluvial.data.validate.validate` to catch. Messages count rows from 0,
the first data row. A new format is one reader class and one line in ``_READERS``. pyarrow is imported late.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from fluvial.errors import DataError, nearest

_EXACT = 2**53  # beyond this, float64 does not hold every integer


class Reader(Protocol):
    """A table in a file: its columns, its rows, and the columns that are asked for as numbers."""

    path: Path

    def columns(self) -> dict[str, str]:
        """Return each column's name and stored type as text, in the order of the file."""
        ...

    def rows(self) -> int:
        """Return the number of rows."""
        ...

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the named columns as new, writable float64 arrays ``[rows]``; a null is NaN.

        Raises :class:`~fluvial.errors.DataError` where a column is missing or there twice, or holds something
        that is not a number (naming the first such row), or integers that float64 cannot hold exactly.
        """
        ...

    def levels(self, name: str) -> np.ndarray | None:
        """Return the sorted distinct values of a dictionary-encoded column, ``None`` for any other column.

        A null is no level. Raises :class:`~fluvial.errors.DataError` for a column missing or there twice.
        """
        ...


def open_table(path: str | os.PathLike[str]) -> Reader:
    """Open the table in a file, by the file's suffix.

    Raises :class:`~fluvial.errors.DataError` where the file is missing (naming one like it nearby), is a
    folder, has a suffix that no reader knows, is truncated or corrupt, or holds no rows.
    """
    path = Path(path)
    known = ", ".join(_READERS)
    if path.is_dir():
        files = ", ".join(_tables_in(path)) or "none"
        raise DataError(f"{path} is a folder; expected a file ({known}); tables in it: {files}")
    if not path.exists():
        if not path.parent.is_dir():
            raise DataError(f"{path} does not exist, nor does its folder {path.parent}; check the path")
        hint = nearest(path.name, _tables_in(path.parent)) or "; its folder holds no tables"
        raise DataError(f"{path} does not exist{hint}")
    kind = _READERS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: no reader for the suffix {path.suffix!r}; expected one of {known}")
    reader = kind(path)
    if reader.rows() == 0:
        raise DataError(f"{path} has columns but no rows; expected at least one row")
    return reader


def fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what tells one data file from another, as a value for JSON.

    Keys: ``path`` (as given), ``bytes``, ``rows``, ``modified`` (ISO 8601, UTC), ``columns`` (a list of
    ``name`` and ``type``) and ``sha256`` of the whole file. Raises what :func:`open_table` raises.
    """
    reader = open_table(path)
    stat = reader.path.stat()
    with reader.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "path": os.fspath(path),
        "bytes": stat.st_size,
        "rows": reader.rows(),
        "modified": datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds"),
        "columns": [{"name": name, "type": kind} for name, kind in reader.columns().items()],
        "sha256": digest,
    }


class _ArrowReader(Reader, ABC):
    """What the readers that go through Arrow share; a subclass says how to reach the columns."""

    _fields: list[tuple[str, Any]]  # name and declared Arrow type, in file order; names may repeat
    _rows: int

    @abstractmethod
    def _load(self, names: Sequence[str]) -> Iterator[Any]:
        """Yield a ``pyarrow.ChunkedArray`` for each name; the names are known to be there once."""

    def columns(self) -> dict[str, str]:
        return {name: str(kind) for name, kind in self._fields}

    def rows(self) -> int:
        return self._rows

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        names = list(dict.fromkeys(names))
        self._check(names)
        columns = zip(names, self._load(names), strict=True)
        return {name: _arrow_to_float64(column, name, str(self.path)) for name, column in columns}

    def levels(self, name: str) -> np.ndarray | None:
        import pyarrow as pa

        self._check([name])
        if not pa.types.is_dictionary(dict(self._fields)[name]):
            return None
        (column,) = self._load([name])
        return np.array(sorted(_decode(column).unique().drop_null().to_pylist()))

    def _check(self, names: Sequence[str]) -> None:
        count = Counter(name for name, _ in self._fields)
        for name in names:
            if count[name] == 0:
                raise DataError(f"{self.path}: no column {name!r}{nearest(name, count)}")
            if count[name] > 1:
                raise DataError(f"{self.path}: {count[name]} columns are named {name!r}; rename all but one")


class ParquetReader(_ArrowReader):
    """A table in a Parquet file, read column by column, so that memory holds the result and one column more.

    Where the writer declared a column as dictionary-encoded (a pandas category, say), :meth:`columns` and
    :meth:`levels` say so, although Parquet itself gives numbers back as plain values.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with self._open() as file:
                declared = _declared_types(file)
                self._fields = [(f.name, declared.get(f.name, f.type)) for f in file.schema_arrow]
                self._rows = file.metadata.num_rows
        except _arrow_errors() as error:
            raise DataError(_parquet_fault(self.path, error)) from error

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.path, page_checksum_verification=True)

    def _load(self, names: Sequence[str]) -> Iterator[Any]:
        try:
            with self._open() as file:
                for name in names:
                    yield file.read(columns=[name]).column(name)
        except _arrow_errors() as error:
            raise DataError(_parquet_fault(self.path, error)) from error


class CsvReader(_ArrowReader):
    """A table in a comma-separated file with a header, held in memory; types are inferred from all its rows.

    An empty field is missing. Any other text among numbers, ``N/A`` included, makes the column text, which
    :meth:`read` refuses with the row and the value.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import pyarrow.csv as csv

        self.path = Path(path)
        serial = csv.ReadOptions(use_threads=False)  # no slower in practice, and its errors name the line
        nulls = csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
        try:
            self._table = csv.read_csv(self.path, read_options=serial, convert_options=nulls)
            self._fields = [(field.name, field.type) for field in self._table.schema]
        except (*_arrow_errors(), UnicodeDecodeError) as error:
            raise DataError(
                f"{self.path} cannot be read as CSV: {error} (the header is row #1); where that is the last "
                "row, the file looks truncated: copy or write it again"
            ) from error
        self._rows = self._table.num_rows

    def _load(self, names: Sequence[str]) -> Iterator[Any]:
        return (self._table.column(name) for name in names)


_Open = Callable[[Path], Reader]
_READERS: dict[str, _Open] = {".parquet": ParquetReader, ".pq": ParquetReader, ".csv": CsvReader}


def _tables_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _READERS and p.is_file())


def _arrow_errors() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    return (pa.ArrowException, OSError)


def _declared_types(file: Any) -> dict[str, Any]:
    """Return the types that the writer's Arrow schema declares; none where the file has no such schema."""
    import pyarrow as pa

    stored = (file.metadata.metadata or {}).get(b"ARROW:schema")
    if stored is None:
        return {}
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(stored)))
    return {field.name: field.type for field in schema if pa.types.is_dictionary(field.type)}


def _parquet_fault(path: Path, error: Exception) -> str:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(max(size - 4, 0))
            tail = file.read(4)
    except OSError as unreadable:
        return f"{path} cannot be read: {unreadable.strerror}"
    if head and head != b"PAR1":
        return f"{path} is not a Parquet file: it starts with {head!r}, not b'PAR1'; mend the suffix"
    if tail != b"PAR1":
        return f"{path} looks truncated: its {size} bytes lack the footer of Parquet; copy or write it again"
    return f"{path} looks corrupt, although its footer is there ({error}); copy or write it again"


def _decode(column: Any) -> Any:
    """Return an Arrow array with a dictionary taken by its indices; any other array as it is."""
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _arrow_to_float64(column: Any, name: str, where: str) -> np.ndarray:
    """Return an Arrow array (chunked or not) as a writable float64 array, nulls as NaN."""
    import pyarrow as pa

    column, types = _decode(column), pa.types
    numeric = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    if not any(test(column.type) for test in numeric):
        kind = str(column.type)
        values = column.to_pylist() if "string" in kind or "binary" in kind else ()
        raise DataError(_not_numeric(values, name, where, kind))
    try:
        values = column.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(_inexact(name, where)) from error
    return np.require(np.asarray(values), requirements="W")  # Arrow's own memory is read-only: copied


def _inexact(name: str, where: str) -> str:
    return (
        f"{where}: column {name!r} holds integers beyond 2^53, which float64 cannot hold exactly; "
        "if it is an identifier, leave it out of the targets and the context"
    )


def _not_numeric(values: Iterable[Any], name: str, where: str, kind: str) -> str:
    """Say which row is the first that is not a number; a message for :class:`DataError`."""
    row, value = next(((i, v) for i, v in enumerate(values) if not _is_number(v)), (0, None))
    if value is None:
        return f"{where}: column {name!r} is stored as {kind}; expected numbers: convert the column to float"
    return (
        f"{where}: column {name!r} ({kind}) holds {value!r} in row {row} (the first data row is row 0); "
        "expected numbers: correct the value, or leave it missing (empty, or NaN)"
    )


def _is_number(value: Any) -> bool:
    try:
        float(np.nan if value is None else value)
    except (TypeError, ValueError):
        return False
    return "_" not in str(value)  # Python reads 1_0 as ten; no file format does


def as_table(data: Any, names: Sequence[str], what: str = "the data") -> dict[str, np.ndarray]:
    """Return the named columns of a table in memory as float64 arrays ``[n]``, in the order of ``names``.

    ``data`` is a mapping from names to arrays or scalars, a numpy structured array, a DataFrame of pandas or
    polars, a pyarrow Table, or an array ``[n, len(names)]`` with the columns in that order (for one name also
    ``[n]``). Other columns are ignored; a scalar is repeated to the common length, which is 1 where all are
    scalars. A missing value becomes NaN. A float64 column is not copied. ``what`` names the data in messages.

    Raises :class:`~fluvial.errors.DataError` where a column is missing or there twice, is not numeric or not
    one-dimensional, or carries a unit, and where lengths differ.

    >>> as_table({"Z": 0.001, "alpha": [0.5, 1.0]}, ["Z", "alpha"])
    {'Z': array([0.001, 0.001]), 'alpha': array([0.5, 1. ])}
    """
    columns = {name: _to_float64(raw, name, what) for name, raw in _pick(data, list(names), what).items()}
    for name, values in columns.items():
        if values.ndim > 1:
            raise DataError(f"{what}: expected column {name!r} to be 1-D; got shape {list(values.shape)}")
    rows = _common_length({name: v.size for name, v in columns.items() if v.ndim == 1}, what)
    return {name: v if v.ndim == 1 else np.full(rows, v.item()) for name, v in columns.items()}


def _common_length(lengths: Mapping[str, int], where: str) -> int:
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{where}: expected columns of one length; got {found}")
    return next(iter(lengths.values()), 1)


def _pick(data: Any, names: list[str], what: str) -> dict[str, Any]:
    """Return the raw named columns; what kind of table ``data`` is shows in what it offers."""
    if isinstance(data, Mapping):
        known = list(data)
    elif hasattr(data, "column_names"):  # a pyarrow Table, whose `columns` are arrays
        known = list(data.column_names)
    elif hasattr(data, "columns") and hasattr(data, "__getitem__"):  # a DataFrame
        known = list(data.columns)
    elif getattr(getattr(data, "dtype", None), "names", None):
        known = list(data.dtype.names)
    else:
        return _pick_matrix(data, names, what)
    count = Counter(known)
    for name in names:
        if count[name] == 0:
            raise DataError(f"{what}: no column {name!r}{nearest(name, map(str, count))}")
        if count[name] > 1:
            raise DataError(f"{what}: {count[name]} columns are named {name!r}; rename all but one")
    return {name: data[name] for name in names}


def _pick_matrix(data: Any, names: list[str], what: str) -> dict[str, Any]:
    expected = f"expected [n, {len(names)}] for columns {', '.join(names)}"
    try:
        matrix = np.asarray(_plain(data))
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{what}: {expected}; got rows of different lengths") from error
    if matrix.ndim == 1 and len(names) == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2 or matrix.shape[1] != len(names):
        kind = "" if matrix.ndim else f" ({type(data).__name__})"
        raise DataError(f"{what}: {expected}; got {list(matrix.shape)}{kind}")
    return {name: matrix[:, i] for i, name in enumerate(names)}


def _plain(value: Any) -> Any:
    """Return what numpy can take as it is: tensors detached and on the host, masked values as NaN."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "biuf":
        value = np.ma.filled(value.astype(np.float64), np.nan)
    return value


def _to_float64(value: Any, name: str, what: str) -> np.ndarray:
    """Return one column of a table in memory as float64, whatever library it comes from."""
    library, dtype = type(value).__module__.partition(".")[0], getattr(value, "dtype", None)
    if library == "pyarrow":
        return _arrow_to_float64(value, name, what)
    if hasattr(value, "to_value"):  # an astropy Quantity, whose unit would be lost without a word
        raise DataError(f"{what}: column {name!r} carries the unit {value.unit}; give .to_value(unit)")
    if library == "pandas" and not isinstance(dtype, np.dtype) and getattr(dtype, "kind", "O") != "O":
        value = value.to_numpy(dtype=np.float64, na_value=np.nan)  # a nullable type of pandas
    array = np.asarray(_plain(value))
    if array.dtype.kind in "iu" and array.size and (array.max() > _EXACT or array.min() < -_EXACT):
        raise DataError(_inexact(name, what))
    if array.dtype.kind in "biuf":
        return array.astype(np.float64, copy=False)
    if array.dtype.kind == "O" and all(_is_number(v) and not isinstance(v, str | bytes) for v in array.flat):
        return np.array([np.nan if v is None else float(v) for v in array.flat]).reshape(array.shape)
    raise DataError(_not_numeric(array.reshape(-1).tolist(), name, what, str(array.dtype)))


def write_table(path: str | os.PathLike[str], columns: Mapping[str, np.ndarray]) -> None:
    """Write columns of one length to a Parquet, CSV or npy (structured array) file, by the suffix.

    The table is written beside its place, flushed to disk, and moved there in one step: no reader ever sees
    half of it, and a failure leaves an earlier file as it was. Float types are kept.

    Raises :class:`~fluvial.errors.DataError` where the suffix is unknown, the folder is missing, a column is
    not 1-D or neither numeric nor text, lengths differ, or the system refuses (a full disk).
    """
    path = Path(path)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        known = ", ".join(_WRITERS)
        raise DataError(f"{path}: no writer for the suffix {path.suffix!r}; expected one of {known}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist; make it first")
    arrays = _check_columns(columns, path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            writer(file, arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, ValueError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} could not be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _check_columns(columns: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    if not columns:
        raise DataError(f"{path}: expected at least one column to write; got none")
    arrays = {name: np.asarray(_plain(values)) for name, values in columns.items()}
    for name, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind not in "biufU":
            found = f"shape {list(array.shape)} of {array.dtype}"
            raise DataError(f"{path}: expected a 1-D column of numbers or text in {name!r}; got {found}")
    _common_length({name: array.size for name, array in arrays.items()}, str(path))
    # Arrow takes native byte order only; FITS tables come big-endian.
    return {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()}


def _write_parquet(file: IO[bytes], columns: dict[str, np.ndarray]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file, write_page_checksum=True)


def _write_csv(file: IO[bytes], columns: dict[str, np.ndarray]) -> None:
    import pyarrow as pa
    import pyarrow.csv as csv

    csv.write_csv(pa.table(columns), file)


def _write_npy(file: IO[bytes], columns: dict[str, np.ndarray]) -> None:
    size = next(iter(columns.values())).size
    table = np.empty(size, dtype=[(name, array.dtype) for name, array in columns.items()])
    for name, array in columns.items():
        table[name] = array
    np.save(file, table, allow_pickle=False)


_WRITERS = {".parquet": _write_parquet, ".pq": _write_parquet, ".csv": _write_csv, ".npy": _write_npy}
