"""Many files as one table, and values that the path of a file gives to all of its rows."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from fluvial.data.read_arrow import merged
from fluvial.data.read_base import Field, Reader, check_range, is_number, not_numeric
from fluvial.errors import DataError

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


class ManyReader:
    """The rows of several tables one after the other; every column asked for must be in all of them."""

    def __init__(self, path: Path, readers: Sequence[Reader]) -> None:
        self.path = path
        self._readers = list(readers)
        self._ends = np.cumsum([r.rows() for r in readers], dtype=np.int64).tolist()
        self._lengths: dict[str, int | None] = {}

    def columns(self) -> dict[str, str]:
        """See :class:`~fluvial.data.readers.Reader`."""
        known = [r.columns() for r in self._readers]
        return {name: kind for name, kind in known[0].items() if all(name in other for other in known[1:])}

    def rows(self) -> int:
        """See :class:`~fluvial.data.readers.Reader`."""
        return self._ends[-1]

    def length(self, name: str) -> int | None:
        """See :class:`~fluvial.data.readers.Reader`."""
        if name not in self._lengths:
            self._lengths[name] = self._agreed_length(name)
        return self._lengths[name]

    def stored(self, name: str) -> np.ndarray | None:
        """See :class:`~fluvial.data.readers.Reader`; several files are no array."""
        return self._readers[0].stored(name) if len(self._readers) == 1 else None

    def _agreed_length(self, name: str) -> int | None:
        first, *others = self._readers
        try:
            expected = first.length(name)
        except DataError as error:
            has = next((r for r in others if name in r.columns()), None)
            raise error if has is None else _lacking(error, has) from None
        for other in others:
            try:
                found = other.length(name)
            except DataError as error:
                raise _lacking(error, first) from None
            if found != expected:
                raise DataError(
                    f"{other.path}: column {name!r} holds {_shape(found)} a row, but in {first.path} {_shape(expected)}; "
                    "the files of one source need the same columns"
                )
        return expected

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See :class:`~fluvial.data.readers.Reader`."""
        names = list(dict.fromkeys(names))
        for name in names:
            self.length(name)
        out: dict[str, np.ndarray] = {}
        for reader, end in zip(self._readers, self._ends, strict=True):
            for name, values in reader.read(names).items():
                if name not in out:
                    out[name] = np.empty((self.rows(), *values.shape[1:]), values.dtype)
                elif values.dtype.itemsize > out[name].dtype.itemsize:
                    out[name] = out[name].astype(values.dtype)
                out[name][end - len(values) : end] = values
        return out

    def chunks(
        self, names: Sequence[str], rows: int, start: int = 0, stop: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """See :class:`~fluvial.data.readers.Reader`."""
        for name in names:
            self.length(name)
        start, stop = check_range(rows, start, stop, self.rows())
        return self._chunks(names, rows, start, stop)

    def _chunks(
        self, names: Sequence[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        for reader, end in zip(self._readers, self._ends, strict=True):
            begin = end - reader.rows()
            low, high = max(start, begin), min(stop, end)
            if low < high:
                yield from reader.chunks(names, rows, low - begin, high - begin)

    def levels(self, name: str) -> np.ndarray | None:
        """See :class:`~fluvial.data.readers.Reader`; known where every file has them."""
        self.length(name)
        found = [r.levels(name) for r in self._readers]
        known = [levels for levels in found if levels is not None]
        return np.unique(np.concatenate(known)) if len(known) == len(found) else None

    def parts(self) -> list[Path]:
        """See :class:`~fluvial.data.readers.Reader`."""
        return [part for reader in self._readers for part in reader.parts()]

    def locate(self, row: int) -> tuple[Path, int]:
        """See :class:`~fluvial.data.readers.Reader`."""
        which = bisect.bisect_right(self._ends, row)
        reader = self._readers[which]
        return reader.locate(row - self._ends[which] + reader.rows())

    def spans(self, bounds: Mapping[str, tuple[float, float]]) -> list[range]:
        """See :class:`~fluvial.data.readers.Reader`."""
        out: list[range] = []
        for reader, end in zip(self._readers, self._ends, strict=True):
            begin = end - reader.rows()
            out += [range(s.start + begin, s.stop + begin) for s in reader.spans(bounds)]
        return merged(out)


def _lacking(error: DataError, other: Reader) -> DataError:
    return DataError(f"{error} ({other.path} has it; the files of one source need the same columns)")


def _shape(length: int | None) -> str:
    return "one number" if length is None else f"an array of {length}"


class PartitionReader:
    """A table with columns that are the same in all rows, from a path such as ``Z=0.001/alpha=1/part-0.parquet``.

    A column that the file itself holds is read from the file.
    """

    def __init__(self, reader: Reader, values: Mapping[str, str]) -> None:
        self.path = reader.path
        self._reader = reader
        inside = reader.columns()
        self._values = {name: text for name, text in values.items() if name not in inside}

    def columns(self) -> dict[str, str]:
        """See :class:`~fluvial.data.readers.Reader`."""
        return self._reader.columns() | {name: str(Field(name, "partition")) for name in self._values}

    def rows(self) -> int:
        """See :class:`~fluvial.data.readers.Reader`."""
        return self._reader.rows()

    def length(self, name: str) -> int | None:
        """See :class:`~fluvial.data.readers.Reader`."""
        return None if name in self._values else self._reader.length(name)

    def stored(self, name: str) -> np.ndarray | None:
        """See :class:`~fluvial.data.readers.Reader`."""
        return None if name in self._values else self._reader.stored(name)

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See :class:`~fluvial.data.readers.Reader`."""
        stored = self._reader.read([n for n in names if n not in self._values])
        rows = self.rows()
        return {n: np.full(rows, self._number(n)) if n in self._values else stored[n] for n in names}

    def chunks(
        self, names: Sequence[str], rows: int, start: int = 0, stop: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """See :class:`~fluvial.data.readers.Reader`."""
        start, stop = check_range(rows, start, stop, self.rows())
        constant = {name: self._number(name) for name in names if name in self._values}
        stored = [name for name in names if name not in constant]
        if stored:
            sizes = (
                (chunk, len(next(iter(chunk.values()))))
                for chunk in self._reader.chunks(stored, rows, start, stop)
            )
        else:
            sizes = (({}, min(rows, stop - row)) for row in range(start, stop, rows))
        return (
            {n: np.full(size, constant[n]) if n in constant else chunk[n] for n in names}
            for chunk, size in sizes
        )

    def _number(self, name: str) -> float:
        text = self._values[name]
        if text == _HIVE_NULL:
            return np.nan
        if not is_number(text):
            raise DataError(not_numeric([text], name, str(self.path), "partition"))
        return float(text)

    def levels(self, name: str) -> np.ndarray | None:
        """See :class:`~fluvial.data.readers.Reader`; the value of a partition is its level."""
        if name not in self._values:
            return self._reader.levels(name)
        value = self._number(name)
        return np.array([] if np.isnan(value) else [value])

    def parts(self) -> list[Path]:
        """See :class:`~fluvial.data.readers.Reader`."""
        return self._reader.parts()

    def locate(self, row: int) -> tuple[Path, int]:
        """See :class:`~fluvial.data.readers.Reader`."""
        return self._reader.locate(row)

    def spans(self, bounds: Mapping[str, tuple[float, float]]) -> list[range]:
        """See :class:`~fluvial.data.readers.Reader`."""
        for name in self._values:
            low, high = bounds.get(name, (-np.inf, np.inf))
            if name in bounds and not low <= self._number(name) <= high:
                return []
        return self._reader.spans({n: pair for n, pair in bounds.items() if n not in self._values})


def partition_values(path: Path, root: Path) -> dict[str, str]:
    """Return the values that the folders between ``root`` and a file stand for.

    >>> partition_values(Path("grid/Z=0.001/alpha=1/part-0.parquet"), Path("grid"))
    {'Z': '0.001', 'alpha': '1'}
    """
    folders = path.relative_to(root).parts[:-1]
    pairs = (unquote(folder).partition("=") for folder in folders)
    return {name: value for name, equals, value in pairs if equals}
