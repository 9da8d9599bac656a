r"""What a trunk gains: one network of the context, shared by all steps of a flow, at equal processor time.

``python benchmarks/trunk.py`` trains the default flow on simulated jets (17 targets, 14 context columns) and on simulated
mergers (2 and 2), without a trunk and with trunks of some widths, each for ``--seconds`` of processor time on one
thread, over seeds. The loss is the mean of −log p of 10,000 test rows, in nats per row over standardised columns.
``--quick`` takes under a minute.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from common import machine, markdown_table, versions, where_and_when, write_json
from jets_design import loss, prepared, steps

from fluvial.apps.binaries import simulator
from fluvial.flows import build_flow
from fluvial.flows.build import default_architecture

TRUNKS = (0, 32, 64, 128)
TEST_ROWS, BATCH, LEARNING_RATE = 10_000, 1024, 2e-3


def mergers(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return simulated mergers, standardised, masses as logarithms."""
    table = simulator.simulate(rows, seed=seed)
    parts = []
    for names, as_log in ((["Mass_0", "Mass_1"], True), (["Z", "alpha"], False)):
        values = np.stack([np.asarray(table[n], dtype=np.float64) for n in names], axis=1)
        values = np.log(values) if as_log else values
        parts.append(torch.from_numpy(((values - values.mean(0)) / values.std(0)).astype(np.float32)))
    return parts[0], parts[1]


def reached(x: torch.Tensor, c: torch.Tensor, trunk: int, seconds: float, seed: int) -> tuple[float, int]:
    """Train for so many seconds of processor time; return the test loss and the rows seen."""
    torch.manual_seed(seed)
    test, x, c = (x[-TEST_ROWS:], c[-TEST_ROWS:]), x[:-TEST_ROWS], c[:-TEST_ROWS]
    architecture = default_architecture(x.shape[1])
    flow = build_flow(architecture, targets=x.shape[1], context=c.shape[1], trunk=trunk)
    *_, (_, seen) = steps(flow, x, c, seconds, BATCH, LEARNING_RATE)
    return loss(flow, *test), seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    trunks = TRUNKS
    if options.quick:
        options.seconds, options.rows, options.seeds, trunks = 5.0, 30_000, 1, (0, 64)
    torch.set_num_threads(1)
    where, packages = machine(1), versions(["fluvial", "torch", "numpy"])
    works = {
        "jets": prepared(options.rows + TEST_ROWS, 1)[:2],
        "mergers": mergers(options.rows + TEST_ROWS, 1),
    }
    rows, table = [], []
    for work, data in works.items():
        found: dict[int, list[tuple[float, int]]] = {trunk: [] for trunk in trunks}
        for seed in range(options.seeds):
            for trunk in trunks:
                found[trunk].append(reached(*data, trunk, options.seconds, seed))
        for trunk, results in found.items():
            losses = [r[0] for r in results]
            line = {"work": work, "trunk": trunk or "none", "test NLL": statistics.median(losses)}
            line |= {
                "lowest": min(losses),
                "highest": max(losses),
                "rows seen": int(statistics.median(r[1] for r in results)),
            }
            table.append(line)
            rows.append({**line, "op": "train", "who": "fluvial", "value": line["test NLL"], "unit": "nats"})
    text = markdown_table(table)
    print(text)
    if options.json:
        write_json(options.json, rows, machine=where, versions=packages)
    if options.markdown:
        made = f"{options.seconds:g} s each, {options.seeds} seeds, medians. {where_and_when(where, packages)}\n\n"
        options.markdown.write_text(f"# What a trunk gains\n\n{__doc__}\n{made}{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
