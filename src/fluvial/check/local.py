r"""Which contexts are miscalibrated? A regression of what happened on the context tells.

Bins of one context column after another (:func:`~fluvial.check.local_calibration`) miss what happens in a corner. If
the density is exact, whether :math:`u < \alpha` cannot be told from the context, with u the PIT value (Zhao et al.
2021, arXiv:2102.10473; Dey et al. 2022, arXiv:2205.14568): a regression of :math:`\mathbf 1[u < \alpha] - \alpha` on
the context finds nothing, and where it finds something, that is by how much a reported probability is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fluvial.check._arrays import array, column_names, unit_interval
from fluvial.check._learn import (
    PAIRED,
    Learner,
    boosting,
    cross_fit,
    folds,
    hinges,
    learner,
    ridge,
    standardised,
)
from fluvial.check.conditional import LOCAL_THRESHOLD
from fluvial.check.result import CheckResult, worst
from fluvial.errors import DataError

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""The cumulative probabilities at which a regression is made."""

_SHARE = 0.1  # of the rows: the region that is judged
_LEAST = 250


def predicted_deviation(
    pit: np.ndarray,
    context: np.ndarray,
    rng: np.random.Generator,
    *,
    levels: Sequence[float] = LEVELS,
    method: Learner = "quadratic",
) -> np.ndarray:
    r"""Return, for each row, by how much the probability of each level is wrong there, as a regression has it.

    That is an estimate of :math:`P(u < \alpha \mid c) - \alpha`, cross-fitted on five folds: positive at low levels and
    negative at high ones means overconfident, of one sign a shift. For figures of where a density is wrong.

    ``method="quadratic"``: ridge regression on products of two and hinges of the context, in plain numpy;
    ``"boosting"``: gradient-boosted trees of scikit-learn (``pip install 'fluvial[baselines]'``).

    ``pit``: [N, D] in [0, 1], from :func:`~fluvial.check.pit_values`; ``context``: [N, C] of the same rows, of which
    more than twelve columns are replaced by twelve principal axes; ``levels``: A numbers. Returns [N, D, A].

    Raises:
        DataError: shapes that do not agree, values outside [0, 1], a context that is not finite, fewer than 10 rows, or
            an unknown method.
        MissingExtraError: scikit-learn is needed and not installed.
    """
    u = unit_interval("pit", array("pit", pit, ("N", "D")))
    n, targets = u.shape
    values = array("context", context, (n, "C"))
    chosen, grid = learner(method), unit_interval("levels", np.asarray(levels, dtype=np.float64))
    if n < 10:
        raise DataError(f"pit: expected at least 10 rows, got {n}.")
    z = standardised("context", values)
    wanted = _indicators(u, grid).reshape(n, -1)
    features = hinges(z) if chosen == "quadratic" else z

    def by_products(rows: np.ndarray):
        weights = ridge(features[rows], wanted[rows])
        return lambda held_out: features[held_out] @ weights

    def by_trees(rows: np.ndarray):
        trees = [boosting("Regressor", features[rows], column) for column in wanted[rows].T]
        return lambda held_out: np.stack([t.predict(features[held_out]) for t in trees], axis=1)

    found = cross_fit(folds(n, rng), wanted.shape[1], by_products if chosen == "quadratic" else by_trees)
    return found.reshape(n, targets, grid.size)


def local_regression(
    pit: np.ndarray,
    context: np.ndarray,
    columns: Sequence[str],
    rng: np.random.Generator,
    *,
    context_columns: Sequence[str] | None = None,
    method: Learner = "quadratic",
    threshold: float = LOCAL_THRESHOLD,
) -> list[CheckResult]:
    r"""Check, for each column, that no region of context is miscalibrated, wherever it lies.

    A cross-fitted regression (:func:`predicted_deviation`) says for each row and each of A levels α by how much P(u <
    α) is wrong. The tenth of rows (250 at least) for which it says most is the region; there the statistic is the
    observed deviation, in the direction that was predicted:

    .. math:: d = \frac{1}{m} \sum_{i \in \mathrm{region}} \mathrm{sign}(\hat g_i)\,(\mathbf 1[u_i < \alpha] - \alpha),
              \qquad V(d) = 2\,\frac{\alpha (1 - \alpha)}{m}

    The prediction of a row knows nothing of the row itself, so that d of an exact density is 0 on average, and
    choosing the region is paid for; the 2 is for the rows that the folds share. The result is the worst level, beyond
    :math:`\sqrt{16 + 2 \ln A}` standard errors, and its meaning names the context column in which the region differs
    most from the rest. n is the m of the region: a pass needs 200.

    ``context_columns``: C names, for the meaning; their numbers unless given. Other arguments as in
    :func:`predicted_deviation`. Returns one result per column.

    Raises:
        DataError: shapes that do not agree, values outside [0, 1], a context that is not finite, or an unknown method.
        MissingExtraError: scikit-learn is needed and not installed.

    >>> rng = np.random.default_rng(0)
    >>> c, u = rng.uniform(-1, 1, size=(8000, 2)), rng.random((8000, 1))
    >>> local_regression(u, c, ["x"], rng)[0].verdict
    'pass'
    >>> wrong = np.where((c[:, :1] > 0.3) & (c[:, 1:] > 0.3), u**2, u)  # in one corner only
    >>> local_regression(wrong, c, ["x"], rng)[0].verdict
    'fail'
    """
    u = unit_interval("pit", array("pit", pit, ("N", "D")))
    names = column_names(columns, u.shape[1])
    n = len(u)
    values = array("context", context, (n, "C"))
    of_context = column_names(
        [f"column {k}" for k in range(values.shape[1])] if context_columns is None else context_columns,
        values.shape[1],
    )
    if n < _LEAST:
        meaning = (
            "Error of a reported probability where a regression on the context finds most; too few rows."
        )
        return [
            CheckResult.judge("PIT by regression", name, math.nan, math.nan, threshold, n, meaning)
            for name in names
        ]
    found = predicted_deviation(u, values, rng, method=method)
    observed = _indicators(u, np.array(LEVELS))
    size = max(_LEAST, round(_SHARE * n))
    results = []
    for j, name in enumerate(names):
        judged = []
        for a, level in enumerate(LEVELS):
            g = found[:, j, a]
            region = np.argpartition(-np.abs(g), size - 1)[:size]
            d = float((np.sign(g[region]) * observed[region, j, a]).mean())
            error = PAIRED * math.sqrt(level * (1 - level) / size)
            meaning = (
                f"Error of the reported probability {level:g} in the {size} rows where a regression on the context finds "
                f"most{_described(values, region, of_context)}; an exact density gives 0."
            )
            judged.append(
                CheckResult.judge(
                    "PIT by regression", name, d, error, threshold, size, meaning, looks=len(LEVELS)
                )
            )
        results.append(worst(judged))
    return results


def _indicators(u: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return 1[u < α] − α, [N, D, A]."""
    return (u[:, :, None] < levels) - levels


def _described(context: np.ndarray, region: np.ndarray, names: Sequence[str]) -> str:
    """Return in which context column the region differs most from all rows, and between which values it lies."""
    if context.shape[1] == 0 or len(region) == len(context):
        return ""
    inside = context[region]
    spread = context.std(axis=0)
    moved = np.abs(np.median(inside, axis=0) - np.median(context, axis=0))
    narrower = np.abs(np.log((inside.std(axis=0) + 1e-300) / (spread + 1e-300)))
    differs = np.where(
        spread > 0, moved / np.where(spread > 0, spread, 1.0) + 0.5 * np.minimum(narrower, 2), 0.0
    )
    j = int(np.argmax(differs))
    low, high = np.quantile(inside[:, j], [0.1, 0.9])
    return f" (mostly where context {names[j]} is from {low:.4g} to {high:.4g})"
