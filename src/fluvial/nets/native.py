"""Whole conditioners by a kernel in C: what :class:`fluvial.nets.MLP` computes, a tile of rows at a time.

The rows of a tile go through all layers while their activations are in the caches; bias, activation, gate and sum are
made in the registers that hold a product, and weights that a mask holds at zero are not multiplied. The kernel serves
float32 on a CPU, and PyTorch's operations everywhere else: results differ by rounding alone.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, byref, c_int, c_long, c_void_p
from functools import cache, partial
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fluvial.core import native

if TYPE_CHECKING:
    from fluvial.nets.mlp import MLP

ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.SiLU, nn.ELU, nn.Tanh)  # as the kernel counts them
#: Fewer rows than this do not repay the rearranging of the weights.
LEAST_ROWS = 16
_PADDED = 32  # columns, as the kernel's PAD
#: Memory of forward passes that a backward pass is done with, and how many numbers of it are kept: 128 MiB.
_done: list[Tensor] = []
_KEPT = 2**25
_lock = Lock()


class _Linear(Structure):
    _fields_ = (
        *(
            (name, c_void_p)
            for name in ("weight", "bias", "grad_weight", "grad_bias", "reach", "begin", "scale", "shift")
        ),
        ("outputs", c_long),
        ("inputs", c_long),
    )


class _Network(Structure):
    _fields_ = (
        ("maps", POINTER(_Linear)),
        *(
            (name, c_int)
            for name in (
                *(
                    "inputs",
                    "context",
                    "width",
                    "outputs",
                    "hidden",
                    "gates",
                    "residual",
                    "activation",
                    "bf16",
                ),
            )
        ),
    )


@cache
def _library() -> ctypes.CDLL | None:
    found = native.library()
    if found is not None:
        found.fluvial_mlp_saved.argtypes = [POINTER(_Network), c_long]
        found.fluvial_mlp_saved.restype = c_long
        found.fluvial_mlp.argtypes = [POINTER(_Network), c_long, c_int] + [c_void_p] * 4
        found.fluvial_mlp_backward.argtypes = [POINTER(_Network), c_long, c_int] + [c_void_p] * 6
        found.fluvial_linear.argtypes = [POINTER(_Linear), c_int, c_long, c_int] + [c_void_p] * 2
        found.fluvial_linear_backward.argtypes = [POINTER(_Linear), c_int, c_long, c_int] + [c_void_p] * 3
        found.fluvial_linear.restype = found.fluvial_linear_backward.restype = c_int
        found.fluvial_mlp.restype = found.fluvial_mlp_backward.restype = c_int
    return found


def serves(net: MLP, x: Tensor, context: Tensor | None) -> bool:
    """Return whether the kernel can take these rows through the whole of this network, as both now are."""
    if net.norms and (net.training or torch.is_grad_enabled()):
        return False
    return not (net.dropout is not None and net.training) and serves_products(net, x, context)


def serves_products(net: MLP, x: Tensor, context: Tensor | None) -> bool:
    """Return whether the kernel can make the products of this network, as it and the rows now are."""
    given = (x,) if context is None else (x, context)
    return (
        _library() is not None
        and not native.is_transformed()
        and all(type(t) in (Tensor, nn.Parameter) and t.shape[:-1] == x.shape[:-1] for t in given)
        and sum(t.shape[-1] for t in given) == net.first.in_features
        and net.context == (0 if context is None else context.shape[-1])
        and x.shape[:-1].numel() >= LEAST_ROWS
        and not (net.bf16 and net.training and not multiplies_in_bf16())
        and not net.constant
        and all(_serves_tensor(t) for t in (*given, *_parameters(net)))
    )


def serves_part(net: MLP, x: Tensor) -> bool:
    """Return whether the kernel can take rows through some units of this network, without gates and context."""
    return (
        _library() is not None
        and not native.is_transformed()
        and not net.gates
        and not net.norms
        and not (net.training and (net.bf16 or net.dropout is not None))
        and len(x) >= LEAST_ROWS
        and all(_serves_tensor(t) for t in (x, *_parameters(net)))
    )


def _parameters(net: MLP) -> list[Tensor]:
    """Return the parameters, several times faster than the network by itself."""
    return [t for m in (*net.linears(), *net.norms) for t in (m.weight, m.bias)]  # type: ignore[reportReturnType]


def part(net: MLP, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return what some units of a network give for ``x: [n, inputs]``, where :func:`serves_part` says so.

    ``weights`` are weight and bias of every map, cut to those units; there is no context.
    """
    return _forward(net, x.contiguous(), None, [w.contiguous() for w in weights], None, context=0)


def in_bf16(net: MLP) -> bool:
    """Return whether the kernel shall multiply in bfloat16 now: where it is asked for and the processor can."""
    return net.bf16 and net.training and multiplies_in_bf16()


@cache
def multiplies_in_bf16() -> bool:
    """Return whether the kernel can multiply in bfloat16: it was compiled for it, and the processor has instructions."""
    library = _library()
    return library is not None and bool(library.fluvial_has_bf16())


def _serves_tensor(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_cpu and not native.has_tangent(tensor)


def conditioner(net: MLP, x: Tensor, context: Tensor | None) -> Tensor:
    """Return what the network gives for every row of ``x: [*batch, inputs]`` and ``context: [*batch, C]``."""
    n = x.shape[:-1].numel()
    rows = x.reshape(n, x.shape[-1]).contiguous()
    context = None if context is None else context.reshape(n, context.shape[-1]).contiguous()
    weights = [w.contiguous() for w in net.weights()]
    tensors = (rows, context, *weights)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        out = _Conditioner.apply(net, *tensors)
    else:
        out = _forward(net, rows, context, weights, None)
    return out.reshape(*x.shape[:-1], out.shape[-1])  # type: ignore[union-attr]


class Prefixes:
    """What :class:`fluvial.nets.Unfolding` gives, of a few coordinates, by the kernel: for each coordinate all units that
    see no more than those before it, those of lower degree again.
    """

    def __init__(self, net: MLP, context: Tensor | None):
        self.net, self.context = net, None if context is None else context.contiguous()
        self.weights = [w.contiguous() for w in net.weights()]

    def outputs(self, degree: int, x: Tensor, which: slice) -> Tensor:
        """Return the outputs ``which``, whose degree is ``degree``, given ``x: [n, degree]``."""
        net = self.net
        assert net.degree_ends is not None
        units = net.degree_ends[degree + 1]
        (first, first_bias), *inner, (last, last_bias) = zip(
            self.weights[::2], self.weights[1::2], strict=True
        )
        given = torch.cat((first[:units, :degree], first[:units, first.shape[1] - net.context :]), 1)
        weights = [given, first_bias[:units]]
        for i, (weight, bias) in enumerate(inner):
            seen = units if i < len(net.hidden) else net.context
            weights += [weight[:units, :seen].contiguous(), bias[:units]]
        weights += [last[which, :units].contiguous(), last_bias[which]]
        return _forward(net, x.contiguous(), self.context, weights, None)


class _Conditioner(torch.autograd.Function):
    @staticmethod
    def forward(ctx, net: MLP, x: Tensor, context: Tensor | None, *weights: Tensor):  # type: ignore[override]
        library = _library()
        assert library is not None, "asked for a kernel although serves says no"
        network = _network(net, x, weights)
        ctx.net, ctx.memory = net, _memory(library.fluvial_mlp_saved(byref(network), len(x)))
        ctx.save_for_backward(x, context, *weights)
        out = x.new_empty(len(x), len(weights[-1]))
        _run(partial(library.fluvial_mlp, byref(network)), len(x), (x, context, out, ctx.memory))
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):  # type: ignore[override]
        x, context, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to have a gradient
            return (None, *_differentiable_gradients(ctx, x, context, weights, grad_out))
        library = _library()
        assert library is not None
        need_x, need_context, *need_weights = ctx.needs_input_grad[1:]
        grads = [torch.empty_like(w) for w in weights] if any(need_weights) else None
        network = _network(ctx.net, x, weights, grads)
        grad_x = torch.empty_like(x) if need_x else None
        grad_context = torch.empty_like(context) if need_context else None
        saved, ctx.memory = ctx.memory, None
        if saved is None:  # another pass through a graph that was kept
            saved = _memory(library.fluvial_mlp_saved(byref(network), len(x)))
            _forward(ctx.net, x, context, weights, saved)
        pointers = (x, context, grad_out.contiguous(), saved, grad_x, grad_context)
        _run(partial(library.fluvial_mlp_backward, byref(network)), len(x), pointers)
        _keep(saved)
        wanted = (g if need else None for g, need in zip(grads or weights, need_weights, strict=True))
        return None, grad_x, grad_context, *wanted


def _memory(floats: int) -> Tensor:
    """Return memory for at least so many numbers, if there is some that a backward pass is done with."""
    with _lock:
        for i in reversed(range(len(_done))):
            if _done[i].numel() >= floats:
                return _done.pop(i)
    # From the system, which gets it back at once when it is let go: freed pieces of the heap often cannot be given back.
    return torch.frombuffer(mmap.mmap(-1, 4 * max(floats, 1)), dtype=torch.float32)


def _keep(memory: Tensor) -> None:
    """Keep memory for the next forward pass: fresh memory costs a page fault every 4 KiB, up to a third of training."""
    with _lock:
        if sum(m.numel() for m in _done) + memory.numel() <= _KEPT:
            _done.append(memory)


def _forward(
    net: MLP,
    x: Tensor,
    given: Tensor | None,
    weights: Sequence[Tensor],
    saved: Tensor | None,
    *,
    context: int | None = None,
) -> Tensor:
    library = _library()
    assert library is not None
    if saved is None:  # not in training: nothing will want it
        with _lock:
            _done.clear()
    out = x.new_empty(len(x), len(weights[-1]))
    norms = _norms(net, len(weights[0])) if net.norms else None
    network = _network(net, x, weights, norms=norms, context=context)
    _run(partial(library.fluvial_mlp, byref(network)), len(x), (x, given, out, saved))
    return out


def _norms(net: MLP, units: int) -> Tensor:
    """Return ``[2, layers, units, padded]``: what batch norm by running averages multiplies by and adds."""
    pairs = torch.stack([torch.stack(scale_and_shift(norm)) for norm in net.norms], 1)
    return pad(pairs[..., :units], (0, -units % _PADDED)).contiguous()


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return what batch norm in evaluation mode multiplies by and adds."""
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def product(x: Tensor, weight: Tensor, bias: Tensor, *, bf16: bool = False) -> Tensor:
    """Return ``x @ weight.T + bias`` by the kernel, where :func:`serves_products` says so."""
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1]).contiguous()
    out = _Product.apply(rows, weight.contiguous(), bias.contiguous(), bf16)
    return out.reshape(*x.shape[:-1], out.shape[-1])  # type: ignore[union-attr]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, bf16: bool):  # type: ignore[override]
        library = _library()
        assert library is not None, "asked for a kernel although serves_products says no"
        ctx.save_for_backward(x, weight, bias)
        ctx.bf16 = bf16
        out = x.new_empty(len(x), len(weight))
        _run(partial(library.fluvial_linear, byref(_linear(weight, bias)), bf16), len(x), (x, out))
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):  # type: ignore[override]
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to have a gradient
            return grad_out @ weight, grad_out.t() @ x, grad_out.sum(0), None
        library = _library()
        assert library is not None
        need_x, *need_weights, _ = ctx.needs_input_grad
        grads = [torch.empty_like(t) for t in (weight, bias)] if any(need_weights) else None
        grad_x = torch.empty_like(x) if need_x else None
        tensors = (x, grad_out.contiguous(), grad_x)
        function = partial(library.fluvial_linear_backward, byref(_linear(weight, bias, grads)), ctx.bf16)
        _run(function, len(x), tensors)
        return grad_x, *(grads or (None, None)), None


def _linear(weight: Tensor, bias: Tensor, grads: Sequence[Tensor] | None = None) -> _Linear:
    pointers = [t.data_ptr() for t in (weight, bias, *(grads or ()))]
    return _Linear(*pointers, *[None] * (8 - len(pointers)), *weight.shape)


def _differentiable_gradients(
    ctx, x: Tensor, context: Tensor | None, weights: list[Tensor], grad_out: Tensor
):
    inputs = (x, context, *weights)
    needs = zip(inputs, ctx.needs_input_grad[1:], strict=True)
    wanted = [t for t, need in needs if need and t is not None]
    out = ctx.net.by_operations(x, context, weights)
    grads = iter(torch.autograd.grad(out, wanted, grad_out, create_graph=True, allow_unused=True))
    return [next(grads) if need else None for need in ctx.needs_input_grad[1:]]


def _run(function: Callable[..., int], rows: int, tensors: Sequence[Tensor | None]) -> None:
    pointers = (None if t is None else t.data_ptr() for t in tensors)
    if function(rows, torch.get_num_threads(), *pointers):
        raise MemoryError("No memory for the buffers of a conditioner.")


def _network(
    net: MLP,
    x: Tensor,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor] | None = None,
    norms: Tensor | None = None,
    context: int | None = None,
) -> _Network:
    """Return the network as the kernel reads it; it points at the weights, which must outlive it.

    The weights may be those of a part of the network's units, which then are as many as the weights say.
    """
    layers = net.linears()
    maps = (_Linear * len(layers))()
    for i, layer in enumerate(layers):
        weight, bias = weights[2 * i], weights[2 * i + 1]
        span = getattr(layer, "span", None) if weight.shape == layer.weight.shape else None
        reach, begin = (None, None) if span is None else (t.data_ptr() for t in span)
        grad = (None, None) if grads is None else (grads[2 * i].data_ptr(), grads[2 * i + 1].data_ptr())
        norm = (None, None) if norms is None or not 0 < i <= len(net.hidden) else norms[:, i - 1]
        scale, shift = (None if t is None else t.data_ptr() for t in norm)
        maps[i] = _Linear(
            weight.data_ptr(), bias.data_ptr(), *grad, reach, begin, scale, shift, *weight.shape
        )
    sizes = (x.shape[1], net.context if context is None else context, len(weights[0]), len(weights[-1]))
    counts = (len(net.hidden), len(net.gates), net.residual, ACTIVATIONS.index(type(net.activation)))
    return _Network(maps, *sizes, *counts, in_bf16(net))
