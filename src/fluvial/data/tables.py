"""Tables in memory of any kind to numbers, and tables to files, each written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fluvial.data.read_arrow import arrow_to_numpy
from fluvial.data.read_base import exact, is_number, not_numeric
from fluvial.data.read_numpy import ArraysReader
from fluvial.errors import DataError, nearest


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


def memory_table(data: Any, what: str = "the table in memory") -> ArraysReader:
    """Return a reader of a table in memory, of any kind that :func:`as_table` takes by column names.

    A column is ``[rows]``, or ``[rows, length]`` of an array column. Arrays of numpy keep their type and are not
    copied. ``what`` names the table in messages. The reader has no files.

    >>> memory_table({"Z": np.array([0.001, 0.02])}).columns()
    {'Z': 'float64'}
    """
    known = column_names(data)
    if known is None:
        raise DataError(
            f"{what}: expected a mapping, a DataFrame, an Arrow table or a structured array; got {type(data).__name__}"
        )
    columns = {}
    for name, raw in _pick(data, known, what).items():
        try:
            numeric = isinstance(raw, np.ndarray) and raw.dtype.kind in "biuf"
            columns[name] = raw if numeric else _to_float64(raw, name, what)
        except DataError:
            columns[name] = np.asarray(raw, dtype=object)  # text, say: refused when it is asked for
    _common_length({name: len(values) if values.ndim else 1 for name, values in columns.items()}, what)
    return ArraysReader(Path(what), columns, files=())


def _common_length(lengths: Mapping[str, int], where: str) -> int:
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{where}: expected columns of one length; got {found}")
    return next(iter(lengths.values()), 1)


def column_names(data: Any) -> list[str] | None:
    """Return the names of the columns of a table in memory, ``None`` of what has none.

    What kind of table it is shows in what it offers.
    """
    if isinstance(data, Mapping):
        return list(data)
    if hasattr(data, "column_names"):  # a pyarrow Table, whose `columns` are arrays
        return list(data.column_names)
    if hasattr(data, "columns") and hasattr(data, "__getitem__"):  # a DataFrame
        return list(data.columns)
    names = getattr(getattr(data, "dtype", None), "names", None)
    return list(names) if names else None


def _pick(data: Any, names: list[str], what: str) -> dict[str, Any]:
    """Return the raw named columns."""
    known = column_names(data)
    if known is None:
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
        value = np.require(arrow_to_numpy(value, name, what), requirements="W")  # Arrow's memory is read-only
    if hasattr(value, "to_value"):  # an astropy Quantity, whose unit would be lost without a word
        raise DataError(f"{what}: column {name!r} carries the unit {value.unit}; give .to_value(unit)")
    if library == "pandas" and not isinstance(dtype, np.dtype) and getattr(dtype, "kind", "O") != "O":
        value = value.to_numpy(dtype=np.float64, na_value=np.nan)  # a nullable type of pandas
    array = exact(np.asarray(_plain(value)), name, what)
    if array.dtype.kind in "biuf":
        return array.astype(np.float64, copy=False)
    if array.dtype.kind == "O" and all(is_number(v) and not isinstance(v, str | bytes) for v in array.flat):
        return np.array([np.nan if v is None else float(v) for v in array.flat]).reshape(array.shape)
    raise DataError(not_numeric(array.reshape(-1).tolist(), name, what, str(array.dtype)))


def write_table(
    path: str | os.PathLike[str], columns: Mapping[str, np.ndarray], *, dictionary: Sequence[str] = ()
) -> None:
    """Write columns of one length to a Parquet, CSV or npy (structured array) file, by the suffix.

    The table is written beside its place, flushed to disk, and moved there in one step: no reader ever sees
    half of it, and a failure leaves an earlier file as it was. Types are kept, and every bit of a float.

    Parquet is compressed with Zstandard: a column with few distinct values as indices into a dictionary (a few
    bits a row), other floats with the bytes of equal rank together (BYTE_STREAM_SPLIT). The columns named in
    ``dictionary`` are declared as such, so that :meth:`fluvial.data.readers.Reader.levels` knows their values.

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
    for name in dictionary:
        if name not in arrays:
            raise DataError(f"{path}: dictionary: no column {name!r}{nearest(name, arrays)}")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            writer(file, arrays, dictionary)
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


_LEVELS, _SAMPLE = 4096, 20_000


def _write_parquet(file: IO[bytes], columns: dict[str, np.ndarray], dictionary: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    few: Any = [name for name, values in columns.items() if name in dictionary or _few_levels(values)]
    split: Any = [
        name
        for name, values in columns.items()
        if values.dtype in (np.float32, np.float64) and name not in few
    ]
    arrays = {name: pa.array(values) for name, values in columns.items()}
    table = pa.table({n: a.dictionary_encode() if n in dictionary else a for n, a in arrays.items()})
    pq.write_table(
        table,
        file,
        compression="zstd",
        use_dictionary=few,
        use_byte_stream_split=split,
        write_page_checksum=True,
    )


def _few_levels(values: np.ndarray) -> bool:
    """Say whether a dictionary is likely to be small, by rows from all over the column.

    Where that is wrong, Parquet itself gives the dictionary up once it has grown.
    """
    sample = values[:: max(1, values.size // _SAMPLE)]
    return np.unique(sample).size <= min(_LEVELS, max(sample.size // 4, 1))


def _write_csv(file: IO[bytes], columns: dict[str, np.ndarray], _: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.csv as csv

    csv.write_csv(pa.table(columns), file)


def _write_npy(file: IO[bytes], columns: dict[str, np.ndarray], _: Sequence[str]) -> None:
    size = next(iter(columns.values())).size
    table = np.empty(size, dtype=[(name, array.dtype) for name, array in columns.items()])
    for name, array in columns.items():
        table[name] = array
    np.save(file, table, allow_pickle=False)


_WRITERS = {".parquet": _write_parquet, ".pq": _write_parquet, ".csv": _write_csv, ".npy": _write_npy}
