"""This library."""

from __future__ import annotations

import torch
from peers.in_torch import TorchContender
from peers.work import BOUND, LEARNING_RATE, Work
from torch import Tensor

from fluvial.density import CHUNK
from fluvial.flows import build_flow


def build(work: Work) -> TorchContender:
    """Build the flow by name; rows go through in the chunks that a density takes by itself."""
    options = {
        "steps": work.steps,
        "width": work.width,
        "depth": work.blocks,
        "mixing": work.mixing,
        "activation": "relu",
    }
    if work.architecture == "coupling-spline":
        options |= {"residual": True, "bins": work.bins, "bound": BOUND}
    if work.batch_norm:
        options["norm"] = "batch"
    flow = build_flow(work.architecture, targets=work.targets, context=work.context, **options)

    def log_prob(x: Tensor, c: Tensor) -> Tensor:
        return flow(c).log_prob(x)

    def sample(c: Tensor) -> Tensor:
        return flow(c).sample()

    optimizer = torch.optim.AdamW(flow.parameters(), lr=LEARNING_RATE, weight_decay=1e-4, foreach=True)
    return TorchContender(flow, log_prob, sample, optimizer=optimizer, chunk=CHUNK)
