"""Parquet and CSV, through Arrow; pyarrow is imported late."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.data.read_base import Field, TableReader, inexact, not_numeric, wrong_length
from fluvial.errors import DataError

_BUFFER_BYTES = 2**17  # of each column


class ParquetReader(TableReader):
    """A table in a Parquet file, read in pieces of its row groups.

    Where the writer declared a column as dictionary-encoded (a pandas category, say), :meth:`columns` and
    :meth:`levels` say so, although Parquet itself gives numbers back as plain values. A column of lists is an
    array column where all lists have one length.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with self._open() as file:
                declared = _declared_dictionaries(file)
                self._types = {f.name: f.type for f in file.schema_arrow}
                self._fields = [Field(f.name, declared.get(f.name, str(f.type))) for f in file.schema_arrow]
                self._rows = file.metadata.num_rows
                groups = range(file.metadata.num_row_groups)
                self._ends = np.cumsum([file.metadata.row_group(g).num_rows for g in groups], dtype=np.int64)
        except arrow_errors() as error:
            raise DataError(_parquet_fault(self.path, error)) from error

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        # Without these a whole row group, of all the columns asked for, is held at once.
        return pq.ParquetFile(
            self.path, page_checksum_verification=True, pre_buffer=False, buffer_size=_BUFFER_BYTES
        )

    def _blocks(self, names: list[str], rows: int, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        row = int(self._ends[first - 1]) if first else 0
        lengths = {name: self._find(name)[0].length for name in names}
        try:
            with self._open() as file:
                groups = range(first, last + 1)
                for batch in file.iter_batches(rows, row_groups=list(groups), columns=names):
                    low, high = max(start - row, 0), min(stop - row, batch.num_rows)
                    if low < high:
                        part, at = batch.slice(low, high - low), row + low
                        where = str(self.path)
                        yield {n: arrow_to_numpy(part.column(n), n, where, at, lengths[n]) for n in names}
                    row += batch.num_rows
        except arrow_errors() as error:
            raise DataError(_parquet_fault(self.path, error)) from error

    def _find(self, name: str) -> tuple[Field, int | None]:
        field, element = super()._find(name)
        if field.length is None and _is_list(self._types[field.name]):
            # Only the first row tells; asked when it is needed, for there may be thousands of columns of lists.
            resolved = replace(field, length=self._first_length(field.name))
            self._fields[self._fields.index(field)] = resolved
            return super()._find(name)
        return field, element

    def _first_length(self, name: str) -> int | None:
        import pyarrow.types as types

        kind = self._types[name]
        if types.is_fixed_size_list(kind):
            return kind.list_size
        try:
            with self._open() as file:
                batch = next(file.iter_batches(1, row_groups=[0], columns=[name]))
        except arrow_errors() as error:
            raise DataError(_parquet_fault(self.path, error)) from error
        return len(batch.column(name)[0].as_py() or ())

    def levels(self, name: str) -> np.ndarray | None:
        """See :class:`~fluvial.data.readers.Reader`."""
        field, _ = self._find(name)
        if not field.kind.startswith("dictionary<"):
            return None
        try:
            with self._open() as file:
                column = file.read(columns=[field.name]).column(field.name)
        except arrow_errors() as error:
            raise DataError(_parquet_fault(self.path, error)) from error
        return np.array(sorted(_decode(column).unique().drop_null().to_pylist()))

    def spans(self, bounds: Mapping[str, tuple[float, float]]) -> list[range]:
        """See :class:`~fluvial.data.readers.Reader`; a row group is left out where its statistics say so."""
        bounds = {name: pair for name, pair in bounds.items() if name in self._types}
        starts = [0, *self._ends[:-1].tolist()]
        with self._open() as file:
            index = {file.metadata.schema.column(i).path: i for i in range(file.metadata.num_columns)}
            kept = [
                g
                for g in range(len(self._ends))
                if all(
                    _may_hold(file.metadata.row_group(g).column(index[name]).statistics, pair)
                    for name, pair in bounds.items()
                    if name in index
                )
            ]
        return merged([range(starts[g], int(self._ends[g])) for g in kept])


class CsvReader(TableReader):
    """A table in a comma-separated file with a header, held in memory; types are inferred from all its rows.

    An empty field is missing. Any other text among numbers, ``N/A`` included, makes the column text, which
    :meth:`read` refuses with the row and the value.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.csv as csv

        self.path = path
        serial = csv.ReadOptions(use_threads=False)  # no slower in practice, and its errors name the line
        nulls = csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
        try:
            self._table = csv.read_csv(self.path, read_options=serial, convert_options=nulls)
            self._fields = [Field(field.name, str(field.type)) for field in self._table.schema]
        except (*arrow_errors(), UnicodeDecodeError) as error:
            raise DataError(
                f"{self.path} cannot be read as CSV: {error} (the header is row #1); where that is the last "
                "row, the file looks truncated: copy or write it again"
            ) from error
        self._rows = self._table.num_rows

    def _blocks(self, names: list[str], rows: int, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for row in range(start, stop, rows):
            part = self._table.select(names).slice(row, min(rows, stop - row))
            yield {n: arrow_to_numpy(part.column(n), n, str(self.path), row) for n in names}


def merged(spans: list[range]) -> list[range]:
    """Return ranges of rows with those that touch made one.

    >>> merged([range(0, 5), range(5, 9), range(12, 15)])
    [range(0, 9), range(12, 15)]
    """
    out: list[range] = []
    for span in spans:
        if out and out[-1].stop == span.start:
            out[-1] = range(out[-1].start, span.stop)
        else:
            out.append(span)
    return out


def _may_hold(statistics: Any, bounds: tuple[float, float]) -> bool:
    """Say whether a row group may hold a value within bounds; without statistics it may."""
    if statistics is None or not statistics.has_min_max:
        return True
    low, high = statistics.min, statistics.max
    if isinstance(low, bool) or not isinstance(low, (int, float)) or math.isnan(low) or math.isnan(high):
        return True
    if statistics.physical_type == "FLOAT":  # compared as the filter compares it: 0.001 means float32(0.001)
        with np.errstate(over="ignore"):
            bounds = (float(np.float32(bounds[0])), float(np.float32(bounds[1])))
    return low <= bounds[1] and high >= bounds[0]


def arrow_errors() -> tuple[type[Exception], ...]:
    """Return what pyarrow raises on a file that it cannot read."""
    import pyarrow as pa

    return (pa.ArrowException, OSError)


def _declared_dictionaries(file: Any) -> dict[str, str]:
    """Return the dictionary types that the writer's Arrow schema declares; none where there is no such schema."""
    import pyarrow as pa

    stored = (file.metadata.metadata or {}).get(b"ARROW:schema")
    if stored is None:
        return {}
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(stored)))
    return {field.name: str(field.type) for field in schema if pa.types.is_dictionary(field.type)}


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


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _decode(column: Any) -> Any:
    """Return an Arrow array with a dictionary taken by its indices; any other array as it is."""
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def arrow_to_numpy(column: Any, name: str, where: str, row: int = 0, length: int | None = None) -> np.ndarray:
    """Return an Arrow array (chunked or not) as numpy: ``[n]``, or ``[n, length]`` for lists of one length.

    Nulls become NaN, and decimals float64. ``row`` is the number of the first row, for messages. Raises
    :class:`~fluvial.errors.DataError` for anything that is not a number.
    """
    import pyarrow as pa

    column, types = _decode(column), pa.types
    if _is_list(column.type):
        return _lists(column, name, where, row, length)
    numeric = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    if not any(test(column.type) for test in numeric):
        kind = str(column.type)
        values = column.to_pylist() if "string" in kind or "binary" in kind else ()
        raise DataError(not_numeric(values, name, where, kind, row))
    if not column.null_count and not types.is_decimal(column.type):
        return (
            column.to_numpy()
            if isinstance(column, pa.ChunkedArray)
            else column.to_numpy(zero_copy_only=False)
        )
    try:
        return np.asarray(column.cast(pa.float64()))
    except pa.ArrowInvalid as error:
        raise DataError(inexact(name, where)) from error


def _lists(column: Any, name: str, where: str, row: int, length: int | None) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), -1))  # type: ignore[attr-defined]
    expected = int(length if length is not None else max(lengths.max(initial=0), 0))
    present = lengths >= 0
    wrong = present & (lengths != expected)
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(wrong_length(name, where, row + at, int(lengths[at]), expected))
    flat = arrow_to_numpy(column.flatten(), name, where, row)
    if present.all():
        return flat.reshape(len(lengths), expected)
    out = np.full((len(lengths), expected), np.nan, np.result_type(flat.dtype, np.float32))
    out[present] = flat.reshape(-1, expected)
    return out
