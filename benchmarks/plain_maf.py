"""The masked autoregressive flow that theses start from, in plain torch, as a peer to measure against.

Ten MADE blocks in alternating order with batch normalisation after each (Papamakarios, Pavlakou & Murray
2017, arXiv:1705.07057, eqs. 3-5; MADE: Germain et al. 2015, arXiv:1502.03509). It takes columns as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class MaskedLayer(nn.Linear):
    """A linear layer with a mask on its weights and, in the first layer of a MADE, a term for the context."""

    mask: Tensor

    def __init__(self, into: Tensor, out: Tensor, context: int = 0):
        super().__init__(len(into), len(out))
        self.register_buffer("mask", (out[:, None] >= into[None, :]).float())
        self.from_context = (
            nn.Parameter(torch.rand(len(out), context) / math.sqrt(context)) if context else None
        )

    def forward(self, input: Tensor, context: Tensor | None = None) -> Tensor:
        h = linear(input, self.weight * self.mask, self.bias)
        return h if self.from_context is None or context is None else h + linear(context, self.from_context)


class Made(nn.Module):
    r"""One block, :math:`u_i = (x_i - m_i) e^{-a_i}`; m and a see the targets before x_i and the context.

    ``degrees`` is the place of every target in the order. As in the implementation that such theses start
    from, the context enters the first hidden layer only, and a target's outputs see hidden units only if some
    target comes before it: so a block shifts and scales the first of its order by constants, and the context
    acts on that one through the blocks of the opposite order.
    """

    def __init__(self, degrees: Tensor, context: int, width: int):
        super().__init__()
        self.degrees = degrees
        hidden = torch.arange(width) % max(len(degrees) - 1, 1)
        self.first = MaskedLayer(degrees, hidden, context)
        self.second = MaskedLayer(hidden, hidden)
        self.last = MaskedLayer(hidden, (degrees - 1).repeat(2))

    def _steer(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        h = self.second(torch.relu(self.first(x, context)))
        m, a = self.last(torch.relu(h)).chunk(2, dim=-1)
        return m, a

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        m, a = self._steer(x, context)
        return (x - m) * torch.exp(-a), -a.sum(-1)

    def inverse(self, u: Tensor, context: Tensor) -> Tensor:
        x = torch.zeros_like(u)
        for i in self.degrees.argsort().tolist():
            m, a = self._steer(x, context)
            x[:, i] = u[:, i] * torch.exp(a[:, i]) + m[:, i]
        return x


class BatchNormalisation(nn.Module):
    """Batch normalisation as a bijection (Dinh et al. 2017, appendix E), with running moments."""

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int, *, momentum: float = 0.9, least: float = 1e-5):
        super().__init__()
        self.momentum, self.least = momentum, least
        self.log_gain, self.shift = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = self.mean, self.variance
        if self.training:
            mean, variance = x.mean(0), x.var(0)
            with torch.no_grad():
                self.mean.lerp_(mean, 1 - self.momentum)
                self.variance.lerp_(variance, 1 - self.momentum)
        variance = variance + self.least
        u = self.log_gain.exp() * (x - mean) / variance.sqrt() + self.shift
        return u, (self.log_gain - 0.5 * variance.log()).sum().expand(len(x))

    def inverse(self, u: Tensor, context: Tensor) -> Tensor:
        spread = (self.variance + self.least).sqrt()
        return (u - self.shift) * torch.exp(-self.log_gain) * spread + self.mean


class MaskedAutoregressiveFlow(nn.Module):
    """Blocks of :class:`Made` in alternating order, each with batch normalisation; a standard normal base."""

    def __init__(self, targets: int, context: int, *, blocks: int = 10, width: int = 128):
        super().__init__()
        order = torch.arange(targets)
        self.targets = targets
        self.steps = nn.ModuleList()
        for block in range(blocks):
            degrees = order.flip(0) if block % 2 else order
            self.steps += [Made(degrees, context, width), BatchNormalisation(targets)]

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        logdet = x.new_zeros(len(x))
        for step in self.steps:
            x, change = step(x, context)
            logdet = logdet + change
        return logdet - 0.5 * (x.square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, context: Tensor, generator: torch.Generator) -> Tensor:
        x = torch.randn(len(context), self.targets, generator=generator)
        for step in reversed(cast(Sequence[Made | BatchNormalisation], self.steps)):
            x = step.inverse(x, context)
        return x
