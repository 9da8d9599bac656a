"""From a study to its packed table: made once, found again by all that went into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.data.cache import address, cache_folder, identify, made_once
from fluvial.data.forms import Layout
from fluvial.data.gather import AffineGather
from fluvial.data.packed import FORMAT, Packed, Piece, open_packed, pack
from fluvial.data.read_base import exact
from fluvial.data.readers import Reader
from fluvial.data.schema import Schema
from fluvial.data.select import View
from fluvial.data.split import split_of
from fluvial.data.stream import Prepare
from fluvial.data.transforms import ColumnTransforms
from fluvial.data.validate import Fault, Validation
from fluvial.errors import DataError
from fluvial.study import Study
from fluvial.workflow.weights import refuse_weights

#: Rows read at once from a source that is packed.
CHUNK = 65_536


def packed_table(study: Study, schema: Schema, view: View, where: str) -> Packed:
    """Open the packed form of a study's table, made first if it is not there.

    It holds the sound rows of the columns of ``schema`` (all scalar), then the exact log-density and the weight if the
    study names them. What it is found by: the source's files (path, size, time of change, pieces of their content), the
    columns with their supports, and what the study says under [data], the split included; not labels, units,
    transforms or budgets.

    Raises
    ------
    DataError
        If the source holds values that the study does not allow, or changes while it is read, or the cache
        cannot be written: nothing half-made is left.
    """
    truth, weight, reader = study.check.truth, study.data.weight, view.reader
    others = [name for name in (truth, weight) if name is not None]
    names = [c.name for c in schema.columns] + others
    shares, seed = study.data.split.model_dump(), study.data.seed
    columns = schema.to_json()
    for column in columns["targets"] + columns["context"]:
        for key in ("unit", "label", "transform", "scale"):
            column.pop(key, None)
    sources = identify(reader.parts())
    described = {
        "format": FORMAT,
        "sources": sources,
        "columns": columns,
        "truth": truth,
        "data": study.data.model_dump(exclude={"source", "memory", "split"})
        | {"split": {name: share for name, share in shares.items() if name != "calibration" or share}},
    }
    report: dict[str, Any] = {}

    def pieces() -> Iterator[Piece]:
        checking = Validation(
            schema, where=where, missing=study.data.missing, outside=study.data.outside, locate=view.place
        )
        wrong = Fault()
        for chunk, rows in _chunks(view, names):
            table, keep = checking.add(chunk, rows)
            table |= {name: chunk[name] for name in others}
            if keep is not None:
                table, rows = {name: values[keep] for name, values in table.items()}, rows[keep]
            if truth is not None:
                wrong.add(table[truth], ~np.isfinite(table[truth]), rows, 0)
            if weight is not None:
                refuse_weights(view, weight, table[weight], rows)
            yield table, rows
        report.update(checking.finish().to_json())
        check_truth(view, truth, wrong)

    def about() -> dict[str, Any]:
        if identify(reader.parts()) != sources:
            raise DataError(f"{where} changed while it was read; wait until it is written, and fit again")
        return {"description": described, "report": report, "fingerprint": _described(where, reader)}

    def make(folder: Path) -> None:
        supports = {c.name: c.support for c in schema.columns}
        pack(
            folder,
            names,
            pieces,
            lambda rows: split_of(rows, shares, seed),
            supports=supports,
            atoms={c.name: c.levels for c in schema.columns},
            seed=seed,
            about=about,
        )

    folder = cache_folder() / address(described)
    made_once(folder, lambda path: open_packed(path) is not None, make)
    packed = open_packed(folder)
    if packed is None:
        raise DataError(f"{folder} has been removed while it was used; fit again")
    return packed


def check_truth(view: View, name: str | None, wrong: Fault) -> None:
    """Raise :class:`~fluvial.errors.DataError` where exact log-densities are not finite."""
    if wrong.count:
        raise DataError(
            f"{view.reader.path}: column {name!r} ([check] truth) holds {wrong.count} values that are not finite, "
            f"the first in {view.place(wrong.row)}; expected the exact log-density of every row that is used."
        )


def standardiser(
    layout: Layout,
    schema: Schema,
    targets: ColumnTransforms,
    context: ColumnTransforms,
    mean_weight: float | None = None,
) -> Prepare:
    """Return what makes the flow's targets and context of packed records ``[n, itemsize]``.

    With the mean of the weights, the last column of the records, the last one of the context is the weight over it.
    """
    first, last = len(schema.targets), len(schema.columns)
    affine_x, affine_c = _affine(targets), _affine(context)
    plain = layout.is_float32 and mean_weight is None
    if plain and affine_x is not None and affine_c is not None:
        shift, scale = (np.concatenate(both) for both in zip(affine_x, affine_c, strict=True))
        return AffineGather(shift, scale, (first, last - first))
    to_x, to_c = _forward(targets), _forward(context)

    def prepare(records: np.ndarray) -> tuple[Tensor, Tensor]:
        values = layout.decode(records)
        x, c = to_x(values[:, :first]), to_c(values[:, first:last])
        if mean_weight is not None:
            c = np.concatenate([c, values[:, -1:] / mean_weight], axis=1)
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(c.astype(np.float32))

    return prepare


def _affine(transforms: ColumnTransforms) -> tuple[np.ndarray, np.ndarray] | None:
    """Return shifts and scales, where the map is (value − shift) / scale in all columns."""
    if not all(len(steps) == 1 and steps[0]["kind"] == "affine" for steps in transforms.steps):
        return None
    shift, scale = (np.array([steps[0][key] for steps in transforms.steps]) for key in ("shift", "scale"))
    return shift, scale


def _forward(transforms: ColumnTransforms) -> Callable[[np.ndarray], np.ndarray]:
    """Return the map of a table's columns; where it is affine in all of them, in one step rather than in many."""
    affine = _affine(transforms)
    if affine is None:
        return lambda values: transforms.forward(values)[0]
    shift, scale = affine
    return lambda values: (values - shift) / scale


def fits_device(size: int, device: torch.device) -> bool:
    """Say whether a table may be held on a GPU: a third of what is free there, since it is made from pieces."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return 3 * size <= free


def _chunks(view: View, names: list[str]) -> Iterator[Piece]:
    """Yield the named columns as float64, a piece at a time, and the numbers of the rows in the source."""
    where, rows = str(view.reader.path), 0
    for numbers, chunk in view.chunks(names, CHUNK):
        yield {n: exact(v, n, where).astype(np.float64, copy=False) for n, v in chunk.items()}, numbers
        rows += len(numbers)
    if not rows:
        raise DataError(view.nothing_left())


def _described(where: str, reader: Reader) -> dict[str, Any]:
    """Return what a record says of a source that is too large to be hashed whole every time."""
    stats = [path.stat() for path in reader.parts()]
    modified = max(stat.st_mtime for stat in stats)
    return {
        "path": where,
        "bytes": sum(stat.st_size for stat in stats),
        "rows": reader.rows(),
        "modified": datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds"),
        "columns": [{"name": name, "type": kind} for name, kind in reader.columns().items()],
    }
