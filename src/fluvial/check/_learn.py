"""Small learners for checks that learn: features of rows, ridge and logistic regression, each cross-fitted.

Cross-fitted: the rows are cut into folds, and what is said of a row comes from the rows of the other folds. So it is
independent of the row's own outcome, and a mean over rows is unbiased. Its variance is larger than of independent
rows, as each pair of folds enters twice, once to learn and once to judge: twice as large for a linear rule, and that
bounds the others seen (Nadeau & Bengio 2003, Machine Learning 52, 239).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from fluvial.check._arrays import finite
from fluvial.errors import DataError
from fluvial.extras import optional_module

Learner = Literal["quadratic", "boosting"]

FOLDS = 5
PAIRED = math.sqrt(2.0)
"""By how much the standard error of a cross-fitted mean exceeds that of independent rows."""

_AXES = 12  # of the context, or of the rows: beyond these, principal axes are taken
_KNOTS = 6
_FURTHEST = 4.0  # standard deviations: rows further out have no more leverage than these


def learner(method: str) -> Learner:
    """Return ``method``, one that there is.

    Raises:
        DataError: another word.
    """
    for known in get_args(Learner):
        if method == known:
            return known
    raise DataError(f"method: expected one of {', '.join(get_args(Learner))}, got {method!r}.")


def standardised(what: str, values: np.ndarray) -> np.ndarray:
    """Return rows with columns of mean 0 and standard deviation 1, far values pulled in, and twelve axes at most.

    Columns without spread are left out. More than twelve are replaced by their twelve first principal axes.
    """
    z = finite(what, values).astype(np.float64)
    z = z - z.mean(axis=0)
    scale = z.std(axis=0)
    z = np.clip(z[:, scale > 0] / scale[scale > 0], -_FURTHEST, _FURTHEST)
    if z.shape[1] > _AXES:
        few = z[np.random.default_rng(0).permutation(len(z))[:4000]]
        axes = np.linalg.svd(few - few.mean(axis=0), full_matrices=False)[2][:_AXES]
        z = z @ axes.T
        z = np.clip(z / np.where(z.std(axis=0) > 0, z.std(axis=0), 1.0), -_FURTHEST, _FURTHEST)
    return z


def quadratic(z: np.ndarray) -> np.ndarray:
    """Return 1, the columns, and all their products of two: [N, 1 + F + F (F + 1)/2]."""
    i, j = np.triu_indices(z.shape[1])
    return np.concatenate([np.ones((len(z), 1)), z, z[:, i] * z[:, j]], axis=1)


def hinges(z: np.ndarray) -> np.ndarray:
    """Return the quadratic features, and for each column hinges max(0, z − t) at knots among its quantiles."""
    parts = [quadratic(z)]
    for column in z.T:
        knots = np.unique(np.quantile(column, np.linspace(0, 1, _KNOTS + 2)[1:-1]))
        parts.append(np.maximum(column[:, None] - knots, 0.0))
    return np.concatenate(parts, axis=1)


def folds(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return the fold of each row, [N], of sizes that differ by one at most."""
    return rng.permutation(np.arange(rows) % FOLDS)


def cross_fit(
    fold: np.ndarray,
    outputs: int,
    fit: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]],
) -> np.ndarray:
    """Return for each row what is learned from the other folds, [N, outputs].

    ``fit(rows)`` learns from some rows and returns what predicts at others.
    """
    out = np.empty((len(fold), outputs))
    for k in range(FOLDS):
        held_out = np.flatnonzero(fold == k)
        if held_out.size:
            out[held_out] = fit(np.flatnonzero(fold != k))(held_out)
    return out


def ridge(features: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the weights [F, A] of a ridge regression, its penalty chosen by generalised cross-validation.

    ``features``: [N, F], the first of which is constant and is not penalised; ``wanted``: [N, A].
    """
    centre, middle = features[:, 1:].mean(axis=0), wanted.mean(axis=0)
    x = features[:, 1:] - centre
    scale = x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    x /= scale
    values, axes = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0.0)
    y = wanted - middle
    along = axes.T @ (x.T @ y)
    n, total = len(x), float((y**2).sum())
    best, weights = math.inf, np.zeros((x.shape[1], y.shape[1]))
    for penalty in n * 10.0 ** np.arange(-3.0, 1.5, 0.5):
        shrunk = along / (values + penalty)[:, None]
        left = total - float((2 * along * shrunk - values[:, None] * shrunk**2).sum())
        free = float((values / (values + penalty)).sum())
        score = left / max(n - 1 - free, 1.0) ** 2
        if score < best:
            best, weights = score, axes @ shrunk
    weights = weights / scale[:, None]
    return np.concatenate([(middle - centre @ weights)[None], weights])


def logistic(features: np.ndarray, label: np.ndarray, steps: int = 12) -> np.ndarray:
    """Return the weights [F] of a logistic regression by Newton's method, with a light ridge.

    ``features``: [N, F], the first of which is constant and is not penalised; ``label``: [N], 0 or 1.
    """
    scale = features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    x = features / scale
    penalty = np.full(x.shape[1], 1e-3 * len(x))
    penalty[0] = 1e-9 * len(x)
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ weights, -30.0, 30.0)))
        slope = x.T @ (p - label) + penalty * weights
        bend = (x * np.maximum(p * (1.0 - p), 1e-4)[:, None]).T @ x
        change = np.linalg.solve(bend + np.diag(penalty), slope)
        weights -= change
        if np.abs(change).max() < 1e-4:
            break
    return weights / scale


def boosting(kind: Literal["Classifier", "Regressor"], features: np.ndarray, wanted: np.ndarray):
    """Return gradient-boosted trees of scikit-learn, fitted, with a fixed seed.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    module = optional_module("sklearn.ensemble", "baselines")
    trees = getattr(module, f"HistGradientBoosting{kind}")(
        max_iter=60, learning_rate=0.08, max_leaf_nodes=8, min_samples_leaf=40, random_state=0
    )
    return trees.fit(features, wanted)
