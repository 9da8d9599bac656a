"""How small and how fast a file is: a table like a population synthesis, 15 metallicities by 4 efficiencies.

Masses Mass_0, Mass_1 (known to float32, as the simulator writes them), Z and alpha, 800,000 rows; written in each
format in two orders, cell by cell as a simulation writes them and shuffled. ``ratio`` is against a CSV file of
the same rows by ``numpy.savetxt`` as it comes (``%.18e``, 25 bytes a number); the CSV with the fewest digits that
give the float64 back stands beside it. Reading is to float64 columns in memory, the best of several times, from
a file in the page cache.

Run: python benchmarks/formats.py [--quick] [--json PATH] [--markdown PATH]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fluvial.apps.binaries import simulator
from fluvial.data.readers import open_table, write_table

sys.path.insert(0, str(Path(__file__).parent))
from common import machine, markdown_table, versions, where_and_when, write_json

NAMES = ("Mass_0", "Mass_1", "Z", "alpha")
ROWS, QUICK_ROWS, REPEATS = 800_000, 80_000, 5
PACKAGES = ("fluvial", "numpy", "pandas", "pyarrow")
Table = dict[str, np.ndarray]


def table(rows: int) -> Table:
    """Return the columns in float64, the rows cell by cell; within a cell they are in no order."""
    found = simulator.simulate(rows, seed=1)
    order = np.lexsort((found["alpha"], found["Z"]))
    masses = {n: found[n][order].astype(np.float32).astype(np.float64) for n in NAMES[:2]}
    return masses | {n: found[n][order] for n in NAMES[2:]}


def single(columns: Table) -> Table:
    """Return the masses in float32, which holds them exactly; Z and alpha stay float64."""
    return {n: v.astype(np.float32) if n.startswith("Mass") else v for n, v in columns.items()}


def savetxt(path: Path, columns: Table) -> None:
    np.savetxt(
        path, np.column_stack(list(columns.values())), delimiter=",", header=",".join(columns), comments=""
    )


def parquet(path: Path, columns: Table) -> None:
    write_table(path, columns, dictionary=NAMES[2:])


def parquet_single(path: Path, columns: Table) -> None:
    parquet(path, single(columns))


def parquet_as_it_comes(path: Path, columns: Table) -> None:
    pq.write_table(pa.table(columns), path)


def with_fluvial(path: Path) -> None:
    open_table(path).read(NAMES)


def with_pandas(path: Path) -> None:
    pd.read_csv(path, dtype=np.float64)


#: Who, what, suffix, how it is written, how it is read.
WAYS: list[tuple[str, str, str, Callable[[Path, Table], object], Callable[[Path], None]]] = [
    ("numpy.savetxt", "CSV, %.18e", ".csv", savetxt, with_pandas),
    ("fluvial", "CSV, fewest digits", ".csv", write_table, with_fluvial),
    ("fluvial", "npy, float64", ".npy", write_table, with_fluvial),
    ("pyarrow", "Parquet, as it comes, float64", ".parquet", parquet_as_it_comes, with_fluvial),
    ("fluvial", "Parquet, float64", ".parquet", parquet, with_fluvial),
    ("fluvial", "Parquet, float32 masses", ".parquet", parquet_single, with_fluvial),
]


def measure(columns: Table, order: str, repeats: int) -> list[dict[str, Any]]:
    """Return two rows for each way, of its size and of its time to read, and the sizes' ratio to the first way."""
    rows: list[dict[str, Any]] = []
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for i, (who, work, suffix, write, read) in enumerate(WAYS):
            path = Path(folder, f"{i}{suffix}")
            write(path, columns)
            check(path, columns)
            size = path.stat().st_size
            first = first or size
            times = []
            for _ in range(repeats):
                began = time.perf_counter()
                read(path)
                times.append(time.perf_counter() - began)
            about = {"work": f"{work}; {order}", "who": who}
            rows.append({**about, "op": "size", "value": size / 1e6, "unit": "MB", "ratio": first / size})
            rows.append({**about, "op": "read", "value": min(times), "unit": "s", "ratio": None})
    return rows


def check(path: Path, columns: Table) -> None:
    """See that every number comes back, to the last bit."""
    for name, values in open_table(path).read(NAMES).items():
        if not np.array_equal(values, columns[name]):
            raise RuntimeError(f"{path.name}: {name} is not what was written")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows instead of {ROWS:,}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    where = machine()
    columns = table(QUICK_ROWS if options.quick else ROWS)
    order = np.random.default_rng(0).permutation(len(columns["Z"]))
    rows = measure(columns, "cell by cell", REPEATS)
    rows += measure({n: v[order] for n, v in columns.items()}, "shuffled", REPEATS)
    text = "\n\n".join(
        [
            "# Formats",
            "<!-- Written by benchmarks/formats.py; do not edit. -->",
            f"A table of {len(order):,} rows: Mass_0, Mass_1, Z (15 values), alpha (4 values). Made by "
            "`benchmarks/formats.py`; what is compared is said at its top.",
            markdown_table(rows),
            where_and_when(where, versions(PACKAGES)),
        ]
    )
    print(text)
    if options.json:
        write_json(options.json, rows, machine=where, versions=versions(PACKAGES))
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
