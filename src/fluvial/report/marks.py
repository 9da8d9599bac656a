"""The marks that several figures share: a line for draws, points for data, the axes under them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.ticker import (
    AutoMinorLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from fluvial.report.bins import Binning, is_steep, poisson_interval
from fluvial.report.style import DATA, DRAWS, STEPS


def heights(values: np.ndarray, bins: Binning) -> np.ndarray:
    """Return the histogram of ``values`` as a density ``[B]``, normalised to all, also those outside."""
    return bins.counts(values) / (max(len(values), 1) * bins.widths)


def draw_line(axes: Axes, draws: np.ndarray, bins: Binning) -> None:
    """Draw ``draws`` as a stepped line, with a band for its Poisson uncertainty."""
    counts = bins.counts(draws)
    lower, upper = poisson_interval(counts)
    unit = max(len(draws), 1) * bins.widths
    axes.stairs(upper / unit, bins.edges, baseline=lower / unit, fill=True, color=DRAWS, alpha=0.22, lw=0)
    axes.stairs(counts / unit, bins.edges, baseline=None, color=DRAWS, lw=1.2, label="draws")
    for i in bins.atoms:  # a bar whose area is the probability of the atom
        width, height = bins.widths[i], counts[i] / unit[i]
        axes.bar(bins.edges[i], height, width, align="edge", color=DRAWS, alpha=0.35, lw=0)


def data_points(axes: Axes, data: np.ndarray, bins: Binning, label: str = "data") -> None:
    """Draw ``data`` as points with 68 % Poisson intervals; bins without data have no point."""
    counts = bins.counts(data)
    seen = counts > 0
    lower, upper = poisson_interval(counts)
    unit = max(len(data), 1) * bins.widths
    error = np.stack([counts - lower, upper - counts])[:, seen] / unit[seen]
    y = (counts / unit)[seen]
    axes.errorbar(
        bins.centres[seen], y, error, fmt="o", ms=2.6, color=DATA, elinewidth=0.8, label=label, zorder=4
    )


def value_axis(axis: XAxis | YAxis, bins: Binning, *, few: bool = False) -> None:
    """Make ``axis`` span the bins, on their scale, with ticks at round values: ``few`` on a small axis."""
    axes = axis.axes
    horizontal = axis is axes.xaxis
    (axes.set_xlim if horizontal else axes.set_ylim)(bins.edges[0], bins.edges[-1])
    if not bins.log:
        axis.set_major_locator(MaxNLocator(3 if few else 5, steps=STEPS, prune="both" if few else None))
        axis.set_minor_locator(AutoMinorLocator())
        return
    (axes.set_xscale if horizontal else axes.set_yscale)("log")
    decades = np.log10(bins.edges[-1] / bins.edges[0])
    if decades < (0.5 if few else 1.3):
        subs = (1.0, 2.0, 3.0, 5.0)
    else:
        subs = (1.0, 2.0, 5.0) if decades < (1.2 if few else 2.5) else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(LogLocator(subs=tuple(np.arange(1.0, 10.0)), numticks=100))
    if decades < 4:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def same_y(axes: Sequence[Axes], panels: Sequence[tuple[np.ndarray, np.ndarray, Binning]]) -> None:
    """Give the panels of a column one y scale: logarithmic for steep spectra, from zero for others.

    ``panels`` has the densities of data and draws, and the bins, of each panel. The lower end of a
    logarithmic scale is set by the data, because draws may be many more.
    """
    everything = np.concatenate([np.empty(0), *(h[h > 0] for panel in panels for h in panel[:2])])
    if not len(everything):
        return
    known = np.concatenate([data[data > 0] for data, _, _ in panels])
    steep = any(is_steep(h, bins) for data, draws, bins in panels for h in (data, draws))
    top, floor = float(everything.max()), float((known if len(known) else everything).min())
    for one in axes:
        if steep:
            one.set_yscale("log")
            one.set_ylim(max(0.4 * floor, 1e-6 * top), 2.5 * top)
            one.yaxis.set_minor_locator(NullLocator())  # at several decades, a clutter that is slow to draw
        else:
            one.set_ylim(0, 1.22 * top)
            one.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
