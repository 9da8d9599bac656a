r"""Ranks of the truth among draws: by each target, by log-density, and by distance to a random point.

Simulation-based calibration (Talts et al. 2018, arXiv:1804.06788) looks at the rank of each target. A rank by any other
number made of target *and* context is uniform too, and the log-density is one that sees all targets at once (Modrák et
al. 2023, arXiv:2211.02383). The distance to a random reference point is another: TARP (Lemos et al. 2023,
arXiv:2302.03026), which needs no log-density.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fluvial.check._arrays import Progress, array, column_names, finite, pieces, truth_and_draws
from fluvial.check._chance import excess
from fluvial.check.calibration import frequency_below, hpd_values, pit_values, uniform_distance
from fluvial.check.result import MINIMUM_ROWS, CheckResult
from fluvial.errors import DataError

SBC_THRESHOLD = 0.15
"""Largest relative unevenness of a rank histogram: a normal shifted by 0.15 standard deviations, or 10 % too narrow."""

TARP_THRESHOLD = 0.03
"""Largest difference between the frequency with which a random region holds the truth and what it promised."""


def rank_counts(
    truth: np.ndarray, draws: np.ndarray, *, memory: int | None = None, progress: Progress | None = None
) -> np.ndarray:
    """Return how many draws are below the truth, for each target: the ranks of Talts et al., algorithm 1.

    ``truth``: [N, D]; ``draws``: [N, S, D], any unit; ``memory``: bytes that the work may take; ``progress``: called with
    (rows done, rows). Returns integers [N, D] from 0 to S; for integers and atoms, use the PIT, which breaks ties.

    Raises:
        DataError: shapes that do not agree, or a truth that is not finite.

    >>> rank_counts(np.array([[2.5]]), np.array([[[1.0], [2.0], [3.0]]]))
    array([[2]])
    """
    x, y = truth_and_draws(truth, draws)
    out = np.empty(x.shape, dtype=np.int64)
    for piece in pieces(len(x), y.shape[1] * y.shape[2], memory, progress):
        out[piece] = np.add.reduce(y[piece] < x[piece, None, :], axis=1, dtype=np.int64)
    return out


def sbc_ranks(
    truth: np.ndarray,
    draws: np.ndarray,
    columns: Sequence[str],
    rng: np.random.Generator,
    *,
    log_prob_truth: np.ndarray | None = None,
    log_prob_draws: np.ndarray | None = None,
    threshold: float = SBC_THRESHOLD,
    memory: int | None = None,
    progress: Progress | None = None,
) -> list[CheckResult]:
    r"""Check that the ranks of the truth among its draws fill their histogram evenly, by each target and by density.

    The ranks, ties broken at random (:func:`~fluvial.check.pit_values`), are counted in B bins, 20 or one per 20
    rows. With :math:`h_b` the height of a bin over its expected height, the statistic is the root mean square of
    :math:`h_b - 1`, chance removed:

    .. math:: w = \sqrt{\max\left(0,\, \frac{\chi^2 - (B - 1)}{n}\right)}, \qquad
              \chi^2 = \frac{n}{B} \sum_b (h_b - 1)^2

    It is the distance in :math:`\chi^2` of the ranks from uniform (Cohen's w). The standard error is the bound
    :math:`u = \sqrt{(1 + \sqrt{B - 1}/2)/n}`, from :math:`P(\chi > \sqrt{B - 1} + k) \le e^{-k^2/2}`. Unlike the
    distance of Kolmogorov, which the PIT check takes, it sees a deviation that is narrow: in the tails, or in the
    middle. A pass needs about 560 rows.

    ``truth``: [N, D]; ``draws``: [N, S, D]; ``log_prob_truth``: [N] and ``log_prob_draws``: [N, S], nats, for one
    result more, of the column "log density"; ``memory``: bytes that the work may take; ``progress``: called with
    (rows done, rows).

    Raises:
        DataError: shapes that do not agree, a truth that is not finite, one log-density without the other, or not one
            name per column.

    Source: Talts et al. 2018, arXiv:1804.06788; Modrák et al. 2023, arXiv:2211.02383.

    >>> rng = np.random.default_rng(0)
    >>> truth, draws = rng.normal(size=(2000, 1)), 0.8 * rng.normal(size=(2000, 99, 1))
    >>> sbc_ranks(truth, draws, ["x"], rng)[0].verdict
    'fail'
    """
    if (log_prob_truth is None) != (log_prob_draws is None):
        raise DataError("log_prob_truth, log_prob_draws: expected both or neither, got one.")
    values = pit_values(truth, draws, rng, memory=memory, progress=progress)
    names: list[str] = column_names(columns, values.shape[1])
    if log_prob_truth is not None and log_prob_draws is not None:
        of_density = hpd_values(log_prob_truth, log_prob_draws, rng, memory=memory)
        values = np.concatenate([values, of_density[:, None]], axis=1)
        names.append("log density")
    meaning = (
        "Root mean square of the relative unevenness of the histogram of the truth's ranks among draws, chance "
        "removed; an exact density gives 0."
    )
    n = len(values)
    results = []
    for name, u in zip(names, values.T, strict=True):
        statistic, error = _unevenness(u)
        results.append(CheckResult.judge("SBC ranks", name, statistic, error, threshold, n, meaning))
    return results


def _unevenness(values: np.ndarray) -> tuple[float, float]:
    """Return Cohen's w of values in [0, 1] against uniform, chance removed, and its standard error."""
    n = values.size
    if n < MINIMUM_ROWS:
        return math.nan, math.nan
    bins = min(20, max(2, n // 20))
    counts = np.bincount(np.minimum((values * bins).astype(np.int64), bins - 1), minlength=bins)
    chi = math.sqrt(float(((counts - n / bins) ** 2).sum()) * bins / n)
    return excess(chi / math.sqrt(n), (bins - 1) / n, 1 / math.sqrt(n))


def tarp_values(
    truth: np.ndarray,
    draws: np.ndarray,
    rng: np.random.Generator,
    *,
    references: np.ndarray | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return, for each truth, the probability of the ball around its reference point that just reaches it.

    That is the fraction of draws closer to the reference than the truth is: its randomised rank, uniform if the density
    is exact, for any reference that does not look at the truth. Distances are Euclidean, each target in units of its
    standard deviation over the rows.

    ``truth``: [N, D]; ``draws``: [N, S, D]; ``references``: [N, D], in the targets' units; unless given, uniform over the
    range of the truth, one for each row. References that depend on the context find more: with references independent
    of it, a density that ignores its context is not found out (Lemos et al. 2023, section 3). Returns [N] in [0, 1].

    Raises:
        DataError: shapes that do not agree, or a truth or a reference that is not finite.

    Source: Lemos et al. 2023, arXiv:2302.03026, algorithm 2.

    >>> rng = np.random.default_rng(0)
    >>> tarp_values(np.array([[3.0]]), np.array([[[0.0], [1.0], [9.0]]]), rng, references=np.array([[0.0]])) > 0.5
    array([ True])
    """
    x, y = truth_and_draws(truth, draws)
    rows, size, targets = y.shape
    if rows == 0:
        return np.empty(0)
    if references is None:
        low, high = x.min(axis=0), x.max(axis=0)
        centre = low + rng.random((rows, targets)) * (high - low)
    else:
        centre = finite("references", array("references", references, (rows, targets))).astype(np.float64)
    scale = x.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1.0)
    values = np.empty(rows)
    for piece in pieces(rows, size * (targets + 1), memory, progress):
        middle = centre[piece]
        of_truth = (((x[piece] - middle) / scale) ** 2).sum(axis=1)
        off = (y[piece] - middle[:, None]) / scale
        of_draws = np.einsum("nsd,nsd->ns", off, off)
        # A draw that is NaN is nowhere: further than any truth.
        of_draws = np.nan_to_num(of_draws, nan=np.finfo(float).max, posinf=np.finfo(float).max)
        values[piece] = pit_values(of_truth[:, None], of_draws[:, :, None], rng)[:, 0]
    return values


def tarp(
    truth: np.ndarray,
    draws: np.ndarray,
    rng: np.random.Generator,
    *,
    references: np.ndarray | None = None,
    threshold: float = TARP_THRESHOLD,
    memory: int | None = None,
    progress: Progress | None = None,
) -> CheckResult:
    r"""Check that balls around random points hold the truth as often as they promise, at every level (TARP).

    The statistic is the largest |observed − nominal| over all levels, chance removed, with the standard error
    :math:`1/(2\sqrt n)`: the distance of :func:`tarp_values` from uniform, as in :func:`~fluvial.check.pit`. It sees all
    targets and their correlations, and needs draws only. Arguments as in :func:`tarp_values`.

    Raises:
        DataError: shapes that do not agree, or a truth or a reference that is not finite.

    Source: Lemos et al. 2023, arXiv:2302.03026.

    >>> rng = np.random.default_rng(0)
    >>> tarp(rng.normal(size=(5000, 2)), rng.normal(size=(5000, 99, 2)), rng).verdict
    'pass'
    """
    values = tarp_values(truth, draws, rng, references=references, memory=memory, progress=progress)
    distance, error = uniform_distance(values[:, None])
    meaning = (
        "Largest difference, over all levels, between how often a ball around a random point holds the truth and the "
        "share of draws that it holds, chance removed; an exact density gives 0."
    )
    return CheckResult.judge("TARP", None, distance[0], error, threshold, values.size, meaning)


def tarp_curve(
    truth: np.ndarray,
    draws: np.ndarray,
    levels: np.ndarray,
    rng: np.random.Generator,
    *,
    references: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return how often the ball that holds each share of draws holds the truth, and the standard error: two arrays [L].

    ``truth``: [N, D]; ``draws``: [N, S, D]; ``levels``: [L] in [0, 1]; ``references`` as in :func:`tarp_values`.

    Raises:
        DataError: shapes that do not agree, no rows, or levels outside [0, 1].
    """
    values = tarp_values(truth, draws, rng, references=references)
    observed, error = frequency_below(values[:, None], levels)
    return observed[:, 0], error[:, 0]
