r"""Gaussianization of one coordinate: the distribution function of a mixture, then the normal quantile.

With K normal kernels of weights :math:`w_k`, means :math:`\mu_k` and widths :math:`\sigma_k`,

.. math::
    h(x) = \Phi^{-1}(F(x)), \qquad F(x) = \sum_k w_k\, \Phi(t_k), \quad t_k = (x - \mu_k) / \sigma_k, \qquad
    z = (1 - \epsilon)\, h(x) + \epsilon\, x

(Chen & Gopinath 2001; Meng, Song, Song & Ermon 2020, arXiv:2003.01941). The share :math:`\epsilon` of the identity
keeps the slope above ε where the mixture has a gap, so the inverse is well posed in float32. Far out z follows the
widest kernel, a straight line of slope :math:`(1 - \epsilon) / \sigma + \epsilon`.

Numerics. F is never formed near 0 or 1. Each kernel gives the smaller of its two tails as density times Mills ratio,
:math:`\Phi(-y) = \varphi(y) R(y)`; densities are scaled by the largest of them; the smaller tail p of the mixture is
kept as a logarithm. The slope is a product of ratios, hazard f / p times :math:`R(|h|)`, not a difference of two squares.
So float32 serves for :math:`|x| = 10^6`. The backward pass is written by hand, computes the kernels again, block by
block, and stores only x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: The share ε of the identity in every map: the least slope.
IDENTITY_SHARE = 1e-3
#: Values per block on a CPU, so that all kernels of a block stay in the cache.
BLOCK = 4096
#: From this many values per mixture on, the inverse starts from a table of the mixture instead of from its kernels.
TABLE_FROM = 64
#: Most steps of the bracketed Newton iteration; half of them are enough by bisection alone.
MOST_STEPS = 64

_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
#: R(y) / v as a polynomial in v = 1 / (1 + y / 4): relative error below 4e-8 for y ≥ 0 (a minimax fit).
_MILLS = (0.249999992, 0.250002159, 0.234285411, 0.204548633, 0.147828923, 0.159669553, -0.0795032599, 0.239625554,
          -0.202728914, 0.0495860431)  # fmt: skip


def gaussianize(
    x: Tensor, mean: Tensor, log_scale: Tensor, logits: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Map values by a mixture's distribution function and the normal quantile, or back.

    Parameters
    ----------
    x : Tensor
        ``[*lead, S]``: S values for each mixture; any finite values.
    mean, log_scale, logits : Tensor
        ``[K, *lead]``: the kernels' means, logarithms of their widths, and weights before a softmax.
    inverse : bool
        Apply the inverse map, by a bracketed Newton iteration.

    Returns
    -------
    tuple[Tensor, Tensor]
        The value and the log of the slope of the map applied, both ``[*lead, S]``. Differentiable once in all
        arguments.

    Notes
    -----
    Values are accurate to about ten times the spacing of floating-point numbers, the inverse to that over the slope.

    Examples
    --------
    One kernel is standardisation, up to the share ε of the identity:

    >>> one = torch.tensor([[2.0]]), torch.tensor([[0.0]]), torch.tensor([[0.0]])
    >>> z, log_slope = gaussianize(torch.tensor([[2.0, 5.0, 1000.0]]), *one)
    >>> z
    tensor([[2.0000e-03, 3.0020e+00, 9.9800e+02]])
    >>> gaussianize(z, *one, inverse=True)[0]
    tensor([[   2.0000,    5.0000, 1000.0000]])
    """
    value, log_slope = _Gaussianize.apply(
        x.flatten(0, -2) if x.dim() > 1 else x[None],
        mean.flatten(1) if mean.dim() > 1 else mean[:, None],
        log_scale.flatten(1) if mean.dim() > 1 else log_scale[:, None],
        logits.flatten(1) if mean.dim() > 1 else logits[:, None],
        inverse,
    )  # type: ignore[misc]
    return value.reshape(x.shape), log_slope.reshape(x.shape)


def starting_kernels(kernels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return means, log-widths and logits ``[K]`` of a mixture that is nearly the standard normal.

    A comb of equal kernels under a Gaussian envelope is the convolution of two Gaussians to high accuracy; a wide
    kernel below it makes the tails those of the standard normal. All kernels differ, so all learn.
    """
    if kernels == 1:
        return torch.zeros(1), torch.zeros(1), torch.zeros(1)
    comb = kernels - 1
    reach = min(2.5, 0.4 * (comb - 1))
    mean = torch.linspace(-reach, reach, comb, dtype=torch.float64) if comb > 1 else torch.zeros(1).double()
    weight = (-mean.square()).softmax(0)
    log_scale = 0.5 * torch.log1p(-(weight * mean.square()).sum()).expand(comb)
    zero = torch.zeros(1, dtype=torch.float64)
    logits = torch.cat((zero + math.log(0.1), math.log(0.9) + weight.log()))
    return torch.cat((zero, mean)).float(), torch.cat((zero, log_scale)).float(), logits.float()


class _Gaussianize(torch.autograd.Function):
    """Forward and backward of :func:`gaussianize` for ``x: [C, S]`` and parameters ``[K, C]``.

    The inverse is differentiated implicitly: from z = g(x; p) and l = −log g′(x; p) follow
    dx = (dz − ∂g/∂p dp) / g′, so its backward is the forward's with other incoming gradients.
    """

    @staticmethod
    def forward(ctx, x: Tensor, mean: Tensor, log_scale: Tensor, logits: Tensor, inverse: bool):  # type: ignore[override]
        value, log_slope = torch.empty_like(x), torch.empty_like(x)
        for rows, part in _blocks(x):
            kernels = _Kernels.of(mean[:, rows], log_scale[:, rows], logits[:, rows])
            if inverse:
                out = _invert(x[rows, part], kernels)
            else:
                at = _evaluate(x[rows, part], kernels)
                out = at.value, at.slope.log()
            value[rows, part], log_slope[rows, part] = out
        if inverse:
            log_slope.neg_()
        ctx.save_for_backward(value if inverse else x, mean, log_scale, logits)
        ctx.inverse = inverse
        return value, log_slope

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_value: Tensor, grad_log_slope: Tensor):  # type: ignore[override]
        x, mean, log_scale, logits = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grads = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in (mean, log_scale, logits)]
        wanted = any(ctx.needs_input_grad[1:4])
        for rows, part in _blocks(x):
            kernels = _Kernels.of(mean[:, rows], log_scale[:, rows], logits[:, rows])
            at = _evaluate(x[rows, part], kernels)
            g_value, g_log = grad_value[rows, part], grad_log_slope[rows, part]
            if ctx.inverse:
                # (see the class) total gradient at x, then that of z and, with opposite signs, of the parameters
                g_value = (g_value - g_log * at.bend) / at.slope
                grad_x[rows, part] = g_value
                g_value, g_log = -g_value, -g_log
            else:
                grad_x[rows, part] = g_value * at.slope + g_log * at.bend
            if wanted:
                for total, grad in zip(grads, _parameter_gradients(g_value, g_log, at, kernels), strict=True):
                    total[:, rows] += grad
        return (grad_x, *(grads if wanted else (None, None, None)), None)


def _blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut ``x: [C, S]`` into blocks of about ``BLOCK`` values (on other devices, of as many as are worth a launch)."""
    most = BLOCK if x.device.type == "cpu" else 2**20
    columns, size = x.shape
    part = max(1, min(size, most))
    rows = max(1, most // part)
    for first in range(0, columns, rows):
        for start in range(0, size, part):
            yield slice(first, first + rows), slice(start, start + part)


class _Kernels(NamedTuple):
    """The mixtures of a block, each field ``[K, C, 1]``."""

    mean: Tensor
    rate: Tensor  # 1 / σ
    scale: Tensor
    weight: Tensor
    log_amplitude: Tensor  # log(w / σ)

    @classmethod
    def of(cls, mean: Tensor, log_scale: Tensor, logits: Tensor) -> _Kernels:
        log_weight = logits.log_softmax(0)
        fields = (mean, (-log_scale).exp(), log_scale.exp(), log_weight.exp(), log_weight - log_scale)
        return cls(*(f.unsqueeze(-1) for f in fields))

    def pick(self, rows: Tensor) -> _Kernels:
        """Return the mixtures of the given numbers."""
        return _Kernels(*(f.index_select(1, rows) for f in self))


class _At(NamedTuple):
    """The map at some points ``[C, S]``; with a leading K, what each kernel gives."""

    value: Tensor
    slope: Tensor
    bend: Tensor  # d log slope / dx
    h: Tensor
    h_slope: Tensor
    mills: Tensor  # R(|h|)
    t: Tensor  # [K, C, S]
    sign: Tensor  # of t
    share: Tensor  # the kernel's share of the density
    small_tail: Tensor  # its smaller tail, in units of the density of the mixture


def _evaluate(x: Tensor, kernels: _Kernels) -> _At:
    """Evaluate the map, its slope and the slope's change for ``x: [C, S]``."""
    t = (x - kernels.mean).mul_(kernels.rate)
    sign = t.sign()
    exponent = torch.addcmul(kernels.log_amplitude, t, t, value=-0.5)
    peak = exponent.amax(0)
    share = exponent.sub_(peak).exp_()
    total = share.sum(0)
    share.div_(total)
    small_tail = _mills(t * sign).mul_(share).mul_(kernels.scale)

    # Either tail of F is Σ w over the kernels that lie wholly within it, ∓ their other tails; exactly zero if none.
    half = 0.5 * kernels.weight
    below = (sign + 1).mul_(half).sum(0)
    above = (1 - sign).mul_(half).sum(0)
    signed = (small_tail * sign).sum(0)
    density = total * (peak - _LOG_ROOT_2PI).exp()
    lower = below - density * signed < above + density * signed
    whole = torch.where(lower, below, above)
    rest = torch.where(lower, -signed, signed)
    near = whole > 0
    tail = torch.where(near, whole + density * rest, rest)
    log_tail = tail.log() + torch.where(near, 0.0, peak - _LOG_ROOT_2PI + total.log())
    quantile = _tail_quantile(log_tail)
    h = torch.where(lower, -quantile, quantile)
    mills = _mills(quantile.clamp(min=0))
    h_slope = torch.where(near, density, 1.0) / tail * mills

    epsilon = IDENTITY_SHARE
    value = (1 - epsilon) * h + epsilon * x
    slope = (1 - epsilon) * h_slope + epsilon
    lean = (share * t).mul_(kernels.rate).sum(0)
    bend = (1 - epsilon) * h_slope / slope * (h * h_slope - lean)
    return _At(value, slope, bend, h, h_slope, mills, t, sign, share, small_tail)


def _parameter_gradients(
    grad_value: Tensor, grad_log: Tensor, at: _At, kernels: _Kernels
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the gradients of means, log-widths and logits, each ``[K, C]``.

    With s = h′ = f / φ(h) and the shares r of the density f: ∂h = −s r ∂μ, ∂log f = r t / σ ∂μ, and log s = log f − log φ(h).
    """
    through_density = grad_log * (1 - IDENTITY_SHARE) * at.h_slope / at.slope
    through_h = (1 - IDENTITY_SHARE) * grad_value + through_density * at.h
    of_h = through_h * at.h_slope

    grad_mean = (at.t * kernels.rate).mul_(through_density).sub_(of_h).mul_(at.share)
    grad_log_scale = (grad_mean * at.t).mul_(kernels.scale).sub_(at.share * through_density)

    # ∂h/∂logit = ∓(B − w p) / φ(h), where p is the mixture's smaller tail and B the kernel's part of it: its own smaller
    # tail, or all of its weight but that. Only then does φ(h) divide, and is it of the order of w at least.
    upper = torch.where(at.h > 0, 1.0, -1.0)
    normal = (-0.5 * at.h.square() - _LOG_ROOT_2PI).exp().clamp(min=1e-30)
    through_tail = through_h * upper
    grad_logits = (1 - at.sign * upper).mul_(-0.5 * through_tail / normal)
    grad_logits.add_(through_tail * at.mills - through_density).mul_(kernels.weight)
    grad_logits.sub_((at.small_tail * at.sign).mul_(of_h)).add_(at.share * through_density)
    return grad_mean.sum(-1), grad_log_scale.sum(-1), grad_logits.sum(-1)


def _mills(y: Tensor) -> Tensor:
    r"""Return the Mills ratio :math:`R(y) = \Phi(-y) / \varphi(y)` for y ≥ 0, to a relative error of 2e-7 in float32."""
    if y.dtype == torch.float64:
        return math.sqrt(math.pi / 2) * torch.special.erfcx(y / math.sqrt(2))
    v = (0.25 * y).add_(1).reciprocal_()
    coefficients = torch.tensor(_MILLS, dtype=y.dtype, device=y.device).unbind()
    out = v * coefficients[-1]
    out.add_(coefficients[-2])
    for coefficient in reversed(coefficients[:-2]):
        out = torch.addcmul(coefficient, out, v)
    return out.mul_(v)


def _tail_quantile(log_tail: Tensor) -> Tensor:
    r"""Return y ≥ 0 with :math:`\log \Phi(-y)` as given: a rational start (Abramowitz & Stegun 1964, 26.2.22), then Newton."""
    root = (-2 * log_tail).clamp_(min=0).sqrt_()
    y = root - (2.30753 + 0.27061 * root) / (1 + (0.99229 + 0.04481 * root) * root)
    for _ in range(2 if y.dtype != torch.float64 else 4):
        ratio = _mills(y.clamp_(min=0))
        excess = ratio.log() - 0.5 * y.square() - (log_tail + _LOG_ROOT_2PI)
        y = torch.addcmul(y, excess, ratio)
    return y


def _invert(z: Tensor, kernels: _Kernels) -> tuple[Tensor, Tensor]:
    """Return x with g(x) = z and log g′(x), for ``z: [C, S]``.

    With many values per mixture a table gives a start from which one Newton step is enough for nearly all.
    """
    columns, size = z.shape
    if size < TABLE_FROM:
        if size > 1:
            kernels = _Kernels(*(f.expand(-1, -1, size).flatten(1)[..., None] for f in kernels))
        x, log_slope = _solve(z.reshape(-1, 1), kernels)
        return x.reshape(columns, size), log_slope.reshape(columns, size)
    start = _table_start(z, kernels)
    at = _evaluate(start, kernels)
    step = (z - at.value) / at.slope
    x, log_slope = start + step, at.slope.log().addcmul_(at.bend, step)
    row, part = torch.nonzero(~(step.abs() <= _tolerance(x)), as_tuple=True)
    if len(row):
        x[row, part], log_slope[row, part] = (
            v.squeeze(-1) for v in _solve(z[row, part][:, None], kernels.pick(row), x[row, part][:, None])
        )
    return x, log_slope


def _tolerance(x: Tensor) -> Tensor:
    """Return how long the last Newton step may be: what it leaves is of the order of its square."""
    return (1 + x.abs()).mul_(0.3 * math.sqrt(torch.finfo(x.dtype).eps))


def _table_start(z: Tensor, kernels: _Kernels) -> Tensor:
    """Interpolate the inverse between evenly spaced z, by cubics with its values and slopes at their ends."""
    nodes = min(256, z.shape[-1] // 8)
    low = z.amin(-1, keepdim=True).clamp_(-8, 7)
    spacing = (torch.maximum(z.amax(-1, keepdim=True).clamp_(max=8), low + 1) - low) / (nodes - 1)
    x, log_slope = _invert(low + spacing * torch.arange(nodes, dtype=z.dtype, device=z.device), kernels)
    rise = spacing * (-log_slope).exp()
    left, right, from_left, to_right = x[:, :-1], x[:, 1:], rise[:, :-1], rise[:, 1:]
    bend = 3 * (right - left) - 2 * from_left - to_right
    twist = 2 * (left - right) + from_left + to_right

    place = (z - low) / spacing
    cell = place.clamp(0, nodes - 2).long()
    place = place - cell
    inside = place.clamp(0, 1)
    slope = from_left.gather(-1, cell)
    out = torch.addcmul(bend.gather(-1, cell), twist.gather(-1, cell), inside)
    out = torch.addcmul(slope, out, inside)
    return torch.addcmul(left.gather(-1, cell), out, inside).addcmul_(slope, place - inside)


def _solve(z: Tensor, kernels: _Kernels, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return x with g(x) = z and log g′(x) for ``z: [n, 1]``, each with its own mixture ``[K, n, 1]``.

    The map lies between those of its kernels alone, so their solutions bracket x; a Newton step that leaves the
    bracket is replaced by bisection.
    """
    out, log_slope = torch.empty_like(z), torch.empty_like(z)
    rate = (1 - IDENTITY_SHARE) * kernels.rate
    alone = (z + rate * kernels.mean) / (rate + IDENTITY_SHARE)
    low, high = alone.amin(0), alone.amax(0)
    x = (kernels.weight * alone).sum(0) if start is None else start.clamp(low, high)
    rows = torch.arange(len(z), device=z.device)
    eps = torch.finfo(z.dtype).eps
    for _ in range(MOST_STEPS):
        at = _evaluate(x, kernels)
        missing = z - at.value
        low, high = torch.where(missing > 0, x, low), torch.where(missing < 0, x, high)
        proposal = x + missing / at.slope
        done = ((proposal - x).abs() <= _tolerance(x)) | (missing.abs() <= 4 * eps * (1 + z.abs()))
        proposal = torch.where(done | ((proposal > low) & (proposal < high)), proposal, 0.5 * (low + high))
        out[rows] = proposal
        log_slope[rows] = at.slope.log() + at.bend * torch.where(done, proposal - x, 0.0)
        x = proposal
        left = torch.nonzero(~done.squeeze(-1)).squeeze(-1)
        if not len(left):
            break
        if len(left) < 0.7 * len(x):
            rows, kernels = rows[left], kernels.pick(left)
            z, x, low, high = (v[left] for v in (z, x, low, high))
    return out, log_slope
