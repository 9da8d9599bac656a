"""This library."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.conditional import CHUNK
from fluvial.flows import build_flow
from fluvial.flows.flow import AbstractFlow
from peers.in_torch import TorchContender
from peers.work import BOUND, LEARNING_RATE, Work


class FluvialContender(TorchContender):
    """A flow of this library, whose own training step takes a large batch in pieces."""

    def train_step(self, x: np.ndarray, c: np.ndarray) -> float:
        """Take one step of AdamW, as ``fluvial fit`` does, and return the loss before it."""
        flow = self.module
        assert isinstance(flow, AbstractFlow)
        flow.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = flow.backward(self.tensor(x), self.tensor(c))
        self.optimizer.step()
        return loss.item()


def build(work: Work, kind: type[FluvialContender] = FluvialContender) -> FluvialContender:
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
    flow.to(work.device)

    def log_prob(x: Tensor, c: Tensor) -> Tensor:
        return flow(c).log_prob(x)

    def sample(c: Tensor) -> Tensor:
        return flow(c).sample()

    optimizer = torch.optim.AdamW(flow.parameters(), lr=LEARNING_RATE, weight_decay=1e-4, fused=True)
    chunk = CHUNK if work.device == "cpu" else None
    return kind(flow, log_prob, sample, optimizer=optimizer, chunk=chunk, device=work.device)
