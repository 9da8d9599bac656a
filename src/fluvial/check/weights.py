r"""Weighted rows: how many equal ones they are worth, and equal ones drawn from them.

A row of weight w stands for w rows like it: importance sampling simulates rare kinds more often than they occur, and
gives them less weight. Of n rows with weights :math:`w_i` a mean has the variance that it has of

.. math:: n_\mathrm{eff} = \Big(\sum_i w_i\Big)^2 \Big/ \sum_i w_i^2

equal ones (Kish 1965, Survey Sampling, section 11.7).
"""

from __future__ import annotations

import numpy as np

from fluvial.check._arrays import array, finite
from fluvial.errors import DataError

INFLATION = 1.1
"""By how much rows drawn more than once may raise the variance of a mean: error bars are then 5 % too short."""


def effective_rows(weights: np.ndarray) -> float:
    """Return the effective number of rows; 0 for none, or for weights that are all zero.

    ``weights``: [N], not negative.

    Raises:
        DataError: a shape that is not [N], weights that are not finite, or negative ones.

    >>> effective_rows(np.ones(100)), round(effective_rows(np.array([1.0, 1.0, 10.0])), 2)
    (100.0, 1.41)
    """
    w = _weights(weights)
    largest = w.max(initial=0.0)
    w = w / largest if largest > 0 else w  # the squares of tiny weights are no numbers
    return float(w.sum() ** 2 / np.square(w).sum()) if largest > 0 else 0.0


def equal_rows(weights: np.ndarray, rng: np.random.Generator, *, inflation: float = INFLATION) -> np.ndarray:
    r"""Return numbers of rows, drawn in proportion to their weights, so that each counts as one.

    Row i comes :math:`\lfloor w_i / c \rfloor` times, and once more with a chance of what is left. The smaller c,
    the more rows, and the more of them twice; it is chosen so that :math:`\sum k_i^2 / \sum k_i`, by which repeats raise
    the variance of a mean, is expected to be ``inflation``. Equal weights give every row once.

    ``weights``: [N], not negative. Returns sorted numbers of rows, some twice.

    Raises:
        DataError: as :func:`effective_rows`; or all weights are zero.

    >>> rng = np.random.default_rng(0)
    >>> equal_rows(np.array([2.0, 2.0, 2.0]), rng).tolist()
    [0, 1, 2]
    >>> x, w = rng.normal(size=20_000), np.exp(rng.normal(size=20_000))
    >>> rows = equal_rows(w * (x > 0), rng)
    >>> bool((x[rows] > 0).all()), 1000 < len(rows) < 10_000
    (True, True)
    """
    w = _weights(weights)
    if not w.max(initial=0.0) > 0:
        raise DataError(f"weights: expected some above zero; all {len(w)} are zero.")
    w = w / w.max()
    # With c = 1 no row comes twice; with c at the smallest weight nearly all do.
    low, high = float(w[w > 0].min()), 1.0
    if _repeats(w, low) > inflation:
        for _ in range(50):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if _repeats(w, middle) <= inflation else (middle, high)
    else:
        high = low
    share = w / high
    whole = np.floor(share * (1 + 1e-12))
    counts = whole + (rng.random(len(w)) < share - whole)
    return np.repeat(np.arange(len(w)), counts.astype(np.int64))


def _repeats(w: np.ndarray, c: float) -> float:
    """Return the expected Σk² over the expected Σk, for k = ⌊w/c⌋ and one more with the chance of the rest."""
    share = w / c
    whole = np.floor(share)
    rest = share - whole
    return float((whole**2 + rest * (2 * whole + 1)).sum() / share.sum())


def _weights(weights: np.ndarray) -> np.ndarray:
    w = finite("weights", array("weights", weights, ("N",))).astype(np.float64)
    if (w < 0).any():
        row = int((w < 0).argmax())
        raise DataError(
            f"weights: expected none below zero; got {int((w < 0).sum())}, the first in row {row}: {w[row]:g}."
        )
    return w
