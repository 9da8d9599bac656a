r"""Bijections that act on each coordinate alone.

Each subclass of :class:`Elementwise` gives the value and the log-slope :math:`\log |f'(x)|` of one coordinate;
``logdet`` is their sum over the last dimension. Maps onto an interval never leave its *open* interior, not
even by rounding: that is what makes a draw outside a support impossible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from fluvial.core.bijection import Bijection


class Elementwise(Bijection):
    """The same scalar map for every coordinate (or one with a parameter per coordinate)."""

    def forward_elementwise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`z_i = f(x_i)` and :math:`\log |f'(x_i)|`, both of the shape of ``x``."""
        raise NotImplementedError

    def inverse_elementwise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`x_i = f^{-1}(z_i)` and :math:`-\log |f'(x_i)|`, both of the shape of ``z``."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map every coordinate of ``x: [*batch, D]``; ``logdet: [*batch]``."""
        z, log_slope = self.forward_elementwise(x)
        return z, log_slope.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`."""
        x, log_slope = self.inverse_elementwise(z)
        return x, log_slope.sum(-1)


class Affine(Elementwise):
    r""":math:`z = (x - \mathrm{shift}) / \mathrm{scale}` with one shift and one scale > 0 per coordinate (``[D]``).

    >>> z, logdet = Affine(torch.tensor([1.0]), torch.tensor([2.0]))(torch.tensor([5.0]))
    >>> z, logdet
    (tensor([2.]), tensor(-0.6931))
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor):
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward_elementwise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardise."""
        shift, scale = self.shift.to(x.dtype), self.scale.to(x.dtype)
        return (x - shift) / scale, -scale.log().expand_as(x)

    def inverse_elementwise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Undo the standardisation."""
        return self.inverse_value(z), self.scale.to(z.dtype).log().expand_as(z)

    def inverse_value(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Undo the standardisation."""
        return z * self.scale.to(z.dtype) + self.shift.to(z.dtype)


def _bounded_exp(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(z) and the clamped exponent: finite and positive for every z, constant beyond the range."""
    info = torch.finfo(z.dtype)
    z = z.clamp(math.log(info.tiny) + 2, math.log(info.max) - 2)
    return z.exp(), z


class Log(Elementwise):
    r""":math:`z = \log(s (x - \mathrm{bound}))`, from a half-line to the real line; s = 1 (bound from below) or −1.

    The inverse is clamped to finite numbers strictly inside the half-line (in float32 for \|z\| > 85).

    >>> Log(bound=2.0)(torch.tensor([4.0]))
    (tensor([0.6931]), tensor(-0.6931))
    """

    def __init__(self, bound: float = 0.0, sign: int = 1):
        super().__init__()
        self.bound = float(bound)
        self.sign = sign

    def forward_elementwise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take the logarithm of the distance from the bound."""
        z = (self.sign * (x - self.bound)).log()
        return z, -z

    def inverse_elementwise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return bound + s·exp(z)."""
        distance, z = _bounded_exp(z)
        return _inside_half_line(self.bound, self.sign, distance), z


class Softplus(Elementwise):
    r""":math:`z = \log(e^{s(x-\mathrm{bound})/w} - 1)\,w`: a half-line to the real line, but linear far from the bound.

    Where :class:`Log` stretches everything near the bound and squeezes what is far, this one leaves values of
    several widths w above the bound as they are.
    """

    def __init__(self, bound: float = 0.0, sign: int = 1, width: float = 1.0):
        super().__init__()
        self.bound = float(bound)
        self.sign = sign
        self.width = float(width)

    def forward_elementwise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the inverse of softplus to the distance from the bound."""
        t = self.sign * (x - self.bound) / self.width
        log_one_minus = (-torch.expm1(-t)).log()  # log(1 − e^−t), so that large t neither overflow nor cancel
        return (t + log_one_minus) * self.width, -log_one_minus

    def inverse_elementwise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return bound + s·w·softplus(z / w)."""
        z = z / self.width
        z = z.clamp(min=math.log(torch.finfo(z.dtype).tiny) + 2)
        # log1p(e^z) rather than torch's softplus, whose threshold would cost digits in the tail z → −∞
        distance = z.clamp(min=0) + torch.log1p((-z.abs()).exp())
        return _inside_half_line(self.bound, self.sign, distance * self.width), logsigmoid(z)


class Logit(Elementwise):
    r""":math:`z = \log\frac{x - a}{b - x}`, from the interval (a, b) to the real line; draws stay strictly inside."""

    def __init__(self, lower: float = 0.0, upper: float = 1.0):
        super().__init__()
        self.lower = float(lower)
        self.upper = float(upper)

    def forward_elementwise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take log-odds within the interval."""
        log_left, log_right = (x - self.lower).log(), (self.upper - x).log()
        return log_left - log_right, math.log(self.upper - self.lower) - log_left - log_right

    def inverse_elementwise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return a + (b − a)·sigmoid(z)."""
        log_slope = math.log(self.upper - self.lower) - softplus(z) - softplus(-z)
        return self.inverse_value(z), log_slope

    def inverse_value(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a + (b − a)·sigmoid(z)."""
        # From the nearer end, so that values close to either bound keep their digits.
        edge = (self.upper - self.lower) * torch.sigmoid(-z.abs())
        x = torch.where(z < 0, self.lower + edge, self.upper - edge)
        return _inside_interval(x, self.lower, self.upper)


class Asinh(Elementwise):
    r""":math:`z = \operatorname{asinh}(x / w)\,w`: linear within the width w, logarithmic beyond, for heavy tails."""

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.width = float(width)

    def forward_elementwise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Squeeze the tails."""
        t = x / self.width
        return torch.asinh(t) * self.width, -torch.hypot(t, torch.ones_like(t)).log()

    def inverse_elementwise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Stretch the tails again; clamped to finite numbers."""
        t = z / self.width
        limit = math.log(torch.finfo(z.dtype).max) - 2 - max(math.log(self.width), 0.0)
        t = t.clamp(-limit, limit)
        return torch.sinh(t) * self.width, t.abs() + torch.log1p((-2 * t.abs()).exp()) - math.log(2)


class Arctan(Elementwise):
    r""":math:`z = \arctan(x / w)`, from the real line to (−π/2, π/2); FlashSim squeezes jet ratios with it."""

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.width = float(width)

    def forward_elementwise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Squeeze the real line into an interval."""
        t = x / self.width
        log_slope = -2 * torch.hypot(t, torch.ones_like(t)).log() - math.log(self.width)
        return torch.arctan(t), log_slope

    def inverse_elementwise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return w·tan(z); z is clamped to where the tangent is finite."""
        limit = math.pi / 2 * (1 - 4 * torch.finfo(z.dtype).eps)
        t = torch.tan(z.clamp(-limit, limit))
        return t * self.width, 2 * torch.hypot(t, torch.ones_like(t)).log() + math.log(self.width)


class ArctanLogit(Elementwise):
    r""":math:`z = \log\frac{\pi/2 + \arctan t}{\pi/2 - \arctan t}`, :math:`t = x / w`: the logit of an arctan.

    Linear within the width w, and logarithmic beyond; written so that t of any size keeps its digits.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.width = float(width)

    def forward_elementwise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Squeeze the tails."""
        t = x / self.width
        rest = torch.atan2(torch.ones_like(t), t.abs())  # π/2 − arctan |t|
        log_slope = (math.pi / ((math.pi - rest) * rest)).log() - 2 * torch.hypot(t, torch.ones_like(t)).log()
        return t.sign() * ((math.pi - rest) / rest).log(), log_slope - math.log(self.width)

    def inverse_elementwise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Stretch the tails again; clamped to finite numbers."""
        limit = math.log(torch.finfo(z.dtype).max) - 3 - max(math.log(self.width), 0.0)
        z = z.clamp(-limit, limit)
        rest = math.pi * torch.sigmoid(-z.abs())
        # tan(π/2 − rest) as cos/sin: 1 / tan is not accurate where rest is near π/2.
        t = torch.cos(rest) / torch.sin(rest)
        log_slope = (math.pi / ((math.pi - rest) * rest)).log() + 2 * torch.sin(rest).log()
        return z.sign() * t * self.width, math.log(self.width) - log_slope


class Columnwise(Bijection):
    """One bijection per coordinate: the i-th acts on ``x[..., i:i+1]``.

    >>> x = torch.tensor([[1.0, 0.5]])
    >>> z, _ = Columnwise([Log(), Logit()])(x)
    >>> z
    tensor([[0., 0.]])
    """

    def __init__(self, bijections: Iterable[Bijection]):
        super().__init__()
        self.bijections = nn.ModuleList(bijections)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map each coordinate by its own bijection; log-determinants add up."""
        return self._each(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`."""
        return self._each(z, context, inverse=True)

    def _each(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[:-1])
        out = []
        for bijection, column in zip(self.bijections, x.split(1, dim=-1), strict=True):
            call = bijection.inverse if inverse else bijection
            z, logdet = call(column, context)  # type: ignore[operator]
            out.append(z)
            total = total + logdet
        return torch.cat(out, dim=-1) if out else x, total


def _inside_half_line(bound: float, sign: int, distance: Tensor) -> Tensor:
    """Return bound + sign·distance, kept strictly beyond the bound and finite."""
    big = torch.finfo(distance.dtype).max
    edge = torch.nextafter(distance.new_tensor(bound), distance.new_tensor(sign * math.inf))
    x = bound + sign * distance
    return x.clamp(edge, distance.new_tensor(big)) if sign > 0 else x.clamp(distance.new_tensor(-big), edge)


def _inside_interval(x: Tensor, lower: float, upper: float) -> Tensor:
    """Clamp x to the closest representable numbers inside the open interval."""
    a, b = x.new_tensor(lower), x.new_tensor(upper)
    return x.clamp(torch.nextafter(a, b), torch.nextafter(b, a))
