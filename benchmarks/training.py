r"""What training costs beside the mathematics, and how fast rows pass, against the same flow in nflows.

``python benchmarks/training.py`` trains the small jets flow (17 targets, 14 context columns, 8 coupling-spline steps of
width 128) on rows in memory, in batches of 2,048:

- with fluvial's own loop, its batches, clipping, counting and events included. The time in forward and backward passes
  and in the optimiser's step is taken inside it; the rest is what the loop costs;
- in nflows 0.14, the same sizes, with a ``DataLoader`` over a ``TensorDataset`` and the usual five lines of training.

Both run in turns in one process, on the same threads; medians over turns are shown. ``--quick`` takes under a minute.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers.fluvial
import torch
from common import machine, markdown_table, versions, where_and_when, write_json
from peers.work import LEARNING_RATE, WORKS, Work
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fluvial.data.stream import Batches
from fluvial.train import StepEvent, Trainer, TrainingOptions


class Watch:
    """The time spent inside some calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time taken."""

        def inner(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            out = function(*args, **options)
            self.seconds += time.perf_counter() - began
            return out

        return inner


def fluvial_turn(work: Work, x: Tensor, c: Tensor, steps: int) -> tuple[float, float]:
    """Train some steps with fluvial; return rows per second, and the share of the time outside the mathematics."""
    torch.manual_seed(0)
    flow: Any = peers.fluvial.build(work).module
    options = TrainingOptions(epochs=None, steps=steps + 1, learning_rate=LEARNING_RATE)
    trainer = Trainer(flow, Batches(x, c, work.train_rows, 0), (x[:64], c[:64]), options)
    watch = Watch()
    vars(flow)["backward"] = watch.watched(flow.backward)
    trainer.optimizer.step = watch.watched(trainer.optimizer.step)  # type: ignore[method-assign]
    began = rows = 0.0
    for event in trainer.run():
        if not isinstance(event, StepEvent):
            break
        if not began:  # the first step warms up
            began, watch.seconds, rows = time.perf_counter(), 0.0, -event.rows
        else:
            ended, seen = time.perf_counter(), event.rows
    seconds = ended - began
    return (seen + rows) / seconds, 1 - watch.seconds / seconds


def nflows_turn(work: Work, x: Tensor, c: Tensor, steps: int) -> float:
    """Train as many steps with nflows and a ``DataLoader``; return rows per second."""
    from peers.nflows import build

    torch.manual_seed(0)
    contender = build(work)
    flow: Any = contender.module
    flow.train()
    optimizer = torch.optim.Adam(flow.parameters(), lr=LEARNING_RATE)
    loader = DataLoader(TensorDataset(x, c), batch_size=work.train_rows, shuffle=True)
    done, began, rows = 0, 0.0, 0
    while done <= steps:
        for a, b in loader:
            optimizer.zero_grad()
            loss = -flow.log_prob(a, b).mean()
            loss.backward()
            optimizer.step()
            if done == 0:
                began = time.perf_counter()
            else:
                rows += len(a)
            done += 1
            if done > steps:
                break
    return rows / (time.perf_counter() - began)


def main() -> None:
    """Read the options, take turns, and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=40, help="steps of a turn (default: 40)")
    parser.add_argument("--turns", type=int, default=5, help="of each contender (default: 5)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two turns of 8 steps")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--markdown", type=Path, help="write the page there")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.turns = 8, 2
    torch.set_num_threads(options.threads)
    host, packages = machine(options.threads), versions(["fluvial", "torch", "nflows"])
    work = WORKS["jets-small"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64 * work.train_rows, work.targets, generator=generator)
    c = torch.randn(64 * work.train_rows, work.context, generator=generator)
    ours: list[tuple[float, float]] = []
    theirs: list[float] = []
    for _ in range(options.turns):
        ours.append(fluvial_turn(work, x, c, options.steps))
        if packages["nflows"] != "not installed":
            theirs.append(nflows_turn(work, x, c, options.steps))
    rows = result_rows(ours, theirs)
    facts = where_and_when(host, packages)
    text = f"""# Training: what the loop costs

<!-- Written by benchmarks/training.py; do not edit. -->

The small jets flow, {options.turns} turns of {options.steps} steps of {work.train_rows:,} rows; medians.

{markdown_table([{k: v for k, v in row.items() if k != "work"} for row in rows])}

{facts}
"""
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        write_json(options.json, rows, machine=host, versions=packages)


def result_rows(ours: list[tuple[float, float]], theirs: list[float]) -> list[dict[str, Any]]:
    """Return the results as rows."""
    outside = 100 * statistics.median(share for _, share in ours)
    pace = statistics.median(rate for rate, _ in ours)
    rows: list[dict[str, Any]] = [
        {"op": "training rows per second", "who": "fluvial", "value": pace, "unit": "1/s"},
        {"op": "outside forward, backward, optimiser", "who": "fluvial", "value": outside, "unit": "%"},
    ]
    if theirs:
        peer = statistics.median(theirs)
        rows.append({"op": "training rows per second", "who": "nflows", "value": peer, "unit": "1/s"})
        rows.append(
            {
                "op": "rows per second over those of nflows",
                "who": "fluvial",
                "value": pace / peer,
                "unit": "1",
            }
        )
    return [{"work": "jets-small", **row} for row in rows]


if __name__ == "__main__":
    main()
