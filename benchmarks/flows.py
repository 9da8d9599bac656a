r"""How fast flows train, give densities and draw: fluvial against its peers, the same architecture in each.

    python -m venv peers && peers/bin/pip install -r benchmarks/requirements.txt -c constraints.txt .
    peers/bin/python benchmarks/flows.py [--quick] [--json PATH] [--markdown PATH]

Every contender runs in a process of its own; measurements take turns (but for the largest work, whose contenders
come one after the other: together they may not fit in memory), and the median over the repeats counts.
Beside each rate stands its share of the *floor*: the rate at which this machine could do the
conditioners' matrix products and nothing else. One row costs 2 × weights operations in a forward pass and
three times as many in training; the machine's rate is that of ``torch.mm`` in float32 at
``[rows, width] @ [width, width]``, by MKL or by oneDNN, whichever is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import machine, markdown_table, versions, where_and_when, write_json
from peers.work import OPS, QUICK_WORKS, WORKS, Op, Work
from peers.worker import FLOOR, serve

PEERS = {
    "fluvial": "fluvial",
    "fluvial_bf16": "fluvial, products of training in bfloat16",
    "nflows": "nflows",
    "zuko": "zuko",
    "normflows": "normflows",
    "flowjax": "flowjax",
}
PACKAGES = ("fluvial", "torch", "nflows", "zuko", "normflows", "flowjax", "jax", "jaxlib", "numpy")
#: From so many weights on, contenders are measured one after the other, not in turns: memory may not hold them all.
LARGE = 10_000_000
#: A contender's number of parameters may differ from fluvial's by this share.
PARAMETERS_WITHIN = 0.05


class Worker:
    """A process that holds one contender."""

    def __init__(self, who: str, work: Work, options: argparse.Namespace):
        self.who = who
        command = [sys.executable, __file__, "--worker", who, "--work", work.name]
        command += ["--threads", str(options.threads), "--seconds", str(options.seconds)]
        command += ["--device", options.device, "--train-rows", str(options.train_rows or 0)]
        command += ["--quick"] if options.quick else []
        threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | threads
            | {"JAX_PLATFORMS": options.device, "PYTHONWARNINGS": "ignore"}
            | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )

    def hear(self) -> dict[str, Any]:
        """Wait for the process' next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.who} ended with code {self.process.wait()} (its message stands above).")
        return json.loads(line)

    def measure(self, op: Op) -> dict[str, Any]:
        """Measure one operation once."""
        assert self.process.stdin is not None
        self.process.stdin.write(op + "\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        """Let the process end by itself."""
        self.process.communicate()


def compare(work: Work, contenders: list[str], options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Measure all contenders at one work; return the rows of results, and what was found about each."""
    everyone = [FLOOR, *contenders]
    together = work.conditioner_weights() < LARGE or options.device != "cpu"
    about: list[dict] = []
    measured: dict[tuple[str, Op], list[dict]] = {}
    for group in [everyone] if together else [[who] for who in everyone]:
        workers = []
        for worker in [Worker(who, work, options) for who in group]:
            heard = worker.hear()  # none measures before all are ready
            if worker.who != FLOOR:
                about.append({"work": work.name, **heard})
                _say(_introduction(about[-1], about[0]))
            if "declines" not in heard:
                workers.append((worker, heard["ops"]))
        _take_turns(workers, options.repeats, measured)
    taking_part = [one["who"] for one in about if "declines" not in one]

    rows = []
    for op in OPS:
        products = {way: _median(measured[FLOOR, op], way) for way in ("highest", "medium")}
        floor = max(products.values()) / work.flops(op)
        if options.device != "cpu":
            products |= {way: _median(measured[FLOOR, op], way) for way in ("bfloat16", "bfloat16, large")}
        for who in taking_part:
            if (who, op) not in measured:
                continue
            rates = [m["rows_per_second"] for m in measured[who, op]]
            rows.append(
                {
                    "work": work.name,
                    "op": op,
                    "who": who,
                    "value": median(rates),
                    "unit": "rows/s",
                    "of_floor": median(rates) / floor,
                    "FLOP/s": median(rates) * work.flops(op),
                    "memory_MiB": _median(measured[who, op], "memory_MiB"),
                    "lowest": min(rates),
                    "highest": max(rates),
                }
            )
        rows.append(
            {"work": work.name, "op": op, "who": FLOOR, "value": floor, "unit": "rows/s", "of_floor": 1.0}
        )
        rows[-1] |= {f"GFLOP/s, {way}": rate / 1e9 for way, rate in products.items()}
    return rows, about


def _take_turns(workers: list[tuple[Worker, list[Op]]], repeats: int, measured: dict) -> None:
    """Let every worker measure each of its operations in turn, so many times, and end."""
    for _ in range(repeats):
        for op in OPS:
            for worker, ops in workers:
                if op in ops:
                    measured.setdefault((worker.who, op), []).append(worker.measure(op))
    for worker, _ in workers:
        worker.end()


#: What differs between the pages of a CPU and of a GPU.
PLACES = {
    "cpu": {
        "place": "on a CPU",
        "products": "by MKL or oneDNN, whichever is faster; a draw counts as one pass). Where no gradient is wanted, "
        "fluvial\ngets the rows in the chunks that its densities take by themselves, the others as they come.",
        "memory": "MiB above what the process held after its imports, those that PyTorch makes for its first optimizer "
        "included.",
    },
    "cuda": {
        "place": "on a GPU",
        "products": "in float32; a draw counts as one pass). Arrays come from the CPU's memory and go back there.",
        "memory": "MiB of the GPU, as each library's allocator holds them; of JAX and fluvial's recordings all since the "
        "start.",
    },
}


def page(rows: list[dict], about: list[dict], works: list[Work], where: str, command: str) -> str:
    """Return the page that docs/benchmarks/flows.md is, or for a GPU flows-gpu.md."""
    words = PLACES[works[0].device]
    return f"""# Speed of flows {words["place"]}, against peers

Rows per second of the same architecture in each library, float32 {words["place"]}, each in a process of its own; the
median of interleaved repeats. `train` is a forward pass, a backward pass and a step of Adam. In brackets: the
share of the *floor*, the rate at which this machine could do the conditioners' matrix products and nothing
else (2 × weights operations a row, three times as many in training, over the rate of `torch.mm` at these
shapes, {words["products"]}

Made by `{command}`.

{where}

{markdown_table(_speeds(rows))}

## Factors

fluvial's rate over that of the best peer in PyTorch, and over flowjax' (JAX, compiled); and training with products in
bfloat16 (`precision = "bf16"`) over the best peer in PyTorch, which trains in float32.

{markdown_table(_factors(rows))}

## Peak memory

{words["memory"]}

{markdown_table(_memory(rows))}

## Contenders

What differs from the work; where nothing is said, nothing. *Moved by context*: the share of rows whose
log-density changes with another row's context.

{markdown_table([_contender(a, about) for a in about])}

## Works

{markdown_table([_work(w) for w in works])}
"""


def _speeds(rows: list[dict]) -> list[dict]:
    def shown(row: dict) -> str:
        share = "" if row["who"] == FLOOR else f" ({row['of_floor']:.2f})"
        return _round(row["value"]) + share

    return _pivot(rows, shown)


def _memory(rows: list[dict]) -> list[dict]:
    return _pivot([r for r in rows if r["who"] != FLOOR], lambda r: round(r["memory_MiB"]))


def _pivot(rows: list[dict], shown) -> list[dict]:
    """Return one row for each work and operation, with a column for each contender."""
    table: dict[tuple[str, str], dict] = {}
    for row in rows:
        line = table.setdefault((row["work"], row["op"]), {"work": row["work"], "op": row["op"]})
        line[row["who"]] = shown(row)
    return list(table.values())


def _factors(rows: list[dict]) -> list[dict]:
    factors = []
    for line in _pivot(rows, lambda r: r["value"]):
        ours = line.get("fluvial")
        torch_peers = {who: line[who] for who in ("nflows", "zuko", "normflows") if who in line}
        if ours is None or not torch_peers:
            continue
        best = max(torch_peers, key=torch_peers.__getitem__)
        jax = ours / line["flowjax"] if "flowjax" in line else None
        bf16 = line["fluvial_bf16"] / line[best] if "fluvial_bf16" in line else None
        factors.append(
            {"work": line["work"], "op": line["op"], "over PyTorch": ours / torch_peers[best], "best": best}
            | {"over flowjax": jax, "bf16 over PyTorch": bf16}
        )
    return factors


def _contender(about: dict, everyone: list[dict]) -> dict:
    if "declines" in about:
        return {"work": about["work"], "who": about["who"], "differs": "not measured: " + about["declines"]}
    first = next(a for a in everyone if a["work"] == about["work"])
    return {
        "work": about["work"],
        "who": about["who"],
        "parameters": about["parameters"],
        "ratio": f"{about['parameters'] / first['parameters']:.3f}",
        "moved by context": f"{about['moved_by_context']:.1%}",
        "differs": about["differs"] or None,
    }


def _work(work: Work) -> dict:
    return {
        "work": work.name,
        "architecture": work.architecture,
        "targets": work.targets,
        "context": work.context,
        "steps": work.steps,
        "conditioner": f"{work.blocks} × {work.width}" + (" residual" if work.bins else ""),
        "bins": work.bins or None,
        "mixing": work.mixing,
        "gates": "yes" if work.gate else "no",
        "batch norm": "yes" if work.batch_norm else "no",
        "weights": work.conditioner_weights(),
    }


def _introduction(about: dict, first: dict) -> str:
    """Return a line about a contender, whose size may be off; stop if it is no conditional density."""
    if "declines" in about:
        return f"{about['work']}: {about['who']} is not measured: {about['declines']}"
    ratio = about["parameters"] / first["parameters"]
    if not about["sound"] or about["moved_by_context"] < 0.5:
        raise SystemExit(f"{about['who']} at {about['work']} is no conditional density: {about}")
    size = "" if abs(ratio - 1) <= PARAMETERS_WITHIN else f" — NOT within {PARAMETERS_WITHIN:.0%}"
    losses = " → ".join(f"{loss:.2f}" for loss in about["losses"])
    return (
        f"{about['work']}: {about['who']}, {about['parameters']:,} parameters ({ratio:.3f} of the first"
        f"{size}); loss {losses}; moved by context {about['moved_by_context']:.1%}; "
        f"differs: {about['differs'] or 'nothing'}"
    )


def _median(measured: list[dict], key: str) -> float:
    return median(m[key] for m in measured)


def _round(rate: float) -> str:
    return f"{float(f'{rate:.3g}'):,.0f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: smaller work, the same comparison"
    )
    parser.add_argument("--work", help=f"comma-separated, of {', '.join(WORKS)}")
    parser.add_argument(
        "--who", default=",".join(PEERS), help="comma-separated contenders (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, help="measurements of each (default: 5; quick: 1)")
    parser.add_argument(
        "--seconds", type=float, help="least length of a measurement (default: 2; quick: 0.05)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of every contender (default: 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where all contenders work")
    parser.add_argument("--train-rows", type=int, help="rows of a step, in place of each work's own")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--markdown", type=Path, help="write the page there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.05 if options.quick else 2.0)
    options.work = (options.work or ",".join(QUICK_WORKS if options.quick else WORKS)).split(",")
    options.who = options.who.split(",")
    for name, known in ((options.work, WORKS), (options.who, PEERS)):
        for unknown in set(name) - set(known):
            parser.error(f"{unknown!r} is not known; expected of {', '.join(known)}")
    return options


def main() -> None:
    """Measure, and print the page."""
    options = _options()
    works = [(QUICK_WORKS if options.quick else {}).get(name, WORKS[name]) for name in options.work]
    works = [replace(w, device=options.device, train_rows=options.train_rows or w.train_rows) for w in works]
    if options.worker:
        serve(options.worker, works[0], options.threads, options.seconds)
        return
    host, packages = machine(options.threads), versions(PACKAGES)
    host |= {"gpu": _gpu()} if options.device != "cpu" else {}
    if host["load"] is not None and host["load"] > 0.5:
        _say(f"The machine is busy (load {host['load']}): every number will be too low, unevenly so.")
    rows, about = [], []
    for work in works:
        results, found = compare(work, options.who, options)
        rows += results
        about += found
    command = " ".join(["python benchmarks/flows.py", *(_public(a) for a in sys.argv[1:])])
    text = page(rows, about, works, where_and_when(host, packages), command)
    print(text)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        write_json(options.json, rows, machine=host, versions=packages, contenders=about)


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


def _public(argument: str) -> str:
    """Return an argument without the folders of whoever ran the script."""
    return Path(argument).name if Path(argument).is_absolute() else argument


if __name__ == "__main__":
    main()
