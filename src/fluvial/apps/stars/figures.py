"""Figures of stars: which wavelengths carry the information; and all figures of a run in one folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluvial import __version__
from fluvial.apps.stars.attribution import Attribution, attribute
from fluvial.apps.stars.evaluate import LEVELS, Evaluation, evaluate
from fluvial.apps.stars.lines import NamedLine, named_between
from fluvial.data.schema import Column
from fluvial.density import Density
from fluvial.errors import DataError, RunError
from fluvial.files import write_atomically
from fluvial.record import RunFolder, now
from fluvial.report import page, plots, style
from fluvial.report.predictions import corner, fitted_pulls, predicted, side_by_side
from fluvial.report.style import FAINT, INK, MUTED, png, safe_text, styled
from fluvial.workflow.check import load_results
from fluvial.workflow.rows import rows_of_run

Array = np.ndarray

GAP = 20.0  # Å: a step of the grid that ends an arm
MOST_NAMES = 11  # lines that are named in one arm
ATTRIBUTED = 256  # stars behind the figure of wavelengths


@styled
def information(
    found: Attribution,
    columns: Sequence[Column],
    wavelength: Array | None = None,
    named: Sequence[NamedLine] | None = None,
) -> Figure:
    """Draw, arm by arm, the mean spectrum and beneath it what each pixel tells about each label; name strong lines.

    The curves are those of :class:`~fluvial.apps.stars.attribution.Attribution`, over nine pixels, each label's over its
    largest value.
    """
    length = len(found.mean)
    x = np.arange(length, dtype=float) if wavelength is None else np.asarray(wavelength, dtype=float)
    if len(x) != length:
        raise DataError(f"information: expected wavelengths [{length}], one a pixel; got {list(x.shape)}")
    ends = [0, *(np.flatnonzero(np.diff(x) > GAP) + 1).tolist(), length]
    arms = [(a, b) for a, b in itertools.pairwise(ends) if b - a > 2]
    if wavelength is None or len(arms) == 1:  # one long stretch is easier to read in rows
        cuts = np.linspace(0, length, 5).astype(int)
        arms = list(itertools.pairwise(cuts.tolist()))
    grid = style.grid(
        len(arms), 1, (0.85, 0.30 * len(columns)), width=style.WIDTH, title=0.55, head=0.3, left=0.75
    )
    # Root mean square over nine pixels, about two elements of resolution: patches of an encoder would show otherwise.
    window = np.ones(min(9, length)) / min(9, length)
    smooth = np.sqrt([np.convolve(row, window, mode="same") for row in found.information**2])
    top_value = smooth.max(axis=1, keepdims=True)
    share = smooth / np.where(top_value > 0, top_value, 1.0)
    for (spectrum, below), (start, stop) in zip(grid.cells, arms, strict=True):
        part = slice(start, stop)
        spectrum.plot(x[part], found.mean[part], color=INK, lw=0.6)
        spectrum.set_xlim(x[start], x[stop - 1])
        low = float(np.nanmin(found.mean[part]))
        spectrum.set_ylim(low - 0.04, float(np.nanquantile(found.mean[part], 0.999)) + 0.06)
        style.y_label(spectrum, "mean flux", 0.45)
        for j, column in enumerate(columns):
            offset = len(columns) - 1 - j
            color = style.CYCLE[j % len(style.CYCLE)]
            below.fill_between(x[part], offset, offset + 0.95 * share[j, part], color=color, lw=0, alpha=0.85)
            words = safe_text(column.label or column.name, 12)
            below.text(
                -0.006,
                (offset + 0.4) / len(columns),
                words,
                color=color,
                ha="right",
                va="center",
                fontsize=8,
                transform=below.transAxes,
            )
        below.set_ylim(0, len(columns))
        below.yaxis.set_visible(False)
        below.xaxis.set_major_locator(MaxNLocator(9, steps=style.STEPS))
        if wavelength is not None:
            _name_lines(spectrum, below, x[part], share[:, part].max(axis=0), named)
    last = grid.cells[-1][1]
    last.set_xlabel("wavelength [Å]" if wavelength is not None else "pixel")
    grid.figure.text(
        0.75 / style.WIDTH,
        1 - 0.08 / grid.figure.get_size_inches()[1],
        f"what each pixel tells about each label, over its largest value; {found.stars} stars",
        va="top",
        fontsize=8,
        color=MUTED,
    )
    return grid.figure


def _name_lines(
    spectrum: Axes, below: Axes, x: Array, share: Array, named: Sequence[NamedLine] | None
) -> None:
    """Name the strong lines of an arm that tell most, without one name over another."""
    lines = list(named) if named is not None else named_between(float(x[0]), float(x[-1]))
    near = [float(share[np.abs(x - line.wavelength) < 1.5].max(initial=0.0)) for line in lines]
    order = np.argsort(near)[::-1]
    room = (x[-1] - x[0]) / 32
    placed: list[NamedLine] = []
    for i in order:
        line = lines[i]
        if len(placed) < MOST_NAMES and all(
            abs(line.wavelength - other.wavelength) > room for other in placed
        ):
            placed.append(line)
    for line in placed:
        for axes in (spectrum, below):
            axes.axvline(line.wavelength, color=FAINT, lw=0.6, zorder=0)
        spectrum.text(
            line.wavelength,
            1.04,
            line.name,
            rotation=60,
            ha="left",
            va="bottom",
            fontsize=7,
            transform=spectrum.get_xaxis_transform(),
            color=MUTED,
        )


@dataclass(frozen=True)
class Loaded:
    """A run with its test stars: name, density, table of the test split, wavelengths where known."""

    name: str
    folder: RunFolder
    density: Density
    table: dict[str, Array]
    wavelength: Array | None


def load_run(
    run: str | os.PathLike[str], *, most: int | None = None, wavelength: Path | None = None
) -> Loaded:
    """Load a run and (the first ``most`` of) its test stars.

    Wavelengths come from the file given, or from ``_grid/wavelength.npy`` in the folder of the data.
    """
    folder, _, rows = rows_of_run(Path(run))
    density = Density.load(folder.path)
    density.folder = folder.path
    if not density.schema.arrays:
        raise RunError(
            f"{folder.path} is no run on spectra: its context is {', '.join(density.schema.context_names)}."
        )
    test = rows.split.test if most is None else rows.split.test[:most]
    source = folder.record()["data"]["source"]
    beside = (
        [Path(source) / "_grid" / "wavelength.npy", Path(source).parent / "_grid" / "wavelength.npy"]
        if isinstance(source, str)
        else []
    )
    place = wavelength or next((p for p in beside if p.exists()), None)
    grid = None if place is None else np.load(place, allow_pickle=False)
    if grid is not None and len(grid) != density.schema.arrays[0].length:
        raise DataError(
            f"{place}: expected {density.schema.arrays[0].length} wavelengths, one a pixel; got {len(grid)}"
        )
    return Loaded(folder.path.name, folder, density, rows.take(test), grid)


def figures(
    run: Loaded, out: Path, *, draws: int = 1000, star: int | None = None, seed: int = 0
) -> tuple[Evaluation, list[Path]]:
    """Write every figure of a run as PNG, and a page of them; return what they show, and the paths.

    ``star`` is the place in the test split of the star whose posterior is drawn; left out, one in the middle.
    """
    out.mkdir(parents=True, exist_ok=True)
    density, columns = run.density, run.density.schema.targets
    found = evaluate(density, run.table, draws=draws, seed=seed)
    which = _typical(found.truth) if star is None else star
    if not 0 <= which < len(found.truth):
        raise DataError(f"--star: expected a test star from 0 to {len(found.truth) - 1}; got {which}")
    draw = _posterior(density, run.table, which, seed)
    hpd = np.array([(found.hpd < level).mean() for level in LEVELS])
    hpd_error = np.sqrt(hpd * (1 - hpd) / len(found.hpd))
    central = np.array([found.coverage(float(level))[0] for level in LEVELS])
    few = {name: values[:ATTRIBUTED] for name, values in run.table.items()}
    items = {
        "predicted": (
            predicted(found.truth, found.mean, found.std, columns),
            "Predicted mean against the truth; beneath, what is left: "
            "the line is its median, the band holds 68 %, dots are the mean predicted error.",
        ),
        "pulls": (
            fitted_pulls(found.pulls, columns),
            "Distance of the truth from the predicted mean in predicted errors, and the normal fitted to it.",
        ),
        "coverage": (
            plots.coverage(LEVELS, hpd, hpd_error, central, columns),
            "How often regions hold the truth.",
        ),
        "pit": (
            plots.pit(found.pit, columns),
            "Where the truth falls in its predicted distribution: flat if that is exact.",
        ),
        "corner": (
            corner({run.name: draw}, columns, found.truth[which], f"test star {which}"),
            "The posterior of one star; dashed, its true labels.",
        ),
        "information": (
            information(attribute(density, few), columns, run.wavelength),
            "Which wavelengths the predicted labels answer to.",
        ),
        "losses": (
            plots.losses(run.folder.metrics(), run.folder.record()["training"]["best_epoch"]),
            "Loss over the epochs.",
        ),
    }
    paths, shown = [], []
    for name, (figure, caption) in items.items():
        item = page.FigureItem(figure, caption)
        write_atomically(out / f"{name}.png", item.png)
        paths.append(out / f"{name}.png")
        shown.append(item)
    results = load_results(run.folder)
    content = page.ReportContent(
        title=f"{run.name}: labels of stars",
        verdict_sentence=page.verdict_sentence(results) if results else "",
        headline=_headline(found, columns),
        results=results,
        sections=[page.Section("Test stars", shown)],
        facts=[],
        study_text="",
        footer=f"fluvial {__version__} · {now()}",
    )
    write_atomically(out / "figures.html", page.render(content).encode())
    return found, [*paths, out / "figures.html"]


def compare(
    runs: Sequence[Loaded], out: Path, *, draws: int = 1000, star: int | None = None, seed: int = 0
) -> dict[str, Evaluation]:
    """Write figures of several runs side by side, on the test stars that they share: scores, and one posterior."""
    out.mkdir(parents=True, exist_ok=True)
    first = runs[0]
    names = _distinct([f"{run.density.architecture}" for run in runs], [run.name for run in runs])
    for run in runs[1:]:
        if run.density.schema.target_names != first.density.schema.target_names or not _same(
            run.table, first.table
        ):
            raise RunError(
                f"{run.folder.path} and {first.folder.path} have not the same test stars; fit both on the same data, "
                "with the same seed and split."
            )
    found = {
        name: evaluate(run.density, run.table, draws=draws, seed=seed)
        for name, run in zip(names, runs, strict=True)
    }
    columns = first.density.schema.targets
    truth = next(iter(found.values())).truth
    which = _typical(truth) if star is None else star
    posteriors = {
        name: _posterior(run.density, run.table, which, seed) for name, run in zip(names, runs, strict=True)
    }
    write_atomically(
        out / "scores.png", png(side_by_side({name: one.scores() for name, one in found.items()}, columns))
    )
    write_atomically(out / "corner.png", png(corner(posteriors, columns, truth[which], f"test star {which}")))
    return found


def _posterior(
    density: Density, table: Mapping[str, Array], star: int, seed: int, draws: int = 20_000
) -> Array:
    given = density.given({name: table[name][star] for name in density.schema.context_names})
    drawn = given.sample(draws, seed=seed)
    return np.stack([drawn[name] for name in density.schema.target_names], axis=-1)


def _typical(truth: Array) -> int:
    """A star in the middle of the labels."""
    return int(np.argmin(np.abs((truth - np.median(truth, axis=0)) / truth.std(axis=0)).max(axis=1)))


def _same(a: Mapping[str, Array], b: Mapping[str, Any]) -> bool:
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)


def _distinct(names: list[str], runs: list[str]) -> list[str]:
    return [
        name if names.count(name) == 1 else f"{name} ({run})" for name, run in zip(names, runs, strict=True)
    ]


def _headline(found: Evaluation, columns: Sequence[Column]) -> list[tuple[str, str, str]]:
    out = []
    for j, column in enumerate(columns):
        width, error = (values[j] for values in found.pull_width)
        out.append(
            (
                f"R² of {column.label or column.name}",
                f"{found.r_squared[j]:.4f}",
                f"rms {found.rms[j]:.3g} {column.unit}; pull width {width:.3f} ± {error:.3f}",
            )
        )
    return out
