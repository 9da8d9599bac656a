"""``load``, and tables of draws and of log-densities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.data.readers import open_table
from fluvial.data.schema import Column
from fluvial.density import DENSITY_FILE, Density
from fluvial.errors import DataError, nearest
from fluvial.record import RECORD, RunFolder, find_runs
from fluvial.runs_table import flat_row, select


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


def list_runs(
    runs: str | Path = "runs", *, where: str | None = None, sort: str | None = None, descending: bool = False
) -> list[Mapping[str, Any]]:
    """Return one flat row for each run in a folder, such as ``architecture``, ``best_loss``, ``minutes``.

    ``where`` is an expression such as ``architecture == "maf" and best_loss < 5.1``; ``sort`` names a column.
    """
    return select([flat_row(run) for run in find_runs(runs)], where, sort or "started", descending=descending)


def sample_table(
    density: Density,
    *,
    given: Mapping[str, float] | None = None,
    contexts: str | Path | None = None,
    draws: int = 1,
    seed: int | None = None,
) -> dict[str, np.ndarray]:
    """Draw at one context or at every row of a table; return context columns and target columns side by side.

    Each context row is repeated ``draws`` times, in order.

    Raises
    ------
    DataError
        If contexts are missing, unknown, given twice, or outside a support.
    """
    names = density.schema.context_names
    if contexts is not None:
        if given:
            raise DataError("Expected contexts from a table or by value, not both.")
        table = read_columns(contexts, density.schema.context)
        drawn = density.given(table).sample(draws, seed=seed).reshape(-1)
        columns = {name: np.repeat(values, draws) for name, values in table.items()}
    else:
        given = dict(given or {})
        for name in given:
            if name not in names:
                raise DataError(f"Context column {name!r} is not known{nearest(name, names)}.")
        missing = [n for n in names if n not in given]
        if missing:
            raise DataError(f"Expected a value for every context column; missing: {', '.join(missing)}.")
        drawn = density.given(**given).sample(draws, seed=seed)
        columns = {name: np.full(draws, float(value)) for name, value in given.items()}
    return columns | {name: drawn[name] for name in density.schema.target_names}


def log_prob_table(density: Density, table: str | Path) -> dict[str, np.ndarray]:
    """Return context and target columns of a table file, and ``log_prob`` in nats per unit of the targets."""
    columns = read_columns(table, density.schema.columns)
    return columns | {"log_prob": density.log_prob(columns)}


def read_columns(path: str | Path, columns: Sequence[Column]) -> dict[str, np.ndarray]:
    """Read named columns of a table file."""
    reader = open_table(path)
    known = reader.columns()
    for column in columns:
        if column.name not in known:
            raise DataError(f"{path}: no column {column.name!r}{nearest(column.name, known)}.")
    return reader.read([c.name for c in columns])


def describe(density: Density) -> dict[str, Any]:
    """Return what a density speaks of, for people: columns with units and supports."""
    return {
        role: [f"{c.name}{f' [{c.unit}]' if c.unit else ''} in {c.support}" for c in columns]
        for role, columns in (("targets", density.schema.targets), ("context", density.schema.context))
    }
