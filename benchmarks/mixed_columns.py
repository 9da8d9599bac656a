r"""Atoms and integers: exact levels against plain smearing, on a simulation whose density is known.

A toy of reconstructed objects, p(tagger, isolation, ratio, jets | energy, phi):

- ``tagger`` is exactly −1 where it failed, else in (0, 1) with two peaks;
- ``isolation`` is exactly 0 or positive;
- ``ratio`` is positive and saturates: all from 7 on is 7;
- ``jets`` is a whole number from 0 to 6.

Every probability depends on the context (``phi`` is an angle) and on the columns before. The same rows, flow and epochs
serve two studies: one *declares* atoms and integers, the other is *smeared* as is often done by hand: an atom becomes a
narrow box beside the continuous part, an integer gets ±1/2 of uniform noise, and draws are cut and rounded back.

KL(truth‖fit) is the mean of log p(truth) − log p(fit) over the test rows, in nats; for the smeared rows the truth is
smeared too, so that both are exact. Probabilities of levels are compared with the true ones in quarters of energy; sigma
is the spread that a frequency has in as many rows as there were to train on. ``--quick`` takes about a minute.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, markdown_table, versions, where_and_when, write_json

import fluvial
from fluvial import check as checks
from fluvial.data.readers import write_table
from fluvial.data.stream import split_rows

TARGETS, CONTEXT = ["tagger", "isolation", "ratio", "jets"], ["energy", "phi"]
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
#: The levels whose probabilities are compared.
LEVELS = {"tagger": [-1.0], "isolation": [0.0], "ratio": [7.0], "jets": [float(k) for k in range(7)]}
DECLARED = {
    "tagger": {"support": [0, 1], "atoms": [-1.0]},
    "isolation": {"support": "positive", "atoms": [0.0]},
    "ratio": {"support": "positive", "saturate": {"above": 7.0}},
    "jets": {"kind": "integer"},
    "phi": {"period": "pi"},
}
#: Boxes into which smearing spreads an atom, beside the continuous part.
BOXES = {"tagger": (-1.05, -0.95), "isolation": (-0.1, 0.0), "ratio": (7.0, 7.2)}
TRUTH_DRAWS = 200


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _beta(x: np.ndarray, a: float, b: float) -> np.ndarray:
    return np.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + (a - 1) * np.log(x) + (b - 1) * np.log1p(-x)
    )


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return torch.special.ndtr(torch.from_numpy(x)).numpy()


@dataclass(frozen=True)
class Chances:
    """The true probabilities and parameters at contexts and at the columns before: arrays of one shape."""

    energy: np.ndarray
    phi: np.ndarray

    def failed(self) -> np.ndarray:
        """P(tagger = −1)."""
        return _sigmoid(-1.2 + 1.4 * self.energy + 0.6 * np.cos(self.phi))

    def peak(self) -> np.ndarray:
        """Weight of the upper peak of the tagger."""
        return _sigmoid(2 * self.energy - 1 + 0.7 * np.cos(self.phi))

    def isolated(self, failed: np.ndarray) -> np.ndarray:
        """P(isolation = 0)."""
        return _sigmoid(0.6 - 1.5 * self.energy + 0.8 * failed)

    def scale(self) -> np.ndarray:
        """Mean of a positive isolation."""
        return 0.15 + 0.35 * self.energy

    def location(self, tagger: np.ndarray) -> np.ndarray:
        """Mean of log ratio; its standard deviation is 0.7."""
        shift = np.where(tagger < 0, -0.2, 0.4 * (tagger - 0.5))
        return 0.7 + 0.5 * self.energy + 0.2 * np.sin(self.phi) + shift

    def saturated(self, tagger: np.ndarray) -> np.ndarray:
        """P(ratio = 7)."""
        return 1 - _normal_cdf((math.log(7) - self.location(tagger)) / 0.7)

    def jets(self, failed: np.ndarray) -> np.ndarray:
        """P(jets = 0 … 6), along a new last axis."""
        rate = (0.8 + 2.2 * self.energy + 0.6 * failed)[..., None]
        k = np.arange(7)
        weight = rate**k / np.array([math.factorial(i) for i in k])
        return weight / weight.sum(-1, keepdims=True)


def simulate(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Return rows of context and targets, and ``log_density``: the exact log p, against the mixed measure."""
    rng = np.random.default_rng(seed)
    energy, phi = rng.random(rows), rng.uniform(-math.pi, math.pi, rows)
    table = {"energy": energy, "phi": phi, **draw_targets(Chances(energy, phi), rng)}
    return table | {"log_density": log_density(table)}


def draw_targets(chances: Chances, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw the four targets at every context."""
    shape = chances.energy.shape
    failed = rng.random(shape) < chances.failed()
    upper = rng.random(shape) < chances.peak()
    smooth = np.where(upper, rng.beta(12, 1.6, shape), rng.beta(1.3, 8, shape))
    tagger = np.where(failed, -1.0, np.clip(smooth, 1e-12, 1 - 1e-12))
    zero = rng.random(shape) < chances.isolated(failed)
    isolation = np.where(zero, 0.0, rng.exponential(chances.scale()))
    ratio = np.minimum(np.exp(chances.location(tagger) + 0.7 * rng.normal(size=shape)), 7.0)
    jets = (rng.random((*shape, 1)) > chances.jets(failed).cumsum(-1)).sum(-1).clip(0, 6).astype(float)
    return {"tagger": tagger, "isolation": isolation, "ratio": ratio, "jets": jets}


def log_density(table: dict[str, np.ndarray]) -> np.ndarray:
    """Return the exact log p(targets | context): probabilities at levels, densities elsewhere."""
    chances = Chances(table["energy"], table["phi"])
    tagger, isolation, ratio = table["tagger"], table["isolation"], table["ratio"]
    failed = tagger == -1
    x, w = np.where(failed, 0.5, tagger), chances.peak()
    p_failed, p_zero = chances.failed(), chances.isolated(failed)
    smooth = (1 - p_failed) * (w * _beta(x, 12, 1.6) + (1 - w) * _beta(x, 1.3, 8))
    out = np.log(np.where(failed, p_failed, smooth))
    scale = chances.scale()
    out += np.log(np.where(isolation == 0, p_zero, (1 - p_zero) * np.exp(-isolation / scale) / scale))
    t = (np.log(ratio) - chances.location(tagger)) / 0.7
    free = np.exp(-0.5 * t**2) / (0.7 * ratio * math.sqrt(2 * math.pi))
    out += np.log(np.where(ratio >= 7, chances.saturated(tagger), free))
    chosen = np.take_along_axis(chances.jets(failed), table["jets"].astype(int)[:, None], -1)[:, 0]
    return out + np.log(chosen)


def smear(table: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Return the rows with atoms spread over their boxes and integers over ±1/2; the truth is smeared along."""
    rng = np.random.default_rng(seed)
    out = dict(table)
    rows = len(table["jets"])
    for name, (low, high) in BOXES.items():
        at = table[name] == LEVELS[name][0]
        out[name] = np.where(at, rng.uniform(low, high, rows), table[name])
        out["log_density"] = out["log_density"] - np.where(at, math.log(high - low), 0.0)
    out["jets"] = table["jets"] + rng.uniform(-0.5, 0.5, rows)
    return out


def unsmear(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cut and round draws of the smeared density back: what falls nearer to an atom's box is the atom."""
    return {
        "tagger": np.where(draws["tagger"] < -0.5, -1.0, draws["tagger"]),
        "isolation": np.maximum(draws["isolation"], 0.0),
        "ratio": np.minimum(draws["ratio"], 7.0),
        "jets": np.round(draws["jets"]) + 0.0,
    }


def forbidden(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return, for each target, which draws are where the truth never is."""
    tagger, ratio, jets = draws["tagger"], draws["ratio"], draws["jets"]
    return {
        "tagger": ~((tagger == -1) | ((tagger > 0) & (tagger < 1))),
        "isolation": ~(draws["isolation"] >= 0),
        "ratio": ~((ratio > 0) & (ratio <= 7)),
        "jets": ~np.isin(jets, LEVELS["jets"]),
    }


def true_probabilities(context: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return P(level | context), ``[rows, levels]`` for each target, averaged over draws of the columns before it."""
    chances = Chances(*(np.repeat(context[n][:, None], TRUTH_DRAWS, 1) for n in CONTEXT))
    drawn = draw_targets(chances, rng)
    failed = drawn["tagger"] == -1
    once = Chances(context["energy"], context["phi"])
    return {
        "tagger": once.failed()[:, None],
        "isolation": chances.isolated(failed).mean(1)[:, None],
        "ratio": chances.saturated(drawn["tagger"]).mean(1)[:, None],
        "jets": chances.jets(failed).mean(1),
    }


def compare_levels(
    draws: dict[str, np.ndarray],
    context: dict[str, np.ndarray],
    trained_on: np.ndarray,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return one row for each level and quarter of energy: its true and estimated probability, and sigma.

    ``trained_on``: the energies of the training rows; ``draws``: ``[rows, S]`` at the rows of ``context``.
    """
    truth = true_probabilities(context, rng)
    quarter = np.minimum((4 * context["energy"]).astype(int), 3)
    trained = np.bincount(np.minimum((4 * trained_on).astype(int), 3), minlength=4)
    rows = []
    for name, levels in LEVELS.items():
        for k, level in enumerate(levels):
            for q in range(4):
                at = quarter == q
                p = truth[name][at, k]
                found = float((draws[name][at] == level).mean())
                spread = float((p * (1 - p)).mean())
                sigma = math.sqrt(spread / trained[q] + spread / draws[name][at].size)
                rows.append(
                    {
                        "column": name,
                        "value": level,
                        "energy": f"{q / 4:g} to {(q + 1) / 4:g}",
                        "truth": float(p.mean()),
                        "estimate": found,
                        "deviation": (found - float(p.mean())) / sigma,
                    }
                )
    return rows


@dataclass(frozen=True)
class Outcome:
    """What one way of treating the columns comes to."""

    who: str
    kl: checks.CheckResult
    seconds: float
    weights: int
    draws: int
    forbidden: dict[str, int]
    levels: list[dict[str, Any]]

    @property
    def worst(self) -> dict[str, Any]:
        """The level and quarter furthest from the truth, in sigma."""
        return max(self.levels, key=lambda row: abs(row["deviation"]))


def study(source: Path, columns: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Return the study of one contender; they differ in [columns] alone."""
    return {
        "data": {
            "source": str(source), "targets": TARGETS, "context": CONTEXT, "split": SHARES, "seed": 1,
            "outside": "drop",
        },
        "columns": columns,
        "flow": {"architecture": "autoregressive-spline"},
        "training": {"epochs": epochs, "seed": 1},
    }  # fmt: skip


def contend(who: str, table: dict[str, np.ndarray], options: argparse.Namespace, folder: Path) -> Outcome:
    """Fit the rows one way, and compare the fit with the truth."""
    declared = who == "declared"
    columns = DECLARED if declared else {"phi": DECLARED["phi"]}
    rows = table if declared else smear(table, seed=2)
    write_table(folder / f"{who}.parquet", rows)
    began = time.perf_counter()
    density = fluvial.fit(
        study(folder / f"{who}.parquet", columns, options.epochs), runs=folder / "runs", name=who, check=False
    )
    seconds = time.perf_counter() - began
    split = split_rows(len(table["jets"]), SHARES, 1)
    test = {name: values[split.test] for name, values in rows.items()}
    kl = checks.kl_divergence(test["log_density"], density.log_prob(test), threshold=0.02)

    contexts = {n: test[n][: options.contexts] for n in CONTEXT}
    drawn = density.given(contexts).sample(options.draws, seed=0)
    draws = {n: drawn[n] for n in TARGETS}
    if not declared:
        draws = unsmear(draws)
    where = forbidden(draws)
    rng = np.random.default_rng(5)
    return Outcome(
        who,
        kl,
        seconds,
        sum(p.numel() for p in density.flow.parameters()),
        draws["jets"].size,
        {n: int(bad.sum()) for n, bad in where.items()},
        compare_levels(draws, contexts, table["energy"][split.train], rng),
    )


def result_rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Return the rows of the JSON."""
    rows = []
    for o in outcomes:
        worst = o.worst
        values = [
            ("KL(truth‖fit)", o.kl.statistic, "nats"),
            ("KL(truth‖fit), standard error", o.kl.uncertainty, "nats"),
            ("draws where the truth never is", 100 * sum(o.forbidden.values()) / o.draws, "%"),
            (
                "largest error of a level's probability",
                max(abs(r["estimate"] - r["truth"]) for r in o.levels),
                "1",
            ),
            ("largest deviation of a level's probability", abs(worst["deviation"]), "sigma"),
            (
                "levels beyond 3 sigma",
                sum(abs(r["deviation"]) > 3 for r in o.levels),
                f"of {len(o.levels)}",
            ),
            ("fit", o.seconds, "s"),
        ]
        rows += [{"work": "mixed", "op": op, "who": o.who, "value": v, "unit": u} for op, v, u in values]
    return rows


def page(options: argparse.Namespace, outcomes: list[Outcome], rows: list[dict[str, Any]], where: str) -> str:
    """Return the Markdown page."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        line = table.setdefault((row["op"], row["unit"]), {" ": row["op"]})
        line[row["who"]] = f"{row['value']:.3g}"
    lines = [{**values, "unit": unit} for (_, unit), values in table.items()]
    lost = [{" ": o.who, "draws": f"{o.draws:,}", **o.forbidden} for o in outcomes]
    declared = outcomes[0]
    levels = [
        {
            "column": row["column"],
            "value": f"{row['value']:g}",
            "energy": row["energy"],
            "truth": f"{row['truth']:.4f}",
            **{
                o.who: f"{r['estimate']:.4f} ({r['deviation']:+.1f})"
                for o, r in zip(outcomes, pair, strict=True)
            },
        }
        for row, *pair in zip(declared.levels, *(o.levels for o in outcomes), strict=True)
    ]
    text = (__doc__ or "").split("\n\n", 1)[1].replace(" ``--quick`` takes about a minute.", "").strip()
    work = "--quick" if options.quick else f"--rows {options.rows} --epochs {options.epochs}"
    command = f"python benchmarks/mixed_columns.py {work}"
    return "\n".join(
        [
            "# Atoms and integers: declared against smeared",
            "",
            "<!-- Written by benchmarks/mixed_columns.py; do not edit. -->",
            "",
            text.replace("``", "`"),
            "",
            f"{options.rows:,} rows ({SHARES['train']:.0%} to train on), {options.epochs} epochs, "
            f"autoregressive-spline with its defaults; {options.draws} draws at each of "
            f"{options.contexts:,} test contexts.",
            "",
            markdown_table(lines),
            "",
            "## Draws where the truth never is",
            "",
            "Between an atom and its neighbours, beyond the ends, or off the whole numbers; of the smeared density "
            "after cutting and rounding.",
            "",
            markdown_table(lost),
            "",
            "## Probabilities of the levels",
            "",
            "In brackets the deviation from the truth in sigma.",
            "",
            markdown_table(levels),
            "",
            where,
            "",
            f"Made with `{command}`.",
            "",
        ]
    )


def main() -> None:
    """Read the options, compare, write what was asked for, and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=100_000, help="rows to simulate (default: 100,000)")
    parser.add_argument("--epochs", type=int, default=15, help="of each fit (default: 15)")
    parser.add_argument(
        "--contexts", type=int, default=5000, help="test contexts to draw at (default: 5,000)"
    )
    parser.add_argument("--draws", type=int, default=100, help="draws at each (default: 100)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    parser.add_argument("--quick", action="store_true", help="20,000 rows, 12 epochs")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--markdown", type=Path, help="write the page there")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.epochs, options.contexts = 20_000, 12, 2000
    torch.set_num_threads(options.threads)
    host, packages = machine(options.threads), versions(["fluvial", "torch", "numpy"])
    with tempfile.TemporaryDirectory() as folder:
        table = simulate(options.rows, seed=1)
        outcomes = [contend(who, table, options, Path(folder)) for who in ("declared", "smeared")]
    rows = result_rows(outcomes)
    text = page(options, outcomes, rows, where_and_when(host, packages))
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        levels = [{"who": o.who, **row} for o in outcomes for row in o.levels]
        write_json(options.json, rows, machine=host, versions=packages, levels=levels)
    print(text)


if __name__ == "__main__":
    main()
