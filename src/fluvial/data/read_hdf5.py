"""HDF5, through h5py: a dataset a column, 2-D datasets, compound ones, in groups or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.data.read_base import Field, TableReader, numbers
from fluvial.data.read_numpy import common_rows, odd_length
from fluvial.errors import DataError, nearest
from fluvial.extras import optional_module


class Hdf5Reader(TableReader):
    """The datasets of an HDF5 file as columns, named by their path: ``pt``, ``jets/pt``.

    A dataset ``[rows]`` is a scalar column; ``data [rows, 31]`` an array column, whose elements ``data[0]`` to
    ``data[30]`` are scalar ones; of a compound dataset every field is a column, by its own name where the file
    holds no other dataset, else as ``events/pt``. The number of rows is that of most datasets.

    ``inside`` is a group or a dataset to read instead of the whole file (``"file.h5:jets"`` in a study).
    """

    def __init__(self, path: Path, inside: str | None = None) -> None:
        self.path = path
        shapes: dict[str, tuple[int, ...]] = {}
        kinds: dict[str, np.dtype[Any]] = {}
        self._place: dict[str, tuple[str, str | None]] = {}  # column: dataset, field of a compound one
        with self._open() as file:
            found = self._datasets(file, inside)
            for name, dataset in found.items():
                if dataset.dtype.names is None:
                    self._place[name] = (dataset.name, None)
                    shapes[name], kinds[name] = dataset.shape, dataset.dtype
                    continue
                for field in dataset.dtype.names:
                    column = field if len(found) == 1 else f"{name}/{field}"
                    kind, shape = dataset.dtype[field].base, dataset.dtype[field].shape
                    self._place[column] = (dataset.name, field)
                    shapes[column], kinds[column] = (*dataset.shape, *shape), kind
        self._shapes = shapes
        self._rows = common_rows(shapes, path)
        self._fields = [
            Field(name, str(kinds[name]), int(np.prod(shape[1:])) if len(shape) > 1 else None)
            for name, shape in shapes.items()
            if shape[:1] == (self._rows,)
        ]

    def _open(self) -> Any:
        h5py = optional_module("h5py", "hdf5")
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise DataError(_fault(self.path, error)) from error

    def _datasets(self, file: Any, inside: str | None) -> dict[str, Any]:
        h5py = optional_module("h5py", "hdf5")
        every: dict[str, Any] = {}
        file.visititems(lambda name, item: every.update({name: item}))
        if inside is not None:
            if inside not in every:
                raise DataError(f"{self.path}: no group or dataset {inside!r}{nearest(inside, every)}")
            if isinstance(every[inside], h5py.Dataset):
                return {inside.rpartition("/")[2]: every[inside]}
            start = inside.rstrip("/") + "/"
            every = {name.removeprefix(start): item for name, item in every.items() if name.startswith(start)}
        datasets = {name: item for name, item in every.items() if isinstance(item, h5py.Dataset)}
        if not datasets:
            raise DataError(
                f"{self.path} holds no datasets{f' in {inside!r}' if inside else ''}; expected one a column"
            )
        return datasets

    def _find(self, name: str) -> tuple[Field, int | None]:
        shape = self._shapes.get(name)
        if shape is not None and shape[:1] != (self._rows,):
            raise DataError(odd_length(name, shape, self._rows, self.path))
        return super()._find(name)

    def _blocks(self, names: list[str], rows: int, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        with self._open() as file:
            for row in range(start, stop, rows):
                end = min(row + rows, stop)
                blocks: dict[str, np.ndarray] = {}  # a compound dataset is read once for all its fields
                out = {}
                for name in names:
                    place, field = self._place[name]
                    if place not in blocks:
                        blocks[place] = self._slice(file, place, row, end)
                    values = blocks[place] if field is None else blocks[place][field]
                    flat = values.reshape(len(values), -1) if values.ndim > 1 else values
                    out[name] = numbers(flat, name, str(self.path), row)
                yield out

    def _slice(self, file: Any, place: str, start: int, stop: int) -> np.ndarray:
        try:
            return file[place][start:stop]
        except OSError as error:
            raise DataError(
                f"{self.path}: rows {start} to {stop - 1} of dataset {place!r} cannot be read ({error}); the file "
                "looks corrupt: copy or write it again"
            ) from error


def _fault(path: Path, error: OSError) -> str:
    if "truncated" in str(error):
        size = path.stat().st_size
        return f"{path} looks truncated: it holds {size} bytes, fewer than its header says; copy or write it again"
    with path.open("rb") as file:
        head = file.read(8)
    if head[1:4] != b"HDF":
        return f"{path} is not an HDF5 file: it starts with {head!r}; mend the suffix, or copy it again"
    return f"{path} cannot be read as HDF5 ({error}); copy or write it again"
