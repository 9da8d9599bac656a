"""From a study to the rows it trains, validates and tests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.data.readers import fingerprint, open_table
from fluvial.data.schema import Column, Schema
from fluvial.data.stream import Split, split_rows
from fluvial.data.transforms import ColumnTransforms
from fluvial.data.validate import validate
from fluvial.errors import DataError, StudyError, nearest
from fluvial.study import Study

SPLITS = ("train", "validation", "test")
_ROW = "(row)"  # a column of row numbers that rides along, to know which rows were kept


@dataclass(frozen=True)
class Rows:
    """Sound rows of a study's table, in units, and how they are split."""

    schema: Schema
    table: dict[str, np.ndarray]
    truth: np.ndarray | None
    split: Split
    facts: dict[str, Any]

    def part(self, name: str) -> dict[str, np.ndarray]:
        """Return the rows of one split."""
        rows = getattr(self.split, name)
        return {column: values[rows] for column, values in self.table.items()}

    def truth_part(self, name: str) -> np.ndarray | None:
        """Return the exact log-densities of one split, if the table holds them."""
        return None if self.truth is None else self.truth[getattr(self.split, name)]


def read_rows(study: Study, source: Path) -> Rows:
    """Read and validate the table of a study, and split its rows."""
    schema = study.schema_
    truth = study.check.truth
    if truth in schema.target_names + schema.context_names:
        raise StudyError(f"[check] truth = {truth!r} is a target or context column; expected one of its own.")
    reader = open_table(source)
    known = reader.columns()
    for name in [*schema.target_names, *schema.context_names, *([truth] if truth else [])]:
        if name not in known:
            raise DataError(f"{source}: no column {name!r}{nearest(name, known)}.")
    table = reader.read([*schema.target_names, *schema.context_names, *([truth] if truth else [])])
    known_truth = table.pop(truth) if truth else None
    table[_ROW] = np.arange(reader.rows(), dtype=np.float64)
    riding = Schema(schema.targets, (*schema.context, Column(_ROW, "context")))
    table, kept = validate(
        table, riding, where=str(source), missing=study.data.missing, outside=study.data.outside
    )
    rows = table.pop(_ROW).astype(np.int64)
    if known_truth is not None:
        known_truth = known_truth[rows]
        if not np.isfinite(known_truth).all():
            raise DataError(f"{source}: column {truth!r} ([check] truth) holds values that are not finite.")
    split = _split(study, reader.rows(), rows, str(source))
    _check_varies(table, schema, split.train)
    facts = {
        "fingerprint": fingerprint(source),
        **kept.to_json(),
        "split": {name: len(getattr(split, name)) for name in SPLITS},
    }
    return Rows(schema, table, known_truth, split, facts)


def _split(study: Study, total: int, kept: np.ndarray, where: str) -> Split:
    """Split all rows of the file, then keep the sound ones: so a dropped row moves no other to another split."""
    of_file = split_rows(total, study.data.split.model_dump(), study.data.seed)
    parts = {}
    for name in SPLITS:
        member = np.zeros(total, dtype=bool)
        member[getattr(of_file, name)] = True
        parts[name] = np.flatnonzero(member[kept])
        if not parts[name].size:
            raise DataError(f"{where}: no sound rows are left in the {name} split, of {len(kept)} in all; give more rows.")
    return Split(**parts)


def standardised(
    part: Mapping[str, np.ndarray], schema: Schema, targets: ColumnTransforms, context: ColumnTransforms
) -> tuple[Tensor, Tensor, float]:
    """Return float32 targets and context as the flow sees them, and the mean logdet of the targets' transforms."""
    x, logdet = targets.forward(columns(part, schema.target_names))
    c, _ = context.forward(columns(part, schema.context_names))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(c.astype(np.float32)), float(logdet.mean())


def columns(table: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    """Return columns side by side, ``[n, D]``; with no names, ``[n, 0]``."""
    rows = len(next(iter(table.values())))
    return np.stack([table[n] for n in names], axis=-1) if names else np.empty((rows, 0))


def _check_varies(table: Mapping[str, np.ndarray], schema: Schema, rows: np.ndarray) -> None:
    """A column may vary in the table and yet be constant in a small training split."""
    for name in schema.target_names + schema.context_names:
        values = table[name][rows]
        if values.min() == values.max():
            raise DataError(
                f"Column {name} is constant ({values[0]:g}) in the {len(rows)} rows of the train split; give more "
                "rows, a larger share, or another [data] seed."
            )
