"""Flows: architectures built from core and nets."""

from fluvial.flows.amortized import DiagonalGaussian, FullGaussian, Gaussianization
from fluvial.flows.autoregressive import MAF, AutoregressiveSpline
from fluvial.flows.build import ARCHITECTURES, build_flow
from fluvial.flows.continuous import ContinuousFlow
from fluvial.flows.coupling import CouplingAffine, CouplingSpline
from fluvial.flows.encoded import ArrayKind, EncodedFlow, build_encoded_flow
from fluvial.flows.ensemble import EnsembleFlow
from fluvial.flows.flow import AbstractFlow, ConditionalFlow, FlowDistribution
from fluvial.flows.mixed import MixedFlow, build_mixed_flow
from fluvial.flows.mixture import MixtureOfGaussians
from fluvial.flows.point import PointRegression
from fluvial.flows.recalibrated import LatentMap, RecalibratedFlow, recalibrated
from fluvial.flows.sbi import sbi_estimator

__all__ = [
    "ARCHITECTURES",
    "MAF",
    "AbstractFlow",
    "ArrayKind",
    "AutoregressiveSpline",
    "ConditionalFlow",
    "ContinuousFlow",
    "CouplingAffine",
    "CouplingSpline",
    "DiagonalGaussian",
    "EncodedFlow",
    "EnsembleFlow",
    "FlowDistribution",
    "FullGaussian",
    "Gaussianization",
    "LatentMap",
    "MixedFlow",
    "MixtureOfGaussians",
    "PointRegression",
    "RecalibratedFlow",
    "build_encoded_flow",
    "build_flow",
    "build_mixed_flow",
    "recalibrated",
    "sbi_estimator",
]
