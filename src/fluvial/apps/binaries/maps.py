"""Likelihood maps: log p over the plane of two targets, at one context, at several, or moving through one.

One context column may be left free: the figure then shows slices along it, and an animation runs through it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.animation import FFMpegWriter, FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from fluvial.density import Density
from fluvial.errors import DataError, FluvialError
from fluvial.files import write_atomically
from fluvial.report import style
from fluvial.report.style import styled

#: Points along each target of a map, and draws at each context that say where to look.
POINTS, DRAWS = 200, 4000
#: What is shown of the density: down to this share of its largest value.
DEPTH = 1e-4
#: Regions of highest density that are outlined.
LEVELS = (0.9, 0.5)
FIGURES, ANIMATIONS = (".png", ".pdf", ".svg"), (".gif", ".mp4")


@dataclass(frozen=True)
class Maps:
    """Densities over the plane of two targets, at several contexts.

    Attributes
    ----------
    contexts : list of dict
        The context of each map.
    outside : list of bool
        Whether it is outside the range of the training rows.
    x, y : ndarray
        Points ``[P]`` along the first and the second target.
    density : ndarray
        ``[maps, P, P]``, in the unit of the density; the second index is that of y.
    """

    contexts: list[dict[str, float]]
    outside: list[bool]
    x: np.ndarray
    y: np.ndarray
    density: np.ndarray

    @property
    def thresholds(self) -> np.ndarray:
        """The density at the edge of each of the regions in :data:`LEVELS`, ``[maps, 2]``, rising."""
        area = np.gradient(self.y)[:, None] * np.gradient(self.x)
        out = []
        for p in self.density:
            order = np.argsort(p, axis=None)[::-1]
            held = np.cumsum((p * area).ravel()[order])
            held /= held[-1]
            out.append([p.ravel()[order[np.searchsorted(held, level)]] for level in LEVELS])
        return np.array(out)


def likelihood_maps(
    density: Density,
    at: Mapping[str, float],
    *,
    slices: int = 6,
    points: int = POINTS,
    outside: str = "raise",
) -> Maps:
    """Evaluate a density of two targets over their plane, at ``slices`` contexts along the column not in ``at``.

    The slices are even steps of the column's range in training, of its logarithm where that spans a factor of three.

    Raises
    ------
    DataError
        If there are not two targets, more than one context column is free, or a context is outside the range of the
        training rows (unless ``outside`` is ``"allow"``).
    """
    schema = density.schema
    if len(schema.targets) != 2 or not density.plain:
        raise DataError(
            f"Expected a density of two continuous targets, for a map; got one of {len(schema.targets)}: "
            f"{', '.join(schema.target_names)}."
        )
    contexts = list(_along(density, at, slices))
    asked = {n: np.array([c[n] for c in contexts]) for n in schema.context_names}
    given = density.given(**asked, outside=outside) if asked else density.given()  # type: ignore[arg-type]
    draws = given.sample(DRAWS, seed=0)
    x, y = (_axis(draws[c.name].ravel(), c.support.lower, points) for c in schema.targets)
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    p = np.empty((len(contexts), len(y), len(x)))
    for number, context in enumerate(contexts):
        one = density.given(**context, outside="allow") if context else density.given()
        p[number] = np.exp(one.log_prob(grid)).reshape(len(y), len(x))
    marks = np.broadcast_to(given.outside, (len(contexts),)).tolist()
    return Maps(contexts, marks, x, y, p)


def write_maps(maps: Maps, density: Density, out: str | Path, *, seconds: float = 6.0) -> None:
    """Write maps as a figure (``.png``, ``.pdf``, ``.svg``) or as an animation (``.gif``; ``.mp4`` with ffmpeg).

    Raises
    ------
    DataError
        If the suffix is another, or the folder is missing.
    FluvialError
        If ffmpeg is needed and not there.
    """
    out = Path(out)
    suffix = out.suffix.lower()
    if suffix not in FIGURES + ANIMATIONS:
        raise DataError(f"--out: expected a name that ends in {', '.join(FIGURES + ANIMATIONS)}; got {out}.")
    if not out.parent.is_dir():
        raise DataError(f"--out: no folder {str(out.parent)!r} to write {out.name!r} into; create it first.")
    if suffix in ANIMATIONS:
        if suffix == ".mp4" and shutil.which("ffmpeg") is None:
            raise FluvialError(f"{out}: a film needs ffmpeg, which is not installed; write a .gif instead.")
        return _animate(maps, density, out, seconds)
    figure = draw_maps(maps, density)
    if suffix == ".png":
        return write_atomically(out, style.png(figure))
    figure.savefig(out)


@styled
def draw_maps(maps: Maps, density: Density) -> Figure:
    """Draw every map in a panel of its own, on one scale, with the regions that hold 50 % and 90 %."""
    number = len(maps.contexts)
    across = min(number, 3)
    grid = style.grid(number, across, (2.45 if across > 1 else 4.0,), title=0.30)
    mesh = None
    for cell, k in zip(grid.cells, range(number), strict=True):
        mesh = _draw(cell[0], maps, density, k)
    _scale(grid.figure, mesh, maps, density)
    return grid.figure


def _draw(axes: Axes, maps: Maps, density: Density, number: int) -> QuadMesh:
    """Draw one map; return what the scale of colours belongs to."""
    first, second = density.schema.targets
    top = float(maps.density.max())
    p = np.maximum(maps.density[number], DEPTH * top)
    mesh = axes.pcolormesh(
        maps.x, maps.y, p, norm=LogNorm(DEPTH * top, top), cmap=style.DENSITY_MAP, shading="nearest"
    )
    mesh.set_rasterized(True)
    axes.contour(
        maps.x,
        maps.y,
        maps.density[number],
        np.unique(maps.thresholds[number]),
        colors=style.VERMILION,
        linewidths=0.7,
    )
    for axis, values, scale in (
        (axes.xaxis, maps.x, axes.set_xscale),
        (axes.yaxis, maps.y, axes.set_yscale),
    ):
        if values[0] > 0 and values[-1] > 4 * values[0]:
            scale("log")
            axis.set_minor_formatter(NullFormatter())
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axis.set_ticks(_round_numbers(values[0], values[-1]))
    axes.set_xlim(maps.x[0], maps.x[-1])
    axes.set_ylim(maps.y[0], maps.y[-1])
    axes.set_xlabel(style.axis_label(first))
    style.y_label(axes, style.axis_label(second))
    axes.set_title(_title(maps, density, number), loc="left")
    return mesh


def _scale(figure: Figure, mesh: QuadMesh | None, maps: Maps, density: Density) -> None:
    if mesh is None:
        return
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.66 / width, 1 - 0.16 / height, 2.2 / width, 0.08 / height))
    figure.colorbar(mesh, cax=axes, orientation="horizontal")
    axes.xaxis.set_ticks_position("bottom")
    axes.tick_params(labelsize=6.5, length=2)
    label = style.joint_density_label(density.schema.targets)
    figure.text(
        2.95 / width, 1 - 0.12 / height, f"{label}; lines hold 50 % and 90 %", va="center", fontsize=7.5
    )


@styled
def _animate(maps: Maps, density: Density, out: Path, seconds: float) -> None:
    """Write an animation that runs through the maps, and back."""
    grid = style.grid(1, 1, (4.0,), width=5.2, title=0.34)
    axes = grid.cells[0][0]
    mesh = _draw(axes, maps, density, 0)
    _scale(grid.figure, mesh, maps, density)
    number = len(maps.contexts)
    order = [*range(number), *range(number - 2, 0, -1)]
    top = float(maps.density.max())

    def show(frame: int) -> Sequence[object]:
        for old in axes.collections[1:]:
            old.remove()
        mesh.set_array(np.maximum(maps.density[frame], DEPTH * top))
        axes.contour(
            maps.x,
            maps.y,
            maps.density[frame],
            np.unique(maps.thresholds[frame]),
            colors=style.VERMILION,
            linewidths=0.9,
        )
        axes.set_title(_title(maps, density, frame), loc="left")
        return []

    rate = max(1, round(len(order) / seconds))
    writer = PillowWriter(fps=rate) if out.suffix.lower() == ".gif" else FFMpegWriter(fps=rate)
    animation = FuncAnimation(grid.figure, show, frames=order, blit=False)  # type: ignore[arg-type]
    # Under another name first: an animation that is interrupted leaves no half of one.
    half = out.with_name(f".{out.stem}.half{out.suffix}")
    try:
        animation.save(half, writer=writer, dpi=130)
        half.replace(out)
    finally:
        half.unlink(missing_ok=True)


def _along(density: Density, at: Mapping[str, float], slices: int) -> Iterator[dict[str, float]]:
    names = density.schema.context_names
    for name in at:
        if name not in names:
            raise DataError(f"Expected context columns {', '.join(names) or '(none)'}; got {name!r}.")
    free = [n for n in names if n not in at]
    if len(free) > 1:
        raise DataError(
            f"Expected a value for every context column but one, which the maps run along; free: {', '.join(free)}. "
            f"Give one with --at {free[0]}=VALUE."
        )
    if not free:
        yield {n: float(at[n]) for n in names}
        return
    low, high = density.context_range[free[0]]
    log = low > 0 and high > 3 * low
    steps = np.geomspace(low, high, slices) if log else np.linspace(low, high, slices)
    for value in np.clip(steps, low, high):
        yield {n: float(at.get(n, value)) for n in names}


def _axis(draws: np.ndarray, lower: float, points: int) -> np.ndarray:
    """Return points along a target, over all but the rarest draws, even in its logarithm where it spans a lot."""
    low, high = np.quantile(draws, [0.001, 0.999])
    if lower >= 0 and low > 0 and high > 4 * low:
        return np.geomspace(0.85 * low, 1.1 * high, points)
    margin = 0.05 * (high - low)
    return np.linspace(max(low - margin, lower), high + margin, points)


def _round_numbers(low: float, high: float) -> list[float]:
    every = [m * 10.0**e for e in range(-12, 13) for m in (1, 2, 3, 5)]
    return [v for v in every if low <= v <= high]


def _title(maps: Maps, density: Density, number: int) -> str:
    columns = {c.name: c for c in density.schema.context}
    parts = []
    for name, value in maps.contexts[number].items():
        unit = f" {style.unit(columns[name])}" if style.has_unit(columns[name]) else ""
        parts.append(f"{style.safe_text(columns[name].label or name)} = {value:.3g}{unit}")
    mark = "  (outside the range of the table: a guess)" if maps.outside[number] else ""
    return ", ".join(parts) + mark
