"""Bulk sampling: draws at a table of contexts, or very many at one, into a folder of Parquet files.

The folder is a table: ``part-00000.parquet`` and so on, readable by anything that reads a folder of Parquet. Beside
them lies a manifest: what was asked for, and the rows and the SHA-256 of every finished file. The same command, given
again, makes what is missing and nothing else, whether a process was killed, a disk was full, or a file was deleted.

Rows depend on the density, the contexts, the number of draws and the seed: not on how many shards, processes or machines
make them (see :mod:`fluvial.workflow.bulk_plan`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fluvial.density import Density
from fluvial.errors import DataError, RunError
from fluvial.walltime import TooShort, is_over, limit
from fluvial.workflow.bulk_plan import (
    MANIFEST,
    Plan,
    given_context,
    make_plan,
    read_plan,
    require_same,
    write_manifest,
)
from fluvial.workflow.bulk_shard import FACTS, finished, forget, known_facts, make_shard
from fluvial.workflow.signals import Stop, Terminated, handled, signals

COMPRESSIONS = ("none", "lz4", "zstd")


@dataclass(frozen=True)
class Drawn:
    """What a bulk sampling has come to.

    Attributes
    ----------
    folder : Path
        The folder, a table.
    rows, rows_now : int
        Rows there in all, and of them those drawn by this call.
    seconds : float
        Wall time of this call.
    shards, finished : int
        How many files there will be, and how many there are.
    outside : dict
        For each context column, how many contexts lie outside the range that the density was trained on.
    seed : int
        What to give as ``seed`` for the same rows in another folder.
    """

    folder: Path
    rows: int
    rows_now: int
    seconds: float
    shards: int
    finished: int
    outside: dict[str, int]
    seed: int


def sample_shards(
    density: Density,
    out: str | Path,
    *,
    contexts: str | Path | list[str] | None = None,
    given: Mapping[str, float] | None = None,
    draws: int = 1,
    seed: int | None = None,
    shards: int | None = None,
    processes: int = 1,
    part: tuple[int, int] = (0, 1),
    compression: str = "zstd",
    wide: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    advance: Callable[[int, int], None] = lambda done, rows: None,
) -> Drawn:
    """Draw at every row of a table of contexts, or at one context, into a folder of Parquet files; or go on with it.

    Columns of numbers are written in float32, and those with atoms or integers that it would change in float64; a draw
    that rounding would put outside the support is its neighbour inside.

    Parameters
    ----------
    density
        From :func:`fluvial.load`: other processes load it again from ``density.folder``.
    out
        The folder; made if it is not there.
    contexts, given
        A table file with the context columns, read in chunks; or one context.
    draws
        Draws at each context.
    seed
        Decides all rows; ``None`` takes that of the folder if it has been begun, else a fresh one.
    shards
        Files to write; by default one for each 16.8 million rows, and at least one a process.
    processes
        How many share the work on this machine; each takes shards as it gets free.
    part
        ``(i, n)``: make only shards i, i + n, i + 2 n, …: one of n tasks of a cluster.
    compression
        Of the files: none, lz4 or zstd.
    wide
        Write float64.
    tell, advance
        Called with messages; and with the rows done so far and those to do, by this call.

    Raises
    ------
    DataError
        If a context is missing or outside its support, before anything is drawn.
    RunError
        If the folder holds draws of another kind, is not empty, or cannot be written.
    Terminated
        On SIGTERM or SIGUSR1; the same call goes on.
    TooShort
        If this is a job of a cluster whose time was over before it could finish one shard.
    """
    began, clock = time.perf_counter(), time.monotonic()
    folder = Path(out)
    _check_numbers(draws=draws, processes=processes, shards=shards, part=part, compression=compression)
    if part[1] > 1 and seed is None and read_plan(folder) is None:
        raise DataError("--part: expected --seed beside it, so that all tasks draw of one.")
    plan = _planned(
        density, folder, contexts, given, draws, seed, shards, max(processes, part[1]), compression, wide
    )
    for name, number in plan.outside.items():
        tell(
            f"{name}: {number:,} of {plan.context_rows:,} contexts are outside the range of the table that the density "
            "was fitted to: what it says there is a guess"
        )
    todo, kept = [], 0
    for shard in plan.mine(part):
        facts, amiss = finished(folder, plan, shard)
        kept += facts is not None
        if facts is None:
            todo.append(shard)
            if amiss:
                tell(f"{amiss}; it is made again")
                forget(folder, shard)
    rows = sum(plan.first_row(plan.of_shard(s).stop) - plan.first_row(plan.of_shard(s).start) for s in todo)
    if kept:
        tell(f"{kept} of {len(plan.mine(part))} shards are there already")
    with signals() as stop:
        stop.training_is_over()  # nothing asks: a signal ends this at once, and what is finished stays
        try:
            if processes == 1 or len(todo) < 2:
                _alone(density, plan, todo, folder, lambda done: advance(done, rows))
            else:
                _together(
                    plan, todo, folder, min(processes, len(todo)), lambda done: advance(done, rows), stop
                )
        except Terminated as error:
            now = len(set(todo) & {s["shard"] for s in _listed(folder, plan)})
            if not now and error.signal != signal.SIGTERM and is_over(clock):
                raise TooShort(
                    f"{folder}: not one shard was finished in the job's {limit() / 60:.3g} minutes, so that it would "
                    "never end; ask for more --time, or begin with more --shards."
                ) from None
            raise Terminated(
                f"{folder}: stopped by {error.signal.name}; finished shards are kept: the same command goes on.",
                error.signal,
            ) from None
    there = _listed(folder, plan)
    if len(there) == plan.shards:
        for left in folder.glob(".part-*.tmp"):  # of processes that were killed
            left.unlink(missing_ok=True)
    return Drawn(
        folder=folder,
        rows=sum(s["rows"] for s in there),
        rows_now=rows,
        seconds=time.perf_counter() - began,
        shards=plan.shards,
        finished=len(there),
        outside=plan.outside,
        seed=plan.seed,
    )


def prepare_shards(density: Density, out: str | Path, **options: Any) -> Plan:
    """Check contexts and write the manifest, so that the tasks of a cluster find it; draw nothing.

    Takes ``contexts``, ``given``, ``draws``, ``seed``, ``shards``, ``tasks``, ``compression`` and ``wide`` as
    :func:`sample_shards`; ``tasks`` is the n of its ``part``.
    """
    usual = {"contexts": None, "given": None, "draws": 1, "seed": None, "shards": None, "tasks": 1}
    usual |= {"compression": "zstd", "wide": False}
    return _planned(density, Path(out), *(usual | options).values())


def _check_numbers(
    *, draws: int, processes: int, shards: int | None, part: tuple[int, int], compression: str
) -> None:
    for name, value in (
        ("draws", draws),
        ("processes", processes),
        ("shards", 1 if shards is None else shards),
    ):
        if value < 1:
            raise DataError(f"Expected {name} of at least 1; got {value}.")
    if not 0 <= part[0] < part[1]:
        raise DataError(f"Expected a part i/n with 0 ≤ i < n, such as 0/8; got {part[0]}/{part[1]}.")
    if compression not in COMPRESSIONS:
        raise DataError(f"Expected compression to be one of {', '.join(COMPRESSIONS)}; got {compression!r}.")


def _planned(
    density: Density,
    folder: Path,
    contexts: str | Path | list[str] | None,
    given: Mapping[str, float] | None,
    draws: int,
    seed: int | None,
    shards: int | None,
    least_shards: int,
    compression: str,
    wide: bool,
) -> Plan:
    """Return the plan of a folder, made and written if it has none."""
    if contexts is not None and given:
        raise DataError("Expected one context by its values, or a table of contexts, not both.")
    if contexts is None:
        given_context(density, given or {})
    found = read_plan(folder)
    if found is None and folder.exists() and any(folder.iterdir()):
        raise RunError(
            f"Expected {folder} to be new, or begun by this command; found a folder of other files."
        )
    if seed is None:
        seed = found.seed if found else int(np.random.SeedSequence().entropy) % 2**63  # type: ignore[arg-type]
    plan = make_plan(
        density,
        source=contexts,
        given=given or {},
        draws=draws,
        seed=seed,
        shards=shards or (found.shards if found else None),
        least_shards=least_shards,
        compression=compression,
        wide=wide,
        like=found,
    )
    if found is not None:
        require_same(found, plan, folder)
        return found
    try:
        (folder / FACTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Could not make the folder {folder}: {error.strerror or error}.") from error
    write_manifest(folder, plan, [])
    # Two tasks that begin at once write the same plan, or the first that is read decides.
    written = read_plan(folder)
    assert written is not None
    require_same(written, plan, folder)
    return written


def _listed(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """Write the manifest with all finished shards, those of other tasks too; return them."""
    facts = known_facts(folder)
    while True:
        write_manifest(folder, plan, facts)
        again = known_facts(folder)  # another task may have finished one, and listed it, between the two
        if again == facts:
            return facts
        facts = again


def _alone(
    density: Density, plan: Plan, shards: list[int], folder: Path, advance: Callable[[int], None]
) -> None:
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        advance(done)

    for shard in shards:
        make_shard(density, plan, shard, folder, count)


#: In a worker: the density, the counter of rows, both set when the process begins.
_worker: dict[str, Any] = {}


def _begin(run: str, threads: int, counter: Any) -> None:
    for (
        number
    ) in handled():  # sent to the whole group by a terminal or a scheduler; the parent decides what they mean
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    torch.set_num_threads(threads)
    density = Density.load(run)
    density.folder = Path(run)
    _worker.update(density=density, counter=counter)


def _make(plan: Plan, shard: int, folder: Path) -> None:
    counter = _worker["counter"]

    def count(rows: int) -> None:
        with counter.get_lock():
            counter.value += rows

    make_shard(_worker["density"], plan, shard, folder, count)


def _together(
    plan: Plan, shards: list[int], folder: Path, processes: int, advance: Callable[[int], None], stop: Stop
) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    threads = max(1, torch.get_num_threads() // processes)
    with _pool(processes, context, (plan.run, threads, counter)) as pool:
        waiting = {pool.submit(_make, plan, shard, folder) for shard in shards}
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                advance(counter.value)
        except BrokenProcessPool:
            if stop.signal is not None:
                raise Terminated(f"stopped by {stop.signal.name}", stop.signal) from None
            raise RunError(
                f"{folder}: a process that drew has been killed, for want of memory most likely; finished shards are "
                "kept. Give the same command again, with fewer --processes."
            ) from None


@contextlib.contextmanager
def _pool(processes: int, context: Any, first: tuple[Any, ...]) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of processes whose end is not waited for if anything goes wrong."""
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=first)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):  # what they draw would be thrown away
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


__all__ = ["COMPRESSIONS", "MANIFEST", "Drawn", "prepare_shards", "sample_shards"]
