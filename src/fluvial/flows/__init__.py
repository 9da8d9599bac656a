"""Flows: architectures built from core and nets."""

from fluvial.flows.autoregressive import MAF, AutoregressiveSpline
from fluvial.flows.build import ARCHITECTURES, build_flow
from fluvial.flows.continuous import ContinuousFlow
from fluvial.flows.coupling import CouplingAffine, CouplingSpline
from fluvial.flows.flow import AbstractFlow, ConditionalFlow, FlowDistribution
from fluvial.flows.interop import sbi_estimator

__all__ = [
    "ARCHITECTURES",
    "MAF",
    "AbstractFlow",
    "AutoregressiveSpline",
    "ConditionalFlow",
    "ContinuousFlow",
    "CouplingAffine",
    "CouplingSpline",
    "FlowDistribution",
    "build_flow",
    "sbi_estimator",
]
