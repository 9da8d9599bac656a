r"""The monotone rational-quadratic spline (Durkan, Bekasov, Murray & Papamakarios 2019, arXiv:1906.04032).

K bins cover the box [−B, B]². With :math:`\theta = (x - x_k) / w_k` in bin k of width w and height h, its mean
slope :math:`s = h / w` and the slopes :math:`d_0, d_1` at its ends in units of s, the spline is (their eqs. 4–5)

.. math::
    y = y_k + h\, r(\theta), \qquad
    r = \frac{\theta^2 + d_0\, \theta (1 - \theta)}{1 + (d_0 + d_1 - 2)\, \theta (1 - \theta)}, \qquad
    \frac{dy}{dx} = s \, \frac{d_1 \theta^2 + 2 \theta (1 - \theta) + d_0 (1 - \theta)^2}{(1 + (d_0 + d_1 - 2)\,
    \theta (1 - \theta))^2}.

Outside the box it goes on as a straight line with the slope of the outermost knot, so it is continuously
differentiable everywhere and never the identity by accident.

Widths and heights come from one softmax over their logits, mixed with a floor; the backward pass is written by
hand: it needs one sweep over the logits instead of the twenty that automatic differentiation would make. On a CPU,
float32 goes through a kernel in C where there is one (:mod:`fluvial.core.native`), on a GPU through one in Triton
(:mod:`fluvial.core.gpu`).
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fluvial.core import gpu, native
from fluvial.core.bijection import Bijection

#: Widths and heights of bins are at least this share of an even division of the box.
BIN_FLOOR = 1e-2
#: Slopes at knots lie between 1 / SLOPE_LIMIT and SLOPE_LIMIT.
SLOPE_LIMIT = 1e3


def spline_parameters(bins: int) -> int:
    """Return how many numbers :func:`rational_quadratic` takes per coordinate: K widths, K heights, K + 1 slopes."""
    return 3 * bins + 1


def rational_quadratic(
    x: Tensor, parameters: Tensor, *, bound: float = 5.0, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply the spline, or its inverse, to every coordinate.

    Parameters
    ----------
    x : Tensor
        ``[*batch]``; any finite values.
    parameters : Tensor
        ``[*batch, 3K + 1]``, unconstrained: logits of the K widths, logits of the K heights, and K + 1 slopes
        (0 means slope 1). All zeros give the identity. They may be of a shorter type than ``x`` (bfloat16).
    bound : float
        Half the side B of the box.
    inverse : bool
        Apply the inverse map.

    Returns
    -------
    tuple[Tensor, Tensor]
        The value and the log of the slope of the map applied, both ``[*batch]``. Differentiable once in both
        arguments.

    Examples
    --------
    >>> y, log_slope = rational_quadratic(torch.tensor([0.3, 40.0]), torch.zeros(2, 13))
    >>> y, log_slope
    (tensor([ 0.3000, 40.0000]), tensor([0., 0.]))
    """
    for kernel in (native, gpu):
        if kernel.serves_spline(x, parameters):
            return _KernelSpline.apply(x, parameters, bound, inverse, kernel)  # type: ignore[return-value]
    return _Spline.apply(x, parameters.to(x.dtype), bound, inverse)  # type: ignore[return-value]


class RationalQuadraticSpline(Bijection):
    """An unconditional spline for each of D coordinates; starts at the identity.

    >>> RationalQuadraticSpline(2)(torch.tensor([[0.5, -7.0]]))[0].detach()
    tensor([[ 0.5000, -7.0000]])
    """

    def __init__(self, dim: int, *, bins: int = 16, bound: float = 5.0):
        super().__init__()
        self.bound = bound
        self.parameters_ = torch.nn.Parameter(torch.zeros(dim, spline_parameters(bins)))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the spline to every coordinate of ``x: [*batch, D]``."""
        return self._apply_spline(x, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the inverse spline."""
        return self._apply_spline(z, inverse=True)

    def _apply_spline(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        parameters = self.parameters_.expand(*x.shape, -1)
        y, log_slope = rational_quadratic(x, parameters, bound=self.bound, inverse=inverse)
        return y, log_slope.sum(-1)


class _KernelSpline(torch.autograd.Function):
    """:class:`_Spline` by a kernel; that in C keeps nothing, its backward finds the bins again."""

    @staticmethod
    def forward(ctx, x: Tensor, parameters: Tensor, bound: float, inverse: bool, kernel: ModuleType):  # type: ignore[override]
        value, log_slope, *found = kernel.spline(x, parameters, bound, BIN_FLOOR, SLOPE_LIMIT, inverse)
        ctx.save_for_backward(value if inverse else x, parameters, *found)
        ctx.bound, ctx.inverse, ctx.kernel = bound, inverse, kernel
        return value, log_slope

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_value: Tensor, grad_log_slope: Tensor):  # type: ignore[override]
        given = (*ctx.saved_tensors, grad_value, grad_log_slope)
        grads = ctx.kernel.spline_backward(*given, ctx.bound, BIN_FLOOR, SLOPE_LIMIT, ctx.inverse)
        return *grads, None, None, None


class _Spline(torch.autograd.Function):
    """Forward and backward of :func:`rational_quadratic`.

    The inverse is differentiated implicitly: from y = F(x; p) and l = −log F′(x; p) follow
    dx = (dy − ∂F/∂p dp) / F′, so its backward is the forward's with other incoming gradients.
    """

    @staticmethod
    def forward(ctx, x: Tensor, parameters: Tensor, bound: float, inverse: bool):  # type: ignore[override]
        bins = (parameters.shape[-1] - 1) // 3
        share = parameters[..., : 2 * bins].unflatten(-1, (2, bins)).softmax(-1)
        knots = share.cumsum(-1)  # right ends of the bins, in shares of the box
        index = _find_bin(knots[..., 1 if inverse else 0, :], x, bound)

        # For both axes at once: [*batch, 2] = (width, height), and (left, bottom) of the bin that holds x.
        both = index[..., None, None].expand(*index.shape, 2, 1)
        chosen = share.gather(-1, both).squeeze(-1)
        before = (knots.gather(-1, both).squeeze(-1) - chosen).clamp_(min=0)
        size = 2 * bound * (BIN_FLOOR / bins + (1 - BIN_FLOOR) * chosen)
        start = (
            2 * bound * (BIN_FLOOR / bins * index[..., None].to(x.dtype) + (1 - BIN_FLOOR) * before) - bound
        )

        raw = torch.stack((index, index + 1), -1)
        raw = parameters[..., 2 * bins :].gather(-1, raw)
        slopes, slopes_raw = _slopes(raw)

        value, log_slope, theta, excess = _evaluate(x, size, start, slopes, bound, inverse)
        ctx.save_for_backward(share, index, chosen, before, size, slopes, slopes_raw, theta, excess)
        ctx.bound, ctx.inverse = bound, inverse
        return value, -log_slope if inverse else log_slope

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_value: Tensor, grad_log_slope: Tensor):  # type: ignore[override]
        share, index, chosen, before, size, slopes, slopes_raw, theta, excess = ctx.saved_tensors
        parts = _partials(theta, excess, size, slopes)
        slope, slope_theta = parts[0], parts[1]
        if ctx.inverse:
            # (see the class) total gradient at x, then that of y and, with opposite signs, of the parameters
            at_x = grad_value - grad_log_slope * slope_theta
            grad_x = at_x / slope
            grad_value, grad_log_slope = -grad_x, -grad_log_slope
        else:
            grad_x = grad_value * slope + grad_log_slope * slope_theta
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None

        grad_size, grad_start, grad_slopes = _local_gradients(
            grad_value, grad_log_slope, theta, excess, size, slopes, parts
        )
        bins = share.shape[-1]
        grad = share.new_empty(*share.shape[:-2], spline_parameters(bins))
        # Softmax backward of both logits in one sweep: the bins before the chosen one move its start.
        scale = 2 * ctx.bound * (1 - BIN_FLOOR)
        grad_size, grad_start = grad_size * scale, grad_start * scale
        mean = (grad_start * before + grad_size * chosen)[..., None]
        earlier = torch.arange(bins, device=index.device) < index[..., None, None]
        logits = grad[..., : 2 * bins].unflatten(-1, (2, bins))
        torch.mul(torch.where(earlier, grad_start[..., None] - mean, -mean), share, out=logits)
        both = index[..., None, None].expand(*index.shape, 2, 1)
        logits.scatter_add_(-1, both, (chosen * grad_size)[..., None])
        knots = grad[..., 2 * bins :]
        knots.zero_()
        limit = math.log(SLOPE_LIMIT)
        grad_raw = grad_slopes * slopes * (limit / (limit + slopes_raw.abs())).square()
        knots.scatter_(-1, torch.stack((index, index + 1), -1), grad_raw)
        return grad_x, grad, None, None


def _find_bin(knots: Tensor, x: Tensor, bound: float) -> Tensor:
    """Return the bin that holds x, from the right ends of the bins in shares of the box (floor not yet mixed in)."""
    bins = knots.shape[-1]
    even = torch.arange(1, bins + 1, dtype=x.dtype, device=x.device) * (BIN_FLOOR / bins)
    ends = torch.add(even, knots, alpha=1 - BIN_FLOOR)
    position = ((x + bound) / (2 * bound)).unsqueeze(-1)
    return torch.searchsorted(ends, position, right=True).squeeze(-1).clamp_(max=bins - 1)


def _slopes(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes, squashed to (1/limit, limit) and 1 at zero, and what they were made of."""
    limit = math.log(SLOPE_LIMIT)
    return (raw * limit / (limit + raw.abs())).exp(), raw


def _evaluate(
    x: Tensor, size: Tensor, start: Tensor, slopes: Tensor, bound: float, inverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the value, log dy/dx, θ in [0, 1], and how far the *forward* argument lies outside the box."""
    width, height = size.unbind(-1)
    left, bottom = start.unbind(-1)
    mean_slope = height / width
    d0, d1 = (slopes / mean_slope[..., None]).unbind(-1)
    bend = d0 + d1 - 2
    inside = x.clamp(-bound, bound)
    outside = x - inside
    edge = torch.where(outside < 0, slopes[..., 0], slopes[..., 1])
    if inverse:
        r = ((inside - bottom) / height).clamp(0, 1)
        theta = _solve(r, d0, bend)
        excess = outside / edge
        value = left + theta * width + excess
    else:
        theta = ((inside - left) / width).clamp(0, 1)
        excess = outside
        t = theta * (1 - theta)
        value = bottom + height * (theta.square() + d0 * t) / (1 + bend * t) + excess * edge
    t = theta * (1 - theta)
    numerator = d1 * theta.square() + 2 * t + d0 * (1 - theta).square()
    log_slope = (mean_slope * numerator).log() - 2 * (1 + bend * t).log()
    return value, log_slope, theta, excess


def _solve(r: Tensor, d0: Tensor, bend: Tensor) -> Tensor:
    """Solve r(θ) = r for θ, from (1 − b) θ² + b θ − r = 0 with b = d₀ − r·bend.

    Of the two forms of the root each is used where it adds, never where it subtracts; a Newton step on r(θ) itself then
    restores the digits that the coefficients lost to rounding.
    """
    b = d0 - r * bend
    root = (b.square() + 4 * (1 - b) * r).clamp(min=0).sqrt()
    theta = torch.where(b > 0, 2 * r / (b.clamp(min=0) + root), (root - b) / (2 * (1 - b.clamp(max=0))))
    theta = torch.where(r > 0, theta, 0.0).clamp(0, 1)
    t = theta * (1 - theta)
    denominator = 1 + bend * t
    residual = (theta.square() + d0 * t) - r * denominator
    slope = (bend + 2 - d0) * theta.square() + 2 * t + d0 * (1 - theta).square()
    return (theta - residual * denominator / slope).clamp(0, 1)


def _partials(theta: Tensor, excess: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
    """Return dy/dx, d log(dy/dx)/dx, and what :func:`_local_gradients` shares with them."""
    width, height = size.unbind(-1)
    mean_slope = height / width
    d0, d1 = (slopes / mean_slope[..., None]).unbind(-1)
    u = 1 - theta
    t = theta * u
    bend = d0 + d1 - 2
    inverse_denominator = 1 / (1 + bend * t)
    numerator = d1 * theta.square() + 2 * t + d0 * u.square()
    slope = mean_slope * numerator * inverse_denominator.square()
    lean = u - theta
    log_theta = 2 * (d1 * theta + lean - d0 * u) / numerator - 2 * bend * lean * inverse_denominator
    log_x = torch.where(excess == 0, log_theta / width, 0.0)
    return slope, log_x, d0, numerator, inverse_denominator, t


def _local_gradients(
    grad_value: Tensor,
    grad_log: Tensor,
    theta: Tensor,
    excess: Tensor,
    size: Tensor,
    slopes: Tensor,
    parts: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of (width, height), (left, bottom) and the two slopes, each ``[*batch, 2]``.

    With the loss L and x held fixed: y and log y′ depend on these six numbers through θ, the mean slope s and the
    slopes d in units of s.
    """
    slope, log_x, d0, numerator, inverse_denominator, t = parts
    width, height = size.unbind(-1)
    mean_slope = height / width
    square, u_square = theta.square(), (1 - theta).square()
    r = (square + d0 * t) * inverse_denominator
    inside = excess == 0

    # Through θ = (x − left) / width; beyond the box θ is held at its end.
    through_theta = torch.where(inside, grad_value * slope, 0.0) + grad_log * log_x
    # Through d0, d1 at fixed s (in units of s), and the straight tail y = … + excess · slope.
    common = grad_value * height * t * inverse_denominator
    from_bend = 2 * grad_log * t * inverse_denominator
    grad_d0 = common * (1 - r) + grad_log * u_square / numerator - from_bend
    grad_d1 = -common * r + grad_log * square / numerator - from_bend
    tail = grad_value * excess
    grad_slopes = torch.stack((grad_d0, grad_d1), -1) / mean_slope[..., None]
    # Through s itself: log y′ = log s + …, and d = slope / s. The tail does not know s.
    grad_s = (grad_log - (grad_slopes * slopes).sum(-1)) / mean_slope
    grad_slopes = grad_slopes + torch.stack((tail * (excess < 0), tail * (excess > 0)), -1)

    grad_width = -through_theta * theta - grad_s * mean_slope / width
    grad_height = grad_value * r + grad_s / width
    return (
        torch.stack((grad_width, grad_height), -1),
        torch.stack((-through_theta, grad_value), -1),
        grad_slopes,
    )
