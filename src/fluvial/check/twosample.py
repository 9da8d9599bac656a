r"""Two samples: are they of one distribution? Distances in units that mean something, and what chance adds removed.

Give the test data as one sample, [N, D], and one draw at the context of each row as the other: then a difference is
the density's. With the context as further columns of both, [N, D + C], the joint distribution is compared, and a
density that is right only on average is found out. (At the same contexts, the two samples are closer to each other
than independent ones: chance is then overestimated, never under.)

All four are norms of a difference of two means, and are judged by one rule: see :func:`fluvial.check._chance.excess`.
With n and m rows, :math:`s = \sqrt{1/n + 1/m}`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fluvial.check._arrays import array, column_names, finite, pieces
from fluvial.check._chance import excess
from fluvial.check.calibration import KOLMOGOROV_MEAN_SQUARE
from fluvial.check.result import MINIMUM_ROWS, CheckResult
from fluvial.errors import DataError

KS_THRESHOLD = 0.03
"""Largest difference of cumulative frequencies."""

WASSERSTEIN_THRESHOLD = 0.1
"""A tenth of a standard deviation: the mean distance over which one sample has to be moved to be the other."""

MMD_THRESHOLD = 0.1
"""Of a kernel that is 1 for equal rows: with one target, a normal shifted by about 0.25 standard deviations."""

_PERMUTATIONS = 16


def kolmogorov_smirnov(
    first: np.ndarray, second: np.ndarray, columns: Sequence[str], *, threshold: float = KS_THRESHOLD
) -> list[CheckResult]:
    r"""Check, for each column, that two samples have the same cumulative distribution.

    The statistic is :math:`\max_t |F_n(t) - G_m(t)|`, less what chance adds, :math:`\pi^2 s^2/12` of its square; the
    standard error is :math:`s/2`. Ties are respected: with atoms, chance adds less than is removed.

    ``first``: [N, D]; ``second``: [M, D], any unit. Returns one result per column, with n the smaller number of rows.

    Raises:
        DataError: shapes that do not agree, or values that are not finite.

    >>> rng = np.random.default_rng(0)
    >>> kolmogorov_smirnov(rng.normal(size=(9000, 1)), rng.normal(0.2, 1, size=(9000, 1)), ["x"])[0].verdict
    'fail'
    """
    x, y, s = _samples(first, second)
    meaning = (
        "Largest difference of the cumulative frequencies of two samples, chance removed; equal ones give 0."
    )
    results = []
    for j, name in enumerate(column_names(columns, x.shape[1])):
        a, b = np.sort(x[:, j]), np.sort(y[:, j])
        at = np.concatenate([a, b])
        gap = np.searchsorted(a, at, "right") / max(len(a), 1) - np.searchsorted(b, at, "right") / max(
            len(b), 1
        )
        d = float(np.abs(gap).max()) if min(len(a), len(b)) >= MINIMUM_ROWS else math.nan
        d = math.sqrt(max(0.0, d**2 - KOLMOGOROV_MEAN_SQUARE * s**2)) if math.isfinite(d) else d
        results.append(
            CheckResult.judge("KS distance", name, d, s / 2, threshold, min(len(a), len(b)), meaning)
        )
    return results


def wasserstein(
    first: np.ndarray,
    second: np.ndarray,
    columns: Sequence[str],
    rng: np.random.Generator,
    *,
    threshold: float = WASSERSTEIN_THRESHOLD,
) -> list[CheckResult]:
    r"""Check, for each column, how far one sample has to be moved to become the other, in standard deviations.

    .. math:: W_1 = \int |F_n(t) - G_m(t)|\, dt

    over the standard deviation of all rows. What chance adds, :math:`E[W_1^2]`, is measured by exchanging rows
    between the samples at random; σ is at most s, since :math:`\int (F_n - G_m)\, dt` is a difference of two means.

    ``first``: [N, D]; ``second``: [M, D], any unit. Returns one result per column, with n the smaller number of rows.

    Raises:
        DataError: shapes that do not agree, or values that are not finite.

    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(2, 5000, 1))
    >>> wasserstein(x, y, ["x"], rng)[0].verdict, wasserstein(x, y + 0.2, ["x"], rng)[0].verdict
    ('pass', 'fail')
    """
    x, y, s = _samples(first, second)
    meaning = (
        "How far one sample has to be moved to become the other, in standard deviations, chance removed; equal ones "
        "give 0."
    )
    results = []
    for j, name in enumerate(column_names(columns, x.shape[1])):
        distance, error = math.nan, math.nan
        if min(len(x), len(y)) >= MINIMUM_ROWS:
            found, null, spread = _transport(x[:, j : j + 1], y[:, j : j + 1], rng)
            distance, error = excess(found, float(np.mean(null**2)), s * spread)
        n = min(len(x), len(y))
        results.append(
            CheckResult.judge("Wasserstein distance", name, distance, error, threshold, n, meaning)
        )
    return results


def sliced_wasserstein(
    first: np.ndarray,
    second: np.ndarray,
    rng: np.random.Generator,
    *,
    directions: int = 64,
    threshold: float = WASSERSTEIN_THRESHOLD,
) -> CheckResult:
    r"""Check how far one sample has to be moved to become the other, in the mean over random directions.

    Columns are standardised together, and their principal axes too, so that every direction has standard deviation 1
    and a wrong correlation is seen, also between columns that nearly agree. The statistic is the mean of
    :func:`wasserstein` over directions, with chance measured by exchanging rows in all directions at once.

    ``first``: [N, D]; ``second``: [M, D], any unit; ``directions``: how many. Returns one result, with n the smaller
    number.

    Raises:
        DataError: shapes that do not agree, or values that are not finite.

    Source: Bonneel et al. 2015, J. Math. Imaging Vis. 51, 22.

    >>> rng = np.random.default_rng(0)
    >>> sliced_wasserstein(*rng.normal(size=(2, 2000, 3)), rng).verdict
    'pass'
    """
    x, y, s = _samples(first, second)
    meaning = (
        "How far one sample has to be moved to become the other, in standard deviations and in the mean over random "
        "directions, chance removed; equal ones give 0."
    )
    n = min(len(x), len(y))
    if n < MINIMUM_ROWS:
        return CheckResult.judge("sliced Wasserstein", None, math.nan, math.nan, threshold, n, meaning)
    x, y = _whiten(x, y)
    angles = rng.normal(size=(x.shape[1], directions if x.shape[1] > 1 else 1))
    angles /= np.linalg.norm(angles, axis=0)
    found, null, spread = _transport(x @ angles, y @ angles, rng)
    distance, error = excess(found, float(np.mean(null**2)), s * spread)
    return CheckResult.judge("sliced Wasserstein", None, distance, error, threshold, n, meaning)


def mmd(
    first: np.ndarray,
    second: np.ndarray,
    rng: np.random.Generator,
    *,
    max_rows: int = 2500,
    threshold: float = MMD_THRESHOLD,
    memory: int | None = None,
) -> CheckResult:
    r"""Check the maximum mean discrepancy of two samples: the distance of their means in the space of a Gaussian kernel.

    .. math:: \mathrm{MMD}^2 = \overline{k(x, x')} + \overline{k(y, y')} - 2\,\overline{k(x, y)}, \qquad
              k(x, y) = \exp\left(-\|x - y\|^2 / 2 h^2\right)

    over pairs of different rows, which is unbiased (Gretton et al. 2012, JMLR 13, 723, eq. 3); h is the median
    distance. The columns are standardised together. The statistic is its root, 0 where it is negative. What chance
    adds to the square is :math:`E_0^2 = s^2\,\mathrm{tr}\,\Sigma` and :math:`\sigma^2 = s^2\,\lambda_{\max}(\Sigma)`,
    with Σ the covariance in the space of the kernel, both from the centred kernel matrix.

    ``first``: [N, D]; ``second``: [M, D], any unit; ``max_rows``: of each sample at most, drawn at random, since the
    work grows with its square; ``memory``: bytes that the work may take. Returns one result, with n the smaller
    number of rows used.

    Raises:
        DataError: shapes that do not agree, or values that are not finite.

    >>> rng = np.random.default_rng(0)
    >>> mmd(*rng.normal(size=(2, 2000, 3)), rng).verdict
    'pass'
    """
    x, y, _ = _samples(first, second)
    meaning = (
        "Distance of two samples in the space of a Gaussian kernel (MMD), between 0 and √2, chance removed; equal ones "
        "give 0."
    )
    x, y = (v[rng.permutation(len(v))[:max_rows]] for v in (x, y))
    n, m = len(x), len(y)
    if min(n, m) < MINIMUM_ROWS:
        return CheckResult.judge("MMD", None, math.nan, math.nan, threshold, min(n, m), meaning)
    x, y = _standardise(x, y)
    both = np.concatenate([x, y])
    sample = both[rng.permutation(n + m)[:1000]]
    apart = _squares(sample, sample)[np.triu_indices(len(sample), 1)]
    width = float(np.median(apart)) or 1.0
    # Means of the kernel over the first and over the second sample, at every row.
    means = np.empty((n + m, 2))
    for piece in pieces(n + m, n + m, memory):
        kernel = np.exp(_squares(both[piece], both) / (-2.0 * width))
        means[piece, 0], means[piece, 1] = kernel[:, :n].sum(axis=1), kernel[:, n:].sum(axis=1)
    within = (means[:n, 0].sum() - n) / (n * (n - 1.0)) + (means[n:, 1].sum() - m) / (m * (m - 1.0))
    square = within - 2.0 * means[:n, 1].sum() / (n * m)
    centred = np.exp(_squares(sample, sample) / (-2.0 * width))
    centred -= centred.mean(axis=0)
    centred -= centred.mean(axis=1, keepdims=True)
    s = math.sqrt(1.0 / n + 1.0 / m)
    null_square = s**2 * float(np.trace(centred)) / len(sample)
    sigma = s * math.sqrt(max(_largest_eigenvalue(centred, rng) / len(sample), 0.0))
    # The unbiased square is the square of the norm less what chance adds to it already.
    distance, error = excess(math.sqrt(max(square + null_square, 0.0)), null_square, sigma)
    return CheckResult.judge("MMD", None, distance, error, threshold, min(n, m), meaning)


def _samples(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return both samples, checked, in float64, and √(1/n + 1/m)."""
    x = finite("first", array("first", first, ("N", "D"))).astype(np.float64)
    y = finite("second", array("second", second, ("M", x.shape[1]))).astype(np.float64)
    if x.shape[1] < 1:
        raise DataError("first: expected at least one column, got none.")
    s = math.sqrt(1.0 / len(x) + 1.0 / len(y)) if len(x) and len(y) else math.nan
    return x, y, s


def _standardise(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both with mean 0 and standard deviation 1 together; a constant column becomes 0."""
    both = np.concatenate([x, y])
    mean, scale = both.mean(axis=0), both.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    return (x - mean) / scale, (y - mean) / scale


def _whiten(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both with the unit matrix for a covariance together; directions without spread are left out."""
    x, y = _standardise(x, y)
    both = np.concatenate([x, y])
    values, axes = np.linalg.eigh(both.T @ both / len(both))
    good = values > 1e-10 * max(values[-1], 1e-300)
    turn = axes[:, good] / np.sqrt(values[good])
    return x @ turn, y @ turn


def _transport(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[float, np.ndarray, float]:
    """Return W1 in the mean over columns, the same of exchanged rows, [R], and the mean standard deviation of a column.

    Distances are in units of the standard deviation of each column, so the last is 1, or 0 where all are constant.
    """
    n, m = len(x), len(y)
    both = np.concatenate([x, y])
    scale = both.std(axis=0)
    label = np.repeat([1.0 / n, -1.0 / m], [n, m])
    labels = np.stack([label, *(rng.permutation(label) for _ in range(_PERMUTATIONS))])
    total = np.zeros(len(labels))
    for column, width in zip(both.T, scale, strict=True):
        if width == 0:
            continue
        order = np.argsort(column)
        steps = np.diff(column[order]) / width
        for r, one in enumerate(labels):
            total[r] += np.abs(np.cumsum(one[order])[:-1]) @ steps
    total /= both.shape[1]
    return float(total[0]), total[1:], float(np.mean(scale > 0))


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return squared distances [A, B]."""
    out = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * (a @ b.T)
    return np.maximum(out, 0.0, out=out)


def _largest_eigenvalue(matrix: np.ndarray, rng: np.random.Generator) -> float:
    """Return the largest eigenvalue of a positive semidefinite matrix, by powers; from above, near enough."""
    vector = rng.normal(size=len(matrix))
    value = 0.0
    for _ in range(30):
        vector = matrix @ vector
        value = float(np.linalg.norm(vector))
        if value == 0.0:
            return 0.0
        vector /= value
    return value
