"""Ranks and TARP of one posterior by sbi and by fluvial, as JSON on the last line; run by ``checks.py --sbi PYTHON``."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sbi.diagnostics import run_sbc, run_tarp
from sbi.inference import NPE
from sbi.utils import BoxUniform
from torch import Tensor

import fluvial
from fluvial import check as checks

#: The prior is uniform between ± this.
BOUND = 2.0


def trained(simulations: int) -> tuple[Any, Any]:
    """Return sbi's posterior whose estimator is a flow of ours, shortly trained, and its prior; a Gaussian task."""
    torch.manual_seed(0)
    prior = BoxUniform(-BOUND * torch.ones(2), BOUND * torch.ones(2))
    theta = prior.sample((simulations,))
    x = theta + 0.5 * torch.randn_like(theta)
    inference = NPE(
        prior, density_estimator=fluvial.sbi_estimator("coupling-spline", steps=4, width=64, bins=8)
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        inference.append_simulations(theta, x).train(max_num_epochs=20, show_train_summary=False)
    return inference.build_posterior(sample_with="direct"), prior


def clocked(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what ``run`` gives, its wall time and its CPU time, in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - cpu


@torch.no_grad()
def drawn(estimator: Any, x: Tensor, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Return draws [N, S, D] inside the prior, as sbi's posterior draws, and their log-densities [N, S].

    The log-density is that of the flow: within a row it differs from that of the truncated one by a constant.
    """
    y, q = estimator.sample_and_log_prob((draws,), x)
    while (out := (y.abs() > BOUND).any(-1)).any():
        at = torch.nonzero(out.any(0))[:, 0]
        more, more_q = estimator.sample_and_log_prob((2 * int(out.sum(0).max()),), x[at])
        inside = (more.abs() <= BOUND).all(-1)
        for k, row in enumerate(at.tolist()):
            holes, good = torch.nonzero(out[:, row])[:, 0], torch.nonzero(inside[:, k])[:, 0]
            n = min(len(holes), len(good))
            y[holes[:n], row], q[holes[:n], row] = more[good[:n], k], more_q[good[:n], k]
    return y.numpy().swapaxes(0, 1), q.numpy().T


def ours(
    estimator: Any, theta: Tensor, x: Tensor, draws: int, references: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return ranks by target [N, D] and by log-density [N], and TARP values [N]: all three from one set of draws."""
    y, q = drawn(estimator, x, draws)
    truth = theta.numpy().astype(np.float64)
    with torch.no_grad():
        at = estimator.log_prob(theta[None], x)[0].numpy()
    tarp = checks.tarp_values(truth, y, np.random.default_rng(1), references=references)
    return checks.rank_counts(truth, y), (q < at[:, None]).sum(axis=1), tarp


def theirs(
    posterior: Any, theta: Tensor, x: Tensor, draws: int, references: np.ndarray
) -> list[tuple[Any, float, float]]:
    """Return what sbi makes of the same: run_sbc by target and by log-density, and run_tarp, each with its times."""
    quiet = {"num_posterior_samples": draws, "show_progress_bar": False}
    points = torch.from_numpy(references).float()
    with contextlib.redirect_stderr(io.StringIO()):
        return [
            clocked(lambda: run_sbc(theta, x, posterior, **quiet)[0].numpy()),
            clocked(lambda: run_sbc(theta, x, posterior, reduce_fns=posterior.log_prob, **quiet)[0].numpy()),
            clocked(lambda: run_tarp(theta, x, posterior, points, **quiet)),
        ]


def main() -> None:
    """Read the options, run both, and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    rows, draws = options.rows, options.draws
    torch.set_num_threads(1)
    posterior, prior = trained(4000)
    estimator = posterior.posterior_estimator
    theta = prior.sample((rows,))
    x = theta + 0.5 * torch.randn_like(theta)
    references = np.random.default_rng(0).uniform(-BOUND, BOUND, (rows, 2))
    (ranks, by_density, values), wall, cpu = clocked(lambda: ours(estimator, theta, x, draws, references))
    sbc, density, tarp = theirs(posterior, theta, x, draws, references)

    def scatter(a: np.ndarray, b: np.ndarray) -> float:
        """Return the rms difference of two ranks of the same truth among other draws, over what it should be."""
        p = (a + b + 1) / (2 * draws + 2)
        return float(np.sqrt(np.mean(((a - b) / draws) ** 2 / (2 * p * (1 - p) / draws))))

    def distance(r: np.ndarray) -> float:
        return float(checks.uniform_distance(((r + 0.5) / (draws + 1))[:, None])[0][0])

    def line(what: str, unit: str, mine: float | None, peer: float | None = None) -> dict[str, Any]:
        ratio = peer / mine if mine and peer and unit == "s" else None
        return {"what": what, "unit": unit, "fluvial": mine, "sbi": peer, "times faster": ratio}

    coverage, levels = (t.numpy().astype(np.float64) for t in tarp[0])
    curve = np.searchsorted(np.sort(values), levels) / rows
    out = [
        line("all three: wall time", "s", wall, sbc[1] + density[1] + tarp[1]),
        line("all three: CPU time", "s", cpu, sbc[2] + density[2] + tarp[2]),
        line("of which run_sbc by target: wall time", "s", None, sbc[1]),
        line("of which run_sbc by log-density: wall time", "s", None, density[1]),
        line("of which run_tarp: wall time", "s", None, tarp[1]),
        *(
            line(f"ranks of target {j}: distance from uniform (± {0.5 / rows**0.5:.3f})", "1",
                 distance(ranks[:, j]), distance(sbc[0][:, j]))
            for j in range(2)
        ),
        line("ranks by log-density: distance from uniform", "1", distance(by_density), distance(density[0][:, 0])),
        line("ranks by target: rms difference over its expected scatter", "1", scatter(ranks, sbc[0])),
        line("ranks by log-density: the same", "1", scatter(by_density, density[0][:, 0])),
        line(f"TARP coverage: largest difference (a bin of sbi holds {10 / rows:.2g})", "1",
             float(np.abs(curve - coverage).max())),
    ]  # fmt: skip
    print(json.dumps(out))


if __name__ == "__main__":
    main()
