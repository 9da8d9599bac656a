"""Histogramming for figures: shared bins that resolve peaks and tails alike, and Poisson error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Binning:
    """Bin edges ``[B + 1]``, increasing, whether their axis is logarithmic, and which bins stand for atoms."""

    edges: np.ndarray
    log: bool = False
    atoms: tuple[int, ...] = ()

    @property
    def widths(self) -> np.ndarray:
        """Bin widths ``[B]``, in the unit of the column."""
        return np.diff(self.edges)

    @property
    def centres(self) -> np.ndarray:
        """Bin centres ``[B]``, geometric on a logarithmic axis: points sit in the middle of their bins."""
        lower, upper = self.edges[:-1], self.edges[1:]
        return np.sqrt(lower * upper) if self.log else 0.5 * (lower + upper)

    def counts(self, values: np.ndarray) -> np.ndarray:
        """Return how many values fall into each bin ``[B]``; NaN and infinities fall into none."""
        return np.histogram(finite(values), self.edges)[0].astype(float)

    def outside(self, values: np.ndarray) -> float:
        """Return the fraction of values that no bin holds, non-finite values included; 0 for no values."""
        return 1.0 - self.counts(values).sum() / len(values) if len(values) else 0.0


def finite(values: np.ndarray) -> np.ndarray:
    """Return the finite values, as a 1-D float64 array."""
    values = np.asarray(values, dtype=float).ravel()
    return values[np.isfinite(values)]


def poisson_interval(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the lower and upper ends of the central 68.3 % interval of a Poisson mean, given its counts.

    .. math:: \lambda_u = (n+1)\left[1 - \frac{1}{9(n+1)} + \frac{1}{3\sqrt{n+1}}\right]^3, \quad
              \lambda_l = n\left[1 - \frac{1}{9n} - \frac{1}{3\sqrt n}\right]^3

    Gehrels (1986), ApJ 303, 336: within 1 % of the exact upper end and 5 % of the lower.
    A count of zero has 0 and 1.83.

    >>> lower, upper = poisson_interval(np.array([0.0, 1.0, 100.0]))
    >>> lower.round(2), upper.round(2)
    (array([ 0.  ,  0.17, 90.02]), array([  1.83,   3.29, 111.03]))
    """
    n = np.asarray(counts, dtype=float)
    upper = (n + 1) * (1 - 1 / (9 * (n + 1)) + 1 / (3 * np.sqrt(n + 1))) ** 3
    m = np.maximum(n, 1)
    lower = np.where(n > 0, m * (1 - 1 / (9 * m) - 1 / (3 * np.sqrt(m))) ** 3, 0.0)
    return lower, upper


def bin_number(rows: int, most: int = 80) -> int:
    """Return a number of bins for ``rows`` values: about the square root, between 8 and ``most``."""
    return int(np.clip(round(rows**0.5), 8, most))


def binning(
    data: Sequence[np.ndarray],
    draws: Sequence[np.ndarray],
    number: int,
    *,
    positive: bool = False,
    adaptive: bool = True,
    log_from: float = 4.0,
    atoms: Sequence[float] = (),
    within: tuple[float, float] = (-np.inf, np.inf),
) -> Binning:
    """Return about ``number`` bins for the values of all panels, shared by data and draws.

    The range is that of the data between their quantiles 0.001 and 0.999, with a margin (with fewer than
    100 values, the draws help to set it). It does not depend on ``number``. If ``adaptive``, edges stand at
    equal steps of the mean of two distribution functions, the uniform one and that of the values themselves,
    so that bins are finer where the density is high. Whole numbers get a bin each. A positive column that
    spans a factor of ``log_from`` or more gets a logarithmic axis. ``atoms`` get a narrow bin each, which lies outside
    the others where it can; one that is far from all other values gets none. No bin reaches beyond ``within``, the ends
    of where values can be: the density in it would be too low.
    """
    if len(atoms):
        free, drawn = ([v[~np.isin(v, atoms)] for v in map(np.ravel, some)] for some in (data, draws))
        positive = positive and min(atoms) > 0
        others = binning(
            free, drawn, number, positive=positive, adaptive=adaptive, log_from=log_from, within=within
        )
        return _with_atoms(others, atoms)
    known = finite(np.concatenate([np.empty(0), *map(np.ravel, data)]))
    drawn = finite(np.concatenate([np.empty(0), *map(np.ravel, draws)]))
    ranged = known if len(known) >= 100 else np.concatenate([known, drawn])
    if len(ranged) == 0:
        return Binning(np.linspace(0.0, 1.0, 9))
    lower, upper = np.quantile(ranged, [0.001, 0.999])
    whole = known if len(known) else drawn
    if upper > lower and upper - lower <= 60 and np.all(whole == np.round(whole)):
        return Binning(np.arange(np.floor(lower) - 0.5, np.ceil(upper) + 1.0))
    log = bool(positive and lower > 0 and upper / lower >= log_from)
    if log:
        lower, upper = np.log([lower, upper])
    lower, upper = _margin(float(lower), float(upper))
    if not log and lower < within[1] and upper > within[0]:
        lower, upper = max(lower, within[0]), min(upper, within[1])
    inside = np.log(ranged[ranged > 0]) if log else ranged
    edges = _edges(inside, lower, upper, number) if adaptive else np.linspace(lower, upper, number + 1)
    return Binning(np.exp(edges) if log else edges, log)


def _with_atoms(bins: Binning, atoms: Sequence[float]) -> Binning:
    """Add a narrow bin for every atom: beyond the end of the others, or about the atom where they reach over it."""
    edges = bins.edges
    for atom in atoms:
        low, high = float(edges[0]), float(edges[-1])
        if bins.log and atom <= 0:
            continue
        span = min(np.log(high / low), 16.0) * atom if bins.log else high - low
        width, margin = 0.03 * span, 0.06 * span
        if atom < low - 1.5 * (high - low) or atom > high + 1.5 * (high - low):
            continue
        if atom < low + margin:
            pair = (atom - 1.8 * width, atom - width, float(np.nextafter(atom, np.inf)))
            edges = edges[edges > pair[-1]]
        elif atom > high - margin:
            pair = (atom, atom + width, atom + 1.8 * width)
            edges = edges[edges < pair[0]]
        else:
            pair = (atom - 0.5 * width, atom + 0.5 * width)
            edges = edges[(edges < pair[0]) | (edges > pair[1])]
        edges = np.sort(np.concatenate([edges, pair]))
    index = np.searchsorted(edges, [a for a in atoms if edges[0] <= a <= edges[-1]], side="right") - 1
    return Binning(edges, bins.log, tuple(np.minimum(index, len(edges) - 2).tolist()))


def _margin(lower: float, upper: float) -> tuple[float, float]:
    """Widen a range by 4 % on each side, or a constant by half of itself, so that bins have a width."""
    pad = 0.04 * (upper - lower)
    if pad <= 1e-9 * max(abs(lower), abs(upper)):
        pad = 0.5 * max(abs(lower), abs(upper)) or 0.5
    return lower - pad, upper + pad


def _edges(values: np.ndarray, lower: float, upper: float, number: int) -> np.ndarray:
    """Edges at equal steps of the mean of the uniform and the empirical distribution, on a finer grid.

    The grid bounds how narrow a bin can be, so that an atom does not make bins without a width.
    """
    nodes = np.linspace(lower, upper, 8 * number + 1)
    counts = np.histogram(values, nodes)[0]
    share = counts / counts.sum() if counts.sum() else np.zeros(len(counts))
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 / len(counts) + 0.5 * share)])
    steps = np.linspace(0.0, cumulative[-1], number + 1)[1:-1]
    chosen = np.unique(np.concatenate([[0], np.searchsorted(cumulative, steps), [len(nodes) - 1]]))
    return nodes[chosen]


def is_steep(densities: np.ndarray, bins: Binning) -> bool:
    """Return whether a histogram spans so much that it wants a logarithmic axis.

    It does if a fifth of the (non-empty) length of the axis lies 50 times below the highest bin.

    >>> bins = Binning(np.linspace(0, 1, 5))
    >>> is_steep(np.array([1000.0, 100.0, 10.0, 1.0]), bins), is_steep(np.array([1.0, 3.0, 3.0, 1.0]), bins)
    (True, False)
    """
    seen = densities > 0
    if seen.sum() < 4:
        return False
    length = np.diff(np.log(bins.edges)) if bins.log else bins.widths
    low = seen & (densities < densities.max() / 50.0)
    return bool(length[low].sum() >= 0.2 * length[seen].sum())


def pooled_pull(data: np.ndarray, draws: np.ndarray, data_total: int, draws_total: int) -> np.ndarray:
    r"""Return by how many standard deviations counts of data exceed scaled counts of draws, bin by bin.

    With s = N/M, the variance under the hypothesis that both come from one density is estimated from both
    together, which stays right when one of them is empty:

    .. math:: \frac{n - s m}{\sqrt{s\,(n + m)}}

    NaN where both are empty.

    >>> pooled_pull(np.array([0.0, 9.0]), np.array([100.0, 1600.0]), 100, 10_000).round(2)
    array([-1.  , -1.75])
    """
    scale = data_total / draws_total if data_total and draws_total else 1.0
    total = data + draws
    return np.where(total > 0, (data - scale * draws) / np.sqrt(scale * np.maximum(total, 1.0)), np.nan)
