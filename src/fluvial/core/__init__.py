"""Bijections and base densities: mathematics on tensors, torch only."""

from fluvial.core.base import StandardNormal, StudentT, Uniform
from fluvial.core.bijection import Bijection, Chain, Inverse
from fluvial.core.circular import CircularSpline, circular_spline
from fluvial.core.elementwise import Affine, Arctan, Asinh, Columnwise, Elementwise, Log, Logit, Softplus
from fluvial.core.linear import LU, Permutation
from fluvial.core.norm import ActNorm, BatchNorm
from fluvial.core.spline import RationalQuadraticSpline, rational_quadratic

__all__ = [
    "LU",
    "ActNorm",
    "Affine",
    "Arctan",
    "Asinh",
    "BatchNorm",
    "Bijection",
    "Chain",
    "CircularSpline",
    "Columnwise",
    "Elementwise",
    "Inverse",
    "Log",
    "Logit",
    "Permutation",
    "RationalQuadraticSpline",
    "Softplus",
    "StandardNormal",
    "StudentT",
    "Uniform",
    "circular_spline",
    "rational_quadratic",
]
