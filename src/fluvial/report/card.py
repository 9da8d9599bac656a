"""The calibration card: what a density was trained on, how it was checked, where it holds; as JSON and as Markdown.

``card.json`` is for programs; ``README.md`` is laid out as model hubs show it, with a front matter of tags and results.
Both travel with the density, in its folder. Neither names a path of the machine: files are named without their folders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fluvial.check.result import CheckResult
from fluvial.report.markdown import code, fenced, plain, table
from fluvial.report.page import measured, number, verdict_sentence

FORMAT = 1
CARD, README = "card.json", "README.md"


def make_card(
    record: Mapping[str, Any],
    description: Mapping[str, Any],
    checks: Mapping[str, Any] | None,
    novelty: str | None,
    written: str,
) -> dict[str, Any]:
    """Return the card of a run from its record, its ``density.json``, its ``checks.json`` and a sentence on novelty."""
    data, study = record["data"], record["study"]
    sources = data["source"] if isinstance(data["source"], list) else [data["source"]]
    ranges = description["context_range"]
    return {
        "format": FORMAT,
        "written": written,
        "name": record["name"],
        "library": {"name": "fluvial", "versions": record["versions"]},
        "density": {
            "targets": description["schema"]["targets"],
            "context": description["schema"]["context"],
            "reference_measure": description["reference_measure"],
            "architecture": record["architecture"],
            "weights": record["weights"],
            "recalibration": description.get("recalibration"),
        },
        "trained_on": {
            "files": [re.split(r"[/\\]", str(source).rstrip("/\\"))[-1] for source in sources],
            "sha256": data["fingerprint"]["sha256"],
            "study_sha256": record["study_sha256"],
            "filter": study["data"].get("where"),
            "rows": data["rows_kept"],
            "split": data["split"],
            "from": record["started"],
            "to": record["ended"],
            "epochs": record["training"].get("epochs"),
            "stopped": record["stopped"],
        },
        "checks": None if checks is None else dict(checks),
        "limits": {
            "context": {
                c["name"]: {"range": ranges.get(c["name"]), "unit": c["unit"], "length": c.get("length")}
                for c in description["schema"]["context"]
            },
            "targets": {
                c["name"]: {"support": c["support"], "unit": c["unit"]}
                for c in description["schema"]["targets"]
            },
            "novelty": novelty,
        },
    }


def readme(card: Mapping[str, Any]) -> str:
    """Return the card as Markdown with a front matter."""
    density, trained, checks = card["density"], card["trained_on"], card["checks"]
    targets = [c["name"] for c in density["targets"]]
    context = [c["name"] for c in density["context"]]
    given = f" | {', '.join(context)}" if context else ""
    parts = [
        "---\n" + _front_matter(card) + "---",
        f"# {plain(card['name'])}: p({plain(', '.join(targets) + given)})",
        f"A conditional density with {plain(density['architecture'])} ({density['weights']:,} weights), made with "
        f"fluvial {plain(str(card['library']['versions'].get('fluvial', '')))}. Its log-density is against "
        f"{plain(density['reference_measure'])}.",
        "## How far to trust it",
        _trust(checks),
        *([_baselines(checks)] if checks and checks.get("baselines") else []),
        *([_recalibrated(density["recalibration"])] if density["recalibration"] else []),
        "## Where it holds",
        _limits(card),
        "## What it was trained on",
        table(
            ["", ""],
            [
                ["files", ", ".join(code(f) for f in trained["files"])],
                ["SHA-256 of the data", code(trained["sha256"])],
                ["SHA-256 of the study", code(trained["study_sha256"])],
                *([["filter", code(trained["filter"])]] if trained["filter"] else []),
                ["rows", ", ".join(f"{name} {n:,}" for name, n in trained["split"].items())],
                ["trained", f"{trained['from']} to {trained['to'] or 'no end recorded'}"],
                ["stopped", plain(trained["stopped"])],
            ],
        ),
        "## How to use it",
        fenced(_usage(density), "python"),
        f"*Written {card['written']}.*",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: Mapping[str, Any]) -> str:
    """Return YAML; JSON's strings and lists are YAML's too, so that no name can break out."""
    quoted = json.dumps
    tags = ["normalizing-flows", "density-estimation", "conditional-density", "simulation-based-inference"]
    lines = ["library_name: fluvial", "pipeline_tag: tabular-regression", "tags:", *(f"- {t}" for t in tags)]
    checks = card["checks"]
    if checks and isinstance(checks.get("test_nll"), (int, float)):
        metrics = [("nll", checks["test_nll"], "test −log p in nats per row")]
        if checks.get("kl") is not None:
            metrics.append(("kl", checks["kl"], "KL(truth‖fit) in nats"))
        lines += [
            "model-index:",
            f"- name: {quoted(card['name'])}",
            "  results:",
            "  - task:",
            "      type: tabular-regression",
            "      name: conditional density estimation",
            "    dataset:",
            f"      name: {quoted(', '.join(card['trained_on']['files']))}",
            f"      type: {quoted('sha256:' + card['trained_on']['sha256'][:16])}",
            "    metrics:",
            *(f"    - {{type: {t}, value: {float(v)!r}, name: {quoted(n)}}}" for t, v, n in metrics),
        ]
    return "\n".join(lines) + "\n"


def _trust(checks: Mapping[str, Any] | None) -> str:
    if checks is None:
        return "It has **not been checked**: `fluvial check` does so, on rows that it has not seen."
    results = [CheckResult.from_json(r) for r in checks["results"]]
    rows = [
        [r.verdict, plain(r.name), plain(r.column or "all"), measured(r.statistic, r.uncertainty), number(r.exact),
         number(r.threshold), f"{r.n:,}"]
        for r in results
    ]  # fmt: skip
    nll = ""
    if checks.get("test_nll") is not None:
        nll = (
            f" Test −log p is {measured(checks['test_nll'], checks['test_nll_error'])} nats per row over "
            f"{checks['test_rows']:,} rows."
        )
    return f"**{plain(verdict_sentence(results))}**{nll} Checked {checks.get('date', '')}.\n\n" + table(
        ["verdict", "check", "column", "statistic", "exact", "allowed", "n"], rows
    )


def _baselines(checks: Mapping[str, Any]) -> str:
    rows = [
        [
            plain(b["name"]),
            measured(b["nll"], b.get("error", 0.0)),
            measured(b["gain"], b.get("gain_error", 0.0)),
        ]
        for b in checks["baselines"]
        if b.get("n") and b.get("nll") is not None and b.get("gain") is not None
    ]
    if not rows:
        return "No baseline could be made."
    return "Densities that need no flow, on the same rows (nats per row):\n\n" + table(
        ["baseline", "−log p", "gain of the flow"], rows
    )


def _recalibrated(about: Mapping[str, Any]) -> str:
    test = about.get("test")
    after = ""
    if test:
        after = (
            f" On test rows log p rose by {measured(test['gain'], test['gain_error'])} nats per row, and the largest "
            f"error of coverage went from {number(test['coverage_before'])} to {number(test['coverage_after'])}."
        )
    early = ", by which training had been stopped" if about.get("also_stopped_training") else ""
    return (
        f"It was **recalibrated** on {about['rows']:,} {plain(about['split'])} rows{early}, {about['made']}: a monotone "
        f"map of its latent space, so it is still a normalised density.{after}"
    )


def _limits(card: Mapping[str, Any]) -> str:
    limits = card["limits"]

    def interval(ends: Any) -> str:
        if ends is None:
            return "see its values in density.json"
        low, high = (
            "−∞" if e is None and i == 0 else "∞" if e is None else number(e) for i, e in enumerate(ends)
        )
        return f"{low} to {high}"

    rows = [
        [
            "context",
            code(n),
            f"{v['length']:,} numbers" if v["length"] else interval(v["range"]),
            plain(v["unit"]),
        ]
        for n, v in limits["context"].items()
    ]
    rows += [
        ["target", code(n), interval(v["support"]), plain(v["unit"])] for n, v in limits["targets"].items()
    ]
    text = table(["role", "column", "range (context) or support (target)", "unit"], rows)
    text += "\n\nOutside the range of a context the density is a guess, and says so with a warning."
    return text + (f" {plain(limits['novelty'])}" if limits["novelty"] else "")


def _usage(density: Mapping[str, Any]) -> str:
    ranges = {c["name"]: c for c in density["context"]}
    given = ", ".join(f"{json.dumps(name)}: …" for name in ranges)
    p = f"density.given({{{given}}})" if given else "density.given()"
    return (
        "import fluvial\n\n"
        'density = fluvial.load("path/of/this/folder")\n'
        f"p = {p}\n"
        "p.sample(1000)          # a structured array of the targets, in their units\n"
        "p.log_prob(events)      # nats, per unit of every target"
        + ("\np.novelty()             # whether the context is like those of the table" if given else "")
    )
