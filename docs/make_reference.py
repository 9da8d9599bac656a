"""Write the references of studies and of records, and their JSON Schemas, from the models: they cannot drift apart.

Run: python docs/make_reference.py
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from fluvial import record_model
from fluvial.flows.build import ARCHITECTURES
from fluvial.nets.encoders import ENCODERS
from fluvial.study import Study, options_model
from fluvial.study_encoder import encoder_model

HERE = Path(__file__).parent
SECTIONS = {
    "data": "Which table, which columns, which rows.",
    "data.split": "Shares of the rows; they sum to 1. A row keeps its split when the file grows.",
    "columns.NAME": "What is known of a column; every key may be left out.",
    "training": "The training budget and the optimiser.",
    "check": "How the density is checked on test rows after training.",
    "tune": "What `fluvial tune` searches, and how: see [scale.md](scale.md).",
}
DEFINITIONS = {
    "data": "DataSection",
    "data.split": "SplitSection",
    "columns.NAME": "ColumnSection",
    "training": "TrainingSection",
    "check": "CheckSection",
    "tune": "TuneSection",
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a study, the options of every architecture included."""
    out = Study.model_json_schema()
    variants = []
    for name in ARCHITECTURES:
        options = options_model(name).model_json_schema()
        options["properties"] = {"architecture": {"const": name}, **options["properties"]}
        variants.append(options)
    out["properties"]["flow"] = {"title": "Flow", "anyOf": variants}
    variants = []
    for name in ENCODERS:
        options = encoder_model(name).model_json_schema()
        options["properties"] = {"architecture": {"const": name}, **options["properties"]}
        variants.append(options)
    out["properties"]["encoder"] = {"title": "Encoder", "anyOf": variants}
    out["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    out["title"] = "fluvial study"
    return out


def kind(field: dict[str, Any]) -> str:
    """Return the type of a field in a word or two."""
    if "anyOf" in field:
        return " or ".join(k for k in dict.fromkeys(map(kind, field["anyOf"])) if k != "null")
    if "enum" in field:
        return ", ".join(f"`{v}`" for v in field["enum"])
    if "$ref" in field:
        return "table"
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return "[lower, upper]" if "prefixItems" in field else f"list of {kind(field.get('items', {}))}"
    return {
        "integer": "integer",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "object": "table",
    }.get(field.get("type", ""), field.get("type", "value"))


def table(properties: dict[str, Any], required: list[str]) -> list[str]:
    """Return the Markdown rows of a section."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in properties.items():
        default = "required" if name in required else f"`{json.dumps(field.get('default'))}`"
        default = "–" if default in ("`null`", '`""`') or "$ref" in field else default
        lines.append(f"| `{name}` | {kind(field)} | {default} | {field.get('description', '')} |")
    return lines


def contents() -> str:
    """Return links to all sections, and to the architectures of flows and encoders."""

    def link(title: str) -> str:
        anchor = re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")
        return f"[{title.strip('[]')}](#{anchor})"

    parts = [link(f"[{title}]") for title in SECTIONS]
    flows, encoders = (", ".join(link(name) for name in known) for known in (ARCHITECTURES, ENCODERS))
    at = list(SECTIONS).index("columns.NAME") + 1
    parts[at:at] = [f"{link('[flow]')} ({flows})", f"{link('[encoder]')} ({encoders})"]
    return ", ".join(parts)


def page() -> str:
    """Return the reference of a study as Markdown."""
    definitions = schema()["$defs"]
    lines = [
        "# The study file",
        "",
        "Made by `docs/make_reference.py` from the code. As JSON Schema: [study.schema.json](study.schema.json).",
        "An unknown key is an error that names the nearest valid one. `fluvial init TABLE` writes a first one; the least",
        "is",
        "",
        "```toml",
        "[data]",
        'source = "table.parquet"',
        'targets = ["x", "y"]',
        'context = ["c"]',
        "```",
        "",
        "and everything else has the default that stands here. Sections: " + contents() + ".",
    ]
    for title, text in SECTIONS.items():
        definition = definitions[DEFINITIONS[title]]
        lines += [
            "",
            f"## [{title}]",
            "",
            text,
            "",
            *table(definition["properties"], definition.get("required", [])),
        ]
        if title == "columns.NAME":
            lines += _flows() + _encoders()
    return "\n".join(lines) + "\n"


OPTIONS = {
    "steps": "maps one after the other, each with its own network",
    "layers": "maps one after the other",
    "width": "units of a hidden layer",
    "depth": "hidden layers, or residual blocks of two layers each",
    "residual": "residual blocks instead of plain layers",
    "activation": "relu, silu, elu or tanh",
    "gate": "multiply what each residual block adds by a sigmoid of the context",
    "batch_norm": "batch normalisation inside residual blocks",
    "dropout": "share of hidden units dropped in training",
    "gain": "on x in the first layer at the start: 4 or so finds peaks far narrower than a standard deviation",
    "trunk": "features that one network makes of the context, once per context, for all steps; 0: none",
    "mixing": "between steps: reverse or permute the targets, a learned matrix (lu), or nothing",
    "norm": "between steps: batch norm, act norm, or nothing",
    "base": "density of the latent; student-t has heavy tails, its degrees of freedom are learned",
    "bins": "bins of each spline",
    "bound": "splines end at ± this many standard deviations and go on as straight lines",
    "solver_steps": "steps of the ODE solver: more are slower and closer to the learned flow",
    "kernels": "Gaussian kernels in each mixture",
    "components": "Gaussians in the mixture",
    "covariance": "of each Gaussian: full, or with uncorrelated targets",
}


ENCODER_OPTIONS = {
    "components": "principal components kept, at most",
    "smooth": "pixels over which spectra are smoothed before, the standard deviation of a Gaussian",
    "features": "numbers that the flow sees in place of the arrays",
    "patch": "pixels of a patch",
    "width": "channels of a patch, or after the first convolution",
    "rank": "numbers that each patch hands to the read-out",
    "kernel": "pixels of a convolution",
    "hidden": "units of the dense layer",
    "dropout": "share of what is read out that is dropped in training",
}


def _with_meanings(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: {"description": OPTIONS.get(name, ""), **field} for name, field in properties.items()}


def _flows() -> list[str]:
    lines = [
        "",
        "## [flow]",
        "",
        "`architecture` is one of the names below; left out, it is `autoregressive-spline` for up to four targets and",
        "`coupling-spline` for more. Every other key is an option of that architecture.",
    ]
    for name, architecture in ARCHITECTURES.items():
        summary = (inspect.getdoc(architecture) or "").split("\n\n")[0].replace("\n", " ")
        options = options_model(name).model_json_schema()
        lines += ["", f"### {name}", "", summary, "", *table(_with_meanings(options["properties"]), [])]
    return lines


def _encoders() -> list[str]:
    lines = [
        "",
        "## [encoder]",
        "",
        "The network that compresses context columns that are arrays (a spectrum), once per context; see",
        "[spectra.md](spectra.md). `architecture` is one of the names below; left out, it is `spectrum`. Every other",
        "key is an option of it.",
    ]
    for name, encoder in ENCODERS.items():
        summary = (inspect.getdoc(encoder) or "").split("\n\n")[0].replace("\n", " ")
        options = encoder_model(name).model_json_schema()["properties"]
        meanings = {
            key: {"description": ENCODER_OPTIONS.get(key, ""), **field} for key, field in options.items()
        }
        lines += ["", f"### {name}", "", summary, "", *table(meanings, [])]
    return lines


def record_schema() -> dict[str, Any]:
    """Return the JSON Schema of ``record.json``; that of a line of ``metrics.jsonl`` is its definition ``Metrics``."""
    out = record_model.Record.model_json_schema()
    out["$defs"]["Metrics"] = record_model.Metrics.model_json_schema()
    out["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    out["title"] = "fluvial record"
    return out


def record_page() -> str:
    """Return the reference of a run's record as Markdown."""
    schema = record_schema()
    lines = [
        "# The record of a run",
        "",
        "Made by `docs/make_reference.py` from the code. As JSON Schema: [record.schema.json](record.schema.json).",
    ]
    parts = {"record.json": schema, "metrics.jsonl": schema["$defs"]["Metrics"]}
    parts |= {f"{n.lower()} in record.json": schema["$defs"][n] for n in ("Training", "Checks", "Machine")}
    parts["resumed in record.json, one a time"] = schema["$defs"]["Resumed"]
    for title, part in parts.items():
        lines += [
            "",
            f"## {title}",
            "",
            part["description"].replace("``", "`"),
            "",
            "| key | type | meaning |",
        ]
        lines += ["|---|---|---|"]
        for name, field in part["properties"].items():
            lines.append(f"| `{name}` | {kind(field)} | {field.get('description', '')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all files."""
    (HERE / "record.md").write_text(record_page(), encoding="utf-8")
    (HERE / "record.schema.json").write_text(json.dumps(record_schema(), indent=2) + "\n", encoding="utf-8")
    (HERE / "study.md").write_text(page(), encoding="utf-8")
    (HERE / "study.schema.json").write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
