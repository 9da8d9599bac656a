r"""Cell by cell: data against draws in every part of context, tails included.

A density may be right on average over context and wrong in one cell of it. Here the rows of each cell are compared with
draws at the very same contexts: for each target, how often it exceeds each of nine values, from the 2 % to the 98 %
quantile of data and draws together. So a tail that is too thin shows in its own, small, standard error, and not only
where it makes the largest distance between two distribution functions.

All rows may serve, those of training too: that a density misses rows it was fitted to is no accident of theirs, and the
look-elsewhere effect over cells, targets and values is taken into account. That it meets them says less, and is said by
the other checks, on rows that it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fluvial.check._arrays import array, column_names
from fluvial.check.result import MINIMUM_ROWS, CheckResult, worst
from fluvial.errors import DataError

CELL_THRESHOLD = 0.05
"""Largest error of a probability P(target > t) in any cell of context."""

QUANTILES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)


@dataclass(frozen=True, eq=False)
class CellDifferences:
    """Data less draws in every cell, for each target where they differ most.

    ``context``: [B, C], one context that stands for the cell; ``rows``: [B]; ``value``: [B, D], the t in P(target > t);
    ``observed`` and ``drawn``: [B, D], that probability in data and draws; ``error``: [B, D], the standard error of the
    difference. Where they differ most is where the difference exceeds two standard errors by most.
    """

    context: np.ndarray
    rows: np.ndarray
    value: np.ndarray
    observed: np.ndarray
    drawn: np.ndarray
    error: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        """``observed`` − ``drawn``, [B, D]."""
        return self.observed - self.drawn


def cell_differences(
    data: Sequence[np.ndarray], draws: Sequence[np.ndarray], context: np.ndarray
) -> CellDifferences:
    """Compare data and draws cell by cell.

    ``data``: for each of B cells its rows [n, D]; ``draws``: for each as many contexts, [m, D]; ``context``: [B, C].

    Raises:
        DataError: shapes that do not agree, a cell without rows or draws, or no cells.

    >>> rng = np.random.default_rng(0)
    >>> cells = cell_differences([rng.normal(size=(500, 1))], [0.7 * rng.normal(size=(4000, 1))], np.zeros((1, 1)))
    >>> bool(abs(cells.difference[0, 0]) > 0.04)
    True
    """
    at = array("context", context, ("B", "C"))
    if not len(at) or not len(at) == len(data) == len(draws):
        raise DataError(
            "cells: expected data, draws and a context for each of B > 0 cells; got "
            f"{len(data)}, {len(draws)}, {len(at)}."
        )
    targets = np.shape(data[0])[-1]
    out = {name: np.empty((len(at), targets)) for name in ("value", "observed", "drawn", "error")}
    for b, (x, y) in enumerate(zip(data, draws, strict=True)):
        x, y = array("data", x, ("n", targets)), array("draws", y, ("m", targets))
        if not len(x) or not len(y):
            raise DataError(
                f"cells: expected rows and draws in every cell; cell {b} has {len(x)} and {len(y)}."
            )
        for j in range(targets):
            found = _largest(np.sort(x[:, j]), np.sort(y[:, j]))
            for values, value in zip(out.values(), found, strict=True):
                values[b, j] = value
    return CellDifferences(at, np.array([len(x) for x in data]), **out)


def cells(
    differences: CellDifferences,
    columns: Sequence[str],
    context_columns: Sequence[str],
    *,
    threshold: float = CELL_THRESHOLD,
) -> list[CheckResult]:
    """Check, for each column, that no cell of context has a tail, or any part, that is drawn too rarely or too often.

    The statistic is P(target > t) in the data less that in the draws, in the worst cell and at the worst of nine t;
    with B cells and D targets it fails only beyond sqrt(16 + 2 ln 9BD) standard errors.

    >>> rng = np.random.default_rng(0)
    >>> data = [np.where(rng.random((2000, 1)) < tail, 30.0, 10.0) + rng.normal(size=(2000, 1)) for tail in (0.1, 0.16)]
    >>> draws = [np.where(rng.random((9000, 1)) < 0.1, 30.0, 10.0) + rng.normal(size=(9000, 1)) for _ in range(2)]
    >>> result = cells(cell_differences(data, draws, np.array([[0.1], [0.2]])), ["M1"], ["Z"])[0]
    >>> result.verdict, "Z = 0.2" in result.meaning
    ('fail', True)
    """
    names = column_names(columns, differences.value.shape[1])
    looks = len(QUANTILES) * differences.value.size
    results = []
    for j, name in enumerate(names):
        judged = []
        for b, n in enumerate(differences.rows):
            where = ", ".join(
                f"{c} = {v:.4g}"
                for c, v in zip(list(context_columns)[:6], differences.context[b][:6], strict=True)
            )
            meaning = (
                f"Share of rows above a value less the share of draws there, in the worst of {len(differences.rows)} "
                f"cells of context: P({name} > {differences.value[b, j]:.4g}) is {differences.observed[b, j]:.3f} in "
                f"{n:,} rows and {differences.drawn[b, j]:.3f} in the draws{f' around {where}' if where else ''}; "
                "an exact density gives 0."
            )
            error = differences.error[b, j] if n >= MINIMUM_ROWS else math.nan
            judged.append(
                CheckResult.judge(
                    "cells of context",
                    name,
                    differences.difference[b, j],
                    error,
                    threshold,
                    int(n),
                    meaning,
                    looks=looks,
                )
            )
        results.append(worst(judged))
    return results


def _largest(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """Return t, P(x > t), P(y > t) and the standard error of their difference, where it most exceeds two of them."""
    pool = np.concatenate([x, y[:: max(1, len(y) // len(x))]])
    t = np.quantile(pool, QUANTILES, method="lower")
    # Nothing exceeds the largest value, which at an atom is many t: the next below tells the atom's share.
    below = pool[pool < pool.max()]
    t = np.minimum(t, below.max()) if len(below) else t
    n, m = len(x), len(y)
    above_x, above_y = (n - np.searchsorted(x, t, "right")) / n, (m - np.searchsorted(y, t, "right")) / m
    # One row more on either side: no error is 0, not even where all rows lie on one side.
    pooled = (above_x * n + above_y * m + 1) / (n + m + 2)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    k = int(np.argmax(np.abs(above_x - above_y) - 2 * error))
    return float(t[k]), float(above_x[k]), float(above_y[k]), float(error[k])
