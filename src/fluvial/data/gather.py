"""Windows of a file in their shuffled order, by the C kernel where it is compiled, else by numpy; into memory used again.

New memory from the system must be made empty page by page, which takes longer than to copy rows into it. A
:class:`Pool` hands out blocks again once nothing refers to what was made of them.
"""

from __future__ import annotations

import math
import os
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO

import numpy as np
import torch
from torch import Tensor

from fluvial.core import native
from fluvial.data.split import GAMMA, splitmix64

#: Blocks of one size that are kept for another time, and the least size; sizes are powers of two.
MOST_FREE, LEAST = 32, 2**16
#: Bytes of a huge page: rows that lie far apart are then found without walks through the system's tables of pages.
HUGE = 2**21


class Pool:
    """Memory that comes back by itself when the arrays (and tensors) over it are gone; for several threads.

    >>> pool = Pool()
    >>> first = pool.empty((2, 3), np.float32)
    >>> at = first.ctypes.data
    >>> del first
    >>> pool.empty((3, 2), np.float32).ctypes.data == at
    True
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[np.ndarray]] = {}

    def empty(self, shape: tuple[int, ...], dtype: type | np.dtype) -> np.ndarray:
        """Return an array of a shape, its values whatever they were."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        room = max(LEAST, 1 << (size - 1).bit_length())
        free = self._free.setdefault(room, deque())
        try:
            block = free.pop()
        except IndexError:
            block = _new(room)
        # Whatever is made of the array refers to it, not to the block: when it goes, the block is free.
        array = np.frombuffer(block.data, dtype=dtype, count=math.prod(shape)).reshape(shape)
        base = array.base if isinstance(array.base, np.ndarray) else array
        weakref.finalize(base, _give_back, free, block).atexit = False
        return array


def _new(size: int) -> np.ndarray:
    """Return new memory; where it is large, whole huge pages (numpy asks the system for them, wherever it begins)."""
    if size < HUGE:
        return np.empty(size, dtype=np.uint8)
    block = np.empty(size + HUGE, dtype=np.uint8)
    return block[-block.ctypes.data % HUGE :][:size]


def _give_back(free: deque[np.ndarray], block: np.ndarray) -> None:
    if len(free) < MOST_FREE:
        free.append(block)


class AffineGather:
    r"""Makes float32 :math:`(v - \text{shift}) / \text{scale}` of chosen rows of float32, in float64, split in x and c.

    Parameters
    ----------
    shift, scale
        ``[D + C]``, float64.
    widths
        D and C.
    """

    def __init__(self, shift: np.ndarray, scale: np.ndarray, widths: tuple[int, int]) -> None:
        self.shift = np.ascontiguousarray(shift, dtype=np.float64)
        self.scale = np.ascontiguousarray(scale, dtype=np.float64)
        self.widths = widths

    def __call__(self, records: np.ndarray, order: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """Return x ``[n, D]`` and c ``[n, C]`` of rows ``order`` (int32; all) of ``records: [m, itemsize]`` (uint8)."""
        order = np.arange(len(records), dtype=np.int32) if order is None else order
        x, c = self.room(len(order), Pool())
        self.fill(records, order, x, c)
        return torch.from_numpy(x), torch.from_numpy(c)

    def room(self, rows: int, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """Return memory for x and c of so many rows."""
        x, c = (pool.empty((rows, width), np.float32) for width in self.widths)
        return x, c

    def fill(self, records: np.ndarray, order: np.ndarray, x: np.ndarray, c: np.ndarray) -> None:
        """Write x and c of rows ``order``."""
        nx, nc = self.widths
        values = records.view(np.float32)[:, : nx + nc][order].astype(np.float64)
        values = (values - self.shift) / self.scale
        x[...], c[...] = values[:, :nx], values[:, nx:]


@dataclass(frozen=True)
class Window:
    """Stretches of a file, bytes ``firsts[i]`` to ``lasts[i]`` (int64), and the seed of the order of their rows."""

    firsts: np.ndarray
    lasts: np.ndarray
    seed: int

    @property
    def bytes(self) -> int:
        """How many bytes it holds."""
        return int((self.lasts - self.firsts).sum())


def read_windows(
    file: FileIO,
    windows: Sequence[Window],
    itemsize: int,
    pool: Pool,
    keep: np.ndarray | None = None,
    affine: AffineGather | None = None,
) -> tuple[np.ndarray, ...]:
    """Read windows of a file, and return their rows, those of each in its order.

    As bytes ``[n, itemsize]``, or, with ``affine``, as x and c. ``keep`` (bool) says which of the rows, so ordered, are
    wanted. With the kernels all is one call, without a word of Python in between, for which a thread would have to wait.
    Raises :class:`OSError` if the file cannot be read, and :class:`EOFError` if it ends before.
    """
    sizes = [w.bytes for w in windows]
    rows = sum(sizes) // itemsize if keep is None else int(keep.sum())
    out = affine.room(rows, pool) if affine else (pool.empty((rows, itemsize), np.uint8),)
    buffer = pool.empty((max(sizes),), np.uint8)
    kernels = native.library()
    if kernels is None:
        done = _read_windows(file, windows, itemsize, buffer, keep, affine, out)
    else:
        blocks = np.array([len(w.firsts) for w in windows])
        firsts, lasts = (np.concatenate([getattr(w, end) for w in windows]) for end in ("firsts", "lasts"))
        seeds = np.array([w.seed for w in windows], dtype=np.uint64)
        order = pool.empty((max(sizes) // itemsize,), np.int32)
        if affine:
            widths, made = affine.widths, (None, affine.shift, affine.scale, *out)
        else:
            widths, made = (0, 0), (*out, None, None, None, None)
        given = [
            None if a is None else a.ctypes.data
            for a in (blocks, firsts, lasts, seeds, buffer, order, keep, *made)
        ]
        done = kernels.fluvial_read_windows(file.fileno(), len(windows), itemsize, *widths, *given)
        if done < 0:
            raise OSError(-done, os.strerror(-done))
    if done != sum(sizes):
        raise EOFError
    return out


def permutation(seed: int, n: int) -> np.ndarray:
    """Return a random order (int32) of n numbers, by Fisher and Yates and splitmix64; the kernel makes the same."""
    i = np.arange(n - 1, 0, -1, dtype=np.uint64)
    z = splitmix64(np.uint64(seed) + i * np.uint64(GAMMA))
    half = np.uint64(32)
    order = list(range(n))
    for a, b in zip(i.tolist(), (((z >> half) * (i + np.uint64(1))) >> half).tolist(), strict=True):
        order[a], order[b] = order[b], order[a]
    return np.array(order, dtype=np.int32)


def _read_windows(
    file: FileIO,
    windows: Sequence[Window],
    itemsize: int,
    buffer: np.ndarray,
    keep: np.ndarray | None,
    affine: AffineGather | None,
    out: tuple[np.ndarray, ...],
) -> int:
    """Do the same without the kernels; return the bytes read."""
    done = place = at = 0
    for window in windows:
        part = buffer[: window.bytes]
        done += _read_stretches(file, window.firsts, window.lasts, part)
        n = len(part) // itemsize
        order = permutation(window.seed, n)
        order = order if keep is None else order[keep[place : place + n]]
        into = [a[at : at + len(order)] for a in out]
        records = part.reshape(n, itemsize)
        if affine:
            affine.fill(records, order, *into)
        else:
            np.take(records, order, axis=0, out=into[0])
        place, at = place + n, at + len(order)
    return done


def _read_stretches(file: FileIO, firsts: np.ndarray, lasts: np.ndarray, buffer: np.ndarray) -> int:
    """Read bytes ``firsts[i]`` to ``lasts[i]`` of a file, one stretch after the other; return how many there were."""
    _advise(file.fileno(), firsts, lasts)
    view, at = memoryview(buffer.data), 0
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        at += _fill(file, first, view[at : at + last - first])
    return at


def _fill(file: FileIO, place: int, view: memoryview) -> int:
    """Read from a place in a file until a buffer is full or the file ends; return the bytes read."""
    done = 0
    while done < len(view):
        if hasattr(os, "preadv"):
            read = os.preadv(file.fileno(), [view[done:]], place + done)
        else:  # one call more
            file.seek(place + done)
            read = file.readinto(view[done:])
        if not read:
            break
        done += read
    return done


def _advise(descriptor: int, firsts: np.ndarray, lasts: np.ndarray) -> None:
    """Tell the system which parts of a file are wanted, so that it fetches many at once (where it can be told)."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            os.posix_fadvise(descriptor, first, last - first, os.POSIX_FADV_WILLNEED)
