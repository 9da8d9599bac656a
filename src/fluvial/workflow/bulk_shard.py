"""One shard of a bulk sampling: drawn block by block in memory that does not grow, and there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.conditional import ExtrapolationWarning
from fluvial.data.schema import Column
from fluvial.density import Density
from fluvial.errors import RunError
from fluvial.files import write_atomically
from fluvial.workflow.bulk_plan import BLOCK, ContextTable, Plan, written_columns

#: Facts of finished shards; a name that begins with a dot is no table to whoever reads the folder.
FACTS = ".shards"
#: Rows of a row group: the unit in which readers read.
GROUP = 2**20
#: Contexts that are read together where the draws at each make several blocks.
_FEW = 256


def make_shard(
    density: Density, plan: Plan, shard: int, folder: Path, advance: Callable[[int], None]
) -> None:
    """Draw a shard into a hidden file, give it its name, and write down what it is.

    ``advance`` is told of rows as they are drawn.

    Raises :class:`~fluvial.errors.RunError` if the file cannot be written (a full disk).
    """
    began = time.perf_counter()
    path = folder / plan.file(shard)
    temporary = folder / f".{path.name}.{secrets.token_hex(4)}.tmp"
    blocks = plan.of_shard(shard)
    first, stop = plan.first_row(blocks.start), plan.first_row(blocks.stop)
    try:
        with temporary.open("xb") as file:
            _write(file, density, plan, blocks, advance)
            file.flush()
            os.fsync(file.fileno())
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = temporary.stat().st_size
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(
            f"Could not write {path}: {error.strerror or error}. Finished shards are kept; mend the cause (a full disk, "
            "missing rights) and give the same command again."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it has taken its name, or was never made
            temporary.unlink()
    facts = {
        "shard": shard,
        "file": path.name,
        "first_row": first,
        "rows": stop - first,
        "bytes": size,
        "sha256": digest,
        "seconds": round(time.perf_counter() - began, 3),
    }
    write_atomically(_facts_file(folder, shard), (json.dumps(facts) + "\n").encode())


def _write(file: Any, density: Density, plan: Plan, blocks: range, advance: Callable[[int], None]) -> None:
    columns = written_columns(density)
    group = {c.name: np.empty(GROUP, np.dtype(plan.columns[c.name])) for c in columns}
    filled = 0
    with contextlib.ExitStack() as open_files:
        writer: Any = None

        def flush() -> None:
            nonlocal writer
            part = {name: values[:filled] for name, values in group.items()}
            if writer is None:
                writer = open_files.enter_context(_writer(file, part, plan.compression))
            writer.write_table(_arrow(part), row_group_size=GROUP)

        for part in _drawn(density, plan, blocks, columns):
            size, done = len(next(iter(part.values()))), 0
            while done < size:
                step = min(size - done, GROUP - filled)
                for name, values in part.items():
                    group[name][filled : filled + step] = values[done : done + step]
                filled, done = filled + step, done + step
                if filled == GROUP:
                    flush()
                    filled = 0
            advance(size)
        if filled:
            flush()


def _arrow(columns: dict[str, np.ndarray]) -> Any:
    import pyarrow as pa

    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _writer(file: Any, first: dict[str, np.ndarray], compression: str) -> Any:
    """Return a writer of Parquet: columns with few values by a dictionary, others with bytes of equal rank together.

    Compression by zstd at its lowest level takes a hundredth of the time of drawing (benchmarks/bulk.py).
    """
    import pyarrow.parquet as pq

    few = [n for n, values in first.items() if len(np.unique(sample := values[:20_000])) <= len(sample) // 8]
    options: dict[str, Any] = {"compression_level": 1} if compression == "zstd" else {}
    return pq.ParquetWriter(
        file,
        _arrow(first).schema,
        compression=compression,
        use_dictionary=few,  # type: ignore[arg-type]
        use_byte_stream_split=[n for n in first if n not in few],  # type: ignore[arg-type]
        write_page_checksum=True,
        **options,
    )


def _drawn(
    density: Density, plan: Plan, blocks: range, columns: list[Column]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns of every block, in the types that they are written in."""
    for block, contexts, draws in _contexts(density, plan, blocks):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ExtrapolationWarning
            )  # counted beforehand, for all contexts at once
            drawn = density.given(contexts or None).sample(draws, seed=plan.block_seed(block)).reshape(-1)
        out = {}
        for column in columns:
            kind = np.dtype(plan.columns[column.name])
            if column.role == "context":
                out[column.name] = np.repeat(np.asarray(contexts[column.name]).astype(kind), draws)
            else:
                out[column.name] = within(column, drawn[column.name], kind)
        yield out


def within(column: Column, values: np.ndarray, kind: np.dtype[Any]) -> np.ndarray:
    """Return values in a type; one that rounding would put out of the column's support is its neighbour inside.

    >>> from fluvial.data.schema import Support
    >>> column, value = Column("eta", "target", support=Support(0.0, 0.8)), np.array([0.8 - 1e-12])
    >>> float(np.float32(value[0])) < 0.8, float(within(column, value, np.dtype("f4"))[0]) < 0.8
    (False, True)
    """
    rounded = values.astype(kind)
    if kind == values.dtype:
        return rounded
    out = ~column.contains(rounded.astype(np.float64))
    if out.any():
        toward = np.where(rounded[out] > values[out], -np.inf, np.inf).astype(kind)
        rounded[out] = np.nextafter(rounded[out], toward)
    return rounded


def _contexts(
    density: Density, plan: Plan, blocks: range
) -> Iterator[tuple[int, dict[str, np.ndarray], int]]:
    """Yield (block, its contexts, draws at each)."""
    if not len(blocks):
        return
    if plan.per_block:
        start = blocks.start * plan.per_block
        stop = min(blocks.stop * plan.per_block, plan.context_rows)
        for block, contexts in zip(blocks, _read(density, plan, start, stop, plan.per_block), strict=True):
            yield block, contexts, plan.draws
        return
    first, last = blocks.start // plan.parts, (blocks.stop - 1) // plan.parts
    for number, contexts in enumerate(_read(density, plan, first, last + 1, _FEW)):
        for i in range(len(next(iter(contexts.values()), [0]))):
            context = first + number * _FEW + i
            one = {name: values[i : i + 1] for name, values in contexts.items()}
            begin = context * plan.parts
            for block in range(max(begin, blocks.start), min(begin + plan.parts, blocks.stop)):
                yield block, one, min(BLOCK, plan.draws - (block - begin) * BLOCK)


def _read(density: Density, plan: Plan, start: int, stop: int, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the contexts from ``start`` to ``stop``, exactly ``size`` at a time but for the last."""
    if plan.source is None:
        yield {name: np.array([value]) for name, value in plan.given.items()}
        return
    table = ContextTable(plan.source, density.schema.context)
    held: list[dict[str, np.ndarray]] = []
    rows = 0
    for chunk in table.chunks(size, start, stop):
        while chunk:
            length = len(next(iter(chunk.values())))
            taken = min(length, size - rows)
            held.append({name: values[:taken] for name, values in chunk.items()})
            rows += taken
            chunk = {name: values[taken:] for name, values in chunk.items()} if taken < length else {}
            if rows == size:
                yield _joined(held)
                held, rows = [], 0
    if held:
        yield _joined(held)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def finished(folder: Path, plan: Plan, shard: int) -> tuple[dict[str, Any] | None, str]:
    """Return the facts of a shard that is there and whole, or ``None`` and what is amiss ("" if it was never made)."""
    path = folder / plan.file(shard)
    try:
        facts = json.loads(_facts_file(folder, shard).read_bytes())
    except FileNotFoundError:
        return None, ""
    except ValueError:
        return None, f"{path}: its checksum is lost"
    try:
        if path.stat().st_size != facts["bytes"]:
            return None, f"{path} has {path.stat().st_size:,} bytes where {facts['bytes']:,} were written"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                return None, f"{path} is not as it was written: its checksum differs"
    except FileNotFoundError:
        return None, f"{path} has been removed"
    return facts, ""


def known_facts(folder: Path) -> list[dict[str, Any]]:
    """Return the facts of all shards that were ever finished and are there, by number."""
    out = []
    for file in sorted((folder / FACTS).glob("*.json")):
        with contextlib.suppress(ValueError, FileNotFoundError):  # a shard that is being made again just now
            facts = json.loads(file.read_bytes())
            if (folder / facts["file"]).exists():
                out.append(facts)
    return sorted(out, key=lambda facts: facts["shard"])


def forget(folder: Path, shard: int) -> None:
    """Forget that a shard was finished."""
    _facts_file(folder, shard).unlink(missing_ok=True)


def _facts_file(folder: Path, shard: int) -> Path:
    return folder / FACTS / f"{shard:05}.json"
