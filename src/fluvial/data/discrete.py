"""What only a table can tell of its columns: the values of integers, the bounds of mixed columns, and hints.

A study may leave open which whole numbers an integer column takes, and where the continuous part of a mixed column
ends. Both are read off all sound rows of the table, so that no row of any split is impossible; a study that declares
them is stricter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fluvial.data.schema import Column, Schema, Support
from fluvial.errors import DataError

#: An integer column takes at most so many values.
MOST_VALUES = 256
#: A value that so large a share of the rows hold exactly is no accident of a continuous column.
ATOM_SHARE = 0.01
#: Rows that are looked at for hints.
_HINT_ROWS = 100_000


def resolve(schema: Schema, table: Mapping[str, np.ndarray], *, where: str) -> tuple[Schema, list[str]]:
    """Return the schema with all that its table tells filled in, and notes for people, one line each.

    *Integer* columns without ``values`` get those that occur. The continuous part of a *mixed* column gets a bound on
    each side on which it has none and an atom lies beyond it: a thousandth of the range beyond the outermost value,
    but no further than half-way to the atom (or the atom itself, if that is nearer), so that nothing is drawn between
    an atom and its neighbours that the rows never have. Notes say what was found, the share of rows on every atom,
    and which continuous targets look like integers or mixed columns.

    ``table``: sound rows, canonical, as :func:`~fluvial.data.validate.validate` returns them; ``where`` names it.

    Raises
    ------
    DataError
        If an integer column takes more than 256 values, or no row of a mixed column is off its atoms.
    """
    notes: list[str] = []
    resolved = {c.name: _resolve(c, table[c.name], where, notes) for c in schema.columns}
    return Schema(
        tuple(resolved[c.name] for c in schema.targets), tuple(resolved[c.name] for c in schema.context)
    ), notes


def _resolve(column: Column, values: np.ndarray, where: str, notes: list[str]) -> Column:
    if column.kind == "integer":
        return _integer(column, values, where, notes)
    if column.mixed:
        return _mixed(column, values, where, notes)
    if column.plain and column.role == "target":
        notes += hints(column, values)
    return column


def _integer(column: Column, values: np.ndarray, where: str, notes: list[str]) -> Column:
    if not column.values:
        found = np.unique(values)
        if found.size > MOST_VALUES:
            raise DataError(
                f"{where}: integer column {column.name} takes {found.size} values, {found[0]:g} to {found[-1]:g}; "
                f'expected at most {MOST_VALUES}. Drop kind = "integer" under [columns.{column.name}], or give coarser '
                "numbers."
            )
        column = replace(column, values=tuple(found.tolist()))
        notes.append(f"{column.name}: {column.describe_support()} occur")
    return column


def _mixed(column: Column, values: np.ndarray, where: str, notes: list[str]) -> Column:
    level = column.level(values)
    free = values[level < 0]
    if not free.size:
        raise DataError(
            f"{where}: every row of column {column.name} is on one of its atoms "
            f'({", ".join(f"{a:g}" for a in column.atoms)}); if there is no continuous part, set kind = "integer" and '
            f"values = [...] instead of atoms under [columns.{column.name}]."
        )
    least, most = float(free.min()), float(free.max())
    lower = _bound(column, least, most, -1) if math.isinf(column.support.lower) else column.support.lower
    upper = _bound(column, most, least, 1) if math.isinf(column.support.upper) else column.support.upper
    found = Support(lower, upper)
    shares = (
        f"{100 * np.mean(level == k):.3g} % of the rows on the atom {atom:g}"
        for k, atom in enumerate(column.atoms)
    )
    bounds = f", the rest in {found}" if found != column.support else ""
    notes.append(f"{column.name}: {', '.join(shares)}{bounds}")
    return replace(column, support=found)


def _bound(column: Column, end: float, other: float, sign: int) -> float:
    """Return the bound beyond ``end``, the outermost value on one side, if an atom lies further out; else ±inf."""
    beyond = [a for a in column.atoms if sign * (a - end) > 0]
    if not beyond:
        return sign * math.inf
    atom = min(beyond, key=lambda a: abs(a - end))
    gap, margin = abs(atom - end), 1e-3 * abs(end - other)
    if gap <= margin:
        return atom  # no gap to speak of: the continuous part comes up to the atom
    bound = end + sign * min(margin or gap, 0.5 * gap)
    return bound if bound != end else float(np.nextafter(end, sign * math.inf))


def hints(column: Column, values: np.ndarray) -> list[str]:
    """Return what a continuous column looks like instead, if it does: an integer, or one with atoms.

    >>> column = Column("jets", "target")
    >>> hints(column, np.arange(500.0) % 7)[0]
    'jets: only 7 whole numbers occur; if it counts something, set kind = "integer" under [columns.jets]'
    >>> hints(column, np.where(np.arange(5000) % 10, np.linspace(0, 1, 5000), -1.0))[0]
    'jets: 10.0 % of the rows hold exactly -1; if that has a meaning of its own, set atoms = [-1.0] under [columns.jets]'
    """
    sample = values[:: max(1, len(values) // _HINT_ROWS)]
    found, counts = np.unique(sample, return_counts=True)
    if (
        2 < found.size <= MOST_VALUES // 4
        and len(sample) > 5 * found.size
        and (found == np.round(found)).all()
    ):
        return [
            f"{column.name}: only {found.size} whole numbers occur; if it counts something, set "
            f'kind = "integer" under [columns.{column.name}]'
        ]
    often = counts >= max(ATOM_SHARE * len(sample), 20)
    if found.size <= MOST_VALUES or not 0 < often.sum() <= 5:
        return []
    # Many other values repeat as often in a column that was rounded: that is a grid, not atoms.
    if np.quantile(counts[~often], 0.99) > 0.05 * counts[often].min():
        return []
    said = ", ".join(f"{c / len(sample):.1%}".replace("%", " %") for c in counts[often])
    which = ", ".join(f"{v:g}" for v in found[often])
    return [
        f"{column.name}: {said} of the rows hold exactly {which}; if that has a meaning of its own, set "
        f"atoms = {found[often].tolist()} under [columns.{column.name}]"
    ]
