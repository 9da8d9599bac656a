"""How a run begins: a density not yet trained, and the first state of its record."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch

from fluvial.data.readers import absolute_source
from fluvial.data.transforms import ColumnTransforms
from fluvial.density import Density, array_kinds
from fluvial.flows.encoded import build_encoded_flow
from fluvial.record import FORMAT, NO_END, UNFINISHED, environment, now
from fluvial.study import Study, parse_study, read_study
from fluvial.workflow.arrays import describe_inputs, fit_inputs
from fluvial.workflow.data import Rows


def read_given(study: str | Path | Mapping[str, Any]) -> tuple[Study, str, Path, str]:
    """Return the study, its text, the folder that its source is relative to, and a stem for the run's name."""
    if isinstance(study, Mapping):
        parsed = parse_study(study)
        return parsed, tomli_w.dumps(dict(study)), Path(), "run"
    parsed, text = read_study(study)
    return parsed, text, Path(study).parent, Path(study).stem


def new_density(study: Study, rows: Rows) -> Density:
    """Return a density with transforms fitted to the train split, and weights fixed by the seed."""
    part, schema = rows.scalars("train"), rows.schema
    targets, context = ColumnTransforms.fit(schema.targets, part), ColumnTransforms.fit(schema.scalars, part)
    options = study.flow_options
    encoder = study.encoder_options if schema.arrays else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.training.seed)
        flow = build_encoded_flow(
            study.architecture,
            **targets.layout.arguments,
            context=context.layout.width,
            arrays=array_kinds(schema.arrays),
            encoder=encoder,
            **options,
        )
    density = Density(
        flow,
        schema,
        targets,
        context,
        architecture=study.architecture,
        options=options,
        context_range={c.name: rows.range(c.name) for c in schema.scalars if c.period is None},
        encoder=encoder,
    )
    fit_inputs(density, rows)
    return density


def new_record(
    study: Study, text: str, source: str | list[str], rows: Rows, density: Density, *, seconds: float
) -> dict[str, Any]:
    """Return the record of a run that begins, whose data took so many ``seconds`` to read."""
    return {
        "format": FORMAT,
        "name": None,
        "status": UNFINISHED,
        "stopped": NO_END,
        "process": os.getpid(),
        "started": now(),
        "ended": None,
        "architecture": density.architecture,
        "weights": sum(p.numel() for p in density.flow.parameters()),
        "study": _resolved(study, rows, density),
        "study_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "data": {"source": absolute_source(source), **rows.facts},
        "transforms": described(density),
        "seeds": {"split": study.data.seed, "training": study.training.seed, "check": study.check.seed},
        "timings": {"reading": seconds},
        "training": {},
        "checks": {},
        "resumed": [],
        **environment(torch.get_num_threads()),
    }


def described(density: Density) -> dict[str, str]:
    """Return one line for each column, with the reason where the study left its transform open."""
    lines = {}
    for one in (density.target_transforms, density.context_transforms):
        for name, text in one.describe().items():
            why = one.reasons.get(name)
            lines[name] = f"{text} [chosen: {why}]" if why else text
    return lines | describe_inputs(density)


def _resolved(study: Study, rows: Rows, density: Density) -> dict[str, Any]:
    """Return every option of the study with its value, those left out included."""
    training = study.training
    resolved = {
        "batch_size": training.batch_rows(rows.count("train")),
        "epochs": training.epoch_limit,
    }
    return {
        **study.model_dump(),
        "flow": {"architecture": density.architecture, **density.options},
        "encoder": density.encoder or {},
        "training": {**training.model_dump(), **resolved},
    }
