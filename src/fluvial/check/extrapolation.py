"""Extrapolation: which contexts lie outside the training set, where a density is a guess?"""

from __future__ import annotations

import math

import numpy as np

from fluvial.check._arrays import Progress, array, finite, pieces
from fluvial.check.result import MINIMUM_ROWS, CheckResult, verdict_for
from fluvial.errors import DataError

EXTRAPOLATION_THRESHOLD = 0.02
"""Largest share of contexts outside the training set, beyond the share of training rows that count as outside."""

_REFERENCES = 20_000  # training rows that neighbours are looked for among
_JUDGED = 2_000  # training rows whose own distances make the scale


def neighbour_ratio(
    context: np.ndarray,
    training: np.ndarray,
    *,
    neighbours: int = 5,
    alarm: float = 0.01,
    memory: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    r"""Return how far each context is from the training set: above 1 lies outside, with a stated rate of false alarms.

    .. math:: r = \frac{d_k(c)}{q_{1 - a}(d_k)}

    with :math:`d_k(c)` the distance to the k-th nearest training row, each column in units of its standard deviation,
    and :math:`q_{1 - a}` the quantile of the same distance of training rows themselves, left out in turn: a training
    row is beyond with probability a = ``alarm``, and so is a new context of the same distribution (a conformal bound:
    Angelopoulos & Bates 2021, arXiv:2107.07511, section 4.4). Up to 20,000 training rows are looked at, and 2,000
    make the scale.

    On a grid, where training rows have many equals, the scale is 0: a context on the grid gets 0, one off it infinity.

    ``context``: [N, C]; ``training``: [M, C], the same columns in the same units; ``memory``: bytes that the work may
    take; ``progress``: called with (rows done, rows). Returns [N].

    Raises:
        DataError: shapes that do not agree, values that are not finite, or fewer than ``neighbours`` + 2 training rows.

    >>> rng = np.random.default_rng(0)
    >>> (neighbour_ratio(np.array([[0.0], [9.0]]), rng.normal(size=(3000, 1))) > 1).tolist()
    [False, True]
    """
    known = finite("training", array("training", training, ("M", "C"))).astype(np.float64)
    asked = finite("context", array("context", context, ("N", known.shape[1]))).astype(np.float64)
    if neighbours < 1 or not 0.0 < alarm < 1.0:
        raise DataError(
            f"neighbours, alarm: expected at least 1, and a probability; got {neighbours} and {alarm:g}."
        )
    if len(known) < neighbours + 2:
        raise DataError(f"training: expected at least {neighbours + 2} rows, got {len(known)}.")
    # A fixed permutation: tables are often ordered. The rows that are judged come first, and are among the neighbours.
    known = known[np.random.default_rng(0).permutation(len(known))[:_REFERENCES]]
    mean, scale = known.mean(axis=0), known.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    known, asked = (known - mean) / scale, (asked - mean) / scale
    # A row is its own nearest neighbour: one more stands for leaving it out.
    own = np.sort(_nearest(known[:_JUDGED], known, neighbours + 1, memory, None))
    limit = own[min(len(own) - 1, math.ceil((1.0 - alarm) * (len(own) + 1)) - 1)]
    far = _nearest(asked, known, neighbours, memory, progress)
    # Products of differences are rounded: below this, two rows are equal.
    tiny = 1e-6
    if limit <= tiny:
        return np.where(far <= tiny, 0.0, math.inf)
    return far / limit


def extrapolation(
    context: np.ndarray,
    training: np.ndarray,
    *,
    neighbours: int = 5,
    alarm: float = 0.01,
    threshold: float = EXTRAPOLATION_THRESHOLD,
    memory: int | None = None,
    progress: Progress | None = None,
) -> CheckResult:
    r"""Check that contexts lie in the training set: that no more of them are outside than of training rows themselves.

    The statistic is the share of contexts whose :func:`neighbour_ratio` is above 1, which is ``alarm`` = a for
    contexts of the same distribution; its standard error is :math:`\sqrt{(a\,(1 - a) + 3/n)\,(1/n + 1/m)}`, as the
    limit is itself an estimate from m training rows. Fewer outside than that never fail. Arguments as in
    :func:`neighbour_ratio`.

    Raises:
        DataError: shapes that do not agree, values that are not finite, or fewer than ``neighbours`` + 2 training rows.

    >>> rng = np.random.default_rng(0)
    >>> training = rng.normal(size=(3000, 2))
    >>> [extrapolation(rng.normal(m, 1, size=(1000, 2)), training).verdict for m in (0, 3)]
    ['pass', 'fail']
    """
    ratio = neighbour_ratio(
        context, training, neighbours=neighbours, alarm=alarm, memory=memory, progress=progress
    )
    n = ratio.size
    meaning = f"Share of contexts outside the training set; contexts of the same distribution give {alarm:g}."
    outside, error = math.nan, math.nan
    if n >= MINIMUM_ROWS:
        outside = float((ratio > 1.0).mean())
        judged = min(len(training), _JUDGED)
        error = math.sqrt((alarm * (1.0 - alarm) + 3.0 / n) * (1.0 / n + 1.0 / judged))
    verdict = verdict_for(max(outside, alarm), error, threshold, exact=alarm)
    return CheckResult("extrapolation", None, outside, error, float(threshold), n, verdict, meaning, alarm)


def _nearest(
    rows: np.ndarray, known: np.ndarray, k: int, memory: int | None, progress: Progress | None
) -> np.ndarray:
    """Return the distance of each row to the k-th nearest known row."""
    out = np.empty(len(rows))
    norms = (known**2).sum(axis=1)
    for piece in pieces(len(rows), len(known), memory, progress):
        part = rows[piece]
        square = norms - 2.0 * (part @ known.T)
        square += (part**2).sum(axis=1)[:, None]
        out[piece] = np.sqrt(np.maximum(np.partition(square, k - 1, axis=1)[:, k - 1], 0.0))
    return out
