r"""Proper scores: one number a row, the lower the better on average, least for the exact density.

A score has no exact value that is known beforehand: it holds the scatter of the truth itself. So it is compared with
that of a reference on the same rows, another density or a baseline (:func:`compare_scores`). Both scores here are in
the unit of the targets, need draws only, and bear atoms (Gneiting & Raftery 2007, JASA 102, 359).
"""

from __future__ import annotations

import math

import numpy as np

from fluvial.check._arrays import Progress, array, finite, pieces, truth_and_draws
from fluvial.check.result import MINIMUM_ROWS, CheckResult, verdict_for
from fluvial.errors import DataError

SCORE_THRESHOLD = 0.01
"""By how much a mean score may be worse than the reference's, relative to it: what a normal costs whose width is wrong by
a fifth, or that is shifted by 0.15 standard deviations."""


def crps(
    truth: np.ndarray, draws: np.ndarray, *, memory: int | None = None, progress: Progress | None = None
) -> np.ndarray:
    r"""Return the continuous ranked probability score of each truth, for each target, in its unit.

    .. math:: \mathrm{CRPS} = E|y - x| - \tfrac12 E|y - y'| \approx \frac1S \sum_s |y_s - x|
              - \frac{\sum_s (2 s - S - 1)\, y_{(s)}}{S (S - 1)}

    with :math:`y_{(s)}` the draws in order: unbiased for any S (the "fair" score of Ferro 2014, QJRMS 140, 1917).

    ``truth``: [N, D]; ``draws``: [N, S, D] with S ≥ 2, any unit; ``memory``: bytes that the work may take; ``progress``:
    called with (rows done, rows). Returns [N, D]; NaN where a draw is not finite.

    Raises:
        DataError: shapes that do not agree, fewer than 2 draws, or a truth that is not finite.

    >>> crps(np.array([[0.0]]), np.array([[[-1.0], [1.0]]]))
    array([[0.]])
    """
    x, y = _scored(truth, draws)
    rows, size, targets = y.shape
    weights = (2.0 * np.arange(1, size + 1) - size - 1) / (size * (size - 1.0))
    out = np.empty((rows, targets))
    with np.errstate(invalid="ignore"):
        for piece in pieces(rows, size * targets, memory, progress):
            off = y[piece] - x[piece, None, :].astype(np.float64)  # from the truth: no digits are lost
            ordered = np.sort(off, axis=1)
            score = np.abs(off).mean(axis=1) - np.einsum("s,nsd->nd", weights, ordered)
            out[piece] = np.where(np.isfinite(off).all(axis=1), score, np.nan)
    return out


def energy_score(
    truth: np.ndarray,
    draws: np.ndarray,
    *,
    scale: np.ndarray | None = None,
    lags: int = 8,
    memory: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    r"""Return the energy score of each truth: the CRPS of all targets at once.

    .. math:: \mathrm{ES} = E\|y - x\| - \tfrac12 E\|y - y'\|

    with the Euclidean norm of targets over ``scale``. The second mean is taken over pairs of draws that are 1 to ``lags``
    places apart in their cycle, an unbiased estimate that costs ``lags`` and not S passes.

    ``truth``: [N, D]; ``draws``: [N, S, D] with S ≥ 2, independent in their order; ``scale``: [D], the standard
    deviations of the truth over the rows unless given; ``memory``, ``progress`` as in :func:`crps`. Returns [N],
    without unit; NaN where a draw is not finite.

    Raises:
        DataError: shapes that do not agree, fewer than 2 draws, a truth that is not finite, or a scale that is
            not positive.

    >>> energy_score(np.array([[0.0]]), np.array([[[-1.0], [1.0]]]), scale=np.ones(1))
    array([0.])
    """
    x, y = _scored(truth, draws)
    rows, size, targets = y.shape
    if lags < 1:
        raise DataError(f"lags: expected at least 1, got {lags}.")
    if scale is None:
        unit = x.std(axis=0, dtype=np.float64) if rows else np.ones(targets)
        unit = np.where(unit > 0, unit, 1.0)
    else:
        unit = finite("scale", array("scale", scale, (targets,)))
        if not (unit > 0).all():
            raise DataError("scale: expected numbers greater than 0, one per target.")
    # A lag and its complement pair the same draws.
    steps = range(1, min(lags, max(1, size // 2)) + 1)
    out = np.empty(rows)
    with np.errstate(invalid="ignore"):
        for piece in pieces(rows, size * targets, memory, progress):
            off = (y[piece] - x[piece, None, :]) / unit
            near = _norm(off).mean(axis=1)
            apart = np.zeros_like(near)
            for step in steps:
                apart += _norm(off[:, step:] - off[:, :-step]).sum(axis=1)
                apart += _norm(off[:, :step] - off[:, -step:]).sum(axis=1)
            out[piece] = near - 0.5 * apart / (size * len(steps))
    return np.where(np.isfinite(out), out, np.nan)


def compare_scores(
    scores: np.ndarray,
    reference: np.ndarray,
    name: str,
    column: str | None = None,
    *,
    threshold: float = SCORE_THRESHOLD,
) -> CheckResult:
    r"""Check that a score is not worse than a reference's on the same rows, relative to it.

    .. math:: \Delta = \bar a / \bar b - 1, \qquad u = \frac{1}{|\bar b|} \sqrt{V(a - (1 + \Delta)\, b) / n}

    with a the scores and b the reference's. It fails if :math:`\Delta` is above the threshold, and not by chance; a
    better score never fails. The rows are paired, so that what is hard for both cancels.

    ``scores``, ``reference``: [N], of the same rows, the lower the better, with a positive mean. ``name``: such as
    "CRPS". Fewer than 50 rows are "insufficient data"; a score that is not finite fails.

    Raises:
        DataError: shapes that do not agree, or a reference that is not finite or not positive in the mean.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(3000, 1))
    >>> exact, shifted = (energy_score(x, rng.normal(m, 1, size=(3000, 99, 1))) for m in (0, 0.3))
    >>> compare_scores(shifted, exact, "energy score").verdict
    'fail'
    """
    a = array("scores", scores, ("N",)).astype(np.float64)
    b = finite("reference", array("reference", reference, a.shape)).astype(np.float64)
    meaning = (
        f"Mean {name} over that of the reference, less 1: 0.01 is one per cent worse, below 0 is better; "
        "as good as the reference gives 0."
    )
    name = f"{name} against reference"
    n = a.size
    if n and not b.mean() > 0:
        raise DataError(f"reference: expected scores with a mean greater than 0, got {b.mean():g}.")
    if not np.isfinite(a).all():
        return CheckResult.judge(name, column, math.inf, math.nan, threshold, n, meaning)
    if n < MINIMUM_ROWS:
        return CheckResult.judge(name, column, math.nan, math.nan, threshold, n, meaning)
    worse = float(a.mean() / b.mean() - 1.0)
    error = float((a - (1.0 + worse) * b).std(ddof=1)) / (math.sqrt(n) * float(b.mean()))
    verdict = verdict_for(max(worse, 0.0), error, threshold)
    return CheckResult(name, column, worse, error, float(threshold), n, verdict, meaning)


def _scored(truth: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = truth_and_draws(truth, draws)
    if y.shape[1] < 2:
        raise DataError(
            f"draws: expected at least 2 for each row, to have a distance of two; got {y.shape[1]}."
        )
    return x, y


def _norm(values: np.ndarray) -> np.ndarray:
    if values.shape[-1] == 1:
        return np.abs(values[..., 0])
    return np.sqrt(np.einsum("...d,...d->...", values, values))
