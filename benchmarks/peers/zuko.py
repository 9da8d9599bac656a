"""zuko (Rozet et al.)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from zuko.distributions import DiagNormal
from zuko.flows import MAF, GeneralCouplingTransform
from zuko.lazy import Flow, UnconditionalDistribution
from zuko.transforms import MonotonicRQSTransform

from peers.in_torch import TorchContender
from peers.work import BOUND, Work


def build(work: Work) -> TorchContender:
    """Build the flow out of zuko's lazy transforms."""
    if work.architecture == "maf":
        hidden = (work.width,) * work.blocks
        flow: Flow = MAF(work.targets, work.context, transforms=work.steps, hidden_features=hidden)
        differs = ""
    else:
        flow = _coupling(work)
        differs = "masks take the place of permutations"
        if work.mixing == "lu":
            differs += " and LU; no gates, no batch norm"
    return TorchContender(
        flow,
        lambda x, c: flow(c).log_prob(x),
        lambda c: flow(c).sample(),
        differs=differs,
        device=work.device,
    )


def _coupling(work: Work) -> Flow:
    """Return a coupling flow; zuko's ``NSF`` in two passes is one too, but masks half of its products."""
    torch.manual_seed(0)
    bins = work.bins
    steps = []
    for _ in range(work.steps):
        steering = torch.zeros(work.targets, dtype=torch.bool)
        steering[torch.randperm(work.targets)[: work.targets // 2]] = True
        step = GeneralCouplingTransform(
            work.targets,
            work.context,
            mask=steering,
            univariate=partial(MonotonicRQSTransform, bound=BOUND),
            shapes=[(bins,), (bins,), (bins - 1,)],
        )
        inputs = work.targets // 2
        step.hyper = ResidualNet(
            inputs + work.context, (work.targets - inputs) * (3 * bins - 1), work.width, work.blocks
        )
        steps.append(step)
    base = UnconditionalDistribution(
        DiagNormal, torch.zeros(work.targets), torch.ones(work.targets), buffer=True
    )
    return Flow(steps, base)


class ResidualNet(nn.Module):
    """Pre-activation residual blocks; zuko's own networks that are not masked are plain."""

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int):
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)
