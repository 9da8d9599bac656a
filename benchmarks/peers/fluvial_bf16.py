"""This library, with the products of training in bfloat16."""

from __future__ import annotations

from fluvial.flows.flow import AbstractFlow
from fluvial.nets.native import multiplies_in_bf16
from peers.fluvial import FluvialContender
from peers.fluvial import build as build_in_float32
from peers.work import Op, Work


class Bf16Contender(FluvialContender):
    """Trains in bfloat16; all else is that of the contender in float32, and not measured again."""

    ops: tuple[Op, ...] = ("train",)


def build(work: Work) -> FluvialContender:
    """Build the flow as for float32, and let its conditioners multiply in bfloat16."""
    if work.device == "cpu" and not multiplies_in_bf16():
        raise NotImplementedError("this processor has no instructions for bfloat16, or there are no kernels")
    contender = build_in_float32(work, Bf16Contender)
    assert isinstance(contender.module, AbstractFlow)
    contender.module.use_bf16(True)
    return contender
