"""``report_run``: the run folder as one self-contained page, as Markdown, or on paper."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from fluvial import __version__
from fluvial.check import CheckResult
from fluvial.check.baselines import Baseline
from fluvial.data.schema import Schema
from fluvial.density import DENSITY_FILE, Density
from fluvial.errors import RunError, StudyError
from fluvial.files import write_atomically
from fluvial.record import ARRAYS, REPORT, STUDY, RunFolder, now
from fluvial.report import page, printed
from fluvial.workflow.check import load_results
from fluvial.workflow.members import member_runs
from fluvial.workflow.report_cells import cell_sections
from fluvial.workflow.report_sections import sections
from fluvial.workflow.trust import Tell

#: The folder of figures beside ``report.md``.
FIGURES = "report-figures"

Format = Literal["html", "md", "pdf"]


def report_run(run: str | Path, format: Format = "html", *, on_event: Tell | None = None) -> Path:
    """Write the report of a run from its record, metrics and checks; return its path.

    Parameters
    ----------
    run
        The run folder.
    format
        ``html``: ``report.html``, one self-contained page. ``md``: ``report.md``, with its figures in the folder
        ``report-figures`` beside it. ``pdf``: ``report.pdf``, that page printed by Chromium or Chrome where one is found,
        else pages drawn by matplotlib.
    on_event
        Called with a text where there is something to say.

    Raises
    ------
    RunError
        If the run is missing, or has not been checked yet.
    StudyError
        If the format is unknown.
    """
    if format not in get_args(Format):
        raise StudyError(f"--format: expected one of {', '.join(get_args(Format))}; found {format!r}.")
    folder = RunFolder.open(run)
    content = report_content(folder)
    path = folder.path / REPORT
    if format == "md":
        text, figures = printed.markdown(content, FIGURES)
        path = path.with_suffix(".md")
        (folder.path / FIGURES).mkdir(exist_ok=True)
        for name, png in figures.items():
            write_atomically(folder.path / FIGURES / name, png)
        write_atomically(path, text.encode())
    elif format == "pdf":
        path = path.with_suffix(".pdf")
        write_atomically(path, _pdf(content, on_event or (lambda text: None)))
    else:
        write_atomically(path, page.render(content).encode())
    return path


def _pdf(content: page.ReportContent, tell: Tell) -> bytes:
    browser = printed.find_browser()
    if browser is not None:
        with tempfile.TemporaryDirectory(prefix="fluvial-report-") as temporary:
            html, out = Path(temporary, "report.html"), Path(temporary, "report.pdf")
            html.write_bytes(page.render(content).encode())
            failure = printed.print_page(browser, html, out)
            if failure is None:
                return out.read_bytes()
        tell(f"{browser} did not print the page ({failure}); drawing the pages instead")
    return printed.pdf_pages(content)


def report_content(folder: RunFolder) -> page.ReportContent:
    """Return all that the report of a run says.

    Raises
    ------
    RunError
        If the run has not been checked yet.
    """
    record, results, found = folder.record(), load_results(folder), folder.checks()
    if not results or found is None or not (folder.path / ARRAYS).exists():
        raise RunError(f"{folder.path} has not been checked; run 'fluvial check {folder.path}' first.")
    density = Density.load(folder.path) if (folder.path / DENSITY_FILE).exists() else None
    schema = density.schema if density else Schema(())
    recalibration = density.recalibration if density else None
    with np.load(folder.path / ARRAYS, allow_pickle=False) as file:
        arrays = dict(file)
    targets = ", ".join(schema.target_names)
    context = ", ".join(schema.context_names)
    beside = [Baseline.from_json(b) for b in found.get("baselines", [])]
    return page.ReportContent(
        title=f"{record['name']}: p({targets}{' | ' if context else ''}{context})",
        verdict_sentence=page.verdict_sentence(results),
        notes=_notes(beside, recalibration),
        headline=_headline(record, schema, results, beside),
        fingerprint=_fingerprint(record, found),
        results=results,
        sections=sections(
            schema,
            arrays,
            folder.metrics(),
            record,
            found,
            recalibration,
            cells=cell_sections(folder, schema),
            members={f"member {m.name}": m.metrics() for m in member_runs(folder)},
        ),
        facts=_facts(record),
        study_text=(folder.path / STUDY).read_text(encoding="utf-8"),
        footer=f"fluvial {__version__} · {now()}",
    )


def _notes(beside: list[Baseline], recalibration: Mapping[str, Any] | None) -> list[str]:
    """Return what the reader must see first: whether a flow is needed, and whether it was mended."""
    notes = []
    enough = [b for b in beside if b.suffices]
    made = [b for b in beside if b.made]
    if enough:
        names = " and ".join(f"{b.name} ({page.measured(b.gain, b.gain_error)} nats per row)" for b in enough)
        notes.append(
            f"A flow is not needed here: it gains nothing, within two standard errors, over {names}."
        )
    elif made:
        best = min(made, key=lambda b: b.gain)
        notes.append(
            f"The flow gains {page.measured(best.gain, best.gain_error)} nats per row over the best density that needs "
            f"none: {best.name}."
        )
    if recalibration is not None:
        notes.append(f"Recalibrated on {recalibration['rows']:,} {recalibration['split']} rows.")
    return notes


def _headline(
    record: dict[str, Any], schema: Schema, results: list[CheckResult], beside: list[Baseline]
) -> list[tuple[str, str, str]]:
    """Return the three numbers that matter: how far from the truth, how good, how well calibrated."""
    checks, training = record["checks"], record["training"]
    made = [b for b in beside if b.made]
    if checks.get("kl") is not None:
        first = (
            "KL(truth‖fit)",
            f"{page.measured(checks['kl'], checks['kl_error'])} nats",
            "how far the fit is from the exact density of the simulation; 0 is the limit",
        )
    elif made:
        best = min(made, key=lambda b: b.gain)
        first = (
            "gain over no flow",
            f"{page.measured(best.gain, best.gain_error)} nats",
            f"mean per row over {best.name}, the best of {len(made)} simpler densities, on {best.n:,} test rows",
        )
    else:
        loss = training.get("best_loss")
        first = (
            "best validation loss",
            "none" if loss is None else f"{loss:.4f} nats",
            f"in epoch {training.get('best_epoch')} of {training.get('epochs')}",
        )
    numbers = [
        first,
        (
            "test −log p",
            f"{page.measured(checks['test_nll'], checks['test_nll_error'])} nats",
            f"mean per row over {checks['test_rows']:,} rows that the fit has not seen; {_measure(schema)}",
        ),
    ]
    coverage = next((r for r in results if r.name == "coverage"), None)
    if coverage is not None:
        numbers.append(
            (
                "error of coverage",
                f"{page.measured(100 * coverage.statistic, 100 * coverage.uncertainty)} %",
                "largest difference between how often a region holds the truth and what it claims, chance removed",
            )
        )
    return numbers


def _fingerprint(record: Mapping[str, Any], checks: Mapping[str, Any]) -> str:
    """Return one line of what was fitted and when."""
    parts = [
        f"data {record['data']['fingerprint']['sha256'][:12]}",
        f"study {record['study_sha256'][:12]}",
        f"fluvial {record['versions'].get('fluvial', '')}",
        f"fitted {str(record['started'])[:10]}",
    ]
    return " · ".join([*parts, *([f"checked {checks['date'][:10]}"] if checks.get("date") else [])])


def _source(source: str | list[str]) -> str:
    return source if isinstance(source, str) else ", ".join(source)


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    data, versions, machine = record["data"], record["versions"], record["machine"]
    training = record["training"]
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
        *(
            [("Training", f"{training['epochs']} epochs, {training['rows_per_second']:,.0f} rows/s")]
            if training
            else []
        ),
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


def _measure(schema: Schema) -> str:
    """Return in a few words what a density of the targets is per."""
    if any(c.mixed or c.kind == "integer" for c in schema.targets):
        return "probabilities of atoms and integers, densities elsewhere"
    if not any(c.unit for c in schema.targets):
        return "density per unit of each target"
    return f"density per {_per_unit([c.unit or c.name for c in schema.targets])}"


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
