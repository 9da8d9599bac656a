"""Figures of a density as a prediction: what it says against the truth, one posterior, several densities side by side.

As in :mod:`fluvial.report.plots`: every function returns a figure, draws what it is given, and computes nothing beyond
histograms and the simplest fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluvial.data.schema import Column
from fluvial.errors import DataError
from fluvial.report import style
from fluvial.report.bins import Binning, bin_number, finite
from fluvial.report.marks import data_points, heights
from fluvial.report.style import BAND, DRAWS, FAINT, INK, MUTED, STEPS, VERMILION, safe_text, styled

__all__ = ["Scores", "corner", "fitted_pulls", "predicted", "r_squared", "side_by_side", "slope"]

_MOST = 20_000  # points that are drawn


@dataclass(frozen=True)
class Scores:
    """What is compared between densities: a value and its standard error for each column ``[D]``, or one for all.

    Attributes
    ----------
    rows : mapping
        Title of a row of the figure to (values, errors, the value of an exact density or ``None``).
    """

    rows: Mapping[str, tuple[np.ndarray, np.ndarray, float | None]]


def r_squared(truth: np.ndarray, mean: np.ndarray) -> np.ndarray:
    r"""Return :math:`R^2 = 1 - \sum (m - x)^2 / \sum (x - \bar x)^2` of each column ``[D]``; ``[N, D]`` each.

    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> r_squared(x, x + 0.1)
    array([0.992])
    """
    spread = np.square(truth - truth.mean(axis=0)).sum(axis=0)
    return 1 - np.square(mean - truth).sum(axis=0) / spread


def slope(truth: np.ndarray, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes of straight lines through residuals against truth, and their standard errors, ``[D]`` each.

    A prediction that cannot know all shrinks towards the mean: its slope is about R² − 1, not 0.
    """
    x = truth - truth.mean(axis=0)
    y = residual - residual.mean(axis=0)
    square = np.square(x).sum(axis=0)
    found = (x * y).sum(axis=0) / square
    left = np.square(y - found * x).sum(axis=0) / max(len(x) - 2, 1)
    return found, np.sqrt(left / square)


@styled
def predicted(truth: np.ndarray, mean: np.ndarray, std: np.ndarray, columns: Sequence[Column]) -> Figure:
    """Draw the predicted mean against the truth, with R², and beneath the residual against the truth.

    ``truth``, ``mean`` and ``std``: ``[N, D]``. The line through the residuals is the
    median in bins of the truth, with a band of 16 to
    84 % and, dashed, the mean predicted standard deviation: it should be as wide as the band.

    Raises :class:`~fluvial.errors.DataError` if the shapes do not agree with ``columns``.
    """
    shape = (len(truth), len(columns))
    for what, values in (("truth", truth), ("mean", mean), ("std", std)):
        if np.shape(values) != shape:
            raise DataError(
                f"predicted: expected {what} of shape {list(shape)}; got {list(np.shape(values))}."
            )
    grid = style.grid(len(columns), min(3, len(columns)), (2.2, 1.2))
    shown = np.random.default_rng(0).permutation(len(truth))[:_MOST]
    score = r_squared(truth, mean)
    steep, error = slope(truth, mean - truth)
    for j, ((top, bottom), column) in enumerate(zip(grid.cells, columns, strict=True)):
        x, m, s = truth[:, j], mean[:, j], std[:, j]
        ends = np.array([min(x.min(), m.min()), max(x.max(), m.max())])
        ends += np.array([-0.04, 0.04]) * np.ptp(ends)
        look = {"ls": "none", "marker": "o", "ms": 1.6, "mew": 0, "color": DRAWS, "rasterized": True}
        alpha = float(np.clip(600 / len(shown), 0.08, 0.6))
        top.plot(ends, ends, color=MUTED, lw=0.8, ls="--", zorder=0)
        top.plot(x[shown], m[shown], alpha=alpha, **look)
        top.set(xlim=ends, ylim=ends)
        rms = float(np.sqrt(np.mean((m - x) ** 2)))
        unit = f" {style.unit(column)}" if style.has_unit(column) else ""
        style.corner_text(
            top, f"R² = {score[j]:.4f}\nrms {rms:.3g}{unit}\nN = {len(x):,}", right=False, color=INK
        )
        top.set_title(safe_text(column.label or column.name), loc="left", fontweight="bold", pad=4, y=1.0)
        style.y_label(top, "predicted" + (f" [{style.unit(column)}]" if style.has_unit(column) else ""))
        bottom.plot(x[shown], (m - x)[shown], alpha=alpha, **look)
        _running(bottom, x, m - x, s)
        reach = 3.2 * float(np.quantile(np.abs(m - x), 0.9)) or 1.0
        bottom.set_ylim(-reach, reach)
        words = f"slope {steep[j]:+.3f} ± {error[j]:.3f}".replace("-", "−")
        style.corner_text(bottom, words, color=INK)
        bottom.set_xlabel("true " + style.axis_label(column))
        style.y_label(bottom, "predicted − true")
        for axis in (top.yaxis, bottom.xaxis, bottom.yaxis):
            axis.set_major_locator(MaxNLocator(4, steps=STEPS))
    return grid.figure


def _running(axes: Axes, x: np.ndarray, residual: np.ndarray, std: np.ndarray) -> None:
    """Median, 16–84 % band and mean predicted width in bins of equal numbers."""
    number = int(np.clip(len(x) // 40, 3, 15))
    order = np.array_split(np.argsort(x), number)
    centre = np.array([np.median(x[part]) for part in order])
    low, middle, high = np.array([np.quantile(residual[part], [0.16, 0.5, 0.84]) for part in order]).T
    width = np.array([np.sqrt(np.mean(std[part] ** 2)) for part in order])
    axes.axhline(0, color=MUTED, lw=0.8, ls="--", zorder=3)
    axes.plot(centre, middle, color=VERMILION, lw=1.3, zorder=5)
    axes.fill_between(centre, low, high, color=VERMILION, alpha=0.2, lw=0, zorder=4)
    for sign in (-1, 1):
        axes.plot(centre, sign * width, color=INK, lw=0.9, ls=":", zorder=5)


@styled
def fitted_pulls(pulls: np.ndarray, columns: Sequence[Column]) -> Figure:
    """Draw the pulls ``[N, D]`` with the normal of their own mean and standard deviation, and the unit normal.

    Mean and width are given with their standard errors; the width of the middle 68 % is not moved by tails.

    Raises :class:`~fluvial.errors.DataError` if ``pulls`` does not have one column for each of ``columns``.
    """
    pulls = np.asarray(pulls, dtype=float)
    if pulls.ndim != 2 or pulls.shape[1] != len(columns):
        raise DataError(f"pulls: expected shape [N, {len(columns)}]; got {list(pulls.shape)}.")
    grid = style.grid(len(columns), min(3, len(columns)), (1.8,))
    z = np.linspace(-5, 5, 301)
    for (axes,), column, values in zip(grid.cells, columns, pulls.T, strict=True):
        p = finite(values)
        bins = Binning(np.linspace(-5, 5, 2 * bin_number(len(p), 40) // 2 + 1))
        axes.fill_between(
            z, np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), color=BAND, lw=0, label="exact if normal"
        )
        mean, width = float(np.mean(p)), float(np.std(p))
        if width > 0:
            fitted = np.exp(-((z - mean) ** 2) / (2 * width**2)) / np.sqrt(2 * np.pi) / width
            axes.plot(z, fitted, color=VERMILION, lw=1.2, label="fitted normal")
        data_points(axes, p, bins, label="pulls")
        axes.set_xlim(-5, 5)
        axes.set_ylim(0, max(0.62, 1.5 * float(heights(p, bins).max())))
        axes.set_title(safe_text(column.label or column.name), loc="left", fontweight="bold", pad=4, y=1.0)
        axes.set_xlabel("(true − predicted) / predicted error")
        style.y_label(axes, "density")
        root = np.sqrt(2 * max(len(p), 1))
        middle = float(np.diff(np.quantile(p, [0.15866, 0.84134]))[0]) / 2
        words = (
            f"mean {mean:+.3f} ± {width / root * 2**0.5:.3f}\nwidth {width:.3f} ± {width / root:.3f}\n"
            f"middle 68 % {middle:.3f}"
        )
        style.corner_text(axes, words.replace("-", "−"), color=INK)
    style.legend_strip(grid, grid.cells[0][0], "pulls")
    return grid.figure


@styled
def corner(
    draws: Mapping[str, np.ndarray],
    columns: Sequence[Column],
    truth: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """Draw posteriors in the planes of all pairs of targets: 68 and 95 % regions of highest density, and the truth.

    ``draws`` holds, by name, draws ``[S, D]`` of one or several densities at one context; ``truth``: ``[D]``.

    Raises :class:`~fluvial.errors.DataError` if draws do not have one column for each of ``columns``.
    """
    size = len(columns)
    for name, values in draws.items():
        if values.ndim != 2 or values.shape[1] != size:
            raise DataError(f"corner: expected draws [S, {size}] of {name}; got {list(values.shape)}.")
    inches, left, head = min(2.1, 6.6 / size), 0.72, 0.34 if title or len(draws) > 1 else 0.0
    width, height = left + size * inches + 0.12, left + size * inches + 0.12 + head
    figure = Figure(figsize=(width, height))
    ends = _corner_ends(draws, truth)
    for row in range(size):
        for at in range(row + 1):
            x, y = left + at * inches, 0.6 + (size - 1 - row) * inches
            side = inches - 0.08
            axes = figure.add_axes((x / width, y / height, side / width, side / height))
            _corner_cell(axes, draws, row, at, ends, truth)
            axes.tick_params(labelbottom=row == size - 1, labelleft=at == 0 and row > 0)
            if at == 0 and row > 0:
                style.y_label(axes, style.axis_label(columns[row], 24), 0.52)
            if row == size - 1:
                axes.set_xlabel(style.axis_label(columns[at], 24))
    top = 1 - 0.10 / height
    figure.text(left / width, top, safe_text(title, 90), va="top", fontweight="bold", fontsize=9)
    for number, name in enumerate(draws if len(draws) > 1 else ()):
        look = {"color": _color(number), "ha": "right", "va": "top", "fontsize": 8.5}
        figure.text(0.985, top - (0.3 + number * 0.18) / height, safe_text(name, 30), **look)
    return figure


def _color(number: int) -> str:
    return style.CYCLE[number % len(style.CYCLE)]


def _corner_ends(draws: Mapping[str, np.ndarray], truth: np.ndarray | None) -> np.ndarray:
    """Lower and upper ends of the axes, ``[2, D]``."""
    low, high = np.quantile(np.concatenate(list(draws.values())), [0.001, 0.999], axis=0)
    if truth is not None:
        low, high = np.minimum(low, truth), np.maximum(high, truth)
    pad = 0.06 * np.maximum(high - low, 1e-12)
    return np.stack([low - pad, high + pad])


def _corner_cell(
    axes: Axes,
    draws: Mapping[str, np.ndarray],
    row: int,
    at: int,
    ends: np.ndarray,
    truth: np.ndarray | None,
) -> None:
    style.dress(axes)
    axes.set_xlim(*ends[:, at])
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=STEPS, prune="both"))
    if row == at:
        for number, values in enumerate(draws.values()):
            _marginal(axes, values[:, at], ends[:, at], _color(number), fill=len(draws) == 1)
        axes.yaxis.set_visible(False)
    else:
        axes.set_ylim(*ends[:, row])
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=STEPS, prune="both"))
        for number, values in enumerate(draws.values()):
            plane = (values[:, at], values[:, row])
            _plane(axes, *plane, ends[:, [at, row]], _color(number), fill=len(draws) == 1)
    if truth is not None:
        axes.axvline(truth[at], color=INK, lw=0.9, ls="--", zorder=9)
        if row != at:
            axes.axhline(truth[row], color=INK, lw=0.9, ls="--", zorder=9)


def _marginal(axes: Axes, values: np.ndarray, ends: np.ndarray, color: str, *, fill: bool) -> None:
    counts, edges = np.histogram(values, int(np.clip(len(values) ** 0.5, 15, 60)), range=(ends[0], ends[1]))
    low, middle, high = np.quantile(values, [0.16, 0.5, 0.84])
    axes.stairs(counts / max(counts.sum(), 1), edges, color=color, lw=1.2)
    if fill:
        axes.axvspan(low, high, color=color, alpha=0.15, lw=0)
        axes.axvline(middle, color=color, lw=0.8)


def _plane(axes: Axes, x: np.ndarray, y: np.ndarray, ends: np.ndarray, color: str, *, fill: bool) -> None:
    """Contours that hold 68 and 95 % of draws, of a smoothed histogram."""
    number = int(np.clip(len(x) ** 0.34, 14, 50))
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=number, range=ends.T.tolist())
    smooth = _smoothed(_smoothed(counts).T).T
    ordered = np.sort(smooth.ravel())[::-1]
    cumulated = np.cumsum(ordered) / max(ordered.sum(), 1e-300)
    levels = [
        float(ordered[min(np.searchsorted(cumulated, level), len(ordered) - 1)]) for level in (0.95, 0.68)
    ]
    if not 0 < levels[0] < levels[1] < smooth.max():
        axes.plot(x[:500], y[:500], ".", ms=1.5, color=color)  # too few draws, or all in a point
        return
    centres = [(e[1:] + e[:-1]) / 2 for e in (x_edges, y_edges)]
    if fill:
        colors = [LinearSegmentedColormap.from_list("", ["white", color])(v) for v in (0.25, 0.55)]
        axes.contourf(*centres, smooth.T, [*levels, float(smooth.max()) * 1.01], colors=colors)
    axes.contour(*centres, smooth.T, levels, colors=[color], linewidths=[0.8, 1.2])


def _smoothed(counts: np.ndarray) -> np.ndarray:
    padded = np.pad(counts, ((1, 1), (0, 0)))
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


@styled
def side_by_side(scores: Mapping[str, Scores], columns: Sequence[Column]) -> Figure:
    """Draw scores of several densities side by side: one row of axes a score, one column a target.

    ``scores`` maps the name of each density to its :class:`Scores`, which all have the same rows.
    """
    names = list(scores)
    titles = list(next(iter(scores.values())).rows)
    figure = Figure(figsize=(style.WIDTH, 0.5 + 1.45 * len(titles)))
    height = 0.5 + 1.45 * len(titles)
    for i, title in enumerate(titles):
        values = [scores[name].rows[title] for name in names]
        panels = len(np.atleast_1d(values[0][0]))
        for j in range(panels):
            width = (style.WIDTH - 0.9) / panels
            axes = figure.add_axes(
                (
                    (0.85 + j * width) / style.WIDTH,
                    1 - (0.30 + 1.45 * i + 1.0) / height,
                    (width - 0.62) / style.WIDTH,
                    1.0 / height,
                )
            )
            style.dress(axes)
            for number, (value, error, _) in enumerate(values):
                v, e = float(np.atleast_1d(value)[j]), float(np.atleast_1d(error)[j])
                axes.errorbar(
                    number, v, e, fmt="o", ms=4, color=style.CYCLE[number % len(style.CYCLE)], elinewidth=1.2
                )
            if (exact := values[0][2]) is not None:
                axes.axhline(exact, color=FAINT, lw=0.9, zorder=0)
            axes.set_xlim(-0.6, len(names) - 0.4)
            axes.margins(y=0.25)
            axes.set_xticks(range(len(names)), [safe_text(n, 18) for n in names], fontsize=7)
            axes.yaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
            of = f" of {columns[j].label or columns[j].name}" if panels > 1 else ""
            axes.set_title(safe_text(title + of, 60), loc="left", fontsize=8, pad=3)
    return figure
