"""Flows: architectures built from core and nets."""

from fluvial.flows.autoregressive import MAF, AutoregressiveSpline
from fluvial.flows.build import ARCHITECTURES, build_flow
from fluvial.flows.coupling import CouplingAffine, CouplingSpline
from fluvial.flows.flow import ConditionalFlow, FlowDistribution

__all__ = [
    "ARCHITECTURES",
    "MAF",
    "AutoregressiveSpline",
    "ConditionalFlow",
    "CouplingAffine",
    "CouplingSpline",
    "FlowDistribution",
    "build_flow",
]
