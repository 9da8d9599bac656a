"""Draws in bulk: rows a second by one process and by two, memory while 100 million are drawn, what 10^12 would cost.

A density of black-hole mergers (autoregressive splines, the default; trained for one epoch, which changes nothing about
the pace) is drawn from by ``fluvial sample … --out FOLDER/``, as a user would: at a table of contexts, one draw at each,
and at one context. Time is wall time of the whole command, the start of Python and the checksums included. Memory is the
resident memory of the command and its processes together, looked at five times a second: its peak in the first quarter
of the time, and its peak over all. Compressions are of the same rows, written again by pyarrow alone, on one thread.

Run: python benchmarks/bulk.py [--quick] [--rows N] [--processes P] [--json PATH] [--markdown PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import fluvial
from fluvial.apps.binaries import simulator
from fluvial.data.readers import write_table

sys.path.insert(0, str(Path(__file__).parent))
from common import machine, markdown_table, versions, where_and_when, write_json

PACKAGES = ("fluvial", "torch", "numpy", "pyarrow")
FULL, PACE, QUICK = 100_000_000, 10_000_000, 600_000
STUDY: dict[str, Any] = {
    "data": {"source": "mergers.parquet", "targets": ["Mass_0", "Mass_1"], "context": ["Z", "alpha"]},
    "columns": {
        "Mass_0": {"support": "positive"},
        "Mass_1": {"support": "positive"},
        "Z": {"transform": "log"},
    },
    "training": {"epochs": 1, "learning_rate": 1e-3},
}


def prepare(contexts: int) -> None:
    """Leave a run and a table of contexts in the working directory."""
    simulator.write(Path("mergers.parquet"), 20_000, seed=1)
    fluvial.fit(STUDY, runs=".", name="run", check=False)
    rng = np.random.default_rng(0)
    table = {"Z": rng.uniform(0.0002, 0.02, contexts), "alpha": rng.uniform(0.5, 2.0, contexts)}
    write_table("contexts.parquet", table)


def drawn(arguments: list[str], processes: int) -> dict[str, float]:
    """Run the command; return its seconds, rows, bytes and peaks of memory."""
    shutil.rmtree("out", ignore_errors=True)
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    words = ["sample", "run", *arguments, "--seed", "1", "--out", "out/", "--processes", str(processes)]
    began = time.perf_counter()
    with open("log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fluvial", *words], env=environment, stdout=log, stderr=log
        )
        memory: list[float] = []
        while process.poll() is None:
            memory.append(_resident(process.pid))
            time.sleep(0.2)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(Path("log").read_text(encoding="utf-8"))
    manifest = json.loads(Path("out/_manifest.json").read_text(encoding="utf-8"))
    return {
        "seconds": seconds,
        "rows": manifest["rows_written"],
        "bytes": sum(s["bytes"] for s in manifest["shards"]),
        "early": max(memory[: max(1, len(memory) // 4)]),
        "peak": max(memory),
    }


def _resident(process: int) -> float:
    """Return the resident memory in MB of a process and those below it."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6 + sum(_resident(int(child)) for child in below)


def paces(rows: int, counts: list[int]) -> list[dict[str, Any]]:
    """Return rows a second of each kind of work, by the number of processes."""
    out = []
    for work, arguments in (
        (
            "a table of contexts, one draw at each",
            ["--contexts", "contexts.parquet", "-n", str(rows // _contexts(rows))],
        ),
        ("one context", ["--given", "Z=0.001", "--given", "alpha=1", "-n", str(rows)]),
    ):
        for count in counts:
            found = drawn(arguments, count)
            out.append(
                {"work": work, "op": f"draw, {count} process{'es' if count > 1 else ''}", "who": "fluvial",
                 "value": found["rows"] / found["seconds"], "unit": "rows/s"}
            )  # fmt: skip
    return out


def _contexts(rows: int) -> int:
    return min(rows, PACE)


def compressions() -> list[dict[str, Any]]:
    """Return how long the rows of the first shard take to write, and how large they are, by compression."""
    table = pq.read_table(sorted(Path("out").glob("part-*"))[0])
    few: Any = ["Z", "alpha"]  # of one context
    rest: Any = ["Mass_0", "Mass_1"]
    out = []
    for name, options in (("none", {}), ("lz4", {}), ("zstd", {"compression_level": 1})):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            pq.write_table(
                table,
                "again.parquet",
                compression=name,
                row_group_size=2**20,
                use_dictionary=few,
                use_byte_stream_split=rest,
                **options,
            )
            times.append(time.perf_counter() - began)
        about = {"work": f"write, {name}", "who": "pyarrow"}
        out.append({**about, "op": "pace", "value": table.num_rows / min(times), "unit": "rows/s"})
        size = Path("again.parquet").stat().st_size / table.num_rows
        out.append({**about, "op": "size", "value": size, "unit": "bytes a row"})
    return out


def reckoned(found: dict[str, float]) -> list[dict[str, Any]]:
    """Return what more rows would cost, from the pace and the bytes of those that were drawn."""
    cores = os.cpu_count() or 1
    per_core = found["rows"] / found["seconds"] / cores
    rows = []
    for number in (1e8, 1e9, 1e12):
        rows.append(
            {
                "rows": f"{number:.0e}",
                "core-hours": number / per_core / 3600,
                "hours here": number / per_core / 3600 / cores,
                "hours on 1,000 such cores": number / per_core / 3600 / 1000,
                "disk [GB]": number * found["bytes"] / found["rows"] / 1e9,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} rows everywhere")
    parser.add_argument("--rows", type=int, help=f"rows of the long run (default: {FULL:,})")
    parser.add_argument("--processes", type=int, default=2, help="of the long run (default: 2)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    outputs = [None if p is None else p.resolve() for p in (options.json, options.markdown)]
    where = machine()
    many = options.rows or (QUICK if options.quick else FULL)
    pace = QUICK if options.quick else PACE
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(_contexts(pace))
        rows = paces(pace, [1] if options.quick else [1, 2])
        rows += compressions()
        copies = max(1, many // _contexts(pace))
        found = drawn(["--contexts", "contexts.parquet", "-n", str(copies)], options.processes)
        os.chdir(before)
    about = {"work": f"{int(found['rows']):,} rows, {options.processes} processes", "who": "fluvial"}
    rows += [
        {**about, "op": "time", "value": found["seconds"], "unit": "s"},
        {**about, "op": "pace", "value": found["rows"] / found["seconds"], "unit": "rows/s"},
        {**about, "op": "size", "value": found["bytes"] / found["rows"], "unit": "bytes a row"},
        {**about, "op": "memory, first quarter", "value": found["early"], "unit": "MB"},
        {**about, "op": "memory, all", "value": found["peak"], "unit": "MB"},
    ]
    cost = reckoned(found)
    text = "\n\n".join(
        [
            "# Draws in bulk",
            "<!-- Written by benchmarks/bulk.py; do not edit. -->",
            "Draws of two black-hole masses, with Z and alpha of each row, into Parquet of float32. Made by "
            "`benchmarks/bulk.py`; how, is said at its top.",
            markdown_table(rows),
            "## What more would cost",
            f"Reckoned from the {int(found['rows']):,} rows above, not measured.",
            markdown_table(cost),
            where_and_when(where, versions(PACKAGES)),
        ]
    )
    print(text)
    if outputs[0]:
        write_json(outputs[0], rows, machine=where, versions=versions(PACKAGES), reckoned=cost)
    if outputs[1]:
        outputs[1].write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
