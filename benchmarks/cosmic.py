"""From a table of COSMIC's binary black holes to (Z, alpha) of a population: fit, held-out cells, inference.

    python benchmarks/cosmic.py --data cosmic.parquet --markdown docs/benchmarks/cosmic.md

The table has the columns Mass_0, Mass_1, Z and alpha on a grid (``fluvial binaries extract`` makes one). Whole cells are
held out; the flow is fitted to the others and judged at those. Then the mergers of each held-out cell, which no fit has
seen, are measured with errors, found by a survey of known selection, and (Z, alpha) of their population is inferred with
``fluvial infer`` (:func:`fluvial.workflow.population.infer_population`). ``--quick``: few epochs and events.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, markdown_table, versions, where_and_when, write_json
from population import ERROR, HALF, as_events, measure

import fluvial
from fluvial.data.readers import open_table, write_table
from fluvial.record import RunFolder
from fluvial.workflow.cells import load_cells
from fluvial.workflow.population import Selection, infer_population

HELD_OUT = ((0.0004, 1.0), (0.001, 3.0), (0.002, 1.0))
PRIORS = {"Z": "loguniform:0.0001:0.008", "alpha": "loguniform:0.5:5"}
COLUMNS = ("Mass_0", "Mass_1", "Z", "alpha")
Row = dict[str, Any]


def row(op: str, value: float, unit: str, **more: Any) -> Row:
    return {"work": "cosmic", "op": op, "who": "fluvial", "value": value, "unit": unit, **more}


def fit(options: argparse.Namespace, runs: Path) -> Any:
    """Return the density fitted to the table without the held-out cells."""
    study = {
        "data": {
            "source": str(options.data.resolve()),
            "targets": ["Mass_0", "Mass_1"],
            "context": ["Z", "alpha"],
            "holdout": [{"Z": z, "alpha": alpha} for z, alpha in HELD_OUT],
            "seed": 1,
            "split": {"train": 0.7, "validation": 0.1, "test": 0.2},
        },
        "columns": {
            "Mass_0": {"unit": "Msun", "support": "positive", "label": "$M_0$"},
            "Mass_1": {"unit": "Msun", "support": "positive", "label": "$M_1$"},
            "Z": {"transform": "log", "label": "$Z$"},
            "alpha": {"transform": "log", "label": "$\\alpha$"},
        },
        "flow": {"architecture": "autoregressive-spline", "gain": 4.0},
        # Of some thousand mergers one flow learns noise: its regions hold too little. The mean of several does not.
        "training": {"epochs": options.epochs, "ensemble": options.members},
    }
    return fluvial.fit(study, runs=runs, name="cosmic", on_event=_progress)


def accuracy(run: RunFolder) -> list[Row]:
    """Return the loss, what the checks say, and how the density does in the held-out cells."""
    record = run.record()
    found = record["checks"]
    results = json.loads((run.path / "checks.json").read_text(encoding="utf-8"))["results"]
    rows = [
        row("training", record["timings"]["training"] / 60, "minutes"),
        row("test −log p", found["test_nll"], "nats", error=found["test_nll_error"]),
    ]
    for check in results:
        if check["name"] == "coverage":
            text = f"largest error of a region's coverage ({check['verdict']})"
            rows.append(row(text, check["statistic"], "1", error=check["uncertainty"]))
    for cell in load_cells(run)[1]:
        at = f"held out: {cell.title} ({cell.rows:,} mergers)"
        rows.append(row(f"loss against its own flow, {at}", cell.own_loss, "nats", error=cell.own_loss_error))
        rows.append(row(f"chance of as large an energy distance, {at}", cell.chance, "1"))
    return rows


def infer(options: argparse.Namespace, run: RunFolder, out: Path) -> list[Row]:
    """Infer (Z, alpha) from mergers of every held-out cell; return the rows of the table."""
    table = {name: np.asarray(v, dtype=float) for name, v in open_table(options.data).read(COLUMNS).items()}
    rows = []
    held = [(c.context["Z"], c.context["alpha"]) for c in load_cells(run)[1]]
    for number, (z, alpha) in enumerate(held):
        rng = np.random.default_rng([number, 3])
        here = (table["Z"] == z) & (table["alpha"] == alpha)
        masses = rng.permutation(np.stack([table["Mass_0"][here], table["Mass_1"][here]], -1))
        events = as_events(measure(masses, rng)[: options.events], options.samples, rng)
        source = out / f"events-Z{z:g}-alpha{alpha:g}.parquet"
        samples = {name: events.samples[:, j] for j, name in enumerate(events.names)}
        number_of = np.repeat(np.arange(len(events)), events.counts())
        write_table(source, {"event": number_of, **samples, "log_prior": events.log_prior})
        truth = {"Z": z, "alpha": alpha}
        posterior = infer_population(
            run.path,
            source,
            out / f"posterior-Z{z:g}-alpha{alpha:g}",
            priors=PRIORS,
            selection=Selection(f"Mass_0 / (Mass_0 + {HALF:g})"),
            samples=options.samples,
            least_effective=options.least_effective,
            truth=truth,
            tell=_progress,
        )
        at = f"{len(events)} mergers of Z = {z:g}, alpha = {alpha:g}"
        ranks = posterior.level_of(np.array([z, alpha]))
        summary = json.loads((out / f"posterior-Z{z:g}-alpha{alpha:g}" / "inference.json").read_text("utf-8"))
        for j, name in enumerate(posterior.names):
            low, median, high = np.quantile(posterior.samples[:, j], [0.05, 0.5, 0.95])
            rows.append(row(f"{name}, {at}", float(median), "1", interval=[low, high], rank=float(ranks[j])))
        for name, values in summary["predictive_p_values"].items():
            rows += [row(f"predictive p of {name}, {what}, {at}", p, "1") for what, p in values.items()]
        rows.append(
            row(f"Monte-Carlo variance of log L, {at}", summary["monte_carlo"]["mean_variance"], "nats²")
        )
    return rows


def page(rows: list[Row], where: str, options: argparse.Namespace) -> str:
    shown = []
    for r in rows:
        text = f"{r['value']:.4g}" + (f" ± {r['error']:.2g}" if r.get("error") is not None else "")
        if "interval" in r:
            text += f" ({r['interval'][0]:.3g} to {r['interval'][1]:.3g}); truth at {r['rank']:.0%} of the posterior"
        shown.append({"what": r["op"], "value": text, "unit": r["unit"]})
    return (
        "# COSMIC's binaries: from a table to (Z, alpha)\n\n<!-- Written by benchmarks/cosmic.py; do not edit. -->\n\n"
        "Bound pairs of black holes of COSMIC 4.3 on a grid of eight metallicities and four common-envelope "
        f"efficiencies, {options.rows:,} in all; some cells are held out. Their mergers are measured with errors of "
        f"{100 * ERROR:.0f} %, found with probability M/(M + {HALF:g}) of the measured M_0, and the hyperparameters "
        "inferred with the flows that never saw them: median, and interval of 90 %. The likelihood is believed where "
        f"every event has {options.least_effective:g} effective samples of {options.samples}.\n\n"
        f"{markdown_table(shown)}\n\n{where}\n\nMade with `python benchmarks/cosmic.py --data cosmic.parquet "
        f"--members {options.members} --epochs {options.epochs} --events {options.events} --samples {options.samples}`.\n"
    )


def _progress(event: object) -> None:
    if isinstance(event, str):
        print(f"  {event}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a table with Mass_0, Mass_1, Z and alpha")
    parser.add_argument("--quick", action="store_true", help="under a minute: few epochs, few events")
    parser.add_argument("--run", type=Path, help="a run of this script that is there: nothing is fitted")
    parser.add_argument("--out", type=Path, help="keep the run, events and posteriors in this folder")
    parser.add_argument("--epochs", type=int, help="(default: 40; quick: 3)")
    parser.add_argument("--members", type=int, default=4, help="of the ensemble")
    parser.add_argument("--events", type=int, help="(default: 100; quick: 30)")
    parser.add_argument("--samples", type=int, default=500, help="posterior samples of an event")
    parser.add_argument(
        "--least-effective", type=float, default=4.0, help="effective samples that every event must have"
    )
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--markdown", type=Path, help="write the page there (docs/benchmarks/cosmic.md)")
    options = parser.parse_args()
    options.epochs = options.epochs or (3 if options.quick else 40)
    options.events = options.events or (30 if options.quick else 100)
    options.rows = open_table(options.data).rows()
    about, found = machine(), versions(["fluvial", "torch", "numpy"])
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        density = fluvial.load(options.run) if options.run else fit(options, out / "runs")
        assert density.folder is not None
        run = RunFolder(Path(density.folder))
        rows = accuracy(run) + infer(options, run, out)
    text = page(rows, where_and_when(about, found), options)
    print(text)
    if options.json:
        write_json(options.json, rows, machine=about, versions=found)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
