"""From a study to the rows it trains, validates and tests on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial import check as checks
from fluvial.data.arrays import ArrayBatches, Arrays
from fluvial.data.discrete import resolve
from fluvial.data.memory import memory_budget
from fluvial.data.packed import SAMPLE, Packed
from fluvial.data.readers import Source, fingerprint, open_table
from fluvial.data.schema import Column, Schema
from fluvial.data.select import View
from fluvial.data.stream import Batches, BatchSource, Share, Split, StreamedBatches, split_rows
from fluvial.data.transforms import ColumnTransforms
from fluvial.data.validate import Fault, Validation
from fluvial.errors import DataError, StudyError, nearest
from fluvial.study import Study
from fluvial.study_holdout import within
from fluvial.workflow.arrays import check_arrays, masked_notes, read_arrays
from fluvial.workflow.packing import CHUNK, check_truth, fits_device, packed_table, standardiser
from fluvial.workflow.weights import check_weights, mean_weight, with_weight

SPLITS = ("train", "validation", "test", "calibration")


#: Bytes of a table, as float64, from which on it is packed, so that later fits start at once.
PACK_FROM = 2**28
#: Bytes of memory that a fit in memory takes for each byte of its table, as float64.
WORKING_SET = 4
#: Where a record says that the rows were, while training read them.
IN_MEMORY, ON_DISK = "in memory", "on disk"


@dataclass(frozen=True)
class Rows:
    """Sound rows of a study's table, in units, and how they are split.

    Where all rows do not fit in memory, ``packed`` holds them on disk, and ``table``, ``truth`` and ``split``
    are of a uniform sample of each split: up to :data:`fluvial.data.packed.SAMPLE` rows. Column transforms are
    then fitted to that sample of the train split, validation losses and checks are of the samples of theirs, and
    training alone sees every row of its split.

    Array columns are in ``arrays``, not in ``table``: :meth:`take` and :meth:`part` gather rows of both.
    """

    schema: Schema
    table: dict[str, np.ndarray]
    truth: np.ndarray | None
    split: Split
    facts: dict[str, Any]
    packed: Packed | None = None
    arrays: Arrays | None = None
    weight: np.ndarray | None = None  # of each row, as the table has it

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return some rows, arrays included, as float32 with the noise that they have for ever."""
        scalars = {column: values[rows] for column, values in self.table.items()}
        return scalars if self.arrays is None else scalars | self.arrays.take(rows)

    def part(self, name: str) -> dict[str, np.ndarray]:
        """Return the rows of one split."""
        return self.take(getattr(self.split, name))

    def scalars(self, name: str) -> dict[str, np.ndarray]:
        """Return the rows of one split without their arrays."""
        rows = getattr(self.split, name)
        return {column: values[rows] for column, values in self.table.items()}

    def truth_part(self, name: str) -> np.ndarray | None:
        """Return the exact log-densities of one split, if the table holds them."""
        return None if self.truth is None else self.truth[getattr(self.split, name)]

    def weight_part(self, name: str) -> np.ndarray | None:
        """Return the weights of one split, if the study names a column of them: their mean is 1."""
        if self.weight is None:
            return None
        weight = self.weight[getattr(self.split, name)]
        return weight / weight.mean()

    def equal(self, seed: int) -> Rows:
        """Return rows that each count as one: these, or where they have weights, rows drawn in proportion to them.

        Some may come twice: see :func:`fluvial.check.equal_rows`.
        """
        if self.weight is None:
            return self
        rng = np.random.default_rng(seed)
        chosen = [
            part[checks.equal_rows(self.weight[part], rng)] if len(part) else part
            for part in (getattr(self.split, n) for n in SPLITS)
        ]
        ends = np.cumsum([0, *map(len, chosen)])
        rows = np.concatenate(chosen)
        return replace(
            self,
            table={name: values[rows] for name, values in self.table.items()},
            truth=None if self.truth is None else self.truth[rows],
            split=Split(*(np.arange(a, b) for a, b in itertools.pairwise(ends))),
            weight=None,
        )

    def count(self, name: str) -> int:
        """Return the number of rows of one split, all of them."""
        return self.facts["split"].get(name, 0)

    def range(self, column: str) -> tuple[float, float]:
        """Return the smallest and the largest value of a column, over all rows."""
        if self.packed is not None:
            return self.packed.range(column)
        return float(self.table[column].min()), float(self.table[column].max())

    def batches(
        self,
        targets: ColumnTransforms,
        context: ColumnTransforms,
        batch_size: int,
        seed: int,
        *,
        share: Share | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[BatchSource, float]:
        """Return batches of the train split as the flow sees them, and the targets' transforms' mean logdet.

        With weights, that of a row (their mean is 1) is the last column of the batches' context. The
        batches come from memory, or from the memory of a GPU, where the table fits there; else from disk.
        """
        weight = self.weight_part("train")
        x, c, logdet = standardised(
            self.scalars("train"), self.schema.without_arrays, targets, context, weight
        )
        if self.arrays is not None:
            rows = self.split.train
            return ArrayBatches(x, c, self.arrays, rows, batch_size, seed, device=device), logdet
        if self.packed is None:
            c = with_weight(c, weight)
            return Batches(x.to(device), c.to(device), batch_size, seed, share=share), logdet
        mean = None if weight is None else mean_weight(self.packed)
        prepare = standardiser(self.packed.layout, self.schema, targets, context, mean)
        rows, path = self.packed.rows("train"), self.packed.path("train")
        if fits_device(rows * (x.shape[1] + c.shape[1]) * 4, torch.device(device)):
            records = self.packed.records("train")
            pieces = (prepare(np.array(records[i : i + CHUNK])) for i in range(0, rows, CHUNK))
            x, c = (
                torch.cat(p) for p in zip(*((x.to(device), c.to(device)) for x, c in pieces), strict=True)
            )
            return Batches(x, c, batch_size, seed, share=share), logdet
        size = self.packed.layout.dtype.itemsize
        return StreamedBatches(
            path, rows, size, prepare, batch_size, seed, share=share, device=device
        ), logdet


def read_rows(study: Study, source: Source, *, like: Mapping[str, Any] | None = None) -> Rows:
    """Read and validate the rows of a table that the study's filter keeps, and split them.

    ``source`` is the study's, as it is found from the working directory. A row falls to its split by its number
    in the source, so that a filter moves none.

    A table of 256 MiB or more (as float64) is packed first, once: see :mod:`fluvial.data.packed`. Where four
    times the table is more than the study's ``memory``, its rows stay on disk. ``like`` is what a run's record
    says of its ``data``: the rows are then held as they were in that run, whatever memory there is now, so that
    it can be gone on with, or checked, on the same ones.

    Raises
    ------
    DataError
        If the source cannot be read, lacks a column, holds values that the study does not allow, or leaves a
        split without rows, or the train split with a column that does not vary.
    """
    truth, weight, where = study.check.truth, study.data.weight, _listed(source)
    view = View(open_table(source), study.data.fitted, study.data.derived)
    schema = with_lengths(study.schema_, view)
    known = view.columns()
    for name, key in ((truth, "[check] truth"), (weight, "[data] weight")):
        if name is not None and name not in known:
            raise DataError(f"{where}: no column {name!r}, which {key} names{nearest(name, known)}")
    check_arrays(study, schema, where)
    require_held_out(study, schema, view)
    scalar = schema.without_arrays
    names = [c.name for c in scalar.columns] + [n for n in (truth, weight) if n]
    size, budget = view.source_rows() * len(names) * 8, memory_budget(study.data.memory)
    large = size >= PACK_FROM or size * WORKING_SET > budget if like is None else "packed" in like
    if large and not schema.arrays:  # what arrays need, they need otherwise
        if like is not None:
            budget = 2**62 if like["packed"]["held"] == IN_MEMORY else 0
        return _large(study, schema, view, where, budget)
    raw, numbers = view.read(names)
    checking = Validation(
        scalar, where=where, missing=study.data.missing, outside=study.data.outside, locate=view.place
    )
    table, keep = checking.add(raw, numbers)
    kept = checking.finish()
    arrays, about = None, {}
    if schema.arrays:
        arrays, sound, about = read_arrays(study, schema, view, numbers, where)
        if not sound.all():
            keep = sound if keep is None else keep & sound
        if keep is not None:
            arrays = arrays.kept(keep)
    if keep is not None:
        table, numbers = {name: values[keep] for name, values in table.items()}, numbers[keep]
    resolved, notes = resolve(scalar, table, where=where)
    schema = schema.with_resolved(resolved)
    known_truth = None
    if truth is not None:
        known_truth, wrong = raw[truth] if keep is None else raw[truth][keep], Fault()
        wrong.add(known_truth, ~np.isfinite(known_truth), numbers, 0)
        check_truth(view, truth, wrong)
    weights = _kept(raw, weight, keep)
    split = _split(study, view.source_rows(), numbers, where)
    for column in resolved.columns:
        values = table[column.name][split.train]
        _check_varies(column.name, float(values.min()), float(values.max()), len(values), where)
    facts = {
        "fingerprint": fingerprint(source),
        "rows_in_source": view.source_rows(),
        **kept.to_json(),
        "split": _counted({name: len(getattr(split, name)) for name in SPLITS}, study),
        "notes": [*kept.notes, *notes],
        **check_weights(view, weight, weights, numbers, split),
    }
    if arrays is not None:
        dropped = {
            f"{name}: arrays": one["rows_dropped"] for name, one in about.items() if one["rows_dropped"]
        }
        facts |= {"arrays": about, "rows_kept": len(numbers), "dropped": kept.dropped | dropped}
        facts["notes"] += masked_notes(about)
    return Rows(schema, table, known_truth, split, facts, arrays=arrays, weight=weights)


def _kept(raw: Mapping[str, np.ndarray], name: str | None, keep: np.ndarray | None) -> np.ndarray | None:
    """Return a column of the sound rows, as float64; nothing without a name."""
    if name is None:
        return None
    return np.asarray(raw[name] if keep is None else raw[name][keep], dtype=np.float64)


def require_held_out(study: Study, schema: Schema, view: View) -> None:
    """Raise :class:`~fluvial.errors.StudyError` if what a study holds out, or weighs, cannot be."""
    data = study.data
    for key, value in (("holdout", data.holdout), ("weight", data.weight)):
        if value is not None and schema.arrays:
            raise StudyError(
                f"[data] {key}: expected a context of numbers; {schema.arrays[0].name} is an array, for which there is "
                f"no {key} yet."
            )
    if data.holdout is None:
        return
    apart = View(view.reader, within(data.where, data.holdout), data.derived)
    try:
        next(iter(apart.chunks(data.context or data.targets, CHUNK)))
    except StopIteration:
        raise StudyError(
            f"[data] holdout: no row of {view.reader.path} is held out by {data.holdout!r}; expected contexts that the "
            "table has."
        ) from None


def data_changed(recorded: Mapping[str, Any], rows: Rows) -> bool:
    """Say whether the data are not those that a run's record (its ``data``) tells of."""
    before, after = recorded["fingerprint"], rows.facts["fingerprint"]
    if before.get("of", "file") == after.get("of", "file"):
        return before["sha256"] != after["sha256"]
    return any(before[key] != after[key] for key in ("bytes", "rows", "columns"))  # read in another way


def require_unchanged(recorded: Mapping[str, Any], rows: Rows, source: Source) -> None:
    """Raise :class:`~fluvial.errors.DataError` where the data are not those of a run that is to go on."""
    if data_changed(recorded, rows):
        before, after = recorded["fingerprint"], rows.facts["fingerprint"]
        raise DataError(
            f"{_listed(source)} has changed since the run began: then {before['rows']} rows, {before['bytes']} bytes, "
            f"modified {before['modified']}; now {after['rows']} rows, {after['bytes']} bytes, modified "
            f"{after['modified']}. A run cannot go on with other rows: restore the file, or start a new run."
        )


def _large(study: Study, schema: Schema, view: View, where: str, budget: int) -> Rows:
    """Return the rows of a table that is packed: all of them if memory allows, else a sample and the file."""
    packed = packed_table(study, schema, view, where)
    truth = study.check.truth
    counts = {name: packed.rows(name) for name in SPLITS}
    sound = packed.about["report"]["rows_kept"]
    for name, count in _counted(counts, study).items():
        _check_not_empty(name, count, sound, where)
    for column in schema.columns:
        _check_varies(column.name, *packed.range(column.name, "train"), counts["train"], where)
    in_memory = sound * len(packed.names) * 8 * WORKING_SET <= budget
    parts = [packed.table(name) if in_memory else packed.sample(name) for name in SPLITS]
    table = {name: np.concatenate([part.pop(name) for part in parts]) for name in packed.names}
    seen = table if in_memory else _with_rare(schema, table, packed)
    schema, notes = resolve(schema, seen, where=where)
    ends = np.cumsum([0, *(counts[name] if in_memory else min(counts[name], SAMPLE) for name in SPLITS)])
    facts = {
        "fingerprint": packed.about["fingerprint"] | {"sha256": packed.about["sha256"], "of": "packed rows"},
        "rows_in_source": view.source_rows(),
        **packed.about["report"],
        "split": _counted(counts, study),
        "packed": {
            "held": IN_MEMORY if in_memory else ON_DISK,
            "bytes_per_row": packed.layout.dtype.itemsize,
            "forms": packed.layout.forms,
            "largest_relative_rounding": max(c["rounding"] for c in packed.about["columns"]),
        },
        "notes": [*packed.about["report"].get("notes", []), *notes],
    }
    known_truth = table.pop(truth) if truth is not None else None
    weights = table.pop(study.data.weight) if study.data.weight is not None else None
    split = Split(*(np.arange(a, b) for a, b in itertools.pairwise(ends)))
    facts |= check_weights(view, study.data.weight, weights, None, split)
    return Rows(schema, table, known_truth, split, facts, None if in_memory else packed, weight=weights)


def _with_rare(schema: Schema, sample: Mapping[str, np.ndarray], packed: Packed) -> dict[str, np.ndarray]:
    """Return the columns with what a sample may lack: whole numbers that are rare, and where numbers off atoms end."""
    full = {}
    for column in schema.columns:
        rare = packed.landmarks(column.name)
        if column.mixed:
            free = (values[column.level(values) < 0] for values in packed.chunks(column.name))
            rare = np.array([end for part in free if part.size for end in (part.min(), part.max())])
        full[column.name] = np.concatenate([sample[column.name], rare])
    return full


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
    for name, count in _counted({name: len(rows) for name, rows in parts.items()}, study).items():
        _check_not_empty(name, count, len(kept), where)
    return Split(**parts)


def _counted(sizes: dict[str, int], study: Study) -> dict[str, int]:
    """Leave the calibration split out where the study asks for none."""
    return {name: n for name, n in sizes.items() if name != "calibration" or study.data.split.calibration}


def _check_not_empty(name: str, count: int, sound: int, where: str) -> None:
    if not count:
        raise DataError(
            f"{where}: none of the {sound} sound rows falls to the {name} split; give more rows, or raise its "
            "share in `split` under [data]."
        )


def standardised(
    part: Mapping[str, np.ndarray],
    schema: Schema,
    targets: ColumnTransforms,
    context: ColumnTransforms,
    weight: np.ndarray | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Return float32 targets and context as the flow sees them, and the targets' transforms' mean logdet.

    A flow sees coded scalars, then arrays in their units.
    """
    x, logdet = targets.forward(columns(part, schema.target_names))
    c, _ = context.forward(columns(part, [column.name for column in schema.scalars]))
    x, c = x.astype(np.float32), c.astype(np.float32)
    if schema.arrays:
        c = np.concatenate([c, *(part[column.name] for column in schema.arrays)], axis=1)
    return torch.from_numpy(x), torch.from_numpy(c), float(np.average(logdet, weights=weight))


def thinned(rows: np.ndarray, most: int | None) -> np.ndarray:
    """Return at most so many of the rows, evenly spaced: enough for a flow whose log-density is dear."""
    if most is None or len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def columns(table: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    """Return columns side by side, ``[n, D]``; with no names, ``[n, 0]``."""
    rows = len(next(iter(table.values())))
    return np.stack([table[n] for n in names], axis=-1) if names else np.empty((rows, 0))


def _check_varies(name: str, low: float, high: float, rows: int, where: str) -> None:
    """A column may vary in the table and yet be constant in a small training split."""
    if low == high:
        raise DataError(
            f"{where}: column {name} is constant ({low:g}) in the {rows} rows of the train split; give more "
            "rows, a larger share, or another [data] seed."
        )
