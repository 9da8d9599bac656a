"""Figures of a population inference: the posterior of the hyperparameters, and its predictive check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fluvial.data.schema import Column
from fluvial.extras import optional_module
from fluvial.report import style


@style.styled
def posterior_corner(
    samples: np.ndarray,
    columns: Sequence[Column],
    truth: Sequence[float] | None = None,
    log_axes: Sequence[bool] | None = None,
) -> Figure:
    """Return a corner plot of posterior draws ``[n, d]``: contours of 50 % and 90 %, medians and 90 % intervals.

    ``truth`` is marked where it is known; ``log_axes`` says which parameters are shown by their decimal logarithm.
    """
    corner: Any = optional_module("corner", "infer")
    logs = log_axes or [False] * len(columns)
    shown = np.where(logs, np.log10(np.where(logs, samples, 1.0)), samples)
    marks = None if truth is None else [np.log10(t) if on else t for t, on in zip(truth, logs, strict=True)]
    labels = [
        ("log$_{10}$ " if on else "") + style.axis_label(column)
        for column, on in zip(columns, logs, strict=True)
    ]
    size = max(3.2, 2.3 * len(columns))
    figure = Figure(figsize=(size, size))
    corner.corner(
        shown,
        fig=figure,
        labels=labels,
        truths=marks,
        truth_color=style.VERMILION,
        color=style.BLUE,
        levels=(0.5, 0.9),
        quantiles=(0.05, 0.5, 0.95),
        title_quantiles=(0.05, 0.5, 0.95),
        show_titles=True,
        title_fmt=".3g",
        title_kwargs={"fontsize": 8.0},
        label_kwargs={"fontsize": 8.0},
        smooth=1.0,
        smooth1d=None,
        bins=30,
        plot_datapoints=False,
        fill_contours=True,
        hist_kwargs={"linewidth": 1.2},
    )
    return figure


@style.styled
def predictive_bands(
    observed: np.ndarray,
    predicted: np.ndarray,
    columns: Sequence[Column],
    p_values: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Return cumulative distributions of observed and predicted catalogues ``[T, N, D]``: bands of 90 %, and medians."""
    grid = style.grid(len(columns), min(3, len(columns)), [2.4])
    number = observed.shape[1]
    share = (np.arange(number) + 0.5) / number
    for j, (column, (axes,)) in enumerate(zip(columns, grid.cells, strict=True)):
        for values, color, label in (
            (predicted[:, :, j], style.BLUE, "predicted, detected"),
            (observed[:, :, j], style.INK, "observed"),
        ):
            low, middle, high = np.quantile(np.sort(values, axis=1), [0.05, 0.5, 0.95], axis=0)
            axes.fill_betweenx(share, low, high, color=color, alpha=0.22, linewidth=0)
            axes.plot(middle, share, color=color, label=label)
        axes.set_ylim(0, 1)
        axes.set_xlabel(style.axis_label(column))
        worst = min(p_values[column.name].items(), key=lambda item: min(item[1], 1 - item[1]))
        style.corner_text(axes, f"{worst[0]}: p = {worst[1]:.2f}", top=False)
    style.y_label(grid.cells[0][0], "share of events below")
    style.legend_strip(grid, grid.cells[0][0])
    return grid.figure
