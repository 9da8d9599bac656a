"""The spline on an NVIDIA GPU, by kernels in Triton.

What PyTorch's operations do in a dozen sweeps over the parameters, and as many for the gradient, is here one sweep each.
Triton comes with PyTorch for CUDA; where it is missing, for another type or device, and inside ``torch.compile``,
:mod:`fluvial.core.spline` has the same in PyTorch's operations: results differ by rounding alone. Parameters may be
bfloat16; everything is computed in float32.
"""

from __future__ import annotations

import math
import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

#: Parameters of one kind that a program, which is one warp, holds at once; and elements of one that sees few numbers.
_TILE, _BLOCK = 1024, 256


@cache
def available() -> bool:
    """Return whether there is Triton and kernels are not switched off (``FLUVIAL_KERNELS=0``)."""
    return os.environ.get("FLUVIAL_KERNELS") != "0" and find_spec("triton") is not None


@cache
def _kernels() -> Any:
    from fluvial.core import gpu_kernels  # which needs Triton

    return gpu_kernels


def serves_spline(x: Tensor, parameters: Tensor) -> bool:
    """Return whether the kernel can do this spline: ``x: [*batch]``, ``parameters: [*batch, 3K + 1]``."""
    return (
        x.is_cuda
        and parameters.is_cuda
        and x.dtype == torch.float32
        and parameters.dtype in (torch.float32, torch.bfloat16)
        and not torch.compiler.is_compiling()
        and available()
    )


def spline(
    x: Tensor, parameters: Tensor, bound: float, floor: float, slope_limit: float, inverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value and the log-slope of the spline (see :mod:`fluvial.core.spline`), both like ``x``.

    And what :func:`spline_backward` needs: a table of the bins.
    """
    x = x.contiguous()
    parameters, group, stride = _laid_out(parameters)
    value, log_slope = torch.empty_like(x), torch.empty_like(x)
    count, bins = x.numel(), (parameters.shape[-1] - 1) // 3
    table = x.new_empty(_kernels().FOUND, count)
    if count:
        grid, sizes = _tiles(count, bins)
        _kernels().find[grid](
            x, parameters, table, count, group, stride, bound, floor, INVERSE=inverse, num_warps=1, **sizes
        )
        _kernels().evaluate[(-(-count // _BLOCK),)](
            x, table, value, log_slope, count, bound, floor, math.log(slope_limit),
            INVERSE=inverse, BINS=bins, BLOCK=_BLOCK,
        )  # fmt: skip
    return value, log_slope, table


def spline_backward(
    argument: Tensor,
    parameters: Tensor,
    table: Tensor,
    grad_value: Tensor,
    grad_log_slope: Tensor,
    bound: float,
    floor: float,
    slope_limit: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the parameters.

    ``argument`` is that of the *forward* map: where the inverse was applied, its value.
    """
    argument, grad_value, grad_log_slope = (t.contiguous() for t in (argument, grad_value, grad_log_slope))
    parameters, group, stride = _laid_out(parameters)
    grad_x = torch.empty_like(argument)
    count, bins = argument.numel(), (parameters.shape[-1] - 1) // 3
    gradients = argument.new_empty(_kernels().GRADIENTS, count)
    # Laid out as the parameters are, and to the end of the last row's padding.
    rows = count // group if stride else 1
    memory = parameters.new_empty(rows * (stride or parameters.numel()))
    grad_parameters = memory.as_strided(parameters.shape, parameters.stride())
    if count:
        _kernels().differentiate[(-(-count // _BLOCK),)](
            argument, table, grad_value, grad_log_slope, grad_x, gradients, count, bound, floor, math.log(slope_limit),
            INVERSE=inverse, BINS=bins, BLOCK=_BLOCK,
        )  # fmt: skip
        grid, sizes = _tiles(count, bins)
        _kernels().scatter[grid](
            parameters, table, gradients, grad_parameters, count, group, stride, num_warps=1, **sizes
        )
    return grad_x, grad_parameters


def _laid_out(parameters: Tensor) -> tuple[Tensor, int, int]:
    """Return parameters as the kernels read them: so many sets side by side, and the distance to the next so many.

    Rows may be padded: ``[n, D, 3K + 1]`` out of a matrix of more columns.
    """
    size = parameters.shape[-1]
    if parameters.dim() == 3 and parameters.stride()[1:] == (size, 1) and parameters.stride(0) >= size:
        return parameters, parameters.shape[1], parameters.stride(0)
    return parameters.contiguous(), max(1, parameters[..., 0].numel()), 0


def _tiles(count: int, bins: int) -> tuple[tuple[int], dict[str, int]]:
    """Return how many programs there are, and the sizes that are compiled in."""
    padded = 1 << max(bins - 1, 1).bit_length()
    rows = max(1, min(32, _TILE // padded))
    return (-(-count // rows),), {"BINS": bins, "PADDED": padded, "ROWS": rows}


def serves_affine(x: Tensor, parameters: Tensor) -> bool:
    """Return whether the kernel can do an affine map: ``x: [*batch]``, ``parameters: [*batch, 2]``."""
    return serves_spline(x, parameters) and parameters.dtype == x.dtype and x.shape == parameters.shape[:-1]


def affine(x: Tensor, parameters: Tensor, limit: float, inverse: bool) -> tuple[Tensor, Tensor]:
    """Return value and log-slope of :class:`fluvial.flows.transformer.AffineTransformer`'s map, both like ``x``."""
    x, parameters = x.contiguous(), parameters.contiguous()
    value, log_slope = torch.empty_like(x), torch.empty_like(x)
    if count := x.numel():
        _kernels().affine[(-(-count // _BLOCK),)](
            x, parameters, value, log_slope, count, limit, INVERSE=inverse, BLOCK=_BLOCK
        )
    return value, log_slope


def affine_backward(
    x: Tensor, parameters: Tensor, grad_value: Tensor, grad_log_slope: Tensor, limit: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the parameters."""
    x, parameters, grad_value, grad_log_slope = (
        t.contiguous() for t in (x, parameters, grad_value, grad_log_slope)
    )
    grad_x, grad_parameters = torch.empty_like(x), torch.empty_like(parameters)
    if count := x.numel():
        _kernels().affine_backward[(-(-count // _BLOCK),)](
            x, parameters, grad_value, grad_log_slope, grad_x, grad_parameters, count, limit,
            INVERSE=inverse, BLOCK=_BLOCK,
        )  # fmt: skip
    return grad_x, grad_parameters
