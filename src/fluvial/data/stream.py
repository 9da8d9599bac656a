"""Which rows train, and in which order: splits and shuffled batches, as pure functions of a seed."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from fluvial.errors import DataError, StudyError, nearest

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: the step of SplitMix64


@dataclass(frozen=True)
class Split:
    """The rows of a table, in three disjoint sets: sorted int64 row indices."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_rows(rows: int, fractions: tuple[float, float, float] | Mapping[str, float], seed: int) -> Split:
    r"""Assign every row to train, validation or test, each row by itself.

    Row :math:`i` gets :math:`u_i = \mathrm{SplitMix64}(\mathrm{seed}, i) / 2^{64}`, uniform in [0, 1), and
    falls to the set whose interval of cumulative fractions holds :math:`u_i`. Hence the set of a row depends
    on the seed, the fractions and its position alone: a file that grows by appended rows keeps its splits.
    The price is that the size of a set is binomial, not exact.

    ``fractions`` is (train, validation, test), or a mapping with those keys (an absent one is 0).

    Raises :class:`~fluvial.errors.StudyError` where a fraction is negative or not finite, or their sum is not
    1 to within 1e-6, and :class:`~fluvial.errors.DataError` where a set with a fraction above 0 gets no rows.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    >>> split = split_rows(1000, (0.6, 0.2, 0.2), seed=1)
    >>> [len(s) for s in (split.train, split.validation, split.test)]
    [628, 185, 187]
    """
    names = [f.name for f in fields(Split)]
    shares = _shares(fractions, names)
    edges = np.cumsum(shares)
    # The sum may round to just under 1; the rows above it belong to the last set that takes any.
    edges[np.flatnonzero(shares)[-1] :] = 1.0
    which = np.searchsorted(edges, _uniform(seed, rows), side="right").astype(np.int8)
    split = Split(*(np.flatnonzero(which == i).astype(np.int64, copy=False) for i in range(3)))
    empty = [n for n, share in zip(names, shares, strict=True) if share > 0 and not getattr(split, n).size]
    if empty:
        found = ", ".join(f"{n} = {share:g}" for n, share in zip(names, shares, strict=True))
        raise DataError(
            f"split: none of {rows} rows fall to {' or '.join(empty)} with {found}; give more rows, raise "
            "that fraction in `split` under [data]"
        )
    return split


def _shares(fractions: tuple[float, float, float] | Mapping[str, float], names: list[str]) -> np.ndarray:
    if isinstance(fractions, Mapping):
        for key in fractions:
            if key not in names:
                raise StudyError(f"split: unknown key {key!r}{nearest(key, names)}")
        shares = [fractions.get(name, 0.0) for name in names]
    else:
        shares = list(fractions)
    if len(shares) != 3:
        raise StudyError(f"split: expected three fractions ({', '.join(names)}); got {len(shares)}")
    for name, share in zip(names, shares, strict=True):
        if not (math.isfinite(share) and share >= 0):
            raise StudyError(f"split: expected {name} to be a fraction from 0 to 1; got {share}")
    if abs(math.fsum(shares) - 1) > 1e-6:
        raise StudyError(f"split: expected fractions that sum to 1; got a sum of {math.fsum(shares):g}")
    return np.array(shares, dtype=np.float64)


def _uniform(seed: int, rows: int) -> np.ndarray:
    """Return one number in [0, 1) for each row: the upper 53 bits of its hash, all that float64 holds."""
    counter = _hashed(seed) + np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return (_splitmix64(counter) >> np.uint64(11)) * 2.0**-53


def _hashed(seed: int) -> np.ndarray:
    """Hash a seed of any size and sign; without that, the streams of some seeds are shifts of others."""
    return _splitmix64(np.array([operator.index(seed) & _MASK], dtype=np.uint64))


def _splitmix64(state: np.ndarray) -> np.ndarray:
    """Return the output function of SplitMix64 for each 64-bit state; arithmetic is modulo 2^64."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Batches:
    """Shuffled mini-batches of a table in memory.

    ``targets: [n, D]`` and ``context: [n, C]`` (C may be 0), float32, are held as one contiguous tensor
    ``[n, D + C]`` on their device, so that one gather makes a batch. ``len()`` is the number of batches in an
    epoch; the last one may be smaller.

    Raises :class:`~fluvial.errors.DataError` where shapes, types or devices disagree or there are no rows,
    and :class:`~fluvial.errors.StudyError` where ``batch_size`` is below 1.

    >>> batches = Batches(torch.arange(5.0)[:, None], torch.zeros(5, 2), batch_size=2, seed=1)
    >>> [tuple(x.shape) for x, c in batches.epoch(0)]
    [(2, 1), (2, 1), (1, 1)]
    """

    def __init__(self, targets: Tensor, context: Tensor, batch_size: int, seed: int) -> None:
        if targets.ndim != 2 or context.ndim != 2 or len(targets) != len(context):
            shapes = f"{list(targets.shape)} and {list(context.shape)}"
            raise DataError(f"expected targets [n, D] and context [n, C] with the same n; got {shapes}")
        if len(targets) == 0:
            raise DataError("expected at least one row to make batches of; got none")
        if targets.dtype != context.dtype or targets.device != context.device:
            kinds = f"{targets.dtype} on {targets.device} and {context.dtype} on {context.device}"
            raise DataError(f"expected targets and context of one type on one device; got {kinds}")
        if batch_size < 1:
            raise StudyError(f"batch_size: expected a whole number from 1; got {batch_size}")
        self._table = torch.cat([targets, context], dim=1)
        self._widths = [targets.shape[1], context.shape[1]]
        self._batch_size = batch_size
        self._seed = seed

    @property
    def rows(self) -> int:
        """The number of rows in an epoch."""
        return len(self._table)

    def __len__(self) -> int:
        return math.ceil(self.rows / self._batch_size)

    def epoch(self, k: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every row once, as ``(x: [b, D], c: [b, C])``, in an order fixed by the seed and ``k``.

        The first ``start`` batches are left out: for a fit that has seen them before it was interrupted.
        The order is drawn on the CPU, so that it is the same whatever device holds the table. ``x`` and ``c``
        are views of one gathered block, which belongs to the caller.
        """
        generator = torch.Generator().manual_seed(_epoch_seed(self._seed, k))
        order = torch.randperm(self.rows, generator=generator).to(self._table.device)
        for chosen in order.split(self._batch_size)[start:]:
            x, c = self._table.index_select(0, chosen).split(self._widths, dim=1)
            yield x, c


def _epoch_seed(seed: int, k: int) -> int:
    """Hash (seed, k) to a seed for torch, so that epoch 1 of seed 0 is not epoch 0 of seed 1."""
    step = np.array([(operator.index(k) + 1) * _GAMMA & _MASK], dtype=np.uint64)
    return int(_splitmix64(_hashed(seed) + step)[0])
