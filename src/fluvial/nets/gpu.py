"""Whole conditioners on an NVIDIA GPU: products by cuBLAS, and what stands between them in Triton.

Norm, activation, gate and sum are one sweep each where PyTorch's operations make three to five, and batch norm's gradient
is two. Matrices are padded to columns of which cuBLAS can make tensor-core products, in float32 or, in training, in
bfloat16 as the flow is told; sums, statistics and gradients of the weights are float32. Results are those of
:meth:`fluvial.nets.MLP.by_operations` but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

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
_ROWS, _COLUMNS, _CHUNKS = 32, 64, 256
#: Columns of a program that puts the chunks' sums together.
_FEW = 16
_MM_TAKES_A_TYPE = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 8)


def serves(net: MLP, x: Tensor, context: Tensor | None) -> bool:
    """Return whether rows are on a GPU and can go through the kernels: in training, and without norms and gradients."""
    given = (x,) if context is None else (x, context)
    training = net.training and torch.is_grad_enabled()
    return (
        x.is_cuda
        and x.shape[:-1].numel() > 0
        and (training or not (net.norms or torch.is_grad_enabled()))
        and gpu.available()
        and not native.is_transformed()
        and not torch.is_autocast_enabled("cuda")
        and not (net.dropout is not None and net.training)
        and not net.constant
        and net.first.in_features == sum(t.shape[-1] for t in given)
        and all(t.dtype == torch.float32 and not native.has_tangent(t) for t in (*given, net.first.weight))
        and all(t.shape[:-1] == x.shape[:-1] for t in given)
    )


def conditioner(net: MLP, x: Tensor, context: Tensor | None) -> Tensor:
    """Return what the network gives for ``x: [*batch, inputs]``, ``context: [*batch, C]``; in bfloat16, if so told."""
    batch, rows = x.shape[:-1], x.shape[:-1].numel()
    x = x.reshape(rows, x.shape[-1])
    context = None if context is None else context.reshape(rows, context.shape[-1])
    if not torch.is_grad_enabled():
        return _Pass(net, x, context, net.weights(), keep=False).forward().unflatten(0, batch)
    norms = [t for norm in net.norms for t in (norm.weight, norm.bias)]
    out = _Conditioner.apply(net, x, context, *net.weights(), *norms)
    return out.unflatten(0, batch)  # type: ignore[union-attr]


@cache
def _kernels() -> Any:
    from fluvial.nets import gpu_kernels  # which needs Triton

    return gpu_kernels


class _Conditioner(torch.autograd.Function):
    @staticmethod
    def forward(ctx, net: MLP, x: Tensor, context: Tensor | None, *weights: Tensor):  # type: ignore[override]
        ctx.work = _Pass(net, x, context, weights, keep=True)
        ctx.save_for_backward(
            x, context, *weights
        )  # so that whoever changes one before the backward pass is told
        return ctx.work.forward()

    @staticmethod
    def backward(ctx, grad_out: Tensor):  # type: ignore[override]
        x = ctx.saved_tensors[0]
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
    """One pass through a network: what stands at hand for its gradient.

    Maps are numbered as :meth:`fluvial.nets.MLP.linears` has them. Activation i makes what map i + 1 takes (the last that
    of the last map), of what map i made: in a residual network of the sum that it adds to, if i is even.
    """

    def __init__(self, net: MLP, x: Tensor, context: Tensor | None, weights: Sequence[Tensor], *, keep: bool):
        self.kernels, self.net, self.keep = _kernels(), net, keep
        self.kind = torch.bfloat16 if net.bf16 and keep else torch.float32
        self.rows, self.units, self.hidden = len(x), net.first.out_features, len(net.hidden)
        self.width = _padded(self.units)
        self.activation = ACTIVATIONS.index(type(net.activation))
        maps = 2 * len(net.linears())
        self.biases, self.norm_weights = weights[1:maps:2], weights[maps:]
        self.shapes = [w.shape for w in weights[:maps:2]]
        self.weights = _matrices(weights[:maps:2], self.kind)
        self.entrance = self._entrance(x.contiguous(), context)
        self.context = _matrix(context, self.kind) if net.gates and context is not None else None
        # Rows of a chunk, so that there are no more chunks than sums are put together of; it is compiled in, and powers
        # of two are few.
        self.chunk = _ROWS * max(2, 1 << (-(-self.rows // (_ROWS * _CHUNKS)) - 1).bit_length())
        self.chunks = max(1, -(-self.rows // self.chunk))
        self.parts = max(16, 1 << (self.chunks - 1).bit_length())
        self.tables: list[Tensor] = []
        self.inputs: list[Tensor] = []  # of every activation, before norm
        self.activated: list[Tensor] = []
        self.gates: list[Tensor] = []
        self.added: list[Tensor] = []  # what blocks add, before their gates

    # --- forward -----------------------------------------------------------------------------------------

    def forward(self) -> Tensor:
        h = self._biased(self.entrance, 0)
        if self.net.residual:
            h = self._blocks(h)
        else:
            for layer in range(self.hidden):
                h = self._biased(self._activate(h, None, layer), 1 + layer)
        out = self._biased(self._activate(h, None, self.hidden), len(self.shapes) - 1)
        return out[:, : self.shapes[-1][0]]

    def _entrance(self, x: Tensor, context: Tensor | None) -> Tensor:
        from fluvial.nets.mlp import INPUT_RANGE

        width = _padded(self.shapes[0][1])
        given = x if context is None else context.contiguous()
        out, columns = x.new_empty(len(x), width, dtype=self.kind), min(64, 1 << (width - 1).bit_length())
        self.kernels.entrance[(-(-len(x) // _ROWS), -(-width // columns))](
            x, given, out, len(x), x.shape[1], given.shape[1], width, INPUT_RANGE,
            CONTEXT=context is not None, ROWS=_ROWS, COLUMNS=columns,
        )  # fmt: skip
        return out

    def _blocks(self, h: Tensor) -> Tensor:
        normed = bool(self.net.norms)
        sums = self._moments(h) if normed else None
        for i in range(0, self.hidden, 2):
            a = self._activate(h, sums, i)
            # A bias before batch norm cancels.
            y = self._product(a, 1 + i) if normed else self._biased(a, 1 + i)
            sums = self._moments(y) if normed else None
            y = self._product(self._activate(y, sums, 1 + i), 2 + i)
            h, sums = self._add(h, y, i, moments=normed and i + 2 < self.hidden)
        return h

    def _product(self, a: Tensor, i: int) -> Tensor:
        return torch.mm(a, self.weights[i].t())

    def _biased(self, a: Tensor, i: int) -> Tensor:
        bias, rows = self.biases[i], len(self.weights[i])
        if len(bias) != rows or bias.dtype != self.kind:
            bias = pad(bias, (0, rows - len(bias))).to(self.kind)
        return torch.addmm(bias, a, self.weights[i].t())

    def _activate(self, y: Tensor, sums: Tensor | None, i: int) -> Tensor:
        """Return activation i of y, normalised if there are sums."""
        # What a block adds to is wanted once more.
        out = torch.empty_like(y) if self.keep or (self.net.residual and i % 2 == 0) else y
        table = y if sums is None else self._normalisation(sums, i)
        if self.keep:
            self.inputs.append(y)
            self.activated.append(out)
        self._sweep("activate", y, table, out, NORM=sums is not None, ACTIVATION=self.activation)
        return out

    def _moments(self, y: Tensor) -> Tensor:
        sums = self._partial(2)
        self._sweep("moments", y, sums[0], sums[1])
        return sums

    def _normalisation(self, sums: Tensor, i: int) -> Tensor:
        """Return the table of norm i, and move its running averages."""
        norm, table = self.net.norms[i], torch.empty(4, self.width, device=sums.device)
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        self.kernels.batch_norm[(-(-self.width // _FEW),)](
            sums[0], sums[1], *self.norm_weights[2 * i : 2 * i + 2], self.biases[i], norm.running_mean, norm.running_var,
            table, self.rows, self.width, self.units, self.chunks, self.chunk, norm.eps, norm.momentum,
            ADDED=i % 2, PARTS=self.parts, COLUMNS=_FEW,
        )  # fmt: skip
        self.tables.append(table)
        return table

    def _add(self, h: Tensor, y: Tensor, i: int, *, moments: bool) -> tuple[Tensor, Tensor | None]:
        """Return h and what a block adds, and the moments of that where a norm comes next."""
        gate, bias, bias_gate = y, self.biases[2 + i], self.biases[2 + i]
        if self.context is not None:
            number = 1 + self.hidden + i // 2
            gate, bias_gate = self._product(self.context, number), self.biases[number]
            if self.keep:
                self.gates.append(gate)
                self.added.append(y)
        out, sums = torch.empty_like(h), self._partial(2) if moments else None
        pair = (h, h) if sums is None else (sums[0], sums[1])
        gated = self.context is not None
        self._sweep(
            "add", h, y, bias, gate, bias_gate, out, *pair, units=self.units, GATE=gated, MOMENTS=moments
        )
        return out, sums

    # --- backward ----------------------------------------------------------------------------------------

    def backward(self, grad: Tensor, x: Tensor, need_x: bool, need_context: bool) -> Iterator[Tensor | None]:
        """Return the gradients of x, of the context, of weight and bias of every map, and of those of every norm."""
        last = len(self.shapes) - 1
        self.grad_weights: dict[int, Tensor] = {}
        self.grad_norms: dict[int, Tensor] = {}
        self.grad_gates: dict[int, Tensor] = {}
        #: Sums over each chunk of the gradients of what a map made, to which it added its bias.
        self.bias_parts = self._partial(last)
        grad_bias = grad.sum(0, dtype=torch.float32)
        h = self._through(_with_padding(grad), last, self.hidden, None)
        for i in reversed(range(0, self.hidden, 2 if self.net.residual else 1)):
            residual = self.net.residual
            h = self._block_grad(h, i, need_context) if residual else self._through(h, 1 + i, i, None)
        self.grad_weights[0] = _product_in_float32(h.t(), self.entrance)
        yield from self._entrance_grads(h, x, need_x, need_context)
        biases = self._totals(self.bias_parts)
        for i, (units, inputs) in enumerate(self.shapes):
            yield self.grad_weights[i][:units, :inputs]
            yield grad_bias if i == last else biases[i, :units]
        for i in range(len(self.net.norms)):
            yield self.grad_norms[i][1, : self.units]
            yield self.grad_norms[i][0, : self.units]

    def _block_grad(self, grad: Tensor, i: int, need_context: bool) -> Tensor:
        """Return the gradient of what enters a block, given that of what leaves it."""
        inner = grad
        if self.context is not None:
            inner, through, block = torch.empty_like(grad), torch.empty_like(grad), i // 2
            number = 1 + self.hidden + block
            self._sweep(
                "gate_grad", grad, self.added[block], self.biases[2 + i], self.gates[block], self.biases[number],
                inner, through, self.bias_parts[2 + i], self.bias_parts[number], units=self.units,
            )  # fmt: skip
            self.grad_weights[number] = _product_in_float32(through.t(), self.context)
            if need_context:
                self.grad_gates[number] = through
        inner = self._through(inner, 2 + i, 1 + i, None)
        return self._through(inner, 1 + i, i, grad)

    def _through(self, grad: Tensor, number: int, i: int, more: Tensor | None) -> Tensor:
        """Return the gradient of what enters activation i, plus ``more``, given that of what the map after it made."""
        y, weight = self.inputs[i], self.weights[number]
        self.grad_weights[number] = _product_in_float32(grad.t(), self.activated[i])
        inner = torch.mm(grad, weight[: grad.shape[1]])
        out, normed = torch.empty_like(y), i < len(self.tables)
        table = totals = y
        if normed:
            table, parts = self.tables[i], self._partial(2)
            self._sweep("activate_sums", inner, y, table, parts[0], parts[1], ACTIVATION=self.activation)
            totals = self.grad_norms[i] = self._totals(parts)
        self._sweep(
            "activate_grad", inner, y, table, totals, y if more is None else more, out, self.bias_parts[i],
            NORM=normed, MORE=more is not None, ACTIVATION=self.activation,
        )  # fmt: skip
        return out

    def _entrance_grads(
        self, h: Tensor, x: Tensor, need_x: bool, need_context: bool
    ) -> Iterator[Tensor | None]:
        inputs = x.shape[1]
        grad = torch.mm(h, self.weights[0]) if need_x or need_context else None
        yield None if grad is None or not need_x else self._entrance_grad(grad, x.contiguous())
        if grad is None or not need_context:
            yield None
            return
        context = grad[:, inputs : self.shapes[0][1]].float()
        for i, through in self.grad_gates.items():
            context = context + torch.mm(through, self.weights[i])[:, : context.shape[1]].float()
        yield context

    def _entrance_grad(self, grad: Tensor, x: Tensor) -> Tensor:
        from fluvial.nets.mlp import INPUT_RANGE

        out, columns = torch.empty_like(x), min(64, 1 << max(x.shape[1] - 1, 1).bit_length())
        if x.numel():
            self.kernels.entrance_grad[(-(-len(x) // _ROWS), -(-x.shape[1] // columns))](
                grad, x, out, len(x), x.shape[1], grad.shape[1], INPUT_RANGE, ROWS=_ROWS, COLUMNS=columns
            )
        return out

    # --- its parts ---------------------------------------------------------------------------------------

    def _partial(self, count: int) -> Tensor:
        return torch.empty(count, self.chunks, self.width, device=self.entrance.device)

    def _totals(self, parts: Tensor) -> Tensor:
        out = parts.new_empty(len(parts), self.width)
        self.kernels.total[(-(-self.width // _FEW), len(parts))](
            parts, out, self.width, self.chunks, PARTS=self.parts, COLUMNS=_FEW
        )
        return out

    def _sweep(self, kernel: str, *tensors: Tensor, **constants: int) -> None:
        grid = (self.chunks, -(-self.width // _COLUMNS))
        getattr(self.kernels, kernel)[grid](
            *tensors, self.rows, self.width, CHUNK=self.chunk, ROWS=_ROWS, COLUMNS=_COLUMNS, **constants
        )


def _padded(columns: int) -> int:
    return -(-columns // _PADDED) * _PADDED


def _matrix(values: Tensor, kind: torch.dtype) -> Tensor:
    """Return a matrix of another type, with zeros beyond its columns."""
    out = values.new_zeros(len(values), _padded(values.shape[1]), dtype=kind)
    out[:, : values.shape[1]] = values
    return out


def _matrices(weights: Sequence[Tensor], kind: torch.dtype) -> list[Tensor]:
    """Return matrices of another type, with zeros beyond their rows and columns; as they are where nothing is to do."""
    shapes = [(_padded(len(w)), _padded(w.shape[1])) for w in weights]
    fits = [
        w.dtype == kind and w.shape == s and w.is_contiguous() for w, s in zip(weights, shapes, strict=True)
    ]
    sizes = [0 if fit else r * c for (r, c), fit in zip(shapes, fits, strict=True)]
    parts = weights[0].new_zeros(sum(sizes), dtype=kind).split(sizes)
    out = []
    for part, shape, fit, weight in zip(parts, shapes, fits, weights, strict=True):
        out.append(weight.detach() if fit else part.view(shape))
        if not fit:
            out[-1][: len(weight), : weight.shape[1]] = weight
    return out


def _with_padding(grad: Tensor) -> Tensor:
    """Return the gradient of the output with zeros beyond its columns: if it is padded, as the output was, in place."""
    rows, columns = grad.shape
    wide = _padded(columns)
    if (
        grad.stride() != (wide, 1)
        or grad.storage_offset()
        or grad.untyped_storage().nbytes() != grad.element_size() * (rows * wide)
    ):
        return grad.contiguous() if wide == columns else pad(grad, (0, wide - columns))
    whole = grad.as_strided((rows, wide), (wide, 1))
    whole[:, columns:] = 0
    return whole


def _product_in_float32(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two matrices, summed and given in float32."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    if a.is_cuda and _MM_TAKES_A_TYPE:
        return torch.mm(a, b, out_dtype=torch.float32)  # type: ignore[reportCallIssue]
    return torch.mm(a, b).float()
