r"""Stars: labels from simulated GALAH-like spectra, and from real ones of the MILES library.

``python benchmarks/stars.py --folder DIR`` simulates 8,914 stars and works through ``studies/stars.toml``
on them. Parts, by ``--parts``:

============ ======================================================================================================
heads        the same study with only the head's name changed: test NLL, training time, R², pulls, coverage, slope
             of the residuals; the full flow also on 6,000 stars of another survey, where chance is smaller
encoders     ``components`` and ``spectrum`` against ``tiny-cnn`` and ``cnn``: spectra per second in training; test
             NLL after the same minutes
summaries    10,000 spectra with 1,000 draws each: a catalogue, against the way of the original, which runs the
             encoder once for every draw
miles        5-fold cross-validation on real stars (``--data FILE``, an npz of the MILES library)
============ ======================================================================================================

(jammy_flows, on which the original is built, is not on the package registry, so it is not among the contenders.)

Runs that lie in ``DIR/runs`` are loaded; ``--retrain`` fits them again. What a part found is kept in ``DIR/parts``, and
the page is made of all that is there: so a long benchmark can be run piece by piece. ``--only`` fits some heads or
encoders and leaves the rest for later. ``--quick`` takes about a minute, on fewer stars.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from common import machine, markdown_table, versions, where_and_when, write_json

import fluvial
from fluvial.apps.stars import simulator
from fluvial.apps.stars.catalogue import catalogue
from fluvial.apps.stars.evaluate import Evaluation, evaluate
from fluvial.apps.stars.observed import load_miles
from fluvial.density import Density
from fluvial.workflow.rows import rows_of_run

HERE = Path(__file__).resolve().parent
STUDY = HERE.parent / "studies" / "stars.toml"
HEADS = ("point", "diagonal-gaussian", "full-gaussian", "gaussianization", "coupling-spline")
FULL_FLOW = "gaussianization"
LABELS = ("t_eff", "log_g", "fe_h")
ENCODERS = ("components", "spectrum", "tiny-cnn", "cnn")
PARTS = ("heads", "encoders", "summaries", "miles")


@dataclass
class Bench:
    """What all parts share: options, rows of results, tables for the page."""

    options: argparse.Namespace
    rows: list[dict[str, Any]]
    text: list[str]

    @property
    def stars(self) -> Path:
        return self.options.folder / "stars"

    def add(self, work: str, op: str, who: str, value: float, unit: str, **more: Any) -> None:
        self.rows.append({"work": work, "op": op, "who": who, "value": float(value), "unit": unit, **more})

    def chosen(self, names: Sequence[str], prefix: str = "") -> list[str]:
        """Return those names whose run is there, or is to be fitted now."""
        only, runs = self.options.only, self.options.folder / "runs"
        return [
            n for n in names if not only or n in only or (runs / f"{prefix}{n}" / "density.json").exists()
        ]

    def fit(self, name: str, changes: dict[str, dict[str, Any]]) -> tuple[Density, dict[str, Any]]:
        """Fit the study with some keys changed, or load the run of that name; return it with its record."""
        run = self.options.folder / "runs" / name
        if run.exists() and self.options.retrain:
            shutil.rmtree(run)
        if not (run / "density.json").exists():
            study = tomllib.loads(self.options.study.read_text(encoding="utf-8"))
            study["data"]["source"] = str(self.stars.resolve())
            for section, values in changes.items():
                kept = {} if section in ("encoder", "flow") else study.get(section, {})
                study[section] = {key: value for key, value in (kept | values).items() if value is not None}
            if self.options.quick:
                study["training"] = study.get("training", {}) | {"epochs": 3}
                study["training"].pop("minutes", None)
            path = self.options.folder / f"{name}.toml"
            path.write_text(tomli_w.dumps(study), encoding="utf-8")
            print(f"fitting {name} …", flush=True)
            fluvial.fit(path, runs=self.options.folder / "runs", name=name, check=False)
        density = fluvial.load(run)
        return density, json.loads((run / "record.json").read_text(encoding="utf-8"))


def unseen(run: Path, most: int | None = None) -> dict[str, np.ndarray]:
    _, _, rows = rows_of_run(run)
    return rows.take(rows.split.test[:most])


def score(bench: Bench, work: str, who: str, found: Evaluation) -> dict[str, Any]:
    """Add all figures of an evaluation; return the row of the table."""
    nll, error = found.nll
    bench.add(work, "test NLL", who, nll, "nats", error=error, stars=len(found.truth))
    line: dict[str, Any] = {"head": who, "test NLL": f"{nll:.3f} ± {error:.3f}"}
    for j, label in enumerate(LABELS):
        pull, wide, steep = (
            [v[j] for v in pair] for pair in (found.pull_mean, found.pull_width, found.slope)
        )
        bench.add(work, f"R2 {label}", who, found.r_squared[j], "1")
        bench.add(work, f"rms {label}", who, found.rms[j], "K" if label == "t_eff" else "dex")
        bench.add(work, f"pull mean {label}", who, pull[0], "1", error=pull[1])
        bench.add(work, f"pull width {label}", who, wide[0], "1", error=wide[1])
        bench.add(work, f"slope {label}", who, steep[0], "1", error=steep[1])
        for level in (0.68, 0.95):
            held, sigma = (v[j] for v in found.coverage(level))
            bench.add(work, f"coverage {level:g} {label}", who, held, "1", error=sigma)
    for level in (0.68, 0.95):
        held, sigma = found.joint_coverage(level)
        bench.add(work, f"joint coverage {level:g}", who, held, "1", error=sigma)
    each = lambda values, form: " / ".join(format(v, form) for v in values)  # noqa: E731
    line |= {
        "R²": each(found.r_squared, ".4f"),
        "pull mean": each(found.pull_mean[0], "+.3f"),
        "pull width": each(found.pull_width[0], ".3f"),
        "68 %": each(found.coverage(0.68)[0], ".3f"),
        "95 %": each(found.coverage(0.95)[0], ".3f"),
        "slope": each(found.slope[0], "+.3f"),
    }
    return line


def heads(bench: Bench) -> None:
    """Only the head's name changes."""
    lines, seconds, per_star = [], {}, {}
    names = bench.chosen(HEADS[1:4] if bench.options.quick else HEADS)
    for name in names:
        density, record = bench.fit(name, {"flow": {"architecture": name}})
        run = bench.options.folder / "runs" / name
        found = evaluate(density, unseen(run), draws=200 if bench.options.quick else 1000)
        seconds[name], per_star[name] = record["timings"]["training"], found.log_prob
        line = score(bench, "heads", name, found)
        bench.add("heads", "training", name, seconds[name], "s", epochs=record["training"]["epochs"])
        lines.append({**line, "joint 68 / 95 %": joint(found), "training [s]": round(seconds[name], 1)})
    bench.text += ["## Heads: the same study, one word changed", "", markdown_table(lines), ""]
    if not {FULL_FLOW, "full-gaussian", "diagonal-gaussian"} <= set(names):
        return
    ratio = seconds[FULL_FLOW] / seconds["diagonal-gaussian"]
    bench.add("heads", "training time over diagonal", FULL_FLOW, ratio, "1")
    bench.text.append(f"Training time of {FULL_FLOW} over that of diagonal-gaussian: {ratio:.2f}.")
    for better, worse in ((FULL_FLOW, "full-gaussian"), ("full-gaussian", "diagonal-gaussian")):
        gain = per_star[better] - per_star[worse]
        value, error = float(gain.mean()), float(gain.std() / len(gain) ** 0.5)
        bench.add("heads", f"gain over {worse}", better, value, "nats", error=error)
        bench.text.append(f"Gain of {better} over {worse}, star by star: {value:+.4f} ± {error:.4f} nats.")
    bench.text.append("")
    fresh(bench)


def fresh(bench: Bench) -> None:
    """The full flow on another survey: the same sky and spectrograph, other stars."""
    density, _ = bench.fit(FULL_FLOW, {"flow": {"architecture": FULL_FLOW}})
    survey = simulator.simulate(300 if bench.options.quick else 6000, seed=3)
    columns = zip(simulator.LABELS, survey.labels.T, strict=True)
    table = {"spectra": survey.flux, **{name: values for name, values in columns if name in LABELS}}
    found = evaluate(density, table, draws=200 if bench.options.quick else 1000)
    line = score(bench, "another survey", FULL_FLOW, found)
    bench.text += [
        f"### {FULL_FLOW} on {len(found.truth):,} stars of another survey",
        "",
        markdown_table([{**line, "joint 68 / 95 %": joint(found)}]),
        "",
        "Its errors are about half of those on the test stars above.",
        "",
    ]


def joint(found: Evaluation) -> str:
    return " / ".join(f"{found.joint_coverage(level)[0]:.3f}" for level in (0.68, 0.95))


def encoders(bench: Bench) -> None:
    """Spectra per second in training, and the NLL after the same minutes."""
    lines = []
    names = bench.chosen(ENCODERS[:3] if bench.options.quick else ENCODERS, "encoder-")
    budget = {
        "minutes": 0.15 if bench.options.quick else bench.options.minutes,
        "epochs": None,
        "learning_rate": "auto",
        "weight_decay": 0.01,
    }
    paces = {}
    for name in names:
        density, record = bench.fit(
            f"encoder-{name}",
            {
                "encoder": {"architecture": name},
                "flow": {"architecture": "full-gaussian"},
                "training": budget,
            },
        )
        run = bench.options.folder / "runs" / f"encoder-{name}"
        found = evaluate(density, unseen(run), draws=100)
        pace = paces[name] = record["training"]["rows_per_second"]
        nll, error = found.nll
        bench.add("encoders", "training", name, pace, "spectra/s")
        bench.add("encoders", "test NLL", name, nll, "nats", error=error)
        lines.append({
            "encoder": name,
            "trained weights": sum(p.numel() for p in density.flow.parameters()),
            "spectra/s in training": round(pace, 1),
            "epochs": record["training"]["epochs"],
            "best epoch": record["training"]["best_epoch"],
            "test NLL": f"{nll:.3f} ± {error:.3f}",
        })  # fmt: skip
    bench.text += ["## Encoders: the same minutes", "", markdown_table(lines), ""]
    for name in [n for n in ENCODERS[:2] if {n, "tiny-cnn"} <= paces.keys()]:
        ratio = paces[name] / paces["tiny-cnn"]
        bench.add("encoders", "pace over tiny-cnn", name, ratio, "1")
        bench.text += [f"Pace of {name} over tiny-cnn: {ratio:.1f}.", ""]


def summaries(bench: Bench) -> None:
    """A catalogue of 10,000 stars, and the original's way on a few of them."""
    density, _ = bench.fit(FULL_FLOW, {"flow": {"architecture": FULL_FLOW}})
    number, draws = (500, 200) if bench.options.quick else (10_000, 1000)
    folder = bench.options.folder / "many"
    if not (folder / "spectra.npy").exists():
        simulator.write(folder, number, seed=2)
    done = catalogue(density, folder, bench.options.folder / "catalogue.parquet", draws=draws)
    ours = done.rows / done.seconds
    few = 2 if bench.options.quick else 5
    spectra = torch.from_numpy(np.array(np.load(folder / "spectra.npy", mmap_mode="r")[:few]))
    began = time.perf_counter()
    with torch.no_grad():
        for one in spectra:
            # once for every draw: encoder and all
            drawn = density.flow(one.repeat(draws, 1)).sample().numpy()
            values = density.target_transforms.inverse(drawn.astype(np.float64))
            _ = (
                values.mean(0),
                values.std(0),
                np.cov(values.T),
                np.quantile(values, [0.16, 0.5, 0.84], axis=0),
            )
    theirs = few / (time.perf_counter() - began)
    bench.add("summaries", f"{draws} draws", "fluvial", ours, "spectra/s", spectra=number)
    bench.add("summaries", f"{draws} draws", "encoder once a draw", theirs, "spectra/s", spectra=few)
    bench.text += [
        f"## Summaries: {draws:,} draws for each of {number:,} spectra",
        "",
        markdown_table([
            {"way": "fluvial stars catalogue, reading and writing included", "spectra/s": ours},
            {"way": f"encoder once for every draw ({few} stars)", "spectra/s": theirs},
        ]),
        "",
    ]  # fmt: skip


def miles(bench: Bench) -> None:
    """Real spectra: five folds, each star predicted by a density that has not seen it."""
    if bench.options.data is None:
        print("miles: left out; give the library with --data FILE.npz")
        return
    library = load_miles(bench.options.data)
    flux = library.flux.astype(np.float32)
    flux = np.where(np.isfinite(flux), flux, 1.0).astype(np.float32)
    labels = {name: np.asarray(library.labels[name], dtype=np.float64) for name in LABELS}
    fold = np.random.default_rng(0).permutation(len(flux)) % 5
    parts: list[Evaluation] = []
    for k in range(1 if bench.options.quick else 5):
        folder = bench.options.folder / f"miles-{k}"
        folder.mkdir(exist_ok=True)
        np.save(folder / "spectra.npy", flux[fold != k])
        for name, values in labels.items():
            np.save(folder / f"{name}.npy", values[fold != k])
        run = _fit_miles(bench, folder, k)
        held = {"spectra": flux[fold == k], **{name: values[fold == k] for name, values in labels.items()}}
        parts.append(evaluate(fluvial.load(run), held, draws=200 if bench.options.quick else 1000))
    names = ("truth", "mean", "std", "pulls", "pit", "hpd", "log_prob")
    found = Evaluation(
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in names}, seconds=0.0
    )
    line = score(bench, "miles", FULL_FLOW, found)
    residual = found.mean - found.truth
    rng = np.random.default_rng(1)
    picks = rng.integers(0, len(residual), (1000, len(residual)))
    errors = np.sqrt(np.mean(residual[picks] ** 2, axis=1)).std(axis=0)
    rows = []
    for j, name in enumerate(LABELS):
        middle = np.quantile(np.abs(residual[:, j]), 0.68)
        wide, wide_error = (v[j] for v in found.pull_width)
        bench.add("miles", f"middle 68 % {name}", FULL_FLOW, middle, "K" if name == "t_eff" else "dex")
        rows.append({
            "label": name,
            "rms": f"{found.rms[j]:.3g} ± {errors[j]:.2g}",
            "68 % of residuals within": f"{middle:.3g}",
            "pull width": f"{wide:.2f} ± {wide_error:.2f}",
            "68 % coverage": f"{found.coverage(0.68)[0][j]:.3f} ± {found.coverage(0.68)[1][j]:.3f}",
            "95 % coverage": f"{found.coverage(0.95)[0][j]:.3f} ± {found.coverage(0.95)[1][j]:.3f}",
            "R²": f"{found.r_squared[j]:.3f}",
        })  # fmt: skip
    bench.text += [
        f"## MILES: {len(residual)} real stars, {len(parts)} of 5 folds",
        "",
        markdown_table(rows),
        "",
        f"Test NLL {line['test NLL']}.",
        "",
    ]


def _fit_miles(bench: Bench, folder: Path, k: int) -> Path:
    """A study for a few hundred stars: a small flow, an ensemble, the best epoch of each member."""
    run = bench.options.folder / "runs" / f"miles-{k}"
    if run.exists() and bench.options.retrain:
        shutil.rmtree(run)
    if (run / "density.json").exists():
        return run
    study = {
        "data": {
            "source": str(folder.resolve()),
            "targets": list(LABELS),
            "context": ["spectra"],
            "split": {"train": 0.82, "validation": 0.15, "test": 0.03},
            "seed": 1,
        },
        "columns": {"spectra": {"transform": "standardise-pixels"}},
        "encoder": {"architecture": "components"},
        "flow": {"architecture": FULL_FLOW, "width": 64, "layers": 1, "kernels": 5},
        "training": {
            "epochs": 10 if bench.options.quick else 40,
            "batch_size": 32,
            "learning_rate": 3e-3,
            "weight_decay": 0.3,
            "ema": 0.99,
            "ensemble": 1 if bench.options.quick else 3,
        },
    }
    path = bench.options.folder / f"miles-{k}.toml"
    path.write_text(tomli_w.dumps(study), encoding="utf-8")
    print(f"fitting miles, fold {k} …", flush=True)
    fluvial.fit(path, runs=bench.options.folder / "runs", name=f"miles-{k}", check=False)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("bench-stars"), help="where data and runs are kept"
    )
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=PARTS,
        default=list(PARTS),
        help="none: only write the page of what is kept",
    )
    parser.add_argument("--only", nargs="+", default=[], help="heads or encoders to fit now, by name")
    parser.add_argument(
        "--study", type=Path, default=STUDY, help="the study whose head and encoder are changed"
    )
    parser.add_argument("--rows", type=int, default=8914)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each encoder")
    parser.add_argument("--data", type=Path, help="the MILES library: an npz file")
    parser.add_argument("--retrain", action="store_true", help="fit runs again that are there")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.rows, options.folder = 700, options.folder / "quick"
    options.folder.mkdir(parents=True, exist_ok=True)
    where, packages = machine(torch.get_num_threads()), versions(["fluvial", "torch", "numpy"])
    stars = Bench(options, [], []).stars
    if not (stars / "spectra.npy").exists():
        simulator.write(stars, options.rows, seed=1)
    kept = options.folder / "parts"
    kept.mkdir(exist_ok=True)
    work: dict[str, Callable[[Bench], None]] = {
        "heads": heads, "encoders": encoders, "summaries": summaries, "miles": miles,
    }  # fmt: skip
    for part in options.parts:
        bench = Bench(options, [], [])
        work[part](bench)
        if not bench.rows:
            continue
        text = "\n".join(bench.text)
        print(text)
        found = {"rows": bench.rows, "text": text, "made": where_and_when(where, packages)}
        (kept / f"{part}.json").write_text(json.dumps(found), encoding="utf-8")
    parts = [
        json.loads(path.read_text(encoding="utf-8")) for p in PARTS if (path := kept / f"{p}.json").exists()
    ]
    if options.json:
        write_json(options.json, [row for p in parts for row in p["rows"]], machine=where, versions=packages)
    if options.markdown:
        about = (__doc__ or "").strip()
        page = [
            "# Stars",
            "",
            "Made by `benchmarks/stars.py`, part by part.",
            "",
            "```text",
            about,
            "```",
            "",
        ]
        page += [line for p in parts for line in (p["text"], p["made"], "")]
        options.markdown.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
