"""What stands between the steps of a flow: a fixed permutation or a learned matrix, and a normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from fluvial.core import LU, ActNorm, BatchNorm, Bijection, Chain, Permutation

Mixing = Literal["reverse", "permutation", "lu", "none"]
Norm = Literal["none", "batch", "act"]


def mixing_between(kind: Mixing, dim: int, step: int) -> list[Bijection]:
    """Return what to put after step number ``step`` of a flow over ``dim`` coordinates: nothing, or one bijection.

    ``reverse`` turns the order round; ``permutation`` draws an order that is the same in every program (a pure
    function of ``dim`` and ``step``); ``lu`` is a learned matrix.
    """
    if dim == 1 or kind == "none":
        return []
    if kind == "reverse":
        return [Permutation(range(dim - 1, -1, -1))]
    if kind == "permutation":
        generator = torch.Generator().manual_seed(1000 * dim + step)
        return [Permutation(torch.randperm(dim, generator=generator).tolist())]
    if kind == "lu":
        return [LU(dim)]
    raise ValueError(f"Expected mixing to be one of reverse, permutation, lu, none; got {kind!r}.")


def chain_of_steps(
    steps: int, norm: Norm, dim: int, mix: Callable[[int], list[Bijection]], make: Callable[[int], Bijection]
) -> Chain:
    """Return ``steps`` maps, ``make(step)`` each, with a normalisation and ``mix(step)`` between them."""
    bijections: list[Bijection] = []
    for step in range(steps):
        if step:
            bijections += norm_between(norm, dim) + mix(step)
        bijections.append(make(step))
    return Chain(bijections)


def norm_between(kind: Norm, dim: int) -> list[Bijection]:
    """Return the normalisation between two steps: nothing, or one bijection."""
    if kind == "none":
        return []
    if kind == "batch":
        return [BatchNorm(dim)]
    if kind == "act":
        return [ActNorm(dim)]
    raise ValueError(f"Expected norm to be one of none, batch, act; got {kind!r}.")
