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

    ``transform`` names how the column is brought to the real line (see ``fluvial.data.transforms``);
    ``None`` leaves the choice to the rule there. ``length`` is that of an array column (a spectrum), ``None``
    for a scalar; ``expression`` makes a derived column from columns of the source (see
    ``fluvial.data.expressions``), where a table does not hold it already.
    """

    name: str
    role: Role
    unit: str = ""
    support: Support = field(default_factory=Support)
    transform: str | None = None
    label: str = ""
    length: int | None = None
    expression: str | None = None

    @property
    def title(self) -> str:
        """The label for plots: the label (or else the name) with its unit.

        >>> Column("Mass_0", "target", unit="Msun", label="$M_0$").title
        '$M_0$ [Msun]'
        """
        return (self.label or self.name) + (f" [{self.unit}]" if self.unit else "")


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
    def columns(self) -> tuple[Column, ...]:
        """Targets, then context."""
        return self.targets + self.context

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
    for name in ("length", "expression"):
        if out[name] is None:
            del out[name]
    bounds = (column.support.lower, column.support.upper)
    out["support"] = [b if math.isfinite(b) else None for b in bounds]
    return out


def _column_from_json(value: Mapping[str, Any], role: Role) -> Column:
    lower, upper = value["support"]
    support = Support(-math.inf if lower is None else lower, math.inf if upper is None else upper)
    return Column(**{**value, "role": role, "support": support})
