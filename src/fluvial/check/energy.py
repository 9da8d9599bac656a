r"""A two-sample test that sees any difference, in any number of columns: the energy distance."""

from __future__ import annotations

import numpy as np

from fluvial.check._arrays import array, finite
from fluvial.errors import DataError

MOST = 1000
"""Rows of each sample that are compared, at most: the test's work grows with their square."""


def energy_test(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, *, permutations: int = 499, most: int = MOST
) -> tuple[float, float]:
    r"""Return the energy distance of two samples, and the chance of one at least as large if they are of one density.

    .. math:: D^2 = 2\,E|X - Y| - E|X - X'| - E|Y - Y'|

    with every column standardised by both samples together; 0 only if the densities are equal (Székely & Rizzo 2013,
    J. Stat. Plan. Inference 143, 1249). The p-value is by permutation, so it is exact for any size and any shape, and no
    less than 1/(``permutations`` + 1).

    ``x``: [N, D]; ``y``: [M, D]; ``most`` rows of each are drawn where there are more.

    Raises:
        DataError: shapes that do not agree, fewer than 2 rows, or numbers that are not finite.

    >>> rng = np.random.default_rng(0)
    >>> same, other = rng.normal(size=(2, 300, 2))
    >>> energy_test(same, other, rng)[1] > 0.01, energy_test(same, 1.6 * other, rng)[1]
    (True, 0.002)
    """
    x = finite("x", array("x", x, ("N", "D"))).astype(np.float64)
    y = finite("y", array("y", y, ("M", x.shape[1]))).astype(np.float64)
    if min(len(x), len(y)) < 2:
        raise DataError(f"x, y: expected at least 2 rows each; got {len(x)} and {len(y)}.")
    x, y = (v if len(v) <= most else v[rng.choice(len(v), most, replace=False)] for v in (x, y))
    both = np.concatenate([x, y])
    scale = both.std(axis=0)
    both = (both - both.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    square = np.square(both).sum(axis=1)
    gaps = np.sqrt(np.maximum(square[:, None] + square - 2 * both @ both.T, 0.0))
    signs = np.concatenate([np.full(len(x), 1 / len(x)), np.full(len(y), -1 / len(y))])
    moved = np.stack([signs, *(rng.permutation(signs) for _ in range(permutations))], axis=1)
    distances = -np.einsum("ij,ij->j", moved, gaps @ moved)
    chance = (1 + np.sum(distances[1:] >= distances[0])) / (permutations + 1)
    return float(np.sqrt(max(distances[0], 0.0))), float(chance)
