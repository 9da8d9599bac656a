"""How figures look: colours, sizes, labels, and the way from a figure to a sharp PNG.

Figures are :class:`matplotlib.figure.Figure` objects; ``pyplot`` and its global list of figures are never
touched, and no backend is chosen. Sizes are in inches at 100 CSS pixels to the inch.
"""

from __future__ import annotations

import functools
import io
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.mathtext import MathTextParser

from fluvial.data.schema import Column

# Okabe & Ito (2008), "Color universal design": told apart with any colour vision, and in grey.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)

INK, MUTED, FAINT, BAND = "#1a1a1a", "#6b6b6b", "#c9c9c9", "#e6e6e6"
DATA, DRAWS = INK, BLUE

STEPS = (1, 2, 5, 10)  # ticks stand at multiples of these times a power of ten

DENSITY_MAP = LinearSegmentedColormap.from_list("density", ["#e8f1f8", "#7fb8dc", BLUE, "#06304f"])
DIFFERENCE_MAP = LinearSegmentedColormap.from_list(
    "difference", [BLUE, "#9cc9e6", "#f4f4f4", "#f3b98f", VERMILION]
)

CSS_DPI = 100  # CSS pixels to the inch of a figure
MAX_PIXELS = 40_000_000  # a taller figure is drawn less finely, not without bound
WIDTH = 9.4  # inches: the text width of the page

_UNITS = {"Msun": r"M$_\odot$", "Rsun": r"R$_\odot$", "Lsun": r"L$_\odot$"}

_RC: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same figure on every machine
    "font.size": 8.5,
    "text.usetex": False,
    "mathtext.fontset": "dejavusans",
    "axes.unicode_minus": True,
    "axes.linewidth": 0.7,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.5,
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.useoffset": False,
    "axes.grid": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.2,
    "lines.markersize": 2.8,
    "errorbar.capsize": 0.0,
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Make ``function`` run under the style of this package, and leave the caller's settings as they were.

    For its duration the settings of matplotlib change, and they belong to the process: draw in one thread.
    """

    @functools.wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_RC):
            return function(*args, **kwargs)

    return inner


def safe_text(text: str, longest: int = 48) -> str:
    r"""Return ``text`` so that matplotlib can draw it, whatever it is.

    Mathtext that parses is kept. Mathtext that does not is shown as it was written; characters that the
    font lacks become U+FFFD; control characters become spaces; plain text longer than ``longest``
    characters loses its middle.

    >>> safe_text("$M_0$")
    '$M_0$'
    >>> safe_text(r"$M_{0$")
    '\\$M_{0\\$'
    >>> safe_text("reconstructed_transverse_momentum_over_generated", longest=20)
    'reconstruc…generated'
    """
    font = get_font(findfont("DejaVu Sans"))
    out = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    out = "".join(c if font.get_char_index(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in out)
    if "$" in out:
        if _parses(out):
            return out
        out = out.replace(r"\$", "$")
    if len(out) > longest:
        out = out[: longest // 2] + "…" + out[len(out) - (longest - 1) // 2 :]
    return out.replace("$", r"\$")


def _parses(text: str) -> bool:
    try:
        MathTextParser("path").parse(text)
    except (ValueError, RuntimeError):
        return False
    return True


def axis_label(column: Column, longest: int = 40) -> str:
    r"""Return the label of an axis: the column's label (or else its name), with its unit in brackets.

    >>> axis_label(Column("Mass_0", "target", unit="Msun", label="$M_0$"))
    '$M_0$ [M$_\\odot$]'
    """
    return safe_text(column.label or column.name, longest) + (
        f" [{unit(column)}]" if has_unit(column) else ""
    )


def percent(fraction: float) -> str:
    """Return a fraction in per cent: to two figures below ten, whole above.

    >>> percent(0.00123), percent(0.123), percent(1.0)
    ('0.12 %', '12 %', '100 %')
    """
    return f"{100 * fraction:.2g} %" if fraction < 0.1 else f"{100 * fraction:.0f} %"


def has_unit(column: Column) -> bool:
    """Return whether the column has a unit worth showing: neither empty nor ``1``."""
    return column.unit.strip() not in ("", "1")


def unit(column: Column) -> str:
    """Return the column's unit for an axis."""
    return _UNITS.get(column.unit, safe_text(column.unit, 16))


def density_label(column: Column) -> str:
    """Return the label of an axis that shows a density over ``column``."""
    if not has_unit(column):
        return "density"
    shown = unit(column)
    return (
        f"density [{shown}$^{{-1}}$]"
        if shown.isalpha() or column.unit in _UNITS
        else f"density [1/({shown})]"
    )


def joint_density_label(columns: Sequence[Column]) -> str:
    """Return the label of a scale that shows a joint density over ``columns``."""
    with_unit = [c for c in columns if has_unit(c)]
    if not with_unit:
        return "density"
    shown = unit(columns[0])
    if len({c.unit for c in columns}) == 1 and (shown.isalpha() or columns[0].unit in _UNITS):
        return f"density [{shown}$^{{-{len(columns)}}}$]"
    return "density [1/(" + " · ".join(map(unit, with_unit)) + ")]"


@dataclass(frozen=True)
class Grid:
    """A figure of equal cells, each a stack of axes that share x; ``cells[i][0]`` is the top of cell i."""

    figure: Figure
    cells: list[list[Axes]]


def grid(
    cells: int,
    columns: int,
    heights: Sequence[float],
    *,
    width: float | None = None,
    head: float = 0.26,
    title: float = 0.26,
    left: float = 0.66,
) -> Grid:
    """Lay out ``cells`` cells in rows of ``columns``, by the inch, so that every axis lines up.

    ``heights`` are those of the stacked axes, ``head`` the strip on top of the figure for its legend and
    ``title`` the strip over each cell, all in inches; ``width`` is the width of one cell.
    """
    right, bottom, gap = 0.10, 0.52, 0.07
    rows = -(-cells // columns)
    cell_width = width or WIDTH / columns
    cell_height = title + sum(heights) + gap * (len(heights) - 1) + bottom
    total = (cell_width * columns, head + rows * cell_height)
    figure = Figure(figsize=total)
    out: list[list[Axes]] = []
    for cell in range(cells):
        row, column = divmod(cell, columns)
        x = column * cell_width + left
        top = total[1] - head - row * cell_height - title
        stack: list[Axes] = []
        for height in heights:
            top -= height
            place = (x / total[0], top / total[1], (cell_width - left - right) / total[0], height / total[1])
            axes = figure.add_axes(place, sharex=stack[0] if stack else None)
            dress(axes)
            stack.append(axes)
            top -= gap
        for axes in stack[:-1]:
            axes.xaxis.set_visible(False)  # the lowest axes have the ticks; drawing them twice takes long
        out.append(stack)
    return Grid(figure, out)


def dress(axes: Axes) -> None:
    """Give ``axes`` the ticks and the frame of this package, explicitly: ticks are made only when drawn."""
    axes.tick_params(
        which="major", direction="in", length=3.5, width=0.7, labelsize=7.5, top=True, right=True
    )
    axes.tick_params(
        which="minor", direction="in", length=2.0, width=0.5, labelsize=7.5, top=True, right=True
    )
    for spine in axes.spines.values():
        spine.set_linewidth(0.7)


def y_label(axes: Axes, text: str, inches: float = 0.50) -> None:
    """Label the y axis at a fixed distance, so that the labels of stacked axes line up."""
    figure = axes.get_figure(root=True)
    width = axes.get_position().width * (figure.get_size_inches()[0] if figure else 1.0)
    axes.set_ylabel(text)
    axes.yaxis.set_label_coords(-inches / width, 0.5)


def corner_text(axes: Axes, text: str, *, right: bool = True, top: bool = True, color: str = MUTED) -> None:
    """Write a small remark into a corner of ``axes``, on a ground that keeps it legible."""
    axes.text(
        0.975 if right else 0.025,
        0.95 if top else 0.06,
        text,
        transform=axes.transAxes,
        ha="right" if right else "left",
        va="top" if top else "bottom",
        fontsize=7.5,
        color=color,
        linespacing=1.35,
        zorder=20,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.2},
    )


def legend_strip(grid: Grid, axes: Axes, first: str = "", left: float = 0.66) -> None:
    """Show the legend of ``axes`` on top of the figure, in one line, aligned with the first cell.

    The entry named ``first`` comes first; matplotlib alone would put points after lines.
    """
    entries = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] != first)
    handles, labels = [h for h, _ in entries], [label for _, label in entries]
    width, height = grid.figure.get_size_inches()
    grid.figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(left / width, 1 - 0.02 / height),
        ncols=len(labels),
        borderaxespad=0,
        borderpad=0,
        handlelength=1.8,
        columnspacing=1.8,
    )


@styled
def png(figure: Figure, scale: float = 2.0) -> bytes:
    """Return ``figure`` as a PNG at ``scale`` pixels to the CSS pixel; its drawing buffer is freed.

    The bytes depend on the figure alone: neither date nor version is written into them.
    """
    width, height = figure.get_size_inches()
    dpi = min(CSS_DPI * scale, (MAX_PIXELS / (width * height)) ** 0.5)
    out = io.BytesIO()
    before = figure.dpi
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    try:
        canvas.print_png(out, metadata={"Software": None}, pil_kwargs={"compress_level": 4})
    finally:
        figure.set_dpi(before)
        FigureCanvasBase(figure)  # takes the place of the Agg canvas, whose buffer may be tens of MB
    return out.getvalue()
