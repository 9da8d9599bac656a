"""Ranks and TARP of posteriors by sbi and by fluvial, as JSON on the last line; run by ``checks.py --sbi PYTHON``.

One case a run: ``maf`` or ``nsf``, sbi's own estimators as it makes them, against fluvial's flow of the same form
fitted to the same simulations; or ``same``, one and the same flow of fluvial's, checked in sbi's NPE by sbi and by us.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sbi.diagnostics import run_sbc, run_tarp
from sbi.inference import NPE
from sbi.utils import BoxUniform
from torch import Tensor

import fluvial
from fluvial import check as checks
from fluvial.data.readers import write_table

#: The prior is uniform between ± this in both parameters; the noise is Gaussian and 0.5 wide.
BOUND = 2.0
SIMULATIONS, EPOCHS = 4000, 20
#: fluvial's form of what sbi makes of a name: five steps, networks of two layers (nsf: residual blocks) of 50 units.
WIDE_50 = {"steps": 5, "width": 50, "depth": 2}
FORMS: dict[str, dict[str, Any]] = {
    "maf": {"architecture": "maf", **WIDE_50},
    "nsf": {"architecture": "coupling-spline", **WIDE_50, "bins": 10, "residual": True, "gate": True},
}
Clocked = tuple[Any, float, float]
#: Draws [N, S, D] and their log-densities [N, S], at all rows; and the log-density of the truth [N].
Drawn = Callable[[bool], tuple[np.ndarray, np.ndarray | None]]
AtTruth = Callable[[], np.ndarray]


def simulated(prior: BoxUniform, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return parameters and what is observed of them."""
    torch.manual_seed(seed)
    theta = prior.sample((rows,))
    return theta, theta + 0.5 * torch.randn_like(theta)


def clocked(run: Callable[[], Any]) -> Clocked:
    """Return what ``run`` gives, its wall time and its CPU time, in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def trained(prior: BoxUniform, theta: Tensor, x: Tensor, estimator: Any) -> Any:
    """Return sbi's posterior, shortly trained."""
    inference = NPE(prior, density_estimator=estimator)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        inference.append_simulations(theta, x).train(max_num_epochs=EPOCHS, show_train_summary=False)
    return inference.build_posterior(sample_with="direct")


def fitted(flow: dict[str, Any], theta: Tensor, x: Tensor) -> fluvial.Density:
    """Return our density of the same simulations; the box of the prior is its support."""
    names = ("a", "b")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "simulations.parquet"
        table = {name: theta[:, j].numpy() for j, name in enumerate(names)}
        write_table(source, table | {f"x{j}": x[:, j].numpy() for j in range(2)})
        study = {
            "data": {
                "source": str(source),
                "targets": list(names),
                "context": ["x0", "x1"],
                "split": {"train": 0.89, "validation": 0.1, "test": 0.01},
            },
            "columns": {name: {"support": [-BOUND, BOUND]} for name in names},
            "flow": flow,
            "training": {"epochs": EPOCHS},
        }
        return fluvial.fit(study, runs=Path(folder) / "runs", check=False)


def from_density(density: fluvial.Density, theta: Tensor, x: Tensor, draws: int) -> tuple[Drawn, AtTruth]:
    """Return how our density is drawn from, and asked for the truth."""
    given = {f"x{j}": x[:, j].numpy() for j in range(2)}

    def drawn(with_log_prob: bool) -> tuple[np.ndarray, np.ndarray | None]:
        p = density.given(given, outside="allow")
        table, q = p.sample_and_log_prob(draws) if with_log_prob else (p.sample(draws), None)
        return table.view(np.float64).reshape(*table.shape, -1), q

    return drawn, lambda: density.given(given, outside="allow").log_prob(theta.numpy())


def from_estimator(estimator: Any, theta: Tensor, x: Tensor, draws: int) -> tuple[Drawn, AtTruth]:
    """Return how our flow in sbi is drawn from, inside the prior as sbi's posterior draws, and asked for the truth.

    The log-density is that of the flow: within a row it differs from that of the truncated one by a constant.
    """

    @torch.no_grad()
    def drawn(with_log_prob: bool) -> tuple[np.ndarray, np.ndarray | None]:
        y, q = sample((draws,), x, with_log_prob)
        while len(holes := torch.nonzero((y.abs() > BOUND).any(-1))):
            new, new_q = sample((1,), x[holes[:, 1]], with_log_prob)
            y[holes[:, 0], holes[:, 1]] = new[0]
            if q is not None and new_q is not None:
                q[holes[:, 0], holes[:, 1]] = new_q[0]
        return y.numpy().swapaxes(0, 1), None if q is None else q.numpy().T

    def sample(shape: tuple[int], at: Tensor, with_log_prob: bool) -> tuple[Tensor, Tensor | None]:
        if with_log_prob:
            return estimator.sample_and_log_prob(shape, at)
        return estimator.sample(shape, at), None

    @torch.no_grad()
    def at_truth() -> np.ndarray:
        return estimator.log_prob(theta[None], x)[0].numpy()

    return drawn, at_truth


def ours(drawn: Drawn, at_truth: AtTruth, theta: Tensor, references: np.ndarray) -> dict[str, Clocked]:
    """Return ranks by target [N, D], TARP values [N] and ranks by log-density [N], each by itself, and all from one set
    of draws."""
    truth = theta.numpy().astype(np.float64)

    def tarp(y: np.ndarray) -> np.ndarray:
        return checks.tarp_values(truth, y, np.random.default_rng(1), references=references)

    def by_density(q: np.ndarray | None) -> np.ndarray:
        assert q is not None
        return (q < at_truth()[:, None]).sum(axis=1)

    def everything() -> None:
        y, q = drawn(True)
        checks.rank_counts(truth, y), tarp(y), by_density(q)

    drawn(True)  # what is only done once is done
    return {
        "ranks by target": clocked(lambda: checks.rank_counts(truth, drawn(False)[0])),
        "TARP": clocked(lambda: tarp(drawn(False)[0])),
        "ranks by log-density": clocked(lambda: by_density(drawn(True)[1])),
        "all": clocked(everything),
    }


def theirs(
    posterior: Any, theta: Tensor, x: Tensor, draws: int, references: np.ndarray
) -> dict[str, Clocked]:
    """Return what sbi makes of the same: run_sbc by target and by log-density, and run_tarp, each with its times."""
    quiet = {"num_posterior_samples": draws, "show_progress_bar": False}
    points = torch.from_numpy(references).float()
    by_density = {**quiet, "reduce_fns": posterior.log_prob}
    with contextlib.redirect_stderr(io.StringIO()):
        return {
            "ranks by target": clocked(lambda: run_sbc(theta, x, posterior, **quiet)[0].numpy()),
            "TARP": clocked(lambda: run_tarp(theta, x, posterior, points, **quiet)),
            "ranks by log-density": clocked(lambda: run_sbc(theta, x, posterior, **by_density)[0].numpy()),
        }


def compared(case: str, mine: dict[str, Clocked], peer: dict[str, Clocked], draws: int) -> dict[str, Any]:
    """Return the seconds of both, and how far their answers are apart."""
    rows = len(mine["TARP"][0])
    peer["all"] = (None, *(sum(run[k] for run in peer.values()) for k in (1, 2)))
    names = {
        "ranks by target": "run_sbc by target",
        "TARP": "run_tarp",
        "ranks by log-density": "run_sbc by log-density",
        "all": "all three, ours from one set of draws",
    }
    times = [
        {"job": name, **{who: dict(zip(("wall", "CPU"), run[job][1:], strict=True)) for who, run in both}}
        for both in [(("fluvial", mine), ("sbi", peer))]
        for job, name in names.items()
    ]

    def distance(ranks: np.ndarray) -> float:
        return float(checks.uniform_distance(((ranks + 0.5) / (draws + 1))[:, None])[0][0])

    def scatter(a: np.ndarray, b: np.ndarray) -> float:
        """Return the rms difference of two ranks of the same truth among other draws, over what it should be."""
        p = (a + b + 1) / (2 * draws + 2)
        return float(np.sqrt(np.mean(((a - b) / draws) ** 2 / (2 * p * (1 - p) / draws))))

    a, b = mine["ranks by target"][0], peer["ranks by target"][0]
    by_density = mine["ranks by log-density"][0], peer["ranks by log-density"][0][:, 0]
    coverage, levels = (t.numpy().astype(np.float64) for t in peer["TARP"][0])
    curve = np.searchsorted(np.sort(mine["TARP"][0]), levels) / rows
    answers = [
        *({"answer": f"target {j}: distance of its ranks from uniform, ± {0.5 / rows**0.5:.3f}",
           "fluvial": distance(a[:, j]), "sbi": distance(b[:, j])} for j in range(2)),
        {"answer": f"log-density: the same, ± {0.5 / rows**0.5:.3f}",
         "fluvial": distance(by_density[0]), "sbi": distance(by_density[1])},
        {"answer": f"TARP: largest |coverage − level|, ± {0.5 / rows**0.5:.3f}",
         "fluvial": float(np.abs(curve - levels).max()), "sbi": float(np.abs(coverage - levels).max())},
    ]  # fmt: skip
    if case == "same":  # only then do the ranks of one row belong together
        answers += [
            {"answer": "ranks by target: rms difference over its expected scatter", "fluvial": scatter(a, b)},
            {"answer": "ranks by log-density: the same", "fluvial": scatter(*by_density)},
        ]
    return {"case": case, "rows": rows, "draws": draws, "times": times, "answers": answers}


def main() -> None:
    """Read the options, run both, and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("case", choices=["maf", "nsf", "same"])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prior = BoxUniform(-BOUND * torch.ones(2), BOUND * torch.ones(2))
    simulations = simulated(prior, SIMULATIONS, 0)
    theta, x = simulated(prior, options.rows, 1)
    references = np.random.default_rng(0).uniform(-BOUND, BOUND, (options.rows, 2))
    if options.case == "same":
        estimator = fluvial.sbi_estimator("coupling-spline", steps=4, width=64, bins=8)
        posterior = trained(prior, *simulations, estimator)
        drawn, at_truth = from_estimator(posterior.posterior_estimator, theta, x, options.draws)
    else:
        posterior = trained(prior, *simulations, options.case)
        drawn, at_truth = from_density(fitted(FORMS[options.case], *simulations), theta, x, options.draws)
    mine = ours(drawn, at_truth, theta, references)
    peer = theirs(posterior, theta, x, options.draws, references)
    print(json.dumps(compared(options.case, mine, peer, options.draws)))


if __name__ == "__main__":
    main()
