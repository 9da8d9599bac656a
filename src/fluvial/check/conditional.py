"""Calibration across context: a density may be right on average and wrong everywhere.

A density that ignores its context can be perfectly calibrated over the whole test set (Zhao et al. 2021,
arXiv:2102.10473). So calibration is looked at in parts of context as well, and the worst part is judged with
the look-elsewhere effect taken into account.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fluvial.check._arrays import array, column_names, finite, unit_interval
from fluvial.check.calibration import uniform_distance
from fluvial.check.result import CheckResult, worst
from fluvial.errors import DataError

LOCAL_THRESHOLD = 0.1
"""Largest error of a probability in a part of context: a normal shifted by 0.25 standard deviations."""

_NUMBERS_LOOKED_AT = 4_000_000  # of the context, when it is continuous: rows beyond add time and no knowledge
_CANDIDATES = 2_000  # rows among which the spread-out centres are chosen
_ROWS_PER_CELL = 10  # a context of fewer distinct values than rows/10 counts as a grid


@dataclass(frozen=True, eq=False)
class ContextBin:
    """A part of context: the rows in it, and one context that stands for them.

    ``value``: [C], in the columns' units; ``rows``: the indices of its rows, ascending.
    """

    value: np.ndarray
    rows: np.ndarray


def representative_contexts(context: np.ndarray, k: int = 6, min_rows: int = 400) -> list[ContextBin]:
    """Return up to ``k`` parts of context, spread over all of it, with at least ``min_rows`` rows each.

    *On a grid* (at most one distinct context in 10 rows, and a cell of ``min_rows`` rows): the most
    populated cell, then again and again the cell furthest from those chosen — so the corners come first —
    with each column's values numbered in order, for distances. A bin holds all rows of its cell.

    *Otherwise*: balls of the ``min_rows`` rows nearest to centres that are spread in the same way, starting
    from the middle, with each column replaced by its ranks (so units and tails do not matter); ``value`` is
    the row of the ball closest to its median, so it is a context that occurs. Balls may overlap. They are
    looked for among 4 million numbers at most, and hold all rows if there are no more than ``min_rows``.

    No randomness: the same context gives the same bins. With no context (C = 0) there is one bin, of all
    rows.

    ``context``: [N, C]. Returns the bins in ascending order of ``value``.

    Raises:
        DataError: a shape that is not [N, C], a context that is not finite, no rows, or ``k`` or
        ``min_rows`` below 1.

    >>> Z, alpha = np.repeat([0.001, 0.002, 0.03], 400), np.tile([0.5, 5.0], 600)
    >>> [b.value.tolist() for b in representative_contexts(np.stack([Z, alpha], axis=1), k=4, min_rows=100)]
    [[0.001, 0.5], [0.001, 5.0], [0.03, 0.5], [0.03, 5.0]]
    """
    values = _context(context, min_rows)
    if k < 1:
        raise DataError(f"k: expected at least 1 bin, got {k}.")
    if values.shape[1] == 0:
        return [_whole(values)]
    bins = _cells(values, k, min_rows) or _balls(values, k, min_rows)
    return sorted(bins, key=lambda b: tuple(b.value.tolist()))


def context_slices(context: np.ndarray, slices: int = 4, min_rows: int = 400) -> list[ContextBin]:
    """Return slices of context: the rows cut along each context column in turn, into about equal parts.

    A slice has at least ``min_rows`` rows, so there are fewer slices than ``slices`` where there are few
    rows; rows of one value stay together. All rows are in one slice of each column that varies; a column
    that cannot be cut gives none, and if none can, there is one bin of all rows. ``value`` is the median of
    each column in the slice, from some 2,000 of its rows if it has more.

    ``context``: [N, C]. Returns at most C · ``slices`` bins, column by column, ascending.

    Raises:
        DataError: a shape that is not [N, C], a context that is not finite, no rows, or ``slices`` or
        ``min_rows`` below 1.

    >>> bins = context_slices(np.arange(1000.0)[:, None], slices=4, min_rows=100)
    >>> [(float(b.value[0]), len(b.rows)) for b in bins]
    [(124.0, 250), (374.0, 250), (624.0, 250), (874.0, 250)]
    """
    values = _context(context, min_rows)
    if slices < 1:
        raise DataError(f"slices: expected at least 1, got {slices}.")
    parts = [rows for column in values.T for rows in _cut(column, slices, min_rows)]
    return [ContextBin(_median(values[rows]), rows) for rows in parts] or [_whole(values)]


def local_calibration(
    pit: np.ndarray,
    context: np.ndarray,
    columns: Sequence[str],
    bins: Sequence[ContextBin] | None = None,
    *,
    threshold: float = LOCAL_THRESHOLD,
) -> list[CheckResult]:
    """Check, for each column, that its PIT values are uniform in every part of context.

    In each bin the statistic is that of :func:`~fluvial.check.pit`, the largest error of a reported
    probability P(target < t), chance removed; the result is the worst bin, by verdict and then by size, and
    n its rows. With B bins it fails only beyond sqrt(16 + 2 ln B) standard errors. The threshold is wider
    than that of the whole, 0.1, because a part has fewer rows: a pass needs 100 in every bin, and 400 make
    it sure for an exact density.

    ``pit``: [N, D] in [0, 1], from :func:`~fluvial.check.pit_values`; ``context``: [N, C], of the same rows;
    ``bins``: :func:`context_slices` of the context unless given (give them if the context is an array such
    as a spectrum). Returns one result per column.

    Raises:
        DataError: shapes that do not agree, PIT values outside [0, 1], bins with rows that are not there, or
        none.

    >>> rng = np.random.default_rng(0)
    >>> c = rng.normal(size=(4000, 1))
    >>> u = rng.random((4000, 1))
    >>> local_calibration(u, c, ["x"])[0].verdict
    'pass'
    >>> local_calibration(np.where(c > 0, u / 2, (u + 1) / 2), c, ["x"])[0].verdict  # uniform over all c
    'fail'
    """
    u = unit_interval("pit", array("pit", pit, ("N", "D")))
    names = column_names(columns, u.shape[1])
    return _across(u, context, "PIT across context", names, bins, threshold, _LOCAL_PIT)


def local_coverage(
    hpd: np.ndarray,
    context: np.ndarray,
    bins: Sequence[ContextBin] | None = None,
    *,
    threshold: float = LOCAL_THRESHOLD,
) -> CheckResult:
    """Check that highest-density regions hold the truth as often as they promise in every part of context.

    As :func:`local_calibration`, of the values that :func:`~fluvial.check.coverage` is made of: it sees all targets
    at once.

    ``hpd``: [N] in [0, 1], from :func:`~fluvial.check.hpd_values`; ``context``: [N, C]; ``bins``: :func:`context_slices`
    of the context unless given. Returns one result, the worst part.

    Raises:
        DataError: shapes that do not agree, values outside [0, 1], bins with rows that are not there, or none.

    >>> rng = np.random.default_rng(0)
    >>> local_coverage(rng.random(4000), rng.normal(size=(4000, 1))).verdict
    'pass'
    """
    u = unit_interval("hpd", array("hpd", hpd, ("N",)))[:, None]
    return _across(u, context, "coverage across context", [None], bins, threshold, _LOCAL_COVERAGE)[0]


_LOCAL_PIT = "Largest error of a reported probability P(target < t) in any part of context"
_LOCAL_COVERAGE = (
    "Largest difference, over all levels, between how often a highest-density region holds the truth and the level it "
    "claims, in any part of context"
)


def _across(
    u: np.ndarray,
    context: np.ndarray,
    check: str,
    names: Sequence[str | None],
    bins: Sequence[ContextBin] | None,
    threshold: float,
    what: str,
) -> list[CheckResult]:
    """Return, for each column of values, the part of context in which they are furthest from uniform."""
    values = array("context", context, (u.shape[0], "C"))
    chosen = context_slices(values) if bins is None else list(bins)
    if not chosen:
        raise DataError("bins: expected at least one part of context, got none.")
    for b in chosen:
        if b.rows.size and (b.rows.min() < 0 or b.rows.max() >= len(u)):
            raise DataError(
                f"bins: expected rows from 0 to {len(u) - 1}, got {b.rows.min()} to {b.rows.max()}."
            )
    judged: list[list[CheckResult]] = [[] for _ in names]
    for b in chosen:
        distance, error = uniform_distance(u[b.rows])
        where = ", ".join(f"{v:.4g}" for v in b.value[:6]) + (", …" if b.value.size > 6 else "")
        meaning = f"{what}, chance removed (worst of {len(chosen)}, around context ({where})); an exact density gives 0."
        for column, name, d in zip(judged, names, distance, strict=True):
            column.append(
                CheckResult.judge(check, name, d, error, threshold, b.rows.size, meaning, looks=len(chosen))
            )
    return [worst(column) for column in judged]


def _context(context: np.ndarray, min_rows: int) -> np.ndarray:
    values = finite("context", array("context", context, ("N", "C")))
    if len(values) == 0:
        raise DataError("context: expected at least one row, got none.")
    if min_rows < 1:
        raise DataError(f"min_rows: expected at least 1, got {min_rows}.")
    return values


def _whole(values: np.ndarray) -> ContextBin:
    return ContextBin(_median(values), np.arange(len(values)))


def _median(values: np.ndarray) -> np.ndarray:
    """Return the lower median of each column, a value that occurs, from 2,000 rows or a few more."""
    values = values[:: max(1, len(values) // _CANDIDATES)]
    return np.sort(values, axis=0)[(len(values) - 1) // 2].astype(np.float64)


def _cells(values: np.ndarray, k: int, min_rows: int) -> list[ContextBin]:
    """Return up to k cells of a grid, spread; none if the context is no grid or no cell has min_rows rows."""
    most = len(values) // _ROWS_PER_CELL
    cell = np.zeros(len(values), dtype=np.int64)
    for column in values.T:
        levels, level = np.unique(column, return_inverse=True)
        if levels.size > most:
            return []
        occupied, cell = np.unique(cell * levels.size + level, return_inverse=True)
        if occupied.size > most:
            return []
    counts = np.bincount(cell)
    by_cell = np.argsort(cell, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    candidates = np.flatnonzero(counts >= min_rows)
    if candidates.size == 0:
        return []
    # The most populated first: where two cells are equally far, the fuller one is taken.
    candidates = candidates[np.argsort(-counts[candidates], kind="stable")]
    corners = values[by_cell[starts[candidates]]]
    chosen = candidates[_spread(_levels(corners), k, first=0)]
    return [_cell(values, by_cell[starts[c] : starts[c + 1]]) for c in chosen]


def _cell(values: np.ndarray, rows: np.ndarray) -> ContextBin:
    return ContextBin(values[rows[0]].astype(np.float64), rows)


def _levels(points: np.ndarray) -> np.ndarray:
    """Return each column's values numbered in order and scaled to [0, 1]."""
    out = np.empty(points.shape)
    for j, column in enumerate(points.T):
        levels, level = np.unique(column, return_inverse=True)
        out[:, j] = level / max(levels.size - 1, 1)
    return out


def _balls(values: np.ndarray, k: int, min_rows: int) -> list[ContextBin]:
    """Return up to k balls of min_rows rows each around spread centres."""
    if len(values) <= min_rows:
        return [_whole(values)]
    # A fixed permutation, not every m-th row: tables are often ordered, and a stride would follow the order.
    order = np.random.default_rng(0).permutation(len(values))
    sample = order[: max(_NUMBERS_LOOKED_AT // values.shape[1], min_rows, _CANDIDATES)]
    points = _ranks(values[sample])
    candidates = points[:_CANDIDATES]
    middle = int(np.argmin(((candidates - 0.5) ** 2).sum(axis=1)))
    bins = []
    for centre in _spread(candidates, k, first=middle):
        distance = ((points - candidates[centre]) ** 2).sum(axis=1)
        near = np.argpartition(distance, min_rows - 1)[:min_rows]
        inner = points[near]
        typical = near[np.argmin(((inner - np.median(inner, axis=0)) ** 2).sum(axis=1))]
        bins.append(ContextBin(values[sample[typical]].astype(np.float64), np.sort(sample[near])))
    return bins


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value in its column, in [0, 1]; equal values have their mean rank."""
    out = np.empty(values.shape)
    for j, column in enumerate(values.T):
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        out[:, j] = ((np.cumsum(counts) - counts / 2.0) / len(column))[inverse]
    return out


def _spread(points: np.ndarray, k: int, first: int) -> list[int]:
    """Return up to k indices by farthest-point selection (Gonzalez 1985); fewer if there are fewer places."""
    chosen = [first]
    nearest = ((points - points[first]) ** 2).sum(axis=1)
    while len(chosen) < k:
        following = int(np.argmax(nearest))
        if nearest[following] == 0.0:
            break
        chosen.append(following)
        nearest = np.minimum(nearest, ((points - points[following]) ** 2).sum(axis=1))
    return chosen


def _cut(column: np.ndarray, slices: int, min_rows: int) -> list[np.ndarray]:
    """Return the rows of each slice of one column; none if it cannot be cut in two."""
    _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    wanted = max(1, min(slices, len(column) // min_rows))
    middle = (np.cumsum(counts) - counts / 2.0) / len(column)
    piece = np.minimum((middle * wanted).astype(np.int64), wanted - 1)
    sizes = np.bincount(piece, weights=counts, minlength=wanted)
    # Ties make pieces uneven: a small one joins the next, and a small last one the one before.
    group, filled, part_of = 0, 0.0, np.empty(wanted, dtype=np.int64)
    for i, size in enumerate(sizes):
        part_of[i] = group
        filled += size
        if filled >= min_rows:
            group, filled = group + 1, 0.0
    part_of = np.minimum(part_of, max(group - 1, 0))
    part = part_of[piece][inverse]
    parts = int(part.max()) + 1
    return [np.flatnonzero(part == i) for i in range(parts)] if parts > 1 else []
