"""Random numbers that belong to an object of an event: the same whatever else is drawn, and in whatever order.

They come from a counter-based generator, Philox4x32 with 10 rounds (Salmon, Moraes, Dror & Shaw 2011, "Parallel random
numbers: as easy as 1, 2, 3", SC11), for all rows at once. What names an event (seed, run, luminosity block, event number)
gives a key; the kind of object, its place in the event, the fold and the number of the draw are counted under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]  # each holds 32 bits

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: Sequence[ArrayLike], key: Sequence[ArrayLike]) -> tuple[Words, Words, Words, Words]:
    """Return four random words of 32 bits for each counter (four words) and key (two); shapes broadcast.

    >>> [f"{int(word):08x}" for word in philox((0, 0, 0, 0), (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    a, b, c, d = (np.asarray(word, dtype=np.uint64) for word in counter)
    first, second = (np.asarray(word, dtype=np.uint64) for word in key)
    for step in range(10):
        if step:
            first, second = (first + _WEYL[0]) & _LOW, (second + _WEYL[1]) & _LOW
        ab, cd = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (cd >> _HALF) ^ b ^ first, cd & _LOW, (ab >> _HALF) ^ d ^ second, ab & _LOW
    return a, b, c, d


def event_keys(
    seed: int, run: NDArray[Any], luminosity_block: NDArray[Any], event: NDArray[Any]
) -> tuple[Words, Words, Words]:
    """Return what stands for each event in :func:`uniforms`: three words of 32 bits, made of its names and the seed."""
    # Two rounds, for the names are longer than one counter: the event number has 64 bits, and so has the seed.
    number = np.asarray(event).astype(np.uint64)
    names = (np.asarray(run).astype(np.uint64) & _LOW, np.asarray(luminosity_block).astype(np.uint64) & _LOW)
    counter = (number & _LOW, number >> _HALF, *names)
    mask = 0xFFFFFFFF
    return philox(counter, (seed & mask, seed >> 32 & mask))[:3]


def uniforms(
    keys: tuple[Words, Words, Words], kind: int, index: NDArray[Any], folds: int, size: int
) -> NDArray[np.float64]:
    """Return ``[n, folds, size]`` uniform numbers, strictly between 0 and 1, for n objects.

    Parameters
    ----------
    keys
        Of the event of each object, ``[n]``: see :func:`event_keys`.
    kind
        Which kind of objects they are (a small number); kinds have numbers of their own.
    index
        The place of each object in its event, ``[n]``.
    folds, size
        How many draws an object gets, and how many numbers a draw is made of. More of either leave those there are.

    The numbers are ``(w + 1/2) / 2^32`` with 32 random bits w.

    >>> keys = event_keys(0, np.array([1, 1]), np.array([7, 7]), np.array([42, 43]))
    >>> u = uniforms(keys, 0, np.array([0, 0]), folds=2, size=5)
    >>> u.shape, bool((uniforms(keys, 0, np.array([0, 0]), folds=1, size=3) == u[:, :1, :3]).all())
    ((2, 2, 5), True)
    """
    blocks = -(-size // 4)
    first, second, third = (word[:, None, None] for word in keys)
    place = np.asarray(index).astype(np.uint64)[:, None, None]
    fold = np.arange(folds, dtype=np.uint64)[None, :, None]
    words = philox(
        (place, fold, np.arange(blocks, dtype=np.uint64), third ^ np.uint64(kind)), (first, second)
    )
    stacked = np.stack(np.broadcast_arrays(*words), axis=-1).reshape(len(place), folds, 4 * blocks)
    return (stacked[..., :size] + 0.5) * 2.0**-32
