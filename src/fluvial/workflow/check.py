"""``check_run``: a trained density against the test rows, that it has not seen."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from fluvial import check as checks
from fluvial.check import CheckResult
from fluvial.data.schema import Schema, Support
from fluvial.density import Density
from fluvial.files import write_atomically
from fluvial.record import ARRAYS, CHECKS, RunFolder, now
from fluvial.study import Study
from fluvial.workflow import trust
from fluvial.workflow.card import write_card
from fluvial.workflow.data import Rows, columns
from fluvial.workflow.predictions import prediction_arrays
from fluvial.workflow.quadrature import integrate
from fluvial.workflow.rows import read_run
from fluvial.workflow.summary import names_of_context, summarise
from fluvial.workflow.trust import Tell

LEVELS = np.linspace(0.05, 0.95, 19)
#: Contexts at which data and draws are compared in figures, and at which the density is integrated.
PANELS, INTEGRALS = 6, 10
#: Contexts and draws at each, at most, for a flow whose log-density is dear.
DEAR_CONTEXTS, DEAR_DRAWS = 500, 100
#: Most rows of data, and draws, behind one panel of a figure.
PANEL_ROWS = 20_000


def check_run(run: str | Path, *, on_event: Tell | None = None) -> list[CheckResult]:
    """Check the density of a run on the test rows of its study; write ``checks.json``, ``checks.npz`` and the card.

    ``on_event`` is called with a text now and then while it goes on.

    Returns
    -------
    list[CheckResult]
        Statistic, uncertainty, threshold and verdict of every check.

    Raises
    ------
    RunError
        If the run is missing, or its data have changed since the fit.
    """
    folder = RunFolder.open(run)
    record, study, rows = read_run(folder)
    began = time.perf_counter()
    density = Density.load(folder.path)
    record["checks"] = run_checks(folder, density, rows, study, on_event or _silent)
    record["timings"]["checks"] = time.perf_counter() - began
    folder.write_record(record)
    write_card(folder)
    return load_results(folder)


def _silent(text: str) -> None:
    pass


def load_results(run: RunFolder) -> list[CheckResult]:
    """Return the check results of a run, or an empty list if none were made."""
    found = run.checks()
    return [] if found is None else [CheckResult.from_json(r) for r in found["results"]]


def run_checks(
    run: RunFolder, density: Density, rows: Rows, study: Study, tell: Tell = _silent
) -> dict[str, Any]:
    """Run all checks, write results and arrays into the run folder, and return a summary for the record.

    Where rows have weights, checks and figures are of rows drawn in proportion to them. The novelty score and the
    conformal regions of the density are made and written too.
    """
    rows = rows.equal(study.check.seed)
    table, truth, seed = rows.part("test"), rows.truth_part("test"), study.check.seed
    results, arrays = compute_checks(density, table, truth, study, tell)
    cells, names = trust.compare_cells(density, rows, seed, tell)
    results += checks.cells(cells, rows.schema.target_names, names)
    arrays.update({f"cells_{name}": value for name, value in vars(cells).items()})
    arrays.update(_panels(density, rows, study, tell))
    log_prob, chosen = arrays.pop("log_prob"), arrays.pop("chosen")
    few = {name: values[chosen] for name, values in table.items()}
    beside = trust.compare_baselines(density, rows, few, log_prob[chosen], seed, tell)
    density.novelty = trust.fit_novelty(density, rows, seed)
    if density.novelty is not None:
        density.novelty.save(run.path)
    regions = trust.fit_conformal(density, rows, seed)
    regions.save(run.path)
    test_nll, error = checks.nll(log_prob)
    best = min((b for b in beside if b.made), key=lambda b: b.gain, default=None)
    kl = next((r for r in results if r.name.startswith("KL")), None)
    summary = {
        "verdict": checks.overall(results),
        "passed": sum(r.verdict == "pass" for r in results),
        "made": len(results),
        "test_nll": test_nll,
        "test_nll_error": error,
        "test_rows": len(log_prob),
        "kl": kl.statistic if kl else None,
        "kl_error": kl.uncertainty if kl else None,
        "best_baseline": best.name if best else None,
        "gain": best.gain if best else None,
        "gain_error": best.gain_error if best else None,
    }
    more = {
        "results": [r.to_json() for r in results],
        "baselines": [b.to_json() for b in beside],
        "novelty": _novelty_on(density, few),
        "conformal": {**regions.about, "levels": trust.conformal_coverage(regions, log_prob)},
    }
    run.write_json(CHECKS, {"date": now(), **summary, **more})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(run.path / ARRAYS, buffer.getvalue())
    return summary


def _novelty_on(density: Density, table: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """Return how many contexts of a table are flagged, and how the flag is raised."""
    if density.novelty is None:
        return None
    found = density.given(table).novelty()
    return {
        "rate": found.rate,
        "rows": found.flag.size,
        "flagged": int(found.flag.sum()),
        "describe": density.novelty.describe(),
    }


def compute_checks(
    density: Density,
    table: dict[str, np.ndarray],
    truth: np.ndarray | None,
    study: Study,
    tell: Tell = _silent,
) -> tuple[list[CheckResult], dict[str, np.ndarray]]:
    """Return the results of the checks on test rows, and the arrays that the figures draw."""
    schema, section = density.schema, study.check
    names = schema.target_names
    rng = np.random.default_rng(section.seed)
    # A log-density by an ODE solver is dear: fewer draws, no integral.
    dear = density.flow.validation_rows is not None
    contexts, number = section.contexts, section.draws
    if dear:
        contexts, number = min(contexts, DEAR_CONTEXTS), min(number, DEAR_DRAWS)
    log_prob = density.log_prob(table)
    rows = np.sort(rng.choice(len(log_prob), min(contexts, len(log_prob)), replace=False))
    chosen = {name: values[rows] for name, values in table.items()}
    draws, draws_log_prob = trust.draws_at(density, chosen, number, section.seed, tell)
    x = columns(chosen, names)
    context, _ = summarise(schema, chosen, draws)
    at_rows = log_prob[rows]
    if not density.plain:
        # Equal levels are equally likely: two paths of arithmetic must not tell them apart, or ranks are not random.
        at_rows, draws_log_prob = np.round(at_rows, 3), np.round(draws_log_prob, 3)

    pit = checks.pit_values(x, draws, rng)
    pulls = checks.pulls(x, draws)
    results = [
        *checks.pit(pit, names),
        checks.coverage(at_rows, draws_log_prob, rng),
        *([checks.tarp(x, draws, rng)] if len(names) > 1 else []),
        *checks.pull_checks(x, draws, names),
        *checks.tail_rates(pit, names),
    ]
    if schema.context:
        hpd = checks.hpd_values(at_rows, draws_log_prob, rng)
        results += checks.local_calibration(pit, context, names)
        results.append(checks.local_coverage(hpd, context))
        results += checks.local_regression(pit, context, names, rng, context_columns=names_of_context(schema))
    results += _support(schema, x, draws, context)
    if len(names) <= 2 and not dear:
        at = rows[np.linspace(0, len(rows) - 1, min(INTEGRALS, len(rows))).astype(int)]
        integrals = [integrate(density, {n: table[n][r] for n in schema.context_names}) for r in at]
        values, errors = (np.array(v) for v in zip(*integrals, strict=True))
        results.append(checks.normalisation(values, errors))
    if truth is not None:
        results.insert(0, checks.kl_divergence(truth, log_prob, threshold=section.kl_threshold))

    joint, joint_error = checks.coverage_curve(at_rows, draws_log_prob, LEVELS, rng)
    central, central_error = checks.central_coverage_curve(x, draws, LEVELS, rng)
    arrays = {
        "log_prob": log_prob,
        "chosen": rows,
        "pit": pit,
        "pulls": pulls,
        "levels": LEVELS,
        "coverage": joint,
        "coverage_error": joint_error,
        "central": central,
        "central_error": central_error,
        **prediction_arrays(density, chosen, x, draws, section.seed),
    }
    return results, arrays


def _support(schema: Schema, x: np.ndarray, draws: np.ndarray, context: np.ndarray) -> list[CheckResult]:
    """Return that no draw is where a column cannot be, and how often atoms and integers come."""
    never = Support(math.inf, -math.inf)
    supports = [
        never if c.kind == "integer" else Support() if c.period is not None else c.support
        for c in schema.targets
    ]
    lower, upper = np.array([s.lower for s in supports]), np.array([s.upper for s in supports])
    levels = [c.levels for c in schema.targets]
    results = checks.outside_support(draws, lower, upper, schema.target_names, levels)
    for j, column in enumerate(schema.targets):
        if column.levels:
            results.append(
                checks.level_probabilities(x[:, j], draws[:, :, j], context, column.name, column.levels)
            )
    return results


def _panels(density: Density, rows: Rows, study: Study, tell: Tell) -> dict[str, np.ndarray]:
    """Return data and draws at several contexts, spread over those of the table; all rows serve, for statistics.

    Where the context has arrays, the parts are of what stands for them (see :mod:`fluvial.workflow.summary`), and some
    rows serve.
    """
    schema = rows.schema
    rng = np.random.default_rng(study.check.seed)
    table, context, titles = trust.looked_at(density, rows, study.check.seed)
    data = columns(table, schema.target_names)
    least = int(min(400, max(20, len(data) // 20)))
    bins = checks.representative_contexts(context, PANELS, least) if schema.context else []
    arrays: dict[str, np.ndarray] = {}
    parts = [(b.value, b.rows) for b in bins] or [(np.empty(0), np.arange(len(data)))]
    progress = trust.Progress(tell, f"drawing for figures at {len(parts)} contexts", len(parts))
    for k, (value, members) in enumerate(parts):
        members = rng.permutation(members)[:PANEL_ROWS]
        arrays[f"panel{k}_context"] = value
        if schema.arrays:
            arrays[f"panel{k}_titles"] = np.array(titles)
        arrays[f"panel{k}_data"] = data[members]
        # Draws at the very contexts of the rows: a bin of a continuous context is not one context.
        each = max(1, math.ceil(PANEL_ROWS / len(members)))
        if schema.context:
            given = density.given({n: table[n][members] for n in schema.context_names})
            drawn = given.sample(each, seed=study.check.seed + k).reshape(-1)
        else:
            drawn = density.given().sample(PANEL_ROWS, seed=study.check.seed)
        arrays[f"panel{k}_draws"] = np.stack([drawn[n] for n in schema.target_names], axis=-1)
        progress.done(k + 1)
    return arrays
