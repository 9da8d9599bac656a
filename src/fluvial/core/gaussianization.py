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
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: The share ε of the identity in every map: the least slope.
IDENTITY_SHARE = 1e-3
#: Values per block on a CPU, so that all kernels of a block stay in the cache.
BLOCK = 8192
#: From this many values per mixture on, the inverse reads a table of each mixture.
TABLE_FROM = 64
#: Most steps of the bracketed Newton iteration; half of them are enough by bisection alone.
MOST_STEPS = 64

#: The least logarithm of a density that is formed beside whole weights; beyond it the map's slope is ε in any case.
_LEAST_LOG = -80.0
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
    tensor([[   2.,    5., 1000.]])
    """
    value, log_slope = _Gaussianize.apply(
        x.flatten(0, -2) if x.dim() > 1 else x[None],
        mean.flatten(1) if mean.dim() > 1 else mean[:, None],
        log_scale.flatten(1) if mean.dim() > 1 else log_scale[:, None],
        logits.flatten(1) if mean.dim() > 1 else logits[:, None],
        inverse,
    )  # type: ignore[misc]
    return value.reshape(x.shape), log_slope.reshape(x.shape)


@lru_cache
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
        if inverse:
            value, log_slope = _invert(x, mean, log_scale, logits)
            log_slope.neg_()
        else:
            value, log_slope = torch.empty_like(x), torch.empty_like(x)
            for rows, part in _blocks(x):
                at = _evaluate(x[rows, part], _Kernels.of(mean[:, rows], log_scale[:, rows], logits[:, rows]))
                value[rows, part] = at.value
                torch.log(at.slope, out=log_slope[rows, part])
        ctx.save_for_backward(value if inverse else x, mean, log_scale, logits)
        ctx.inverse = inverse
        return value, log_slope

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_value: Tensor, grad_log_slope: Tensor):  # type: ignore[override]
        x, mean, log_scale, logits = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grads = [
            torch.zeros_like(p, memory_format=torch.contiguous_format) for p in (mean, log_scale, logits)
        ]
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
    side: Tensor  # in which tail of the mixture: −1 or 1
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

    # Either tail of F is Σ w over the kernels that lie wholly within it (exactly 0 if none), ∓ their other tails.
    half = 0.5 * kernels.weight
    below = (sign + 1).mul_(half).sum(0)
    above = (1 - sign).mul_(half).sum(0)
    signed = (small_tail * sign).sum(0)
    log_density = peak + total.log() - _LOG_ROOT_2PI
    near = log_density.clamp(min=_LEAST_LOG)
    density = near.exp()
    side = torch.where(below - density * signed < above + density * signed, -1.0, 1.0)
    whole = torch.where(side < 0, below, above)
    log_density = torch.where(whole > 0, near, log_density)
    # The smaller tail in units of the density: the inverse of the hazard.
    tail = torch.addcdiv(side * signed, whole, density)
    quantile, mills = _tail_quantile(tail.log().add_(log_density))
    h = side * quantile
    h_slope = mills / tail

    epsilon = IDENTITY_SHARE
    value = (1 - epsilon) * h + epsilon * x
    slope = (1 - epsilon) * h_slope + epsilon
    lean = (share * t).mul_(kernels.rate).sum(0)
    bend = (1 - epsilon) * h_slope / slope * (h * h_slope - lean)
    return _At(value, slope, bend, h, h_slope, side, mills, t, sign, share, small_tail)


def _parameter_gradients(
    grad_value: Tensor, grad_log: Tensor, at: _At, kernels: _Kernels
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the gradients of means, log-widths and logits, each ``[K, C]``.

    With s = h′ = f / φ(h) and the shares r of the density f: ∂h = −s r ∂μ, ∂log f = r t / σ ∂μ, and
    log s = log f − log φ(h).
    """
    through_density = grad_log * (1 - IDENTITY_SHARE) * at.h_slope / at.slope
    through_h = (1 - IDENTITY_SHARE) * grad_value + through_density * at.h
    of_h = through_h * at.h_slope

    grad_mean = (at.t * kernels.rate).mul_(through_density).sub_(of_h).mul_(at.share)
    grad_log_scale = (grad_mean * at.t).mul_(kernels.scale).sub_(at.share * through_density)

    # ∂h/∂logit = ∓(B − w p) / φ(h), where p is the mixture's smaller tail and B the kernel's part of it: its own smaller
    # tail, or all of its weight but that. Only then does φ(h) divide, and is it of the order of w at least.
    normal = (-0.5 * at.h.square() - _LOG_ROOT_2PI).exp().clamp(min=1e-30)
    through_tail = through_h * at.side
    grad_logits = (1 - at.sign * at.side).mul_(-0.5 * through_tail / normal)
    grad_logits.add_(through_tail * at.mills - through_density).mul_(kernels.weight)
    grad_logits.sub_((at.small_tail * at.sign).mul_(of_h)).add_(at.share * through_density)
    return grad_mean.sum(-1), grad_log_scale.sum(-1), grad_logits.sum(-1)


def _mills(y: Tensor) -> Tensor:
    r"""Return the Mills ratio :math:`R(y) = \Phi(-y) / \varphi(y)` for y ≥ 0, to a relative error of 2e-7 in float32."""
    if y.dtype == torch.float64:
        return math.sqrt(math.pi / 2) * torch.special.erfcx(y / math.sqrt(2))
    v = (0.25 * y).add_(1).reciprocal_()
    coefficients = _mills_coefficients(y.dtype, y.device)
    out = torch.addcmul(coefficients[-2], coefficients[-1], v)
    for coefficient in coefficients[-3::-1]:
        torch.addcmul(coefficient, out, v, out=out)
    return out.mul_(v)


@lru_cache
def _mills_coefficients(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    return torch.tensor(_MILLS, dtype=dtype, device=device).unbind()


def _tail_quantile(log_tail: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return y ≥ 0 with :math:`\log \Phi(-y)` as given, and R(y).

    A rational start (Abramowitz & Stegun 1964, 26.2.23), then Halley steps, of which float32 needs one; R goes along,
    since :math:`(\log R)' = y - 1 / R`.
    """
    s = (-2 * log_tail).clamp_(min=0).sqrt_()
    above = (s * 0.010328).add_(0.802853).mul_(s).add_(2.515517)
    below = (s * 0.001308).add_(0.189269).mul_(s).add_(1.432788).mul_(s).add_(1)
    y = torch.addcdiv(s, above, below, value=-1).clamp_(min=0)
    ratio = _mills(y)
    for again in range(1 if y.dtype == torch.float32 else 2):
        if again:
            ratio = _mills(y)
        # λ − y with the hazard λ = 1 / R: between 0 and R, which rounding far out forgets
        lean = torch.minimum(ratio.reciprocal().sub_(y).clamp_(min=0), ratio)
        excess = torch.addcmul(ratio.log() - log_tail, y, y, value=-0.5).sub_(_LOG_ROOT_2PI)
        newton = excess.mul_(ratio)
        step = newton / (newton * lean).mul_(0.5).add_(1)
        ratio.addcmul_(ratio, step * lean, value=-1)
        y.add_(step).clamp_(min=0)
    return y, ratio


def _invert(z: Tensor, mean: Tensor, log_scale: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return x with g(x) = z and log g′(x), for ``z: [C, S]`` and mixtures ``[K, C]``.

    With many values per mixture they are read off a table, wherever it is sure of itself; where it mostly is not, it
    serves as the start of a Newton step. What is left, or all when there are few, is solved one by one.
    """
    mixtures = (mean, log_scale, logits)
    columns, size = z.shape
    if size < TABLE_FROM:
        row = torch.arange(columns, device=z.device).repeat_interleave(size) if size > 1 else None
        x, log_slope = _solve(z.flatten(), mixtures, row)
        return x.view_as(z), log_slope.view_as(z)
    x, log_slope, sure = _read_table(z, mixtures)
    if sure.sum() < 0.5 * z.numel():
        _take_step(z, x, log_slope, sure, mixtures)
    row, place = torch.nonzero(~sure, as_tuple=True)
    if len(row):
        x[row, place], log_slope[row, place] = _solve(z[row, place], mixtures, row, start=x[row, place])
    return x, log_slope


def _read_table(z: Tensor, mixtures: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, log g′(x), and where both are accurate to a few roundings, for ``z: [C, S]``.

    The table holds both at evenly spaced z, with their derivatives: cubics join them. What the cubics over two cells miss
    in the middle, where the table knows better, is 16 times what those over one cell miss.
    """
    cells = 2 * min(128, z.shape[-1] // 16)
    low = z.amin(-1, keepdim=True).clamp_(-8, 7)
    spacing = (torch.maximum(z.amax(-1, keepdim=True).clamp_(max=8), low + 1) - low) / cells
    nodes = low + spacing * torch.arange(cells + 1, dtype=z.dtype, device=z.device)
    x, log_slope = _invert(nodes, *mixtures)
    bend = torch.empty_like(x)
    for rows, part in _blocks(x):
        bend[rows, part] = _evaluate(x[rows, part], _Kernels.of(*(m[:, rows] for m in mixtures))).bend
    rise = spacing * (-log_slope).exp()
    eps = 16 * torch.finfo(z.dtype).eps  # (what is missed over one cell is a 16th)
    sure = _missed(x, rise) <= 32 * eps * (1 + x[:, 1::2].abs())
    sure &= _missed(log_slope, rise * bend) <= 256 * eps

    place = ((z - low) / spacing).clamp_(0, cells)
    cell = place.clamp(max=cells - 1).long()
    place.sub_(cell)
    known = sure.repeat_interleave(2, -1).gather(-1, cell).logical_and_(z.abs() <= 8)
    return _cubic(x, rise, cell, place), _cubic(log_slope, rise * bend, cell, place), known


def _take_step(
    z: Tensor, x: Tensor, log_slope: Tensor, sure: Tensor, mixtures: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Improve x by a Newton step, in place, with its log g′(x), and note where that was enough."""
    for rows, part in _blocks(z):
        block = x[rows, part]
        at = _evaluate(block, _Kernels.of(*(m[:, rows] for m in mixtures)))
        step = (z[rows, part] - at.value) / at.slope
        sure[rows, part] = step.abs() <= _tolerance(block)
        log_slope[rows, part] = at.slope.log().addcmul_(at.bend, step)
        block.add_(step)


def _missed(values: Tensor, rise: Tensor) -> Tensor:
    """Return by how much cubics over two cells miss the nodes in their middles."""
    left, right, from_left, to_right = values[:, :-2:2], values[:, 2::2], rise[:, :-2:2], rise[:, 2::2]
    return (0.5 * (left + right) + 0.25 * (from_left - to_right) - values[:, 1::2]).abs()


def _cubic(values: Tensor, rise: Tensor, cell: Tensor, place: Tensor) -> Tensor:
    """Interpolate between nodes ``[C, n]``, given values and rises per cell, at places in [0, 1] of cells ``[C, S]``."""
    step, first, last = values.diff(), rise[:, :-1], rise[:, 1:]
    out = (first + last - 2 * step).gather(-1, cell).mul_(place)
    out.add_((3 * step - 2 * first - last).gather(-1, cell)).mul_(place)
    out.add_(first.gather(-1, cell)).mul_(place)
    return out.add_(values[:, :-1].gather(-1, cell))


def _tolerance(x: Tensor) -> Tensor:
    """Return how long the last Newton step may be: what it leaves is of the order of its square."""
    return (1 + x.abs()).mul_(0.3 * math.sqrt(torch.finfo(x.dtype).eps))


def _solve(
    z: Tensor, mixtures: tuple[Tensor, Tensor, Tensor], row: Tensor | None, *, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return x with g(x) = z and log g′(x) for ``z: [n]``, each with the mixture numbered in ``row`` (or its own)."""
    out, log_slope = torch.empty_like(z), torch.empty_like(z)
    for part, _ in _blocks(z[:, None]):
        own = (m[:, part] if row is None else m.index_select(1, row[part]) for m in mixtures)
        first = None if start is None else start[part, None]
        out[part, None], log_slope[part, None] = _solve_block(z[part, None], _Kernels.of(*own), first)
    return out, log_slope


def _solve_block(z: Tensor, kernels: _Kernels, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Solve for ``z: [n, 1]`` by Newton's method within a bracket.

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
        done = ((proposal - x).abs() <= _tolerance(x)) | (missing.abs() <= 16 * eps * (1 + z.abs()))
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
