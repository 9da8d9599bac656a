"""In which order rows train: shuffled batches, in memory and out of it, as pure functions of a seed.

:class:`Batches` holds a table in memory (or on a GPU); :class:`StreamedBatches` reads rows from a file that
may be larger than memory. Both are a :class:`BatchSource`: an epoch's order depends on the seed and the number
of the epoch alone, can be taken up anywhere, and is the same for one process and for many, each of which gets
its share of every batch.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fluvial.data.gather import AffineGather, Pool, Window, read_windows
from fluvial.data.split import Split, hashed_pair, split_of, split_rows
from fluvial.errors import DataError, StudyError

__all__ = ["BatchSource", "Batches", "Share", "Split", "StreamedBatches", "split_of", "split_rows"]


class BatchSource(Protocol):
    """What training reads: shuffled mini-batches of (targets, context), in an order fixed by a seed.

    ``rows`` is the number of rows in an epoch, ``len()`` its number of batches (both over all processes), and
    ``seed`` what the order depends on, together with the number of the epoch.
    """

    seed: int

    @property
    def rows(self) -> int:
        """The number of rows in an epoch, over all processes."""
        ...

    def __len__(self) -> int: ...

    def epoch(self, k: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of epoch ``k`` from number ``start`` on, as ``(x: [b, D], c: [b, C])``.

        Of several processes, each gets its share of every batch, which may be empty for a last batch with
        fewer rows than there are processes.
        """
        ...


@dataclass(frozen=True)
class Share:
    """Which process of how many this is: it gets the contiguous piece ``rank`` of every batch.

    Piece r of w of a batch of n rows is rows ⌊n r / w⌋ to ⌊n (r + 1) / w⌋, so that sizes differ by at most 1.

    >>> [Share(r, 3).of(7) for r in range(3)]
    [(0, 2), (2, 4), (4, 7)]
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise DataError(f"expected a rank from 0 to {self.world - 1} of {self.world}; got {self.rank}")

    def of(self, n: int) -> tuple[int, int]:
        """Return where this process' piece of a batch of ``n`` rows starts and stops."""
        return n * self.rank // self.world, n * (self.rank + 1) // self.world


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise StudyError(f"batch_size: expected a whole number from 1; got {batch_size}")
    return batch_size


class Batches:
    """Shuffled mini-batches of a table in memory.

    ``targets: [n, D]`` and ``context: [n, C]`` (C may be 0), float32, are held as one contiguous tensor
    ``[n, D + C]`` on their device, so that one gather makes a batch. ``len()`` is the number of batches in an
    epoch; the last one may be smaller. ``share`` is this process' of several.

    Raises :class:`~fluvial.errors.DataError` where shapes, types or devices disagree or there are no rows,
    and :class:`~fluvial.errors.StudyError` where ``batch_size`` is below 1.

    >>> batches = Batches(torch.arange(5.0)[:, None], torch.zeros(5, 2), batch_size=2, seed=1)
    >>> [tuple(x.shape) for x, c in batches.epoch(0)]
    [(2, 1), (2, 1), (1, 1)]
    """

    def __init__(
        self, targets: Tensor, context: Tensor, batch_size: int, seed: int, *, share: Share | None = None
    ) -> None:
        if targets.ndim != 2 or context.ndim != 2 or len(targets) != len(context):
            shapes = f"{list(targets.shape)} and {list(context.shape)}"
            raise DataError(f"expected targets [n, D] and context [n, C] with the same n; got {shapes}")
        if len(targets) == 0:
            raise DataError("expected at least one row to make batches of; got none")
        if targets.dtype != context.dtype or targets.device != context.device:
            kinds = f"{targets.dtype} on {targets.device} and {context.dtype} on {context.device}"
            raise DataError(f"expected targets and context of one type on one device; got {kinds}")
        self._batch_size = _positive(batch_size)
        self._table = torch.cat([targets, context], dim=1)
        self._widths = [targets.shape[1], context.shape[1]]
        self._share = share or Share()
        self.seed = seed

    @property
    def rows(self) -> int:
        """The number of rows in an epoch, over all processes."""
        return len(self._table)

    def __len__(self) -> int:
        return math.ceil(self.rows / self._batch_size)

    def epoch(self, k: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every row once, as ``(x: [b, D], c: [b, C])``, in an order fixed by the seed and ``k``.

        ``start`` leaves out that many batches. The order is drawn on the CPU, so that it is the same whatever
        device holds the table. ``x`` and ``c`` are views of one gathered block, which belongs to the caller.
        """
        generator = torch.Generator().manual_seed(hashed_pair(self.seed, k))
        order = torch.randperm(self.rows, generator=generator).to(self._table.device)
        for batch in order.split(self._batch_size)[start:]:
            chosen = batch[slice(*self._share.of(len(batch)))]
            x, c = self._table.index_select(0, chosen).split(self._widths, dim=1)
            yield x, c


#: Bytes read at once from the file, and bytes of the window in which rows are shuffled: some 130 blocks from all
#: over the file. Larger blocks are read faster, from memory as well as from a disk; a larger window no longer stays in
#: the processor's caches between being read and being gathered.
BLOCK_BYTES, WINDOW_BYTES = 2**15, 2**22
#: About how many rows are handed to ``prepare`` at once: enough that calls cost nothing, few enough to stay in the
#: caches until they are used.
PIECE_ROWS = 16_384
#: Windows read at once: few calls, for each of which a thread of Python waits for the others.
WINDOWS = 4
#: Threads that read and prepare windows, and how often so many are under way or wait: enough that no thread does.
THREADS, AHEAD = 2, 3

Prepare = Callable[[np.ndarray], tuple[Tensor, Tensor]] | AffineGather


class StreamedBatches:
    r"""Shuffled mini-batches of a file of fixed-size records, in memory that does not grow with the file.

    The shuffle has two levels. The file is cut into blocks of consecutive rows, and every *window* gets blocks from
    all over it: of each stretch of as many blocks as there are windows, one, in an order of that stretch's own.
    Then the rows of a window are permuted, and batches are cut from window after window. A file of one window is
    shuffled perfectly. In a longer one, rows from one block share a window. With windows of :math:`m` blocks, the
    mean over a batch of :math:`b` rows of a column of standard deviation :math:`\sigma` has variance

    .. math:: \sigma^2 / b + \tau^2 / m,

    where :math:`\tau^2` is the mean variance of the means of blocks *within a stretch*: of a column by which the file
    is sorted, about :math:`(\sigma / m)^2`; where neighbouring rows are independent, nothing to speak of; and never
    more than about :math:`\sigma^2`, which it is where each block holds one value and neighbouring blocks have
    nothing to do with each other. (Blocks drawn from the whole file would have the variance of all blocks' means
    there, :math:`\sigma^2` for a sorted file.)

    Each window's order is a function of (seed, epoch, window), so that an epoch can be taken up anywhere at
    the price of at most four windows. Threads read and prepare them ahead. Memory holds some twenty windows.

    Parameters
    ----------
    path, rows, itemsize
        The file, of ``rows`` records of ``itemsize`` bytes each.
    prepare
        Makes float32 ``(x: [n, D], c: [n, C])`` of records ``[n, itemsize]`` (uint8, which it may keep). Called
        by several threads at once. An :class:`~fluvial.data.gather.AffineGather` does it while rows are gathered.
    batch_size, seed, share
        As for :class:`Batches`; every process reads the whole file.
    device
        Where batches are put.

    Raises
    ------
    DataError
        If the file does not hold that many records.
    """

    def __init__(
        self,
        path: Path,
        rows: int,
        itemsize: int,
        prepare: Prepare,
        batch_size: int,
        seed: int,
        *,
        share: Share | None = None,
        device: torch.device | str = "cpu",
        block_bytes: int = BLOCK_BYTES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        if rows < 1:
            raise DataError("expected at least one row to make batches of; got none")
        if path.stat().st_size != rows * itemsize:
            raise DataError(
                f"{path}: expected {rows} records of {itemsize} bytes; found {path.stat().st_size} bytes"
            )
        self._path, self._rows, self._itemsize, self._prepare = path, rows, itemsize, prepare
        self._batch_size, self.seed, self._share = _positive(batch_size), seed, share or Share()
        self._device = torch.device(device)
        self._block = max(1, block_bytes // itemsize)
        self._blocks = math.ceil(rows / self._block)
        self._windows = math.ceil(self._blocks / max(1, window_bytes // (self._block * itemsize)))
        self._pool = Pool()

    @property
    def rows(self) -> int:
        """The number of rows in an epoch, over all processes."""
        return self._rows

    def __len__(self) -> int:
        return math.ceil(self._rows / self._batch_size)

    def epoch(self, k: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every row once, as ``(x: [b, D], c: [b, C])``, in an order fixed by the seed and ``k``.

        ``start`` leaves out that many batches. Raises :class:`~fluvial.errors.DataError` where the file can
        no longer be read.
        """
        pieces = self._pieces(k, start * self._batch_size)
        held: deque[tuple[Tensor, Tensor]] = deque()
        try:
            for size in self._sizes()[start:]:
                # Without a row for this process there may be nothing left to take from.
                yield _take(pieces, held, size) if size else self._nothing()
        finally:
            pieces.close()

    def _sizes(self) -> list[int]:
        """Return how many rows of every batch are this process'."""
        last = self._rows - (len(self) - 1) * self._batch_size
        full, short = (stop - begin for begin, stop in map(self._share.of, (self._batch_size, last)))
        return [full] * (len(self) - 1) + [short]

    def _nothing(self) -> tuple[Tensor, Tensor]:
        x, c = self._prepare(np.empty((0, self._itemsize), dtype=np.uint8))
        return x.to(self._device), c.to(self._device)

    def _pieces(self, k: int, skipped: int) -> Generator[tuple[Tensor, Tensor]]:
        """Yield this process' rows after the first ``skipped`` of all, prepared, in order, in pieces."""
        plan = self._plan(k, skipped)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="fluvial-read") as pool:
            under_way: deque[Future[list[tuple[Tensor, Tensor]]]] = deque()

            def go_on(times: int) -> None:
                under_way.extend(pool.submit(self._load, *some) for some in itertools.islice(plan, times))

            try:
                go_on(AHEAD)
                while under_way:
                    loaded = under_way.popleft().result()
                    go_on(1)
                    for x, c in loaded:
                        yield x.to(self._device), c.to(self._device)
            finally:
                pool.shutdown(cancel_futures=True)

    def _plan(self, k: int, skipped: int) -> Iterator[tuple[list[Window], int, int]]:
        """Yield (windows, place of their first row in the epoch, rows to leave out) of what is read at once."""
        seed = hashed_pair(self.seed, k)
        generator = torch.Generator().manual_seed(seed)
        # Which window each block of a stretch goes to; in the last stretch, which may be short, to some of them.
        window_of = torch.rand(math.ceil(self._blocks / self._windows), self._windows, generator=generator)
        window_of = window_of.argsort(dim=1, stable=True).flatten()[: self._blocks]
        counts = window_of.bincount(minlength=self._windows).tolist()
        # Blocks in the order of the file: rows are shuffled anyway.
        blocks = window_of.argsort(stable=True).split(counts)
        place, step = 0, self._block * self._itemsize
        for first in range(0, self._windows, WINDOWS):
            windows = []
            for number, chosen in enumerate(blocks[first : first + WINDOWS], first):
                firsts = chosen.numpy() * step
                lasts = np.minimum(firsts + step, self._rows * self._itemsize)
                windows.append(Window(firsts, lasts, hashed_pair(seed, number)))
            size = sum(w.bytes for w in windows) // self._itemsize
            if place + size > skipped:
                yield windows, place, max(0, skipped - place)
            place += size

    def _load(self, windows: list[Window], place: int, skip: int) -> list[tuple[Tensor, Tensor]]:
        """Read windows, and return this process' rows in their order, prepared, in pieces."""
        keep = self._own(place, sum(w.bytes for w in windows) // self._itemsize, skip)
        affine = self._prepare if isinstance(self._prepare, AffineGather) else None
        try:
            with self._path.open("rb", buffering=0) as file:
                out = read_windows(file, windows, self._itemsize, self._pool, keep, affine)
        except EOFError:
            raise DataError(
                f"{self._path} has become shorter while it was read; restore it, or clear the cache"
            ) from None
        except OSError as error:
            raise DataError(f"{self._path} cannot be read: {error.strerror or error}") from error
        if affine:
            return [(torch.from_numpy(out[0]), torch.from_numpy(out[1]))]
        # Alone, pieces end where batches do, and few batches have to be put together.
        first = -(place + skip) % self._batch_size
        step = max(1, PIECE_ROWS // self._batch_size) * self._batch_size
        ends = [*range(first or step, len(out[0]), step), len(out[0])]
        return [self._prepare(out[0][a:b]) for a, b in itertools.pairwise([0, *ends])]

    def _own(self, place: int, size: int, skip: int) -> np.ndarray | None:
        """Return which of ``size`` rows from ``place`` on in the epoch's order are this process', but for the first."""
        if self._share.world == 1 and not skip:
            return None
        at = np.arange(place, place + size)
        within = at % self._batch_size
        batch = np.minimum(self._batch_size, self._rows - (at - within))
        rank, world = self._share.rank, self._share.world
        own = (within >= batch * rank // world) & (within < batch * (rank + 1) // world)
        own[:skip] = False
        return own


def _take(
    pieces: Iterator[tuple[Tensor, Tensor]], held: deque[tuple[Tensor, Tensor]], n: int
) -> tuple[Tensor, Tensor]:
    """Take the next ``n`` rows off the pieces; what is left of a piece is held for the next calls."""
    if held and held[0][0].shape[0] == n:  # nearly always
        return held.popleft()
    taken: list[tuple[Tensor, Tensor]] = []
    size = n
    while n:
        x, c = held.popleft() if held else next(pieces)
        if len(x) > n:  # a piece is many batches: all are cut at once, which takes less long
            held.extendleft(reversed(list(zip(x[n:].split(size), c[n:].split(size), strict=True))))
            x, c = x[:n], c[:n]
        taken.append((x, c))
        n -= len(x)
    if len(taken) == 1:
        return taken[0]
    return torch.cat([x for x, _ in taken]), torch.cat([c for _, c in taken])
