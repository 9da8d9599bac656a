"""One check of a table against a schema, at the boundary: what passes here is not checked again.

Everything that is wrong with a table is said at once, column by column, with the first row of each fault
(rows are counted from 0, the first data row) and the way to mend it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from fluvial.data.schema import Column, Schema
from fluvial.errors import DataError, nearest

Handling = Literal["error", "drop"]
#: By how much of a turn angles may span more than one: ends of both kinds, rounded.
TURN_SLACK = 1e-3


@dataclass(frozen=True)
class Report:
    """What :func:`validate` read, kept and dropped.

    ``dropped`` counts rows by fault, under ``"COLUMN: missing"`` or ``"COLUMN: outside"``. A row with two
    faults is counted under both, so ``rows_read - rows_kept`` may be less than the sum.
    """

    rows_read: int
    rows_kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    #: What whoever gave the table may not expect.
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return a value for JSON.

        >>> Report(10, 9, {"Z: missing": 1}).to_json()
        {'rows_read': 10, 'rows_kept': 9, 'dropped': {'Z: missing': 1}, 'notes': []}
        """
        return asdict(self)


def validate(
    table: Mapping[str, np.ndarray],
    schema: Schema,
    *,
    where: str,
    missing: Handling = "error",
    outside: Handling = "error",
    locate: Callable[[int], str] = "row {}".format,
) -> tuple[dict[str, np.ndarray], Report]:
    """Return the schema's columns of a table with sound rows only, and a report of what was dropped.

    A value is *missing* where it is NaN or infinite, and *outside* where it is finite but not in the column's
    support, an open interval, nor on one of its atoms or whole numbers. Either raises, or drops the row. ``table`` maps
    names to arrays ``[rows]``; ``where`` names it in messages (the file), and ``locate`` says where row ``i`` of it is.
    The result is float64, ``[rows_kept]``, in the order of the schema and
    :meth:`canonical <fluvial.data.schema.Column.canonical>` (saturated values are on their atom, angles within one
    turn); where nothing is changed or dropped, float64 columns are not copied.

    Raises one :class:`~fluvial.errors.DataError` that lists every fault: missing or outside values that are
    not to be dropped, columns that are constant over the sound rows, no rows left. Columns that are absent or
    of another length are said first, alone.

    >>> from fluvial.data.schema import Support
    >>> schema = Schema((Column("mass", "target", support=Support(lower=0.0)),))
    >>> raw = {"mass": np.array([8.0, np.nan, 30.0])}
    >>> table, report = validate(raw, schema, where="m.csv", missing="drop")
    >>> table["mass"], report.dropped
    (array([ 8., 30.]), {'mass: missing': 1})
    """
    checking = Validation(schema, where=where, missing=missing, outside=outside, locate=locate)
    columns, keep = checking.add(table)
    return columns if keep is None else {n: v[keep] for n, v in columns.items()}, checking.finish()


class Validation:
    """:func:`validate` for a table that comes in pieces: :meth:`add` each, in order, then :meth:`finish`.

    Memory holds a few numbers a column, whatever the rows. ``locate`` says where row ``i`` is, for messages.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        where: str,
        missing: Handling = "error",
        outside: Handling = "error",
        locate: Callable[[int], str] = "row {}".format,
    ) -> None:
        self._schema, self._where, self._locate = schema, where, locate
        self._handling: dict[str, Handling] = {"missing": missing, "outside": outside}
        self._read = self._kept = 0
        self._faults = {c.name: {"missing": Fault(), "outside": Fault()} for c in schema.columns}
        self._range = {c.name: [math.inf, -math.inf] for c in schema.columns}
        self._angles = {c.name: [math.inf, -math.inf] for c in schema.columns if c.period is not None}

    def add(
        self, table: Mapping[str, np.ndarray], rows: np.ndarray | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Return the schema's columns as float64, and which rows are sound: ``[n]`` bool, ``None`` for all.

        ``rows`` are the numbers of the rows in the source; left out, they follow those seen before. Raises
        :class:`~fluvial.errors.DataError` where a column is absent or lengths differ; what is wrong with
        values waits for :meth:`finish`.
        """
        columns = _columns(table, self._schema, self._where)
        size = len(next(iter(columns.values()))) if columns else 0
        keep: np.ndarray | None = None  # None while every row is sound: the common case allocates nothing
        for column in self._schema.columns:
            values = columns[column.name]
            if _sound(values, column):
                continue
            finite = np.isfinite(values)
            wrong = {"missing": ~finite, "outside": finite & ~column.contains(values)}
            for reason, bad in wrong.items():
                if bad.any():
                    first, bad = _of_rows(values, bad)
                    keep = ~bad if keep is None else keep & ~bad
                    self._faults[column.name][reason].add(first, bad, rows, self._read)
        kept = size if keep is None else int(np.count_nonzero(keep))
        self._read, self._kept = self._read + size, self._kept + kept
        if kept:
            for name, values in columns.items():
                _widen(self._range[name], values if keep is None else values[keep])
            for name, ends in self._angles.items():
                # As they stand in the table, before they are brought into one turn.
                angles = np.asarray(table[name], dtype=np.float64)
                _widen(ends, angles if keep is None else angles[keep])
        return columns, keep

    def finish(self) -> Report:
        """Return what was read, kept and dropped, or raise one error that lists every fault."""
        faults: list[str] = []
        dropped: dict[str, int] = {}
        for column in self._schema.columns:
            for reason, fault in self._faults[column.name].items():
                if fault.count and self._handling[reason] == "drop":
                    dropped[f"{column.name}: {reason}"] = fault.count
                elif fault.count:
                    describe = _missing if reason == "missing" else _outside
                    faults.append(describe(column, fault, self._locate(fault.row)))
        faults += _turns(self._angles, self._schema)
        if self._kept:
            faults += _constants(self._range, self._schema)
        elif not faults:
            faults.append(_empty(self._read, dropped))
        if faults:
            listed = "\n".join(f"  - {fault}" for fault in faults)
            raise DataError(f"{self._where}: the table ({self._read} rows) does not fit the study:\n{listed}")
        return Report(self._read, self._kept, dropped, _turned(self._angles, self._schema))


@dataclass
class Fault:
    """One kind of fault in one column: how many values, how many of them NaN, and the first's row and value."""

    count: int = 0
    nan: int = 0
    row: int = 0
    value: float = math.nan

    def add(self, values: np.ndarray, bad: np.ndarray, rows: np.ndarray | None, before: int) -> None:
        """Count the ``bad`` of these values; ``rows`` are their numbers, or they begin at ``before``."""
        if not bad.any():
            return
        if self.count == 0:
            first = int(bad.argmax())
            self.row = before + first if rows is None else int(rows[first])
            self.value = float(values[first])
        self.count += int(np.count_nonzero(bad))
        self.nan += int(np.count_nonzero(np.isnan(values[bad])))


def _columns(table: Mapping[str, np.ndarray], schema: Schema, where: str) -> dict[str, np.ndarray]:
    names = [column.name for column in schema.columns]
    absent = [f"no column {name!r}{nearest(name, table)}" for name in names if name not in table]
    if absent:
        raise DataError(f"{where}: " + "; ".join(absent))
    columns = {c.name: c.canonical(_plain(table[c.name], c)) for c in schema.columns}
    expected = {c.name: (c.length,) if c.length is not None else () for c in schema.columns}
    scalar = not any(expected.values())
    sizes = {values.shape[:1] for values in columns.values()}
    if len(sizes) > 1 or any(values.shape[1:] != expected[name] for name, values in columns.items()):
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in columns.items())
        of = (
            "" if scalar else " and arrays " + ", ".join(f"{n} [n, {s[0]}]" for n, s in expected.items() if s)
        )
        raise DataError(f"{where}: expected 1-D columns{of} of one length; got {shapes}")
    return columns


def _plain(values: np.ndarray, column: Column) -> np.ndarray:
    """Return float64; an array column keeps float32, half the memory of a table of spectra."""
    values = np.asarray(values)
    return (
        values
        if column.length is not None and values.dtype == np.float32
        else values.astype(np.float64, copy=False)
    )


def _sound(values: np.ndarray, column: Column) -> bool:
    """Say whether all values are finite and in the support, by their extremes, which one NaN makes NaN."""
    if values.size == 0:
        return True
    if not column.plain:
        return bool(column.contains(values).all())
    extremes = np.array([values.min(), values.max()])
    return bool((np.isfinite(extremes) & column.support.contains(extremes)).all())


def _of_rows(values: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one value a row, and whether it is bad: of an array, the first bad number in it."""
    if values.ndim == 1:
        return values, bad
    return np.take_along_axis(values, bad.argmax(axis=1)[:, None], axis=1)[:, 0], np.logical_or.reduce(
        bad, axis=1
    )


def _missing(column: Column, fault: Fault, where: str) -> str:
    return (
        f"{column.name}: {fault.count} values are not finite ({fault.nan} NaN, {fault.count - fault.nan} "
        f'infinite), the first in {where}; mend the data, or set `missing = "drop"` under [data] to drop '
        "those rows"
    )


def _outside(column: Column, fault: Fault, where: str) -> str:
    if not column.plain:
        return (
            f"{column.name}: {fault.count} values are not among {column.describe_support()}, the first in {where}: "
            f"{fault.value:g}; mend the data, or what [columns.{column.name}] says of them, or set "
            '`outside = "drop"` under [data] to drop those rows'
        )
    support = column.support
    ends = " (the ends are not part of it)" if fault.value in (support.lower, support.upper) else ""
    return (
        f"{column.name}: {fault.count} values lie outside the support {support}{ends}, the first in {where}: "
        f"{fault.value:g}; mend the data, widen `support` under [columns.{column.name}], or set "
        '`outside = "drop"` under [data] to drop those rows'
    )


def _widen(ends: list[float], values: np.ndarray) -> None:
    ends[:] = [min(ends[0], float(values.min())), max(ends[1], float(values.max()))]


def _turns(angles: Mapping[str, Sequence[float]], schema: Schema) -> list[str]:
    """Describe the periodic columns whose values span more than one turn: of another unit, or of a wrong period."""
    faults = []
    for column in schema.columns:
        if column.period is None:
            continue
        (low, high), turn = angles[column.name], column.period[1] - column.period[0]
        if high - low > turn * (1 + TURN_SLACK):
            a, b = column.period
            faults.append(
                f"{column.name}: values from {low:g} to {high:g} span {(high - low) / turn:.3g} turns of its period "
                f"[{a:g}, {b:g}]; correct `period` under [columns.{column.name}] (degrees or radians?), or bring the "
                "angles into one turn"
            )
    return faults


def _turned(angles: Mapping[str, Sequence[float]], schema: Schema) -> list[str]:
    """Describe the periodic columns whose values lie beyond the ends of their period, though within one turn."""
    notes = []
    for column in schema.columns:
        if column.period is not None:
            (low, high), (a, b) = angles[column.name], column.period
            if low < a - TURN_SLACK * (b - a) or high > b + TURN_SLACK * (b - a):
                notes.append(
                    f"{column.name}: values run from {low:g} to {high:g}; they are brought into its period, and "
                    f"draws lie from {a:g} to {b:g}"
                )
    return notes


def _constants(ranges: Mapping[str, Sequence[float]], schema: Schema) -> list[str]:
    """Describe the columns that hold one value only, and so give no scale to standardise by."""
    return [
        f"{c.name}: every row holds {ranges[c.name][0]:g}, so there is nothing to learn; remove it from "
        f"{'targets' if c.role == 'target' else 'context'} under [data]"
        for c in schema.columns
        if ranges[c.name][0] == ranges[c.name][1]
    ]


def _empty(rows: int, dropped: Mapping[str, int]) -> str:
    if rows == 0:
        return "it has no rows; expected at least one"
    counts = ", ".join(f"{fault} {count}" for fault, count in dropped.items())
    return f"no rows are left after dropping ({counts}); mend the data or widen the supports"
