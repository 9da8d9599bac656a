"""normflows (Stimper et al. 2023, arXiv:2302.12014)."""

from __future__ import annotations

import normflows
from normflows.flows import CoupledRationalQuadraticSpline, Flow, LULinearPermute
from torch import Tensor

from peers.in_torch import TorchContender
from peers.work import BOUND, Work


def build(work: Work) -> TorchContender:
    """Build the flow; normflows keeps its steps in the order from latent to target.

    Raises
    ------
    NotImplementedError
        For a MAF: normflows 1.7 has masked networks with context only as residual blocks, twice the weights.
    """
    if work.architecture == "maf":
        raise NotImplementedError("its plain masked networks take no context")
    base = normflows.distributions.DiagGaussian(work.targets, trainable=False)
    flow = normflows.ConditionalNormalizingFlow(base, _coupling(work))

    def sample(c: Tensor) -> Tensor:
        return flow.sample(len(c), context=c)[0]

    differs = "a spline without context on the other half; "
    differs += "no batch norm" if work.batch_norm else "halves in turn, no permutation"
    if not work.gate:
        differs = "context gates every residual block; " + differs
    return TorchContender(flow, flow.log_prob, sample, differs=differs, device=work.device)


def _coupling(work: Work) -> list[Flow]:
    steps: list[Flow] = []
    for step in range(work.steps):
        if step and work.mixing == "lu":
            steps.append(LULinearPermute(work.targets))
        steps.append(
            CoupledRationalQuadraticSpline(
                work.targets,
                work.blocks,
                work.width,
                num_context_channels=work.context,
                num_bins=work.bins,
                tail_bound=BOUND,
                reverse_mask=step % 2 == 1,
            )
        )
    return steps
