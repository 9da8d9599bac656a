"""The integral of a density over the physical plane, to show that it is one."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluvial.density import Density

#: Nodes along each target.
NODES = 500
_DRAWS = 20_000


def integrate(density: Density, context: dict[str, Any], *, nodes: int = NODES) -> tuple[float, float]:
    """Integrate p(x | context) dx over one or two targets, in their units, by the trapezoidal rule.

    The nodes follow the density: half are quantiles of draws, so that peaks are resolved, half are spread over the
    support far into the tails.

    Returns
    -------
    tuple[float, float]
        The integral, extrapolated from the rule on all nodes and on every other node, and the size of that step as
        its error.
    """
    names = density.schema.target_names
    given = density.given(**context)
    draws = given.sample(_DRAWS, seed=0)
    axes = [_nodes(draws, density, i, nodes) for i in range(len(names))]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    p = np.exp(given.log_prob(grid.reshape(-1, len(names)))).reshape(grid.shape[:-1])
    fine = _trapezoid(p, axes)
    coarse = _trapezoid(p[(slice(None, None, 2),) * len(names)], [a[::2] for a in axes])
    # The rule's error falls with the square of the spacing: a third of the difference is most of it (Richardson 1911).
    step = (fine - coarse) / 3
    return fine + step, abs(step)


def _nodes(draws: np.ndarray, density: Density, target: int, nodes: int) -> np.ndarray:
    """Return nodes along one target: quantiles of draws, and an even division of its standardised range."""
    names = density.schema.target_names
    x = np.stack([draws[n] for n in names], axis=-1)
    z = density.target_transforms.forward(x)[0][:, target]
    margin = 0.25 * (z.max() - z.min())
    even = np.zeros((nodes - nodes // 2, len(names)))
    even[:, target] = np.linspace(z.min() - margin, z.max() + margin, len(even))
    spread = density.target_transforms.inverse(even)[:, target]
    quantiles = np.quantile(x[:, target], np.linspace(0, 1, nodes // 2))
    return np.unique(np.concatenate([quantiles, spread]))


def _trapezoid(values: np.ndarray, axes: list[np.ndarray]) -> float:
    for axis in reversed(axes):
        values = np.trapezoid(values, axis, axis=-1)
    return float(values)
