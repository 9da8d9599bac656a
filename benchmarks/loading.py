r"""How fast shuffled batches come from tables on disk: fluvial against loaders that physicists use.

    python benchmarks/loading.py [--quick] [--json PATH] [--markdown PATH] [--folder SCRATCH]

The table: float32, 31 columns (17 targets, 14 of context), in ten HDF5 files of a 2-D dataset each and in one
Parquet file; batches of 2,048 rows. The contenders, each in a process of its own, one after the other:

* fluvial, streaming from its packed form (raw columns; and standardised as for a flow), and in memory;
* a ``Dataset`` with a row a call from h5py, as FlashSim's ``H5Dataset`` does, under torch's ``DataLoader``
  with shuffling, with no worker and with two;
* torch's ``TensorDataset`` in memory under a ``DataLoader``.

Beside them: the rates at which this machine reads the same file from its beginning to its end (by one thread and by
two), and copies memory.
Files are read beforehand, so that they are in the system's cache, except where it says *cold*: there the file was
dropped from the cache. Needs h5py; and three times the table's size on disk, twelve with the larger table.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from common import machine, markdown_table, versions, where_and_when, write_json
from peers.loaders import (
    BATCH,
    CONTEXT,
    FILES,
    TARGETS,
    Loop,
    epochs,
    in_memory,
    row_by_row,
    tensor_dataset,
)
from peers.worker import _forget_peak, _peak, _resident

COLUMNS = TARGETS + CONTEXT
ROW_BYTES = 4 * COLUMNS
PACKAGES = ("fluvial", "torch", "numpy", "h5py", "pyarrow")


# ---------------------------------------------------------------------------------------- tables


def make_tables(folder: Path, rows: int) -> None:
    """Write the same rows to ten HDF5 files and to a Parquet file."""
    import h5py
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    each = rows // FILES
    schema = pa.schema([(f"c{i}", pa.float32()) for i in range(COLUMNS)])
    with pq.ParquetWriter(folder / "table.parquet", schema) as parquet:
        for number in range(FILES):
            values = rng.standard_normal((each, COLUMNS), dtype=np.float32)
            with h5py.File(folder / f"part-{number}.h5", "w") as file:
                file.create_dataset("data", data=values)
            parquet.write_table(pa.table(list(values.T), schema=schema))


def study(source: str | list[str], names: list[str]) -> Any:
    from fluvial.study import parse_study

    return parse_study(
        {
            "data": {
                "source": source,
                "targets": names[:TARGETS],
                "context": names[TARGETS:],
                "split": {"train": 0.98, "validation": 0.01, "test": 0.01},
                "memory": 0.001,  # GB: too little for the table, so that it is streamed
            }
        }
    )


def sources(folder: Path, times: int) -> dict[str, tuple[str | list[str], list[str]]]:
    """Return the tables: the larger one is the same files several times over, read every time."""
    hdf5 = [str(folder / f"part-{i}.h5") for i in range(FILES)] * times
    return {
        "HDF5": (hdf5, [f"data[{i}]" for i in range(COLUMNS)]),
        "Parquet": ([str(folder / "table.parquet")] * times, [f"c{i}" for i in range(COLUMNS)]),
    }


def read(folder: Path, kind: str, times: int = 1) -> Any:
    from fluvial.workflow.data import read_rows

    source, names = sources(folder, times)[kind]
    return read_rows(study(source, names), source)


# ------------------------------------------------------------------------------------ contenders


def streamed(folder: Path, times: int, *, standardised: bool) -> tuple[Loop, Path]:
    """Return fluvial's batches out of core, and the file that they come from."""
    import torch

    from fluvial.data.stream import StreamedBatches
    from fluvial.data.transforms import ColumnTransforms

    rows = read(folder, "HDF5", times)
    path = rows.packed.path("train")
    if standardised:
        part = rows.part("train")
        transforms = [ColumnTransforms.fit(c, part) for c in (rows.schema.targets, rows.schema.context)]
        batches, _ = rows.batches(*transforms, BATCH, 1)
    else:

        def prepare(records: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            values = torch.from_numpy(records.view("<f4"))
            return values[:, :TARGETS], values[:, TARGETS:]

        assert rows.packed.layout.is_float32
        batches = StreamedBatches(path, rows.packed.rows("train"), ROW_BYTES, prepare, BATCH, 1)
    return epochs(batches.epoch), path


def sequential(folder: Path, times: int, *, threads: int = 1) -> tuple[Loop, Path]:
    """Return the bytes read, by each thread into one block of 1 MiB, of the packed file from its beginning to its end."""
    path = read(folder, "HDF5", times).packed.path("train")
    size = path.stat().st_size
    kept = threading.local()

    def some(first: int) -> int:
        if not hasattr(kept, "block"):
            # On a page of its own: a block that begins 16 bytes into one, as memory for Python's bytes may, is
            # read into half as fast.
            kept.block, kept.file = memoryview(mmap.mmap(-1, 2**20)), path.open("rb", buffering=0)
        kept.file.seek(first)
        return sum(kept.file.readinto(kept.block) for _ in range(first, min(first + 2**24, size), 2**20))

    def sizes(_: int) -> Iterator[int]:
        if threads == 1:
            yield from map(some, range(0, size, 2**24))
            return
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(some, range(0, size, 2**24))

    return epochs(sizes), path


def memory_copy(folder: Path, times: int, *, to_memory: bool) -> tuple[Loop, None]:
    """Return the bytes copied of a table of 620 MB: to another such, or to one MiB, which stays in the caches."""
    del folder, times
    table = np.zeros(620_000_000 // 2**20 * 2**20, dtype=np.uint8).reshape(-1, 2**20)
    table += 1
    copy = np.ones_like(table) if to_memory else [np.empty(2**20, dtype=np.uint8)] * len(table)

    def copies(_: int) -> Iterator[int]:
        for part, where in zip(table, copy, strict=True):
            np.copyto(where, part)
            yield part.size

    return epochs(copies), None


CONTENDERS: dict[str, Callable[[Path, int], tuple[Loop, Path | None]]] = {
    "copying memory to memory": lambda f, t: memory_copy(f, t, to_memory=True),
    "copying memory to the caches": lambda f, t: memory_copy(f, t, to_memory=False),
    "reading the file, in order": sequential,
    "reading the file, in order, two threads": lambda f, t: sequential(f, t, threads=2),
    "reading the file, in order, cold": sequential,
    "fluvial, from disk": lambda f, t: streamed(f, t, standardised=False),
    "fluvial, from disk, cold": lambda f, t: streamed(f, t, standardised=False),
    "fluvial, from disk, standardised": lambda f, t: streamed(f, t, standardised=True),
    "fluvial, in memory": in_memory,
    "TensorDataset in memory, DataLoader": tensor_dataset,
    "row by row from HDF5, DataLoader": lambda f, t: row_by_row(f, t, workers=0),
    "row by row from HDF5, DataLoader with 2 workers": lambda f, t: row_by_row(f, t, workers=2),
}
COPYING, READING, READING_COLD = (
    "copying memory to memory",
    "reading the file, in order",
    "reading the file, in order, cold",
)
LARGER = [COPYING, READING, "fluvial, from disk", "fluvial, from disk, standardised"]


def measure(who: str, folder: Path, times: int, seconds: float) -> dict[str, Any]:
    """Return the rate and the memory of one contender, in this process."""
    import torch

    torch.set_num_threads(1)
    before = _resident()
    began = time.perf_counter()
    loop, path = CONTENDERS[who](folder, times)
    batches = loop()
    cold = who.endswith("cold")
    if cold and path is not None:
        _drop(path)
    else:
        next(batches)  # opened, warm
    ready = time.perf_counter() - began
    _forget_peak()
    rows = size = 0
    spent = 0.0
    began, cpu = time.perf_counter(), _cpu_seconds()
    for batch in batches:
        size += batch if isinstance(batch, int) else ROW_BYTES * len(batch[0])
        rows += 0 if isinstance(batch, int) else len(batch[0])
        spent = time.perf_counter() - began
        # A cold file is cold but once: one pass over it, or as much as the time allows.
        if spent > seconds or (cold and path is not None and size >= 0.99 * path.stat().st_size):
            break
    batches.close()
    del batches, loop  # workers end, and their time counts
    gc.collect()
    cpu = _cpu_seconds() - cpu
    return {
        "who": who,
        "rows_per_second": rows / spent if rows else None,
        "bytes_per_second": size / spent,
        "bytes_per_cpu_second": size / cpu,
        "memory_MiB": (_peak() - before) / 2**20,
        "ready_seconds": ready,
    }


def _cpu_seconds() -> float:
    """Return the time that processors have spent on this process and on those of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _drop(path: Path) -> None:
    """Drop a file from the system's cache (Linux; elsewhere a cold read is not cold)."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pack_once(kind: str, folder: Path, times: int) -> dict[str, Any]:
    """Return how long a first fit packs, and how soon a second starts, with the memory of the first."""
    import fluvial.workflow.data  # imported before the clock starts

    del fluvial.workflow.data
    before = _resident()
    _forget_peak()
    began = time.perf_counter()
    read(folder, kind, times)
    first, peak = time.perf_counter() - began, _peak()
    began = time.perf_counter()
    read(folder, kind, times)
    return {
        "who": f"packing from {kind}",
        "seconds": first,
        "again_seconds": time.perf_counter() - began,
        "memory_MiB": (peak - before) / 2**20,
    }


# ------------------------------------------------------------------------------------------- page


def rows_of(found: list[dict[str, Any]], work: str) -> list[dict[str, Any]]:
    """Return the results in the form that all benchmarks share."""
    out = []
    for one in found:
        common = {"work": work, "who": one["who"], "memory_MiB": round(one["memory_MiB"])}
        if "seconds" in one:
            out.append({**common, "op": "first fit", "value": one["seconds"], "unit": "s"})
            out.append({**common, "op": "second fit", "value": one["again_seconds"], "unit": "s"})
            continue
        out.append({**common, "op": "read", "value": one["bytes_per_second"] / 1e6, "unit": "MB/s"})
        per_cpu = one["bytes_per_cpu_second"] / 1e6
        out.append({**common, "op": "read", "value": per_cpu, "unit": "MB per CPU second"})
        if one["rows_per_second"]:
            out.append({**common, "op": "batches", "value": one["rows_per_second"], "unit": "rows/s"})
    return out


def page(results: dict[str, list[dict[str, Any]]], where: str, command: str) -> str:
    """Return the page that docs/benchmarks/loading.md is."""
    text = f"""# Shuffled batches from tables on disk

Batches of {BATCH:,} rows × {COLUMNS} columns of float32, in an order that is new in every epoch. A row is
{ROW_BYTES} bytes. *Memory* is the peak above what the process held after importing torch: fluvial's own modules (60 MiB)
and the sample that stands for a table on disk are in it, the table where it is in memory. One thread of torch;
fluvial reads ahead with two more. *Of reading* is the share of the rate at which one thread reads the same file from
its beginning to its end into a block that stays in the processor's caches, which writes nothing to memory (cold: the
file was not in the system's cache). *Of copying* is the share of the rate at which one thread copies memory to
memory, which is read and written. On a machine with other work to do,
rates by the clock tell of that work too; bytes per second of processor time, of all threads and workers, tell less
of it.

Made by `{command}`.

{where}
"""
    for work, found in results.items():
        rates = {one["who"]: one for one in found if "seconds" not in one}
        text += f"\n## {work}\n\n{markdown_table([_line(one, rates) for one in rates.values()])}\n"
        packing = [one for one in found if "seconds" in one]
        if packing:
            text += "\nPacking, which the first fit does once; the second starts from the packed form.\n\n"
            text += markdown_table(
                [
                    {
                        "what": one["who"],
                        "first, s": one["seconds"],
                        "second, s": one["again_seconds"],
                        "memory, MiB": round(one["memory_MiB"]),
                    }
                    for one in packing
                ]
            )
            text += "\n"
    return text


def _line(one: dict[str, Any], rates: dict[str, dict[str, Any]]) -> dict[str, Any]:
    peer = rates.get("row by row from HDF5, DataLoader")
    floor = rates.get(READING_COLD if one["who"].endswith("cold") else READING)
    copying = rates.get(COPYING)
    rate = one["rows_per_second"]

    def share(key: str, of: dict[str, Any] | None) -> str | None:
        return f"{one[key] / of[key]:.2f}" if of else None

    return {
        "who": one["who"],
        "rows/s": _digits(rate) if rate else None,
        "× row by row": f"{rate / peer['rows_per_second']:,.0f}" if rate and peer else None,
        "MB/s": _digits(one["bytes_per_second"] / 1e6),
        "of reading": share("bytes_per_second", floor),
        "of copying": share("bytes_per_second", copying),
        "MB per CPU s": _digits(one["bytes_per_cpu_second"] / 1e6),
        "of reading, CPU": share("bytes_per_cpu_second", floor),
        "memory, MiB": round(one["memory_MiB"]),
    }


def _digits(value: float) -> str:
    """Return three significant digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.10g}"


def in_process(options: argparse.Namespace, folder: Path, job: str, who: str, times: int) -> dict[str, Any]:
    """Do one job in a process of its own."""
    command = [sys.executable, __file__, "--job", job, "--who", who, "--times", str(times)]
    command += ["--folder", str(folder), "--seconds", str(options.seconds)]
    env = os.environ | {"FLUVIAL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def compare(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Measure all."""
    print(f"writing {options.rows:,} rows", file=sys.stderr)
    make_tables(folder, options.rows)
    work = f"{options.rows:,} rows ({options.rows * ROW_BYTES / 1e6:,.0f} MB)"
    found = [in_process(options, folder, "pack", kind, 1) for kind in ("HDF5", "Parquet")]
    results = {work: found + [in_process(options, folder, "measure", who, 1) for who in CONTENDERS]}
    if options.times > 1:
        rows = options.rows * options.times
        larger = [in_process(options, folder, "pack", "HDF5", options.times)]
        larger += [in_process(options, folder, "measure", who, options.times) for who in LARGER]
        results[f"{rows:,} rows ({rows * ROW_BYTES / 1e6:,.0f} MB)"] = larger
    return results


def main() -> None:
    """Measure, and print the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: fewer rows, the same comparison"
    )
    parser.add_argument("--rows", type=int, help="rows of the table (default: 5,000,000; quick: 400,000)")
    parser.add_argument(
        "--times", type=int, help="the larger table is so many times that (default: 10; quick: 1)"
    )
    parser.add_argument("--seconds", type=float, help="length of a measurement (default: 10; quick: 0.5)")
    parser.add_argument("--folder", type=Path, help="where tables are written, and removed again")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--markdown", type=Path, help="write the page there")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--who", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = pack_once if options.job == "pack" else None
        found = job(options.who, options.folder, options.times) if job else None
        found = found or measure(options.who, options.folder, options.times, options.seconds)
        print(json.dumps(found))
        return
    options.rows = options.rows or (400_000 if options.quick else 5_000_000)
    options.times = options.times or (1 if options.quick else 10)
    options.seconds = options.seconds or (0.5 if options.quick else 10.0)
    host, packages = machine(1), versions(PACKAGES)
    with tempfile.TemporaryDirectory(prefix="fluvial-loading-", dir=options.folder) as folder:
        results = compare(options, Path(folder))
    command = " ".join(
        ["python benchmarks/loading.py", *(a for a in sys.argv[1:] if not Path(a).is_absolute())]
    )
    text = page(results, where_and_when(host, packages), command)
    print(text)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        rows = [row for work, found in results.items() for row in rows_of(found, work)]
        write_json(options.json, rows, machine=host, versions=packages)


def _public(argument: str) -> str:
    """Return an argument without the folders of whoever ran the script."""
    return Path(argument).name if Path(argument).is_absolute() else argument


if __name__ == "__main__":
    main()
