r"""Classifier two-sample tests: can a classifier tell draws of the density from the truth?

If it cannot, on rows that it did not learn from, the two are alike as far as it can see (Lopez-Paz & Oquab 2017,
arXiv:1610.06545; local: Linhart, Gramfort & Rodrigues 2023, arXiv:2306.03580). The context is given to the classifier
beside the targets, so that a density that is right only on average is found out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fluvial.check._arrays import array, finite
from fluvial.check._learn import (
    PAIRED,
    Learner,
    boosting,
    cross_fit,
    folds,
    learner,
    logistic,
    quadratic,
    standardised,
)
from fluvial.check.conditional import ContextBin, context_slices
from fluvial.check.result import MINIMUM_ROWS, CheckResult, worst
from fluvial.errors import DataError

CLASSIFIER_THRESHOLD = 0.03
"""Accuracy or area above one half: with one target, that of a normal 12 % too narrow."""

LOCAL_CLASSIFIER_THRESHOLD = 0.06
"""Accuracy above one half in a part of context: with one target, that of a normal shifted by 0.3 standard deviations."""


def classifier_test(
    truth: np.ndarray,
    draws: np.ndarray,
    context: np.ndarray | None,
    rng: np.random.Generator,
    *,
    method: Learner = "quadratic",
    threshold: float = CLASSIFIER_THRESHOLD,
) -> list[CheckResult]:
    r"""Check that a classifier cannot tell draws from the truth.

    Two results. *Accuracy*: the share of rows and draws that are told rightly, 1/2 if the density is exact, with the
    binomial standard error :math:`\sqrt2 / (2\sqrt{2n})`. *AUC*: the probability that a draw seems more of a draw
    than a row of truth does, 1/2 if the density is exact, with the standard error :math:`\sqrt2\,\sqrt{(2n +
    1)/(12\,n^2)}` (Mann & Whitney 1947). The classifier is cross-fitted on five folds of rows, a row and its draw in
    the same one, so that it never judges what it learned from; the :math:`\sqrt2` is for the rows that its folds
    share. A pass needs about 1,100 rows.

    ``method="quadratic"``: logistic regression on all products of two of context and targets, in plain numpy: it sees
    means, widths and correlations and how they change with context, and little beyond. ``"boosting"``:
    gradient-boosted trees of scikit-learn (``pip install 'fluvial[baselines]'``), which see any shape, given rows
    enough.

    ``truth``: [N, D]; ``draws``: [N, D], one draw at the context of each row; ``context``: [N, C] or ``None``, any units.
    More than twelve columns of either are replaced by twelve principal axes.

    Raises:
        DataError: shapes that do not agree, values that are not finite, or an unknown method.
        MissingExtraError: scikit-learn is needed and not installed.

    >>> rng = np.random.default_rng(0)
    >>> truth, draws = rng.normal(size=(4000, 2)), 0.8 * rng.normal(size=(4000, 2))
    >>> [result.verdict for result in classifier_test(truth, draws, None, rng)]
    ['fail', 'fail']
    """
    score = _scores(truth, draws, context, rng, method)
    n = len(score) // 2
    both = "Share of rows and draws that a classifier tells apart rightly; an exact density gives 0.5."
    area = (
        "Probability that a draw seems more like a draw to a classifier than a row of truth does; an exact density "
        "gives 0.5."
    )
    if n < MINIMUM_ROWS:
        accuracy = of_accuracy = auc = of_auc = math.nan
    else:
        right = np.concatenate([score[:n] < 0, score[n:] >= 0])
        accuracy, of_accuracy = float(right.mean()), PAIRED * 0.5 / math.sqrt(2 * n)
        auc, of_auc = _area(score[:n], score[n:]), PAIRED * math.sqrt((2 * n + 1) / (12.0 * n * n))
    return [
        CheckResult.judge(
            f"classifier accuracy ({method})", None, accuracy, of_accuracy, threshold, n, both, exact=0.5
        ),
        CheckResult.judge(f"classifier AUC ({method})", None, auc, of_auc, threshold, n, area, exact=0.5),
    ]


def local_classifier_test(
    truth: np.ndarray,
    draws: np.ndarray,
    context: np.ndarray,
    rng: np.random.Generator,
    bins: Sequence[ContextBin] | None = None,
    *,
    method: Learner = "quadratic",
    threshold: float = LOCAL_CLASSIFIER_THRESHOLD,
) -> CheckResult:
    r"""Check that a classifier cannot tell draws from the truth in any part of context.

    One classifier learns from all rows, as in :func:`classifier_test`; its accuracy is taken in each part, with the
    standard error :math:`\sqrt2/(2\sqrt{2n})` of the n rows there; a pass needs 280 in each. The result is the worst
    part; with B parts it fails only beyond :math:`\sqrt{16 + 2 \ln B}` standard errors.

    ``bins``: :func:`~fluvial.check.context_slices` of the context unless given. Other arguments as in
    :func:`classifier_test`.

    Raises:
        DataError: shapes that do not agree, values that are not finite, an unknown method, or no bins.
        MissingExtraError: scikit-learn is needed and not installed.

    >>> rng = np.random.default_rng(0)
    >>> c = rng.normal(size=(4000, 1))
    >>> truth, draws = rng.normal(size=(4000, 1)), rng.normal(0.5 * c, 1)  # right on average
    >>> local_classifier_test(truth, draws, c, rng).verdict
    'fail'
    """
    score = _scores(truth, draws, context, rng, method)
    n = len(score) // 2
    right = ((score[:n] < 0).astype(float) + (score[n:] >= 0)) / 2
    values = array("context", context, (n, "C"))
    chosen = (context_slices(values) if n else []) if bins is None else list(bins)
    if bins is not None and not chosen:
        raise DataError("bins: expected at least one part of context, got none.")
    results = []
    for b in chosen:
        size = b.rows.size
        where = ", ".join(f"{v:.4g}" for v in b.value[:6]) + (", …" if b.value.size > 6 else "")
        meaning = (
            "Share of rows and draws that a classifier tells apart rightly, in any part of context (worst of "
            f"{len(chosen)}, around context ({where})); an exact density gives 0.5."
        )
        accuracy = float(right[b.rows].mean()) if size >= MINIMUM_ROWS else math.nan
        error = PAIRED * 0.5 / math.sqrt(2 * size) if size >= MINIMUM_ROWS else math.nan
        results.append(
            CheckResult.judge(
                f"classifier across context ({method})",
                None,
                accuracy,
                error,
                threshold,
                size,
                meaning,
                exact=0.5,
                looks=len(chosen),
            )
        )
    if results:
        return worst(results)
    return CheckResult.judge(
        f"classifier across context ({method})", None, math.nan, math.nan, threshold, n, "No rows.", exact=0.5
    )


def _scores(
    truth: np.ndarray, draws: np.ndarray, context: np.ndarray | None, rng: np.random.Generator, method: str
) -> np.ndarray:
    """Return how much more each of the rows, then of the draws, seems to be a draw: log-odds [2 N], cross-fitted."""
    chosen = learner(method)
    x = finite("truth", array("truth", truth, ("N", "D")))
    y = finite("draws", array("draws", draws, x.shape))
    n = len(x)
    c = np.empty((n, 0)) if context is None else finite("context", array("context", context, (n, "C")))
    if n < MINIMUM_ROWS:
        return np.zeros(2 * n)
    z = standardised("truth", np.concatenate([x, y]))
    around = standardised("context", c)
    z = np.concatenate([np.tile(around, (2, 1)), z], axis=1)
    label = np.repeat([0.0, 1.0], n)
    fold = np.tile(folds(n, rng), 2)
    features = quadratic(z) if chosen == "quadratic" else z

    def by_products(rows: np.ndarray):
        weights = logistic(features[rows], label[rows])
        return lambda held_out: (features[held_out] @ weights)[:, None]

    def by_trees(rows: np.ndarray):
        trees = boosting("Classifier", features[rows], label[rows])
        return lambda held_out: trees.decision_function(features[held_out])[:, None]

    return cross_fit(fold, 1, by_products if chosen == "quadratic" else by_trees)[:, 0]


def _area(of_truth: np.ndarray, of_draws: np.ndarray) -> float:
    """Return P(of_draws > of_truth) + P(equal)/2."""
    ordered = np.sort(of_truth)
    below = np.searchsorted(ordered, of_draws, "left") + np.searchsorted(ordered, of_draws, "right")
    return float(below.mean()) / (2 * len(ordered))
