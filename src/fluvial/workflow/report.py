"""``report_run``: the run folder as one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fluvial import __version__
from fluvial.data.schema import Schema
from fluvial.density import DENSITY_FILE, Density
from fluvial.errors import RunError
from fluvial.files import write_atomically
from fluvial.record import ARRAYS, REPORT, STUDY, RunFolder, now
from fluvial.report import page, plots
from fluvial.report.compare import Panel, joint, marginals
from fluvial.workflow.check import load_results
from fluvial.workflow.members import member_runs
from fluvial.workflow.report_cells import cell_sections


def report_run(run: str | Path) -> Path:
    """Write ``report.html`` of a run from its record, metrics and checks; return its path.

    Raises
    ------
    RunError
        If the run is missing, or has not been checked yet.
    """
    folder = RunFolder.open(run)
    record, results = folder.record(), load_results(folder)
    if not results or not (folder.path / ARRAYS).exists():
        raise RunError(f"{folder.path} has not been checked; run 'fluvial check {folder.path}' first.")
    schema = Density.load(folder.path).schema if (folder.path / DENSITY_FILE).exists() else Schema(())
    with np.load(folder.path / ARRAYS, allow_pickle=False) as file:
        arrays = dict(file)
    targets = ", ".join(schema.target_names)
    context = ", ".join(schema.context_names)
    content = page.ReportContent(
        title=f"{record['name']}: p({targets}{' | ' if context else ''}{context})",
        verdict_sentence=page.verdict_sentence(results),
        headline=_headline(record, schema),
        results=results,
        sections=_sections(folder, record, schema, arrays),
        facts=_facts(record),
        study_text=(folder.path / STUDY).read_text(encoding="utf-8"),
        footer=f"fluvial {__version__} · {now()}",
    )
    path = folder.path / REPORT
    write_atomically(path, page.render(content).encode())
    return path


def _headline(record: dict[str, Any], schema: Schema) -> list[tuple[str, str, str]]:
    checks, training = record["checks"], record["training"]
    unit = _per_unit([c.unit or c.name for c in schema.targets])
    first: tuple[str, str, str]
    if checks.get("kl") is not None:
        first = (
            "KL(truth‖fit)",
            f"{page.measured(checks['kl'], checks['kl_error'])} nats",
            "how far the fit is from the exact density of the simulation; 0 is the limit",
        )
    else:
        first = (
            "best validation loss",
            "none" if training["best_loss"] is None else f"{training['best_loss']:.4f} nats",
            f"in epoch {training['best_epoch']} of {training['epochs']}",
        )
    return [
        first,
        (
            "test −log p",
            f"{page.measured(checks['test_nll'], checks['test_nll_error'])} nats",
            f"mean per row over {checks['test_rows']:,} rows that the fit has not seen; density per {unit}",
        ),
        (
            "training",
            _duration(record["timings"]["training"]),
            f"{training['epochs']} epochs, {training['rows_per_second']:,.0f} rows/s, {record['stopped']}",
        ),
    ]


def _sections(
    folder: RunFolder, record: dict[str, Any], schema: Schema, arrays: dict[str, np.ndarray]
) -> list[page.Section]:
    columns = schema.targets
    panels = _panel_list(schema, arrays)
    compare = [
        page.FigureItem(
            marginals(panels, columns),
            "Each row is one context: points are all its rows, those of training included, the line is drawn from the "
            "fit; beneath, their ratio, which should scatter about 1 within its error bars.",
        )
    ]
    if len(columns) > 1 and len(columns) <= 5:
        compare += [
            page.FigureItem(
                joint(panel, columns),
                "Data and draws in the plane of two targets; the difference in standard deviations should look like "
                "noise, without structure.",
            )
            for panel in panels
        ]
    calibration = [
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
    members = member_runs(folder)
    curves = (
        plots.loss_curves({f"member {m.name}": m.metrics() for m in members})
        if members
        else plots.losses(folder.metrics(), record["training"]["best_epoch"])
    )
    training = [
        page.FigureItem(
            curves,
            "Mean −log p per row of the training and validation rows; where validation rises while training falls, "
            "the flow has begun to learn its rows by heart.",
        )
    ]
    return [
        page.Section("Data against draws", compare),
        page.Section("Calibration", calibration),
        *cell_sections(folder, schema),
        page.Section("Training", training),
    ]


def _panel_list(schema: Schema, arrays: dict[str, np.ndarray]) -> list[Panel]:
    panels = []
    for k in range(len([name for name in arrays if name.endswith("_context")])):
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
    return panels


def _source(source: str | list[str]) -> str:
    return source if isinstance(source, str) else ", ".join(source)


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    data, versions, machine = record["data"], record["versions"], record["machine"]
    split = ", ".join(f"{name} {count:,}" for name, count in data["split"].items())
    dropped = ", ".join(f"{name} {count:,}" for name, count in data["dropped"].items()) or "none"
    timings = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in record["timings"].items())
    where = record["study"]["data"].get("where")
    passed = f"{data['rows_read']:,} of {data.get('rows_in_source', data['rows_read']):,} rows"
    return [
        ("Status", f"{record['status']}; {record['stopped']}"),
        ("Data", f"{_source(data['source'])} ({data['fingerprint']['bytes']:,} bytes)"),
        ("Data SHA-256", data["fingerprint"]["sha256"]),
        ("Study SHA-256", record["study_sha256"]),
        *([("Filter", f"{where}: {passed}")] if where else []),
        *(
            [("Held out", record["study"]["data"]["holdout"])]
            if record["study"]["data"].get("holdout")
            else []
        ),
        *([("Weights", _weights(data["weight"]))] if data.get("weight") else []),
        ("Rows", f"{data['rows_kept']:,} of {data['rows_read']:,}; dropped: {dropped}"),
        ("Split", split),
        ("Flow", f"{record['architecture']}, {record['weights']:,} weights"),
        *((f"Transform of {name}", text) for name, text in record["transforms"].items()),
        ("Seeds", ", ".join(f"{name} {seed}" for name, seed in record["seeds"].items())),
        ("Time", timings),
        ("Machine", f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads used"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Started", record["started"]),
    ]


def _weights(weight: dict[str, Any]) -> str:
    equal = ", ".join(f"{name} {number:,.0f}" for name, number in weight["effective_rows"].items())
    return (
        f"column {weight['column']}; the rows are worth so many equal ones: {equal}. "
        "Checks and figures are of rows drawn in proportion to their weights"
    )


def _per_unit(units: list[str]) -> str:
    """Return the product of units, for people.

    >>> _per_unit(["Msun", "Msun"]), _per_unit(["K", "dex", "dex"])
    ('Msun²', 'K dex²')
    """
    powers = {unit: units.count(unit) for unit in units}
    return " ".join(unit + (str(n).translate(_SUPERSCRIPTS) if n > 1 else "") for unit, n in powers.items())


_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def _duration(seconds: float) -> str:
    """Return a duration for people.

    >>> _duration(0.42), _duration(75), _duration(7322)
    ('0.4 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
