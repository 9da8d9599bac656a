r"""Array columns, such as spectra: rows gathered from where they lie, noise drawn anew, batches of both.

A table of spectra is large and is needed a few rows at a time. So it stays in its file's own type where a numpy file
can be memory-mapped (else as float32 in memory); what a batch needs is gathered, made float32, and standardised by the
network itself (:class:`fluvial.nets.ArrayInput`).

**Noise.** Simulated spectra may be stored without noise, with the size of the noise of every pixel beside them. What a
density is conditioned on is then

.. math:: a = f + \sigma n, \qquad n \sim N(0, 1)

with fresh n for every row in every epoch of training: a network cannot learn noise by heart that it never sees again.
All other rows (validation, test) have one n each, for ever. n is a pure function of (seed, epoch, row).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fluvial.data.schema import Column
from fluvial.data.split import hashed_pair
from fluvial.errors import DataError

#: The epoch of noise that is drawn once and for all; training counts from 1, and searches from 0 downwards.
FOR_EVER = 2**40
#: Numbers looked at at once.
_PIECE = 2**22


class StoredArray:
    """The rows of an array column that are used: ``array[rows]`` gathers some, as float32.

    ``values`` is ``[n, length]`` of any float type, perhaps a memory map; ``rows`` are those of it that are used, in
    order (left out: all).

    >>> stored = StoredArray(np.arange(6.0).reshape(3, 2), np.array([0, 2]))
    >>> len(stored), stored[np.array([1])]
    (2, array([[4., 5.]], dtype=float32))
    """

    def __init__(self, values: np.ndarray, rows: np.ndarray | None = None):
        self.values, self.rows = values, rows

    def __len__(self) -> int:
        return len(self.values) if self.rows is None else len(self.rows)

    @property
    def length(self) -> int:
        """Numbers of a row."""
        return self.values.shape[1]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        # Gathered by numbers, never by a slice: what comes back is new memory, for the caller to change.
        gathered = self.values[np.asarray(rows) if self.rows is None else self.rows[rows]]
        return np.asarray(gathered, dtype=np.float32)

    def kept(self, keep: np.ndarray) -> StoredArray:
        """Return those rows for which ``keep`` holds."""
        return StoredArray(self.values, np.flatnonzero(keep) if self.rows is None else self.rows[keep])

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield all rows, a few at a time, in their own type; and which they are."""
        step = max(1, _PIECE // self.length)
        for start in range(0, len(self), step):
            part = slice(start, min(start + step, len(self)))
            yield part, self.values[part] if self.rows is None else self.values[self.rows[part]]


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on an array column: its size, and the seed that it hangs on.

    Attributes
    ----------
    sigma : float or StoredArray or ndarray
        Its standard deviation, in the column's unit: one number, one of each row ``[n]``, or one of each pixel.
    seed : int
        With the epoch and the number of a row, it fixes the noise of that row.
    """

    sigma: float | np.ndarray | StoredArray
    seed: int

    def kept(self, keep: np.ndarray) -> Noise:
        """Return the noise of those rows for which ``keep`` holds."""
        if isinstance(self.sigma, StoredArray):
            return Noise(self.sigma.kept(keep), self.seed)
        return Noise(self.sigma[keep] if isinstance(self.sigma, np.ndarray) else self.sigma, self.seed)

    def add(self, values: np.ndarray, rows: np.ndarray, epoch: int) -> None:
        """Add the noise of an epoch to ``values: [n, length]`` of ``rows``, in place."""
        noise = torch.empty(values.shape)
        generator = torch.Generator()
        of_epoch = hashed_pair(self.seed, epoch)
        for one, row in zip(noise, rows.tolist(), strict=True):
            one.normal_(generator=generator.manual_seed(hashed_pair(of_epoch, row)))
        drawn = noise.numpy()
        if isinstance(self.sigma, StoredArray):
            drawn *= self.sigma[rows]
        elif isinstance(self.sigma, np.ndarray):
            drawn *= self.sigma[rows, None].astype(np.float32)
        else:
            drawn *= self.sigma
        values += drawn


@dataclass(frozen=True)
class Arrays:
    """The array columns of a table: what is stored, and the noise that is added wherever it is read.

    ``jitter`` is noise that training alone sees, on top.
    """

    stored: Mapping[str, StoredArray]
    noise: Mapping[str, Noise]
    jitter: Mapping[str, Noise]

    @property
    def width(self) -> int:
        """Numbers of a row, of all columns together."""
        return sum(one.length for one in self.stored.values())

    def kept(self, keep: np.ndarray) -> Arrays:
        """Return those rows for which ``keep`` holds."""
        return Arrays(
            {name: one.kept(keep) for name, one in self.stored.items()},
            {name: one.kept(keep) for name, one in self.noise.items()},
            {name: one.kept(keep) for name, one in self.jitter.items()},
        )

    def take(self, rows: np.ndarray, epoch: int = FOR_EVER) -> dict[str, np.ndarray]:
        """Return rows as they are observed, ``[n, length]`` float32 by column; in ``epoch`` of training or for ever."""
        out = {}
        for name, stored in self.stored.items():
            values = stored[rows]
            for noise in (self.noise, self.jitter) if epoch != FOR_EVER else (self.noise,):
                if name in noise:
                    noise[name].add(values, rows, epoch)
            out[name] = values
        return out


class ArrayBatches:
    """Shuffled mini-batches of a table with array columns: scalars in memory, arrays gathered row by row.

    Parameters
    ----------
    targets, scalars : Tensor
        ``[n, D]`` and ``[n, S]``, float32, as the flow sees them.
    arrays : Arrays
        Of the whole table.
    rows : ndarray
        Which rows of the arrays these are, ``[n]``.
    batch_size, seed
        As for :class:`fluvial.data.stream.Batches`.
    device
        Where batches are put.
    """

    def __init__(
        self,
        targets: Tensor,
        scalars: Tensor,
        arrays: Arrays,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self._x, self._scalars, self._arrays, self._numbers = targets, scalars, arrays, rows
        self._batch_size, self.seed, self._device = batch_size, seed, torch.device(device)

    @property
    def rows(self) -> int:
        """The number of rows in an epoch."""
        return len(self._x)

    def __len__(self) -> int:
        return math.ceil(self.rows / self._batch_size)

    def epoch(self, k: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every row once, as ``(x: [b, D], c: [b, S + arrays])``, in an order fixed by the seed and ``k``.

        ``start`` leaves out that many batches: order and noise of the rest stay what they were.
        """
        generator = torch.Generator().manual_seed(hashed_pair(self.seed, k))
        for batch in torch.randperm(self.rows, generator=generator).split(self._batch_size)[start:]:
            gathered = self._arrays.take(self._numbers[batch.numpy()], epoch=k)
            context = torch.cat([self._scalars[batch], *map(torch.from_numpy, gathered.values())], 1)
            yield self._x[batch].to(self._device), context.to(self._device)


@dataclass
class ArrayFaults:
    """What is wrong with an array column: rows, pixels, and the first of them."""

    rows: int = 0
    numbers: int = 0
    first: int = -1
    in_first: int = 0

    def add(self, bad: np.ndarray, start: int) -> None:
        """Count bad numbers of rows from ``start`` on, ``[n, length]``."""
        each = np.count_nonzero(bad, axis=1)
        found = np.flatnonzero(each)
        if found.size and not self.rows:
            self.first, self.in_first = start + int(found[0]), int(each[found[0]])
        self.rows += found.size
        self.numbers += int(each.sum())


def check_array(
    column: Column, stored: StoredArray
) -> tuple[np.ndarray, dict[str, ArrayFaults], tuple[float, float]]:
    """Look at every number of an array column, once.

    Returns which rows are sound, what is ``missing`` (not finite; of a masked column a row is sound as long as it has one
    pixel), ``masked`` (missing pixels of sound rows) and ``outside`` the support, and the range of the finite numbers.
    """
    sound = np.ones(len(stored), dtype=bool)
    faults = {kind: ArrayFaults() for kind in ("missing", "masked", "outside")}
    low, high = math.inf, -math.inf
    for part, values in stored.pieces():
        finite = np.isfinite(values)
        whole = bool(finite.all())
        if not whole:
            absent = np.logical_not(finite)
            lost = (
                np.logical_and.reduce(absent, 1)
                if column.missing == "mask"
                else np.logical_or.reduce(absent, 1)
            )
            faults["missing"].add(absent & np.expand_dims(lost, 1), part.start)
            faults["masked"].add(absent & ~np.expand_dims(lost, 1), part.start)
            sound[part] &= ~lost
        ends = values if whole else values[finite]
        if ends.size:
            smallest, largest = float(ends.min()), float(ends.max())
            low, high = min(low, smallest), max(high, largest)
            if not column.support.contains(np.array([smallest, largest])).all():
                outside = finite & ~column.support.contains(values)
                faults["outside"].add(outside, part.start)
                sound[part] &= ~outside.any(1)
    return sound, faults, (low, high)


def array_values(value: object, column: Column, what: str) -> np.ndarray:
    """Return an array column of a table in memory as float32 ``[*batch, length]``; of Arrow and pandas, lists.

    Raises :class:`~fluvial.errors.DataError` where it is no array of that length, or holds what it cannot.
    """
    from fluvial.data.read_arrow import arrow_to_numpy

    length = column.length
    assert length is not None
    if type(value).__module__.partition(".")[0] == "pyarrow":
        values = arrow_to_numpy(value, column.name, what)
    else:
        try:
            values = np.asarray(value)
            if values.dtype == object and values.ndim == 1 and len(values):  # a column of lists
                values = np.stack([np.asarray(one) for one in values])
        except ValueError as error:
            raise DataError(
                f"{what}: {column.name}: expected arrays of one length, {length} ({error})."
            ) from error
    if values.dtype.kind not in "biuf":
        raise DataError(f"{what}: column {column.name} is not numeric (it holds {values.dtype}).")
    if values.ndim == 0:
        raise DataError(f"{what}: {column.name} is one number; expected an array of {length}.")
    if values.shape[-1] != length:
        raise DataError(
            f"{what}: {column.name} has {values.shape[-1]} numbers; the density's grid has {length}. Resample it to the "
            "density's grid first (spectra: fluvial.apps.stars.resample)."
        )
    values = values.astype(np.float32, copy=False)
    _, faults, _ = check_array(column, StoredArray(values.reshape(-1, length)))
    lost, outside = faults["missing"], faults["outside"]
    if lost.rows:
        whole = (
            "no finite number"
            if column.missing == "mask"
            else f"{lost.in_first} of {length} numbers not finite"
        )
        raise DataError(
            f"{what}: {column.name}: row {lost.first} has {whole} ({lost.rows} rows of {len(values.reshape(-1, length))} "
            f"are so); leave such rows out{_or_mask(column)}."
        )
    if outside.rows:
        raise DataError(
            f"{what}: {column.name}: {outside.in_first} numbers of row {outside.first} are outside the support "
            f"{column.support}."
        )
    return values


def _or_mask(column: Column) -> str:
    if column.missing == "mask":
        return ""
    return f', or fit with missing = "mask" under [columns.{column.name}]'


def describe_faults(
    column: Column, faults: Mapping[str, ArrayFaults], handling: Mapping[str, str], where: Sequence[str]
) -> list[str]:
    """Return what of the faults of an array column is an error; ``where`` names the first row of each kind."""
    lines = []
    lost, outside = faults["missing"], faults["outside"]
    if lost.rows and handling["missing"] == "error":
        mend = 'or set `missing = "drop"` under [data] to drop those rows'
        if column.missing == "error":
            mask = f'`missing = "mask"` under [columns.{column.name}]'
            mend = f"or set {mask} to replace those pixels by their mean, {mend}"
        lines.append(
            f"{column.name}: {lost.numbers} numbers in {lost.rows} rows are not finite, the first in {where[0]} "
            f"({lost.in_first} of {column.length}); mend the data, {mend}"
        )
    if outside.rows and handling["outside"] == "error":
        lines.append(
            f"{column.name}: {outside.numbers} numbers in {outside.rows} rows lie outside the support {column.support}, "
            f"the first in {where[1]} ({outside.in_first} of them); mend the data, widen `support` under "
            f'[columns.{column.name}], or set `outside = "drop"` under [data] to drop those rows'
        )
    return lines
