r"""Jets and muons from NanoAOD to NanoAOD: objects a second, memory, and draws against FlashSim's own model.

``python benchmarks/collider.py`` writes a NanoAOD-like generator level (6 jets and 30 particles in a mean event), takes
the densities of ``studies/jets.toml`` and ``studies/muons.toml`` (hardly trained: their speed does not hang on what they
have learnt), and runs ``fluvial.apps.collider.generate`` on it: how many objects a second are read, drawn and written.
Then memory: the highest of a process of its own (Linux only), for more and more objects, of many events and of few that
are oversampled. Last, draws a second of FlashSim's architecture (17 coupling steps of 10 residual blocks of 298 units,
128 bins) built here and in nflows, as FlashSim has it, in turns, on 2,048 contexts at a time.

``--quick`` takes about a minute. ``--parts`` measures some of it; what was found before, of other parts too,
is taken from the file of ``--keep``. nflows is in ``requirements.txt``; without it that part says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import torch
import uproot
from common import kept, machine, markdown_table, row_of, versions, where_and_when, write_json
from peers.work import WORKS, make_data

import fluvial
from fluvial.apps.collider import jets, simulator
from fluvial.apps.collider.generate import Generated, generate

STUDIES = Path(__file__).parent.parent / "studies"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks" / "collider.md"
JETS, PARTICLES = 6, 30  # a mean event
_BLOCK = 20_000
PARTS = ("speed", "draws", "memory")


def write_generator_level(path: Path, events: int, seed: int = 0) -> None:
    """Write a NanoAOD-like file of so many events: generator jets like the simulator's, and particles."""
    rng = np.random.default_rng(seed)
    with uproot.recreate(path, compression=uproot.ZSTD(1)) as file:
        tree = None
        for start in range(0, events, _BLOCK):
            table = _generator_level(rng, start, min(_BLOCK, events - start))
            if tree is None:
                types = {
                    k: v.dtype if isinstance(v, np.ndarray) else ak.type(v).content for k, v in table.items()
                }
                tree = file.mktree("Events", types)
            tree.extend(table)


def _generator_level(rng: np.random.Generator, start: int, events: int) -> dict[str, Any]:
    number = np.arange(start, start + events)
    of_jets, of_particles = rng.poisson(JETS, events), rng.poisson(PARTICLES, events)
    jet = jets.draw_context(rng, int(of_jets.sum()))
    n = int(of_particles.sum())
    particle = {
        "pt": (3 + rng.exponential(15.0, n)).astype(np.float32),
        "eta": rng.normal(0, 1.5, n).astype(np.float32),
        "phi": rng.uniform(-np.pi, np.pi, n).astype(np.float32),
        "mass": np.zeros(n, dtype=np.float32),
        "pdgId": rng.choice([13, -13, 11, 22, 211, 21], n, p=[0.03, 0.03, 0.1, 0.2, 0.4, 0.24]).astype(np.int32),
        "statusFlags": rng.integers(0, 1 << 15, n).astype(np.int32),
        "status": rng.choice([1, 2], n).astype(np.int32),
    }  # fmt: skip
    names = ("pt", "eta", "phi", "mass", "partonFlavour", "hadronFlavour")
    pile_up = {
        f"Pileup_{k}": rng.uniform(1, 50, events).astype(np.float32)
        for k in ("gpudensity", "pudensity", "nTrueInt")
    }
    pile_up |= {
        f"Pileup_{k}": rng.integers(1, 50, events).astype(np.int32) for k in ("nPU", "sumEOOT", "sumLOOT")
    }
    return {
        "run": np.ones(events, dtype=np.uint32),
        "luminosityBlock": (number // 1000).astype(np.uint32),
        "event": number.astype(np.uint64),
        "genWeight": np.ones(events, dtype=np.float32),
        **pile_up,
        "GenJet": ak.zip({k: ak.unflatten(jet[f"GenJet_{k}"], of_jets) for k in names}),
        "GenPart": ak.zip({k: ak.unflatten(v, of_particles) for k, v in particle.items()}),
    }


def hardly_trained(objects: str, folder: Path) -> fluvial.Density:
    """Return the density of a study of this repository, after one pass over a few thousand rows."""
    simulator.write(objects, folder / f"{objects}.parquet", 20_000, seed=1)  # type: ignore[arg-type]
    study = (STUDIES / f"{objects}.toml").read_text(encoding="utf-8")
    head, _, _ = study.partition("[training]")
    (folder / f"{objects}.toml").write_text(f"{head}[training]\nepochs = 1\n", encoding="utf-8")
    return fluvial.fit(folder / f"{objects}.toml", runs=folder / "runs", name=objects, check=False)


def speed(densities: dict[str, fluvial.Density], source: Path, out: Path, oversample: int) -> Generated:
    """Return the better of two runs of ``generate``."""
    runs = []
    for _ in range(2):
        runs += generate([source], out, **densities, oversample=oversample, overwrite=True)
    return min(runs, key=lambda r: r.seconds)


def memory(runs: Path, source: Path, out: Path, oversample: int) -> dict[str, Any]:
    """Return objects, seconds and the highest memory of a process of its own that generates them."""
    code = (
        "import json, sys, torch, fluvial\n"
        "from fluvial.apps.collider.generate import generate\n"
        "runs, source, out, folds, threads = sys.argv[1:]\n"
        "torch.set_num_threads(int(threads))\n"
        "r = generate([source], out, jets=fluvial.load(runs + '/jets'), muons=fluvial.load(runs + '/muons'),\n"
        "             oversample=int(folds), overwrite=True)[0]\n"
        # (that of resource.getrusage is the parent's, if that was higher)
        "lines = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "peak = int(lines['VmHWM'].split()[0]) / 1024\n"
        "print(json.dumps({'objects': r.objects, 'seconds': r.seconds, 'MiB': peak, 'problem': r.problem}))\n"
    )
    argv = [sys.executable, "-W", "ignore", "-c", code, str(runs), str(source), str(out), str(oversample)]
    made = subprocess.run(
        [*argv, str(torch.get_num_threads())], stdout=subprocess.PIPE, text=True, check=True
    )
    out.unlink()
    return json.loads(made.stdout.splitlines()[-1])


def draws(seconds: float) -> list[dict[str, Any]]:
    """Return draws a second of FlashSim's architecture, here and in nflows, in turns on the same contexts."""
    work = WORKS["jets-flashsim"]
    rows: list[dict[str, Any]] = []
    _, context = make_data(work, work.inference_rows, seed=0)
    contenders = {}
    for who in ("fluvial", "nflows"):
        if who == "nflows" and find_spec("nflows") is None:
            print("nflows is not installed: pip install -r benchmarks/requirements.txt", file=sys.stderr)
            continue
        torch.manual_seed(0)
        contenders[who] = import_module(f"peers.{who}").build(work)
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(3):
        for who, contender in contenders.items():
            contender.sample(context[:64])
            done, began = 0, time.perf_counter()
            while (took := time.perf_counter() - began) < seconds / 3 or not done:
                contender.sample(context)
                done += 1
            best[who] = max(best[who], done * len(context) / took)
    for who, rate in best.items():
        rows.append({"work": "jets-flashsim", "op": "sample", "who": who, "value": rate, "unit": "draws/s"})
    return rows


def speeds(
    options: argparse.Namespace, folder: Path, densities: dict[str, fluvial.Density]
) -> list[dict[str, Any]]:
    """Return objects a second, read, drawn, written and altogether."""
    source, out = folder / "gen.root", folder / "out.root"
    write_generator_level(source, options.events)
    rows: list[dict[str, Any]] = []
    for work, used, folds in (
        ("jets", {"jets": densities["jets"]}, 1),
        ("jets and muons", densities, 1),
        ("jets and muons, oversampled 10 times", densities, 10),
    ):
        done = speed(used, source, out, folds) if folds == 1 or not options.quick else None
        if done is None:
            continue
        parts = {"read": done.read_seconds, "draw": done.draw_seconds, "write": done.write_seconds}
        for op, took in {**parts, "all": done.seconds}.items():
            value = done.objects / took
            rows.append({"work": work, "op": op, "who": "fluvial", "value": value, "unit": "objects/s"})
    return rows


def memories(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return the highest memory for more and more objects, and for many folds of few events."""
    source, out = folder / "many.root", folder / "out.root"
    rows = []
    for objects in options.objects:
        write_generator_level(source, max(objects // 8, 100), seed=1)
        used = memory(folder / "runs", source, out, 1)
        rows.append(_memory_row(f"{used['objects']:,} objects", used))
    write_generator_level(source, options.events)
    folds = max(1, max(options.objects) // (8 * options.events))
    used = memory(folder / "runs", source, out, folds)
    return [*rows, _memory_row(f"{used['objects']:,} objects, oversampled {folds} times", used)]


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Make the measurements asked for; return the rows of the result, with those kept of the other parts."""
    densities = {name: hardly_trained(name, folder) for name in ("jets", "muons")}
    work = {
        "speed": lambda: speeds(options, folder, densities),
        "draws": lambda: draws(options.seconds),
        "memory": lambda: memories(options, folder),
    }
    rows = []
    for part in PARTS:
        key = {"part": part, "quick": options.quick, "events": options.events, "threads": options.threads}
        if part in options.parts:
            rows += kept(options.keep, key, lambda part=part: {"rows": work[part]()})["rows"]
        elif options.keep and (known := row_of(options.keep, key)):
            rows += known["rows"]
    return rows


def _memory_row(work: str, used: dict[str, Any]) -> dict[str, Any]:
    if used["problem"]:
        raise RuntimeError(used["problem"])
    return {"work": work, "op": "highest memory", "who": "fluvial", "value": used["MiB"], "unit": "MiB"}


def page(rows: list[dict[str, Any]], where: str, command: str) -> str:
    """Return the page that shows the rows."""
    shown = [{**row, "value": f"{row['value']:,.0f}"} for row in rows]
    intro = (__doc__ or "").strip().replace('r"""', "")
    return (
        "\n\n".join(
            ["# From NanoAOD to NanoAOD", f"Made by `{command}`. {where}", intro, markdown_table(shown), ""]
        ).rstrip("\n")
        + "\n"
    )


def main() -> None:
    """Read the options, measure, write what was asked for, and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--events", type=int, default=50_000, help="events of the file (default: 50,000)")
    parser.add_argument(
        "--objects", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000],
        help="generated objects whose memory is measured (default: 100,000, 1 and 10 million)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="for each contender's draws (default: 60)"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--keep", type=Path, help="what the parts found, kept there and read again")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of PyTorch")
    parser.add_argument("--quick", action="store_true", help="under a minute on two quiet cores")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    if options.quick:
        options.events, options.objects, options.seconds = 4_000, [20_000, 80_000], 3.0
    torch.set_num_threads(options.threads)
    host = machine(options.threads)
    packages = versions(["fluvial", "torch", "numpy", "uproot", "awkward", "nflows"])
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    command = f"benchmarks/collider.py --threads {options.threads} --seconds {options.seconds:g}" + (
        " --quick" if options.quick else ""
    )
    text = page(rows, where_and_when(host, packages), command)
    if options.json:
        write_json(options.json, rows, machine=host, versions=packages)
    if not options.quick:
        PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
