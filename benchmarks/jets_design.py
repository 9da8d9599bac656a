r"""Design rather than kernels: fluvial's default coupling flow against FlashSim's architecture on simulated jets.

``python benchmarks/jets_design.py`` trains both on the same simulated jets (17 targets, 14 context columns), each in
a process of its own on one thread: FlashSim's architecture for ``--minutes`` of processor time, the default form of
``coupling-spline`` for a tenth of that. Both run in fluvial, with the same loop (AdamW, cosine schedule over the budget
of time, gradients clipped), so what differs is the design alone. Targets and context are prepared for both as FlashSim
prepares them: integers and atoms smeared by uniform noise, momenta and energies as logarithms, everything standardised.

The loss is the mean of −log p of 10,000 test rows, in nats per row over standardised targets; it is measured while the
clock stands still. ``--quick`` takes under a minute.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, markdown_table, versions, where_and_when, write_json
from peers.work import WORKS

from fluvial.apps.collider import simulator
from fluvial.flows import AbstractFlow, build_flow

#: How often the loss is measured, in shares of a contender's budget.
MOMENTS = 8
TEST_ROWS = 10_000
OURS, THEIRS = "fluvial's default", "FlashSim's architecture"


@dataclass(frozen=True)
class Contender:
    """A flow and how it is trained."""

    who: str
    options: dict[str, Any]
    batch: int
    learning_rate: float
    #: Share of the budget of minutes.
    share: float


def contenders() -> list[Contender]:
    """Return both, the default first."""
    work = WORKS["jets-flashsim"]
    flashsim = {
        "steps": work.steps, "width": work.width, "depth": work.blocks, "bins": work.bins, "mixing": work.mixing,
        "residual": True, "gate": work.gate, "batch_norm": work.batch_norm, "activation": "relu",
    }  # fmt: skip
    return [
        Contender(OURS, {}, 1024, 2e-3, 0.1),
        Contender(THEIRS, flashsim, 2048, 1e-3, 1.0),
    ]


def prepared(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return simulated jets as FlashSim trains on them: targets, context, and the names of the targets."""
    table = simulator.simulate("jets", rows, seed=seed)
    rng = np.random.default_rng(seed + 1)
    chain = simulator.CHAINS["jets"]
    names = {"target": [v.name for v in chain.targets], "context": [v.name for v in chain.context]}
    parts = []
    for role in ("target", "context"):
        columns = [_smeared(np.asarray(table[name], dtype=np.float64), rng) for name in names[role]]
        values = np.stack(columns, axis=1)
        parts.append(torch.from_numpy(((values - values.mean(0)) / values.std(0)).astype(np.float32)))
    return parts[0], parts[1], names["target"]


def _smeared(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a column with its repeated values (integers, atoms) spread by noise; steep positive ones as logarithms."""
    found, counts = np.unique(values, return_counts=True)
    often = found[counts > len(values) / 1000]
    if len(often):
        width = (
            1.0
            if len(found) == len(often)
            else 0.02 * (np.quantile(values, 0.99) - np.quantile(values, 0.01))
        )
        values = np.where(np.isin(values, often), values + width * (rng.random(len(values)) - 0.5), values)
    steep = values.min() > 0 and np.quantile(values, 0.999) > 20 * np.median(values[values > 0])
    return np.log(values) if steep else values


def train(contender: Contender, options: argparse.Namespace) -> dict[str, Any]:
    """Train one flow within its budget; return what it reached and when."""
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    x, c, _ = prepared(options.rows + TEST_ROWS, options.seed)
    test = (x[-TEST_ROWS:], c[-TEST_ROWS:]) if not options.quick else (x[-1000:], c[-1000:])
    x, c = x[:-TEST_ROWS], c[:-TEST_ROWS]
    flow = build_flow("coupling-spline", targets=x.shape[1], context=c.shape[1], **contender.options)
    budget = 60 * options.minutes * contender.share
    curve: list[dict[str, Any]] = []
    for spent, seen in steps(flow, x, c, budget, contender.batch, contender.learning_rate):
        if spent >= budget * (len(curve) + 1) / MOMENTS:
            curve.append({"seconds": round(spent, 1), "rows": seen, "test NLL": loss(flow, *test)})
            print(contender.who, curve[-1], file=sys.stderr, flush=True)
    weights = sum(p.numel() for p in flow.parameters())
    return {"who": contender.who, "weights": weights, "curve": curve, **curve[-1]}


def steps(
    flow: AbstractFlow, x: torch.Tensor, c: torch.Tensor, seconds: float, batch: int, learning_rate: float
) -> Iterator[tuple[float, int]]:
    """Train for so many seconds of processor time; after every step yield those spent and the rows seen."""
    optimizer = torch.optim.AdamW(flow.parameters(), weight_decay=1e-4, fused=True)
    spent, seen, order = 0.0, 0, torch.randperm(len(x))
    while spent < seconds:
        began = time.process_time()
        start = seen % (len(x) - batch)
        chosen = order[start : start + batch]
        rate = learning_rate * 0.5 * (1 + math.cos(math.pi * spent / seconds)) * min(1.0, seen / (50 * batch))
        for group in optimizer.param_groups:
            group["lr"] = rate
        flow.train()
        optimizer.zero_grad(set_to_none=True)
        flow.backward(x[chosen], c[chosen])
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        seen += batch
        spent += time.process_time() - began
        yield spent, seen


@torch.no_grad()
def loss(flow: torch.nn.Module, x: torch.Tensor, c: torch.Tensor) -> float:
    """Return the mean of −log p."""
    flow.eval()
    parts = [-flow(b).log_prob(a).double().sum() for a, b in zip(x.split(2048), c.split(2048), strict=True)]
    return float(torch.stack(parts).sum() / len(x))


def in_process(contender: Contender, options: argparse.Namespace) -> dict[str, Any]:
    """Train in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(train, (contender, options))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.rows = 0.4, 50_000
    where = machine(1)
    packages = versions(["fluvial", "torch", "numpy"])
    found = [in_process(contender, options) for contender in contenders()]
    table = [
        {
            "": r["who"],
            "weights": r["weights"],
            "seconds": r["seconds"],
            "rows seen": r["rows"],
            "test NLL": r["test NLL"],
        }
        for r in found
    ]
    ours, theirs = found
    reached = next((p["seconds"] for p in ours["curve"] if p["test NLL"] <= theirs["test NLL"]), None)
    text = markdown_table(table) + "\n\n"
    if reached is None:
        text += f"fluvial's default did not reach the test NLL of FlashSim's architecture in {ours['seconds']} s.\n"
    else:
        text += (
            f"fluvial's default reached {theirs['test NLL']:.3f} nats within {reached} s, "
            f"{theirs['seconds'] / reached:.0f} times sooner.\n"
        )
    print(text)
    rows = [
        {"work": "jets-design", "op": "train", "who": r["who"], "value": r["test NLL"], "unit": "nats", **r}
        for r in found
    ]
    if options.json:
        write_json(options.json, rows, machine=where, versions=packages)
    if options.markdown:
        head = "# Simulated jets: design against design\n\n"
        made = f"Made by `benchmarks/jets_design.py --minutes {options.minutes:g}`. {where_and_when(where, packages)}\n\n"
        options.markdown.write_text(head + made + (__doc__ or "") + "\n" + text, encoding="utf-8")


if __name__ == "__main__":
    main()
