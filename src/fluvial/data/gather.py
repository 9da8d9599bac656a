"""Rows of a window in their shuffled order, by the C kernel where it is compiled, else by numpy; into memory used again.

New memory from the system must be made empty page by page, which takes longer than to copy rows into it. A
:class:`Pool` hands out blocks again once nothing refers to what was made of them.
"""

from __future__ import annotations

import math
import os
import weakref
from collections import deque
from io import FileIO

import numpy as np
import torch
from torch import Tensor

from fluvial.core import native

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


def gather(records: np.ndarray, order: np.ndarray, out: np.ndarray) -> None:
    """Put rows ``order`` (int32) of ``records: [n, itemsize]`` (uint8) into ``out``."""
    kernels = native.library()
    if kernels is None:
        np.take(records.view(f"V{records.shape[1]}")[:, 0], order, out=out.view(f"V{records.shape[1]}")[:, 0])
        return
    kernels.fluvial_gather(
        len(order), records.shape[1], records.ctypes.data, order.ctypes.data, out.ctypes.data
    )


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

    def __call__(
        self, records: np.ndarray, order: np.ndarray | None = None, pool: Pool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return x ``[n, D]`` and c ``[n, C]`` of rows ``order`` (int32; all) of ``records: [m, itemsize]`` (uint8)."""
        nx, nc = self.widths
        order = np.arange(len(records), dtype=np.int32) if order is None else order
        pool = pool or Pool()
        x, c = (pool.empty((len(order), width), np.float32) for width in self.widths)
        kernels = native.library()
        if kernels is None:
            values = records.view(np.float32)[:, : nx + nc][order].astype(np.float64)
            values = (values - self.shift) / self.scale
            x[...], c[...] = values[:, :nx], values[:, nx:]
        else:
            arrays = (records, order, self.shift, self.scale, x, c)
            kernels.fluvial_gather_affine(
                len(order), records.shape[1], nx, nc, *(a.ctypes.data for a in arrays)
            )
        return torch.from_numpy(x), torch.from_numpy(c)


def read_stretches(file: FileIO, firsts: np.ndarray, lasts: np.ndarray, buffer: np.ndarray) -> int:
    """Read bytes ``firsts[i]`` to ``lasts[i]`` of a file, one stretch after the other; return how many there were.

    Fewer than asked for if the file ends; raises :class:`OSError` if it cannot be read.
    """
    kernels = native.library()
    if kernels is not None:
        ends = [np.ascontiguousarray(a, dtype=np.int64) for a in (firsts, lasts)]
        done = kernels.fluvial_read(file.fileno(), len(firsts), *(a.ctypes.data for a in (*ends, buffer)))
        if done < 0:
            raise OSError(-done, os.strerror(-done))
        return done
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
