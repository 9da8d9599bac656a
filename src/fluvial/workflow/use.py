"""``load``, and tables of draws and of log-densities."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.conditional import Conditional
from fluvial.data.readers import open_table
from fluvial.data.schema import Column
from fluvial.data.select import View
from fluvial.density import DENSITY_FILE, Density
from fluvial.errors import DataError, nearest
from fluvial.files import write_atomically
from fluvial.infer.conformal import ConformalRegions
from fluvial.novelty import NoveltyResult
from fluvial.record import RECORD, RunFolder, find_runs
from fluvial.runs_table import differences, result_row, select

#: Contexts whose novelty is looked at, where only a warning asks for it.
SCORED = 20_000


def load(run: str | Path) -> Density:
    """Load the density of a run folder (or of any folder that holds ``density.json`` and its weights).

    Nothing in the folder is run as code. Of a fit that was killed this is the best density before that.

    Raises
    ------
    RunError
        If there is no density there, or it is damaged.
    """
    path = Path(run)
    if not (path / DENSITY_FILE).exists() and not (path / RECORD).exists():
        RunFolder.open(path)  # raises, and names runs nearby
    density = Density.load(path)
    density.folder = path
    return density


def conformal_regions(run: str | Path) -> ConformalRegions:
    """Return the conformal regions of a run: see :mod:`fluvial.infer.conformal`. They are made with the checks.

    Raises
    ------
    RunError
        If there is no such run, or it has not been checked.
    """
    return ConformalRegions.load(load(run).folder or run)


def list_runs(
    runs: str | Path = "runs", *, where: str | None = None, sort: str | None = None, descending: bool = False
) -> list[Mapping[str, Any]]:
    """Return one flat row for each run in a folder, such as ``architecture``, ``best_loss``, ``minutes``.

    ``where`` is an expression such as ``architecture == "maf" and best_loss < 5.1``; ``sort`` names a column.
    """
    return select(
        [result_row(run) for run in find_runs(runs)], where, sort or "started", descending=descending
    )


def compare_runs(a: str | Path, b: str | Path, *, figure: str | Path | None = None) -> list[dict[str, Any]]:
    """Return what differs between two runs (see :func:`fluvial.runs_table.differences`), and draw their losses.

    ``figure`` is the PNG file to write: validation losses against epochs and against minutes.

    Raises
    ------
    RunError
        If a run is missing or damaged.
    """
    folders = [RunFolder.open(a), RunFolder.open(b)]
    rows = differences(*folders)
    if figure is not None:
        from fluvial.report import plots
        from fluvial.report.style import png

        names = [name for name in rows[0] if name != "option"]
        histories = {name: run.metrics() for name, run in zip(names, folders, strict=True)}
        write_atomically(Path(figure), png(plots.loss_curves(histories)))
    return rows


def sample_table(
    density: Density,
    *,
    given: Mapping[str, float] | None = None,
    contexts: str | Path | None = None,
    draws: int = 1,
    seed: int | None = None,
    novelty: bool = False,
) -> dict[str, np.ndarray]:
    """Draw at one context or at every row of a table file; return context and target columns side by side.

    Each context row is repeated ``draws`` times, in order. Array columns are left out; ``row`` then numbers the contexts.
    With ``novelty`` a column of that name says how probable a context as unlike the training rows is (see
    :mod:`fluvial.novelty`).

    Warns
    -----
    NoveltyWarning
        If contexts are flagged, with their number; of very many, a part is looked at.

    Raises
    ------
    DataError
        If contexts are missing, unknown, given twice, or outside a support.
    """
    names = density.schema.context_names
    if contexts is not None:
        if given:
            raise DataError("Expected contexts from a table or by value, not both.")
        if not names:
            raise DataError(f"{contexts}: this density has no context; leave the table of contexts out.")
        table = read_columns(contexts, density.schema.context)
        p = density.given(table)
        drawn = p.sample(draws, seed=seed).reshape(-1)
        columns = {name: np.repeat(values, draws) for name, values in _scalar(table).items()}
        if density.schema.arrays:  # a spectrum is not written once for each draw; its number is
            columns = {"row": np.repeat(np.arange(len(drawn) // draws), draws)} | columns
    else:
        given = dict(given or {})
        for name in given:
            if name not in names:
                hint = nearest(name, names) or "; this density has no context"
                raise DataError(f"Context column {name!r} is not known{hint}")
        arrays = [c.name for c in density.schema.arrays]
        if arrays:
            raise DataError(
                f"Context {', '.join(arrays)} is an array; give a table of contexts (--contexts)."
            )
        missing = [n for n in names if n not in given]
        if missing:
            raise DataError(
                f"Expected a value for every context column ({', '.join(names)}), or a table of contexts; "
                f"missing: {', '.join(missing)}."
            )
        p = density.given(given)
        drawn = p.sample(draws, seed=seed)
        columns = {name: np.full(draws, float(given[name])) for name in names}
    if novelty:
        columns["novelty"] = np.repeat(_scored(p.novelty(), "").p, draws)
    elif density.novelty is not None and names:
        _warn_of_novelty(density, p)
    return columns | {name: drawn[name] for name in density.schema.target_names}


class NoveltyWarning(UserWarning):
    """Draws are made at contexts unlike those of the training rows."""


def _warn_of_novelty(density: Density, p: Conditional) -> None:
    """Warn of contexts that are flagged; of more than :data:`SCORED` a random part is looked at."""
    assert density.novelty is not None
    contexts = p.coded.reshape(-1, p.coded.shape[-1])
    part = ""
    if len(contexts) > SCORED:
        contexts = contexts[np.random.default_rng(0).permutation(len(contexts))[:SCORED]]
        part = f" (a random part of {SCORED:,} was looked at)"
    _scored(density.novelty(contexts), part)


def _scored(found: NoveltyResult, part: str) -> NoveltyResult:
    """Warn of what is flagged, if it is more than false alarms; return the scores."""
    size, flagged = found.flag.size, int(found.flag.sum())
    # More than false alarms alone would give: four standard deviations above their rate; of a few contexts, any.
    if flagged > (found.rate * size + 4 * (found.rate * size) ** 0.5 if size >= 100 else 0):
        warnings.warn(
            f"{flagged:,} of {size:,} contexts{part} are unlike those of the training rows (false alarms: "
            f"{100 * found.rate:g} %): what the density says there is a guess. --novelty adds a column that says which.",
            NoveltyWarning,
            stacklevel=3,
        )
    if found.between.any():
        warnings.warn(
            f"{int(found.between.sum()):,} of {size:,} contexts{part} lie between points of the training grid: an "
            "interpolation.",
            NoveltyWarning,
            stacklevel=3,
        )
    return found


def log_prob_table(density: Density, table: str | Path) -> dict[str, np.ndarray]:
    """Return target and scalar context columns of a table file, and ``log_prob`` in nats per unit of the targets.

    A target outside its support has log-density −inf; one that is missing, or a context outside its support,
    raises :class:`~fluvial.errors.DataError`.
    """
    columns = read_columns(table, density.schema.columns)
    return _scalar(columns) | {"log_prob": density.log_prob(columns)}


def _scalar(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns of a table that hold one number a row."""
    return {name: values for name, values in table.items() if values.ndim == 1}


def read_columns(path: str | Path, columns: Sequence[Column]) -> dict[str, np.ndarray]:
    """Read columns of a table, fit for a density to be asked about; a derived one is computed where it is absent.

    Raises
    ------
    DataError
        If the file or a column is not there, or a value is missing or (in a context column) outside the
        support; the message names the first such row.
    """
    reader = open_table(path)
    known = reader.columns()
    absent = {c.name: c.expression for c in columns if c.expression is not None and c.name not in known}
    view = View(reader, derive=absent)
    table, _ = view.read([c.name for c in columns])
    for column in columns:
        if column.length is not None:
            continue  # what can be wrong with an array, the density itself says
        values = table[column.name]
        bad = missing = np.isnan(values)
        if column.role == "context":
            bad = ~column.contains(values)
        if bad.any():
            faults = ["missing"] if missing.any() else []
            faults += [f"outside the support {column.describe_support()}"] if (bad & ~missing).any() else []
            what = " or ".join(faults)
            row = int(bad.argmax())
            raise DataError(
                f"{path}: column {column.name}: {int(bad.sum())} of {len(values)} values are {what}, the "
                f"first in {view.place(row)}: {values[row]:g}; correct those rows, or leave them out."
            )
    return table
