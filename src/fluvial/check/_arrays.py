"""Shapes, checked once at the boundary, and rows taken in pieces that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fluvial.errors import DataError

_ELEMENTS_AT_ONCE = 1 << 20  # 8 MB of float64: pieces stay in the cache, near enough


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


def pieces(rows: int, elements_per_row: int) -> Iterator[slice]:
    """Yield slices that cover ``rows``, each of about a million elements at most."""
    step = max(1, _ELEMENTS_AT_ONCE // max(1, elements_per_row))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
