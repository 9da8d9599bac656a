r"""Black-hole masses given metallicity and common-envelope efficiency: fluvial against the usual MAF.

``python benchmarks/merger_population.py --data TABLE.parquet`` fits p(Mass_0, Mass_1 | Z, alpha) twice, on
the same rows of the same split, for the same minutes of wall time and on the same number of threads:

- **fluvial** with its defaults: a study that names the columns, their supports and the minutes, no more;
- **the MAF of the theses**: ten MADE blocks of width 128 with batch normalisation between them (Papamakarios,
  Pavlakou & Murray 2017, arXiv:1705.07057), in plain torch, on raw masses, Z and alpha; see
  ``plain_maf.py``.

Every fit has a process of its own, the contenders take turns, and all is repeated over seeds; tables show
medians. The MAF's batch size is chosen in its favour: of ``--batch-sizes``, the one with the best validation
loss of the first seed. Without ``--data`` the rows are those of ``fluvial simulate binaries``, whose density
is known, and KL(truth‖fit) is shown too. ``--quick`` takes under a minute: one seed, one batch size, 20 s
a fit.

Losses are means of −log p over rows, in nats, p being per (solar mass)²; the test rows serve once, at the
end.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, markdown_table, versions, where_and_when, write_json
from plain_maf import MaskedAutoregressiveFlow
from torch import Tensor, nn

import fluvial
from fluvial.apps.binaries import simulator
from fluvial.data.readers import fingerprint, open_table
from fluvial.data.stream import Split, split_rows

TARGETS, CONTEXT = ["Mass_0", "Mass_1"], ["Z", "alpha"]
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
SPLIT_SEED = 1
#: Draws at the context of every test row, to count those that no star can have.
DRAWS = 10
#: Shares of the budget at which the curves are tabulated.
MOMENTS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
FLUVIAL, PEER = "fluvial", "MAF"
UNIT = "nats, per Msun^2"


@dataclass(frozen=True)
class Job:
    """One fit: what a worker process is told."""

    who: str
    data: str
    seed: int
    minutes: float
    threads: int
    batch_size: int = 0


@dataclass(frozen=True)
class Outcome:
    """One fit: what a worker process reports; ``curve`` is (seconds, validation loss) after every epoch."""

    job: Job
    weights: int
    epochs: int
    rows_per_second: float
    curve: list[tuple[float, float]]
    test_log_prob: np.ndarray
    outside: float

    @property
    def best(self) -> float:
        """The best validation loss."""
        return min((loss for _, loss in self.curve), default=math.inf)

    @property
    def test_nll(self) -> float:
        """The mean of −log p over the test rows."""
        return -float(self.test_log_prob.mean())

    def best_by(self, seconds: float) -> float:
        """Return the best validation loss seen until then."""
        return min((loss for t, loss in self.curve if t <= seconds), default=math.inf)

    def seconds_to(self, loss: float) -> float:
        """Return the time to a validation loss; infinity if it was not reached."""
        return next((t for t, found in self.curve if found <= loss), math.inf)


# --- the peer --------------------------------------------------------------------------------------------


def fit_peer(job: Job) -> Outcome:
    """Train the MAF with Adam (rate 1e-3, weight decay 1e-4) until time is up; keep its best weights."""
    parts = {name: _tensors(job.data, name) for name in SHARES}
    torch.manual_seed(job.seed)
    flow = MaskedAutoregressiveFlow(len(TARGETS), len(CONTEXT))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3, weight_decay=1e-4)
    curve: list[tuple[float, float]] = []
    best, best_weights, epochs, rows = math.inf, _copy(flow), 0, 0
    start = time.perf_counter()
    end = start + 60 * job.minutes
    while time.perf_counter() < end:
        epochs += 1
        flow.train()
        for x, context in _batches(*parts["train"], job.batch_size):
            optimizer.zero_grad()
            (-flow.log_prob(x, context).mean()).backward()
            optimizer.step()
            rows += len(x)
            if time.perf_counter() >= end:
                break
        loss = -float(_log_prob(flow, *parts["validation"]).mean())
        loss = loss if math.isfinite(loss) else math.inf
        if loss < best:
            best, best_weights = loss, _copy(flow)
        curve.append((time.perf_counter() - start, loss))
    flow.load_state_dict(best_weights)
    test = _log_prob(flow, *parts["test"])
    with torch.no_grad():
        context = parts["test"][1].repeat_interleave(DRAWS, 0)
        draws = flow.sample(context, torch.Generator().manual_seed(job.seed)).numpy()
    weights = sum(p.numel() for p in flow.parameters())
    return Outcome(job, weights, epochs, rows / curve[-1][0], curve, test, _outside(draws))


def _copy(flow: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in flow.state_dict().items()}


def _batches(x: Tensor, context: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all rows in a new order; a last batch too small for a variance is left out."""
    for rows in torch.randperm(len(x)).split(size):
        if len(rows) > 1:
            yield x[rows], context[rows]


def _log_prob(flow: MaskedAutoregressiveFlow, x: Tensor, context: Tensor) -> np.ndarray:
    flow.eval()
    with torch.no_grad():
        parts = [flow.log_prob(a, b) for a, b in zip(x.split(4096), context.split(4096), strict=True)]
    return torch.cat(parts).double().numpy()


def _tensors(data: str, part: str) -> tuple[Tensor, Tensor]:
    table = _part(data, part)
    x, context = (np.stack([table[n] for n in names], -1).astype(np.float32) for names in (TARGETS, CONTEXT))
    return torch.from_numpy(x), torch.from_numpy(context)


# --- fluvial ---------------------------------------------------------------------------------------------


def study(job: Job) -> dict[str, Any]:
    """Return the study: columns, supports, split, budget and seed; all else is left to fluvial."""
    return {
        "data": {
            "source": job.data,
            "targets": TARGETS,
            "context": CONTEXT,
            "split": SHARES,
            "seed": SPLIT_SEED,
        },
        "columns": {name: {"support": "positive"} for name in TARGETS + CONTEXT},
        "training": {"minutes": job.minutes, "seed": job.seed},
    }


def fit_fluvial(job: Job) -> Outcome:
    """Fit with the public interface alone."""
    epochs: list[Any] = []

    def keep(event: Any) -> None:
        if hasattr(event, "validation_loss"):  # an epoch's end; the others are steps, and texts
            epochs.append(event)

    with tempfile.TemporaryDirectory() as folder:
        density = fluvial.fit(study(job), runs=folder, check=False, on_event=keep)
    test = _part(job.data, "test")
    draws = density.sample({name: test[name] for name in CONTEXT}, DRAWS, seed=job.seed)
    return Outcome(
        job,
        sum(p.numel() for p in density.flow.parameters()),
        len(epochs),
        epochs[-1].rows / epochs[-1].seconds,
        [(e.seconds, e.validation_loss) for e in epochs],
        density.log_prob(test),
        _outside(np.stack([draws[name] for name in TARGETS], -1)),
    )


# --- the comparison --------------------------------------------------------------------------------------


def _split(data: str) -> Split:
    return split_rows(open_table(data).rows(), SHARES, SPLIT_SEED)


def _part(data: str, part: str, names: Sequence[str] = (*TARGETS, *CONTEXT)) -> dict[str, np.ndarray]:
    rows = getattr(_split(data), part)
    return {name: values[rows] for name, values in open_table(data).read(list(names)).items()}


def _outside(draws: np.ndarray) -> float:
    """Return the share of draws ``[..., 2]`` with a mass that is not a positive number."""
    return float(1 - (np.isfinite(draws) & (draws > 0)).all(-1).mean())


def work(job: Job) -> Outcome:
    """Do one job; runs in a process of its own."""
    torch.set_num_threads(job.threads)
    return fit_fluvial(job) if job.who == FLUVIAL else fit_peer(job)


def apart(job: Job) -> Outcome:
    """Do one job in a fresh process, so that no contender inherits another's memory, caches or threads."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        outcome = pool.apply(work, (job,))
    batch = f", batches of {job.batch_size:,}" if job.batch_size else ""
    print(
        f"{job.who:8} seed {job.seed}{batch}: {outcome.epochs} epochs, best validation {outcome.best:.4f}, "
        f"test {outcome.test_nll:.4f}, draws outside the support {outcome.outside:.2%}",
        flush=True,
    )
    return outcome


def compete(options: argparse.Namespace, data: str) -> tuple[list[Outcome], list[Outcome], list[Outcome]]:
    """Return fluvial's outcomes, the MAF's at its best batch size, and its trials of all batch sizes."""
    facts = {"data": data, "minutes": options.minutes, "threads": options.threads}
    ours, peers, trials = [], [], []
    for seed in range(options.seeds):
        ours.append(apart(Job(FLUVIAL, seed=seed, **facts)))
        sizes = options.batch_sizes if seed == 0 else [peers[0].job.batch_size]
        fits = [apart(Job(PEER, seed=seed, batch_size=size, **facts)) for size in sizes]
        trials += fits if seed == 0 else []
        peers.append(min(fits, key=lambda f: f.best))
    return ours, peers, trials


def result_rows(
    name: str, ours: list[Outcome], peers: list[Outcome], truth: np.ndarray | None
) -> list[dict[str, Any]]:
    """Return the results as rows: the median over seeds, and the value of each seed."""
    rows: list[dict[str, Any]] = []

    def add(op: str, who: str, values: list[float], unit: str) -> None:
        rows.append({"work": name, "op": op, "who": who, "value": statistics.median(values), "unit": unit})
        rows[-1]["values"] = values

    for who, outcomes in ((FLUVIAL, ours), (PEER, peers)):
        add("test NLL", who, [o.test_nll for o in outcomes], UNIT)
        add("best validation NLL", who, [o.best for o in outcomes], UNIT)
        if truth is not None:
            add("KL(truth‖fit)", who, [float((truth - o.test_log_prob).mean()) for o in outcomes], "nats")
        add("draws outside the support", who, [100 * o.outside for o in outcomes], "%")
        add("training rows per second", who, [o.rows_per_second for o in outcomes], "1/s")
        add("epochs", who, [o.epochs for o in outcomes], "1")
        add("weights", who, [o.weights for o in outcomes], "1")
    gains = [p.test_nll - o.test_nll for o, p in zip(ours, peers, strict=True)]
    add("test NLL, MAF less fluvial", FLUVIAL, gains, "nats")
    add("standard error of that (paired rows)", FLUVIAL, _paired_errors(ours, peers), "nats")
    times = [o.seconds_to(p.best) / 60 for o, p in zip(ours, peers, strict=True)]
    add("time to the MAF's best validation NLL", FLUVIAL, times, "minutes")
    return rows


def _paired_errors(ours: list[Outcome], peers: list[Outcome]) -> list[float]:
    differences = [o.test_log_prob - p.test_log_prob for o, p in zip(ours, peers, strict=True)]
    return [float(d.std(ddof=1) / math.sqrt(len(d))) for d in differences]


def page(
    options: argparse.Namespace,
    about: str,
    rows: list[dict[str, Any]],
    curves: list[dict[str, Any]],
    trials: list[dict[str, Any]],
    facts: str,
) -> str:
    """Return the results as a Markdown page."""
    seeds = (
        "of one seed" if options.seeds == 1 else f"medians over {options.seeds} seeds, the range in brackets"
    )
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    by_op: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = by_op.setdefault(row["op"], {"": row["op"], FLUVIAL: None, PEER: None, "unit": row["unit"]})
        line[row["who"]] = _shown(row["value"], row["values"])
    return f"""# Black-hole masses given metallicity and common-envelope efficiency

<!-- Written by benchmarks/merger_population.py; do not edit. -->

p(Mass_0, Mass_1 | Z, alpha), learnt from {about}.
Each fit had {60 * options.minutes:.0f} s on {threads} and the same rows, in a process of its own, in turns.
Numbers are {seeds}. NLL is the mean of −log p in nats, with p per
(solar mass)²; less is better. The best weights by validation loss are kept, and the test rows serve once.

{markdown_table(list(by_op.values()))}

## Validation loss against time

The best validation NLL so far ({UNIT}; medians over seeds). fluvial's learning rate falls to
zero over the budget, so what it reaches half-way is not what it would reach with half the budget.

{markdown_table(curves)}

## What was compared

- **fluvial**: its defaults. The study declares the four columns positive and gives the minutes, no more.
- **MAF**: ten MADE blocks (two hidden layers of 128, ReLU, alternating order), batch normalisation
  after each, standard normal base; Adam, learning rate 1e-3, weight decay 1e-4; raw masses, Z and alpha, no
  column transforms. Its batch size was chosen in its favour, by the validation loss of the first seed:

{markdown_table(trials)}

{facts}

Made with `{_command(options)}`.
"""


def _shown(median: float, values: list[float]) -> str:
    def number(value: float) -> str:
        if not math.isfinite(value):
            return "not reached"
        return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"

    if len(set(values)) == 1:
        return number(median)
    return f"{number(median)} [{number(min(values))}, {number(max(values))}]"


def _command(options: argparse.Namespace) -> str:
    rows = f"--data {Path(options.data).name}" if options.data else f"--rows {options.rows}"
    sizes = " ".join(str(s) for s in options.batch_sizes)
    work = f"--minutes {options.minutes:g} --seeds {options.seeds} --batch-sizes {sizes}"
    if options.quick:
        work = "--quick"
    return f"python benchmarks/merger_population.py {rows} --threads {options.threads} {work}"


def _curves(options: argparse.Namespace, ours: list[Outcome], peers: list[Outcome]) -> list[dict[str, Any]]:
    def at(outcomes: list[Outcome], seconds: float) -> float | None:
        loss = statistics.median(o.best_by(seconds) for o in outcomes)
        return loss if math.isfinite(loss) else None

    rows = []
    for share in MOMENTS:
        # The last validation ends just after the budget.
        seconds = math.inf if share == 1 else 60 * options.minutes * share
        shown = f"{60 * options.minutes * share:.0f}"
        rows.append({"seconds": shown, FLUVIAL: at(ours, seconds), PEER: at(peers, seconds)})
    return rows


def main() -> None:
    """Read the options, compare, write what was asked for, and print the page."""
    options = _options()
    host = machine(options.threads)
    packages = versions(["fluvial", "torch", "numpy"])
    with tempfile.TemporaryDirectory() as folder:
        data, name = options.data, options.data and Path(options.data).stem
        if data is None:
            data, name = str(Path(folder) / "simulated.parquet"), "simulated mergers"
            simulator.write(data, options.rows, seed=1)
        counts = ", ".join(f"{len(getattr(_split(data), part)):,} {part}" for part in SHARES)
        about = f"{Path(data).name} ({counts} rows; SHA-256 {fingerprint(data)['sha256'][:12]}…)"
        truth = None if options.data else _part(data, "test", ["log_density"])["log_density"]
        ours, peers, trials = compete(options, data)
    rows = result_rows(name, ours, peers, truth)
    tried = [
        {
            "batch size": f"{t.job.batch_size:,}",
            "epochs": t.epochs,
            "best validation NLL": t.best,
            "test NLL": t.test_nll,
        }
        for t in trials
    ]
    text = page(options, about, rows, _curves(options, ours, peers), tried, where_and_when(host, packages))
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        curves = [
            {"who": o.job.who, "seed": o.job.seed, "batch_size": o.job.batch_size or None, "curve": o.curve}
            for o in [*ours, *trials, *peers[1:]]
        ]
        write_json(options.json, rows, machine=host, versions=packages, curves=curves)
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", help="Parquet table with Mass_0, Mass_1, Z, alpha; simulated if left out")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to simulate (default: 100,000)")
    parser.add_argument("--minutes", type=float, default=3.0, help="wall time of each fit (default: 3)")
    parser.add_argument("--seeds", type=int, default=3, help="fits of each contender (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each fit (default: 2)")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[100, 1000, 4000], help="tried for the MAF"
    )
    parser.add_argument("--quick", action="store_true", help="one seed, one batch size, 20 s a fit")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--markdown", type=Path, help="write the page there")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.seeds, options.batch_sizes = 20 / 60, 1, [1000]
        options.rows = min(options.rows, 20_000)
    return options


if __name__ == "__main__":
    main()
