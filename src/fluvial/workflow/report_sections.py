"""The sections of a report: which figures and tables, and the sentence under each that says how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fluvial.check.baselines import Baseline
from fluvial.check.cells import CELL_THRESHOLD, CellDifferences
from fluvial.data.schema import Column, Schema
from fluvial.report import page, plots, trust_plots
from fluvial.report.compare import MOST_JOINT, Panel, joint, marginals
from fluvial.workflow.predictions import prediction_section

#: Contexts at which more than three targets are shown jointly: a figure of many axes takes long to draw.
LARGE_JOINTS = 3

Arrays = Mapping[str, np.ndarray]


def sections(
    schema: Schema,
    arrays: Arrays,
    metrics: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    checks: Mapping[str, Any],
    recalibration: Mapping[str, Any] | None,
    *,
    cells: Sequence[page.Section] = (),
    members: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> list[page.Section]:
    """Return the sections of a report, in order; those for which a run has nothing are left out."""
    found = [
        *prediction_section(schema, arrays),
        _against_draws(schema, arrays),
        _calibration(schema, arrays),
    ]
    beside = [Baseline.from_json(b) for b in checks.get("baselines", [])]
    if beside:
        found.insert(0, _beside(beside))
    if recalibration is not None and recalibration.get("test"):
        found.insert(0, _recalibrated(recalibration))
    if checks.get("conformal"):
        found.append(_regions(checks["conformal"]))
    if checks.get("novelty"):
        found.append(_novelty(checks["novelty"]))
    return [*found, *cells, _training(metrics, record, members or {})]


def _beside(beside: list[Baseline]) -> page.Section:
    rows = [["", "−log p [nats per row]", "gain of the flow"]]
    rows += [
        [b.name, page.measured(b.nll, b.error), page.measured(b.gain, b.gain_error)] for b in beside if b.made
    ]
    made = [b for b in beside if b.made]
    notes = {b.note: ", ".join(a.name for a in beside if a.note == b.note) for b in beside if not b.made}
    text = [f"{names[0].upper()}{names[1:]}: {note}." for note, names in notes.items()]
    figures = []
    if made:
        text.insert(
            0,
            f"Densities that need no flow, fitted to training rows and scored on the same {made[0].n:,} test rows as the "
            "flow, its column transforms included; the gain is taken row by row.",
        )
        figures = [
            page.FigureItem(
                trust_plots.baselines(beside),
                "By how much the flow beats each density that needs none, with one and two standard errors: right of the "
                "dashed line it is worth having; a baseline drawn in orange does as well without it.",
            )
        ]
    return page.Section(
        "Against simpler densities",
        figures,
        "\n\n".join(text),
        rows if made else (),
    )


def _against_draws(schema: Schema, arrays: Arrays) -> page.Section:
    panels, columns = panel_list(schema, arrays), schema.targets
    # A figure of so many rows that it fits a page, and a phone.
    each = 3 if len(columns) <= 3 else 1
    what = "Each row is one context" if each > 1 else "One context"
    figures = [
        page.FigureItem(
            marginals(panels[start : start + each], columns),
            f"{what}, or where contexts differ from row to row the rows about it: points are those rows, of training "
            "too, the line is drawn from the fit at their own contexts; beneath, their ratio, which should scatter about "
            "1 within its error bars.",
        )
        for start in range(0, len(panels), each)
    ]
    shown, why = list(range(len(columns))), ""
    if len(columns) > MOST_JOINT:
        shown = _worst_columns(arrays["pit"], MOST_JOINT)
        why = f" Shown are the {MOST_JOINT} targets whose PIT values are furthest from uniform."
    if len(columns) == 2:
        caption = (
            "Data and draws in the plane of two targets; the difference in standard deviations should look like noise, "
            "without structure."
        )
    else:
        caption = (
            "Contours hold 50 % and 90 % of the data (dashed) and of the draws (solid), and should lie on one another; "
            f"on the diagonal each target alone.{why}"
        )
    if len(columns) > 1:
        chosen = panels if len(columns) <= 3 else panels[:: max(1, -(-len(panels) // LARGE_JOINTS))]
        figures += [
            page.FigureItem(
                joint(
                    Panel(p.title, p.data[:, shown], p.draws[:, shown]),
                    [columns[j] for j in shown],
                ),
                caption,
            )
            for p in chosen
        ]
    return page.Section("Data against draws", figures)


def _worst_columns(pit: np.ndarray, count: int) -> list[int]:
    """Return the targets whose PIT values are furthest from uniform, in their order."""
    ordered = np.sort(pit, axis=0)
    steps = (np.arange(len(pit)) + 0.5)[:, None] / max(len(pit), 1)
    distance = np.abs(ordered - steps).max(axis=0)
    return sorted(np.argsort(-distance)[:count].tolist())


def _calibration(schema: Schema, arrays: Arrays) -> page.Section:
    columns = schema.targets
    figures = [
        page.FigureItem(
            plots.pit(arrays["pit"], columns),
            "Where each test value falls in its predicted distribution: flat within the band if the density is exact, "
            "∪-shaped if it is too narrow, ∩-shaped if too wide, sloped if biased.",
        ),
        page.FigureItem(
            plots.coverage(
                arrays["levels"],
                arrays["coverage"],
                arrays["coverage_error"],
                arrays["central"],
                columns,
                arrays["central_error"],
            ),
            "How often regions of a stated probability hold the truth: on the diagonal if exact, below it if the fit is "
            "overconfident.",
        ),
        page.FigureItem(
            plots.pulls(arrays["pulls"], columns),
            "Distance of the truth from the predicted mean in predicted standard deviations: mean 0 and width 1 if "
            "exact, whatever the shape; the unit normal only guides the eye.",
        ),
    ]
    cells = cell_differences_of(arrays)
    if cells is not None and len(cells.rows) > 1:
        scalar = all(c.length is None for c in schema.context) and cells.context.shape[1] == len(
            schema.context
        )
        context = schema.context if scalar else (Column("", "context"),) * 3
        shown = _colours_or_bars(len(context))
        figures.append(
            page.FigureItem(
                trust_plots.cell_map(cells, columns, context, CELL_THRESHOLD),
                f"Data against draws in {len(cells.rows)} cells of context: the share of rows above a value less that of "
                f"draws, at the value where they differ most; {shown} The ring marks the cell furthest from 0 in "
                "standard errors.",
            )
        )
    return page.Section("Calibration", figures)


def _colours_or_bars(context: int) -> str:
    if context == 2:
        return "an exact density is pale everywhere, but for chance, and blue or orange patches are parts that it misses."
    return "an exact density scatters about 0 within its error bars; the band is the error that the check allows."


def cell_differences_of(arrays: Arrays) -> CellDifferences | None:
    """Return the comparison by cells that a run holds, or ``None``."""
    names = ("context", "rows", "value", "observed", "drawn", "error")
    if not all(f"cells_{name}" in arrays for name in names):
        return None
    return CellDifferences(**{name: arrays[f"cells_{name}"] for name in names})


def _recalibrated(about: Mapping[str, Any]) -> page.Section:
    test = about["test"]
    early = (
        " Training had been stopped by these rows, so that they are not quite unseen; a calibration share under [data] "
        "split keeps rows of their own."
        if about["also_stopped_training"]
        else ""
    )
    map_ = about["map"]
    form = "shift and scale" + (" and a spline" if map_["bins"] else "")
    steered = ", shift and scale by the context" if map_["steered"] else ""
    text = (
        f"The density of run {about['of']} was recalibrated on {about['rows']:,} {about['split']} rows "
        f"({about['made']}): a monotone map of each latent coordinate ({form}{steered}), fitted by maximum likelihood. "
        f"It is a bijection with an exact Jacobian, so the result is still a normalised density.{early}"
    )
    table = [
        ["on the test rows", "before", "after"],
        ["−log p [nats per row]", f"{test['nll_before']:.4f}", f"{test['nll_after']:.4f}"],
        ["largest error of coverage",
         *(page.measured(test[f"coverage_{w}"], test["coverage_error"]) for w in ("before", "after"))],
        ["gain row by row", "", page.measured(test["gain"], test["gain_error"])],
    ]  # fmt: skip
    figure = page.FigureItem(
        trust_plots.before_and_after(test),
        "How often highest-density regions hold the truth, less what they claim: below 0 overconfident; after the "
        "recalibration it should lie within the band.",
    )
    return page.Section("Recalibration", [figure], text, table)


def _regions(about: Mapping[str, Any]) -> page.Section:
    stopped = ", by which training was stopped as well" if about.get("also_stopped_training") else ""
    table = [["level", "log p at least", "observed coverage"]]
    for one in about["levels"]:
        least = "—" if one["log_prob"] is None else page.number(one["log_prob"])
        table.append(
            [
                f"{100 * one['level']:g} %",
                least,
                page.measured(100 * one["coverage"], 100 * one["coverage_error"]) + " %",
            ]
        )
    return page.Section(
        "Conformal regions",
        (),
        "Highest-density regions that hold the truth as often as they say, whatever the density: a new row is inside "
        f"with a probability of at least the level, and of at most 1/{about['rows'] + 1:,} more, over contexts and "
        f"targets together (thresholds from {about['rows']:,} {about['split']} rows{stopped}; coverage on the test rows, "
        "its ± from their number alone: those of the thresholds scatter it as well).",
        table,
    )


def _novelty(found: Mapping[str, Any]) -> page.Section:
    share = found["flagged"] / max(found["rows"], 1)
    return page.Section(
        "Novelty",
        (),
        f"{found['describe']} Of {found['rows']:,} test contexts {found['flagged']:,} are flagged ({100 * share:.2g} %). "
        "density.given(…).novelty() says it of any context, and fluvial sample warns.",
    )


def _training(
    metrics: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    members: Mapping[str, Sequence[Mapping[str, Any]]],
) -> page.Section:
    figure = page.FigureItem(
        plots.loss_curves(members)
        if members
        else plots.losses(metrics, record["training"].get("best_epoch")),
        "Mean −log p per row of the training and validation rows; where validation rises while training falls, "
        "the flow has begun to learn its rows by heart.",
    )
    return page.Section("Training", [figure])


def panel_list(schema: Schema, arrays: Arrays) -> list[Panel]:
    """Return the panels of data and draws that a run holds."""
    panels = []
    k = 0
    while f"panel{k}_context" in arrays:
        value = arrays[f"panel{k}_context"]
        if f"panel{k}_titles" in arrays:  # what stands for contexts that are arrays
            names = (f"{t} ≈ {v:.4g}" for t, v in zip(arrays[f"panel{k}_titles"], value, strict=True))
        else:
            names = (
                f"{c.name} = {v:.4g}" + (f" {c.unit}" if c.unit else "")
                for c, v in zip(schema.context, value, strict=True)
            )
        title = ", ".join(names) or "all rows"
        panels.append(Panel(title, arrays[f"panel{k}_data"], arrays[f"panel{k}_draws"]))
        k += 1
    return panels
