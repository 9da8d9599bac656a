"""The other end of ``benchmarks/flows.py``: one process that holds one contender and measures on demand.

Read from standard input: one operation a line. Written to standard output: one line of JSON first, when the
contender is built and has trained a little, with what tells whether it is a conditional density; then one for
each operation.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from peers.work import OPS, Contender, Op, Work, make_data

#: The contender that is no library but the rate of matrix products.
FLOOR = "floor"
_WARM_UP_STEPS = 3


def serve(who: str, work: Work, threads: int, seconds: float) -> None:
    """Measure until standard input ends; a measurement repeats its operation for at least ``seconds``."""
    _limit_threads(threads)
    if who == FLOOR:
        _tell({"who": who, "ops": OPS})
        for line in sys.stdin:
            floor = _floor if work.device == "cpu" else _floor_on_gpu
            _tell({"op": line.strip(), **floor(work, line.strip(), threads, seconds)})  # type: ignore[arg-type]
        return
    module = import_module(f"peers.{who}")
    imported = _resident()
    _use_threads(threads)
    try:
        contender = module.build(work)
    except NotImplementedError as error:
        _tell({"who": who, "declines": str(error)})
        return
    data = {op: make_data(work, work.rows(op), seed) for seed, op in enumerate(OPS)}
    _tell(
        {
            "who": who,
            "parameters": contender.parameters,
            "differs": contender.differs,
            "ops": getattr(contender, "ops", OPS),
            **_look(contender, data),
        }
    )
    for line in sys.stdin:
        op: Op = line.strip()  # type: ignore[assignment]
        _forget_peak()
        if work.device != "cpu":
            contender.device_memory()  # type: ignore[attr-defined]  # those that run there have it
        rate = _rate(contender, op, *data[op], seconds)
        held = _peak() - imported if work.device == "cpu" else contender.device_memory()  # type: ignore[attr-defined]
        _tell({"op": op, "rows_per_second": rate, "memory_MiB": held / 2**20})


def _look(contender: Contender, data: dict[Op, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Warm up, and find out whether this is a conditional density at all."""
    losses = [contender.train_step(*data["train"]) for _ in range(_WARM_UP_STEPS)]
    x, c = data["log_prob"]
    here, elsewhere = contender.log_prob(x, c), contender.log_prob(x, np.roll(c, 1, axis=0))
    draws = contender.sample(data["sample"][1])
    of_draws = contender.log_prob(draws, data["sample"][1])
    return {
        "losses": losses,
        "moved_by_context": float(np.mean(np.abs(here - elsewhere) > 1e-5)),
        "log_prob_of_draws": float(of_draws.mean()),
        "sound": bool(
            draws.shape == x.shape
            and np.isfinite(losses).all()
            and np.isfinite(here).all()
            and np.isfinite(of_draws).all()
        ),
    }


def _rate(contender: Contender, op: Op, x: np.ndarray, c: np.ndarray, seconds: float) -> float:
    """Return the rows per second of one operation."""
    calls = {
        "train": lambda: contender.train_step(x, c),
        "log_prob": lambda: contender.log_prob(x, c),
        "sample": lambda: contender.sample(c),
    }
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds or not done:
        calls[op]()
        done += 1
    return done * len(x) / took


def _floor(work: Work, op: Op, threads: int, seconds: float) -> dict[str, float]:
    """Return the FLOP/s of float32 products ``[rows, width] @ [width, width]`` in PyTorch's two ways.

    ``medium`` is ``torch.set_float32_matmul_precision("medium")``, which sends them to oneDNN where the
    processor is new enough and changes nothing elsewhere. Each is the better of all rows at once and 2,048.
    """
    import torch

    torch.set_num_threads(threads)
    best = {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        for rows in {work.rows(op), 2_048}:
            a, b = torch.randn(rows, work.width), torch.randn(work.width, work.width)
            out = torch.mm(a, b)
            done, began = 0, time.perf_counter()
            while (took := time.perf_counter() - began) < seconds / 4:
                for _ in range(10):
                    torch.mm(a, b, out=out)
                done += 10
            best[precision] = max(best.get(precision, 0.0), 2 * done * rows * work.width**2 / took)
    torch.set_float32_matmul_precision("highest")
    return best


def _floor_on_gpu(work: Work, op: Op, threads: int, seconds: float) -> dict[str, float]:
    """Return the FLOP/s of products of a GPU: at these shapes in float32 and in bfloat16, and of large ones in bfloat16.

    The width is taken as the next multiple of 16: odd ones are several times slower.
    """
    import torch

    def rate(rows: int, width: int, kind: torch.dtype) -> float:
        a, b = (torch.randn(n, width, device=work.device, dtype=kind) for n in (rows, width))
        done, began = -5, time.perf_counter()
        while (took := time.perf_counter() - began) < seconds / 4 or done <= 0:
            for _ in range(10):
                torch.mm(a, b)
            torch.cuda.synchronize()
            done += 10
            if done == 5:  # those were to warm up
                done, began = 0, time.perf_counter()
        return 2 * done * rows * width**2 / took

    rows, width = max(work.rows(op), 32_768), -(-work.width // 16) * 16
    shaped = {"highest": rate(rows, width, torch.float32), "bfloat16": rate(rows, width, torch.bfloat16)}
    return shaped | {"medium": shaped["highest"], "bfloat16, large": rate(8192, 8192, torch.bfloat16)}


def _limit_threads(threads: int) -> None:
    """Hold this process to so many cores, before a library is imported: JAX knows no other limit."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _use_threads(threads: int) -> None:
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def _resident() -> int:
    """Return the memory that this process holds now, in bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return _ever()


def _ever() -> int:
    """Return the most memory that this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> None:
    """Start the system's record of peak memory afresh where it can; elsewhere the peak is over all so far."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass


def _peak() -> int:
    """Return the peak memory since :func:`_forget_peak`, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _ever()


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)
