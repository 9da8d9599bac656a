"""Atoms and integers: does each value come as often as the density says, in every part of context?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fluvial.check._arrays import array, finite, truth_and_draws
from fluvial.check.conditional import ContextBin, context_slices
from fluvial.check.result import MINIMUM_ROWS, CheckResult, worst
from fluvial.errors import DataError

LEVEL_THRESHOLD = 0.05
"""Largest error of the probability of an atom or an integer, in any part of context."""


def level_probabilities(
    truth: np.ndarray,
    draws: np.ndarray,
    context: np.ndarray,
    column: str,
    levels: Sequence[float],
    bins: Sequence[ContextBin] | None = None,
    *,
    threshold: float = LEVEL_THRESHOLD,
) -> CheckResult:
    r"""Check that every atom or integer of a column is drawn as often as it is observed, in every part of context.

    For the level a and the rows of a bin, with S draws for each row i,

    .. math:: d = \frac{1}{n} \sum_i \Big( \mathbf 1[x_i = a] - \frac{1}{S} \sum_s \mathbf 1[y_{is} = a] \Big), \qquad
              V(d) = \frac{1}{n^2} \sum_i p_i (1 - p_i) \Big(1 + \frac{1}{S}\Big)

    if the density is exact, with :math:`p_i (1 - p_i)` estimated without bias from truth and draws together. The
    standard error is no less than that of one event in n rows. The result is the level and the part of context with
    the worst verdict, and of those the most deviant; n counts the rows of that part.

    ``truth``: [N]; ``draws``: [N, S]; ``context``: [N, C]; ``levels``: the values that are compared exactly;
    ``bins``: :func:`~fluvial.check.context_slices` of the context, and all rows together, unless given.

    Raises:
        DataError: shapes that do not agree, a truth that is not finite, no levels, or no bins.

    >>> rng = np.random.default_rng(0)
    >>> c = rng.random((4000, 1))
    >>> btag = np.where(rng.random(4000) < 0.5 * c[:, 0], -1.0, rng.random(4000))
    >>> draws = np.where(rng.random((4000, 99)) < 0.5 * c, -1.0, rng.random((4000, 99)))
    >>> level_probabilities(btag, draws, c, "btag", [-1.0]).verdict
    'pass'
    """
    x, y = truth_and_draws(
        array("truth", truth, ("N",))[:, None], array("draws", draws, ("N", "S"))[:, :, None]
    )
    values = finite("context", array("context", context, (len(x), "C")))
    if not len(levels):
        raise DataError(f"levels: expected the atoms or integers of {column}, got none.")
    if bins is None:
        everything = ContextBin(np.empty(0), np.arange(len(x)))
        bins = [everything] + (context_slices(values) if values.shape[1] and len(x) else [])
    if not bins:
        raise DataError("bins: expected at least one part of context, got none.")
    size = y.shape[1]
    looks = len(bins) * len(levels)
    results: list[CheckResult] = []
    for level in levels:
        at, drawn = x[:, 0] == level, (y[:, :, 0] == level).sum(axis=1)
        difference = at - drawn / size
        pooled = (at + drawn) / (size + 1)
        variance = pooled * (1 - pooled) * (size + 1) / size * (1 + 1 / size)
        for part in bins:
            rows = part.rows
            n = len(rows)
            where = ", ".join(f"{v:.4g}" for v in part.value[:6]) or "all of it"
            meaning = (
                f"Frequency of the value {level:g} less its probability under the density, in the worst of {looks} "
                f"values and parts of context (around context {where}); an exact density gives 0."
            )
            error = max(math.sqrt(variance[rows].sum()), 1.0) / n if n >= MINIMUM_ROWS else math.nan
            d = float(difference[rows].mean()) if n else math.nan
            results.append(
                CheckResult.judge("level probability", column, d, error, threshold, n, meaning, looks=looks)
            )
    return worst(results)
