"""The learning rate, found before training begins by raising it until the loss rises.

A learning-rate range test (Smith 2017, arXiv:1506.01186): steps from the start of training, each with a rate a little
higher than the last. Where the smoothed loss is lowest, Adam has just begun to do harm. The average lags behind the
loss, and a schedule soon leaves its highest rate, so that rate itself is taken, up to a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: The rates tried: from, to, and in how many steps. Fewer than the least tell nothing.
LOWEST, HIGHEST, STEPS, LEAST_STEPS = 1e-5, 1.0, 100, 40
#: At most this share of the budget goes into the search; too small a budget has the fallback instead.
SHARE = 0.05
FALLBACK = 3e-3
#: What is taken of the rate at which the smoothed loss was lowest, and between what bounds.
TAKEN, LEAST, MOST = 1.0, 1e-4, 1e-2
_SMOOTHING = 0.9
#: The first losses, whose spread is the noise of a batch.
_START = 10


def rates(steps: int) -> list[float]:
    """Return the rates to try, in geometric progression.

    >>> [f"{r:.0e}" for r in rates(6)]
    ['1e-05', '1e-04', '1e-03', '1e-02', '1e-01', '1e+00']
    """
    return [LOWEST * (HIGHEST / LOWEST) ** (i / (steps - 1)) for i in range(steps)]


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the exponential average of losses, unbiased at the start."""
    out, mean = [], 0.0
    for i, loss in enumerate(losses):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        out.append(mean / (1 - _SMOOTHING ** (i + 1)))
    return out


def over(losses: Sequence[float]) -> bool:
    """Return whether the loss has risen so far that the sweep has nothing more to show."""
    if not losses or not math.isfinite(losses[-1]):
        return bool(losses)
    first, smooth = losses[:_START], smoothed(losses)
    if len(losses) <= _START or not all(map(math.isfinite, first)):
        return False
    noise = max(first) - min(first)
    return smooth[-1] > max(first) + noise + (max(first) - min(smooth))


def pick(tried: Sequence[float], losses: Sequence[float]) -> float:
    """Return the learning rate that a sweep speaks for; the fallback if it says nothing.

    >>> tried = rates(101)
    >>> f"{pick(tried, [abs(math.log10(r / 1e-3)) for r in tried]):.0e}"
    '2e-03'
    """
    known = [loss for loss in losses if math.isfinite(loss)]
    if len(known) < LEAST_STEPS // 2:
        return FALLBACK
    smooth = smoothed(known)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    return min(max(TAKEN * tried[lowest], LEAST), MOST)
