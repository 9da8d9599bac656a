"""The sweep of a thesis in small: activation × blocks × hidden units of a masked autoregressive flow, at equal times.

The thesis compared such flows of black-hole mergers after 20 minutes of training each. Here every combination gets
``--seconds`` on one thread, by ``fluvial tune`` with a grid and a budget in minutes; the table and the figures are those
that it writes. What is best at a few seconds is what learns fast; what is best at 20 minutes may be larger.

Run: python benchmarks/tuning.py [--quick] [--data PATH] [--seconds S] [--workers W] [--json PATH] [--markdown PATH]
     [--figures FOLDER]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

sys.path.insert(0, str(Path(__file__).parent))
from common import machine, markdown_table, versions, where_and_when, write_json

PACKAGES = ("fluvial", "torch", "numpy", "optuna")
SPACE = {"flow.activation": ["relu", "tanh", "silu"], "flow.steps": [2, 5, 10], "flow.width": [16, 64, 128]}
QUICK_SPACE = {"flow.activation": ["relu", "tanh"], "flow.steps": [2, 5], "flow.width": [16, 64]}
SHOWN = (
    "activation",
    "steps",
    "width",
    "best_loss",
    "gain_per_minute",
    "epochs",
    "rows_per_second",
    "weights",
)


def study(data: str, seconds: float, space: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the study of the sweep."""
    positive = {"support": "positive"}
    return {
        "data": {"source": data, "targets": ["Mass_0", "Mass_1"], "context": ["Z", "alpha"], "seed": 1},
        "columns": dict.fromkeys(("Mass_0", "Mass_1", "Z", "alpha"), positive),
        "flow": {"architecture": "maf", "depth": 2},
        "training": {"minutes": 20.0, "learning_rate": 1e-3},
        "tune": {"sampler": "grid", "minutes": seconds / 60, "space": space},
    }


def main() -> None:
    options = _options()
    outputs = {
        k: None if v is None else v.resolve()
        for k, v in vars(options).items()
        if k in ("json", "markdown", "figures")
    }
    where = machine(threads=1)
    space: dict[str, list[Any]] = dict(QUICK_SPACE if options.quick else SPACE)
    seconds = options.seconds or (1.0 if options.quick else 30.0)
    data = None if options.data is None else str(options.data.resolve())
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        rows, took = sweep(data, options.rows, seconds, space, options.workers)
        if outputs["figures"]:
            for name in ("parallel.png", "importance.png"):
                shutil.copy(Path("runs/sweep-tune") / name, outputs["figures"] / f"tuning-{name}")
        os.chdir(before)
    about = (
        f"cosmic.parquet, {seconds:g} s each"
        if data
        else f"{options.rows:,} simulated mergers, {seconds:g} s each"
    )
    text = page(rows, about, took, options, outputs["figures"] is not None, where)
    print(text)
    if outputs["json"]:
        flat = [
            {"work": f"{r['activation']}, {r['steps']} blocks, {r['width']} hidden", "op": op, "who": "fluvial",
             "value": r[key], "unit": unit}
            for r in rows
            for op, key, unit in (("best validation NLL", "best_loss", "nats"), ("gain", "gain_per_minute", "nats/min"))
        ]  # fmt: skip
        write_json(outputs["json"], flat, machine=where, versions=versions(PACKAGES), work=about)
    if outputs["markdown"]:
        outputs["markdown"].write_text(text + "\n", encoding="utf-8")


def sweep(
    data: str | None, rows: int, seconds: float, space: dict[str, list[Any]], workers: int
) -> tuple[list[dict[str, Any]], float]:
    """Make every trial in the working directory; return their rows, and how long it took."""
    import torch

    from fluvial.apps.binaries import simulator
    from fluvial.tune import tune

    torch.set_num_threads(1)
    if data is None:
        simulator.write(Path("mergers.parquet"), rows, seed=1)
    Path("sweep.toml").write_text(
        tomli_w.dumps(study(data or "mergers.parquet", seconds, space)), encoding="utf-8"
    )
    began = time.perf_counter()
    found = tune("sweep.toml", workers=workers, tell=lambda text: print(text, file=sys.stderr))
    return found, time.perf_counter() - began


def page(
    rows: list[dict[str, Any]],
    about: str,
    took: float,
    options: argparse.Namespace,
    figures: bool,
    where: dict[str, Any],
) -> str:
    """Return the page."""
    best = rows[0]
    parts = [
        "# A sweep at equal times",
        "<!-- Written by benchmarks/tuning.py; do not edit. -->",
        "Activation × blocks × hidden units of a masked autoregressive flow p(Mass_0, Mass_1 | Z, alpha), "
        f"{about} on one thread, {options.workers} at a time: {len(rows)} fits in {took / 60:.1f} minutes. `best_loss` "
        "is the validation mean of −log p in nats, per (solar mass)²; `gain_per_minute` how fast it fell.",
        markdown_table([{name: row[name] for name in SHOWN} for row in rows]),
        f"Best: {best['activation']}, {best['steps']} blocks, {best['width']} hidden units.",
    ]
    if figures:
        parts.append("![Every fit a line](../images/tuning-parallel.png)")
        parts.append("![What decides the loss](../images/tuning-importance.png)")
    parts.append(where_and_when(where, versions(PACKAGES)))
    return "\n\n".join(parts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="8 combinations, 1 s each")
    parser.add_argument(
        "--data", type=Path, help="Parquet table with Mass_0, Mass_1, Z, alpha; simulated if left out"
    )
    parser.add_argument("--rows", type=int, default=60_000, help="rows to simulate (default: 60,000)")
    parser.add_argument("--seconds", type=float, help="wall time of each fit (default: 30)")
    parser.add_argument("--workers", type=int, default=1, help="fits at a time (default: 1)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--figures", type=Path, help="folder for the two figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
