"""Loops over shuffled batches of a table that is held in memory, or read row by row: what loading.py measures against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TARGETS, CONTEXT, BATCH = 17, 14, 2048
FILES = 10

Loop = Callable[[], Iterator[Any]]


def in_memory(folder: Path, times: int) -> tuple[Loop, None]:
    """Return fluvial's batches of a table in memory."""
    import torch

    from fluvial.data.stream import Batches

    del times
    x, c = (torch.from_numpy(part) for part in _whole(folder))
    return epochs(Batches(x, c, BATCH, 1).epoch), None


def tensor_dataset(folder: Path, times: int) -> tuple[Loop, None]:
    """Return batches of torch's own Dataset in memory, under its DataLoader."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    del times
    data = TensorDataset(*(torch.from_numpy(part) for part in _whole(folder)))
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    return epochs(lambda _: iter(loader)), None


def row_by_row(folder: Path, times: int, *, workers: int) -> tuple[Loop, None]:
    """Return batches of a Dataset that reads a row a call from many HDF5 files, under torch's DataLoader."""
    import h5py
    import torch
    from torch.utils.data import DataLoader, Dataset

    del times

    class H5Dataset(Dataset):
        """Rows of a 2-D dataset over many files: the files stay open, in every worker its own."""

        def __init__(self, paths: list[Path]) -> None:
            self.paths, self.archives = paths, None
            self.indices = {}
            for a, path in enumerate(paths):
                with h5py.File(path, "r") as archive:
                    for i in range(len(archive["data"])):
                        self.indices[len(self.indices)] = (a, i)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            if self.archives is None:
                self.archives = [h5py.File(path, "r") for path in self.paths]
            a, i = self.indices[index]
            data = self.archives[a]["data"]
            return torch.from_numpy(data[i, :TARGETS]), torch.from_numpy(data[i, TARGETS:])

        def __len__(self) -> int:
            return len(self.indices)

    data = H5Dataset([folder / f"part-{i}.h5" for i in range(FILES)])
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=workers)
    return epochs(lambda _: iter(loader)), None


def epochs(epoch: Callable[[int], Iterable[Any]]) -> Loop:
    def forever() -> Iterator[Any]:
        k = 0
        while True:
            yield from epoch(k)
            k += 1

    return forever


def _whole(folder: Path) -> list[np.ndarray]:
    import h5py

    tables = []
    for i in range(FILES):
        with h5py.File(folder / f"part-{i}.h5", "r") as file:
            tables.append(file["data"][:])
    table = np.concatenate(tables)
    return [np.ascontiguousarray(table[:, :TARGETS]), np.ascontiguousarray(table[:, TARGETS:])]
