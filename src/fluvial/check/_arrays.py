"""Shapes, checked once at the boundary, and rows taken in pieces that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fluvial.errors import DataError

_ELEMENTS_AT_ONCE = 1 << 20  # 8 MB of float64: pieces stay in the cache, near enough
_BYTES_PER_ELEMENT = 32  # an element and what is made of it on the way, in float64

Progress = Callable[[int, int], None]
"""What is told (rows done, rows in all) after every piece of work."""


def array(what: str, value: object, shape: tuple[int | str, ...]) -> np.ndarray:
    """Return ``value`` as a real array of the given shape; a letter in ``shape`` stands for any length.

    Raises:
        DataError: another number of axes, another length, or values that are not numbers.
    """
    out = np.asarray(value)
    if out.dtype.kind not in "fiub":
        raise DataError(f"{what}: expected an array of numbers, got dtype {out.dtype}. Convert it to float.")
    fits = out.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, out.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(s) for s in shape)
        found = ", ".join(str(s) for s in out.shape)
        raise DataError(f"{what}: expected shape [{wanted}], got [{found}].")
    return out


def finite(what: str, value: np.ndarray) -> np.ndarray:
    """Return ``value``, all of it finite.

    Raises:
        DataError: NaN or an infinity; the message counts them and names the first row.
    """
    bad = ~np.isfinite(value)
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        count = int(bad.sum())
        raise DataError(f"{what}: expected finite numbers, got {count} that are not, the first in row {row}.")
    return value


def column_names(columns: Sequence[str], count: int) -> list[str]:
    """Return ``columns`` as a list of ``count`` names.

    Raises:
        DataError: another number of names, or one string where a list of names belongs.
    """
    if isinstance(columns, str):
        raise DataError(f"columns: expected a list of names, got the one string {columns!r}.")
    if len(columns) != count:
        raise DataError(
            f"columns: expected {count} names, one per target, got {len(columns)}: {list(columns)}."
        )
    return list(columns)


def truth_and_draws(truth: object, draws: object) -> tuple[np.ndarray, np.ndarray]:
    """Return truth [N, D] and draws [N, S, D] that belong together.

    Raises:
        DataError: shapes that do not agree, no draws, or a truth that is not finite.
    """
    x = finite("truth", array("truth", truth, ("N", "D")))
    y = array("draws", draws, (x.shape[0], "S", x.shape[1]))
    if y.shape[1] < 1:
        raise DataError("draws: expected at least one draw for each row, got none.")
    return x, y


def unit_interval(what: str, values: np.ndarray) -> np.ndarray:
    """Return ``values``, all of them between 0 and 1.

    Raises:
        DataError: values that are not finite, or outside; the message gives their range.
    """
    finite(what, values)
    if values.size and (values.min() < 0.0 or values.max() > 1.0):
        found = f"{values.min():g} to {values.max():g}"
        raise DataError(f"{what}: expected numbers between 0 and 1, got {found}.")
    return values


def pieces(
    rows: int, elements_per_row: int, memory: int | None = None, progress: Progress | None = None
) -> Iterator[slice]:
    """Yield slices that cover ``rows``, each of so many elements that the work on it takes ``memory`` bytes at most.

    One row is the least. Without ``memory``, a slice has about a million elements: some 32 MB.

    Raises:
        DataError: a ``memory`` that is not positive.
    """
    if memory is not None and memory <= 0:
        raise DataError(f"memory: expected a number of bytes greater than 0, got {memory}.")
    elements = _ELEMENTS_AT_ONCE if memory is None else memory // _BYTES_PER_ELEMENT
    step = max(1, elements // max(1, elements_per_row))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield slice(start, stop)
        if progress is not None:
            progress(stop, rows)


def in_batches(
    function: Callable[[slice], Any],
    rows: int,
    elements_per_row: int,
    *,
    memory: int = 1 << 28,
    progress: Progress | None = None,
) -> Any:
    """Return what ``function`` makes of all rows, called on slices that stay within ``memory`` bytes.

    So draws of many contexts need never be held at once: ``function`` draws for the contexts of its slice, and returns
    an array (or a tuple of arrays) whose first axis is the rows of the slice, such as their PIT values, scores or ranks;
    they come back joined.

    ``elements_per_row``: how many numbers a row needs, such as draws × targets; ``memory``: bytes, 256 MB unless given;
    ``progress``: called with (rows done, rows in all).

    Raises:
        DataError: a ``memory`` that is not positive, or no rows.

    >>> x = np.arange(10.0)
    >>> in_batches(lambda rows: 2 * x[rows], 10, 1, memory=100)
    array([ 0.,  2.,  4.,  6.,  8., 10., 12., 14., 16., 18.])
    """
    if rows < 1:
        raise DataError("rows: expected at least one, got none.")
    found = [function(piece) for piece in pieces(rows, elements_per_row, memory, progress)]
    if isinstance(found[0], tuple):
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))
    return np.concatenate(found)
