r"""Draws into numbers: means, covariances, quantiles and credible regions, for many contexts at once.

A posterior is known by S draws at each context, ``[*contexts, S, D]``. Each number here is an estimate from them: a mean
with a relative error of :math:`\sigma/\sqrt S`, a quantile q with one of :math:`\sqrt{q(1-q)/S}` in probability. A
region of level a needs draws outside it, so too few draws are refused rather than answered.

Two kinds of region: **central** intervals have the same probability on either side; intervals of **highest density**
(HDI) are the shortest that hold their level (Chen & Shao 1999, J. Comput. Graph. Stat. 8, 69), and stay sensible
where a density leans on a bound; the shortest of many intervals is a little too short, by some 0.025 in probability
with 300 draws and 0.01 with 1,000. :func:`density_threshold` gives the joint region of highest density.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluvial.errors import DataError

QUANTILES = (0.16, 0.5, 0.84)
LEVELS = (0.68, 0.95)
_ELEMENTS = 2**22  # draws that are sorted at once
_OUTSIDE = 2  # draws that a region must leave out, at least, for its ends to mean something


@dataclass(frozen=True)
class Summary:
    """Summaries of draws at contexts of any shape; Q quantiles, L levels, D targets, in the units of the targets.

    Attributes
    ----------
    mean, std : ndarray
        ``[*contexts, D]``; the standard deviation is that of S − 1.
    covariance : ndarray
        ``[*contexts, D, D]``.
    quantiles : ndarray
        ``[*contexts, Q, D]``, at ``probabilities``.
    central, highest : ndarray
        ``[*contexts, L, 2, D]``: lower and upper ends of the regions of ``levels``.
    probabilities, levels : tuple of float
        What was asked for.
    draws : int
        S.
    """

    mean: np.ndarray
    std: np.ndarray
    covariance: np.ndarray
    quantiles: np.ndarray
    central: np.ndarray
    highest: np.ndarray
    probabilities: tuple[float, ...]
    levels: tuple[float, ...]
    draws: int

    @property
    def correlation(self) -> np.ndarray:
        """The correlation matrix, ``[*contexts, D, D]``; NaN where a target does not vary."""
        scale = self.std[..., :, None] * self.std[..., None, :]
        return np.divide(self.covariance, scale, out=np.full_like(scale, np.nan), where=scale > 0)


def summarise(
    draws: Any, *, probabilities: Sequence[float] = QUANTILES, levels: Sequence[float] = LEVELS
) -> Summary:
    """Summarise draws.

    Parameters
    ----------
    draws
        An array ``[*contexts, S, D]``, or the structured array ``[*contexts, S]`` that
        :meth:`fluvial.Conditional.sample` gives.
    probabilities
        Of the quantiles, between 0 and 1.
    levels
        Of the credible regions, between 0 and 1.

    Raises
    ------
    DataError
        If a draw is not finite, a probability cannot be, or there are too few draws: a level of 0.95 needs 40.

    >>> draws = np.random.default_rng(0).normal([5000.0, 4.0], [50.0, 0.1], size=(3, 4000, 2))
    >>> found = summarise(draws)
    >>> found.mean.shape, found.covariance.shape, found.quantiles.shape, found.highest.shape
    ((3, 2), (3, 2, 2), (3, 3, 2), (3, 2, 2, 2))
    >>> bool(np.allclose(found.central[:, 0, :, 0], [[4950.3, 5049.7]] * 3, atol=4))
    True
    """
    values = plain_draws(draws)
    *contexts, number, targets = values.shape
    probabilities = tuple(float(_probability(p, "probability of a quantile")) for p in probabilities)
    levels = tuple(float(_probability(level, "level of a region")) for level in levels)
    for level in levels:
        if number * (1 - level) < _OUTSIDE - 1e-9:
            least = math.ceil(_OUTSIDE / (1 - level) - 1e-9)
            raise DataError(
                f"summaries: a region of level {level:g} needs at least {least} draws; got {number}. "
                "Draw more, or ask for a lower level."
            )
    if number < 2:
        raise DataError(f"summaries: expected at least 2 draws a context; got {number}.")
    rows = values.reshape(math.prod(contexts), number, targets)
    n = len(rows)
    mean, covariance = np.empty((n, targets)), np.empty((n, targets, targets))
    quantiles = np.empty((n, len(probabilities), targets))
    central, highest = (np.empty((n, len(levels), 2, targets)) for _ in range(2))
    step = max(1, _ELEMENTS // (number * targets))
    for start in range(0, n, step):
        part = slice(start, start + step)
        block = rows[part].astype(np.float64)
        if not np.isfinite(block).all():
            raise DataError(f"summaries: a draw at context {_first_bad(block) + start} is not finite.")
        mean[part] = block.mean(axis=1)
        away = block - mean[part, None]
        covariance[part] = np.einsum("nsi,nsj->nij", away, away, optimize=True) / (number - 1)
        ordered = np.sort(block, axis=1)
        quantiles[part] = _quantiles(ordered, probabilities)
        for i, level in enumerate(levels):
            central[part, i] = _quantiles(ordered, ((1 - level) / 2, (1 + level) / 2))
            highest[part, i] = _shortest(ordered, level)
    std = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))

    def shaped(array: np.ndarray) -> np.ndarray:
        return array.reshape(*contexts, *array.shape[1:])

    return Summary(
        shaped(mean),
        shaped(std),
        shaped(covariance),
        shaped(quantiles),
        shaped(central),
        shaped(highest),
        probabilities,
        levels,
        number,
    )


def plain_draws(draws: Any) -> np.ndarray:
    """Return draws as a plain array ``[*contexts, S, D]``: fields of a structured one become its last axis."""
    values = np.asarray(draws)
    if values.dtype.names is not None:
        values = np.stack([values[name] for name in values.dtype.names], axis=-1)
    if values.ndim < 2 or values.dtype.kind not in "iuf":
        raise DataError(
            f"summaries: expected draws [*contexts, S, D] of numbers; got shape {list(values.shape)} of {values.dtype}."
        )
    return values


def density_threshold(log_prob: np.ndarray, levels: Sequence[float] = LEVELS) -> np.ndarray:
    r"""Return the log-densities above which the joint regions of highest density lie, ``[*contexts, L]``.

    The region of level a is :math:`\{x: \log p(x) \ge t_a\}` with :math:`P(\log p(X) \ge t_a) = a`, so
    :math:`t_a` is the 1 − a quantile of the log-densities of the draws themselves (Hyndman 1996, Am. Stat. 50, 120),
    ``log_prob [*contexts, S]``.
    A point x is in the region if its log-density is at least the threshold.

    >>> z = np.random.default_rng(0).normal(size=100_000)
    >>> t = density_threshold(-0.5 * z**2, levels=[0.6827])
    >>> bool(abs(np.sqrt(-2 * t[0]) - 1) < 0.01)
    True
    """
    values = np.asarray(log_prob, dtype=float)
    if values.ndim < 1 or np.isnan(values).any():
        raise DataError("summaries: expected log-densities [*contexts, S] of draws, none of them NaN.")
    levels = [_probability(level, "level of a region") for level in levels]
    return np.moveaxis(np.quantile(values, [1 - level for level in levels], axis=-1), 0, -1)


def _quantiles(ordered: np.ndarray, probabilities: Sequence[float]) -> np.ndarray:
    """Linear quantiles of draws sorted along axis 1, ``[n, Q, D]``: numpy's default definition."""
    last = ordered.shape[1] - 1
    out = []
    for p in probabilities:
        low = min(int(p * last), max(last - 1, 0))
        share = p * last - low
        out.append(ordered[:, low] * (1 - share) + ordered[:, min(low + 1, last)] * share)
    return np.stack(out, axis=1)


def _shortest(ordered: np.ndarray, level: float) -> np.ndarray:
    """The shortest interval that holds a share of draws sorted along axis 1, ``[n, 2, D]``."""
    number = ordered.shape[1]
    inside = min(math.ceil(level * number) + 1, number)  # draws from end to end: about level × S between them
    width = ordered[:, inside - 1 :] - ordered[:, : number - inside + 1]
    first = width.argmin(axis=1)[:, None]
    return np.concatenate(
        [np.take_along_axis(ordered, first, 1), np.take_along_axis(ordered, first + inside - 1, 1)], axis=1
    )


def _probability(value: float, what: str) -> float:
    if not 0 < value < 1:
        raise DataError(f"summaries: expected a {what} between 0 and 1; got {value}.")
    return value


def _first_bad(block: np.ndarray) -> int:
    return int(np.argmax(~np.isfinite(block).all(axis=(1, 2))))
