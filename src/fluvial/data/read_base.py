"""What every reader offers, and what they share: the protocol, names of columns, chunks to whole columns.

A format says which fields it holds and yields blocks of rows (:meth:`TableReader._blocks`); everything that a
user sees — the checks of names, ``flux[17]`` for one element of an array column, whole columns as float64 —
is here, so that it is the same whatever the format.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fluvial.errors import DataError, nearest

_EXACT = 2**53  # beyond this, float64 does not hold every integer
_BLOCK_BYTES = 2**23  # of float64, in one block of a read: it stays in the cache
_ELEMENT = re.compile(r"(.+)\[(\d+)\]")


class Reader(Protocol):
    """A table in one file, in many, or in memory: its columns, its rows, and the numbers that are asked for.

    A column is a scalar or a fixed-length array (a spectrum, a row of a 2-D dataset). One element of an array
    column is a column too, under the name ``flux[17]``.
    """

    path: Path

    def columns(self) -> dict[str, str]:
        """Return each column's name and stored type as text, in the order of the file.

        An array column shows its length, as in ``float32[4300]``. Of many files: the columns that all have.
        """
        ...

    def rows(self) -> int:
        """Return the number of rows."""
        ...

    def length(self, name: str) -> int | None:
        """Return the length of an array column, ``None`` for a scalar one.

        Raises :class:`~fluvial.errors.DataError` where there is no such column, it is there twice, or the
        files of one source disagree about it.
        """
        ...

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the named columns as new, writable arrays; a null is NaN.

        A scalar column is float64 ``[rows]``; an array column is ``[rows, length]``, float32 where no value
        would be rounded (it is stored as float32 or smaller), else float64.

        Raises :class:`~fluvial.errors.DataError` where a column is missing or there twice, or holds something
        that is not a number (naming the first such row), or integers that float64 cannot hold exactly, or
        arrays of different lengths.
        """
        ...

    def chunks(
        self, names: Sequence[str], rows: int, start: int = 0, stop: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the named columns of rows ``start`` to ``stop``, in file order, at most ``rows`` rows at a time.

        Every chunk holds all names, ``[n]`` or ``[n, length]`` with ``1 ≤ n ≤ rows``; chunks may be
        shorter than ``rows`` at the ends of files and of row groups, and together hold every row once. Memory
        is bounded by a chunk (and a compressed block of the format; a CSV file is held whole). Arrays may be
        read-only views.

        The stored type is kept: bool, any integer, float16, float32 or float64, in native byte order.
        A decimal is float64, and integers with nulls are float64 with NaN in those chunks that have nulls.

        Raises what :meth:`read` raises, except that large integers are left as they are.
        """
        ...

    def stored(self, name: str) -> np.ndarray | None:
        """Return an array column ``[rows, length]`` as it is held: a memory map of floats, or an array in memory.

        ``None`` where it must be read, or holds no floats in native byte order.
        """
        ...

    def levels(self, name: str) -> np.ndarray | None:
        """Return the sorted distinct values of a dictionary-encoded column, ``None`` for any other column.

        A null is no level. Raises :class:`~fluvial.errors.DataError` for a column missing or there twice.
        """
        ...

    def parts(self) -> list[Path]:
        """Return the files, in the order of their rows; none for a table in memory."""
        ...

    def locate(self, row: int) -> tuple[Path, int]:
        """Return the file that holds a row (counted from 0 over all files), and the row within that file."""
        ...

    def spans(self, bounds: Mapping[str, tuple[float, float]]) -> list[range]:
        """Return the ranges of rows, in order, outside which no row has every named column within its bounds.

        ``bounds`` gives the closed interval of a column. What the format knows without reading rows decides
        (row-group statistics of Parquet, values of a partition); where it knows nothing, all rows may match.
        """
        ...


@dataclass(frozen=True)
class Field:
    """One stored column: name, type as text, and length of an array column (``None``: a scalar)."""

    name: str
    kind: str
    length: int | None = None

    def __str__(self) -> str:
        return self.kind if self.length is None else f"{self.kind}[{self.length}]"


class TableReader(ABC):
    """A reader of one table; a subclass sets ``path``, ``_fields`` and ``_rows`` and yields blocks."""

    path: Path
    _fields: list[Field]
    _rows: int

    @abstractmethod
    def _blocks(
        self, names: list[str], rows: int, start: int, stop: int
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield stored columns of rows start:stop in order; the names are known to be there once."""

    def columns(self) -> dict[str, str]:
        """See :class:`Reader`."""
        return {field.name: str(field) for field in self._fields}

    def rows(self) -> int:
        """See :class:`Reader`."""
        return self._rows

    def length(self, name: str) -> int | None:
        """See :class:`Reader`."""
        field, element = self._find(name)
        return field.length if element is None else None

    def levels(self, name: str) -> np.ndarray | None:
        """See :class:`Reader`; no levels are known."""
        self._find(name)
        return None

    def parts(self) -> list[Path]:
        """See :class:`Reader`."""
        return [self.path]

    def locate(self, row: int) -> tuple[Path, int]:
        """See :class:`Reader`."""
        return self.path, row

    def spans(self, bounds: Mapping[str, tuple[float, float]]) -> list[range]:
        """See :class:`Reader`; nothing is known without reading the rows."""
        return [range(self._rows)]

    def stored(self, name: str) -> np.ndarray | None:
        """See :class:`Reader`; what a format holds is not an array of numpy."""
        self._find(name)
        return None

    def chunks(
        self, names: Sequence[str], rows: int, start: int = 0, stop: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """See :class:`Reader`."""
        found = {name: self._find(name) for name in names}
        start, stop = check_range(rows, start, stop, self._rows)
        return self._chunks(found, rows, start, stop)

    def _chunks(
        self, found: Mapping[str, tuple[Field, int | None]], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        stored = list(dict.fromkeys(field.name for field, _ in found.values()))
        if not stored or start == stop:
            return
        for block in self._blocks(stored, rows, start, stop):
            yield {
                name: block[field.name] if element is None else block[field.name][:, element]
                for name, (field, element) in found.items()
            }

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See :class:`Reader`."""
        names = list(dict.fromkeys(names))
        stored = {field.name: field.length or 1 for field, _ in map(self._find, names)}
        out: dict[str, np.ndarray] = {}
        row = 0
        for chunk in self.chunks(names, max(1, _BLOCK_BYTES // (8 * max(sum(stored.values()), 1)))):
            for name, values in chunk.items():
                if name not in out:
                    out[name] = np.empty((self._rows, *values.shape[1:]), whole_dtype(values))
                out[name][row : row + len(values)] = exact(values, name, str(self.path))
            row += len(next(iter(chunk.values())))
        return out

    def _find(self, name: str) -> tuple[Field, int | None]:
        """Return the stored field of a name, and the element that it means of an array column."""
        matches = [field for field in self._fields if field.name == name]
        if len(matches) > 1:
            raise DataError(f"{self.path}: {len(matches)} columns are named {name!r}; rename all but one")
        if matches:
            return matches[0], None
        element = _ELEMENT.fullmatch(name)
        if element is None or Counter(f.name for f in self._fields)[element[1]] == 0:
            raise DataError(f"{self.path}: no column {name!r}{nearest(name, self.columns())}")
        field, _ = self._find(element[1])
        if field.length is None or int(element[2]) >= field.length:
            found = "one number a row" if field.length is None else f"{field.length} elements, from 0"
            raise DataError(f"{self.path}: no column {name!r}: {element[1]} has {found}")
        return field, int(element[2])


def check_range(rows: int, start: int, stop: int | None, total: int) -> tuple[int, int]:
    """Return the ends of a range of rows, or raise :class:`ValueError`: a fault of the caller, not of the data."""
    stop = total if stop is None else stop
    if rows < 1 or not 0 <= start <= stop <= total:
        raise ValueError(
            f"expected chunks of rows from 1, within 0 to {total}; got {rows=}, {start=}, {stop=}"
        )
    return start, stop


def whole_dtype(values: np.ndarray) -> np.dtype[Any]:
    """Return the type of a column that is read whole: float64, or float32 for arrays that it holds exactly."""
    small = values.ndim > 1 and np.can_cast(values.dtype, np.float32, "safe")
    return np.dtype(np.float32 if small else np.float64)


def exact(values: np.ndarray, name: str, where: str) -> np.ndarray:
    """Return values as they are, or raise :class:`~fluvial.errors.DataError` where float64 would round them."""
    large = values.dtype.kind in "iu" and values.dtype.itemsize == 8 and values.size
    if large and (values.max() > _EXACT or values.min() < -_EXACT):
        raise DataError(inexact(name, where))
    return values


def numbers(values: np.ndarray, name: str, where: str, row: int = 0) -> np.ndarray:
    """Return an array of numbers in native byte order; text or objects raise, naming the first that is none.

    ``row`` is the number of the first value's row, for the message.
    """
    if values.dtype.kind in "biuf" and values.dtype.itemsize <= 8:
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "f":  # long double
        return values.astype(np.float64)
    flat = values.reshape(len(values), -1)[:, 0].tolist() if values.size else []
    raise DataError(not_numeric(flat, name, where, str(values.dtype), row))


def inexact(name: str, where: str) -> str:
    """Say that integers are too large; a message for :class:`~fluvial.errors.DataError`."""
    return (
        f"{where}: column {name!r} holds integers beyond 2^53, which float64 cannot hold exactly; "
        "if it is an identifier, leave it out of the targets and the context"
    )


def not_numeric(values: Iterable[Any], name: str, where: str, kind: str, first: int = 0) -> str:
    """Say which row is the first that is not a number; a message for :class:`~fluvial.errors.DataError`."""
    row, value = next(((i, v) for i, v in enumerate(values, first) if not is_number(v)), (0, None))
    if value is None:
        return f"{where}: column {name!r} is stored as {kind}; expected numbers: convert the column to float"
    return (
        f"{where}: column {name!r} ({kind}) holds {value!r} in row {row} (the first data row is row 0); "
        "expected numbers: correct the value, or leave it missing (empty, or NaN)"
    )


def is_number(value: Any) -> bool:
    """Say whether a value, or the text of one, is a number or missing."""
    try:
        float(np.nan if value is None else value)
    except (TypeError, ValueError):
        return False
    return "_" not in str(value)  # Python reads 1_0 as ten; no file format does


def wrong_length(name: str, where: str, row: int, found: int, expected: int) -> str:
    """Say which array has another length; a message for :class:`~fluvial.errors.DataError`."""
    return (
        f"{where}: column {name!r} holds an array of length {found} in row {row}; expected {expected}, as in row 0: "
        "resample the spectra to one grid, or leave that row out"
    )
