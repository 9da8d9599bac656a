"""Which rows train, validate, test and calibrate: a pure function of a seed and the number of the row."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from fluvial.errors import DataError, StudyError, nearest

_MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: the step of SplitMix64


@dataclass(frozen=True)
class Split:
    """The rows of a table, in disjoint sets: sorted int64 row indices. Most splits have no calibration rows."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    calibration: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def split_rows(rows: int, fractions: tuple[float, ...] | Mapping[str, float], seed: int) -> Split:
    r"""Assign every row to train, validation, test or calibration, each row by itself.

    Row :math:`i` gets :math:`u_i = \mathrm{SplitMix64}(\mathrm{seed}, i) / 2^{64}`, uniform in [0, 1), and
    falls to the set whose interval of cumulative fractions holds :math:`u_i`. Hence the set of a row depends
    on the seed, the fractions and its position alone: a file that grows by appended rows keeps its splits.
    The price is that the size of a set is binomial, not exact.

    ``fractions`` is (train, validation, test) or (train, validation, test, calibration), or a mapping with those keys
    (an absent one is 0).

    Raises :class:`~fluvial.errors.StudyError` where a fraction is negative or not finite, or their sum is not
    1 to within 1e-6, and :class:`~fluvial.errors.DataError` where a set with a fraction above 0 gets no rows.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    >>> split = split_rows(1000, (0.6, 0.2, 0.2), seed=1)
    >>> [len(s) for s in (split.train, split.validation, split.test)]
    [628, 185, 187]
    """
    names = [f.name for f in fields(Split)]
    which = split_of(np.arange(rows, dtype=np.uint64), fractions, seed)
    split = Split(*(np.flatnonzero(which == i).astype(np.int64, copy=False) for i in range(len(names))))
    check_split({n: getattr(split, n).size for n in names}, rows, fractions)
    return split


def split_of(rows: np.ndarray, fractions: tuple[float, ...] | Mapping[str, float], seed: int) -> np.ndarray:
    """Return the set of each row number, int8; :func:`split_rows` says how.

    0 train, 1 validation, 2 test, 3 calibration.

    >>> split_of(np.array([0, 1, 3]), (0.6, 0.2, 0.2), seed=1)
    array([1, 0, 2], dtype=int8)
    """
    shares = _shares(fractions, [f.name for f in fields(Split)])
    edges = np.cumsum(shares)
    # The sum may round to just under 1; the rows above it belong to the last set that takes any.
    edges[np.flatnonzero(shares)[-1] :] = 1.0
    return np.searchsorted(edges, uniform(seed, rows), side="right").astype(np.int8)


def check_split(
    sizes: Mapping[str, int], rows: int, fractions: tuple[float, ...] | Mapping[str, float]
) -> None:
    """Raise :class:`~fluvial.errors.DataError` where a set with a fraction above 0 has no rows."""
    shares = dict(zip(sizes, _shares(fractions, list(sizes)), strict=True))
    empty = [name for name, share in shares.items() if share > 0 and not sizes[name]]
    if empty:
        found = ", ".join(f"{n} = {share:g}" for n, share in shares.items())
        raise DataError(
            f"split: none of {rows} rows fall to {' or '.join(empty)} with {found}; give more rows, raise "
            "that fraction in `split` under [data]"
        )


def _shares(fractions: tuple[float, ...] | Mapping[str, float], names: list[str]) -> np.ndarray:
    if isinstance(fractions, Mapping):
        for key in fractions:
            if key not in names:
                raise StudyError(f"split: unknown key {key!r}{nearest(key, names)}")
        shares = [fractions.get(name, 0.0) for name in names]
    else:
        shares = list(fractions) + [0.0] * (len(fractions) == len(names) - 1)
    if len(shares) != len(names):
        raise StudyError(
            f"split: expected three or four fractions ({', '.join(names)}); got {len(fractions)}"
        )
    for name, share in zip(names, shares, strict=True):
        if not (math.isfinite(share) and share >= 0):
            raise StudyError(f"split: expected {name} to be a fraction from 0 to 1; got {share}")
    if abs(math.fsum(shares) - 1) > 1e-6:
        raise StudyError(f"split: expected fractions that sum to 1; got a sum of {math.fsum(shares):g}")
    return np.array(shares, dtype=np.float64)


def uniform(seed: int, rows: np.ndarray) -> np.ndarray:
    """Return one number in [0, 1) for each row number: the upper 53 bits of its hash, all that float64 holds."""
    counter = _hashed(seed) + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA)
    return (splitmix64(counter) >> np.uint64(11)) * 2.0**-53


def _hashed(seed: int) -> np.ndarray:
    """Hash a seed of any size and sign; without that, the streams of some seeds are shifts of others."""
    return splitmix64(np.array([operator.index(seed) & _MASK], dtype=np.uint64))


def splitmix64(state: np.ndarray) -> np.ndarray:
    """Return the output function of SplitMix64 for each 64-bit state; arithmetic is modulo 2^64."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hashed_pair(seed: int, k: int) -> int:
    """Return a seed made of two numbers, so that epoch 1 of seed 0 is not epoch 0 of seed 1."""
    step = np.array([(operator.index(k) + 1) * GAMMA & _MASK], dtype=np.uint64)
    return int(splitmix64(_hashed(seed) + step)[0])
