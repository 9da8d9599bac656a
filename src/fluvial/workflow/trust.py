"""What goes with a checked density: baselines beside it, a comparison cell by cell, novelty, conformal regions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fluvial import check as checks
from fluvial.check import baselines
from fluvial.check.baselines import Baseline
from fluvial.check.cells import CellDifferences, cell_differences
from fluvial.data.stream import hashed_pair
from fluvial.density import Density
from fluvial.errors import DataError
from fluvial.infer.conformal import ConformalRegions
from fluvial.novelty import Novelty
from fluvial.workflow.data import Rows, columns
from fluvial.workflow.summary import summarise

Tell = Callable[[str], None]

#: Cells of context that are compared, rows that each needs, and rows and draws used of each at most.
CELLS, CELL_ROWS, CELL_MOST, CELL_DRAWS = 64, 500, 4_000, 8_000
#: The same, of a flow whose draws are dear.
DEAR_CELLS, DEAR_CELL_DRAWS = 6, 2_000
#: Training rows behind baselines at most, and columns of context that they take.
BASELINE_ROWS, BASELINE_CONTEXT = 60_000, 200
#: Rows with arrays that are read for any of this, and draws at each that tell which part of context it belongs to.
ARRAY_ROWS, SUMMARY_DRAWS = 3_000, 50
#: Rows behind novelty and conformal regions, at most.
NOVELTY_ROWS, CONFORMAL_ROWS = 1_000_000, 100_000
#: Draws made between two looks at the clock, and seconds of silence before progress is told.
BLOCK, SILENCE = 250_000, 5.0
#: Levels of conformal regions whose coverage is reported.
CONFORMAL_LEVELS = (0.5, 0.68, 0.9, 0.95)


class Progress:
    """Tells how far a long job is, but only if it is long: the first word comes after some seconds, then now and then.

    Parameters
    ----------
    tell
        What is told.
    what
        The job, such as ``drawing at 4,000 contexts``.
    total
        Its size.
    """

    def __init__(self, tell: Tell, what: str, total: int):
        self.tell, self.what, self.total = tell, what, max(total, 1)
        self.began = self.last = time.monotonic()

    def done(self, amount: int) -> None:
        """Say that so much of the total is done."""
        now = time.monotonic()
        if now - self.last > SILENCE and amount < self.total:
            self.last = now
            left = (now - self.began) * (self.total - amount) / max(amount, 1)
            self.tell(f"{self.what}: {100 * amount / self.total:.0f} %, about {left:.0f} s left")


def draws_at(
    density: Density, table: Mapping[str, np.ndarray], number: int, seed: int, tell: Tell
) -> tuple[np.ndarray, np.ndarray]:
    """Draw at every row of a table: draws ``[n, number, D]`` and their log-densities ``[n, number]``."""
    names = density.schema.target_names
    rows = len(next(iter(table.values())))
    step = max(1, BLOCK // number)
    progress = Progress(tell, f"drawing {number} times at {rows:,} contexts", rows)
    draws, log_prob = np.empty((rows, number, len(names))), np.empty((rows, number))
    for block, start in enumerate(range(0, rows, step)):
        part = slice(start, start + step)
        chosen = {name: values[part] for name, values in table.items()}
        size = len(log_prob[part])
        block_seed = seed if block == 0 else hashed_pair(seed, block) >> 1
        if density.schema.context:
            drawn, of_draws = density.given(chosen).sample_and_log_prob(number, seed=block_seed)
        else:
            drawn, of_draws = density.given().sample_and_log_prob(size * number, seed=block_seed)
        draws[part] = np.stack([drawn[n] for n in names], axis=-1).reshape(size, number, len(names))
        log_prob[part] = of_draws.reshape(size, number)
        progress.done(start + size)
    return draws, log_prob


def looked_at(
    density: Density, rows: Rows, seed: int
) -> tuple[Mapping[str, np.ndarray], np.ndarray, list[str]]:
    """Return a table in which data and draws are compared, the context by which it is cut in parts, and its names.

    All rows serve, for statistics, those of training too. Where the context has arrays, some rows do, and what stands for
    their contexts is what the density predicts from them (see :mod:`fluvial.workflow.summary`).
    """
    schema = rows.schema
    if not schema.arrays:
        return rows.table, columns(rows.table, schema.context_names), schema.context_names
    size = len(next(iter(rows.table.values())))
    table = rows.take(np.sort(np.random.default_rng(seed).permutation(size)[:ARRAY_ROWS]))
    predicted = density.given(table).sample(SUMMARY_DRAWS, seed=seed)
    drawn = np.stack([predicted[n] for n in schema.target_names], axis=-1)
    context, titles = summarise(schema, table, drawn)
    return table, context, titles


def compare_cells(
    density: Density, rows: Rows, seed: int, tell: Tell
) -> tuple[CellDifferences, Sequence[str]]:
    """Compare data and draws in cells of context; return the differences, and the names of the context's columns."""
    schema = rows.schema
    table, context, names = looked_at(density, rows, seed)
    data = columns(table, schema.target_names)
    dear = density.flow.validation_rows is not None
    most, draws = (DEAR_CELLS, DEAR_CELL_DRAWS) if dear else (CELLS, CELL_DRAWS)
    parts = checks.representative_contexts(context, min(most, max(len(data) // CELL_ROWS, 1)), CELL_ROWS)
    rng = np.random.default_rng(seed)
    progress = Progress(tell, f"comparing {len(parts)} cells of context", len(parts))
    observed, drawn = [], []
    for number, part in enumerate(parts, 1):
        members = rng.permutation(part.rows)[:CELL_MOST]
        each = math.ceil(draws / len(members))
        if schema.context:
            chosen = {name: table[name][members] for name in schema.context_names}
            found = density.given(chosen).sample(each, seed=hashed_pair(seed, number) >> 1).reshape(-1)
        else:
            found = density.given().sample(draws, seed=seed)
        observed.append(data[members])
        drawn.append(np.stack([found[n] for n in schema.target_names], axis=-1))
        progress.done(number)
    return cell_differences(observed, drawn, np.stack([p.value for p in parts])), names


def compare_baselines(
    density: Density, rows: Rows, table: Mapping[str, np.ndarray], log_prob: np.ndarray, seed: int, tell: Tell
) -> list[Baseline]:
    """Return baselines fitted to the training rows and scored, like the flow's ``log_prob``, on the rows of ``table``."""
    names = ["marginal density", "nearest neighbours", "linear Gaussian", "boosted quantiles"]
    schema = rows.schema
    if not density.plain:
        note = (
            "left out, since log p of the flow counts the probabilities of atoms or integers too: its difference from a "
            "density per unit of every target would mean nothing"
        )
        return [Baseline(name, note=note) for name in names]
    tell("fitting baselines")
    train = some(rows, rows.split.train, BASELINE_ROWS, seed)
    x, _ = density.target_transforms.forward(columns(train, schema.target_names))
    y, logdet = density.target_transforms.forward(columns(table, schema.target_names))
    c, d = context_of(density, train), context_of(density, table)
    last = time.monotonic()

    def progress(text: str) -> None:
        nonlocal last
        if time.monotonic() - last > SILENCE:
            last = time.monotonic()
            tell(f"baselines: {text}")

    make: dict[str, Callable[[], np.ndarray]] = {
        "marginal density": lambda: baselines.marginal(x, y, seed=seed),
        "nearest neighbours": lambda: baselines.nearest_neighbours(x, c, y, d, seed=seed),
        "linear Gaussian": lambda: baselines.linear_gaussian(x, c, y, d),
        "boosted quantiles": lambda: baselines.boosted_quantiles(x, c, y, d, seed=seed, tell=progress),
    }
    out = []
    for name in names:
        if name == "nearest neighbours" and not c.shape[1]:
            continue
        if name != "marginal density" and c.shape[1] > BASELINE_CONTEXT:
            note = f"made for {BASELINE_CONTEXT} columns of context at most; there are {c.shape[1]}"
            out.append(Baseline(name, note=note))
            continue
        try:
            out.append(baselines.compare(name, make[name]() + logdet, log_prob))
        except ImportError:
            out.append(
                Baseline(
                    name, note="scikit-learn is not installed; pip install 'fluvial[baselines]' brings it"
                )
            )
        except (DataError, np.linalg.LinAlgError) as error:
            out.append(Baseline(name, note=f"could not be made: {error}"))
    return out


def context_of(density: Density, table: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the context of rows as the flow sees it, ``[n, C]`` float64."""
    if not density.schema.context:
        return np.empty((len(next(iter(table.values()))), 0))
    return density.given(dict(table)).coded.astype(np.float64)


def some(rows: Rows, chosen: np.ndarray, most: int, seed: int) -> dict[str, np.ndarray]:
    """Return at most so many of the chosen rows, at random; fewer where they have arrays."""
    most = min(most, ARRAY_ROWS) if rows.schema.arrays else most
    return rows.take(np.sort(np.random.default_rng(seed).permutation(chosen)[:most]))


def held_out(density: Density, rows: Rows) -> tuple[str, np.ndarray]:
    """Return the split that training did not learn from, and its rows that recalibration did not use.

    The calibration split where there is one, else the validation split, that training stopped by. A recalibrated density
    has used every second row, those with even numbers.
    """
    split = "calibration" if rows.count("calibration") else "validation"
    chosen = getattr(rows.split, split)
    return split, chosen if density.recalibration is None else chosen[1::2]


def fit_novelty(density: Density, rows: Rows, seed: int) -> Novelty | None:
    """Return what tells contexts unlike those of the training rows; ``None`` without context."""
    if not density.schema.context:
        return None
    split, chosen = held_out(density, rows)
    train = some(rows, rows.split.train, NOVELTY_ROWS, seed)
    return Novelty.fit(
        context_of(density, train),
        context_of(density, some(rows, chosen, NOVELTY_ROWS, seed)),
        split=split,
        seed=seed,
    )


def fit_conformal(density: Density, rows: Rows, seed: int) -> ConformalRegions:
    """Return conformal regions of a density."""
    split, chosen = held_out(density, rows)
    part = some(rows, chosen, CONFORMAL_ROWS, seed)
    return ConformalRegions.fit(
        density, part, seed=seed, split=split, also_stopped_training=split == "validation"
    )


def conformal_coverage(regions: ConformalRegions, log_prob: np.ndarray) -> list[dict[str, Any]]:
    """Return how often the regions hold rows with the log-densities ``log_prob``, at each of :data:`CONFORMAL_LEVELS`."""
    n, out = len(log_prob), []
    for level in CONFORMAL_LEVELS:
        inside = float(np.mean(log_prob >= regions.threshold(level)))
        smooth = (inside * n + 1) / (n + 2)
        out.append(
            {
                "level": level,
                "log_prob": regions.threshold(level),
                "coverage": inside,
                "coverage_error": math.sqrt(smooth * (1 - smooth) / n),
            }
        )
    return out
