"""One check of a table against a schema, at the boundary: what passes here is not checked again.

Everything that is wrong with a table is said at once, column by column, with the first row of each fault
(rows are counted from 0, the first data row) and the way to mend it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from fluvial.data.schema import Column, Schema
from fluvial.errors import DataError, nearest

Handling = Literal["error", "drop"]


@dataclass(frozen=True)
class Report:
    """What :func:`validate` read, kept and dropped.

    ``dropped`` counts rows by fault, under ``"COLUMN: missing"`` or ``"COLUMN: outside"``. A row with two
    faults is counted under both, so ``rows_read - rows_kept`` may be less than the sum.
    """

    rows_read: int
    rows_kept: int
    dropped: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a value for JSON.

        >>> Report(10, 9, {"Z: missing": 1}).to_json()
        {'rows_read': 10, 'rows_kept': 9, 'dropped': {'Z: missing': 1}}
        """
        return asdict(self)


def validate(
    table: Mapping[str, np.ndarray],
    schema: Schema,
    *,
    where: str,
    missing: Handling = "error",
    outside: Handling = "error",
) -> tuple[dict[str, np.ndarray], Report]:
    """Return the schema's columns of a table with sound rows only, and a report of what was dropped.

    A value is *missing* where it is NaN or infinite, and *outside* where it is finite but not in the column's
    support, an open interval, nor on one of its atoms or whole numbers. Either raises, or drops the row. ``table`` maps
    names to arrays ``[rows]``; ``where`` names it in messages (the file). The result is float64, ``[rows_kept]``, in
    the order of the schema and :meth:`canonical <fluvial.data.schema.Column.canonical>` (saturated values are on their
    atom, angles within one turn); where nothing is changed or dropped, float64 columns are not copied.

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
    columns = _columns(table, schema, where)
    rows = next(iter(columns.values())).size if columns else 0
    keep: np.ndarray | None = None  # None while every row is sound: the common case allocates nothing
    faults: list[str] = []
    dropped: dict[str, int] = {}
    for column in schema.columns:
        values = columns[column.name]
        if _sound(values, column):
            continue
        finite = np.isfinite(values)
        for reason, handling, bad in (
            ("missing", missing, ~finite),
            ("outside", outside, finite & ~column.contains(values)),
        ):
            count = int(np.count_nonzero(bad))
            if count == 0:
                continue
            keep = ~bad if keep is None else keep & ~bad
            if handling == "drop":
                dropped[f"{column.name}: {reason}"] = count
            else:
                describe = _missing if reason == "missing" else _outside
                faults.append(describe(column, values, bad, count))
    if keep is not None:
        columns = {name: values[keep] for name, values in columns.items()}
    kept = rows if keep is None else int(np.count_nonzero(keep))
    if kept:
        faults += _constants(columns, schema)
    elif not faults:
        faults.append(_empty(rows, dropped))
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        raise DataError(f"{where}: the table ({rows} rows) does not fit the study:\n{listed}")
    return columns, Report(rows, kept, dropped)


def _columns(table: Mapping[str, np.ndarray], schema: Schema, where: str) -> dict[str, np.ndarray]:
    names = [column.name for column in schema.columns]
    absent = [f"no column {name!r}{nearest(name, table)}" for name in names if name not in table]
    if absent:
        raise DataError(f"{where}: " + "; ".join(absent))
    columns = {c.name: c.canonical(np.asarray(table[c.name], dtype=np.float64)) for c in schema.columns}
    if len({values.shape for values in columns.values()}) > 1 or any(v.ndim != 1 for v in columns.values()):
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in columns.items())
        raise DataError(f"{where}: expected 1-D columns of one length; got {shapes}")
    return columns


def _sound(values: np.ndarray, column: Column) -> bool:
    """Say whether all values are finite and in the support, by their extremes, which one NaN makes NaN."""
    if values.size == 0:
        return True
    if not column.plain:
        return bool(column.contains(values).all())
    extremes = np.array([values.min(), values.max()])
    return bool((np.isfinite(extremes) & column.support.contains(extremes)).all())


def _missing(column: Column, values: np.ndarray, bad: np.ndarray, count: int) -> str:
    nan, row = int(np.count_nonzero(np.isnan(values))), int(bad.argmax())
    return (
        f"{column.name}: {count} values are not finite ({nan} NaN, {count - nan} infinite), the first in "
        f'row {row}; mend the data, or set `missing = "drop"` under [data] to drop those rows'
    )


def _outside(column: Column, values: np.ndarray, bad: np.ndarray, count: int) -> str:
    support, row = column.support, int(bad.argmax())
    if not column.plain:
        return (
            f"{column.name}: {count} values are not among {column.describe_support()}, the first in row {row}: "
            f"{values[row]:g}; mend the data, or what [columns.{column.name}] says of them, or set "
            '`outside = "drop"` under [data] to drop those rows'
        )
    ends = " (the ends are not part of it)" if values[row] in (support.lower, support.upper) else ""
    return (
        f"{column.name}: {count} values lie outside the support {support}{ends}, the first in row {row}: "
        f"{values[row]:g}; mend the data, widen `support` under [columns.{column.name}], or set "
        '`outside = "drop"` under [data] to drop those rows'
    )


def _constants(columns: Mapping[str, np.ndarray], schema: Schema) -> list[str]:
    """Describe the columns that hold one value only, and so give no scale to standardise by."""
    return [
        f"{c.name}: every row holds {columns[c.name][0]:g}, so there is nothing to learn; remove it from "
        f"{'targets' if c.role == 'target' else 'context'} under [data]"
        for c in schema.columns
        if columns[c.name].min() == columns[c.name].max()
    ]


def _empty(rows: int, dropped: Mapping[str, int]) -> str:
    if rows == 0:
        return "it has no rows; expected at least one"
    counts = ", ".join(f"{fault} {count}" for fault, count in dropped.items())
    return f"no rows are left after dropping ({counts}); mend the data or widen the supports"
