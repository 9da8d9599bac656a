"""What a conditioner steers: a scalar bijection of each coordinate, given its parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluvial.core import gpu, native
from fluvial.core.spline import rational_quadratic, spline_parameters


@dataclass(frozen=True)
class AffineTransformer:
    r""":math:`z = x e^{s} + t` with two parameters; \|s\| is squashed below ``limit``, so a step never explodes."""

    limit: float = 3.0
    size: int = 2

    def __call__(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Map ``x: [*batch]`` given ``parameters: [*batch, 2]``; return the value and the log-slope."""
        if native.records_gradients(x, parameters):
            return _Affine.apply(x, parameters, self.limit, inverse)  # type: ignore[return-value]
        if gpu.serves_affine(x, parameters) and not native.is_transformed() and not torch.is_grad_enabled():
            return gpu.affine(x, parameters, self.limit, inverse)
        return _affine(x, parameters, self.limit, inverse=inverse)[:2]


def _affine(
    x: Tensor, parameters: Tensor, limit: float, *, inverse: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return the value and the log-slope, and of what their gradients are made."""
    raw, shift = parameters.unbind(-1)
    squash = limit / (limit + raw.abs())
    log_scale = raw * squash
    if inverse:
        slope = (-log_scale).exp()
        value = (x - shift) * slope
        return value, -log_scale, (slope, squash, -value)
    slope = log_scale.exp()
    product = x * slope
    return product + shift, log_scale, (slope, squash, product)


class _Affine(torch.autograd.Function):
    """:func:`_affine` and its gradient in one step each: of a few numbers a row, every operation costs as much as one."""

    @staticmethod
    def forward(ctx, x: Tensor, parameters: Tensor, limit: float, inverse: bool):  # type: ignore[override]
        ctx.save_for_backward(x, parameters)
        ctx.limit, ctx.inverse = limit, inverse
        if gpu.serves_affine(x, parameters):
            return gpu.affine(x, parameters, limit, inverse)
        value, log_slope, ctx.made = _affine(x, parameters, limit, inverse=inverse)
        return value, log_slope

    @staticmethod
    def backward(ctx, grad_value: Tensor, grad_log_slope: Tensor):  # type: ignore[override]
        if torch.is_grad_enabled():  # the gradient is to have a gradient
            x, parameters = inputs = ctx.saved_tensors
            results = _affine(x, parameters, ctx.limit, inverse=ctx.inverse)[:2]
            wanted = [t for t, need in zip(inputs, ctx.needs_input_grad, strict=False) if need]
            grads = iter(
                torch.autograd.grad(results, wanted, (grad_value, grad_log_slope), create_graph=True)
            )
            return *(next(grads) if need else None for need in ctx.needs_input_grad[:2]), None, None
        if gpu.serves_affine(*ctx.saved_tensors):
            x, parameters = ctx.saved_tensors
            grads = gpu.affine_backward(x, parameters, grad_value, grad_log_slope, ctx.limit, ctx.inverse)
            return *grads, None, None
        slope, squash, by_log_scale = ctx.made
        grad_x = grad_value * slope
        grad_raw = grad_value * by_log_scale
        grad_raw = grad_raw.sub_(grad_log_slope) if ctx.inverse else grad_raw.add_(grad_log_slope)
        grad_shift = -grad_x if ctx.inverse else grad_value
        return grad_x, torch.stack((grad_raw.mul_(squash).mul_(squash), grad_shift), -1), None, None


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
    return _Total.apply(log_slope) if native.records_gradients(log_slope) else _total(log_slope)  # type: ignore[return-value]


def _total(log_slope: Tensor) -> Tensor:
    first, *others = log_slope.unbind(-1)
    return sum(others, first)


class _Total(torch.autograd.Function):
    """:func:`_total`, whose gradient is no new tensor but a view."""

    @staticmethod
    def forward(ctx, log_slope: Tensor):  # type: ignore[override]
        ctx.size = log_slope.shape[-1]
        return _total(log_slope).clone() if ctx.size == 1 else _total(log_slope)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad.unsqueeze(-1).expand(*grad.shape, ctx.size)


def check_sizes(**sizes: int) -> None:
    """Raise ``ValueError`` unless every size is at least 1 (``context``: 0)."""
    for name, value in sizes.items():
        least = 0 if name == "context" else 1
        if value < least:
            raise ValueError(f"Expected {name} of at least {least}; got {value}.")
