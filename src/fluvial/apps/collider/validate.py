"""``fluvial collider validate``: a density against pairs that it has not seen, as results, figures and a page."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import fluvial
from fluvial import check
from fluvial.apps.collider import figures
from fluvial.apps.collider.validation import Comparison, compare
from fluvial.check import CheckResult
from fluvial.conditional import ExtrapolationWarning
from fluvial.errors import DataError
from fluvial.files import write_atomically
from fluvial.report import page, style

if TYPE_CHECKING:
    from fluvial.density import Density

KL_COLUMN = "log_density"
"""A column of simulated pairs: the exact ln p(targets | context)."""

_CLASSIFIER_ROWS = 20_000


@dataclass(frozen=True)
class Validation:
    """What :func:`validate` found: comparisons and results of every process, and the page that shows them."""

    comparisons: list[Comparison]
    results: list[CheckResult]
    page: Path


def validate(
    density: Density,
    tables: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    rows: int = 100_000,
    seed: int = 0,
) -> Validation:
    """Compare fast simulation with full simulation, process by process, and write figures and a page.

    Parameters
    ----------
    density
        Of jets or muons.
    tables
        Tables of pairs (``fluvial collider extract``, or simulated) that it was not trained on, one a process; the name
        of a file is that of its process.
    out
        A folder, made if needed: ``validation.html``, ``results.json``, and a PNG a figure.
    rows
        So many rows of each table are used, from its beginning.
    seed
        Of the draws, one for each row.

    Raises
    ------
    DataError
        If a column is missing, two tables bear one name, or a table has fewer than 400 rows.
    """
    paths = [Path(t) for t in tables]
    names = [p.stem for p in paths]
    if not paths or len(set(names)) < len(names):
        raise DataError(
            f"expected tables of pairs, each of a name of its own; got {', '.join(names) or 'none'}"
        )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    comparisons, sections, results = [], [], []
    for path, name in zip(paths, names, strict=True):
        comparison, more = _compared(density, path, name, rows, seed, f"{name}: " if len(paths) > 1 else "")
        comparisons.append(comparison)
        results += [*more, *comparison.results]
        sections.append(_section(comparison, folder, _beyond(density, comparison)))
    content = page.ReportContent(
        title="Fast against full simulation",
        verdict_sentence=page.verdict_sentence(results),
        headline=_headline(results),
        results=results,
        sections=sections,
        facts=[
            ("Density", repr(density)),
            ("Run", str(density.folder or "")),
            *(
                (f"Pairs of {c.process}", f"{c.rows:,} of {p}")
                for c, p in zip(comparisons, paths, strict=True)
            ),
            ("fluvial", fluvial.__version__),
        ],
    )
    html = folder / "validation.html"
    write_atomically(html, page.render(content).encode())
    write_atomically(
        folder / "results.json",
        json.dumps([r.to_json() for r in results], indent=1, ensure_ascii=False).encode(),
    )
    return Validation(comparisons, results, html)


def _compared(
    density: Density, path: Path, name: str, rows: int, seed: int, looks: str
) -> tuple[Comparison, list[CheckResult]]:
    full = _read(density, path, rows)
    targets, context = density.schema.target_names, density.schema.context_names
    with warnings.catch_warnings():  # said on the page, with how many they are
        warnings.simplefilter("ignore", ExtrapolationWarning)
        p = density.given({n: full[n] for n in context})
    fast = p.sample(1, seed=seed)[:, 0]
    drawn = {n: np.asarray(fast[n]) for n in targets}
    results = [_forbidden(density, drawn, looks)]
    if KL_COLUMN in full:
        kl = check.kl_divergence(full[KL_COLUMN], p.log_prob({n: full[n] for n in targets}))
        results.append(_named(kl, f"{looks}{kl.name}"))
    results += [_named(r, f"{looks}{r.name}") for r in _classified(full, drawn, targets, context, seed)]
    return compare(name, full, drawn, targets, context, looks=looks), results


def _read(density: Density, path: Path, rows: int) -> dict[str, np.ndarray]:
    from fluvial.data.readers import open_table
    from fluvial.workflow.use import read_columns

    columns = [c for c in density.schema.columns if c.name != KL_COLUMN]
    full = read_columns(path, columns)
    reader = open_table(path)
    if KL_COLUMN in reader.columns():
        full |= reader.read([KL_COLUMN])
    full = {n: v[:rows] for n, v in full.items()}
    if (number := len(full[columns[0].name])) < 400:
        raise DataError(f"{path}: expected at least 400 pairs to compare; found {number}")
    inside = np.ones(number, dtype=bool)
    for column in density.schema.targets:  # saturated as the density has them
        full[column.name] = column.canonical(np.asarray(full[column.name], dtype=np.float64))
        inside &= column.contains(full[column.name])
    if not inside.all():
        raise DataError(
            f"{path}: {int((~inside).sum())} of {number} pairs have a target outside what the density can give, the "
            f"first in row {int((~inside).argmax())}: is it of another production?"
        )
    return full


def _named(result: CheckResult, name: str) -> CheckResult:
    return replace(result, name=name)


def _forbidden(density: Density, drawn: Mapping[str, np.ndarray], looks: str) -> CheckResult:
    bad = sum(int((~c.contains(drawn[c.name])).sum()) for c in density.schema.targets)
    n = sum(len(v) for v in drawn.values())
    meaning = (
        "Share of drawn values that cannot be: outside bounds, between integers, beside a failed tag's value."
    )
    return CheckResult.judge(f"{looks}forbidden values", None, bad / n, 0.0, 0.0, n, meaning)


def _classified(
    full: Mapping[str, np.ndarray],
    drawn: Mapping[str, np.ndarray],
    targets: list[str],
    context: list[str],
    seed: int,
) -> list[CheckResult]:
    part = slice(0, _CLASSIFIER_ROWS)
    truth, draws, given = (
        np.stack([np.asarray(t[n][part], dtype=np.float64) for n in names], axis=1)
        for t, names in ((full, targets), (drawn, targets), (full, context))
    )
    return check.classifier_test(truth, draws, given, np.random.default_rng(seed))


def _headline(results: Sequence[CheckResult]) -> list[tuple[str, str, str]]:
    distance = [r for r in results if r.name.endswith("Wasserstein distance")]
    worst = max(distance, key=lambda r: r.statistic)
    shown = [("Worst distance", f"{worst.statistic:.2f}", f"of {worst.column}; 1 is exact, below 2 is asked")]
    shown += [
        (r.name, page.measured(r.statistic, r.uncertainty), "nats a row") for r in results if "KL" in r.name
    ][:1]
    return shown


def _beyond(density: Density, comparison: Comparison) -> int:
    """Return how many pairs have a context beyond what the density was trained on."""
    far = np.zeros(comparison.rows, dtype=bool)
    for name, (low, high) in density.context_range.items():
        slack = 1e-6 * (high - low)  # as the density itself has it
        far |= (comparison.full[name] < low - slack) | (comparison.full[name] > high + slack)
    return int(far.sum())


_CAPTIONS = {
    "distances": "1-D Wasserstein distances between full and fast simulation, in units of those between two samples of "
    "full simulation of the same size; the band is how far a pair of these scatters.",
    "marginals": "Every target: full simulation (points), fast simulation (line), and fast / full below, with "
    "statistical errors. A thousandth of the rows is left out on each side.",
    "correlations": "Rank correlations of targets with targets (left of the line) and with context.",
    "response": "Response (mean) and resolution (RMS) against generator-level pt.",
    "tagging": "b-tagging: false-positive rates of light and c jets, full (lines, bands) and fast simulation (points).",
}


def _section(comparison: Comparison, folder: Path, beyond: int) -> page.Section:
    drawn = [figures.distances, figures.marginals, figures.correlations]
    drawn += [figures.response] * bool(comparison.profiles) + [figures.tagging] * bool(comparison.curves)
    items = []
    for draw in drawn:
        name = draw.__name__
        image = style.png(draw(comparison))
        write_atomically(folder / f"{comparison.process}-{name}.png", image)
        items.append(page.FigureItem(image, _CAPTIONS[name]))
    text = "One draw at the context of each pair."
    if beyond:
        text += f" {beyond:,} contexts are beyond what the density was trained on, a guess there."
    return page.Section(f"{comparison.process}: {comparison.rows:,} pairs", items, text)
