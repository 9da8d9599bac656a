"""Tails: does the truth fall beyond the extreme quantiles of its draws as often as it should?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fluvial.check._arrays import array, column_names, unit_interval
from fluvial.check.result import MINIMUM_ROWS, CheckResult
from fluvial.errors import DataError

TAIL_THRESHOLD = 0.5
"""A tail with half as much probability again as it should have, or half of it."""


def tail_rates(
    pit: np.ndarray, columns: Sequence[str], *, tail: float = 0.01, threshold: float = TAIL_THRESHOLD
) -> list[CheckResult]:
    r"""Check, for each column, that the truth falls in either tail of its draws as often as it should.

    Of n rows, k have a PIT value below t = ``tail`` (the lower tail), or above 1 − t (the upper). The statistic is
    the ratio of this rate to the one promised, :math:`k/(n t)`; an overconfident density gives more than 1. Its
    standard error is :math:`\sqrt{e + 3}/e` with :math:`e = n t` the expected number; the 3 makes up for the longer
    upper tail of a Poisson number, so that four of them are not exceeded by chance more often than of a normal one. A
    pass needs about 19 expected rows: 1,900 at the default t of 0.01.

    ``pit``: [N, D] in [0, 1], from :func:`~fluvial.check.pit_values`, with S + 1 ≥ 1/t or the tail is not resolved (an
    exact density gives 1 all the same); ``tail``: between 0 and 1/2. Returns two results per column.

    Raises:
        DataError: values outside [0, 1], a ``tail`` out of range, or not one name per column.

    >>> u = np.random.default_rng(0).random((5000, 1))
    >>> [r.verdict for r in tail_rates(u, ["x"])]
    ['pass', 'pass']
    """
    u = unit_interval("pit", array("pit", pit, ("N", "D")))
    if not 0.0 < tail < 0.5:
        raise DataError(f"tail: expected a probability between 0 and 0.5, got {tail:g}.")
    n = len(u)
    expected = n * tail
    error = math.sqrt(expected + 3.0) / expected if n >= MINIMUM_ROWS else math.nan
    results = []
    for j, name in enumerate(column_names(columns, u.shape[1])):
        for side, beyond in (("lower", u[:, j] < tail), ("upper", u[:, j] > 1.0 - tail)):
            meaning = (
                f"How often the truth is in the {side} {100 * tail:g} % of its draws, over how often it should; "
                "an exact density gives 1, an overconfident one more."
            )
            ratio = float(beyond.mean()) / tail if n else math.nan
            results.append(
                CheckResult.judge(f"{side} tail", name, ratio, error, threshold, n, meaning, exact=1.0)
            )
    return results
