"""Figures of trust: baselines beside the flow, data less draws in cells, coverage before and after a recalibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluvial.check.baselines import Baseline
from fluvial.check.cells import CellDifferences
from fluvial.data.schema import Column
from fluvial.report import style
from fluvial.report.style import BAND, DRAWS, INK, MUTED, STEPS, VERMILION, safe_text, styled

__all__ = ["baselines", "before_and_after", "cell_map"]


@styled
def baselines(found: Sequence[Baseline]) -> Figure:
    """Draw by how many nats per row the flow beats each baseline, with one and two standard errors."""
    made = [b for b in found if b.made and np.isfinite(b.gain)]
    height = 0.32 * max(len(made), 1)
    grid = style.grid(1, 1, (height,), head=0.06, title=0.06, left=1.7, width=7.2)
    axes = grid.cells[0][0]
    y = np.arange(len(made))[::-1]
    for at, one in zip(y, made, strict=True):
        color = VERMILION if one.suffices else DRAWS
        axes.errorbar(one.gain, at, xerr=2 * one.gain_error, color=color, elinewidth=0.8, fmt="none")
        axes.errorbar(one.gain, at, xerr=one.gain_error, fmt="o", ms=4, color=color, elinewidth=2.0)
    axes.axvline(0, color=MUTED, lw=0.8, ls="--", zorder=0)
    axes.set_yticks(y, [safe_text(b.name) for b in made])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(made) - 0.4)
    low = min([0.0, *(b.gain - 2.5 * b.gain_error for b in made)])
    high = max([1e-3, *(b.gain + 2.5 * b.gain_error for b in made)])
    axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    axes.set_xlabel("gain of the flow [nats per row]")
    return grid.figure


@styled
def cell_map(
    cells: CellDifferences, columns: Sequence[Column], context: Sequence[Column], threshold: float
) -> Figure:
    """Draw the largest P(target > t) in the data less that in the draws, cell by cell, a panel a target.

    Two context columns span a map, one an axis; with more, cells are put in order of the difference. The worst cell of
    each panel, in standard errors, is ringed.
    """
    across = 2 if len(columns) in (1, 2, 4) else 3
    height = 2.5 if len(context) == 2 else 1.9
    grid = style.grid(len(columns), across, (height,), head=0.30 if len(context) == 2 else 0.10)
    reach = max(2 * threshold, float(np.nanmax(np.abs(cells.difference), initial=0.0)))
    for j, ((axes,), column) in enumerate(zip(grid.cells, columns, strict=True)):
        difference, error = cells.difference[:, j], cells.error[:, j]
        worst = int(np.nanargmax(np.abs(difference) / error))
        axes.set_title(safe_text(column.label or column.name), loc="left", fontweight="bold", pad=4, y=1.0)
        if len(context) == 2:
            _map(axes, cells, difference, worst, context, reach)
        else:
            _strip(axes, cells, difference, error, worst, context, threshold)
    if len(context) == 2:
        _bar(grid, reach)
    return grid.figure


def _map(
    axes: Axes,
    cells: CellDifferences,
    difference: np.ndarray,
    worst: int,
    context: Sequence[Column],
    reach: float,
) -> None:
    look = {"cmap": style.DIFFERENCE_MAP, "norm": Normalize(-reach, reach)}
    (x, x_values), (y, y_values) = (_places(values) for values in cells.context.T)
    if x_values is not None and y_values is not None:  # a grid: its values in order, whatever their distances
        image = np.full((len(y_values), len(x_values)), np.nan)
        image[y.astype(int), x.astype(int)] = difference
        axes.pcolormesh(np.ma.masked_invalid(image), edgecolors="white", linewidth=1.0, **look)
        x, y = x + 0.5, y + 0.5
        for axis, values in ((axes.xaxis, x_values), (axes.yaxis, y_values)):
            step = -(-len(values) // 8)
            axis.set_ticks(np.arange(len(values))[::step] + 0.5, [f"{v:.3g}" for v in values[::step]])
            axis.set_tick_params(which="both", length=0)
    else:
        size = 12 + 40 * cells.rows / cells.rows.max()
        axes.scatter(x, y, c=difference, s=size, edgecolors=MUTED, linewidths=0.4, zorder=2, **look)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.margins(0.08)
    axes.plot(x[worst], y[worst], "o", ms=11, mfc="none", mec=INK, mew=1.1, zorder=3)
    axes.set_xlabel(style.axis_label(context[0], 30))
    style.y_label(axes, style.axis_label(context[1], 30))


def _places(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return where values of a grid stand in their order, and the values; those of no grid as they are, and ``None``."""
    known, index = np.unique(values, return_inverse=True)
    if len(known) <= max(len(values) // 2, 1):
        return index.astype(float), known
    return values, None


def _strip(
    axes: Axes,
    cells: CellDifferences,
    difference: np.ndarray,
    error: np.ndarray,
    worst: int,
    context: Sequence[Column],
    threshold: float,
) -> None:
    if len(context) == 1:
        order, x = np.arange(len(difference)), cells.context[:, 0]
        axes.set_xlabel(style.axis_label(context[0], 40))
        if x.min() > 0 and x.max() > 20 * x.min():
            axes.set_xscale("log")
    else:
        order = np.argsort(difference)
        x = np.arange(len(difference))
        axes.set_xlabel("cells of context, in order")
    axes.axhspan(-threshold, threshold, color=BAND, lw=0, zorder=0)
    axes.axhline(0, color=MUTED, lw=0.8, ls="--", zorder=1)
    axes.errorbar(x, difference[order], error[order], fmt="o", ms=2.8, color=DRAWS, elinewidth=0.8, zorder=2)
    at = int(np.flatnonzero(order == worst)[0])
    axes.plot(x[at], difference[worst], "o", ms=8, mfc="none", mec=INK, mew=1.1, zorder=3)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    style.y_label(axes, "data − draws")


def _bar(grid: style.Grid, reach: float) -> None:
    """A slim scale on top of the figure."""
    figure = grid.figure
    width, height = figure.get_size_inches()
    bar_axes = figure.add_axes((0.66 / width, 1 - 0.12 / height, 2.4 / width, 0.09 / height))
    mappable = ScalarMappable(Normalize(-reach, reach), style.DIFFERENCE_MAP)
    bar = figure.colorbar(mappable, cax=bar_axes, orientation="horizontal")
    bar.outline.set_linewidth(0.5)  # type: ignore[operator]
    bar_axes.tick_params(labelsize=7, length=2, pad=1.5, direction="out")
    bar_axes.xaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    figure.text(
        3.2 / width,
        1 - 0.14 / height,
        "P(target > t): data − draws, at the t where they differ most",
        fontsize=7.5,
        va="bottom",
    )


@styled
def before_and_after(test: Mapping[str, Any]) -> Figure:
    """Draw coverage less its level before and after a recalibration; ``test`` is what ``density.json`` says of it."""
    grid = style.grid(1, 1, (1.9,), head=0.26, title=0.06, width=style.WIDTH / 1.6)
    axes = grid.cells[0][0]
    levels = np.asarray(test["levels"], dtype=float)
    error = np.asarray(test["curve_error_after"], dtype=float)
    axes.fill_between(levels, -2 * error, 2 * error, color=BAND, lw=0, zorder=-1, label="expected, 95 %")
    axes.axhline(0, color=MUTED, lw=0.8, ls="--", zorder=0)
    for when, color, mark in (("before", VERMILION, "s"), ("after", DRAWS, "o")):
        gap = np.asarray(test[f"curve_{when}"], dtype=float) - levels
        e = np.asarray(test[f"curve_error_{when}"], dtype=float)
        axes.errorbar(levels, gap, e, fmt=f"{mark}-", ms=2.8, lw=0.9, elinewidth=0.8, color=color, label=when)
    axes.set_xlim(0, 1)
    axes.set_xlabel("level of the highest-density region")
    style.y_label(axes, "coverage − level")
    style.legend_strip(grid, axes, "before")
    return grid.figure
