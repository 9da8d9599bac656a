"""Whole conditioners on an NVIDIA GPU, in training: products by cuBLAS, and what stands between them in Triton.

Norm, activation, gate and sum are one sweep each where PyTorch's operations make three to five, and batch norm's gradient
is two. Matrices are padded to columns of which cuBLAS can make tensor-core products, in float32 or in bfloat16 as the
flow is told; sums, statistics and gradients of the weights are float32. Results are those of
:meth:`fluvial.nets.MLP.by_operations` but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fluvial.core import gpu, native
from fluvial.nets.native import ACTIVATIONS

if TYPE_CHECKING:
    from fluvial.nets.mlp import MLP

#: Matrices are padded to a multiple of so many columns: 16 bytes of bfloat16.
_PADDED = 8
#: The tile of a program, and how many chunks of rows sums are made of at most.
_ROWS, _COLUMNS, _CHUNKS = 32, 64, 128
_MM_TAKES_A_TYPE = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 8)


def serves(net: MLP, x: Tensor, context: Tensor | None) -> bool:
    """Return whether this is training on a GPU that can go through the kernels."""
    given = (x,) if context is None else (x, context)
    return (
        x.is_cuda
        and torch.is_grad_enabled()
        and gpu.available()
        and not native.is_transformed()
        and not torch.is_autocast_enabled("cuda")
        and net.training
        and net.dropout is None
        and not net.constant
        and net.first.in_features == sum(t.shape[-1] for t in given)
        and all(t.dtype == torch.float32 and not native.has_tangent(t) for t in (*given, net.first.weight))
        and all(t.shape[:-1] == x.shape[:-1] for t in given)
    )


def conditioner(net: MLP, x: Tensor, context: Tensor | None) -> Tensor:
    """Return what the network gives for ``x: [*batch, inputs]``, ``context: [*batch, C]``; in bfloat16, if so told."""
    rows = x.shape[:-1].numel()
    context = None if context is None else context.reshape(rows, context.shape[-1])
    norms = [t for norm in net.norms for t in (norm.weight, norm.bias)]
    out = _Conditioner.apply(net, x.reshape(rows, x.shape[-1]), context, *net.weights(), *norms)
    return out.unflatten(0, x.shape[:-1])  # type: ignore[union-attr]


class _Conditioner(torch.autograd.Function):
    @staticmethod
    def forward(ctx, net: MLP, x: Tensor, context: Tensor | None, *weights: Tensor):  # type: ignore[override]
        ctx.net, ctx.work = net, _Pass(net, x, context, weights)
        ctx.save_for_backward(x, context, *weights)
        return ctx.work.forward()

    @staticmethod
    def backward(ctx, grad_out: Tensor):  # type: ignore[override]
        x, context, *weights = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Second derivatives through a conditioner in training on a GPU are not kept; ask for them in "
                "evaluation mode (flow.eval()), or set FLUVIAL_KERNELS=0."
            )
        if (work := ctx.work) is None:
            raise RuntimeError("Expected one backward pass through each forward pass; this is another.")
        ctx.work = None
        grads = work.backward(grad_out, x, needs[0], needs[1])
        return None, *(g if need else None for g, need in zip(grads, needs, strict=True))


class _Pass:
    """One pass through a network: what stands at hand for its gradient."""

    def __init__(self, net: MLP, x: Tensor, context: Tensor | None, weights: Sequence[Tensor]):
        from fluvial.nets import gpu_kernels
        from fluvial.nets.mlp import draw_in

        self.kernels, self.net = gpu_kernels, net
        self.kind = torch.bfloat16 if net.bf16 else torch.float32
        self.rows, self.units = len(x), net.first.out_features
        self.width = _padded(self.units)
        self.activation = ACTIVATIONS.index(type(net.activation))
        maps = 2 * len(net.linears())
        self.norm_weights = weights[maps:]
        self.weights = [_matrix(w, self.kind, _padded(len(w))) for w in weights[:maps:2]]
        self.biases = [pad(b, (0, _padded(len(b)) - len(b))).to(self.kind) for b in weights[1:maps:2]]
        self.shapes = [w.shape for w in weights[:maps:2]]
        given = draw_in(x) if context is None else torch.cat((draw_in(x), context), -1)
        self.entrance = _matrix(given, self.kind)
        self.context = _matrix(context, self.kind) if net.gates and context is not None else None
        # Rows of a chunk: a multiple of a program's, and as few chunks as their sums are put together of.
        self.chunk = _ROWS * max(2, -(-self.rows // (_ROWS * _CHUNKS)))
        self.chunks = max(1, -(-self.rows // self.chunk))
        self.tables: list[Tensor] = []
        self.inputs: list[Tensor] = []  # of every activation, before norm
        self.activated: list[Tensor] = []
        self.gates: list[Tensor] = []
        self.added: list[Tensor] = []  # what blocks add, before their gates

    # --- forward -----------------------------------------------------------------------------------------

    def forward(self) -> Tensor:
        net, hidden = self.net, len(self.net.hidden)
        h = self._product(self.entrance, 0)
        if net.residual:
            sums = self._moments(h) if net.norms else None
            for block in range(hidden // 2):
                out = self._product(self._activate(h, sums), 1 + 2 * block)
                sums = self._moments(out) if net.norms else None
                out = self._product(self._activate(out, sums), 2 + 2 * block)
                h, sums = self._add(h, out, block, last=block == hidden // 2 - 1)
        else:
            for layer in range(hidden):
                h = self._product(self._activate(h, None), 1 + layer)
        out = self._product(self._activate(h, None), -1)
        return out[:, : self.shapes[-1][0]]

    def _product(self, a: Tensor, i: int) -> Tensor:
        return torch.addmm(self.biases[i], a, self.weights[i].t())

    def _activate(self, y: Tensor, sums: Tensor | None) -> Tensor:
        """Return the activation of y, normalised if there are sums."""
        out = torch.empty_like(y)
        table = y if sums is None else self._normalisation(sums)
        self.inputs.append(y)
        self.activated.append(out)
        self._sweep("activate", y, table, out, NORM=sums is not None, ACTIVATION=self.activation)
        return out

    def _moments(self, y: Tensor) -> Tensor:
        sums = self._partial(2)
        self._sweep("moments", y, sums[0], sums[1])
        return sums

    def _normalisation(self, sums: Tensor) -> Tensor:
        """Return the table of the next norm, and move its running averages."""
        i = len(self.tables)
        norm, table = self.net.norms[i], torch.empty(4, self.width, device=sums.device)
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        columns = 16
        self.kernels.batch_norm[(-(-self.width // columns),)](
            sums[0], sums[1], *self.norm_weights[2 * i : 2 * i + 2], norm.running_mean, norm.running_var, table,
            self.rows, self.width, self.units, self.chunks, self.chunk, norm.eps, norm.momentum,
            PARTS=max(16, 1 << (self.chunks - 1).bit_length()), COLUMNS=columns,
        )  # fmt: skip
        self.tables.append(table)
        return table

    def _add(self, h: Tensor, y: Tensor, block: int, *, last: bool) -> tuple[Tensor, Tensor | None]:
        """Return h and what a block adds, and the moments of that where a norm comes next."""
        gate = y
        if self.context is not None:
            gate = self._product(self.context, 1 + len(self.net.hidden) + block)
            self.gates.append(gate)
            self.added.append(y)
        out, moments = torch.empty_like(h), bool(self.net.norms) and not last
        sums = self._partial(2) if moments else None
        pair = (h, h) if sums is None else (sums[0], sums[1])
        self._sweep("add", h, y, gate, out, *pair, GATE=self.context is not None, MOMENTS=moments)
        return out, sums

    # --- backward ----------------------------------------------------------------------------------------

    def backward(self, grad: Tensor, x: Tensor, need_x: bool, need_context: bool) -> Iterator[Tensor | None]:
        """Return the gradients of x, of the context, of weight and bias of every map, and of those of every norm."""
        net, hidden = self.net, len(self.net.hidden)
        self.grad_weights: dict[int, Tensor] = {}
        self.grad_norms: dict[int, Tensor] = {}
        self.grad_biases: dict[int, Tensor] = {}  # sums over each chunk
        self.grad_gates: dict[int, Tensor] = {}
        last = len(self.shapes) - 1
        grad = grad if grad.stride(1) == 1 and grad.stride(0) >= grad.shape[1] else grad.contiguous()
        self.grad_weights[last] = _product_in_float32(grad.t(), self.activated[hidden])
        self.grad_biases[last] = grad.sum(0, keepdim=True, dtype=torch.float32)
        h = self._through(grad, last, hidden, None)
        if net.residual:
            for block in reversed(range(hidden // 2)):
                h = self._block_grad(h, block)
        else:
            for layer in reversed(range(hidden)):
                h = self._layer_grad(h, 1 + layer, layer, None)
        self.grad_weights[0] = _product_in_float32(h.t(), self.entrance)
        yield from self._entrance_grads(h, x, need_x, need_context)
        for i, (units, inputs) in enumerate(self.shapes):
            yield self.grad_weights[i][:units, :inputs]
            yield self.grad_biases[i].sum(0)[:units]
        for i in range(len(net.norms)):
            yield self.grad_norms[i][1, : self.units]
            yield self.grad_norms[i][0, : self.units]

    def _block_grad(self, grad: Tensor, block: int) -> Tensor:
        """Return the gradient of what enters a block."""
        out = 2 + 2 * block
        inner = grad
        if self.context is not None:
            inner, through = torch.empty_like(grad), torch.empty_like(grad)
            sums = self._partial(2)
            self._sweep(
                "gate_grad", grad, self.added[block], self.gates[block], inner, through, sums[0], sums[1]
            )
            gate = 1 + len(self.net.hidden) + block
            self.grad_biases[out], self.grad_biases[gate] = sums[0], sums[1]
            self.grad_weights[gate] = _product_in_float32(through.t(), self.context)
            self.grad_gates[gate] = through
        inner = self._layer_grad(inner, out, out - 1, None)
        return self._layer_grad(inner, out - 1, out - 2, grad)

    def _layer_grad(self, grad: Tensor, i: int, activation: int, more: Tensor | None) -> Tensor:
        """Return the gradient of what enters an activation and then the map i, plus ``more``."""
        self.grad_weights[i] = _product_in_float32(grad.t(), self.activated[activation])
        return self._through(grad, i, activation, more)

    def _through(self, grad: Tensor, i: int, activation: int, more: Tensor | None) -> Tensor:
        y = self.inputs[activation]
        weight = self.weights[i]
        inner = torch.mm(grad, weight[: grad.shape[1]])
        out, sums = torch.empty_like(y), self._partial(1)[0]
        normed = activation < len(self.tables)
        table = means = y
        if normed:
            table, parts = self.tables[activation], self._partial(2)
            self._sweep("activate_sums", inner, y, table, parts[0], parts[1], ACTIVATION=self.activation)
            totals = parts.sum(1)
            self.grad_norms[activation], means = totals, totals / self.rows
        self._sweep(
            "activate_grad", inner, y, table, means, y if more is None else more, out, sums,
            NORM=normed, MORE=more is not None, ACTIVATION=self.activation,
        )  # fmt: skip
        self.grad_biases[activation] = (
            sums  # the map of that number adds its bias to y, though perhaps to be gated
        )
        return out

    def _entrance_grads(
        self, h: Tensor, x: Tensor, need_x: bool, need_context: bool
    ) -> Iterator[Tensor | None]:
        inputs = x.shape[1]
        grad = torch.mm(h, self.weights[0]).float() if need_x or need_context else None
        if grad is None or not need_x:
            yield None
        else:
            from fluvial.nets.mlp import INPUT_RANGE

            yield grad[:, :inputs] * torch.rsqrt(1 + (x / INPUT_RANGE).square()) ** 3
        if grad is None or not need_context:
            yield None
            return
        context = grad[:, inputs : self.shapes[0][1]]
        for i, through in self.grad_gates.items():
            context = context + torch.mm(through, self.weights[i])[:, : context.shape[1]].float()
        yield context

    # --- its parts ---------------------------------------------------------------------------------------

    def _partial(self, count: int) -> Tensor:
        return torch.empty(count, self.chunks, self.width, device=self.entrance.device)

    def _sweep(self, kernel: str, *tensors: Tensor, **constants: int) -> None:
        grid = (self.chunks, -(-self.width // _COLUMNS))
        getattr(self.kernels, kernel)[grid](
            *tensors, self.rows, self.width, CHUNK=self.chunk, ROWS=_ROWS, COLUMNS=_COLUMNS, **constants
        )


def _padded(columns: int) -> int:
    return -(-columns // _PADDED) * _PADDED


def _matrix(values: Tensor, kind: torch.dtype, rows: int | None = None) -> Tensor:
    """Return a matrix of another type, with zeros beyond its columns, and up to so many rows."""
    out = values.new_zeros(rows or len(values), _padded(values.shape[1]), dtype=kind)
    out[: len(values), : values.shape[1]] = values
    return out


def _product_in_float32(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two matrices, summed and given in float32."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    if a.is_cuda and _MM_TAKES_A_TYPE:
        return torch.mm(a, b, out_dtype=torch.float32)  # type: ignore[reportCallIssue]
    return torch.mm(a, b).float()
