r"""A smooth function on the unit cube as a Chebyshev table, where it is within so many nats of its largest value.

A sampler asks for a likelihood tens of thousands of times, at points that lie close together. Where the hyperparameters
are few, a few hundred evaluations on Chebyshev nodes fix the polynomial through them, whose error falls geometrically
with their number (Trefethen 2013, *Approximation Theory and Approximation Practice*, theorem 8.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Nodes along each axis, by the number of axes: fewest, then more where those are too few.
NODES = {1: (16, 32, 64), 2: (12, 20, 32, 48), 3: (9, 13, 17)}
#: What lies further below the largest value has no weight in the posterior: exp(−18) = 1.5e−8.
DEPTH = 18.0


@dataclass(frozen=True)
class ChebyshevTable:
    """A polynomial through values on a tensor grid of Chebyshev nodes; ``low`` and ``high`` are the box's corners."""

    low: np.ndarray
    high: np.ndarray
    values: np.ndarray

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """Return the interpolated values at ``u: [n, d]``; −inf outside the box."""
        inside = ((u >= self.low) & (u <= self.high)).all(-1)
        out = np.full(len(u), -np.inf)
        out[inside] = self._interpolate(u[inside])
        return out

    def _interpolate(self, u: np.ndarray) -> np.ndarray:
        result = None
        for axis in range(u.shape[-1]):
            span = self.high[axis] - self.low[axis]
            basis = _basis((u[:, axis] - self.low[axis]) / span * 2 - 1, self.values.shape[axis])
            if result is None:
                result = np.tensordot(basis, self.values, axes=(1, 0))
            else:
                result = np.einsum("pn,pn...->p...", basis, result)
        assert result is not None
        return result


def tabulate(
    function: Callable[[np.ndarray], np.ndarray],
    dim: int,
    rng: np.random.Generator,
    right: Callable[[ChebyshevTable], bool],
    *,
    rounds: int = 6,
) -> ChebyshevTable | None:
    """Return a table of ``function`` (``[n, dim]`` points of the unit cube to ``[n]``) about where it is large.

    The box shrinks, round by round, to what lies within :data:`DEPTH` of the largest value; then the table gets more
    nodes until ``right`` says that it is good. Returns the last one; ``None`` where there can be none: too many
    dimensions, or nothing finite.
    """
    if dim not in NODES:
        return None
    fewest, *more = NODES[dim]
    low, high = np.zeros(dim), np.ones(dim)
    made, points, values = _evaluated(function, low, high, fewest)
    for _ in range(rounds):
        top = values.max(initial=-np.inf)
        if not np.isfinite(top):
            return None
        probes = low + rng.random((4000 * dim, dim)) * (high - low)
        near = np.concatenate([points[values > top - DEPTH], probes[made(probes) > top - DEPTH]])
        # Half a step of the grid about each point: a peak may hide between nodes.
        margin = 0.25 * np.pi / fewest * (high - low)
        new_low, new_high = np.maximum(near.min(0) - margin, low), np.minimum(near.max(0) + margin, high)
        if ((new_high - new_low) > 0.8 * (high - low)).all():
            break
        low, high = new_low, new_high
        made, points, values = _evaluated(function, low, high, fewest)
    for nodes in more:
        if right(made):
            break
        made, _, values = _evaluated(function, low, high, nodes)
        if not np.isfinite(values.max()):
            return None
    return made


def _evaluated(
    function: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, number: int
) -> tuple[ChebyshevTable, np.ndarray, np.ndarray]:
    """Return a table of so many nodes an axis, its nodes ``[n, d]`` and the function's values there.

    A cliff far below the peak would ring through the whole polynomial: in the table, what lies lower by more than
    :data:`DEPTH` falls with the logarithm of its depth only.
    """
    axes = [a + (_nodes(number) + 1) / 2 * (b - a) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(low))
    values = function(points)
    top = values.max() if np.isfinite(values.max()) else 0.0
    depth = np.minimum(top - values, 1e6)
    eased = np.where(depth > DEPTH, DEPTH * (1 + np.log(np.maximum(depth, DEPTH) / DEPTH)), depth)
    return ChebyshevTable(low, high, (top - eased).reshape([number] * len(low))), points, values


def _nodes(number: int) -> np.ndarray:
    """Return Chebyshev points of the second kind in [−1, 1], ascending: the ends are among them."""
    return -np.cos(np.pi * np.arange(number) / (number - 1))


def _basis(t: np.ndarray, number: int) -> np.ndarray:
    """Return ``[n, number]`` barycentric Lagrange polynomials at ``t`` (Berrut & Trefethen 2004, eq. 4.2)."""
    nodes = _nodes(number)
    weights = np.where(np.arange(number) % 2, -1.0, 1.0)
    weights[[0, -1]] *= 0.5
    difference = t[:, None] - nodes
    hit = np.abs(difference) < 1e-14
    terms = weights / np.where(hit, 1.0, difference)
    basis = terms / terms.sum(-1, keepdims=True)
    at_node = hit.any(-1)
    basis[at_node] = hit[at_node].astype(float)
    return basis
