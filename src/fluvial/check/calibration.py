r"""Calibration: does the density say as often as it should what turns out to be true?

Row i of the test data has a truth :math:`x_i` (its D targets) and S draws of the density given the context
of that row. If the density is exact, truth and draws are S + 1 exchangeable draws of one distribution, and
everything here follows from that: no statistic assumes a shape, a large S, or a finite variance.

* **PIT**, the rank of the truth among its draws, is uniform (Dawid 1984; Talts et al. 2018,
  arXiv:1804.06788).
* **Pulls**, the distance to the mean in standard deviations, have mean 0 and root mean square 1.
* **Coverage**: the region of highest density that holds probability a holds a truth with frequency a
  (Hermans et al. 2022, arXiv:2110.06581; Lemos et al. 2023, arXiv:2302.03026).

Rows must be independent of each other and of the training rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fluvial.check._arrays import Progress, array, column_names, pieces, truth_and_draws, unit_interval
from fluvial.check.result import MINIMUM_ROWS, CheckResult
from fluvial.errors import DataError

PIT_THRESHOLD = 0.03
"""Largest error of a probability: a normal shifted by 0.075 standard deviations, or 12 % too narrow."""

PULL_THRESHOLD = 0.1
"""A mean wrong by a tenth of a standard deviation; an error bar wrong by a tenth."""

COVERAGE_THRESHOLD = 0.03
"""Largest difference between the frequency with which a region holds the truth and what it promised."""

KOLMOGOROV_MEAN_SQUARE = math.pi**2 / 12.0
"""E[n D²] of the Kolmogorov–Smirnov distance D of n uniform values, as n grows (Kolmogorov 1933)."""


def pit_values(
    truth: np.ndarray,
    draws: np.ndarray,
    rng: np.random.Generator,
    *,
    memory: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    r"""Return the probability integral transform of each truth: its randomised rank among its draws.

    .. math:: u = \frac{\#\{draws < truth\} + U\,(\#\{draws = truth\} + 1)}{S + 1}, \quad U \sim U(0, 1)

    The rank of one of S + 1 exchangeable values, ties broken at random, is uniform over S + 1 places; U
    spreads it within its place. So u is uniform exactly, for any S, and for integers and atoms too
    (Czado, Gneiting & Held 2009, Biometrics 65, 1254).

    ``truth``: [N, D]; ``draws``: [N, S, D], any unit; ``memory``: bytes that the work may take, 32 MB unless
    given; ``progress``: called with (rows done, rows). Returns [N, D] in [0, 1]. A draw that is NaN counts as
    above the truth (:func:`~fluvial.check.outside_support` reports it). A low S does not bias an exact
    density, but blurs the values of a wrong one: 100 draws or more show its full size.

    Raises:
        DataError: shapes that do not agree, or a truth that is not finite.

    >>> rng = np.random.default_rng(0)
    >>> u = pit_values(rng.normal(size=(1000, 2)), rng.normal(size=(1000, 99, 2)), rng)
    >>> u.shape, bool(abs(u.mean() - 0.5) < 0.03)
    ((1000, 2), True)
    """
    x, y = truth_and_draws(truth, draws)
    rows, size, targets = y.shape
    below = np.empty((rows, targets))
    equal = np.empty((rows, targets))
    for piece in pieces(rows, size * targets, memory, progress):
        at = x[piece, None, :]
        below[piece] = _count(y[piece] < at)
        equal[piece] = _count(y[piece] == at)
    return (below + rng.random((rows, targets)) * (equal + 1.0)) / (size + 1.0)


def pit(values: np.ndarray, columns: Sequence[str], *, threshold: float = PIT_THRESHOLD) -> list[CheckResult]:
    r"""Check, for each column, that its PIT values are uniform.

    The statistic is the Kolmogorov–Smirnov distance :math:`D = \max_u |F_n(u) - u|`, less what chance adds:
    :math:`\sqrt{\max(0,\, D^2 - \pi^2/(12 n))}`, since n uniform values have :math:`E[D^2] = \pi^2/(12 n)`.
    It is the largest error of a probability P(target < t) that the density reports, averaged over context.
    Its standard error is at most that of a fraction, :math:`1/(2\sqrt n)`; in that unit the Kolmogorov
    tail :math:`2 \exp(-2 n D^2)` is the Gaussian one of the verdict's rule. A pass needs about 1,100 rows at
    the default threshold of 0.03, and is sure to be given to an exact density from about 4,000.

    ``values``: [N, D] in [0, 1], from :func:`pit_values`. Returns one result per column.

    Raises:
        DataError: a shape that is not [N, D], values outside [0, 1], or not one name per column.

    >>> print(pit(np.linspace(0, 1, 10_000)[:, None], ["Mass_0"])[0])
    ✓ PIT of Mass_0: 0 ± 0.005 (threshold 0.03, n = 10000): pass
    """
    u = unit_interval("values", array("values", values, ("N", "D")))
    names = column_names(columns, u.shape[1])
    meaning = (
        "Largest error of a reported probability P(target < t), chance removed: the distance of the PIT "
        "values from uniform; an exact density gives 0."
    )
    distance, error = uniform_distance(u)
    return [
        CheckResult.judge("PIT", name, d, error, threshold, len(u), meaning)
        for name, d in zip(names, distance, strict=True)
    ]


def uniform_distance(values: np.ndarray) -> tuple[np.ndarray, float]:
    r"""Return the distance of values from the uniform distribution, chance removed, and its standard error.

    :math:`\sqrt{\max(0,\, D^2 - \pi^2/(12 n))}` with D the Kolmogorov–Smirnov distance: see :func:`pit`.
    ``values``: [N, D] in [0, 1]. Returns the distances [D] and :math:`1/(2\sqrt N)`; NaN where N = 0.

    >>> uniform_distance(np.full((100, 1), 0.5))[0].round(2)
    array([0.49])
    """
    n, columns = values.shape
    if n == 0:
        return np.full(columns, np.nan), math.nan
    ordered = np.sort(values, axis=0)
    steps = np.arange(n + 1)[:, None] / n
    largest = np.maximum((steps[1:] - ordered).max(axis=0), (ordered - steps[:-1]).max(axis=0))
    return np.sqrt(np.maximum(largest**2 - KOLMOGOROV_MEAN_SQUARE / n, 0.0)), 0.5 / math.sqrt(n)


def pulls(
    truth: np.ndarray, draws: np.ndarray, *, memory: int | None = None, progress: Progress | None = None
) -> np.ndarray:
    r"""Return the pull of each truth: how many standard deviations it lies from the mean of its draws.

    With m and s the mean and standard deviation (with S − 1) of the draws and r = (truth − m)/s,

    .. math:: \mathrm{pull} = r \, \frac{S}{\sqrt{S^2 - 1 + S r^2}} \;\longrightarrow\; r \quad (S \to \infty)

    The factor corrects for finite S: m and s scatter, so r of an exact density is too wide, by an amount
    that depends on the shape. The corrected pull is the truth standardised with the mean and standard
    deviation of truth and draws together; those S + 1 pulls sum to 0 and their squares to S + 1, and are
    exchangeable if the density is exact, so that the pull has mean 0 and mean square 1 exactly — for any
    shape, any S, even where the variance does not exist. It is bounded by :math:`\sqrt S`, and shortens a
    pull well below that by little.

    ``truth``: [N, D]; ``draws``: [N, S, D] with S ≥ 2, any unit; ``memory``, ``progress`` as in
    :func:`pit_values`. Returns [N, D], without unit. A row whose
    draws are all equal to its truth has no pull (NaN); one whose draws are not all finite has an infinite
    pull.

    Raises:
        DataError: shapes that do not agree, fewer than 2 draws, or a truth that is not finite.

    >>> pulls(np.array([[4.0]]), np.array([[[1.0], [2.0], [3.0]]])).round(3)
    array([[1.342]])
    """
    return _pulls_and_kurtosis(truth, draws, memory, progress)[0]


def pull_checks(
    truth: np.ndarray,
    draws: np.ndarray,
    columns: Sequence[str],
    *,
    threshold: float = PULL_THRESHOLD,
    memory: int | None = None,
    progress: Progress | None = None,
) -> list[CheckResult]:
    r"""Check, for each column, that its pulls have mean 0 and root mean square 1.

    "pull mean" is :math:`\bar t` of the :func:`pulls` t; "pull width" is
    :math:`w = \sqrt{\overline{t^2}}`, above 1 if the density is overconfident and below 1 if underconfident.

    Their standard errors are :math:`\sqrt{V(t)/n}` and, as :math:`w - 1 = (w^2 - 1)/(1 + w)`,
    :math:`\sqrt{V(t^2)/n}\,/(1 + w)`. V is the variance in the sample, but no less than that of an exact
    density, which is known: given the S + 1 values of a row, each is as likely as the others to be the truth,
    so t has variance 1, and t² has :math:`\kappa - 1` with κ the kurtosis of those values. The sample alone
    would not do: where tails are heavy, the rows that make the scatter are mostly not in it, and an exact
    density would fail.

    ``truth``: [N, D]; ``draws``: [N, S, D] with S ≥ 2, any unit; ``memory``, ``progress`` as in
    :func:`pit_values`. Rows without a pull are left out and not
    counted in n; an infinite pull fails. Returns two results per column. Fewer than 50 rows are "insufficient
    data"; a pass needs about 400, more where tails are heavy.

    Raises:
        DataError: shapes that do not agree, fewer than 2 draws, a truth that is not finite, or not one
            name per column.

    >>> rng = np.random.default_rng(0)
    >>> for result in pull_checks(rng.normal(size=(5000, 1)), 1.25 * rng.normal(size=(5000, 99, 1)), ["x"]):
    ...     print(result)
    ✓ pull mean of x: -0.00541 ± 0.014 (threshold 0.1, n = 5000): pass
    ✗ pull width of x: 0.802 ± 0.011 (exact 1, threshold 0.1, n = 5000): fail
    """
    values, kurtosis = _pulls_and_kurtosis(truth, draws, memory, progress)
    results = []
    for j, name in enumerate(column_names(columns, values.shape[1])):
        defined = ~np.isnan(values[:, j])
        t = values[defined, j]
        (mean, mean_error), (width, width_error) = _pull_moments(t, kurtosis[defined, j])
        n = t.size
        results += [
            CheckResult.judge("pull mean", name, mean, mean_error, threshold, n, _PULL_MEAN),
            CheckResult.judge("pull width", name, width, width_error, threshold, n, _PULL_WIDTH, exact=1.0),
        ]
    return results


_PULL_MEAN = (
    "Mean distance of the truth from the mean of the draws, in standard deviations of the draws; "
    "an exact density gives 0."
)
_PULL_WIDTH = (
    "Root mean square distance of the truth from the mean of the draws, in standard deviations of the draws; "
    "an exact density gives 1, an overconfident one more."
)


def _pulls_and_kurtosis(
    truth: np.ndarray, draws: np.ndarray, memory: int | None, progress: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pulls [N, D] and, for each, the kurtosis of the truth and its draws together, [N, D]."""
    x, y = truth_and_draws(truth, draws)
    rows, size, targets = y.shape
    if size < 2:
        raise DataError(f"draws: expected at least 2 for each row, to have a standard deviation; got {size}.")
    pull, kurtosis = np.empty((rows, targets)), np.empty((rows, targets))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for piece in pieces(rows, size * targets, memory, progress):
            # Measured from the first draw: no digits are lost to an offset, and equal values give exactly 0.
            first = y[piece, :1].astype(np.float64)
            of_draws, of_truth = y[piece] - first, x[piece] - first[:, 0]
            mean = (of_draws.sum(axis=1) + of_truth) / (size + 1.0)
            of_draws -= mean[:, None]
            of_truth -= mean
            square = np.square(of_draws, out=of_draws)
            variance = (square.sum(axis=1) + of_truth**2) / (size + 1.0)
            square /= variance[:, None]
            t = of_truth / np.sqrt(variance)
            pull[piece] = np.where(np.isfinite(variance), t, np.inf)
            kurtosis[piece] = (np.einsum("nsd,nsd->nd", square, square) + t**4) / (size + 1.0)
    return pull, kurtosis


def _pull_moments(t: np.ndarray, kurtosis: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (mean, standard error) and (width, standard error) of pulls, by the formulas of pull_checks."""
    n = t.size
    if np.isinf(t).any():
        return (math.inf, math.nan), (math.inf, math.nan)
    if n == 0:
        return (math.nan, math.nan), (math.nan, math.nan)
    square = t**2
    mean, width = float(t.mean()), math.sqrt(float(square.mean()))
    if n < MINIMUM_ROWS:
        return (mean, math.nan), (width, math.nan)
    mean_error = max(1.0, float(t.std(ddof=1))) / math.sqrt(n)
    variance = max(float(kurtosis.mean()) - 1.0, float(square.var(ddof=1)))
    return (mean, mean_error), (width, math.sqrt(variance / n) / (1.0 + width))


def hpd_values(
    log_prob_truth: np.ndarray,
    log_prob_draws: np.ndarray,
    rng: np.random.Generator,
    *,
    memory: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    r"""Return, for each truth, the probability of the smallest highest-density region that holds it.

    That is the fraction of draws of higher density than the truth: its randomised rank, as in
    :func:`pit_values`, by decreasing log-density. It is uniform if the density is exact, whatever the
    number of targets (Hermans et al. 2022, arXiv:2110.06581, section 2.2).

    ``log_prob_truth``: [N]; ``log_prob_draws``: [N, S], nats, from the same density; ``memory``, ``progress`` as
    in :func:`pit_values`. Returns [N] in [0, 1].
    A log-density that is NaN counts as −inf: the density gives that row no probability.

    Raises:
        DataError: shapes that do not agree, or no draws.

    >>> hpd_values(np.array([-9.0]), np.array([[-1.0, -2.0, -3.0]]), np.random.default_rng(0)) > 0.75
    array([ True])
    """
    at = array("log_prob_truth", log_prob_truth, ("N",))
    of = array("log_prob_draws", log_prob_draws, (at.shape[0], "S"))
    values = np.empty(len(at))
    for piece in pieces(len(at), of.shape[1], memory, progress):
        # Ranked by falling density; infinities are of use for ranking only, so any finite stand-in will do.
        truth, drawn = (_finite_order(-a[piece]) for a in (at, of))
        values[piece] = pit_values(truth[:, None], drawn[:, :, None], rng)[:, 0]
    return values


def coverage_curve(
    log_prob_truth: np.ndarray, log_prob_draws: np.ndarray, levels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return how often the highest-density region of each level holds the truth, and the standard error.

    The truth is inside the region of level a when the fraction of draws with higher density is below a
    (:func:`hpd_values`). An exact density gives a; an overconfident one less.

    ``log_prob_truth``: [N]; ``log_prob_draws``: [N, S], nats; ``levels``: [L] in [0, 1]. Returns two arrays
    [L]: the observed frequency and its binomial standard error.

    Raises:
        DataError: shapes that do not agree, no rows, or levels outside [0, 1].
    """
    values = hpd_values(log_prob_truth, log_prob_draws, rng)
    observed, error = frequency_below(values[:, None], levels)
    return observed[:, 0], error[:, 0]


def central_coverage_curve(
    truth: np.ndarray, draws: np.ndarray, levels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return how often the central interval of each level holds the truth, per column, with the error.

    The central interval of level a leaves (1 − a)/2 on either side; the truth is inside when |2 PIT − 1| < a.
    An exact density gives a; an overconfident one less.

    ``truth``: [N, D]; ``draws``: [N, S, D], any unit; ``levels``: [L] in [0, 1]. Returns two arrays [L, D]:
    the observed frequency and its binomial standard error.

    Raises:
        DataError: shapes that do not agree, no rows, or levels outside [0, 1].
    """
    return frequency_below(np.abs(2.0 * pit_values(truth, draws, rng) - 1.0), levels)


def coverage(
    log_prob_truth: np.ndarray,
    log_prob_draws: np.ndarray,
    rng: np.random.Generator,
    *,
    threshold: float = COVERAGE_THRESHOLD,
) -> CheckResult:
    r"""Check that highest-density regions hold the truth as often as they promise, at every level.

    The statistic is the largest |observed − nominal| over all levels: the distance of :func:`hpd_values`
    from uniform, chance removed and with the standard error :math:`1/(2\sqrt n)`, as in :func:`pit`. It sees
    all targets at once, and so their correlations, which no column's PIT does.

    ``log_prob_truth``: [N]; ``log_prob_draws``: [N, S], nats.

    Raises:
        DataError: shapes that do not agree, or no draws.

    >>> rng = np.random.default_rng(0)
    >>> x, draws = rng.normal(size=5000), rng.normal(size=(5000, 100))
    >>> coverage(-(x**2) / 2, -(draws**2) / 2, rng).verdict
    'pass'
    """
    values = hpd_values(log_prob_truth, log_prob_draws, rng)
    distance, error = uniform_distance(values[:, None])
    meaning = (
        "Largest difference, over all levels, between how often a highest-density region holds the truth and "
        "the level it claims, chance removed; an exact density gives 0."
    )
    return CheckResult.judge("coverage", None, distance[0], error, threshold, values.size, meaning)


def frequency_below(values: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the fraction of values [N, D] below each level, [L, D], and its standard error."""
    a = unit_interval("levels", array("levels", levels, ("L",)))
    n = values.shape[0]
    if n == 0:
        raise DataError("truth: expected at least one row, got none.")
    count = np.stack([np.searchsorted(column, a) for column in np.sort(values, axis=0).T], axis=1)
    # One row more on either side (Laplace): the error is never 0, not even where all rows or none are inside.
    smooth = (count + 1.0) / (n + 2.0)
    return count / n, np.sqrt(smooth * (1.0 - smooth) / n)


def _count(found: np.ndarray) -> np.ndarray:
    """Return the number of True along axis 1 of [n, S, D]."""
    return np.add.reduce(found, axis=1, dtype=np.int32)


def _finite_order(values: np.ndarray) -> np.ndarray:
    """Return the values in the same order, all finite: infinities as the largest floats, and NaN too."""
    most = np.finfo(float).max
    return np.nan_to_num(values.astype(np.float64), nan=most, posinf=most, neginf=-most)
