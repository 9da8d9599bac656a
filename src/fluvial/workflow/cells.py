"""Cell by cell: how well a density does at each context of a grid, and at contexts that were held out of its fit.

A loss is a mean over contexts, and the poorest cells hardly count in it. A context that no row trained on is where a
continuous density must prove itself: what it says there is compared with the rows that were held out, with a flow that
was trained on those rows alone, and with the truth where a simulator knows it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fluvial import check as checks
from fluvial.check.conditional import LOCAL_THRESHOLD
from fluvial.check.result import MINIMUM_ROWS, Verdict, verdict_for
from fluvial.data.readers import open_table
from fluvial.data.select import View
from fluvial.data.split import split_of
from fluvial.data.stream import Batches
from fluvial.data.transforms import ColumnTransforms
from fluvial.data.validate import Validation
from fluvial.density import Density
from fluvial.errors import RunError
from fluvial.files import write_atomically
from fluvial.flows.mixed import build_mixed_flow
from fluvial.record import STUDY, RunFolder, now
from fluvial.study import Study, read_study
from fluvial.study_holdout import within
from fluvial.train import TrainingOptions, train
from fluvial.workflow.data import Rows, columns, read_rows, require_unchanged, standardised
from fluvial.workflow.weights import refuse_weights

CELLS, CELL_ARRAYS = "cells.json", "cells.npz"
#: A context of more distinct values than this is no grid, nor is one with fewer rows a value than this on average.
MOST_CELLS, LEAST_ROWS = 400, 10
#: Draws at a cell, at least and at most.
DRAWS = (4000, 20_000)
#: The short fit of a held-out cell by itself: steps at most, and epochs without a gain.
OWN_STEPS, OWN_PATIENCE = 1500, 8
#: Shares of a held-out cell's rows that train its own flow, validate it, and compare it with the fit.
OWN_SPLIT = (0.6, 0.2, 0.2)


@dataclass(frozen=True)
class Cell:
    """What is known of a density at one context; numbers that could not be had are NaN.

    Attributes
    ----------
    context : dict
        The context columns; empty for held-out rows that are no cells of a grid.
    rows, effective_rows : int, float
        Rows of the table in the cell, and how many equal ones their weights are worth.
    compared : int
        Rows that the density is judged on: those of the test split; all rows of a held-out cell.
    nll, nll_error : float
        Mean of −log p over them, and its standard error.
    pit, pit_error : float
        Largest error of a reported probability P(target < t), chance removed; see :func:`fluvial.check.pit`.
    kl, kl_error : float
        KL(truth‖fit) in nats, where the truth is known.
    own_loss, own_loss_error : float
        Of a held-out cell: by how much a flow fitted to its rows alone is better, in nats a row, on its own test rows;
        negative where the density is better.
    distance, chance : float
        Of a held-out cell: the energy distance of rows and draws, and the chance of one as large.
    verdict : str
        By the KL where it is known; else by the loss against its own flow (held out), or by the PIT.
    """

    context: dict[str, float]
    rows: int
    effective_rows: float
    compared: int
    nll: float
    nll_error: float
    pit: float
    pit_error: float
    kl: float
    kl_error: float
    own_loss: float
    own_loss_error: float
    distance: float
    chance: float
    verdict: Verdict

    @property
    def title(self) -> str:
        """The context, for people."""
        return ", ".join(f"{n} = {v:g}" for n, v in self.context.items()) or "all held-out rows"

    def to_json(self) -> dict[str, Any]:
        """Return a value for JSON; NaN becomes ``null``."""
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Cell:
        """Inverse of :meth:`to_json`."""
        fields: dict[str, Any] = {k: math.nan if v is None else v for k, v in value.items()}
        return cls(**fields)


def check_cells(run: str | Path, tell: Callable[[str], None] = lambda text: None) -> list[Cell]:
    """Judge the density of a run cell by cell again; write ``cells.json``; return the held-out cells.

    Raises
    ------
    RunError
        If the run is missing, or its study holds nothing out.
    DataError
        If its data have changed since the fit.
    """
    folder = RunFolder.open(run)
    record, (study, _) = folder.record(), read_study(folder.path / STUDY)
    if study.data.holdout is None:
        raise RunError(
            f"{folder.path}: its study holds nothing out; say what under [data], such as "
            "holdout = [{ Z = 0.001, alpha = 3.0 }], and fit again."
        )
    source = record["data"]["source"]
    rows = read_rows(study, source, like=record["data"])
    require_unchanged(record["data"], rows, source)
    return judge_cells(folder, Density.load(folder.path), rows, study, source, tell)


def judge_cells(
    run: RunFolder,
    density: Density,
    rows: Rows,
    study: Study,
    source: str | list[str],
    tell: Callable[[str], None] = lambda text: None,
) -> list[Cell]:
    """Judge a density at the cells of its grid, if it has one, and at those held out; write both into the run folder.

    Return the held-out cells.
    """
    arrays: dict[str, np.ndarray] = {}
    trained = list(_trained(density, rows, study))
    held = []
    if study.data.holdout is not None:
        apart = read_held_out(study, source, rows)
        numbers = [c.name for c in rows.schema.context if c.length is None]
        for number, (context, members) in enumerate(_cells(apart, numbers)):
            cell, data, draws = _held(density, apart, members, context, study)
            tell(f"held out, {cell.title}: {describe(cell)}")
            held.append(cell)
            arrays |= {f"data{number}": data, f"draws{number}": draws}
    if trained or held:
        content = {
            "made": now(),
            "trained": [c.to_json() for c in trained],
            "held_out": [c.to_json() for c in held],
        }
        run.write_json(CELLS, content)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomically(run.path / CELL_ARRAYS, buffer.getvalue())
    return held


def load_cells(run: RunFolder) -> tuple[list[Cell], list[Cell]]:
    """Return the trained and the held-out cells of a run; none if they have not been judged."""
    path = run.path / CELLS
    if not path.exists():
        return [], []
    content = run.read_json(CELLS)
    return [Cell.from_json(c) for c in content["trained"]], [Cell.from_json(c) for c in content["held_out"]]


def describe(cell: Cell) -> str:
    """Return the numbers of a cell in a line."""
    from fluvial.report.page import measured

    parts = [f"{cell.rows:,} rows", f"−log p {measured(cell.nll, cell.nll_error)}"]
    if math.isfinite(cell.kl):
        parts.append(f"KL {measured(cell.kl, cell.kl_error)}")
    if math.isfinite(cell.own_loss):
        parts.append(f"loss against its own flow {measured(cell.own_loss, cell.own_loss_error)}")
    return ", ".join([*parts, cell.verdict])


@dataclass(frozen=True)
class Apart:
    """Rows that were held out, each counting as one: targets and context by name, the truth, and all their number."""

    table: dict[str, np.ndarray]
    truth: np.ndarray | None
    weight: np.ndarray | None
    numbers: np.ndarray


def read_held_out(study: Study, source: str | list[str], rows: Rows) -> Apart:
    """Read and validate the rows that a study holds out; raise as :func:`fluvial.workflow.data.read_rows`."""
    data = study.data
    assert data.holdout is not None
    view = View(open_table(source), within(data.where, data.holdout), data.derived)
    extra = [n for n in (study.check.truth, data.weight) if n]
    schema = rows.schema
    raw, numbers = view.read(schema.target_names + schema.context_names + extra)
    checking = Validation(
        schema, where=str(view.reader.path), missing=data.missing, outside=data.outside, locate=view.place
    )
    # Held-out rows may well be of one context, which is no fault of theirs: finish() would say that it does not vary.
    table, keep = checking.add(raw, numbers)
    chosen = np.flatnonzero(keep) if keep is not None else np.arange(len(numbers))
    table = {name: values[chosen] for name, values in table.items()}
    truth = None if study.check.truth is None else np.asarray(raw[study.check.truth], dtype=float)[chosen]
    weight = None
    if data.weight is not None:
        weight = np.asarray(raw[data.weight], dtype=float)[chosen]
        refuse_weights(view, data.weight, weight, numbers[chosen])
    return Apart(table, truth, weight, numbers[chosen])


def _cells(apart: Apart, names: list[str]) -> Iterator[tuple[dict[str, float], np.ndarray]]:
    """Yield each context of held-out rows with its rows; all rows at once where they are no grid."""
    context = columns(apart.table, names)
    cells, which = np.unique(context, axis=0, return_inverse=True)
    if len(cells) > max(1, min(MOST_CELLS, len(context) // LEAST_ROWS)) and len(cells) > 30:
        yield {}, np.arange(len(context))
        return
    for number, cell in enumerate(cells):
        yield dict(zip(names, cell.tolist(), strict=True)), np.flatnonzero(which.ravel() == number)


def _trained(density: Density, rows: Rows, study: Study) -> Iterator[Cell]:
    """Yield every cell of the grid that the context is, judged on the test rows; nothing if it is no grid."""
    names = rows.schema.context_names
    if not names or any(c.length is not None for c in rows.schema.context):
        return
    context = columns(rows.table, names)
    cells, which = np.unique(context, axis=0, return_inverse=True)
    if len(cells) > min(MOST_CELLS, len(context) // LEAST_ROWS):
        return
    which = which.ravel()
    every = np.bincount(which, minlength=len(cells))
    weights = np.ones(len(context)) if rows.weight is None else rows.weight
    looks = len(cells) * len(rows.schema.targets)
    rng = np.random.default_rng(study.check.seed)
    equal = rows.equal(study.check.seed)
    test, truth = equal.part("test"), equal.truth_part("test")
    places = {tuple(cell): number for number, cell in enumerate(cells.tolist())}
    test_cell = np.array([places[tuple(row)] for row in columns(test, names).tolist()], dtype=int)
    log_prob = density.log_prob(test)
    for number, cell in enumerate(cells):
        members = np.flatnonzero(test_cell == number)
        at = dict(zip(names, cell.tolist(), strict=True))
        x = columns(test, rows.schema.target_names)[members]
        pit, pit_error = _pit(density, at, x, rng)
        kl, kl_error = _kl(truth, log_prob, members)
        nll, nll_error = checks.nll(log_prob[members]) if len(members) else (math.nan, math.nan)
        if math.isfinite(kl):
            verdict = verdict_for(kl, kl_error, study.check.kl_threshold, looks=len(cells))
        else:
            verdict = verdict_for(pit, pit_error, LOCAL_THRESHOLD, looks=looks)
        yield Cell(
            context=at,
            rows=int(every[number]),
            effective_rows=checks.effective_rows(weights[which == number]),
            compared=len(members),
            nll=nll,
            nll_error=nll_error,
            pit=pit,
            pit_error=pit_error,
            kl=kl,
            kl_error=kl_error,
            own_loss=math.nan,
            own_loss_error=math.nan,
            distance=math.nan,
            chance=math.nan,
            verdict=verdict if len(members) >= MINIMUM_ROWS else "insufficient data",
        )


def _held(
    density: Density, apart: Apart, members: np.ndarray, context: dict[str, float], study: Study
) -> tuple[Cell, np.ndarray, np.ndarray]:
    """Judge the density at held-out rows; return the cell, and rows and draws ``[n, D]`` for a figure."""
    rng = np.random.default_rng(study.check.seed)
    if any(c.length is not None for c in density.schema.context):
        context = {}  # these numbers are not the whole context
    every = members
    effective = float(len(every))
    if apart.weight is not None:
        effective = checks.effective_rows(apart.weight[every])
        members = every[checks.equal_rows(apart.weight[every], rng)] if effective else every[:0]
    table = {name: values[members] for name, values in apart.table.items()}
    names = density.schema.target_names
    x = columns(table, names)
    at = density.given(table, outside="allow")  # a corner of the grid may be held out, on purpose
    log_prob = at.log_prob(table) if len(members) else np.empty(0)
    threshold = study.check.kl_threshold
    kl, kl_error = _kl(apart.truth, log_prob, np.arange(len(members)), members)
    pit, pit_error = _pit(density, context, x, rng) if context else (math.nan, math.nan)
    own, own_error = math.nan, math.nan
    distance, chance = math.nan, math.nan
    draws = np.empty((0, len(names)))
    if len(members) >= 2:
        each = max(1, math.ceil(DRAWS[0] / len(members)))
        drawn = at.sample(each, seed=study.check.seed).reshape(-1)
        draws = np.stack([drawn[n] for n in names], axis=-1)
        distance, chance = checks.energy_test(x, rng.permutation(draws), rng)
    if len(members) >= MINIMUM_ROWS:
        own, own_error = _against_own(density, table, apart.numbers[members], log_prob, study)
    if math.isfinite(kl):
        verdict = verdict_for(kl, kl_error, threshold)
    else:  # only a loss speaks against the fit: its own flow has seen few rows, and may well do worse
        verdict = verdict_for(max(own, 0.0) if math.isfinite(own) else math.nan, own_error, threshold)
    nll, nll_error = checks.nll(log_prob) if len(members) else (math.nan, math.nan)
    cell = Cell(
        context=context,
        rows=len(every),
        effective_rows=effective,
        compared=len(members),
        nll=nll,
        nll_error=nll_error,
        pit=pit,
        pit_error=pit_error,
        kl=kl,
        kl_error=kl_error,
        own_loss=own,
        own_loss_error=own_error,
        distance=distance,
        chance=chance,
        verdict=verdict if len(members) >= MINIMUM_ROWS else "insufficient data",
    )
    return cell, x[:20_000], draws


def _pit(
    density: Density, context: dict[str, float], x: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the largest distance of the PIT from uniform, over targets, and its error; draws are of one context."""
    if not len(x):
        return math.nan, math.nan
    number = int(np.clip(4 * len(x), *DRAWS))
    drawn = density.given(**context, outside="allow").sample(number, seed=int(rng.integers(2**31)))
    values = np.empty(x.shape)
    for j, name in enumerate(density.schema.target_names):
        ordered = np.sort(drawn[name])
        below, upto = (np.searchsorted(ordered, x[:, j], side) for side in ("left", "right"))
        values[:, j] = (below + rng.random(len(x)) * (upto - below + 1)) / (number + 1)
    distance, error = checks.uniform_distance(values)
    return float(distance.max()), math.hypot(error, 0.5 / math.sqrt(number))


def _kl(
    truth: np.ndarray | None, log_prob: np.ndarray, at: np.ndarray, of_truth: np.ndarray | None = None
) -> tuple[float, float]:
    """Return KL(truth‖fit) over some rows and its error; NaN where the truth is not known."""
    if truth is None or len(at) < 2:
        return math.nan, math.nan
    gap = truth[at if of_truth is None else of_truth] - log_prob[at]
    return float(gap.mean()), float(gap.std(ddof=1)) / math.sqrt(len(gap))


def _against_own(
    density: Density, table: dict[str, np.ndarray], numbers: np.ndarray, log_prob: np.ndarray, study: Study
) -> tuple[float, float]:
    """Return by how much a flow fitted to held-out rows alone does better on some of them, in nats a row, and the error.

    It has the architecture of the study and a short budget, and no context columns but those that vary.
    """
    schema = density.schema
    if any(c.length is not None for c in schema.context):
        return math.nan, math.nan  # its encoder would be most of the fit
    which = split_of(numbers, OWN_SPLIT, study.data.seed)  # rows that come twice fall to the same part
    parts = [{n: v[which == k] for n, v in table.items()} for k in range(3)]
    if min(len(part[schema.target_names[0]]) for part in parts) < 10:
        return math.nan, math.nan
    if any(np.ptp(parts[0][n]) == 0 for n in schema.target_names):
        return math.nan, math.nan  # one target does not vary: there is no scale to fit a flow to
    varying = tuple(c for c in schema.context if np.ptp(parts[0][c.name]) > 0)
    own_schema = type(schema)(schema.targets, varying)
    targets = ColumnTransforms.fit(own_schema.targets, parts[0])
    context = ColumnTransforms.fit(own_schema.context, parts[0])
    options = dict(density.options)
    if not varying:
        options.pop("trunk", None)  # a network of the context
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.training.seed)
        flow = build_mixed_flow(
            density.architecture, **targets.layout.arguments, context=context.layout.width, **options
        )
    x, c, _ = standardised(parts[0], own_schema, targets, context)
    x_new, c_new, _ = standardised(parts[1], own_schema, targets, context)
    size = study.training.batch_rows(len(x))
    budget = TrainingOptions(
        epochs=None, steps=OWN_STEPS, patience=OWN_PATIENCE, learning_rate=2e-3, schedule="cosine"
    )
    for _ in train(flow, Batches(x, c, size, study.training.seed), (x_new, c_new), budget):
        pass
    own = Density(
        flow, own_schema, targets, context, architecture=density.architecture, options=options
    ).log_prob(parts[2])
    difference = own - log_prob[which == 2]
    return float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(len(difference))
