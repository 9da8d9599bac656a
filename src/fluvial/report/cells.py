"""A map of the cells of a grid of two context columns: how well each is described."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fluvial.data.schema import Column
from fluvial.report import style
from fluvial.report.style import INK, VERMILION, styled


class Judged(Protocol):
    """What is drawn of a cell."""

    @property
    def context(self) -> Mapping[str, float]:
        """Its context columns."""
        ...

    @property
    def kl(self) -> float:
        """KL(truth‖fit) in nats; NaN if the truth is not known."""
        ...

    @property
    def pit(self) -> float:
        """The PIT's distance from uniform."""
        ...

    @property
    def verdict(self) -> str:
        """What is to be thought of it."""
        ...


@styled
def cell_map(
    trained: Sequence[Judged], held: Sequence[Judged], columns: Sequence[Column], *, kl: bool
) -> Figure:
    """Draw a statistic of every cell: the KL in nats, or the PIT's distance from uniform; held-out cells are framed."""
    first, second = columns
    cells = [*trained, *(h for h in held if h.context)]
    across, up = (sorted({c.context[k.name] for c in cells}) for k in (first, second))
    image = np.full((len(up), len(across)), np.nan)
    grid = style.grid(1, 1, (max(1.4, 0.32 * len(up) + 0.5),), title=0.06)
    axes = grid.cells[0][0]
    for c in cells:
        at = up.index(c.context[second.name]), across.index(c.context[first.name])
        image[at] = c.kl if kl else c.pit
    known = image[np.isfinite(image)]
    top = float(np.quantile(np.abs(known), 0.9)) if len(known) else 1.0
    axes.imshow(
        np.ma.masked_invalid(image), origin="lower", aspect="auto", cmap=style.DENSITY_MAP, vmin=0, vmax=top
    )
    for c in cells:
        i, j = up.index(c.context[second.name]), across.index(c.context[first.name])
        value, pale = image[i, j], c.verdict == "insufficient data"
        if pale:
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color="white", alpha=0.8, lw=0))
        text = "–" if not math.isfinite(value) else f"{value:.3f}".replace("-", "−")
        dark = math.isfinite(value) and value > 0.6 * top and not pale
        weight = "bold" if c.verdict == "fail" else "normal"
        axes.text(
            j, i, text, ha="center", va="center", fontsize=6.5, color="white" if dark else INK, weight=weight
        )
    for c in (h for h in held if h.context):
        i, j = up.index(c.context[second.name]), across.index(c.context[first.name])
        axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, ec=VERMILION, lw=1.6))
    axes.set_xticks(range(len(across)), [f"{v:g}" for v in across], fontsize=7)
    axes.set_yticks(range(len(up)), [f"{v:g}" for v in up], fontsize=7)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel(style.axis_label(first))
    style.y_label(axes, style.axis_label(second))
    return grid.figure
