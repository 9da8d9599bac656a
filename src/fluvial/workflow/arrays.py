"""Array columns of a study: read, looked through, and the numbers that standardise them fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fluvial.data.arrays import Arrays, Noise, StoredArray, check_array, describe_faults
from fluvial.data.choice import check_array as check_declared
from fluvial.data.memory import memory_budget
from fluvial.data.schema import Column, Schema
from fluvial.data.select import View
from fluvial.data.split import hashed_pair
from fluvial.density import Density
from fluvial.errors import DataError, StudyError
from fluvial.flows.encoded import EncodedFlow
from fluvial.nets.encoders import Encoder
from fluvial.nets.inputs import ArrayInput
from fluvial.study import Study

if TYPE_CHECKING:
    from fluvial.workflow.data import Rows

#: Rows that are read at once, and training rows that pixels are standardised by, at most.
CHUNK, FITTED_ROWS = 1024, 2000
#: Pixels that are standardised at once; values further out than so many standard deviations do not count.
PIXELS, OUTLIER = 512, 5.0
#: Numbers that an encoder is fitted to, at most: half a gigabyte.
ENCODED_NUMBERS = 2**27
#: Where the record says that an array column was.
MAPPED, IN_MEMORY = "memory-mapped", "in memory"


def check_arrays(study: Study, schema: Schema, where: str) -> None:
    """Raise :class:`~fluvial.errors.StudyError` where a study says of arrays what is for numbers, or vice versa."""
    for column in schema.arrays:
        check_declared(column)
    for name, section in study.columns.items():
        said = [key for key in ("noise", "jitter") if getattr(section, key) is not None]
        said += ["missing"] if section.missing != "error" else []
        said += ["transform"] if section.transform in ("standardise-pixels", "log-clip") else []
        said += (
            ["transform"] if isinstance(section.transform, dict) and "log-clip" in section.transform else []
        )
        if said and name not in [c.name for c in schema.arrays]:
            raise StudyError(
                f"[columns.{name}] {said[0]} is for array columns in the context; {where} has a number a row there."
            )
    if study.encoder and not schema.arrays:
        raise StudyError(
            f"[encoder]: no context column of {where} is an array, so there is nothing to encode."
        )


def read_arrays(
    study: Study, schema: Schema, view: View, numbers: np.ndarray, where: str
) -> tuple[Arrays, np.ndarray, dict[str, Any]]:
    """Read the array columns of rows ``numbers`` of the source, and look at every number once.

    Returns the columns, which rows are sound ``[n]``, and facts for the record.

    Raises
    ------
    DataError
        If numbers are missing or outside a support and the study does not say what then, or memory does not suffice.
    """
    handling = {"missing": study.data.missing, "outside": study.data.outside}
    sizes = [_size(study, c.name, kind) for c in schema.arrays for kind in ("noise", "jitter")]
    names = dict.fromkeys(
        [*(c.name for c in schema.arrays), *(size for size in sizes if isinstance(size, str))]
    )
    held = _held(study, view, list(names), numbers)
    keep = np.ones(len(numbers), dtype=bool)
    faults: list[str] = []
    facts: dict[str, Any] = {}
    for column in schema.arrays:
        stored = held[column.name]
        assert isinstance(stored, StoredArray)
        sound, found, (low, high) = check_array(column, stored)
        keep &= sound
        first = [view.place(int(numbers[max(found[kind].first, 0)])) for kind in ("missing", "outside")]
        faults += describe_faults(column, found, handling, first)
        if low == high:
            faults.append(
                f"{column.name}: every number is {low:g}, so there is nothing to learn; remove it from context"
            )
        mapped = isinstance(stored.values, np.memmap)
        facts[column.name] = {
            "length": column.length,
            "type": str(stored.values.dtype),
            "held": MAPPED if mapped else IN_MEMORY,
            "range": [low, high],
            "masked": found["masked"].numbers,
            "rows_masked": found["masked"].rows,
            "rows_dropped": int(np.count_nonzero(~sound)),
        }
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        raise DataError(f"{where}: the table ({len(numbers)} rows) does not fit the study:\n{listed}")
    if not keep.any():
        raise DataError(f"{where}: no rows are left after dropping those whose arrays are not sound.")
    added = {kind: _noises(study, schema, held, kind, where) for kind in ("noise", "jitter")}
    stored_arrays = {c.name: held[c.name] for c in schema.arrays}
    return Arrays(stored_arrays, added["noise"], added["jitter"]), keep, facts


def _size(study: Study, name: str, kind: str) -> str | float | None:
    section = study.columns.get(name)
    return None if section is None else getattr(section, kind)


def _held(study: Study, view: View, names: list[str], numbers: np.ndarray) -> dict[str, Any]:
    """Return columns of rows ``numbers``: memory-mapped where they can be, else read, arrays as float32."""
    held: dict[str, Any] = {}
    everything = len(numbers) == view.source_rows()
    for name in names:
        stored = view.reader.stored(name) if name in view.reader.columns() else None
        if stored is not None:
            held[name] = StoredArray(stored, None if everything else numbers)
    rest = [name for name in names if name not in held]
    if not rest:
        return held
    lengths = {name: view.length(name) for name in rest}
    size, budget = 4 * len(numbers) * sum(n or 1 for n in lengths.values()), memory_budget(study.data.memory)
    if size > budget:
        raise DataError(
            f"{view.reader.path}: {', '.join(rest)} take {size / 1e9:.2f} GB for {len(numbers)} rows, more than the "
            f"{budget / 1e9:.2f} GB that [data] memory allows. Save them as plain npy files side by side (spectra.npy, "
            "labels.npy), which are read from disk as they are needed, or raise memory."
        )
    for name, length in lengths.items():
        held[name] = np.empty((len(numbers), length) if length else len(numbers), np.float32)
    row = 0
    for of, chunk in view.chunks(rest, CHUNK):
        for name in rest:
            held[name][row : row + len(of)] = chunk[name]
        row += len(of)
    return held | {name: StoredArray(held[name]) for name, length in lengths.items() if length}


def _noises(study: Study, schema: Schema, held: dict[str, Any], kind: str, where: str) -> dict[str, Noise]:
    """Return the noise of every column that has some, its size looked through."""
    noises = {}
    for number, column in enumerate(schema.arrays):
        size = _size(study, column.name, kind)
        if size is None:
            continue
        sigma = held[size] if isinstance(size, str) else size
        if isinstance(sigma, StoredArray) and sigma.length != column.length:
            raise DataError(
                f"{where}: [columns.{column.name}] {kind} = {size!r} has {sigma.length} numbers a row; expected "
                f"{column.length}, as {column.name} has, or one."
            )
        pieces = sigma.pieces() if isinstance(sigma, StoredArray) else [(slice(None), np.atleast_1d(sigma))]
        for part, values in pieces:
            with np.errstate(invalid="ignore"):
                bad = values < 0 if column.missing == "mask" else ~((values >= 0) & np.isfinite(values))
            if bad.any():
                row = (part.start or 0) + int(np.argmax(bad.reshape(len(bad), -1).any(1)))
                raise DataError(
                    f"{where}: [columns.{column.name}] {kind} = {size!r}: expected standard deviations from 0, finite; "
                    f"found {values[bad].flat[0]:g} in row {row} of those that are used."
                )
        seed = hashed_pair(study.data.seed, 2 * number + (kind == "jitter"))
        noises[column.name] = Noise(sigma, seed)
    return noises


def fit_inputs(density: Density, rows: Rows) -> None:
    """Fit what standardises the arrays of a density to its training rows, as they are observed."""
    if rows.arrays is None:
        return
    assert isinstance(density.flow, EncodedFlow)
    train = rows.split.train
    chosen = train[np.linspace(0, len(train) - 1, min(len(train), FITTED_ROWS)).round().astype(int)]
    taken = rows.arrays.take(chosen)
    for column, module in zip(density.schema.arrays, density.flow.inputs, strict=True):
        assert isinstance(module, ArrayInput)
        _fit(module, column, taken[column.name])
    arrays = [torch.from_numpy(taken[c.name]) for c in density.schema.arrays]
    with torch.no_grad():
        distances = density.flow.distances(arrays)
    _fit_encoders(density.flow, density.schema, rows)
    for column, of in zip(density.schema.arrays, distances, strict=True):
        density.array_range[column.name] = (float(of.min()), float(of.max()))


def _fit_encoders(flow: EncodedFlow, schema: Schema, rows: Rows) -> None:
    """Fit what encoders take from the training rows before they train, if they take anything."""
    assert rows.arrays is not None
    train = rows.split.train
    for members, encoder in zip(flow.members, flow.encoders, strict=True):
        assert isinstance(encoder, Encoder)
        if not encoder.fitted:
            continue
        number = min(len(train), max(1, ENCODED_NUMBERS // (encoder.length * encoder.channels)))
        chosen = train[np.linspace(0, len(train) - 1, number).round().astype(int)]
        x = torch.empty(number, encoder.channels, encoder.length)
        for start in range(0, number, CHUNK):
            part = slice(start, start + CHUNK)
            taken = rows.arrays.take(chosen[part])
            for channel, i in enumerate(members):
                with torch.no_grad():
                    x[part, channel] = flow.inputs[i](torch.from_numpy(taken[schema.arrays[i].name]))
        encoder.fit(x)


def _fit(module: ArrayInput, column: Column, values: np.ndarray) -> None:
    pixelwise = module.shift.numel() > 1
    shift, scale = np.empty(values.shape[1]), np.empty(values.shape[1])
    for start in range(0, values.shape[1], PIXELS):
        part = slice(start, start + PIXELS)
        block = values[:, part].astype(np.float64)
        if module.clip is not None:
            block = np.log(np.maximum(block, module.clip))  # NaN stays NaN
        block[~np.isfinite(block)] = np.nan
        shift[part], scale[part] = _moments(block)
    if not pixelwise:
        # Of all pixels together: the mean of means, and the spread within pixels and between them.
        mean = float(np.nanmean(shift))
        spread = float(np.sqrt(np.nanmean(scale**2 + (shift - mean) ** 2)))
        shift, scale = np.array([mean]), np.array([spread])
    usual = float(np.nanmax(scale)) if np.isfinite(scale).any() else 0.0
    if not usual > 0:
        raise DataError(
            f"Column {column.name}: every row of the train split holds the same numbers, so there is nothing to learn; "
            "remove it from context under [data], or give more rows."
        )
    # A pixel that never varies, or is never there, says nothing: it stays at 0.
    dead = ~(scale > 1e-6 * usual)
    module.set(
        torch.from_numpy(np.where(np.isfinite(shift), shift, 0.0)).float(),
        torch.from_numpy(np.where(dead, usual, scale)).float(),
    )


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of columns without what lies far out; NaN where nothing is there."""
    known = np.isfinite(values)
    mean = scale = np.full(values.shape[1], np.nan)
    for _ in range(3):
        count = known.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(known, values, 0.0).sum(0) / count
            away = np.where(known, values - mean, 0.0)
            scale = np.sqrt(np.square(away).sum(0) / count)
            known &= np.abs(away) <= OUTLIER * scale
    return mean, scale


def describe_inputs(density: Density) -> dict[str, str]:
    """Return one readable line for each array column, such as ``log(max(x, 0.2)), each pixel (· − m) / s``."""
    lines = {}
    modules = density.flow.inputs if isinstance(density.flow, EncodedFlow) else []
    for column, module in zip(density.schema.arrays, modules, strict=True):
        assert isinstance(module, ArrayInput)
        first = "" if module.clip is None else f"log(max(x, {module.clip:g})), "
        if module.shift.numel() > 1:
            low, high = float(module.scale.min()), float(module.scale.max())
            rest = f"each of {module.length} pixels (· − m) / s, s from {low:.3g} to {high:.3g}"
        else:
            rest = (
                f"(· − {float(module.shift):.4g}) / {float(module.scale):.4g} in all {module.length} pixels"
            )
        lines[column.name] = first + rest
    return lines


def masked_notes(about: Mapping[str, Any]) -> list[str]:
    """Return a line for each array column some of whose pixels are missing."""
    return [
        f"{name}: {one['masked']} missing numbers in {one['rows_masked']} rows stand at their mean"
        for name, one in about.items()
        if one["masked"]
    ]
