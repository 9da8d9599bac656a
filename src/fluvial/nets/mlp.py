"""The conditioner network: a multilayer perceptron of some of x and of the context, plain, residual or masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, linear, silu

from fluvial.nets import gpu, native

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "elu": nn.ELU, "tanh": nn.Tanh}
_IN_PLACE = {
    nn.ReLU: torch.relu_,
    nn.SiLU: partial(silu, inplace=True),
    nn.ELU: partial(elu, inplace=True),
    nn.Tanh: torch.tanh_,
}

#: Inputs of a conditioner beyond this many standard deviations are drawn in smoothly, so that one far-out row
#: cannot throw the parameters of the rest of the flow.
INPUT_RANGE = 10.0


class MLP(nn.Module):
    r"""A multilayer perceptron ``(x, context) -> parameters``, usually with its last layer zero at the start.

    ``x: [*batch, inputs]``, ``context: [*batch, context]`` or ``None`` when ``context`` is 0, output
    ``[*batch, outputs]``. A flow made of zero-started conditioners starts at the identity.

    Parameters
    ----------
    inputs, context, outputs : int
        Sizes; ``inputs`` and ``context`` may be 0.
    width, depth : int
        Units of a hidden layer, and number of hidden layers (residual: of blocks with two layers each).
    residual : bool
        Pre-activation residual blocks (He et al. 2016) instead of plain layers.
    activation : str
        One of ``relu``, ``silu``, ``elu``, ``tanh``.
    gate : bool
        Residual blocks only: multiply what each block adds by a sigmoid of a linear map of the context (the gated
        linear unit of nflows' and FlashSim's conditioners).
    batch_norm : bool
        Residual blocks only: batch normalisation before each of their activations.
    dropout : float
        Share of hidden units dropped in training, in every block or layer.
    gain : float
        What multiplies the first layer's initial weights on x and its biases, not those on the context. Networks learn
        low frequencies first (Rahaman et al. 2019, arXiv:1806.08734); where a density has peaks far narrower than a
        standard deviation, a gain of 4 or so lets them be found, while it stays smooth in the context.
    zero_start : bool
        Whether the last layer is zero at the start.
    output_degrees : sequence of int, optional
        Makes the network autoregressive (Germain et al. 2015, MADE): input i has degree i + 1, and output j sees only
        inputs whose degree is at most ``output_degrees[j]``. Hidden units of degree 0 see the context alone, so every
        output depends on the context, the first included.
    """

    def __init__(
        self,
        inputs: int,
        context: int,
        outputs: int,
        *,
        width: int = 128,
        depth: int = 2,
        residual: bool = False,
        activation: str = "silu",
        gate: bool = False,
        batch_norm: bool = False,
        dropout: float = 0.0,
        gain: float = 1.0,
        zero_start: bool = True,
        output_degrees: Sequence[int] | None = None,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"Expected activation to be one of {', '.join(ACTIVATIONS)}; got {activation!r}."
            )
        if (gate or batch_norm) and not residual:
            raise ValueError(
                "Expected residual = true with gate or batch_norm: they belong to residual blocks."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"Expected dropout from 0 to below 1; got {dropout}.")
        self.residual = residual
        self.context = context
        #: Whether products are made in bfloat16 in training.
        self.bf16 = False
        #: Whether the output may then be bfloat16 too, for whoever reads it as it is.
        self.keeps_bf16 = False
        self.activation = ACTIVATIONS[activation]()
        hidden = degrees = outs = None
        if output_degrees is not None:
            # The context has degree 0: every hidden unit may see it.
            degrees = torch.cat((torch.arange(1, inputs + 1), torch.zeros(context, dtype=torch.long)))
            outs = torch.as_tensor(output_degrees)
            hidden = (torch.arange(width) % (int(outs.max()) + 1)).sort().values
        #: Where the hidden units of each degree begin and end: unit i of degree d has ends[d] <= i < ends[d + 1].
        self.degree_ends: list[int] | None = None
        if hidden is not None and outs is not None:
            self.degree_ends = torch.searchsorted(hidden, torch.arange(int(outs.max()) + 2)).tolist()
        # A network of nothing at all (one unconditional target) is its biases: it gets one constant input.
        self.constant = inputs + context == 0
        self.first = (
            _linear(inputs + context, width, degrees, hidden) if not self.constant else nn.Linear(1, width)
        )
        with torch.no_grad():
            self.first.weight[:, :inputs].mul_(gain)
            self.first.bias.mul_(gain)
        layers = 2 * depth if residual else depth - 1
        self.hidden = nn.ModuleList(_linear(width, width, hidden, hidden) for _ in range(layers))
        gates = depth if gate and context else 0
        self.gates = nn.ModuleList(nn.Linear(context, width) for _ in range(gates))
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(width, eps=1e-3) for _ in range(layers if batch_norm else 0)
        )
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.last = _linear(width, outputs, hidden, outs)
        if zero_start:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    @property
    def depends_on_mode(self) -> bool:
        """Whether training and evaluation differ: with batch norm or dropout."""
        return bool(self.norms) or self.dropout is not None

    def forward(self, x: Tensor, context: Tensor | None = None, outputs: slice | None = None) -> Tensor:
        """Return the parameters for every row, or only those that ``outputs`` picks."""
        if outputs is None and native.serves(self, x, context):
            return native.conditioner(self, x, context)
        if outputs is None and gpu.serves(self, x, context):
            out = gpu.conditioner(self, x, context)
            return out if self.keeps_bf16 else out.to(x.dtype)
        weights = self.weights()
        if outputs is not None:
            weights[-2:] = [weights[-2][outputs], weights[-1][outputs]]
        if native.serves_products(self, x, context):
            product = partial(native.product, bf16=native.in_bf16(self))
            return self.by_operations(x, context, weights, product)
        if self.bf16 and self.training:
            with torch.autocast(x.device.type, torch.bfloat16):
                return self.by_operations(x, context, weights).to(x.dtype)
        return self.by_operations(x, context, weights)

    def linears(self) -> list[nn.Linear]:
        """Return all linear maps: the first, the hidden ones, the gates, the last."""
        return [self.first, *self.hidden, *self.gates, self.last]  # type: ignore[list-item]

    def weights(self) -> list[Tensor]:
        """Return the weight, masked, and the bias of every linear map in turn."""
        return [
            t
            for m in self.linears()
            for t in (m.masked() if isinstance(m, MaskedLinear) else m.weight, m.bias)
        ]

    def by_operations(
        self,
        x: Tensor,
        context: Tensor | None,
        weights: Sequence[Tensor],
        product: Callable[..., Tensor] = linear,
    ) -> Tensor:
        """Return the parameters by PyTorch's operations, given the weights in place of one's own.

        ``product(h, weight, bias)`` makes the linear maps.
        """
        maps = list(zip(weights[::2], weights[1::2], strict=True))
        hidden, gates = maps[1:][: len(self.hidden)], maps[1 + len(self.hidden) : -1]
        if self.constant:
            entrance = x.new_ones((*x.shape[:-1], 1))
        elif context is None:
            entrance = draw_in(x)
        else:
            entrance = torch.cat((draw_in(x), context), dim=-1) if x.shape[-1] else context
        h = product(entrance, *maps[0])
        if self.residual:
            for block in range(len(hidden) // 2):
                h = self._block(block, h, context, hidden, gates, product)
        else:
            for layer in hidden:
                h = product(self._drop(self._activate(h)), *layer)
        return product(self._activate(h), *maps[-1])

    def _block(
        self,
        block: int,
        h: Tensor,
        context: Tensor | None,
        hidden: list[tuple[Tensor, Tensor]],
        gates: list[tuple[Tensor, Tensor]],
        product: Callable[..., Tensor],
    ) -> Tensor:
        """Return h and what a residual block adds to it: norm, activation, layer, twice, then the gate."""
        out = h
        for i in (2 * block, 2 * block + 1):
            if self.norms:
                # BatchNorm1d takes [n, width]; the leading dimensions are all batch. A view of its output would make
                # the activation, which is made in place, copy.
                flat = out.dim() == 2
                out = self.norms[i](out if flat else out.reshape(-1, out.shape[-1]))
                out = out if flat else out.reshape(h.shape)
            out = self.activation(out) if out is h else self._activate(out)
            if i % 2:
                out = self._drop(out)
            out = product(out, *hidden[i])
        if gates:
            assert context is not None, "a gate has a context"
            return torch.addcmul(h, out, torch.sigmoid(product(context, *gates[block])))
        return out.add_(h)  # in place: no layer keeps its own output for the backward pass

    def _activate(self, h: Tensor) -> Tensor:
        """Apply the activation to what nobody else needs: in place where no gradient asks for the input again."""
        if torch.is_grad_enabled() and not isinstance(self.activation, nn.ReLU):
            return self.activation(h)
        return _IN_PLACE[type(self.activation)](h)

    def _drop(self, h: Tensor) -> Tensor:
        return h if self.dropout is None else self.dropout(h)


class MaskedLinear(nn.Linear):
    """A linear layer some of whose weights are held at zero by a mask ``[outputs, inputs]``."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, mask: Tensor):
        super().__init__(inputs, outputs)
        self.register_buffer("mask", mask, persistent=False)
        #: For every output, before which input its last weight stands; for every input, the first output that sees it.
        self.span = _span(mask > 0)

    def masked(self) -> Tensor:
        """Return the weights with the mask applied."""
        return self.weight * self.mask

    def forward(self, input: Tensor) -> Tensor:
        """Apply the masked weights."""
        return linear(input, self.masked(), self.bias)


def _span(seen: Tensor) -> tuple[Tensor, Tensor]:
    outputs, inputs = seen.shape
    reach = (seen * torch.arange(1, inputs + 1)).amax(1)
    begin = torch.where(seen, torch.arange(outputs)[:, None], outputs).amin(0)
    return reach.int(), begin.int()


def _linear(inputs: int, outputs: int, into: Tensor | None, out: Tensor | None) -> nn.Linear:
    """Return a linear layer; between units of known degrees, one that lets degree m feed degrees at least m only."""
    if into is None or out is None:
        return nn.Linear(inputs, outputs)
    return MaskedLinear(inputs, outputs, (out[:, None] >= into[None, :]).float())


def draw_in(x: Tensor) -> Tensor:
    r"""Return :math:`x / \sqrt{1 + (x/B)^2}`, nearly x for ordinary values and never beyond ±B = 10.

    >>> draw_in(torch.tensor([0.0, 1.0, 1e6]))
    tensor([ 0.0000,  0.9950, 10.0000])
    """
    return x * torch.rsqrt(1 + (x / INPUT_RANGE).square())
