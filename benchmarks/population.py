"""Coverage of population inference: do regions of 50 % and 90 % hold the true (Z, alpha) as often as they say?

An emulator is fitted to simulated mergers (or a run is given); then, over and over, (Z, alpha) is drawn from its prior,
100 mergers are drawn from the *simulator* there, measured with errors, found by a survey of known selection, and
(Z, alpha) is inferred from them with the emulator. A region of a level must hold the truth at that rate, within the
binomial error of the repetitions. The same without the selection term is the negative control.

    python benchmarks/population.py                      # 100 repetitions
    python benchmarks/population.py --run runs/binaries-1 --repeats 100
    python benchmarks/population.py --quick
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, markdown_table, versions, where_and_when, write_json

import fluvial
from fluvial.apps.binaries import population, simulator
from fluvial.infer.events import Events, Injections
from fluvial.infer.population import PopulationLikelihood
from fluvial.infer.posterior import PopulationPosterior, sample_posterior
from fluvial.infer.priors import LogUniform

PRIORS = {"Z": LogUniform(3e-4, 1e-2), "alpha": LogUniform(0.6, 4.5)}
#: Relative errors of measured masses, and the mass at which half of what is measured is found.
ERROR, HALF = 0.08, 20.0
LEVELS = (0.5, 0.9)


def found(measured: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return which events a survey finds: by the measured larger mass, and by a distance that is part of the data."""
    return rng.random(measured.shape) < measured / (measured + HALF)


def detection(table: dict[str, np.ndarray]) -> np.ndarray:
    """Return the probability that a merger of these true masses is found: the mean over its measurement's error."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    measured = table["Mass_0"][:, None] * np.exp(ERROR * nodes)
    return (measured / (measured + HALF)) @ (weights / math.sqrt(2 * math.pi))


def survey(Z: float, alpha: float, number: int, samples: int, rng: np.random.Generator) -> Events:
    """Return ``number`` events found of the simulator's population, with posterior samples under a prior ∝ 1/mass."""
    seen: list[np.ndarray] = []
    while sum(map(len, seen)) < number:
        masses = np.stack(population.sample(np.full(4 * number, Z), np.full(4 * number, alpha), rng), -1)
        seen.append(measure(masses, rng))
    return as_events(np.concatenate(seen)[:number], samples, rng)


def measure(masses: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return what is measured of true masses ``[n, 2]``, of those that the survey finds."""
    measured = masses * np.exp(ERROR * rng.standard_normal(masses.shape))
    return measured[found(measured[:, 0], rng)]


def as_events(measured: np.ndarray, samples: int, rng: np.random.Generator) -> Events:
    """Return an event for each pair of measured masses, with posterior samples under a prior ∝ 1/mass."""
    events = []
    for m0, m1 in measured:
        draws = {
            name: m * np.exp(ERROR * rng.standard_normal(samples))
            for name, m in (("Mass_0", m0), ("Mass_1", m1))
        }
        events.append(draws | {"log_prior": -np.log(draws["Mass_0"]) - np.log(draws["Mass_1"])})
    return Events.from_samples(events, ["Mass_0", "Mass_1"])


def emulator(rows: int, epochs: int, folder: Path) -> Any:
    """Return a density fitted to simulated mergers."""
    simulator.write(folder / "mergers.parquet", rows, seed=1)
    study = {
        "data": {
            "source": str(folder / "mergers.parquet"),
            "targets": ["Mass_0", "Mass_1"],
            "context": ["Z", "alpha"],
        },
        "columns": {
            "Mass_0": {"support": "positive"},
            "Mass_1": {"support": "positive"},
            "Z": {"transform": "log"},
            "alpha": {"transform": "log"},
        },
        "flow": {"architecture": "autoregressive-spline", "gain": 4.0},
        "training": {"epochs": epochs},
    }
    return fluvial.fit(study, runs=folder, name="run", check=False)


def holds(posterior: PopulationPosterior, truth: np.ndarray, level: float, likelihood: Any) -> bool:
    """Return whether the highest-density region of a level holds the truth: by the exact likelihood at both."""
    values = posterior.samples
    # Priors are flat in the logarithms: the density there is proportional to the likelihood.
    at_truth = likelihood.terms(truth[None]).unguarded[0]
    few = values[:: max(1, len(values) // 200)]
    return bool(np.mean(likelihood.terms(few).unguarded > at_truth) < level)


def repeat(density: Any, args: argparse.Namespace, *, selection: bool) -> list[dict[str, Any]]:
    """Return for every repetition whether regions hold the truth, and each parameter's rank."""
    shared: Injections | None = None
    out = []
    for seed in range(args.repeats):
        rng = np.random.default_rng([seed, 7])
        truth = np.array([prior.quantile(rng.random()) for prior in PRIORS.values()])
        events = survey(*truth, args.events, args.samples, rng)
        likelihood = PopulationLikelihood(
            density,
            events,
            PRIORS,
            detection=(shared or detection) if selection else None,
            least_effective=2,
            injections=args.injections,
            seed=1,
        )
        shared = likelihood.injections
        began = time.perf_counter()
        posterior = sample_posterior(likelihood, draws=2000, seed=seed)
        ranks = posterior.level_of(truth)
        row: dict[str, Any] = {
            "seconds": time.perf_counter() - began,
            "sampler": posterior.sampler,
            "variance": float(posterior.terms.variance.mean()),
            "ranks": ranks,
        }
        for level in LEVELS:
            row[f"region {level}"] = holds(posterior, truth, level, likelihood)
        out.append(row)
        print(
            f"{seed + 1}/{args.repeats}: Z, alpha = {truth[0]:.2g}, {truth[1]:.2g}; ranks {ranks.round(2)}; "
            f"{row['seconds']:.1f} s ({posterior.sampler})",
            flush=True,
        )
    return out


def rows_of(name: str, found_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return coverage of central intervals of each parameter and of joint regions, with the binomial error expected."""
    number = len(found_rows)
    ranks = np.array([r["ranks"] for r in found_rows])
    out = []
    for level in LEVELS:
        error = math.sqrt(level * (1 - level) / number)
        covered = {
            f"interval of {parameter}": np.mean(np.abs(ranks[:, j] - 0.5) < level / 2)
            for j, parameter in enumerate(PRIORS)
        } | {"joint region": np.mean([r[f"region {level}"] for r in found_rows])}
        for what, value in covered.items():
            out.append(
                {
                    "work": name,
                    "op": f"{what}, {100 * level:.0f} %",
                    "who": "fluvial",
                    "value": round(float(value), 3),
                    "unit": f"± {error:.3f} expected",
                    "off": f"{(value - level) / error:+.1f} sigma",
                }
            )
    seconds = float(np.median([r["seconds"] for r in found_rows]))
    out.append(
        {"work": name, "op": "one inference", "who": "fluvial", "value": round(seconds, 1), "unit": "s"}
    )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", help="a run fitted to simulated mergers; left out, one is fitted here")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--samples", type=int, default=60, help="posterior samples of an event")
    parser.add_argument("--injections", type=int, default=4000)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a small emulator, four repetitions")
    parser.add_argument("--json", help="write rows here")
    parser.add_argument("--page", help="write a page of results here, such as docs/benchmarks/population.md")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.epochs, args.repeats, args.events, args.samples = 20_000, 4, 4, 20, 30
        args.injections = 1000
    facts, found_versions = machine(), versions(["fluvial", "torch", "numpy"])
    with tempfile.TemporaryDirectory() as scratch:
        density = fluvial.load(args.run) if args.run else emulator(args.rows, args.epochs, Path(scratch))
        rows = rows_of("with selection", repeat(density, args, selection=True))
        args.repeats = max(2, args.repeats // 4)
        rows += rows_of("selection left out (control)", repeat(density, args, selection=False))
    table = markdown_table(rows)
    print(table, where_and_when(facts, found_versions), sep="\n\n")
    if args.json:
        write_json(args.json, rows, machine=facts, versions=found_versions)
    if args.page:
        text = (
            "# Population inference: coverage\n\n"
            f"{args.events} simulated mergers with {100 * ERROR:.0f} % mass errors and selection; made by "
            f"`benchmarks/population.py`. How often a region of a level holds the true (Z, alpha).\n\n"
        )
        Path(args.page).write_text(
            f"{text}{table}\n\n{where_and_when(facts, found_versions)}\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
