"""Data against draws at one context: every column on its own, and all of them jointly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from fluvial.data.schema import Column
from fluvial.errors import DataError
from fluvial.report import style
from fluvial.report.bins import Binning, bin_number, binning, finite, poisson_interval, pooled_pull
from fluvial.report.marks import data_points, draw_line, heights, same_y, value_axis
from fluvial.report.style import DATA, DRAWS, MUTED, VERMILION, safe_text, styled

#: Targets that a joint figure shows at most.
MOST_JOINT = 6


@dataclass(frozen=True)
class Panel:
    """Data ``[n, D]`` and draws ``[m, D]`` of the targets at one context (or a bin of it), with a title."""

    title: str
    data: np.ndarray
    draws: np.ndarray


@styled
def marginals(panels: Sequence[Panel], columns: Sequence[Column]) -> Figure:
    """Draw every target of every panel: data against draws, and their ratio beneath.

    Ranges and scales are shared over the panels of a column, and bins by data and draws. A column's y axis
    is logarithmic if a fifth of its range lies a factor of 50 below the highest bin. The band about 1 in the
    ratio is the Poisson uncertainty of the draws; triangles stand for ratios beyond the frame, coloured if
    they are more than three standard deviations from 1. One row a panel for up to three targets (for one
    target, three panels a row).

    Raises :class:`~fluvial.errors.DataError` if a panel does not have one column for each of ``columns``.
    """
    arrays = [_checked(p, columns) for p in panels]
    dims = len(columns)
    across = {1: min(3, max(1, len(panels))), 2: 2, 4: 2}.get(dims, 3)
    block = -(-dims // across) * across if dims > 1 else 1  # cells for one panel, some perhaps unused
    width = style.WIDTH / 2 if across == 1 else None
    title = 0.26 if dims > 1 else 0.40
    grid = style.grid(max(len(panels) * block, 1), across, (1.5, 0.62), width=width, title=title)
    for j, column in enumerate(columns):
        data = [d[:, j] for d, _ in arrays]
        draws = [s[:, j] for _, s in arrays]
        axes = [grid.cells[i * block + j] for i in range(len(panels))]
        seen: list[tuple[np.ndarray, np.ndarray, Binning]] = []
        for stack, d, s in zip(axes, data, draws, strict=True):
            number, positive = bin_number(len(d)), column.support.lower >= 0
            bins = binning(data, draws, number, positive=positive, atoms=column.atoms, within=_ends(column))
            _spectrum(stack, d, s, bins, style.density_label(column))
            _say_far_atoms(stack[0], d, s, bins, column.atoms)
            stack[1].set_xlabel(style.axis_label(column, 44 if across < 3 else 26))
            seen.append((heights(d, bins), heights(s, bins), bins))
        same_y([stack[0] for stack in axes], seen)
    for i, panel in enumerate(panels):
        for stack in grid.cells[i * block + dims : (i + 1) * block]:
            for unused in stack:
                grid.figure.delaxes(unused)
        _panel_title(grid.cells[i * block][0], grid.cells[i * block + min(across, dims) - 1][0], panel)
    if panels and columns:
        style.legend_strip(grid, grid.cells[0][0], "data")
    return grid.figure


def _checked(panel: Panel, columns: Sequence[Column]) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays of a panel as float64, their shapes checked against the columns."""
    data, draws = np.asarray(panel.data, dtype=float), np.asarray(panel.draws, dtype=float)
    for what, array in (("data", data), ("draws", draws)):
        if array.ndim != 2 or array.shape[1] != len(columns):
            names = ", ".join(c.name for c in columns)
            raise DataError(
                f"panel {panel.title!r}: expected {what} of shape [rows, {len(columns)}] for {names}; "
                f"got {list(array.shape)}. Give one array column for each target, in their order."
            )
    return data, draws


def _panel_title(first: Axes, last: Axes, panel: Panel) -> None:
    """The title over the first cell of a panel; how many rows and draws over the last, or under the title."""
    alone = first is last
    title = safe_text(panel.title, 36 if alone else 80)
    size = f"{len(panel.data):,} rows · {len(panel.draws):,} draws"
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    first.annotate(title, (0, 1), (0, 15 if alone else 4), fontsize=8.5, fontweight="bold", **place)
    x, side = (0, "left") if alone else (1, "right")
    last.annotate(size, (x, 1), (0, 4), fontsize=7, color=MUTED, ha=side, **place)


def _spectrum(stack: list[Axes], data: np.ndarray, draws: np.ndarray, bins: Binning, label: str) -> None:
    """One column at one context: data and draws as densities, and their ratio."""
    top, bottom = stack
    data_points(top, data, bins)
    draw_line(top, draws, bins)
    value_axis(bottom.xaxis, bins)
    style.y_label(top, label)
    if not len(data):
        style.corner_text(top, "no data here")
    elif (lost := bins.outside(draws)) > bins.outside(data) + 0.01:
        style.corner_text(top, f"{style.percent(lost)} of the draws beyond the frame", color=VERMILION)
    _ratio(bottom, data, draws, bins)


def _say_far_atoms(
    axes: Axes, data: np.ndarray, draws: np.ndarray, bins: Binning, atoms: Sequence[float]
) -> None:
    """Write the shares of atoms that lie beyond the frame."""
    lines = [
        f"at {atom:g}: data {style.percent(np.mean(data == atom))}, draws {style.percent(np.mean(draws == atom))}"
        for atom in atoms
        if not bins.edges[0] <= atom <= bins.edges[-1] and len(data) and len(draws)
    ]
    if lines:
        style.corner_text(axes, "\n".join(lines), right=False)


def _ratio(axes: Axes, data: np.ndarray, draws: np.ndarray, bins: Binning) -> None:
    """Data over draws, with the uncertainty of the data on the points and that of the draws in the band."""
    n, m = bins.counts(data), bins.counts(draws)
    scale = max(len(data), 1) / max(len(draws), 1)
    expected = scale * m
    some = m > 0
    low, up = poisson_interval(m)
    safe = np.where(some, m, 1.0)
    band = np.where(some, up / safe, 1.0), np.where(some, low / safe, 1.0)
    axes.stairs(band[0], bins.edges, baseline=band[1], fill=True, color=DRAWS, alpha=0.22, lw=0)
    axes.axhline(1.0, color=DRAWS, lw=0.9)
    lower, upper = poisson_interval(n)
    unit = np.where(some, expected, 1.0)
    ratio, lower, upper = np.where(some, n / unit, np.inf), lower / unit, upper / unit
    shown = (n > 0) & some
    half = _ratio_range(ratio[shown], (upper - lower)[shown])
    inside = shown & (np.abs(ratio - 1) <= half)
    x = bins.centres
    error = np.stack([ratio[inside] - lower[inside], upper[inside] - ratio[inside]])
    axes.errorbar(x[inside], ratio[inside], error, fmt="o", ms=2.2, color=DATA, elinewidth=0.8)
    above = (n > 0) & (ratio > 1 + half)
    below = (ratio < 1 - half) & ((n > 0) | (expected > 3))
    tension = np.abs(np.nan_to_num(pooled_pull(n, m, len(data), len(draws)))) > 3
    for beyond, place, mark in ((above, 1 + 0.86 * half, "^"), (below, 1 - 0.86 * half, "v")):
        for these, color in ((beyond & ~tension, MUTED), (beyond & tension, VERMILION)):
            axes.plot(x[these], np.full(these.sum(), place), mark, ms=3, color=color)
    axes.set_ylim(1 - half, 1 + half)
    axes.set_yticks([1 - half / 2, 1, 1 + half / 2])
    style.y_label(axes, "data/draws")


def _ratio_range(ratio: np.ndarray, error: np.ndarray) -> float:
    """The smallest of three half-ranges that holds nine of ten of the points known to within 40 %."""
    known = np.abs(ratio - 1)[error < 0.8]
    far = float(np.quantile(known, 0.9)) if len(known) else 1.0
    return next((half for half in (0.2, 0.5) if far < 0.8 * half), 1.0)


@styled
def joint(panel: Panel, columns: Sequence[Column]) -> Figure:
    r"""Draw data and draws of one panel jointly, for two to six targets.

    Two targets: the data, the draws, and by how many standard deviations they differ in every cell,
    :math:`(n - s m) / \sqrt{s (n + m)}` with s the ratio of the numbers of rows and draws. Three to six: a
    triangle with, for every pair, contours that hold 50 % and 90 % of the data and of the draws; on the
    diagonal, each alone.

    Raises :class:`~fluvial.errors.DataError` for other numbers of columns (one target has no joint figure; of
    more than six, choose) or if the panel does not have one column for each of ``columns``.
    """
    if not 2 <= len(columns) <= MOST_JOINT:
        raise DataError(
            f"joint figure: expected 2 to {MOST_JOINT} columns; got {len(columns)}. One column is drawn by marginals(); "
            "of more, choose the ones to see together and give the panel those columns alone."
        )
    data, draws = _checked(panel, columns)
    if len(columns) == 2:
        return _images(panel.title, data, draws, columns)
    return _triangle(panel.title, data, draws, columns)


def _images(title: str, data: np.ndarray, draws: np.ndarray, columns: Sequence[Column]) -> Figure:
    """Data | draws | difference, as images in shared cells."""
    axes_bins = _joint_bins(data, draws, columns, 0.9, 72)
    n, m = (_counts2(v[:, 0], v[:, 1], axes_bins[0], axes_bins[1]) for v in (data, draws))
    area = np.outer(axes_bins[0].widths, axes_bins[1].widths)
    images = [c / (max(len(v), 1) * area) for c, v in ((n, data), (m, draws))]
    pull = pooled_pull(n, m, len(data), len(draws))
    side = 2.12
    grid = style.grid(3, 3, (side,), head=0.0, title=0.78, left=0.62)
    norm = _density_scale(np.concatenate([i[i > 0] for i in images]))
    tension = Normalize(-5, 5)
    for (axes,), image, words, cmap, scale in zip(
        grid.cells,
        (*images, pull),
        (f"data · {len(data):,} rows", f"draws · {len(draws):,}", "data − draws"),
        (style.DENSITY_MAP, style.DENSITY_MAP, style.DIFFERENCE_MAP),
        (norm, norm, tension),
        strict=True,
    ):
        shown = np.ma.masked_invalid(np.where(image > 0, image, np.nan) if scale is norm else image)
        axes.pcolormesh(
            axes_bins[0].edges, axes_bins[1].edges, shown.T, cmap=cmap, norm=scale, rasterized=True
        )
        value_axis(axes.xaxis, axes_bins[0])
        value_axis(axes.yaxis, axes_bins[1])
        axes.set_xlabel(style.axis_label(columns[0], 28))
        style.y_label(axes, style.axis_label(columns[1], 28), 0.44)
        bar_title = style.joint_density_label(columns) if scale is norm else "standard deviations"
        _color_bar(grid.figure, axes, ScalarMappable(scale, cmap), f"{words}: {bar_title}", scale is tension)
    width, height = grid.figure.get_size_inches()
    x = 0.62 / width
    grid.figure.text(x, 1 - 0.03 / height, safe_text(title, 90), ha="left", va="top", fontweight="bold")
    return grid.figure


def _density_scale(positive: np.ndarray) -> Normalize:
    """A colour scale for densities: logarithmic over four decades at most, from zero if less than one."""
    top = float(positive.max()) if len(positive) else 1.0
    floor = max(float(positive.min()), 1e-4 * top) if len(positive) else top
    return LogNorm(floor, top) if top > 10 * floor else Normalize(0, 1.001 * top)


def _ends(column: Column) -> tuple[float, float]:
    """Return between which values a column can be."""
    if column.kind == "integer":
        return -np.inf, np.inf
    return column.period or (column.support.lower, column.support.upper)


def _joint_bins(
    data: np.ndarray, draws: np.ndarray, columns: Sequence[Column], scale: float, most: int
) -> list[Binning]:
    """Bins of the axes of an image: fewer than for a histogram, because cells share the rows.

    If one column has a logarithmic axis, so have the others of its unit that can: else a diagonal would bend.
    """
    number = int(np.clip(scale * bin_number(len(data), 1000), 8, most))

    def one(j: int, log_from: float) -> Binning:
        positive = columns[j].support.lower >= 0
        pair = [data[:, j]], [draws[:, j]]
        within = _ends(columns[j])
        return binning(*pair, number, positive=positive, adaptive=False, log_from=log_from, within=within)

    first = [one(j, 4.0) for j in range(len(columns))]
    bent = {c.unit for c, bins in zip(columns, first, strict=True) if bins.log}
    return [one(j, 1.0) if c.unit in bent and not first[j].log else first[j] for j, c in enumerate(columns)]


def _counts2(x: np.ndarray, y: np.ndarray, x_bins: Binning, y_bins: Binning) -> np.ndarray:
    known = np.isfinite(x) & np.isfinite(y)
    return np.histogram2d(x[known], y[known], [x_bins.edges, y_bins.edges])[0]


def _color_bar(figure: Figure, axes: Axes, mappable: ScalarMappable, title: str, both: bool) -> None:
    """A slim bar over ``axes``, so that the three images keep one size."""
    box = axes.get_position()
    height = float(figure.get_size_inches()[1])
    place = (box.x0, box.y1 + 0.10 / height, box.width, 0.09 / height)
    bar_axes = figure.add_axes(place)
    bar = figure.colorbar(
        mappable, cax=bar_axes, orientation="horizontal", extend="both" if both else "neither"
    )
    bar.outline.set_linewidth(0.5)  # type: ignore[operator]
    bar_axes.xaxis.set_ticks_position("top")
    bar_axes.tick_params(which="both", labelsize=7, length=2, pad=1.5, direction="out")
    bar_axes.xaxis.set_minor_formatter(NullFormatter())
    figure.text(box.x0, box.y1 + 0.40 / height, title, fontsize=8, va="bottom", ha="left")


def _triangle(title: str, data: np.ndarray, draws: np.ndarray, columns: Sequence[Column]) -> Figure:
    """Contours below the diagonal, histograms on it."""
    dims = len(columns)
    width = style.WIDTH if dims > 3 else 7.2
    left, low, top, gap = 0.72, 0.56, 0.30, 0.08
    side = (width - left - 0.1 - gap * (dims - 1)) / dims
    height = top + low + dims * side + gap * (dims - 1)
    figure = Figure(figsize=(width, height))
    bins = _joint_bins(data, draws, columns, 0.5, 40)
    for i in range(dims):
        for j in range(i + 1):
            x, y = left + j * (side + gap), low + (dims - 1 - i) * (side + gap)
            axes = figure.add_axes((x / width, y / height, side / width, side / height))
            style.dress(axes)
            if i == j:
                _alone(axes, data[:, i], draws[:, i], bins[i])
            else:
                _contours(axes, data[:, [j, i]], draws[:, [j, i]], bins[j], bins[i])
            axes.tick_params(labelbottom=i == dims - 1, labelleft=j == 0 and i > 0)
            if i == dims - 1:
                axes.set_xlabel(style.axis_label(columns[j], 22))
            if j == 0 and i > 0:
                style.y_label(axes, style.axis_label(columns[i], 22), 0.52)
    handles = [
        Line2D([], [], color=DATA, marker="o", ls="--", ms=2.6, label=f"data, {len(data):,} rows"),
        Line2D([], [], color=DRAWS, lw=1.3, label=f"draws, {len(draws):,}"),
    ]
    legend = figure.legend(
        handles=handles, loc="upper right", bbox_to_anchor=(1 - 0.1 / width, 1 - top / height)
    )
    legend.set_title(safe_text(title, 44), prop=FontProperties(size=8.5, weight="bold"))
    return figure


def _alone(axes: Axes, data: np.ndarray, draws: np.ndarray, bins: Binning) -> None:
    data_points(axes, data, bins)
    draw_line(axes, draws, bins)
    value_axis(axes.xaxis, bins, few=True)
    same_y([axes], [(heights(data, bins), heights(draws, bins), bins)])
    axes.tick_params(labelleft=False)
    axes.set_yticks([])


def _contours(axes: Axes, data: np.ndarray, draws: np.ndarray, x_bins: Binning, y_bins: Binning) -> None:
    """Contours of data (dashed) and draws; the data themselves as points, at most 1,500 of them."""
    some = data[:: -(-len(data) // 1500) or 1]
    alpha = float(np.clip(150 / max(len(some), 1), 0.12, 1.0))
    axes.plot(some[:, 0], some[:, 1], ".", ms=2, mew=0, color=DATA, alpha=alpha, rasterized=True, zorder=1)
    for values, color, line in ((draws, DRAWS, "solid"), (data, DATA, "dashed")):
        counts = _smooth(_counts2(values[:, 0], values[:, 1], x_bins, y_bins))
        image = counts / np.outer(x_bins.widths, y_bins.widths)
        levels = _levels(image, counts)
        if len(values) >= 100 and len(levels):
            centres = x_bins.centres, y_bins.centres
            axes.contour(
                *centres, image.T, levels=levels, colors=color, linewidths=1.1, linestyles=line, zorder=3
            )
    value_axis(axes.xaxis, x_bins, few=True)
    value_axis(axes.yaxis, y_bins, few=True)
    if not len(finite(data)) and not len(finite(draws)):
        style.corner_text(axes, "nothing to show", color=MUTED)


def _smooth(counts: np.ndarray) -> np.ndarray:
    """Average each cell with its neighbours, weights 1 2 1 along both axes, so that contours are legible."""
    for axis in (0, 1):
        padded = np.pad(counts, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        before, here, after = (np.take(padded, range(k, counts.shape[axis] + k), axis) for k in range(3))
        counts = (before + 2 * here + after) / 4
    return counts


def _levels(image: np.ndarray, counts: np.ndarray) -> list[float]:
    """The densities above which lie 90 % and 50 % of the counts, increasing and distinct."""
    order = np.argsort(-image, axis=None)
    held = np.cumsum(counts.ravel()[order])
    if not held.size or held[-1] <= 0:
        return []
    densities = image.ravel()[order][np.minimum(np.searchsorted(held / held[-1], [0.9, 0.5]), held.size - 1)]
    levels = sorted({float(d) for d in densities})
    return [v for v in levels if 0 < v < float(image.max())]
