"""Columns and schemas: what a density knows about the variables that it speaks of.

A :class:`Column` is one named variable with its role, unit, support and transform; a :class:`Schema` is
the ordered targets and the ordered context of one density. Both are plain values: they hold no data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Role = Literal["target", "context"]
Kind = Literal["continuous", "integer"]
Missing = Literal["error", "mask"]

#: Integer context columns of at most so many values get an indicator each; of more, they are used as a number.
MOST_INDICATORS = 32
#: A number within this share of an atom or of a declared value is that value: float32 files round what a study says.
ROUNDING = 6e-8


@dataclass(frozen=True)
class Support:
    """The open interval (lower, upper) in which a column lives, in the column's unit.

    >>> Support(lower=0.0).contains(np.array([-1.0, 0.0, 2.0]))
    array([False, False,  True])
    """

    lower: float = -math.inf
    upper: float = math.inf

    def contains(self, values: np.ndarray) -> np.ndarray:
        """Return, for each value, whether it lies strictly inside. NaN lies outside."""
        return (values > self.lower) & (values < self.upper)

    def __str__(self) -> str:
        return f"({self.lower:g}, {self.upper:g})"


@dataclass(frozen=True)
class Column:
    """One named variable: role, unit, support, transform, and a label for plots.

    A column is *continuous*; *mixed*, where some values have a probability of their own; *periodic*, an angle; or
    *integer*, one of finitely many whole numbers.

    Attributes
    ----------
    support : Support
        Where the continuous part can be; atoms may lie outside it. Of an integer column it says nothing.
    transform : str or None
        How the column is brought to the real line (see ``fluvial.data.transforms``); ``None`` leaves the choice to the
        rule there.
    scale : float or None
        The width of an ``arctan`` transform, or where ``log-clip`` clips, in the column's unit.
    kind : str
        ``continuous`` or ``integer``.
    atoms : tuple of float
        Values with a probability of their own, ascending. A column that has them is mixed.
    saturate : Support
        Values at or beyond either end are one atom, at that end (which is among ``atoms``).
    values : tuple of float
        The values of an integer column, ascending; empty until they are found in a table.
    period : tuple of float or None
        The ends of one turn of a periodic column: ``(-math.pi, math.pi)`` for an angle in radians.
    length : int or None
        Of an array column (a spectrum), its length; ``None`` for a scalar.
    missing : str
        ``mask`` of an array column whose numbers may be missing (NaN): they stand at their mean; else ``error``.
    expression : str or None
        Makes a derived column from columns of the source (see ``fluvial.data.expressions``), where a table does not
        hold it already.
    """

    name: str
    role: Role
    unit: str = ""
    support: Support = field(default_factory=Support)
    transform: str | None = None
    label: str = ""
    scale: float | None = None
    kind: Kind = "continuous"
    atoms: tuple[float, ...] = ()
    saturate: Support = field(default_factory=Support)
    values: tuple[float, ...] = ()
    period: tuple[float, float] | None = None
    length: int | None = None
    expression: str | None = None
    missing: Missing = "error"

    @property
    def title(self) -> str:
        """The label for plots: the label (or else the name) with its unit.

        >>> Column("Mass_0", "target", unit="Msun", label="$M_0$").title
        '$M_0$ [Msun]'
        """
        return (self.label or self.name) + (f" [{self.unit}]" if self.unit else "")

    @property
    def mixed(self) -> bool:
        """Whether the column has atoms beside its continuous part."""
        return bool(self.atoms)

    @property
    def plain(self) -> bool:
        """Whether the column is continuous and nothing more: no atoms, no period, no integer."""
        return self.kind == "continuous" and not self.atoms and self.period is None

    @property
    def counts(self) -> bool:
        """Whether it is an integer context column of so many values that it is used as a number: any may be asked."""
        return self.kind == "integer" and self.role == "context" and len(self.values) > MOST_INDICATORS

    @property
    def levels(self) -> tuple[float, ...]:
        """The values with a probability of their own: the atoms, or all values of an integer column."""
        return self.values if self.kind == "integer" else self.atoms

    def level(self, values: np.ndarray) -> np.ndarray:
        """Return which of the :attr:`levels` each value is, and −1 where it is none of them.

        A value within a relative 6e−8 of a level (half a step of float32) is that level.

        >>> Column("btag", "target", atoms=(-1.0,)).level(np.array([-1.0, 0.3]))
        array([ 0, -1])
        """
        values = np.asarray(values, dtype=np.float64)
        levels = np.asarray(self.levels, dtype=np.float64)
        if not levels.size:
            return np.full(values.shape, -1)
        middles = 0.5 * (levels[1:] + levels[:-1])
        index = np.searchsorted(middles, values)  # the nearest level; NaN comes last
        near = levels[index]
        with np.errstate(invalid="ignore"):
            return np.where(np.abs(values - near) <= ROUNDING * np.abs(near), index, -1)

    def canonical(self, values: np.ndarray) -> np.ndarray:
        """Return values as the column speaks of them: saturated, on their exact level, within the first turn.

        What needs no change is returned as it is, uncopied.

        >>> Column("ratio", "target", atoms=(7.0,), saturate=Support(upper=7.0)).canonical(np.array([0.9, 12.0]))
        array([0.9, 7. ])
        >>> Column("phi", "target", period=(-180.0, 180.0)).canonical(np.array([190.0]))
        array([-170.])
        """
        if self.plain:
            return values
        values = np.asarray(values, dtype=np.float64)
        if self.period is not None:
            low, high = self.period
            inside = (values >= low) & (values < high)
            if inside.all():
                return values
            with np.errstate(invalid="ignore"):
                turned = low + np.mod(values - low, high - low)
            return np.where(inside, values, np.where(turned >= high, low, turned))
        values = np.where(
            np.isfinite(values), np.clip(values, self.saturate.lower, self.saturate.upper), values
        )
        level = self.level(values)
        return np.where(level < 0, values, np.asarray(self.levels)[level]) if self.levels else values

    def contains(self, values: np.ndarray) -> np.ndarray:
        """Return, for each value, whether the column can have it. NaN and infinities lie outside.

        >>> btag = Column("btag", "target", support=Support(0.0, 1.0), atoms=(-1.0,))
        >>> btag.contains(np.array([-1.0, -0.5, 0.5]))
        array([ True, False,  True])
        """
        values = self.canonical(values)
        finite = np.isfinite(values)
        if self.kind == "integer":
            whole = finite & (values == np.round(values))
            return (self.level(values) >= 0) if self.values and not self.counts else whole
        inside = finite & self.support.contains(values)
        return inside | (self.level(values) >= 0) if self.atoms else inside

    def describe_support(self) -> str:
        """Return where the column can be, for messages.

        >>> Column("btag", "target", support=Support(0.0, 1.0), atoms=(-1.0,)).describe_support()
        '(0, 1) and the atom -1'
        """
        if self.kind == "integer":
            listed = self.values and not self.counts
            return f"the whole numbers {_listed(self.values)}" if listed else "the whole numbers"
        if not self.atoms:
            return str(self.support)
        return f"{self.support} and the atom{'s' * (len(self.atoms) > 1)} {_listed(self.atoms)}"


def _listed(values: tuple[float, ...]) -> str:
    if len(values) > 8:
        return f"{values[0]:g}, {values[1]:g}, … {values[-1]:g} ({len(values)} of them)"
    return ", ".join(f"{v:g}" for v in values)


@dataclass(frozen=True)
class Schema:
    """The ordered target and context columns of one density."""

    targets: tuple[Column, ...]
    context: tuple[Column, ...] = ()

    @property
    def target_names(self) -> list[str]:
        """The names of the targets, in order."""
        return [c.name for c in self.targets]

    @property
    def context_names(self) -> list[str]:
        """The names of the context columns, in order."""
        return [c.name for c in self.context]

    @property
    def scalars(self) -> tuple[Column, ...]:
        """The context columns that are numbers."""
        return tuple(c for c in self.context if c.length is None)

    @property
    def arrays(self) -> tuple[Column, ...]:
        """The context columns that are arrays, such as a spectrum."""
        return tuple(c for c in self.context if c.length is not None)

    @property
    def without_arrays(self) -> Schema:
        """The same targets, and the context columns that are numbers."""
        return Schema(self.targets, self.scalars)

    def with_resolved(self, scalar: Schema) -> Schema:
        """Return the schema with its scalar columns as another has them."""
        known = {column.name: column for column in scalar.columns}
        return Schema(scalar.targets, tuple(known.get(c.name, c) for c in self.context))

    @property
    def columns(self) -> tuple[Column, ...]:
        """Targets, then context."""
        return self.targets + self.context

    @property
    def reference_measure(self) -> str:
        """What a density of the targets is against; see :attr:`fluvial.density.Density.reference_measure`.

        >>> Schema((Column("pt", "target"), Column("jets", "target", kind="integer"))).reference_measure
        'Lebesgue measure of pt × counting measure of jets'
        """
        free = ", ".join(c.name for c in self.targets if c.kind != "integer" and not c.mixed)
        parts = [f"Lebesgue measure of {free}"] if free else []
        for column in self.targets:
            if column.mixed:
                at = ", ".join(f"{a:g}" for a in column.atoms)
                parts.append(f"counting measure at {column.name} = {at} plus Lebesgue measure elsewhere")
            elif column.kind == "integer":
                parts.append(f"counting measure of {column.name}")
        return " × ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return a value for JSON; infinite bounds become ``null``."""
        return {
            role: [_column_to_json(c) for c in columns]
            for role, columns in (("targets", self.targets), ("context", self.context))
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Schema:
        """Inverse of :meth:`to_json`."""
        return cls(
            targets=tuple(_column_from_json(c, "target") for c in value["targets"]),
            context=tuple(_column_from_json(c, "context") for c in value["context"]),
        )


def _column_to_json(column: Column) -> dict[str, Any]:
    out = asdict(column)
    del out["role"]
    for name in ("support", "saturate"):
        bounds = (out[name]["lower"], out[name]["upper"])
        out[name] = [b if math.isfinite(b) else None for b in bounds]
    # What a plain column does not have is left out.
    usual = Column("", "target")
    for name in ("scale", "kind", "atoms", "values", "period", "saturate", "length", "expression", "missing"):
        if getattr(column, name) == getattr(usual, name):
            del out[name]
    return out


def _column_from_json(value: Mapping[str, Any], role: Role) -> Column:
    fields = {**value, "role": role}
    for name in ("support", "saturate"):
        if name in value:
            lower, upper = value[name]
            fields[name] = Support(
                -math.inf if lower is None else lower, math.inf if upper is None else upper
            )
    for name in ("atoms", "values", "period"):
        if value.get(name) is not None:
            fields[name] = tuple(value[name])
    return Column(**fields)
