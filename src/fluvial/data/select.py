"""What a study makes of a table: the rows that its filter keeps, and columns that expressions define."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

import numpy as np

from fluvial.data.expressions import Expression, parse_expression, substituted
from fluvial.data.read_base import Reader, exact, whole_dtype
from fluvial.errors import DataError, StudyError

_BLOCK_BYTES = 2**23  # of float64, in one block of a read


def parse_derived(derive: Mapping[str, str]) -> dict[str, Expression]:
    """Return the expressions of ``[data.derive]``, each after those that it names.

    Raises :class:`~fluvial.errors.StudyError` where one cannot be read, or they name each other in a circle.

    >>> [*parse_derived({"log_ratio": "log(ratio)", "ratio": "a / b"})]
    ['ratio', 'log_ratio']
    """
    parsed = {name: parse_expression(text, f"[data.derive] {name}") for name, text in derive.items()}
    graph = {name: [c for c in e.columns if c in parsed] for name, e in parsed.items()}
    try:
        return {name: parsed[name] for name in TopologicalSorter(graph).static_order()}
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise StudyError(f"[data.derive]: {circle} are defined by each other; break the circle") from None


def in_source_columns(derived: Mapping[str, Expression]) -> dict[str, str]:
    """Return each derived column as one expression over columns of the source alone.

    >>> in_source_columns(parse_derived({"ratio": "a / b", "log_ratio": "log(ratio)"}))
    {'ratio': 'a / b', 'log_ratio': 'log(a / b)'}
    """
    out: dict[str, Expression] = {}
    for name, expression in derived.items():
        out[name] = substituted(expression, out)
    return {name: expression.text for name, expression in out.items()}


class View:
    """A table as a study sees it: derived columns among the stored ones, and the rows that a filter keeps.

    ``where`` is a condition over stored and derived columns, ``derive`` gives expressions by name (see
    :mod:`fluvial.data.expressions`). Rows keep their numbers in the source, so that a filter moves no row to
    another split; row groups whose statistics rule the condition out are not read.

    Raises :class:`~fluvial.errors.StudyError` where an expression cannot be read, and
    :class:`~fluvial.errors.DataError` where one names a column that the source lacks, or a derived column has
    the name of a stored one.
    """

    def __init__(
        self, reader: Reader, where: str | None = None, derive: Mapping[str, str] | None = None
    ) -> None:
        self.reader = reader
        self._derived = parse_derived(derive or {})
        self._where = None if where is None else parse_expression(where, "[data] where", "condition")
        stored = reader.columns()
        for name in self._derived:
            if name in stored:
                raise DataError(
                    f"[data.derive] {name}: {reader.path} has a column of that name; give the derived one another"
                )
        known = [*stored, *self._derived]
        for expression in [*self._derived.values(), *([self._where] if self._where else [])]:
            expression.require(known, str(reader.path))
            for name in expression.columns:
                length = None if name in self._derived else reader.length(name)
                if length is not None:
                    raise DataError(
                        f"{expression.what}: {name} is an array of {length} numbers a row; name one, as in {name}[0]"
                    )

    def columns(self) -> dict[str, str]:
        """Return names and types of all columns; the type of a derived one is its expression."""
        return self.reader.columns() | {name: f"= {e.text}" for name, e in self._derived.items()}

    def length(self, name: str) -> int | None:
        """Return the length of an array column, ``None`` for a scalar one."""
        return None if name in self._derived else self.reader.length(name)

    def source_rows(self) -> int:
        """Return the number of rows in the source, whatever the filter keeps."""
        return self.reader.rows()

    def place(self, row: int) -> str:
        """Say where a row of the source is, for messages: ``row 17``, or ``row 17 of part-3.h5``."""
        path, at = self.reader.locate(row)
        return f"row {at}" if len(self.reader.parts()) < 2 else f"row {at} of {path}"

    def nothing_left(self) -> str:
        """Say that the filter keeps no row; a message for :class:`~fluvial.errors.DataError`."""
        condition = self._where.text if self._where else ""
        return f"{self.reader.path}: none of {self.reader.rows()} rows passes the filter\n    {condition}"

    def chunks(self, names: Sequence[str], rows: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yield (numbers in the source ``[n]`` int64, named columns ``[n]``) of the rows kept, in order, ``n ≥ 1``.

        At most ``rows`` rows are read at a time. Stored columns have their stored type, as
        :meth:`~fluvial.data.readers.Reader.chunks` says; derived ones are float64.
        """
        names = list(dict.fromkeys(names))
        derived = self._needed(names)
        wanted = [*names, *(self._where.columns if self._where else ())]
        wanted += [column for name in derived for column in self._derived[name].columns]
        stored = [name for name in dict.fromkeys(wanted) if name not in self._derived]
        bounds = self._where.bounds() if self._where else {}
        # What only the source knows of can be ruled out without reading.
        bounds = {name: pair for name, pair in bounds.items() if name in stored}
        for span in self.reader.spans(bounds):
            row = span.start
            for chunk in self.reader.chunks(stored, rows, span.start, span.stop):
                size = len(next(iter(chunk.values())))
                numbers = np.arange(row, row + size, dtype=np.int64)
                row += size
                for name in derived:
                    chunk[name] = self._derived[name](chunk).astype(np.float64, copy=False)
                kept = None if self._where is None else self._where(chunk)
                if kept is None or kept.all():
                    yield numbers, {name: chunk[name] for name in names}
                elif kept.any():
                    yield numbers[kept], {name: chunk[name][kept] for name in names}

    def _needed(self, names: Sequence[str]) -> list[str]:
        """Return the derived columns that names and the filter need, in the order to compute them."""
        needed = {*names, *(self._where.columns if self._where else ())}
        for name in reversed(self._derived):
            if name in needed:
                needed.update(self._derived[name].columns)
        return [name for name in self._derived if name in needed]

    def read(self, names: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the named columns of the rows kept, and the numbers ``[n]`` of those rows in the source (int64).

        The columns are as :meth:`fluvial.data.readers.Reader.read` has them. Raises
        :class:`~fluvial.errors.DataError` where the filter keeps no row.
        """
        names = list(dict.fromkeys(names))
        if self._where is None and not self._needed(names):
            return self.reader.read(names), np.arange(self.reader.rows(), dtype=np.int64)
        width = sum(self.length(name) or 1 for name in names) + 8
        pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
        rows: list[np.ndarray] = []
        for numbers, chunk in self.chunks(names, max(1, _BLOCK_BYTES // (8 * width))):
            rows.append(numbers)
            for name, values in chunk.items():
                values = exact(values, name, str(self.reader.path))
                pieces[name].append(values.astype(whole_dtype(values), copy=False))
        if not rows:
            raise DataError(self.nothing_left())
        return {name: np.concatenate(pieces.pop(name)) for name in names}, np.concatenate(rows)
