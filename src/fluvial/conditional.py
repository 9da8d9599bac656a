"""A density at one context or at many: draws and log-densities, in physical units; and tables as arrays."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from fluvial.data.expressions import parse_expression
from fluvial.data.schema import Column
from fluvial.errors import DataError, nearest

if TYPE_CHECKING:
    from fluvial.contexts import Contexts
    from fluvial.density import Density
    from fluvial.novelty import NoveltyResult

#: Rows that pass through a flow at once: their activations stay in the caches.
CHUNK = 8192
#: Rows that pass through a flow at once where draws are made of given numbers: always so many, so that what is made of
#: a row does not hang on the number of its companions.
DRAW_FROM_ROWS = 2048

#: Rows that are drawn at once at one context, of few targets: what is made for each block is then made once.
AT_ONE_ROWS, FEW_TARGETS = 32_768, 3

#: What to do with contexts outside the range of the training rows.
Outside = Literal["warn", "raise", "allow"]


class ExtrapolationWarning(UserWarning):
    """A density is asked about contexts outside the range that it was trained on."""


class Conditional:
    """p(target | context) at one context (``shape`` is ``()``) or at an array of them."""

    def __init__(self, density: Density, context: Contexts, *, outside: Outside = "warn"):
        self.density = density
        self.shape = context.shape
        _check_support(context.scalars, density.schema.scalars, "context")
        self._outside = np.broadcast_to(_look_outside(context.scalars, density, outside), self.shape)
        # Encoded here and now, once: whatever is asked of these contexts later starts from their features.
        self._features = density.features(context)

    def __repr__(self) -> str:
        at = f"{self.shape} contexts" if self.shape else "one context"
        return f"p({listed(self.density.schema.target_names)} | {at}) of {self.density!r}"

    @property
    def outside(self) -> np.ndarray:
        """Whether each context is outside the range of the training rows, where it is a guess: bool, ``[*shape]``."""
        return self._outside

    def log_prob_members(self, events: Any) -> np.ndarray:
        """Return log p of every member of an ensemble, ``[K, *batch]``; of any other density K is 1.

        ``events`` are as in :meth:`log_prob`, which is the logarithm of the mean of the members' densities.
        """
        width = self._features.shape[-1] // len(self.density.members)
        out = []
        for number, member in enumerate(self.density.members):
            alone = copy(self)
            alone.density = member
            # The features of the members lie side by side.
            alone._features = self._features[..., number * width : (number + 1) * width]
            out.append(alone.log_prob(events))
        return np.stack(out)

    def log_prob_spread(self, events: Any) -> np.ndarray:
        """Return the standard deviation of log p over the members of an ensemble: how well the data have fixed it.

        Where it is large, rows were too few, or too far, for the members to agree (the epistemic uncertainty). It is NaN
        for a density that is no ensemble, and 0 where all members say −inf.
        """
        members = self.log_prob_members(events)
        if len(members) == 1:
            return np.full(members.shape[1:], np.nan)
        same = (members == members[0]).all(axis=0)
        with np.errstate(invalid="ignore"):
            return np.where(same, 0.0, members.std(axis=0, ddof=1))

    def sample(self, draws: int, *, seed: int | None = None) -> np.ndarray:
        """Draw from the density.

        Parameters
        ----------
        draws : int
            Draws for each context.
        seed : int, optional
            The same seed gives the same draws on the same kind of machine; ``None`` draws afresh.

        Returns
        -------
        numpy.ndarray
            A structured array of shape ``[*shape, draws]`` with one float64 field for each target, in its unit:
            ``p.sample(100)["Mass_0"]`` is an array; ``pandas.DataFrame(p.sample(100))`` a table.
        """
        return self._draw(draws, seed, with_log_prob=False)[0]

    def sample_and_log_prob(self, draws: int, *, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw as :meth:`sample` does, and return the log-density of each draw from the same pass.

        The log-densities are ``[*shape, draws]``, in nats per unit of every target.
        """
        return self._draw(draws, seed, with_log_prob=True)

    @property
    def uniforms(self) -> int:
        """How many uniform numbers a draw is made of, for :meth:`draw_from`.

        Raises
        ------
        DataError
            If the draws of the architecture are not made of uniform numbers (those of zuko).
        """
        width = self._features.shape[-1]
        p = self.density.flow.given_features(self._features.new_zeros(1, width) if width else None)
        if (number := getattr(p, "uniforms", None)) is None:
            raise DataError(
                f"Expected an architecture that makes its draws of given uniform numbers; {self.density.architecture} "
                "does not. Fit one of fluvial's own, such as coupling-spline."
            )
        return number

    def draw_from(self, uniform: np.ndarray) -> np.ndarray:
        """Return the draws that are made of given random numbers, and so repeat wherever those do.

        A draw is a function of its row of ``uniform`` and of its context alone: with numbers that belong to what is
        drawn (a counter-based generator keyed by the names of an event), it does not matter in which order, in which
        company, or in how many pieces contexts come. Independent uniform numbers give draws of the density.

        Parameters
        ----------
        uniform : array
            Strictly between 0 and 1, ``[*shape, draws, uniforms]``.

        Returns
        -------
        numpy.ndarray
            As :meth:`sample` gives: a structured array ``[*shape, draws]``.

        Raises
        ------
        DataError
            If the shape is another, or the architecture cannot.
        """
        needed = self.uniforms
        if (
            uniform.ndim != len(self.shape) + 2
            or uniform.shape[:-2] != self.shape
            or uniform.shape[-1] != needed
        ):
            expected = (*self.shape, "draws", needed)
            raise DataError(f"Expected uniform numbers of shape {expected}; got {uniform.shape}.")
        draws, width = uniform.shape[-2], self._features.shape[-1]
        rows = uniform.reshape(-1, needed)
        features = self._features.reshape(-1, width) if width else None
        x = np.empty((len(rows), len(self.density.schema.targets)))
        of = np.arange(len(rows)) // max(draws, 1)
        for start in range(0, len(rows), DRAW_FROM_ROWS):
            here = np.arange(start, start + DRAW_FROM_ROWS).clip(
                max=len(rows) - 1
            )  # the last row fills up the last block
            chosen = None if features is None else features[torch.from_numpy(of[here])]
            p = self.density.flow.given_features(chosen)
            made = p.draw_from(torch.from_numpy(rows[here])).numpy().astype(np.float64)
            x[start : start + DRAW_FROM_ROWS] = self.density.target_transforms.inverse(made)[
                : len(rows) - start
            ]
        return _structured(x.reshape(*self.shape, draws, x.shape[-1]), self.density.schema.targets)

    def _draw(self, draws: int, seed: int | None, *, with_log_prob: bool) -> tuple[np.ndarray, np.ndarray]:
        draws = _whole("draws", draws, least=1)
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(_whole("seed", seed, least=0))
        size = self.density.target_transforms.layout.width
        contexts = int(np.prod(self.shape, dtype=int))
        # (no −1: it may have no elements)
        features = self._features.reshape(contexts, self._features.shape[-1])
        most = self.density.flow.draw_rows
        if contexts == 1 and size <= FEW_TARGETS:
            most = max(most, AT_ONE_ROWS)
        x, log_prob = np.empty((contexts, draws, size)), np.empty((contexts, draws) if with_log_prob else 0)
        with torch.no_grad():
            for of, part in _blocks(contexts, draws, most):
                p = self.density.flow.given_features(features[of] if features.shape[-1] else None)
                # An unconditional flow has no batch dimension: its contexts are all one.
                number = part.stop - part.start
                shape = (number,) if features.shape[-1] else (number, of.stop - of.start)
                if with_log_prob:
                    z, log_density = p.rsample_and_log_prob(shape, generator=generator)
                    log_prob[of, part] = log_density.numpy().T
                else:
                    z = p.sample(shape, generator=generator)
                x[of, part] = z.transpose(0, 1).numpy()
        x = self.density.target_transforms.inverse(x)
        if with_log_prob:
            log_prob += self.density.target_transforms.forward(x)[1]
        shape = (*self.shape, draws)
        table = _structured(x.reshape(*shape, x.shape[-1]), self.density.schema.targets)
        return table, log_prob.reshape(shape if with_log_prob else (0,))

    def log_prob(self, events: Any) -> np.ndarray:
        """Return log p(event | context) in nats, per unit of every target.

        Parameters
        ----------
        events
            A table with the target columns (see :meth:`Density.given` for what a table may be), or an array
            ``[*batch, D]`` in their order. ``batch`` and the contexts' shape broadcast against one another.

        Returns
        -------
        numpy.ndarray
            float64; −inf where an event lies outside the support, or off the values of an integer column. A value
            at an atom has the log-probability of the atom: see :attr:`Density.reference_measure`.
        """
        columns = self.density.schema.targets
        values = stack_columns(events, columns, "events")
        inside = np.ones(values.shape[:-1], dtype=bool)
        for i, column in enumerate(columns):
            if np.isnan(values[..., i]).any():
                raise DataError(f"events: column {column.name} holds NaN; expected numbers{_unit(column)}.")
            inside &= column.contains(values[..., i])
        # Anything inside stands in for what lies outside; its density is then put to zero.
        stand_in = self.density.target_transforms.inverse(
            np.zeros(self.density.target_transforms.layout.width)
        )
        z, logdet = self.density.target_transforms.forward(np.where(inside[..., None], values, stand_in))
        out = self._flow_log_prob(torch.from_numpy(z.astype(np.float32)))
        return np.where(inside, out + logdet, -np.inf)

    @property
    def coded(self) -> np.ndarray:
        """The contexts as the flow sees them, coded and standardised, arrays encoded: ``[*shape, columns]``, float32."""
        return self._features.numpy()

    def novelty(self, rate: float | None = None) -> NoveltyResult:
        """Return how unlike the training rows each context is: see :mod:`fluvial.novelty`.

        Parameters
        ----------
        rate : float, optional
            The share of false alarms among contexts like those of the table; 1 % unless given.

        Raises
        ------
        DataError
            If the density has no context, or no score: it is made with the checks.
        """
        if not self.density.schema.context:
            raise DataError("This density has no context, so none can be novel.")
        if self.density.novelty is None:
            raise DataError("This density has no novelty score; make it with: fluvial check RUN.")
        return self.density.novelty(self.coded, rate)

    def _flow_log_prob(self, z: torch.Tensor) -> np.ndarray:
        try:
            shape = np.broadcast_shapes(z.shape[:-1], self.shape)
        except ValueError:
            raise DataError(
                f"Expected events and contexts of shapes that broadcast; got events {tuple(z.shape[:-1])} "
                f"and contexts {self.shape}. For every event at every context, give contexts as [N, 1]."
            ) from None
        size, width = z.shape[-1], self._features.shape[-1]
        count = math.prod(shape)
        rows = z.expand(*shape, size).reshape(count, size)
        features = self._features.expand(*shape, width).reshape(count, width)
        out = np.empty(count)
        with torch.no_grad():
            for start in range(0, len(rows), CHUNK):
                part = slice(start, start + CHUNK)
                given = self.density.flow.given_features(features[part] if width else None)
                out[part] = given.log_prob(rows[part]).numpy()
        return out.reshape(shape)


def _blocks(contexts: int, draws: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Yield (contexts, draws) in blocks of at most ``most`` rows: whole contexts where they fit, else parts of one.

    >>> [(c.start, c.stop, d.start, d.stop) for c, d in _blocks(3, 2, 4)]
    [(0, 2, 0, 2), (2, 3, 0, 2)]
    """
    per_block = max(1, most // draws)
    for first in range(0, contexts, per_block):
        for start in range(0, draws, most):
            yield slice(first, min(first + per_block, contexts)), slice(start, min(start + most, draws))


def stack_columns(table: Any, columns: tuple[Column, ...], what: str) -> np.ndarray:
    """Return the columns of anything table-like as one array ``[*batch, D]``."""
    names = [c.name for c in columns]
    if not names:
        return np.empty((0,))
    if isinstance(table, np.ndarray) and table.dtype.names is None:
        if table.ndim == 0 or table.shape[-1] != len(names):
            raise DataError(
                f"{what}: expected an array [..., {len(names)}] for columns {listed(names)}; got shape {table.shape}."
            )
        values = np.asarray(table, dtype=np.float64)
        if all(c.plain for c in columns):
            return values
        return np.stack([c.canonical(values[..., i]) for i, c in enumerate(columns)], axis=-1)
    known = _known(table)
    arrays = []
    for column in columns:
        if column.expression is None or column.name in known:
            arrays.append(_numbers(table, column.name, names, what))
            continue
        expression = parse_expression(column.expression, f"{what}: {column.name}")
        expression.require(known, what)
        arrays.append(expression({name: _numbers(table, name, names, what) for name in expression.columns}))
    arrays = [column.canonical(values) for column, values in zip(columns, arrays, strict=True)]
    try:
        return np.stack(np.broadcast_arrays(*arrays), axis=-1)
    except ValueError:
        shapes = ", ".join(f"{n} {a.shape}" for n, a in zip(names, arrays, strict=True))
        raise DataError(
            f"{what}: expected columns of one shape, or shapes that broadcast; got {shapes}."
        ) from None


def _numbers(table: Any, name: str, names: list[str], what: str) -> np.ndarray:
    try:
        values = table[name]
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError(
            f"{what}: expected columns {listed(names)}; {name!r} is missing{nearest(name, _known(table))}."
        ) from None
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: column {name} is not numeric ({error}).") from error


def _whole(name: str, value: Any, *, least: int) -> int:
    """Return a whole number from ``least`` up to what a generator takes."""
    try:
        number = operator.index(value)
    except TypeError:
        raise DataError(f"Expected {name} to be a whole number; got {value!r}.") from None
    if number < least:
        raise DataError(f"Expected {name} of at least {least}; got {number}.")
    if number >= 2**63:
        raise DataError(f"Expected {name} below 2^63; got {number}.")
    return number


def _known(table: Any) -> list[str]:
    for attribute in ("column_names", "columns", "keys"):
        found = getattr(table, attribute, None)
        if found is not None:
            listed: Any = found() if callable(found) else found
            return [str(n) for n in listed]
    return list(getattr(getattr(table, "dtype", None), "names", None) or ())


def _check_support(values: np.ndarray, columns: tuple[Column, ...], what: str) -> None:
    for i, column in enumerate(columns):
        bad = ~column.contains(values[..., i])
        if bad.any():
            first = values[..., i][bad].flat[0]
            outside = "outside the support" if column.plain else "not among"
            fault = f"{outside} {column.describe_support()}{_unit(column)}"
            if np.isnan(first):
                fault = "missing; expected a number"
            raise DataError(
                f"{what}: {column.name} = {first:g} is {fault} ({int(bad.sum())} of {bad.size} values)."
            )


def _look_outside(context: np.ndarray, density: Density, outside: Outside) -> np.ndarray:
    """Return which contexts are outside the range of the table that the density was fitted to; warn of them, or raise."""
    if outside not in get_args(Outside):
        raise DataError(f"outside: expected one of {', '.join(get_args(Outside))}; got {outside!r}.")
    found = np.zeros(context.shape[:-1], dtype=bool)
    for i, column in enumerate(density.schema.scalars):
        if column.name not in density.context_range or not context.size:
            continue
        low, high = density.context_range[column.name]
        values = context[..., i]
        slack = 1e-6 * (high - low)  # a context that went through float32 is the same context
        far = (values < low - slack) | (values > high + slack)
        found |= far
        if outside == "allow" or not far.any():
            continue
        what = (
            f"{column.name} = {values[far].flat[0]:g} is outside the range of the table, {low:g} to {high:g}"
            f"{_unit(column)} ({int(far.sum())} of {far.size} values)"
        )
        if outside == "raise":
            raise DataError(f'{what}; stay within it, or take a guess with outside="allow".')
        warnings.warn(f"{what}: what the density says there is a guess.", ExtrapolationWarning, stacklevel=4)
    return found


def _structured(x: np.ndarray, columns: tuple[Column, ...]) -> np.ndarray:
    out = np.empty(x.shape[:-1], dtype=[(c.name, np.float64) for c in columns])
    for i, column in enumerate(columns):
        out[column.name] = x[..., i]
    return out


def _unit(column: Column) -> str:
    return f" [{column.unit}]" if column.unit else ""


def listed(names: list[str]) -> str:
    """Return names with commas between them, for messages."""
    return ", ".join(names)
