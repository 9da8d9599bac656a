"""Bijections and base densities: mathematics on tensors, torch only."""

from fluvial.core.base import StandardNormal, StudentT, Uniform
from fluvial.core.bijection import Bijection, Chain, Inverse
from fluvial.core.circular import CircularSpline, circular_spline
from fluvial.core.elementwise import (
    Affine,
    Arctan,
    ArctanLogit,
    Asinh,
    Columnwise,
    Elementwise,
    Log,
    Logit,
    Softplus,
)
from fluvial.core.gaussianization import gaussianize
from fluvial.core.linear import LU, Permutation
from fluvial.core.monotone import MonotoneSpline
from fluvial.core.norm import ActNorm, BatchNorm
from fluvial.core.spline import RationalQuadraticSpline, rational_quadratic
from fluvial.core.triangular import reflect, rotate, triangular_affine

__all__ = [
    "LU",
    "ActNorm",
    "Affine",
    "Arctan",
    "ArctanLogit",
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
    "MonotoneSpline",
    "Permutation",
    "RationalQuadraticSpline",
    "Softplus",
    "StandardNormal",
    "StudentT",
    "Uniform",
    "circular_spline",
    "gaussianize",
    "rational_quadratic",
    "reflect",
    "rotate",
    "triangular_affine",
]
