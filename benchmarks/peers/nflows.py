"""nflows (Durkan, Bekasov, Murray & Papamakarios 2020)."""

from __future__ import annotations

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    CompositeTransform,
    LULinear,
    MaskedAffineAutoregressiveTransform,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
    ReversePermutation,
    Transform,
)
from torch import nn

from peers.in_torch import TorchContender
from peers.work import BOUND, Work


def build(work: Work) -> TorchContender:
    """Build the flow out of nflows' transforms."""
    # Draws of one context each: nflows repeats every context once and returns [rows, 1, D].
    steps = _maf(work) if work.architecture == "maf" else _coupling(work)
    flow = Flow(CompositeTransform(steps), StandardNormal([work.targets]))
    differs = "" if work.gate else "context gates every residual block"
    if work.architecture == "maf":
        differs = "the first coordinate of every step is blind to the context"
    return TorchContender(
        flow, flow.log_prob, lambda c: flow.sample(1, c)[:, 0], differs=differs, device=work.device
    )


def _maf(work: Work) -> list[Transform]:
    steps: list[Transform] = []
    for step in range(work.steps):
        if step:
            steps.append(ReversePermutation(work.targets))
        steps.append(
            MaskedAffineAutoregressiveTransform(
                work.targets,
                work.width,
                context_features=work.context,
                num_blocks=work.blocks - 1,
                use_residual_blocks=False,
            )
        )
    return steps


def _coupling(work: Work) -> list[Transform]:
    def conditioner(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(
            inputs,
            outputs,
            work.width,
            context_features=work.context,
            num_blocks=work.blocks,
            use_batch_norm=work.batch_norm,
        )

    steps: list[Transform] = []
    for step in range(work.steps):
        if step:
            steps.append(RandomPermutation(work.targets))
            if work.mixing == "lu":
                steps.append(LULinear(work.targets, identity_init=True))
        mapped = torch.arange(work.targets) >= work.targets // 2
        if work.mixing == "lu" and step % 2 == 1:
            mapped = torch.arange(work.targets) < work.targets // 2
        steps.append(
            PiecewiseRationalQuadraticCouplingTransform(
                mapped.int(), conditioner, num_bins=work.bins, tails="linear", tail_bound=BOUND
            )
        )
    return steps
