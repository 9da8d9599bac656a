r"""Kill a fit again and again, resume it each time, and compare what it ends with to a fit that nobody touched.

``python benchmarks/kills.py`` kills a small fit 100 times at random moments, in turns with SIGKILL (``kill -9``) and
SIGTERM, and resumes it after each. The flow has dropout and an average of its weights, and checkpoints are written every
few steps, so a kill finds every kind of moment: before the run folder is there, in mid-epoch, in the middle of a write,
in validation. Whenever the fit comes to its end, its weights and losses must be those of the untouched fit, bit for bit;
a new one then begins, until the kills are used up. ``--kills 3`` is the short form that the tests run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, markdown_table, versions, where_and_when, write_json
from safetensors.numpy import load_file

from fluvial.data.readers import write_table
from fluvial.record import RunFolder

STUDY = """
[data]
source = "table.parquet"
targets = ["x", "y"]
context = ["c"]

[flow]
architecture = "coupling-spline"
steps = 2
width = 16
depth = 1
dropout = 0.1

[training]
epochs = {epochs}
batch_size = 64
learning_rate = 3e-3
ema = 0.99
checkpoint_minutes = 0.001
seed = 3
"""
#: What may differ between two fits that are the same.
TIMES = ("seconds", "rows_per_second")


def start(arguments: list[str], log: Path) -> int:
    """Fork a process that runs ``fluvial`` with these arguments; return its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["fluvial", *arguments]
        import fluvial.cli

        fluvial.cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Return the exit code of a process; that of one killed is minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(run: Path) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Return the weights of a run, and its metrics without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in m.items() if k not in TIMES} for m in lines]
    return load_file(run / "weights.safetensors"), metrics


def same(run: Path, other: Path) -> bool:
    """Return whether two runs ended with the same bits."""
    (a, metrics_a), (b, metrics_b) = outcome(run), outcome(other)
    other_weights = [
        k for k in a.keys() | b.keys() if k not in a or k not in b or a[k].tobytes() != b[k].tobytes()
    ]
    other_metrics = [pair for pair in itertools.zip_longest(metrics_a, metrics_b) if pair[0] != pair[1]]
    if other_weights or other_metrics:
        print(
            f"differ: {len(other_weights)} of {len(b)} weights; metrics: {other_metrics[:1]}", file=sys.stderr
        )
    return not (other_weights or other_metrics)


def untouched(folder: Path, log: Path) -> float:
    """Fit without a kill, as ``runs/untouched``; return the seconds that took."""
    began = time.perf_counter()
    arguments = ["fit", "study.toml", "--runs", "runs", "--name", "untouched", "--no-check"]
    code = wait(start(arguments, log))
    if code:
        raise SystemExit(f"The fit that nobody touched ended with {code}:\n{log.read_text()}")
    return time.perf_counter() - began


def torment(folder: Path, log: Path, kills: int, seconds: float, rng: random.Random) -> dict[str, Any]:
    """Kill and resume until so many kills have struck; return counts."""
    counts = {"kills": 0, "SIGKILL": 0, "SIGTERM": 0, "before the folder": 0, "fits": 0, "identical": 0}
    counts |= {"fits killed and resumed": 0, "identical of those": 0}
    struck = False  # whether the fit now under way was killed when it had a run folder
    run = folder / "runs" / "killed"
    first, again = ["fit", "study.toml", "--runs", "runs", "--name", "killed"], ["fit", "--resume", str(run)]

    def judge() -> None:
        nonlocal struck
        alike = same(run, run.with_name("untouched"))
        counts["fits"] += 1
        counts["identical"] += alike
        counts["fits killed and resumed"] += struck
        counts["identical of those"] += struck and alike
        struck = False
        shutil.rmtree(run)

    while counts["kills"] < kills or run.exists():
        pid = start([*(again if run.exists() else first), "--no-check"], log)
        number = (signal.SIGKILL, signal.SIGTERM)[counts["kills"] % 2]
        code: int | None = None
        if counts["kills"] < kills:
            time.sleep(rng.uniform(0, 0.7 * seconds))
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
            else:
                os.kill(pid, number)
        code = wait(pid) if code is None else code
        if code == 0:
            judge()
        elif code in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
            counts["kills"] += 1
            counts[number.name] += 1
            counts["before the folder"] += not run.exists()
            if run.exists() and RunFolder.open(run).record()["status"] == "finished":  # it was on its way out
                judge()
            struck = struck or run.exists()
            for left in run.parent.glob(".new-run-*"):
                shutil.rmtree(left)
        else:
            raise SystemExit(f"A fit ended with {code}:\n{log.read_text()[-3000:]}")
    return counts


def main() -> None:
    """Read the options, kill, compare, and print what was found; exit with 1 if any bit differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--epochs", type=int, default=12, help="of each fit (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--quick", action="store_true", help="6 kills")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--markdown", type=Path, help="write the page there")
    options = parser.parse_args()
    kills = 6 if options.quick else options.kills
    torch.set_num_threads(1)
    import fluvial.progress
    import fluvial.workflow  # noqa: F401 (imported once, for all forks)

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # its first use imports much
    host, packages = machine(1), versions(["fluvial", "torch", "numpy"])
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name), Path(name) / "log"
        os.chdir(folder)
        c, noise, more = rng.normal(size=(3, 4000))
        write_table(folder / "table.parquet", {"x": c + noise, "y": noise * more, "c": c})
        (folder / "study.toml").write_text(STUDY.format(epochs=options.epochs))
        seconds = untouched(folder, log)
        counts = torment(folder, log, kills, seconds, random.Random(options.seed))
        os.chdir("/")
    text = page(counts, seconds, options, where_and_when(host, packages))
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        rows = [
            {"work": "kills", "op": k, "who": "fluvial", "value": v, "unit": "1"} for k, v in counts.items()
        ]
        write_json(options.json, rows, machine=host, versions=packages)
    sys.exit(0 if counts["identical"] == counts["fits"] > 0 else 1)


def page(counts: dict[str, Any], seconds: float, options: argparse.Namespace, facts: str) -> str:
    """Return the results as a Markdown page."""
    table = markdown_table([{"what": k, "number": v} for k, v in counts.items()])
    return f"""# Kills

<!-- Written by benchmarks/kills.py; do not edit. -->

A fit of {options.epochs} epochs ({seconds:.1f} s untouched) is killed at random moments and resumed after each kill.
**{counts["identical of those"]} of {counts["fits killed and resumed"]} fits that were killed at least once and resumed
ended with the weights and losses of the untouched fit, bit for bit**; so did {counts["identical"]} of {counts["fits"]}
fits in all, those included that a kill missed or that it struck before they had a run folder.

{table}

{facts}
"""


if __name__ == "__main__":
    main()
