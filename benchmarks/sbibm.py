"""Simulation-based inference tasks of sbibm: how well a classifier tells our posterior from the reference one.

For each task and budget, a density p(parameters | data) is learned from that many simulations drawn from the prior;
then, at each of the 10 observations of the benchmark, 10,000 draws are compared with the 10,000 of its reference
posterior by its classifier two-sample test (``c2st.py``). 0.5: not to be told apart; 1: always told apart. Published
figures are those of NPE in Lueckmann et al. 2021 (arXiv:2101.04653), in the mean over the same observations.

Observations and references are read from the wheel (``pip download --no-deps sbibm==1.1.0``; it needs no install);
simulators are written here, in numpy. Fits take no more than the simulations: nine tenths to train on, one tenth to
choose the best epoch. ``members`` fits of other seeds and splits of the same simulations are drawn from in equal
shares. The flow is autoregressive-spline with 8 bins and 64 units; settings were chosen by log-densities of simulations
held out, never by a reference. The posteriors are bounded by the prior, whose box is the support of a column.

What differs from the test of sbibm: ``--folds`` 2, that is two of its five folds are held out in turn (the same mean,
more scatter: about 0.005 for one observation); and where there are ten parameters, at most 100 epochs of the classifier,
since to its own end one test takes more than a minute.
"""

from __future__ import annotations

import argparse
import bz2
import io
import math
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from c2st import c2st, c2st_sklearn
from common import kept, machine, markdown_table, row_of, versions, where_and_when, write_json

import fluvial
from fluvial.data.readers import write_table

BUDGETS = (1000, 10_000, 100_000)
#: Fits that are drawn from together, unless told: the fewer simulations, the more one fit scatters.
MEMBERS = {1000: 3, 10_000: 2, 100_000: 1}
Simulator = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Task:
    """A prior, a simulator, and the published figures of NPE for 10³, 10⁴ and 10⁵ simulations."""

    targets: int
    prior: Callable[[int, np.random.Generator], np.ndarray]
    simulate: Simulator
    support: tuple[float, float] | None
    published: tuple[float, float, float] | None = None


def box(low: float, high: float, size: int) -> Callable[[int, np.random.Generator], np.ndarray]:
    return lambda n, rng: rng.uniform(low, high, (n, size))


def two_moons(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """sbibm.tasks.two_moons: a crescent, moved by |θ₀ + θ₁| and θ₁ − θ₀."""
    angle = rng.uniform(-math.pi / 2, math.pi / 2, len(theta))
    radius = rng.normal(0.1, 0.01, len(theta))
    # The turn by −π/4 of the original, written out.
    along, across = (theta[:, 0] + theta[:, 1]) / math.sqrt(2), (theta[:, 1] - theta[:, 0]) / math.sqrt(2)
    return np.stack([np.cos(angle) * radius + 0.25 - np.abs(along), np.sin(angle) * radius + across], axis=1)


def slcp(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """sbibm.tasks.slcp: four draws of a normal in two dimensions; variances by squares, correlation by tanh."""
    s1, s2, rho = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
    z = rng.standard_normal((len(theta), 4, 2))
    x = theta[:, None, 0] + s1[:, None] * z[..., 0]
    y = theta[:, None, 1] + s2[:, None] * (
        rho[:, None] * z[..., 0] + np.sqrt(1 - rho**2)[:, None] * z[..., 1]
    )
    return np.stack([x, y], axis=-1).reshape(len(theta), 8)


def gaussian(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """sbibm.tasks.gaussian_linear and gaussian_linear_uniform: noise of variance 0.1."""
    return theta + math.sqrt(0.1) * rng.standard_normal(theta.shape)


def mixture(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """sbibm.tasks.gaussian_mixture: noise of width 1 or 0.1."""
    return theta + rng.choice([1.0, 0.1], (len(theta), 1)) * rng.standard_normal(theta.shape)


TASKS = {
    "two_moons": Task(2, box(-1, 1, 2), two_moons, (-1, 1), (0.725, 0.606, 0.542)),
    "slcp": Task(5, box(-3, 3, 5), slcp, (-3, 3), (0.975, 0.901, 0.831)),
    "gaussian_linear_uniform": Task(10, box(-1, 1, 10), gaussian, (-1, 1), (0.696, 0.553, 0.509)),
    "gaussian_mixture": Task(2, box(-10, 10, 2), mixture, (-10, 10), (0.731, 0.661, 0.555)),
    "gaussian_linear": Task(10, lambda n, rng: math.sqrt(0.1) * rng.standard_normal((n, 10)), gaussian, None),
}


@dataclass(frozen=True)
class Wheel:
    """The files of sbibm: an unpacked folder, or the wheel itself."""

    path: Path

    def observation(self, task: str, number: int) -> np.ndarray:
        """Return the observation, [C]."""
        return self._table(task, number, "observation.csv")[0]

    def reference(self, task: str, number: int) -> np.ndarray:
        """Return the draws of the reference posterior, [10,000, D]."""
        return self._table(task, number, "reference_posterior_samples.csv.bz2")

    def _table(self, task: str, number: int, name: str) -> np.ndarray:
        inside = f"sbibm/tasks/{task}/files/num_observation_{number}/{name}"
        if self.path.is_dir():
            content = (self.path / inside).read_bytes()
        else:
            with zipfile.ZipFile(self.path) as archive:
                content = archive.read(inside)
        if name.endswith(".bz2"):
            content = bz2.decompress(content)
        return np.loadtxt(io.BytesIO(content), delimiter=",", skiprows=1, ndmin=2)


def study(task: Task, source: Path, budget: int, seed: int) -> dict[str, Any]:
    """Return the study of one member; what differs from the defaults of fluvial is named in :func:`options_of`."""
    targets = [f"theta{j}" for j in range(task.targets)]
    flow, training = options_of(task, budget)
    test = 10 / budget  # no use for them here, but a study has test rows
    return {
        "data": {
            "source": str(source),
            "targets": targets,
            "context": [f"x{j}" for j in range(len(_columns(source)) - task.targets)],
            "split": {"train": 0.9, "validation": 0.1 - test, "test": test},
            "seed": seed,
        },
        "columns": {} if task.support is None else {t: {"support": list(task.support)} for t in targets},
        "flow": flow,
        "training": {**training, "seed": seed},
    }


def options_of(task: Task, budget: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a study says of the flow and of training."""
    flow: dict[str, Any] = {"architecture": "autoregressive-spline", "bins": 8, "width": 64}
    epochs = {1000: 200, 10_000: 100}.get(budget, 40)
    training: dict[str, Any] = {"epochs": epochs, "weight_decay": 0.1, "patience": 30}
    if task.targets > 5:  # many numbers a row and few rows: steps that are too large learn them by heart
        training["learning_rate"] = 5e-4 if budget == 1000 else 1e-3
    return flow, training


def _columns(source: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_schema(source).names


def posterior(task: Task, budget: int, members: int, seed: int, overrides: dict[str, dict[str, Any]]):
    """Return a function from an observation to 10,000 draws, and the seconds that the fits took."""
    rng = np.random.default_rng([seed, budget])
    theta = task.prior(budget, rng)
    data = task.simulate(theta, rng)
    table = {f"theta{j}": column for j, column in enumerate(theta.T)}
    table.update({f"x{j}": column for j, column in enumerate(data.T)})
    began = time.process_time()
    densities = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "simulations.parquet"
        write_table(source, table)
        for member in range(members):
            said = study(task, source, budget, seed=100 * seed + member)
            for section, more in overrides.items():
                said[section] = {**said.get(section, {}), **more}
            densities.append(fluvial.fit(said, runs=Path(folder) / "runs", check=False))
    seconds = time.process_time() - began

    def draw(observation: np.ndarray) -> np.ndarray:
        given = {f"x{j}": float(value) for j, value in enumerate(observation)}
        parts = [
            density.given(given).sample(10_000 // members + (k < 10_000 % members), seed=k)
            for k, density in enumerate(densities)
        ]
        return np.concatenate(
            [np.stack([part[f"theta{j}"] for j in range(task.targets)], axis=-1) for part in parts]
        )

    return draw, seconds


def measure(name: str, budget: int, wheel: Wheel, options: argparse.Namespace) -> dict[str, Any]:
    """Fit one task at one budget, and return its row."""
    task = TASKS[name]
    epochs = test_epochs(task, options)

    def test(reference: np.ndarray, drawn: np.ndarray) -> float:
        if options.sklearn:
            return c2st_sklearn(reference, drawn)
        return c2st(reference, drawn, folds=options.folds, epochs=epochs)

    members = options.members or MEMBERS[budget]
    draw, seconds = posterior(task, budget, members, options.seed, options.set)
    began = time.process_time()
    scores = [
        test(wheel.reference(name, k), draw(wheel.observation(name, k)))
        for k in range(1, options.observations + 1)
    ]
    tested = time.process_time() - began
    published = task.published[BUDGETS.index(budget)] if task.published else None
    row = {
        "task": name,
        "simulations": budget,
        "members": members,
        "C2ST": float(np.mean(scores)),
        "lowest": min(scores),
        "highest": max(scores),
        "NPE, published": published,
        "fit, CPU s": round(seconds),
        "test, CPU s": round(tested),
    }
    print(row, flush=True)
    return row


def identity(name: str, budget: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return all that a row depends on."""
    flow, training = options_of(TASKS[name], budget)
    return {
        "task": name,
        "simulations": budget,
        "flow": {**flow, **options.set.get("flow", {})},
        "training": {**training, **options.set.get("training", {})},
        "members": options.members or MEMBERS[budget],
        "observations": options.observations,
        "folds": options.folds,
        "test epochs": test_epochs(TASKS[name], options),
        "sklearn": options.sklearn,
        "seed": options.seed,
    }


def test_epochs(task: Task, options: argparse.Namespace) -> int:
    """Return the most epochs of the classifier: those of sbibm, but fewer where one test would take minutes."""
    return options.test_epochs or (10_000 if task.targets <= 5 else 100)


def setting(text: str) -> tuple[str, str, Any]:
    """Read ``flow.bins=16``."""
    key, _, value = text.partition("=")
    section, _, option = key.partition(".")
    for read in (int, float):
        try:
            return section, option, read(value)
        except ValueError:
            continue
    return section, option, {"true": True, "false": False}.get(value, value)


def main() -> None:
    """Read the options, measure, write what was asked for, and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--wheel", type=Path, required=True, help="sbibm-1.1.0-py2.py3-none-any.whl, or its folder"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS)[:4])
    parser.add_argument("--budgets", nargs="+", type=int, choices=BUDGETS, default=[1000, 10_000])
    parser.add_argument("--observations", type=int, default=10, help="how many of the 10 (default: 10)")
    parser.add_argument("--members", type=int, help="fits that are drawn from (default: 3, 2 or 1 by budget)")
    parser.add_argument("--set", nargs="*", type=setting, default=[], help="of the study: flow.bins=16 …")
    parser.add_argument(
        "--sklearn", action="store_true", help="the original classifier: several times slower"
    )
    parser.add_argument(
        "--folds", type=int, default=2, choices=range(1, 6), help="of the classifier's five (default: 2)"
    )
    parser.add_argument("--test-epochs", type=int, help="of the classifier, at most (default: 10,000 or 100)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    parser.add_argument("--quick", action="store_true", help="two_moons, 1,000 simulations, one observation")
    parser.add_argument("--keep", type=Path, help="rows, kept there one by one and read again")
    parser.add_argument(
        "--only-kept", action="store_true", help="a page of the rows that --keep holds already"
    )
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--markdown", type=Path, help="write the page there")
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.budgets, options.observations = ["two_moons"], [1000], 1
    overrides: dict[str, dict[str, Any]] = {}
    for section, option, value in options.set:
        overrides.setdefault(section, {})[option] = value
    options.set = overrides
    torch.set_num_threads(options.threads)
    host, packages = machine(options.threads), versions(["fluvial", "torch", "numpy", "scikit-learn"])
    wheel = Wheel(options.wheel)
    rows = []
    for name, budget in ((name, budget) for name in options.tasks for budget in options.budgets):
        key = identity(name, budget, options)
        if options.only_kept and (options.keep is None or row_of(options.keep, key) is None):
            continue
        make = lambda name=name, budget=budget: measure(name, budget, wheel, options)  # noqa: E731
        rows.append(kept(options.keep, key, make))
    text = page(options, rows, where_and_when(host, packages))
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        write_json(options.json, result_rows(rows), machine=host, versions=packages)
    print(text)


def result_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the JSON."""
    out = []
    for row in rows:
        work = f"{row['task']}, {row['simulations']:,} simulations"
        out.append({"work": work, "op": "C2ST", "who": "fluvial", "value": row["C2ST"], "unit": "1"})
        if row["NPE, published"] is not None:
            out.append(
                {"work": work, "op": "C2ST", "who": "NPE", "value": row["NPE, published"], "unit": "1"}
            )
        out.append({"work": work, "op": "fit", "who": "fluvial", "value": row["fit, CPU s"], "unit": "s"})
    return out


def page(options: argparse.Namespace, rows: list[dict[str, Any]], where: str) -> str:
    """Return the Markdown page."""
    shown = [{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    told = "".join(f" {section}.{k}={v}" for section, more in options.set.items() for k, v in more.items())
    command = (
        f"python benchmarks/sbibm.py --wheel WHEEL --tasks {' '.join(options.tasks)} --budgets "
        f"{' '.join(map(str, options.budgets))} --observations {options.observations}"
        + (f" --members {options.members}" if options.members else "")
        + (f" --set{told}" if told else "")
        + f" --folds {options.folds}"
        + (" --sklearn" if options.sklearn else "")
    )
    text = (__doc__ or "").split("\n\n", 1)[1].strip().replace("``", "`")
    return "\n".join(
        [
            "# Posteriors of sbibm",
            "",
            "<!-- Written by benchmarks/sbibm.py; do not edit. -->",
            "",
            text,
            "",
            markdown_table(shown),
            "",
            f"C2ST: mean, lowest and highest over {options.observations} observations.",
            "",
            where,
            "",
            f"Made with `{command}`.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
