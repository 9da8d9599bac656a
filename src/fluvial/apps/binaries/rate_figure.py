"""The figure of formation rates: counts of the cells, and the expected counts between them."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fluvial.apps.binaries.rates import Rates
from fluvial.report import style
from fluvial.report.bins import poisson_interval
from fluvial.report.style import styled

#: Values of the second context column that get a line, at most.
LINES = 6


@styled
def draw_rates(rates: Rates, held: np.ndarray | None = None) -> Figure:
    """Draw the expected count against the first context column, a line for each value of the second, with its error.

    Points are the counts with 68 % Poisson intervals; open ones (``held``: ``[k, C + 1]``, cells and their counts) were
    not fitted. Further context columns are at their middle values.
    """
    cells, names = rates.cells, rates.names
    grid = style.grid(1, 1, (3.2,), title=0.10)
    axes = grid.cells[0][0]
    first = cells.context[:, 0]
    span = np.geomspace if rates.log[0] else np.linspace
    x = span(first.min(), first.max(), 200)
    usual = {n: float(np.median(cells.context[:, i])) for i, n in enumerate(names)}
    values = np.unique(cells.context[:, 1]) if len(names) > 1 else np.array([np.nan])
    if len(values) > LINES:
        values = values[np.linspace(0, len(values) - 1, LINES).round().astype(int)]
    simulated = float(np.median(cells.simulated))
    for number, value in enumerate(values):
        colour = style.CYCLE[number % len(style.CYCLE)]
        at = {n: (np.full(len(x), usual[n])) for n in names} | {names[0]: x}
        rows, open_rows = np.ones(len(first), dtype=bool), np.zeros(0, dtype=bool)
        label = "expected"
        if len(names) > 1:
            at[names[1]] = np.full(len(x), value)
            rows = cells.context[:, 1] == value
            label = f"{style.safe_text(names[1])} = {value:g}"
        mean, deviation = rates.log_rate(**at)
        axes.plot(x, simulated * np.exp(mean), color=colour, label=label)
        axes.fill_between(
            x,
            simulated * np.exp(mean - deviation),
            simulated * np.exp(mean + deviation),
            color=colour,
            alpha=0.25,
            lw=0,
        )
        errors = np.abs(np.stack(poisson_interval(cells.counts[rows])) - cells.counts[rows])
        axes.errorbar(
            first[rows], cells.counts[rows], errors, fmt="o", color=colour, lw=0.9, ms=3.2, zorder=4
        )
        if held is not None and len(held):
            open_rows = held[:, 1] == value if len(names) > 1 else np.ones(len(held), dtype=bool)
            axes.plot(held[open_rows, 0], held[open_rows, -1], "o", mfc="white", mec=colour, ms=6, zorder=5)
    if rates.log[0]:
        axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = float(cells.counts.min()), float(cells.counts.max())
    axes.set_ylim(max(0.3, 0.4 * low), 3 * high)
    axes.set_xlabel(style.safe_text(names[0]))
    each = "" if simulated == 1 else f" of {simulated:,.0f} simulated"
    style.y_label(axes, f"mergers in a cell{each}")
    style.legend_strip(grid, axes)
    return grid.figure
