"""From a study to the rows it trains, validates and tests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.data.discrete import resolve
from fluvial.data.readers import Reader, fingerprint, open_table
from fluvial.data.schema import Schema
from fluvial.data.stream import Split, split_rows
from fluvial.data.transforms import ColumnTransforms
from fluvial.data.validate import validate
from fluvial.errors import DataError, nearest
from fluvial.study import Study

SPLITS = ("train", "validation", "test")


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
    """Read and validate the table of a study, and split its rows.

    Raises
    ------
    DataError
        If the file cannot be read, lacks a column, holds values that the study does not allow, or leaves a
        split without rows, or the train split with a column that does not vary.
    """
    schema, truth, where = study.schema_, study.check.truth, str(source)
    names = schema.target_names + schema.context_names
    reader = open_table(source)
    known = reader.columns()
    if truth is not None and truth not in known:
        raise DataError(f"{where}: no column {truth!r}, which [check] truth names{nearest(truth, known)}")
    raw = reader.read(names)
    table, kept = validate(raw, schema, where=where, missing=study.data.missing, outside=study.data.outside)
    rows = _sound_rows(raw, schema) if kept.rows_kept < kept.rows_read else np.arange(kept.rows_read)
    schema, notes = resolve(schema, table, where=where)
    known_truth = None if truth is None else _read_truth(reader, truth, rows)
    split = _split(study, kept.rows_read, rows, where)
    _check_varies(table, schema, split.train, where)
    facts = {
        "fingerprint": fingerprint(source),
        **kept.to_json(),
        "split": {name: len(getattr(split, name)) for name in SPLITS},
        "notes": notes,
    }
    return Rows(schema, table, known_truth, split, facts)


def _sound_rows(raw: Mapping[str, np.ndarray], schema: Schema) -> np.ndarray:
    """Return the numbers of the rows that :func:`fluvial.data.validate.validate` keeps."""
    sound = [c.contains(raw[c.name]) for c in schema.columns]
    return np.flatnonzero(np.logical_and.reduce(sound))


def _read_truth(reader: Reader, name: str, rows: np.ndarray) -> np.ndarray:
    values = reader.read([name])[name][rows]
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise DataError(
            f"{reader.path}: column {name!r} ([check] truth) holds {bad.size} values that are not finite, "
            f"the first in row {rows[bad[0]]}; expected the exact log-density of every row that is used."
        )
    return values


def _split(study: Study, total: int, kept: np.ndarray, where: str) -> Split:
    """Split all rows of the file, then keep the sound ones: a dropped row moves no other to another split."""
    try:
        of_file = split_rows(total, study.data.split.model_dump(), study.data.seed)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    parts = {}
    for name in SPLITS:
        member = np.zeros(total, dtype=bool)
        member[getattr(of_file, name)] = True
        parts[name] = np.flatnonzero(member[kept])
        if not parts[name].size:
            raise DataError(
                f"{where}: none of the {len(kept)} sound rows falls to the {name} split; give more rows, or "
                "raise its share in `split` under [data]."
            )
    return Split(**parts)


def standardised(
    part: Mapping[str, np.ndarray], schema: Schema, targets: ColumnTransforms, context: ColumnTransforms
) -> tuple[Tensor, Tensor, float]:
    """Return float32 targets and context as the flow sees them, and the targets' transforms' mean logdet."""
    x, logdet = targets.forward(columns(part, schema.target_names))
    c, _ = context.forward(columns(part, schema.context_names))
    x, c = x.astype(np.float32), c.astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(c), float(logdet.mean())


def thinned(part: dict[str, np.ndarray], most: int | None) -> dict[str, np.ndarray]:
    """Return at most so many rows, evenly spaced: enough for a flow whose log-density is dear."""
    rows = len(next(iter(part.values())))
    if most is None or rows <= most:
        return part
    kept = np.linspace(0, rows - 1, most).round().astype(int)
    return {name: values[kept] for name, values in part.items()}


def columns(table: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    """Return columns side by side, ``[n, D]``; with no names, ``[n, 0]``."""
    rows = len(next(iter(table.values())))
    return np.stack([table[n] for n in names], axis=-1) if names else np.empty((rows, 0))


def _check_varies(table: Mapping[str, np.ndarray], schema: Schema, rows: np.ndarray, where: str) -> None:
    """A column may vary in the table and yet be constant in a small training split."""
    for name in schema.target_names + schema.context_names:
        values = table[name][rows]
        if values.min() == values.max():
            raise DataError(
                f"{where}: column {name} is constant ({values[0]:g}) in the {len(rows)} rows of the train "
                "split; give more rows, a larger share, or another [data] seed."
            )
