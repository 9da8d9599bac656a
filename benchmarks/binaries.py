r"""The emulator of black-hole binaries against what it must show.

``python benchmarks/binaries.py`` simulates 800,000 mergers whose density is known, fits ``studies/binaries.toml`` (four
cells held out), and measures, on 2 threads:

- KL(truth‖fit) over the test rows, and in each held-out cell;
- the four peaks of Mass_0 between 5.5 and 9.5 solar masses, at trained and held-out cells: positions, depths of the
  valleys between them, and the largest ripple that is no peak, of the marginal density by quadrature;
- 10 million draws: how many below zero or above the bound of the study;
- 20,000 draws at one context, warm, and a million likelihoods on a grid of hyperparameters;
- draws a second, fluvial's fitted flow against the MAF of earlier work (``plain_maf.py``), and the same MAF in every
  library that is installed (``flows.py``).

``--data TABLE.parquet --holdout '(Z == 0.001 and alpha == 3)'`` fits a table of your own instead, whose density is not
known. ``--run RUN`` measures a run that is there. ``--quick`` takes under a minute: 40,000 rows, 2 epochs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, markdown_table, versions, where_and_when, write_json
from flows import PEERS, compare
from peers.work import QUICK_WORKS, WORKS
from plain_maf import MaskedAutoregressiveFlow
from scipy.signal import find_peaks

import fluvial
from fluvial.apps.binaries import simulator
from fluvial.density import Density
from fluvial.record import RunFolder
from fluvial.workflow.cells import load_cells

STUDY = Path(__file__).parent.parent / "studies" / "binaries.toml"
PACKAGES = ("fluvial", "torch", "numpy", "nflows", "zuko", "flowjax")
#: Where peaks are looked for, in solar masses, and the cells at which: some trained, some held out.
PEAKS = np.linspace(5.4, 9.6, 841)
#: A peak rises by at least this share of the highest one above the valleys beside it. Those of the truth rise by 0.17 or
#: more; what lies below is a ripple of the estimate, and is listed as such.
PROMINENCE = 0.05
CELLS = ((0.0004, 3.0), (0.001, 1.0), (0.002, 1.0), (0.001, 3.0), (0.004, 1.0))
DRAWS, AT_ONCE, LIKELIHOODS = 10_000_000, 20_000, 1_000_000
Row = dict[str, Any]


def row(op: str, who: str, value: float, unit: str, work: str = "simulated", **more: Any) -> Row:
    return {"work": work, "op": op, "who": who, "value": value, "unit": unit, **more}


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def fit(options: argparse.Namespace, folder: Path) -> tuple[Density, float]:
    """Simulate (or take a table), fit the study; return the density and the minutes that training took."""
    study = tomllib.loads(STUDY.read_text(encoding="utf-8"))
    if options.data is None:
        source = folder / "mergers.parquet"
        simulator.write(source, options.rows, seed=1)
    else:
        source = options.data
        del study["check"]["truth"], study["data"]["holdout"]
        if options.holdout:
            study["data"]["holdout"] = options.holdout
    study["data"]["source"] = str(source.resolve())
    study["training"]["epochs"] = options.epochs
    began = time.perf_counter()
    density = fluvial.fit(study, runs=options.runs or folder, name="binaries-benchmark", on_event=_progress)
    return density, (time.perf_counter() - began) / 60


def accuracy(run: RunFolder, work: str) -> list[Row]:
    """Return what the run's own checks say: KL (or log-likelihood) over test rows and in held-out cells."""
    checks = run.record()["checks"]
    rows = []
    if checks["kl"] is not None:
        rows.append(row("KL(truth‖fit)", "fluvial", checks["kl"], "nats", work, error=checks["kl_error"]))
    rows.append(
        row("test −log p", "fluvial", checks["test_nll"], "nats", work, error=checks["test_nll_error"])
    )
    for cell in load_cells(run)[1]:
        if np.isfinite(cell.kl):
            rows.append(
                row(f"KL, held out: {cell.title}", "fluvial", cell.kl, "nats", work, error=cell.kl_error)
            )
        rows.append(
            row(
                f"loss against its own flow, held out: {cell.title}",
                "fluvial",
                cell.own_loss,
                "nats",
                work,
                error=cell.own_loss_error,
            )
        )
    return rows


def peaks(density: Density) -> list[Row]:
    """Compare the four peaks of Mass_0 and the valleys between them with those of the truth."""
    held = {tuple(c.context.values()) for c in _held(density)}
    rows = []
    for z, alpha in CELLS:
        given = density.given(Z=z, alpha=alpha)
        fitted = _features(marginal(lambda m0, m1, p=given: p.log_prob({"Mass_0": m0, "Mass_1": m1})))
        truth = _features(marginal(lambda m0, m1, z=z, a=alpha: simulator.log_density(m0, m1, z, a)))
        at = f"Z = {z:g}, alpha = {alpha:g}" + (" (held out)" if (z, alpha) in held else "")
        rows.append(row(f"peaks found, {at}", "fluvial", len(fitted[0]), "of 4"))
        rows.append(row(f"largest ripple, {at}", "fluvial", fitted[2], "of the highest peak"))
        if len(fitted[0]) == len(truth[0]) == 4:
            shift = float(np.abs(fitted[0] - truth[0]).max())
            depth = float(np.abs(fitted[1] / truth[1] - 1).max())
            rows.append(row(f"largest shift of a peak, {at}", "fluvial", shift, "Msun"))
            rows.append(row(f"largest relative error of a valley's depth, {at}", "fluvial", depth, "1"))
    return rows


def marginal(log_p: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the density of Mass_0 at PEAKS: the integral over Mass_1, by the trapezoidal rule in its logarithm."""
    other = np.geomspace(2.0, 90.0, 700)
    p = np.exp(log_p(PEAKS[:, None], other)) * other
    return np.trapezoid(p, np.log(other), axis=1)


def _features(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the positions of the peaks, how deep the valleys between them are, and the largest ripple.

    The depth of a valley is 1 − valley / mean of its peaks; a ripple is a maximum too low for a peak, measured by how far
    it rises above the valleys beside it, in shares of the highest peak.
    """
    maxima, found = find_peaks(p, prominence=0)
    rise = found["prominences"] / p.max()
    inner = maxima[rise >= PROMINENCE]
    valleys = np.array([p[a:b].min() for a, b in pairwise(inner)])
    ripple = float(rise[rise < PROMINENCE].max(initial=0.0))
    return PEAKS[inner], 1 - valleys / (0.5 * (p[inner[:-1]] + p[inner[1:]])), ripple


def bounds(density: Density, number: int, work: str) -> list[Row]:
    """Count draws where no mass can be."""
    upper = min(c.support.upper for c in density.schema.targets)
    low = high = done = 0
    contexts = _contexts(density)
    while done < number:
        size = min(500_000, number - done)
        at = contexts[done // 500_000 % len(contexts)]
        draws = density.given(**at).sample(size, seed=done)
        masses = np.stack([draws[n] for n in density.schema.target_names])
        low, high, done = low + int((masses <= 0).sum()), high + int((masses >= upper).sum()), done + size
    return [
        row(f"masses of {done:,} draws at or below 0", "fluvial", low, "1", work),
        row(f"masses of {done:,} draws at or above {upper:g}", "fluvial", high, "1", work),
    ]


def speed(density: Density, options: argparse.Namespace, work: str) -> list[Row]:
    """Time draws at one context and likelihoods on a grid; against the MAF of earlier work."""
    at = _contexts(density)[0]
    given = density.given(**at)
    seconds = median_seconds(lambda: given.sample(AT_ONCE, seed=1), options.repeats)
    rows = [
        row(f"{AT_ONCE:,} draws at one context, warm", "fluvial", 1e3 * seconds, "ms", work),
        row("draws at one context", "fluvial", AT_ONCE / seconds, "1/s", work),
    ]
    maf = MaskedAutoregressiveFlow(2, 2).eval()  # untrained: a draw costs the same
    context, generator = torch.zeros(AT_ONCE, 2), torch.Generator().manual_seed(0)
    with torch.no_grad():
        seconds = median_seconds(lambda: maf.sample(context, generator), options.repeats)
    rows.append(row("draws at one context", "MAF of earlier work", AT_ONCE / seconds, "1/s", work))
    number = options.likelihoods
    events = given.sample(100, seed=2)
    (z_low, z_high), (a_low, a_high) = (density.context_range[n] for n in density.schema.context_names)
    z, alpha = np.geomspace(z_low or 1e-4, z_high, number // 2000), np.geomspace(a_low, a_high, 20)
    asked = density.given({"Z": z[:, None, None], "alpha": alpha[:, None]})
    began = time.perf_counter()
    asked.log_prob(events)
    seconds = time.perf_counter() - began
    rows.append(row(f"{len(z) * 20 * 100:,} likelihoods, 100 events", "fluvial", seconds, "s", work))
    return rows


def peers(options: argparse.Namespace) -> list[Row]:
    """Return draws a second of the MAF of earlier work's size in every library that is installed, fluvial's too."""
    chosen = [who for who, module in PEERS.items() if who != "normflows" and find_spec(module)]
    work = (QUICK_WORKS if options.quick else WORKS)["binaries-maf"]
    found, _ = compare(work, chosen, options)
    return [
        row(
            f"the same MAF, {work.inference_rows:,} contexts: {one['op']}",
            one["who"],
            one["value"],
            "rows/s",
            "maf",
        )
        for one in found
        if one["who"] in chosen and one["op"] != "train"
    ]


def _held(density: Density):
    assert density.folder is not None
    return load_cells(RunFolder(Path(density.folder)))[1]


def _contexts(density: Density) -> list[dict[str, float]]:
    assert density.folder is not None
    trained, held = load_cells(RunFolder(Path(density.folder)))
    return [c.context for c in [*held, *trained] if c.context and c.rows >= 50]


def _progress(event: object) -> None:
    if isinstance(event, str):
        print(f"  {event}", flush=True)


def page(rows: list[Row], where: str, command: str) -> str:
    shown = [
        {
            "work": r["work"],
            "what": r["op"],
            "who": r["who"],
            "value": f"{r['value']:.4g}" + (f" ± {r['error']:.2g}" if r.get("error") is not None else ""),
            "unit": r["unit"],
        }
        for r in rows
    ]
    return (
        "# The emulator of black-hole binaries\n\n<!-- Written by benchmarks/binaries.py; do not edit. -->\n\n"
        "`studies/binaries.toml`, on mergers of the built-in simulator, whose density is known, with four cells of the "
        "grid held out (work: simulated), or on a table of one's own (its name). Depth of a valley: 1 − its density over "
        f"the mean of the peaks beside it. A peak rises by at least {PROMINENCE:.0%} of the highest above the valleys "
        "beside it (those of the truth by 17 % and more); what rises less is a ripple of the estimate. The same MAF: ten "
        "MADE steps of two layers of 128, in each library, in a "
        f"process of its own.\n\n{markdown_table(shown)}\n\n{where}\n\nMade with `{command}`.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: smaller work, the same comparison"
    )
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--markdown", type=Path, help="write the page there (docs/benchmarks/binaries.md)")
    parser.add_argument(
        "--data", type=Path, help="a table with Mass_0, Mass_1, Z and alpha, in place of the simulator"
    )
    parser.add_argument("--holdout", help="with --data: a condition, such as 'Z == 0.001 and alpha == 3'")
    parser.add_argument("--run", type=Path, help="a run of binaries.toml that is there: nothing is fitted")
    parser.add_argument("--runs", type=Path, help="keep the run in this folder")
    parser.add_argument("--rows", type=int, help="rows simulated (default: 800,000; quick: 40,000)")
    parser.add_argument("--epochs", type=int, help="(default: 30; quick: 2)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, help="of every timing (default: 15; quick: 3)")
    parser.add_argument("--no-peers", action="store_true", help="leave nflows, zuko and flowjax out")
    options = parser.parse_args()
    quick = options.quick
    options.rows = options.rows or (40_000 if quick else 800_000)
    options.epochs = options.epochs or (2 if quick else 30)
    options.repeats = options.repeats or (3 if quick else 15)
    options.likelihoods = 40_000 if quick else LIKELIHOODS
    options.seconds = 0.3 if quick else 2.0
    torch.set_num_threads(options.threads)
    about = machine(options.threads)
    work = "simulated" if options.data is None else options.data.name
    with tempfile.TemporaryDirectory() as folder:
        if options.run is not None:
            density, minutes = fluvial.load(options.run), None
        else:
            density, minutes = fit(options, Path(folder))
        assert density.folder is not None
        run = RunFolder(Path(density.folder))
        rows = accuracy(run, work)
        if minutes is not None:
            rows.append(row("fit, checks and report", "fluvial", minutes, "minutes", work))
        rows.append(row("training", "fluvial", run.record()["timings"]["training"] / 60, "minutes", work))
        if options.data is None:
            rows += peaks(density)
        rows += bounds(density, DRAWS // 100 if quick else DRAWS, work)
        rows += speed(density, options, work)
    if not options.no_peers:
        rows += peers(options)
    found = versions(PACKAGES)
    for one in rows:
        error = f" ± {one['error']:.2g}" if one.get("error") is not None else ""
        print(f"{one['work']:10s} {one['op']:75s} {one['who']:20s} {one['value']:.4g}{error} {one['unit']}")
    if options.json:
        write_json(options.json, rows, machine=about, versions=found)
    if options.markdown:
        command = "python benchmarks/binaries.py" + (" --quick" if quick else "")
        options.markdown.write_text(page(rows, where_and_when(about, found), command), encoding="utf-8")


if __name__ == "__main__":
    main()
