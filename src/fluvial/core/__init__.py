"""Bijections and base densities: mathematics on tensors, torch only."""

from fluvial.core.base import StandardNormal
from fluvial.core.bijection import Bijection, Chain, Inverse
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
    "Columnwise",
    "Elementwise",
    "Inverse",
    "Log",
    "Logit",
    "Permutation",
    "RationalQuadraticSpline",
    "Softplus",
    "StandardNormal",
    "rational_quadratic",
]
