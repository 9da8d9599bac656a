"""Figures of full against fast simulation: each draws a :class:`~fluvial.apps.collider.validation.Comparison`.

Full simulation is black, fast simulation blue; every error bar and band is one statistical standard error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from fluvial.apps.collider.validation import Comparison, Profile, Roc
from fluvial.report import style

_BINS = 40
_FULL, _FAST = "full simulation", "fast simulation"
_FAST_COLOUR = {"light": style.BLUE, "c": style.VERMILION}


def _short(name: str) -> str:
    return name.partition("_")[2] if name.startswith(("Jet_", "Muon_")) else name


@style.styled
def distances(comparison: Comparison) -> Figure:
    """Draw the distance of fast simulation from the truth, in units of that of the truth from itself, a target a line."""
    entries = sorted(comparison.distances, key=lambda d: d.ratio)
    height = 0.23 * len(entries)
    grid = style.grid(1, 1, [height], width=6.4, left=1.9)
    axes = grid.cells[0][0]
    y = np.arange(len(entries))
    spread = np.array([d.truth_error / d.truth if d.truth else 0.0 for d in entries])
    axes.barh(
        y, 2 * spread, left=1 - spread, height=1.0, color=style.BAND, label="two samples of full simulation"
    )
    axes.errorbar(
        [d.ratio for d in entries], y, xerr=np.nan_to_num([d.ratio_error for d in entries]), fmt="o",
        color=style.BLUE, label="full and fast simulation",
    )  # fmt: skip
    axes.axvline(2, color=style.MUTED, lw=0.8, ls="--")
    axes.axvline(1, color=style.INK, lw=0.7)
    axes.set_yticks(y, [_short(d.name) for d in entries])
    axes.set_ylim(-0.6, len(entries) - 0.4)
    axes.set_xlim(0, max(2.3, 1.1 * max(d.ratio for d in entries)))
    axes.set_xlabel(f"1-D Wasserstein distance of samples of {entries[0].n:,} / the same of full simulation")
    style.legend_strip(grid, axes, "full and fast simulation", left=1.9)
    return grid.figure


@style.styled
def marginals(comparison: Comparison) -> Figure:
    """Draw a histogram of every target, on a logarithmic scale, with the ratio of fast to full below."""
    names = [d.name for d in comparison.distances]
    grid = style.grid(len(names), 4, [1.05, 0.5], left=0.5)
    for (top, below), name in zip(grid.cells, names, strict=True):
        full, fast = (np.asarray(t[name], dtype=np.float64) for t in (comparison.full, comparison.fast))
        edges = _edges(full)
        n = np.histogram(full, edges)[0], np.histogram(fast, edges)[0]
        _histograms(top, below, edges, n)
        below.set_xlabel(_short(name), labelpad=2)
    style.legend_strip(grid, grid.cells[0][0], _FULL, left=0.5)
    return grid.figure


def _edges(values: NDArray[Any]) -> NDArray[np.float64]:
    """Bins over all but a thousandth on each side; whole numbers get bins of their own, ends stand within a bin."""
    found = np.unique(values)
    if found.size <= 2 * _BINS and (found == np.rint(found)).all():
        return np.arange(found[0] - 0.5, found[-1] + 1)
    low, high = np.quantile(values, [0.001, 0.999])
    margin = 0.5 * (high - low) / _BINS or 0.5
    return np.linspace(low - margin, high + margin, _BINS + 1)


def _histograms(top: Axes, below: Axes, edges: NDArray[Any], n: tuple[NDArray[Any], NDArray[Any]]) -> None:
    full, fast = n
    middle = 0.5 * (edges[1:] + edges[:-1])
    top.stairs(fast, edges, color=style.BLUE, lw=1.1, label=_FAST)
    there = full > 0
    top.errorbar(
        middle[there],
        full[there],
        np.sqrt(full[there]),
        fmt=".",
        color=style.INK,
        ms=2.2,
        lw=0.7,
        label=_FULL,
    )
    top.set_yscale("log")
    top.set_ylim(0.5, 3 * max(full.max(), 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = fast / full
        error = ratio * np.sqrt(1 / np.maximum(fast, 1) + 1 / full)
    _ratio(below, middle[there], ratio[there], error[there], style.BLUE)
    below.set_xlim(edges[0], edges[-1])


def _ratio(axes: Axes, x: Any, ratio: Any, error: Any, colour: str, half: float = 0.5) -> None:
    axes.axhline(1, color=style.INK, lw=0.7)
    axes.errorbar(x, ratio, error, fmt=".", color=colour, ms=2.2, lw=0.8)
    axes.set_ylim(1 - half, 1 + half)
    axes.set_yticks([1 - half / 2, 1, 1 + half / 2])


@style.styled
def correlations(comparison: Comparison) -> Figure:
    """Draw the rank correlations of targets with targets and context: full, fast, and their difference."""
    full, fast = comparison.correlations
    rows, columns = comparison.correlation_names
    side = 7.0 / len(columns)
    height = side * len(rows)
    grid = style.grid(3, 1, [height], width=style.WIDTH, left=1.5, head=0.05)
    difference = fast - full
    limit = max(0.03, float(np.abs(difference).max()))
    for (axes,), (title, matrix, top) in zip(
        grid.cells,
        ((_FULL, full, 1.0), (_FAST, fast, 1.0), ("fast − full", difference, limit)),
        strict=True,
    ):
        image = axes.imshow(matrix, cmap=style.DIFFERENCE_MAP, vmin=-top, vmax=top, aspect="auto")
        axes.set_title(title, loc="left", pad=3)
        axes.set_yticks(range(len(rows)), [_short(n) for n in rows], fontsize=6)
        last = axes is grid.cells[-1][0]
        axes.set_xticks(range(len(columns)), [_short(n) for n in columns] if last else [""] * len(columns))
        axes.tick_params(axis="x", labelrotation=90, labelsize=6)
        axes.axvline(len(rows) - 0.5, color=style.INK, lw=0.8)
        place = axes.get_position()
        bar = grid.figure.add_axes((place.x1 - 0.045, place.y0, 0.012, place.height))
        axes.set_position((place.x0, place.y0, place.width - 0.06, place.height))
        grid.figure.colorbar(image, cax=bar).ax.tick_params(labelsize=6.5)
    _room_below(grid.figure, 0.7)
    return grid.figure


def _room_below(figure: Figure, inches: float) -> None:
    """Make the figure taller at its foot, for long labels."""
    width, height = figure.get_size_inches()
    scale = height / (height + inches)
    for axes in figure.axes:
        place = axes.get_position()
        axes.set_position((place.x0, 1 - (1 - place.y0) * scale, place.width, place.height * scale))
    figure.set_size_inches(width, height + inches)


@style.styled
def response(comparison: Comparison) -> Figure:
    """Draw response (mean) and resolution (RMS) of every relation to generator level, against generator-level pt."""
    cells = len(comparison.profiles)
    grid = style.grid(2 * cells, 2, [1.7, 0.8], left=0.72)
    gen_pt = "generator-level $p_T$ [GeV]"
    for i, (name, (full, fast)) in enumerate(comparison.profiles.items()):
        ratio = name.endswith("Ratio")
        for j, quantity in enumerate(("mean", "rms")):
            top, below = grid.cells[2 * i + j]
            of_full, of_fast = ((getattr(p, quantity), getattr(p, f"{quantity}_error")) for p in (full, fast))
            x = np.sqrt(full.edges[1:] * full.edges[:-1])
            width = [x - full.edges[:-1], full.edges[1:] - x]
            top.errorbar(x, *of_full, xerr=width, fmt="o", color=style.INK, lw=0.8, label=_FULL)
            top.errorbar(x * 1.02, *of_fast, fmt="s", ms=2.5, color=style.BLUE, lw=0.8, label=_FAST)
            style.y_label(top, f"{'mean' if quantity == 'mean' else 'RMS'} of {_short(name)}", 0.55)
            top.set_xscale("log")
            _plain_ticks(below, full.edges)
            _below(below, x, full, fast, of_full, of_fast, difference=quantity == "mean" and not ratio)
            below.set_xlabel(gen_pt)
    style.legend_strip(grid, grid.cells[0][0], _FULL, left=0.72)
    return grid.figure


def _plain_ticks(axes: Axes, edges: NDArray[Any]) -> None:
    """Mark a logarithmic axis at 1, 2 and 5 times powers of ten, in plain numbers."""
    powers = 10.0 ** np.arange(-1, 5)
    ticks = [t for p in powers for t in (p, 2 * p, 5 * p) if edges[0] <= t <= edges[-1]]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _below(
    axes: Axes, x: Any, full: Profile, fast: Profile, of_full: Any, of_fast: Any, *, difference: bool
) -> None:
    """Draw the ratio of fast to full; of means about zero their difference, in units of the RMS."""
    if difference:
        value, error = (of_fast[0] - of_full[0]) / full.rms, np.hypot(of_fast[1], of_full[1]) / full.rms
        middle, label = 0.0, "Δ / RMS"
    else:
        value = of_fast[0] / of_full[0]
        error = np.hypot(of_fast[1], of_full[1] * value) / of_full[0]
        middle, label = 1.0, "fast / full"
    axes.axhline(middle, color=style.INK, lw=0.7)
    axes.errorbar(x, value, error, fmt=".", color=style.BLUE, lw=0.8)
    reach = np.nanmax(np.abs(value - middle) + error) if np.isfinite(value).any() else 0.1
    half = float(np.clip(1.1 * reach, 0.02, 1.0))
    axes.set_ylim(middle - half, middle + half)
    style.y_label(axes, label, 0.55)


@style.styled
def tagging(comparison: Comparison) -> Figure:
    """Draw, for each b tagger, the false-positive rates of light and c jets against the true-positive rate."""
    names = list(dict.fromkeys(name for name, _ in comparison.curves))
    grid = style.grid(len(names), min(len(names), 3), [2.0, 0.8], left=0.7)
    for (top, below), name in zip(grid.cells, names, strict=True):
        reach = 0.0
        for background, colour in _FAST_COLOUR.items():
            if (name, background) not in comparison.curves:
                continue
            full, fast = comparison.curves[name, background]
            reach = max(reach, _curve(top, below, full, fast, background, colour))
        rates = np.concatenate(
            [c.fpr for (n, _), pair in comparison.curves.items() if n == name for c in pair]
        )
        top.set_yscale("log")
        top.set_ylim(0.4 * rates[rates > 0].min(initial=1.0), 1.5)
        top.set_title(_short(name), loc="left", pad=3)
        style.y_label(top, "false-positive rate", 0.52)
        style.y_label(below, "fast / full", 0.52)
        below.set_xlabel("true-positive rate of b jets")
        below.axhline(1, color=style.INK, lw=0.7)
        half = float(np.clip(1.15 * reach, 0.1, 1.0))
        below.set_ylim(1 - half, 1 + half)
    style.legend_strip(grid, grid.cells[0][0], left=0.7)
    return grid.figure


def _curve(top: Axes, below: Axes, full: Roc, fast: Roc, background: str, colour: str) -> float:
    """Draw one curve, and return how far fast / full goes from 1."""
    top.fill_between(full.tpr, full.fpr - full.error, full.fpr + full.error, color=colour, alpha=0.25, lw=0)
    top.plot(full.tpr, full.fpr, color=colour, lw=0.9, label=f"{background} jets, full")
    top.errorbar(
        fast.tpr,
        fast.fpr,
        fast.error,
        fmt="o",
        color=colour,
        ms=2.5,
        lw=0.8,
        label=f"{background} jets, fast",
    )
    there = full.fpr > 0
    x, share = full.tpr[there], (full.error / np.where(there, full.fpr, 1.0))[there]
    ratio, own = (v[there] / full.fpr[there] for v in (fast.fpr, fast.error))
    below.fill_between(x, 1 - share, 1 + share, color=colour, alpha=0.2, lw=0)
    below.errorbar(x, ratio, own, fmt="o", ms=2.5, color=colour, lw=0.8)
    return float(np.abs(ratio - 1).max(initial=0.0))
