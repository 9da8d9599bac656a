"""This library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluvial.density import CHUNK
from fluvial.flows import build_flow
from peers.in_torch import TorchContender
from peers.work import BOUND, LEARNING_RATE, Work


def build(work: Work) -> TorchContender:
    """Build the flow by name; rows go through in the chunks that a density takes by itself."""
    options: dict[str, Any] = {
        "steps": work.steps,
        "width": work.width,
        "depth": work.blocks,
        "mixing": work.mixing,
        "activation": "relu",
    }
    if work.architecture == "coupling-spline":
        options |= {"residual": True, "gate": work.gate, "batch_norm": work.batch_norm}
        options |= {"bins": work.bins, "bound": BOUND}
    flow = build_flow(work.architecture, targets=work.targets, context=work.context, **options)

    def log_prob(x: Tensor, c: Tensor) -> Tensor:
        return flow(c).log_prob(x)

    def sample(c: Tensor) -> Tensor:
        return flow(c).sample()

    optimizer = torch.optim.AdamW(flow.parameters(), lr=LEARNING_RATE, weight_decay=1e-4, foreach=True)
    return TorchContender(flow, log_prob, sample, optimizer=optimizer, chunk=CHUNK)
