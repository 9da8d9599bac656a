"""A chain of conditionals: draws of many columns, each given those before it, with their exact log-density."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fluvial.apps.collider.conditionals import Array, Conditional
from fluvial.errors import DataError, nearest

Table = dict[str, NDArray[Any]]
Columns = Mapping[str, Array]
Step = Callable[[Columns], Conditional]
Kind = Literal["continuous", "mixed", "integer"]


@dataclass(frozen=True)
class Variable:
    """A column of a simulated table: what values it takes.

    ``continuous`` ones lie strictly between ``lower`` and ``upper``; ``mixed`` ones do too, or are exactly one of
    ``atoms``; ``integer`` ones are whole numbers from ``lower`` to ``upper``, or one of ``atoms`` if there are any.
    """

    name: str
    kind: Kind = "continuous"
    unit: str = "1"
    lower: float = -math.inf
    upper: float = math.inf
    atoms: tuple[float, ...] = ()

    def allows(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return, for each value, whether the variable can take it.

        >>> Variable("qgl", "mixed", lower=0, upper=1, atoms=(-1.0,)).allows(np.array([-1, 0.3, -0.1, 0]))
        array([ True,  True, False, False])
        """
        at = np.isin(values, self.atoms)
        if self.kind == "integer":
            whole = (values == np.floor(values)) & (values >= self.lower) & (values <= self.upper)
            return at if self.atoms else whole
        return at | ((values > self.lower) & (values < self.upper))


@dataclass(frozen=True)
class Chain:
    """p(targets | context) as a product of one-dimensional conditionals.

    ``targets`` and ``context`` are in the order of the table. ``steps`` holds, in the order of the chain, each
    target with what makes its conditional; that sees the context, what ``features`` derives from it, and the
    targets of earlier steps.
    """

    context: tuple[Variable, ...]
    targets: tuple[Variable, ...]
    features: Callable[[Columns], Table]
    steps: Sequence[tuple[str, Step]]

    def draw(self, context: Table, rng: np.random.Generator) -> tuple[Table, Array]:
        """Draw one object a row; return the targets, rounded as :func:`stored`, and their log-density ``[n]``.

        The log-density is that of the rounded values, at the context as it is stored.
        """
        known = {name: values.astype(np.float64) for name, values in context.items()}
        known.update(self.features(known))
        kinds: dict[str, Kind] = {v.name: v.kind for v in self.targets}
        n = len(next(iter(context.values())))
        total = np.zeros(n)
        out: Table = {}
        for name, step in self.steps:
            conditional = step(known)
            out[name] = stored(conditional.draw(rng, n), kinds[name])
            known[name] = out[name].astype(np.float64)
            total += conditional.log_prob(known[name])
        return {v.name: out[v.name] for v in self.targets}, total

    def log_densities(self, table: Mapping[str, Any]) -> Table:
        """Return ln p(target | context, earlier targets) for each target, in nats; the sum is the log-density.

        Where an earlier target has an impossible value (its own entry is −inf) a later one has no meaning, and
        is −inf too.

        Raises
        ------
        DataError
            If a column is missing, of another length, not of numbers, or holds NaN.
        """
        known = self._columns(table)
        known.update(self.features(known))
        out: Table = {}
        possible = np.ones(len(next(iter(known.values()))), dtype=bool)
        for name, step in self.steps:
            x = known[name]
            # An impossible value would make nonsense (or overflow) of what is worked out from it: it counts, once,
            # as −inf, and the rows concerned say no more.
            with np.errstate(all="ignore"):
                log_prob = step(known).log_prob(x)
            out[name] = np.where(possible, log_prob, -np.inf)
            possible &= np.isfinite(out[name])
        return {v.name: out[v.name] for v in self.targets}

    def _columns(self, table: Mapping[str, Any]) -> Table:
        names = [v.name for v in (*self.context, *self.targets)]
        out: Table = {}
        rows = None
        for name in names:
            if name not in table:
                raise DataError(f"expected a column {name!r}; found none{nearest(name, list(table))}")
            try:
                values = np.asarray(table[name], dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise DataError(f"expected numbers in column {name!r}; found {table[name]!r:.80}") from error
            rows = values.shape if rows is None else rows
            if values.ndim != 1 or values.shape != rows:
                raise DataError(
                    f"expected every column to be one-dimensional and of one length; {names[0]!r} has shape "
                    f"{rows} and {name!r} {values.shape}"
                )
            if (bad := np.flatnonzero(np.isnan(values))).size:
                raise DataError(f"expected numbers in column {name!r}; found NaN in row {bad[0]}")
            out[name] = values
        for v in self.context:
            if (bad := np.flatnonzero(~v.allows(out[v.name]))).size:
                raise DataError(
                    f"column {v.name!r}, row {bad[0]}: {out[v.name][bad[0]]:g} is no value of it "
                    f"(expected {describe(v)})"
                )
        return out


def describe(variable: Variable) -> str:
    """Say in words which values a variable takes.

    >>> describe(Variable("qgl", "mixed", lower=0, upper=1, atoms=(-1.0,)))
    'between 0 and 1, or -1'
    """
    atoms = ", ".join(f"{a:g}" for a in variable.atoms)
    if variable.kind == "integer":
        return f"one of {atoms}" if atoms else f"a whole number from {variable.lower:g} to {variable.upper:g}"
    return f"between {variable.lower:g} and {variable.upper:g}" + (f", or {atoms}" if atoms else "")


def stored(values: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Return values as a table stores them: whole numbers as int32, others as float32."""
    return values.astype(np.int32 if kind == "integer" else np.float32)
