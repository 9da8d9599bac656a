"""From a study to the rows it trains, validates and tests on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.data.readers import Source, fingerprint, open_table
from fluvial.data.schema import Column, Schema
from fluvial.data.select import View
from fluvial.data.stream import Split, split_rows
from fluvial.data.transforms import ColumnTransforms
from fluvial.data.validate import Validation
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


def read_rows(study: Study, source: Source) -> Rows:
    """Read and validate the rows of a table that the study's filter keeps, and split them.

    ``source`` is the study's, as it is found from the working directory. A row falls to its split by its number
    in the source, so that a filter moves none.

    Raises
    ------
    DataError
        If the source cannot be read, lacks a column, holds values that the study does not allow, or leaves a
        split without rows, or the train split with a column that does not vary.
    """
    truth, where = study.check.truth, _listed(source)
    view = View(open_table(source), study.data.where, study.data.derived)
    schema = with_lengths(study.schema_, view)
    known = view.columns()
    if truth is not None and truth not in known:
        raise DataError(f"{where}: no column {truth!r}, which [check] truth names{nearest(truth, known)}")
    raw, numbers = view.read(schema.target_names + schema.context_names + ([truth] if truth else []))
    checking = Validation(
        schema, where=where, missing=study.data.missing, outside=study.data.outside, locate=view.place
    )
    table, keep = checking.add(raw, numbers)
    kept = checking.finish()
    if keep is not None:
        table, numbers = {name: values[keep] for name, values in table.items()}, numbers[keep]
    known_truth = None
    if truth is not None:
        known_truth = _sound_truth(raw[truth] if keep is None else raw[truth][keep], numbers, view, truth)
    split = _split(study, view.source_rows(), numbers, where)
    _check_varies(table, schema, split.train, where)
    facts = {
        "fingerprint": fingerprint(source),
        "rows_in_source": view.source_rows(),
        **kept.to_json(),
        "split": {name: len(getattr(split, name)) for name in SPLITS},
    }
    return Rows(schema, table, known_truth, split, facts)


def with_lengths(schema: Schema, view: View) -> Schema:
    """Return the schema with the length of every array column, as the source has it.

    Raises
    ------
    DataError
        If a target is an array, or a column is missing, or the files of the source disagree about it.
    """

    def known(column: Column) -> Column:
        length = view.length(column.name)
        if length is not None and column.role == "target":
            raise DataError(
                f"{view.reader.path}: target {column.name} is an array of {length} numbers a row; expected one number: "
                f'name its elements, as in "{column.name}[0:{length}]", or make it context'
            )
        return replace(column, length=length)

    return Schema(tuple(map(known, schema.targets)), tuple(map(known, schema.context)))


def _listed(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return ", ".join(os.fspath(one) for one in source)


def _sound_truth(values: np.ndarray, numbers: np.ndarray, view: View, name: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise DataError(
            f"{view.reader.path}: column {name!r} ([check] truth) holds {bad.size} values that are not finite, "
            f"the first in {view.place(int(numbers[bad[0]]))}; expected the exact log-density of every row that "
            "is used."
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
