r"""What training in bfloat16 costs: the same fits with ``precision = "float32"`` and ``"bf16"``, from the same seeds.

``python benchmarks/bf16.py`` trains the flows of ``flows.py``'s works ``jets-small`` and ``binaries-maf`` on simulated
jets (17 targets, 14 context columns) and mergers (2 and 2) by fluvial's own loop: the same weights at the start, the same
batches, the same steps. The loss is the mean of −log p of 20,000 test rows, always computed in float32, in nats per
row over standardised columns; the difference is of each pair of fits, its mean over the seeds with the standard error.
``--quick`` takes under a minute.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import peers.fluvial
import torch
from common import machine, markdown_table, versions, where_and_when, write_json
from jets_design import loss, prepared
from peers.work import WORKS, Work
from torch import Tensor
from trunk import mergers

from fluvial.data.stream import Batches
from fluvial.nets.native import multiplies_in_bf16
from fluvial.train import Trainer, TrainingOptions
from fluvial.train.options import Precision

TEST_ROWS, VALIDATION_ROWS, BATCH, LEARNING_RATE = 20_000, 5_000, 1024, 1e-3


def reached(work: Work, x: Tensor, c: Tensor, precision: Precision, steps: int, seed: int) -> float:
    """Train so many steps; return the test loss."""
    torch.manual_seed(seed)
    flow: Any = peers.fluvial.build(work).module
    test, rest = (x[-TEST_ROWS:], c[-TEST_ROWS:]), (x[:-TEST_ROWS], c[:-TEST_ROWS])
    (x, validation_x), (c, validation_c) = ((t[:-VALIDATION_ROWS], t[-VALIDATION_ROWS:]) for t in rest)
    options = TrainingOptions(epochs=None, steps=steps, learning_rate=LEARNING_RATE, precision=precision)
    for _ in Trainer(flow, Batches(x, c, BATCH, seed), (validation_x, validation_c), options).run():
        pass
    return loss(flow, *test)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.steps, options.rows, options.seeds = 30, 30_000, 2
    if not multiplies_in_bf16():
        parser.error("this processor has no instructions for bfloat16, or there are no kernels")
    torch.set_num_threads(1)
    where, packages = machine(1), versions(["fluvial", "torch", "numpy"])
    data = {
        "jets-small": prepared(options.rows + TEST_ROWS, 1)[:2],
        "binaries-maf": mergers(options.rows + TEST_ROWS, 1),
    }
    rows, table = [], []
    for name, (x, c) in data.items():
        found: dict[Precision, list[float]] = {"float32": [], "bf16": []}
        for seed in range(options.seeds):
            for precision, losses in found.items():
                losses.append(reached(WORKS[name], x, c, precision, options.steps, seed))
        differences = [b - a for a, b in zip(*found.values(), strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        means = {f"{precision}, NLL": statistics.mean(losses) for precision, losses in found.items()}
        spread = statistics.stdev(found["float32"])
        difference = statistics.mean(differences)
        table.append(
            {
                "work": name,
                **means,
                "difference": difference,
                "standard error": error,
                "between seeds": spread,
            }
        )
        row = {"work": name, "op": "test NLL, bf16 less float32", "who": "fluvial", "value": difference}
        rows.append({**row, "unit": "nats", "standard_error": error, "losses": found})
    text = markdown_table(table)
    print(text)
    if options.json:
        write_json(options.json, rows, machine=where, versions=packages)
    if options.markdown:
        made = f"{options.seeds} seeds, {options.steps} steps of {BATCH} rows each. {where_and_when(where, packages)}"
        options.markdown.write_text(
            f"# Training in bfloat16\n\n{__doc__}\n{made}\n\n{text}\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
