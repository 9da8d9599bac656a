"""Rates of the table behind a run: all its rows, train, validation and test; those held out are predicted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fluvial.apps.binaries.rate_figure import draw_rates
from fluvial.apps.binaries.rates import Rates, count_cells, fit_rates
from fluvial.data.expressions import parse_expression
from fluvial.data.readers import open_table
from fluvial.data.select import View
from fluvial.errors import RunError
from fluvial.files import write_atomically
from fluvial.record import STUDY, RunFolder
from fluvial.report.style import png
from fluvial.study import read_study


@dataclass(frozen=True)
class RunRates:
    """Rates of a run, the held-out cells as (context, found, expected, its error), and where they were written."""

    rates: Rates
    held: list[tuple[np.ndarray, float, float, float]]
    path: Path
    figure: Path


def rates_of_run(run: str | Path, *, simulated: float = 1.0) -> RunRates:
    """Fit the formation rate to the rows of a run's table that its study's ``where`` keeps; write it into the run folder.

    Cells that the study holds out are not fitted; what is expected in them, with the Poisson scatter of a count, is
    compared with what was found.

    Raises
    ------
    RunError
        If there is no such run, or its density has no context.
    DataError
        If the context columns are no grid.
    """
    folder = RunFolder.open(run)
    study, _ = read_study(folder.path / STUDY)
    names = study.data.context
    if not names:
        raise RunError(f"{folder.path}: its density has no context, so there is one number of mergers.")
    view = View(open_table(folder.record()["data"]["source"]), study.data.where, study.data.derived)
    holdout = (
        None
        if study.data.holdout is None
        else parse_expression(study.data.holdout, "[data] holdout", "condition")
    )
    weight = study.data.weight
    needed = [*names, *([weight] if weight else []), *(holdout.columns if holdout else ())]
    table, _ = view.read(needed)
    context = {n: np.asarray(table[n], dtype=np.float64) for n in names}
    weights = np.asarray(table[weight], dtype=np.float64) if weight else None
    apart = holdout(table) if holdout else np.zeros(len(context[names[0]]), dtype=bool)
    values = np.stack([context[n] for n in names], -1)
    cells, which = np.unique(values[apart], axis=0, return_inverse=True)
    found = np.bincount(
        which.ravel(), weights=None if weights is None else weights[apart], minlength=len(cells)
    ).astype(float)
    kept = {n: v[~apart] for n, v in context.items()}
    rates = fit_rates(
        count_cells(
            kept,
            weights=None if weights is None else weights[~apart],
            simulated=simulated,
            leave_out=cells,
        )
    )
    held = []
    for cell, number in zip(cells, found, strict=True):
        expected, error = rates.expected(simulated, **dict(zip(names, cell, strict=True)))
        scatter = np.sqrt(error**2 + expected + (rates.sigma * expected) ** 2)
        held.append((cell, float(number), float(expected), float(scatter)))
    path, figure = folder.path / "rates.json", folder.path / "rates.png"
    rates.save(path)
    write_atomically(figure, png(draw_rates(rates, np.column_stack([cells, found]))))
    return RunRates(rates, held, path, figure)
