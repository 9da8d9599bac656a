"""Sensitivity to the seed: do densities that were trained alike, from other seeds, say the same?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fluvial.check._arrays import Progress, array, column_names, pieces
from fluvial.check.divergence import KL_THRESHOLD
from fluvial.check.result import MINIMUM_ROWS, CheckResult
from fluvial.errors import DataError

MEMBER_THRESHOLD = 0.2
"""Scatter of the members' means: a fifth of the predicted width adds 2 % to it in quadrature."""


def seed_sensitivity(
    draws: np.ndarray,
    log_prob: np.ndarray,
    columns: Sequence[str],
    *,
    threshold: float = MEMBER_THRESHOLD,
    log_prob_threshold: float = KL_THRESHOLD,
    memory: int | None = None,
    progress: Progress | None = None,
) -> list[CheckResult]:
    r"""Check that members of an ensemble agree: their means against the predicted width, and their log-densities.

    "mean across members", for each column, with :math:`m_{ki}` and :math:`s_{ki}^2` the mean and variance of the draws of
    member k at row i:

    .. math:: r = \sqrt{\max(0, \bar v)}, \qquad
              v_i = \frac{V_k(m_{ki}) - \overline{s_{ki}^2} / S}{\overline{s_{ki}^2}}

    the scatter of members' means in units of the predicted width, with that of finite draws removed.

    "log density across members" is :math:`\tfrac12 \overline{V_k(\log q_k(x_i))}`, in nats a row: to leading order what
    one member loses against their geometric mean.

    V is the unbiased variance over members. The standard errors are those of the means over rows, and for r no less
    than the scatter of :math:`V_k` by finite draws.

    ``draws``: [K, N, S, D] with K ≥ 2 and S ≥ 2, of K members at the same N contexts; ``log_prob``: [K, N], nats, at the
    same rows; ``memory``: bytes that the work may take; ``progress``: called with (rows done, rows). A log-density that
    is not finite fails. Returns one result per column and one of all.

    Raises:
        DataError: shapes that do not agree, or fewer than 2 members or draws.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=500)
    >>> results = seed_sensitivity(rng.normal(size=(3, 500, 99, 1)), np.tile(-(x**2) / 2, (3, 1)), ["x"])
    >>> [result.verdict for result in results]
    ['pass', 'pass']
    """
    y = array("draws", draws, ("K", "N", "S", "D"))
    members, rows, size, targets = y.shape
    q = array("log_prob", log_prob, (members, rows)).astype(np.float64)
    if members < 2 or size < 2:
        raise DataError(f"draws: expected at least 2 members and 2 draws, got {members} and {size}.")
    ratio = np.full((rows, targets), np.nan)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for piece in pieces(rows, members * size * targets, memory, progress):
            part = y[:, piece].astype(np.float64)
            within = part.var(axis=2, ddof=1).mean(axis=0)
            ratio[piece] = part.mean(axis=2).var(axis=0, ddof=1) / within - 1.0 / size
        half = 0.5 * q.var(axis=0, ddof=1)
    # By chance a row's ratio scatters by √(2/(K − 1))/S, the spread of a variance of K means.
    least = math.sqrt(2.0 / (members - 1)) / size
    results = []
    for j, name in enumerate(column_names(columns, targets)):
        v = ratio[:, j]
        r, error = math.nan, math.nan
        if not np.isfinite(v).all():
            r = math.inf
        elif rows >= MINIMUM_ROWS:
            mean, of_mean = float(v.mean()), max(float(v.std(ddof=1)), least) / math.sqrt(rows)
            r = math.sqrt(max(mean, 0.0))
            # √mean moves by less than both √(error) and error/√mean.
            error = min(math.sqrt(of_mean), of_mean / r if r > 0 else math.inf)
        results.append(CheckResult.judge("mean across members", name, r, error, threshold, rows, _MEANS))
    if not np.isfinite(half).all():
        spread, error = math.inf, math.nan
    elif rows < MINIMUM_ROWS:
        spread, error = math.nan, math.nan
    else:
        spread, error = float(half.mean()), float(half.std(ddof=1)) / math.sqrt(rows)
    name = "log density across members"
    results.append(CheckResult.judge(name, None, spread, error, log_prob_threshold, rows, _LOG_PROB))
    return results


_MEANS = "Scatter of the means of members trained from other seeds, over the predicted width; equal members give 0."
_LOG_PROB = (
    "Half the variance over members of the log-density, in nats per row: what one member loses against their mean; "
    "equal members give 0."
)
