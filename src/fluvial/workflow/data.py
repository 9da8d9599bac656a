"""From a study to the rows it trains, validates and tests on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.data.cache import address, cache_folder, identify, made_once
from fluvial.data.forms import Layout
from fluvial.data.memory import memory_budget
from fluvial.data.packed import FORMAT, SAMPLE, Packed, Piece, open_packed, pack
from fluvial.data.read_base import exact
from fluvial.data.readers import Reader, fingerprint, open_table
from fluvial.data.schema import Schema
from fluvial.data.stream import Batches, BatchSource, Share, Split, StreamedBatches, split_of, split_rows
from fluvial.data.transforms import ColumnTransforms
from fluvial.data.validate import Fault, Validation, validate
from fluvial.errors import DataError, nearest
from fluvial.study import Study

SPLITS = ("train", "validation", "test")


#: Bytes of a table, as float64, from which on it is packed, so that later fits start at once.
PACK_FROM = 2**28
#: Bytes of memory that a fit in memory takes for each byte of its table, as float64.
WORKING_SET = 4
#: Rows read at once from a source that is packed.
CHUNK = 65_536


@dataclass(frozen=True)
class Rows:
    """Sound rows of a study's table, in units, and how they are split.

    Where all rows do not fit in memory, ``packed`` holds them on disk, and ``table``, ``truth`` and ``split``
    are of a uniform sample of each split: up to :data:`fluvial.data.packed.SAMPLE` rows. Column transforms are
    then fitted to that sample of the train split, validation losses and checks are of the samples of theirs, and
    training alone sees every row of its split.
    """

    schema: Schema
    table: dict[str, np.ndarray]
    truth: np.ndarray | None
    split: Split
    facts: dict[str, Any]
    packed: Packed | None = None

    def part(self, name: str) -> dict[str, np.ndarray]:
        """Return the rows of one split."""
        rows = getattr(self.split, name)
        return {column: values[rows] for column, values in self.table.items()}

    def truth_part(self, name: str) -> np.ndarray | None:
        """Return the exact log-densities of one split, if the table holds them."""
        return None if self.truth is None else self.truth[getattr(self.split, name)]

    def count(self, name: str) -> int:
        """Return the number of rows of one split, all of them."""
        return self.facts["split"][name]

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

        The batches come from memory, or from the memory of a GPU, where the table fits there; else from disk.
        """
        x, c, logdet = standardised(self.part("train"), self.schema, targets, context)
        if self.packed is None:
            return Batches(x.to(device), c.to(device), batch_size, seed, share=share), logdet
        prepare = _standardiser(self.packed.layout, self.schema, targets, context)
        rows, path = self.packed.rows("train"), self.packed.path("train")
        if _fits_device(rows * (x.shape[1] + c.shape[1]) * 4, torch.device(device)):
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


def read_rows(study: Study, source: Path) -> Rows:
    """Read and validate the table of a study, and split its rows.

    A table of 256 MiB or more (as float64) is packed first, once: see :mod:`fluvial.data.packed`. Where four
    times the table is more than the study's ``memory``, its rows stay on disk.

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
    size = reader.rows() * (len(names) + (truth is not None)) * 8
    budget = memory_budget(study.data.memory)
    scalar = all(reader.length(name) is None for name in names)  # arrays are not packed
    if scalar and (size >= PACK_FROM or size * WORKING_SET > budget):
        return _large(study, source, reader, budget)
    raw = reader.read(names)
    missing, outside, locate = study.data.missing, study.data.outside, partial(_locate, reader)
    table, kept = validate(raw, schema, where=where, missing=missing, outside=outside, locate=locate)
    rows = _sound_rows(raw, schema) if kept.rows_kept < kept.rows_read else np.arange(kept.rows_read)
    known_truth = None if truth is None else _read_truth(reader, truth, rows)
    split = _split(study, kept.rows_read, rows, where)
    for name in names:
        values = table[name][split.train]
        _check_varies(name, float(values.min()), float(values.max()), len(values), where)
    facts = {
        "fingerprint": fingerprint(source),
        **kept.to_json(),
        "split": {name: len(getattr(split, name)) for name in SPLITS},
    }
    return Rows(schema, table, known_truth, split, facts)


def data_changed(recorded: Mapping[str, Any], rows: Rows) -> bool:
    """Say whether the data are not those that a run's record (its ``data``) tells of."""
    before, after = recorded["fingerprint"], rows.facts["fingerprint"]
    if before.get("of", "file") == after.get("of", "file"):
        return before["sha256"] != after["sha256"]
    return any(before[key] != after[key] for key in ("bytes", "rows", "columns"))  # read in another way


def require_unchanged(recorded: Mapping[str, Any], rows: Rows, source: Path) -> None:
    """Raise :class:`~fluvial.errors.DataError` where the data are not those of a run that is to go on."""
    if data_changed(recorded, rows):
        before, after = recorded["fingerprint"], rows.facts["fingerprint"]
        raise DataError(
            f"{source} has changed since the run began: then {before['rows']} rows, {before['bytes']} bytes, "
            f"modified {before['modified']}; now {after['rows']} rows, {after['bytes']} bytes, modified "
            f"{after['modified']}. A run cannot go on with other rows: restore the file, or start a new run."
        )


def _large(study: Study, source: Path, reader: Reader, budget: int) -> Rows:
    """Return the rows of a table that is packed: all of them if memory allows, else a sample and the file."""
    packed = _packed(study, source, reader)
    schema, truth, where = study.schema_, study.check.truth, str(source)
    counts = {name: packed.rows(name) for name in SPLITS}
    sound = packed.about["report"]["rows_kept"]
    for name, count in counts.items():
        _check_not_empty(name, count, sound, where)
    for column in schema.columns:
        _check_varies(column.name, *packed.range(column.name, "train"), counts["train"], where)
    in_memory = sound * len(packed.names) * 8 * WORKING_SET <= budget
    parts = [packed.table(name) if in_memory else packed.sample(name) for name in SPLITS]
    table = {name: np.concatenate([part.pop(name) for part in parts]) for name in packed.names}
    ends = np.cumsum([0, *(counts[name] if in_memory else min(counts[name], SAMPLE) for name in SPLITS)])
    facts = {
        "fingerprint": packed.about["fingerprint"] | {"sha256": packed.about["sha256"], "of": "packed rows"},
        **packed.about["report"],
        "split": counts,
        "packed": {
            "held": "in memory" if in_memory else "on disk",
            "bytes_per_row": packed.layout.dtype.itemsize,
            "forms": packed.layout.forms,
            "largest_relative_rounding": max(c["rounding"] for c in packed.about["columns"]),
        },
    }
    known_truth = table.pop(truth) if truth is not None else None
    split = Split(*(np.arange(a, b) for a, b in itertools.pairwise(ends)))
    return Rows(schema, table, known_truth, split, facts, None if in_memory else packed)


def _packed(study: Study, source: Path, reader: Reader) -> Packed:
    """Open the packed form of a study's table, made first if it is not there."""
    schema, truth, where = study.schema_, study.check.truth, str(source)
    names = [c.name for c in schema.columns] + ([truth] if truth is not None else [])
    shares, seed = study.data.split.model_dump(), study.data.seed
    columns = schema.to_json()
    for column in columns["targets"] + columns["context"]:
        for key in ("unit", "label", "transform"):  # what is packed does not depend on them
            column.pop(key, None)
    sources = identify(reader.parts())
    described = {
        "format": FORMAT,
        "sources": sources,
        "columns": columns,
        "truth": truth,
        "data": study.data.model_dump(exclude={"source", "memory"}),
    }
    report: dict[str, Any] = {}

    def pieces() -> Iterator[Piece]:
        missing, outside, locate = study.data.missing, study.data.outside, partial(_locate, reader)
        checking = Validation(schema, where=where, missing=missing, outside=outside, locate=locate)
        wrong = Fault()
        for chunk, rows in _chunks(reader, names):
            table, keep = checking.add(chunk, rows)
            if truth is not None:
                table[truth] = chunk[truth]
            if keep is not None:
                table, rows = {name: values[keep] for name, values in table.items()}, rows[keep]
            if truth is not None:
                wrong.add(table[truth], ~np.isfinite(table[truth]), rows, 0)
            yield table, rows
        report.update(checking.finish().to_json())
        _check_truth(reader, truth, wrong)

    def about() -> dict[str, Any]:
        if identify(reader.parts()) != sources:
            raise DataError(f"{where} changed while it was read; wait until it is written, and fit again")
        return {
            "description": described,
            "report": report,
            "fingerprint": _described(source, reader),
        }

    def make(folder: Path) -> None:
        supports = {c.name: c.support for c in schema.columns}
        pack(
            folder,
            names,
            pieces,
            lambda rows: split_of(rows, shares, seed),
            supports=supports,
            seed=seed,
            about=about,
        )

    folder = cache_folder() / address(described)
    made_once(folder, lambda path: open_packed(path) is not None, make)
    packed = open_packed(folder)
    if packed is None:
        raise DataError(f"{folder} has been removed while it was used; fit again")
    return packed


def _chunks(reader: Reader, names: list[str]) -> Iterator[Piece]:
    """Yield the named columns as float64, a piece at a time, and the numbers of the rows in the source."""
    first = 0
    for chunk in reader.chunks(names, CHUNK):
        table = {n: exact(v, n, str(reader.path)).astype(np.float64, copy=False) for n, v in chunk.items()}
        rows = np.arange(first, first + len(table[names[0]]))
        yield table, rows
        first += len(rows)


def _locate(reader: Reader, row: int) -> str:
    """Say where a row is: in which row, and of which file where there are many."""
    if len(reader.parts()) < 2:
        return f"row {row}"
    file, within = reader.locate(row)
    return f"row {row} (row {within} of {file})"


def _described(source: Path, reader: Reader) -> dict[str, Any]:
    """Return what a record says of a source that is too large to be hashed whole every time."""
    stats = [path.stat() for path in reader.parts()]
    modified = max(stat.st_mtime for stat in stats)
    return {
        "path": str(source),
        "bytes": sum(stat.st_size for stat in stats),
        "rows": reader.rows(),
        "modified": datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds"),
        "columns": [{"name": name, "type": kind} for name, kind in reader.columns().items()],
    }


def _standardiser(
    layout: Layout, schema: Schema, targets: ColumnTransforms, context: ColumnTransforms
) -> Callable[[np.ndarray], tuple[Tensor, Tensor]]:
    """Return what makes the flow's targets and context of packed records ``[n, itemsize]``."""
    first, last = len(schema.targets), len(schema.columns)

    def prepare(records: np.ndarray) -> tuple[Tensor, Tensor]:
        values = layout.decode(records)
        x, _ = targets.forward(values[:, :first])
        c, _ = context.forward(values[:, first:last])
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(c.astype(np.float32))

    return prepare


def _fits_device(size: int, device: torch.device) -> bool:
    """Say whether a table may be held on a GPU: a third of what is free there, since it is made from pieces."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return 3 * size <= free


def _sound_rows(raw: Mapping[str, np.ndarray], schema: Schema) -> np.ndarray:
    """Return the numbers of the rows that :func:`fluvial.data.validate.validate` keeps."""
    sound = [c.support.contains(raw[c.name]) & np.isfinite(raw[c.name]) for c in schema.columns]
    return np.flatnonzero(np.logical_and.reduce(sound))


def _read_truth(reader: Reader, name: str, rows: np.ndarray) -> np.ndarray:
    values = reader.read([name])[name][rows]
    wrong = Fault()
    wrong.add(values, ~np.isfinite(values), rows, 0)
    _check_truth(reader, name, wrong)
    return values


def _check_truth(reader: Reader, name: str | None, wrong: Fault) -> None:
    if wrong.count:
        raise DataError(
            f"{reader.path}: column {name!r} ([check] truth) holds {wrong.count} values that are not finite, "
            f"the first in {_locate(reader, wrong.row)}; expected the exact log-density of every row that is used."
        )


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
        _check_not_empty(name, parts[name].size, len(kept), where)
    return Split(**parts)


def _check_not_empty(name: str, count: int, sound: int, where: str) -> None:
    if not count:
        raise DataError(
            f"{where}: none of the {sound} sound rows falls to the {name} split; give more rows, or raise its "
            "share in `split` under [data]."
        )


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


def _check_varies(name: str, low: float, high: float, rows: int, where: str) -> None:
    """A column may vary in the table and yet be constant in a small training split."""
    if low == high:
        raise DataError(
            f"{where}: column {name} is constant ({low:g}) in the {rows} rows of the train split; give more "
            "rows, a larger share, or another [data] seed."
        )
