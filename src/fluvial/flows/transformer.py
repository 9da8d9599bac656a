"""What a conditioner steers: a scalar bijection of each coordinate, given its parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fluvial.core.spline import rational_quadratic, spline_parameters


@dataclass(frozen=True)
class AffineTransformer:
    r""":math:`z = x e^{s} + t` with two parameters; \|s\| is squashed below ``limit``, so a step never explodes."""

    limit: float = 3.0
    size: int = 2

    def __call__(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Map ``x: [*batch]`` given ``parameters: [*batch, 2]``; return the value and the log-slope."""
        raw, shift = parameters.unbind(-1)
        log_scale = raw * self.limit / (self.limit + raw.abs())
        if inverse:
            return (x - shift) * (-log_scale).exp(), -log_scale
        return x * log_scale.exp() + shift, log_scale


@dataclass(frozen=True)
class SplineTransformer:
    """A rational-quadratic spline with ``bins`` bins in the box ±``bound``, straight lines beyond."""

    bins: int = 16
    bound: float = 5.0

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"Expected bound of more than 0; got {self.bound:g}.")

    @property
    def size(self) -> int:
        """Parameters per coordinate."""
        return spline_parameters(self.bins)

    def __call__(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Map ``x: [*batch]`` given ``parameters: [*batch, size]``; return the value and the log-slope."""
        return rational_quadratic(x, parameters, bound=self.bound, inverse=inverse)


Transformer = AffineTransformer | SplineTransformer


def total(log_slope: Tensor) -> Tensor:
    """Return the sum over the last dimension: of two or three numbers several times faster than ``sum``."""
    if log_slope.shape[-1] > 3:
        return log_slope.sum(-1)
    first, *others = log_slope.unbind(-1)
    return sum(others, first)


def check_sizes(**sizes: int) -> None:
    """Raise ``ValueError`` unless every size is at least 1 (``context``: 0)."""
    for name, value in sizes.items():
        least = 0 if name == "context" else 1
        if value < least:
            raise ValueError(f"Expected {name} of at least {least}; got {value}.")
