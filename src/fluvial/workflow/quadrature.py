"""The integral of a density over the physical plane, to show that it is one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluvial.data.transforms import ColumnTransforms
from fluvial.density import Density

#: Nodes along each target.
NODES = 500
_DRAWS = 20_000


def integrate(density: Density, context: dict[str, Any], *, nodes: int = NODES) -> tuple[float, float]:
    """Integrate p(x | context) over one or two targets, in their units: the trapezoidal rule, and a sum over levels.

    The nodes follow the density: half are quantiles of draws, so that peaks are resolved, half are spread over the
    support far into the tails. Atoms and integers are nodes of weight one: theirs is a probability already.

    Returns
    -------
    tuple[float, float]
        The integral, extrapolated from the rule on all nodes and on every other node, and the size of that step as
        its error.
    """
    names = density.schema.target_names
    given = density.given(**context)
    draws = given.sample(_DRAWS, seed=0)
    axes = [_axis(draws[name], density, i, nodes) for i, name in enumerate(names)]
    grid = np.stack(np.meshgrid(*(a.nodes for a in axes), indexing="ij"), axis=-1)
    p = np.exp(given.log_prob(grid.reshape(-1, len(names)))).reshape(grid.shape[:-1])
    fine, coarse = _sum(p, [a.fine for a in axes]), _sum(p, [a.coarse for a in axes])
    # The rule's error falls with the square of the spacing: a third of the difference is most of it (Richardson 1911).
    step = (fine - coarse) / 3
    return fine + step, abs(step)


@dataclass(frozen=True)
class _Axis:
    """Nodes along one target, their weights, and those of the rule on every other node."""

    nodes: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray


def _axis(draws: np.ndarray, density: Density, target: int, nodes: int) -> _Axis:
    column = density.schema.targets[target]
    levels = np.asarray(column.levels, dtype=np.float64)
    free = draws[column.level(draws) < 0]
    numbers = np.empty(0)
    if column.kind != "integer":
        transforms = density.target_transforms
        alone = ColumnTransforms([column.name], [transforms.steps[target]])
        numbers = _nodes(free, alone, nodes)
    fine, coarse = _trapezoid(numbers), np.zeros(len(numbers))
    coarse[::2] = _trapezoid(numbers[::2])
    one = np.ones(len(levels))
    return _Axis(*(np.concatenate(pair) for pair in ((numbers, levels), (fine, one), (coarse, one))))


def _nodes(draws: np.ndarray, transforms: ColumnTransforms, nodes: int) -> np.ndarray:
    """Return nodes along one target: quantiles of draws, and an even division of its standardised range."""
    if transforms.layout.angles[0]:
        low, high = -math.pi, math.pi
    else:
        z = transforms.forward(draws[:, None])[0][:, 0] if draws.size else np.array([-5.0, 5.0])
        margin = 0.25 * float(z.max() - z.min())
        low, high = z.min() - margin, z.max() + margin
    even = np.zeros((nodes - nodes // 2, transforms.layout.width))
    even[:, 0] = np.linspace(low, high, len(even))
    spread = transforms.inverse(even)[:, 0]
    quantiles = np.quantile(draws, np.linspace(0, 1, nodes // 2)) if draws.size else np.empty(0)
    return np.unique(np.concatenate([quantiles, spread]))


def _trapezoid(nodes: np.ndarray) -> np.ndarray:
    """Return the weights of the trapezoidal rule on nodes at unequal distances."""
    half = 0.5 * np.diff(nodes)
    return np.concatenate([half, [0.0]]) + np.concatenate([[0.0], half]) if len(nodes) else half


def _sum(values: np.ndarray, weights: list[np.ndarray]) -> float:
    for one in reversed(weights):
        values = values @ one
    return float(values)
