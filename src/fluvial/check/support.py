"""Support and normalisation: no draw where nothing can be, and a total probability of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fluvial.check._arrays import array, column_names, pieces
from fluvial.check.result import CheckResult, worst
from fluvial.errors import DataError

NORMALISATION_THRESHOLD = 0.01
"""Largest error allowed in the total probability of a density."""


def outside_support(
    draws: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    columns: Sequence[str],
    levels: Sequence[Sequence[float]] | None = None,
) -> list[CheckResult]:
    """Check, for each column, that no draw is where the column cannot be, or not finite.

    The statistic is the fraction of draws that are neither strictly between the bounds nor exactly one of the
    column's levels, or are NaN or infinite; the threshold is 0. It is counted, not estimated: one such draw
    fails, and its standard error is 0.

    ``draws``: [..., D]; ``lower``, ``upper``: [D], in the columns' units, −inf and inf where there is no
    bound; ``levels``: for each column its atoms, or all values of an integer column (whose bounds are then
    ``inf`` and ``-inf``: nothing lies between), none unless given. Returns one result per column, with n the number
    of draws; "insufficient data" if there are none.

    Raises:
        DataError: shapes that do not agree, a bound that is NaN, or not one name (or list of levels) per column.

    >>> results = outside_support(np.array([[1.0, 0.5], [-2.0, 0.7]]), [0, 0], [np.inf, 1], ["Mass_0", "q"])
    >>> [(result.statistic, result.verdict) for result in results]
    [(0.5, 'fail'), (0.0, 'pass')]
    """
    values = np.asarray(draws)
    if values.ndim < 2:
        raise DataError(f"draws: expected shape [..., D], got {list(values.shape)}.")
    targets = values.shape[-1]
    values = array("draws", values.reshape(-1, targets), ("N", "D"))
    low, high = array("lower", lower, (targets,)), array("upper", upper, (targets,))
    if np.isnan(low).any() or np.isnan(high).any():
        raise DataError("lower, upper: expected numbers or infinities, got NaN.")
    names = column_names(columns, targets)
    if levels is not None and len(levels) != targets:
        raise DataError(f"levels: expected {targets} lists, one per target, got {len(levels)}.")
    inside = np.zeros(targets, dtype=np.int64)
    for piece in pieces(len(values), targets):
        part = values[piece]
        possible = (part > low) & (part < high) & np.isfinite(part)
        for j, exact in enumerate(levels or ()):
            possible[:, j] |= np.isin(part[:, j], np.asarray(exact, dtype=np.float64))
        inside += possible.sum(axis=0)
    n = len(values)
    fraction = (n - inside) / n if n else np.full(targets, np.nan)
    meaning = "Fraction of draws where the column cannot be, or not finite; an exact density gives 0."
    return [
        CheckResult.judge("outside support", name, f, 0.0, 0.0, n, meaning)
        for name, f in zip(names, fraction, strict=True)
    ]


def normalisation(
    integrals: np.ndarray, errors: np.ndarray, *, threshold: float = NORMALISATION_THRESHOLD
) -> CheckResult:
    """Check that the density integrates to one over its support, at each of K contexts.

    Each integral is judged by |∫ p dx − 1| and its own error; the result is the one of the worst verdict,
    and among those the one furthest from 1. An integral that is not finite fails.

    ``integrals``: [K], the total probabilities; ``errors``: [K], their standard errors (or bounds on the
    error of the quadrature), without unit. Returns one result, with n = K.

    Raises:
        DataError: shapes that do not agree, or errors that are negative or NaN.

    >>> print(normalisation(np.array([0.999, 1.002]), np.array([1e-4, 1e-4])))
    ✓ normalisation: 0.002 ± 0.0001 (threshold 0.01, n = 2): pass
    """
    values = array("integrals", integrals, ("K",))
    error = array("errors", errors, values.shape)
    if not (error >= 0.0).all():
        raise DataError("errors: expected numbers ≥ 0, one per integral; got one that is negative or NaN.")
    meaning = "Largest difference from 1 of the total probability, over contexts; an exact density gives 0."
    deviations = np.where(np.isfinite(values), np.abs(values - 1.0), np.inf)
    n = len(values)
    results = [
        CheckResult.judge("normalisation", None, d, e, threshold, n, meaning, looks=n)
        for d, e in zip(deviations, error, strict=True)
    ]
    return (
        worst(results)
        if results
        else CheckResult.judge("normalisation", None, np.nan, np.nan, threshold, 0, meaning)
    )
