"""The conditioner network: a multilayer perceptron of some of x and of the context, plain, residual or masked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "elu": nn.ELU, "tanh": nn.Tanh}

#: Inputs of a conditioner beyond this many standard deviations are drawn in smoothly, so that one far-out row
#: cannot throw the parameters of the rest of the flow.
INPUT_RANGE = 10.0


class MLP(nn.Module):
    r"""A multilayer perceptron ``(x, context) -> parameters`` with its last layer zero at the start.

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
        output_degrees: Sequence[int] | None = None,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"Expected activation to be one of {', '.join(ACTIVATIONS)}; got {activation!r}."
            )
        self.residual = residual
        self.activation = ACTIVATIONS[activation]()
        hidden = degrees = outs = None
        if output_degrees is not None:
            degrees = torch.arange(1, inputs + 1)
            outs = torch.as_tensor(output_degrees)
            hidden = torch.arange(width) % (int(outs.max()) + 1)
        # A network of nothing at all (one unconditional target) is its biases: it gets one constant input.
        self.constant = inputs == 0 and context == 0
        self.from_x = (
            _linear(max(inputs, self.constant), width, degrees, hidden) if inputs or self.constant else None
        )
        self.from_context = nn.Linear(context, width, bias=self.from_x is None) if context else None
        layers = 2 * depth if residual else depth - 1
        self.hidden = nn.ModuleList(_linear(width, width, hidden, hidden) for _ in range(layers))
        self.last = _linear(width, outputs, hidden, outs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the parameters for every row."""
        if self.constant:
            x = x.new_ones((*x.shape[:-1], 1))
        terms = [] if self.from_x is None else [self.from_x(draw_in(x))]
        if self.from_context is not None:
            terms.append(self.from_context(context))
        h = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        if self.residual:
            for first, second in zip(self.hidden[::2], self.hidden[1::2], strict=True):
                h = h + second(self.activation(first(self.activation(h))))
        else:
            for layer in self.hidden:
                h = layer(self.activation(h))
        return self.last(self.activation(h))


class MaskedLinear(nn.Linear):
    """A linear layer some of whose weights are held at zero by a mask ``[outputs, inputs]``."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, mask: Tensor):
        super().__init__(inputs, outputs)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the masked weights."""
        return linear(input, self.weight * self.mask, self.bias)


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
