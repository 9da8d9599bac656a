"""The kernels in C: the same mathematics as PyTorch's operations give, in one sweep over the memory.

They are compiled when fluvial is installed on a machine with a C compiler, serve float32 on a CPU, and are left out
everywhere else (another type or device, ``torch.compile``, ``FLUVIAL_KERNELS=0`` in the environment): results then
differ by rounding alone.
"""

from __future__ import annotations

import ctypes
import math
import os
from ctypes import c_float, c_int, c_long, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = Path(__file__).parent / "kernels" / "kernels.so"


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or ``None`` where there are none.

    A library that is there and cannot be loaded (copied from another kind of machine, say), or is older than these
    sources and lacks a kernel, counts as none.
    """
    if os.environ.get("FLUVIAL_KERNELS") == "0" or not LIBRARY.exists():
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    kernels = (
        "fluvial_spline",
        "fluvial_spline_shared",
        "fluvial_read_windows",
        "fluvial_mlp",
        "fluvial_linear",
    )
    if not all(hasattr(found, name) for name in kernels):
        return None
    settings = [c_long, c_int, c_float, c_float, c_float, c_int, c_int]
    found.fluvial_spline.argtypes = found.fluvial_spline_shared.argtypes = settings + [c_void_p] * 4
    found.fluvial_spline_backward.argtypes = settings + [c_void_p] * 6
    found.fluvial_read_windows.argtypes = [c_int] + [c_long] * 4 + [c_void_p] * 12
    found.fluvial_read_windows.restype = c_long
    found.fluvial_spline.restype = found.fluvial_spline_shared.restype = None
    found.fluvial_spline_backward.restype = None
    return found


def records_gradients(*tensors: Tensor) -> bool:
    """Return whether gradients of these are recorded, and nothing else: no compiler, vmap, jvp and the like."""
    return (
        torch.is_grad_enabled()
        and any(t.requires_grad for t in tensors)
        and not is_transformed()
        and not any(has_tangent(t) for t in tensors)
    )


def has_tangent(tensor: Tensor) -> bool:
    """Return whether a tensor is dual: forward-mode derivatives are asked for."""
    if forward_ad._current_level < 0:  # type: ignore[reportAttributeAccessIssue]  # outside of all, which takes less long
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


def is_transformed() -> bool:
    """Return whether more than the numbers is asked for: a compiled or traced program, vmap and the like, autocast."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[reportPrivateImportUsage]
        or torch._C._functorch.peek_interpreter_stack() is not None  # type: ignore[reportAttributeAccessIssue]
        or torch.is_autocast_enabled("cpu")
    )


@cache
def most_bins() -> int:
    """Return the largest number of bins that the spline's kernel takes; 0 where there is no kernel."""
    found = library()
    return 0 if found is None else int(found.fluvial_most_bins())


def serves_spline(x: Tensor, parameters: Tensor) -> bool:
    """Return whether the kernel can do this spline: ``x: [*batch]``, ``parameters: [*batch, 3K + 1]``."""
    return (
        not torch.compiler.is_compiling()
        and x.dtype == parameters.dtype == torch.float32
        and x.device.type == parameters.device.type == "cpu"
        and (parameters.shape[-1] - 1) // 3 <= most_bins()
    )


def spline(
    x: Tensor, parameters: Tensor, bound: float, floor: float, slope_limit: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Return the value and the log-slope of the spline (see :mod:`fluvial.core.spline`), both like ``x``."""
    x = x.contiguous()
    # One set of parameters, expanded: no copy for each element, and its bins are made once.
    shared = parameters.dim() > 1 and all(
        stride == 0 or size == 1
        for stride, size in zip(parameters.stride()[:-1], parameters.shape[:-1], strict=True)
    )
    parameters = (
        parameters[(0,) * (parameters.dim() - 1)] if shared and x.numel() else parameters
    ).contiguous()
    value, log_slope = torch.empty_like(x), torch.empty_like(x)
    kernel = _library().fluvial_spline_shared if shared else _library().fluvial_spline
    kernel(
        *_settings(x, parameters, bound, floor, slope_limit, inverse),
        *(t.data_ptr() for t in (x, parameters, value, log_slope)),
    )
    return value, log_slope


def spline_backward(
    argument: Tensor,
    parameters: Tensor,
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
    inputs = [t.contiguous() for t in (argument, parameters, grad_value, grad_log_slope)]
    grad_x, grad_parameters = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
    _library().fluvial_spline_backward(
        *_settings(argument, parameters, bound, floor, slope_limit, inverse),
        *(t.data_ptr() for t in (*inputs, grad_x, grad_parameters)),
    )
    return grad_x, grad_parameters


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None, "asked for a kernel although serves_spline says no"
    return found


def _settings(
    x: Tensor, parameters: Tensor, bound: float, floor: float, slope_limit: float, inverse: bool
) -> tuple:
    bins = (parameters.shape[-1] - 1) // 3
    return x.numel(), bins, bound, floor, math.log(slope_limit), int(inverse), torch.get_num_threads()
