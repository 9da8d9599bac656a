"""The spline's kernels in Triton (see :mod:`fluvial.core.gpu`): formulas and names are those of :mod:`fluvial.core.spline`."""

from __future__ import annotations

import triton
import triton.language as tl
from triton import jit

# ruff: noqa: N803  # what is compiled in is written in capitals, as Triton's users do


@jit
def _bins(at, starts, lines, columns, parameters, position, floor, BINS: tl.constexpr):
    """Return the bin that holds each position, and of both axes the shares of the bins."""
    inside = lines[:, None] & (columns[None, :] < BINS)
    start = parameters + starts[:, None] + columns[None, :]
    widths = _softmax(tl.load(start, inside, other=0.0), columns < BINS)
    heights = _softmax(tl.load(start + BINS, inside, other=0.0), columns < BINS)
    along = heights if at else widths
    even = (columns + 1).to(tl.float32) * (floor / BINS)
    ends = even[None, :] + (1 - floor) * tl.cumsum(along, 1)
    before = (ends <= position[:, None]) & (columns[None, :] < BINS)
    index = tl.minimum(tl.sum(before.to(tl.int32), 1), BINS - 1)
    return index, widths, heights


@jit
def _softmax(logits, real):
    logits = tl.where(real[None, :], logits.to(tl.float32), -float("inf"))
    powers = tl.exp(logits - tl.max(logits, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@jit
def _chosen(share, columns, index):
    """Return the share of the chosen bin, and that of all before it."""
    mine = tl.sum(tl.where(columns[None, :] == index[:, None], share, 0.0), 1)
    return mine, tl.sum(tl.where(columns[None, :] < index[:, None], share, 0.0), 1)


@jit
def _place(chosen, before, index, bound, floor, BINS: tl.constexpr):
    """Return the size and the start of a bin in units of x or y."""
    size = 2 * bound * (floor / BINS + (1 - floor) * chosen)
    return size, 2 * bound * (floor / BINS * index.to(tl.float32) + (1 - floor) * before) - bound


@jit
def _slope(raw, limit):
    return tl.exp(raw * limit / (limit + tl.abs(raw)))


@jit
def _solve(r, d0, bend):
    b = d0 - r * bend
    root = tl.sqrt(tl.maximum(b * b + 4 * (1 - b) * r, 0.0))
    sums = tl.maximum(b, 0.0) + root
    theta = tl.where(
        b > 0, 2 * r / tl.where(sums > 0, sums, 1.0), (root - b) / (2 * (1 - tl.minimum(b, 0.0)))
    )
    theta = tl.where(r > 0, tl.minimum(tl.maximum(theta, 0.0), 1.0), 0.0)
    t = theta * (1 - theta)
    denominator = 1 + bend * t
    residual = theta * theta + d0 * t - r * denominator
    slope = (bend + 2 - d0) * theta * theta + 2 * t + d0 * (1 - theta) * (1 - theta)
    return tl.minimum(tl.maximum(theta - residual * denominator / slope, 0.0), 1.0)


@jit
def spline(
    x_, parameters, value_, log_slope_, count, group, stride, bound, floor, limit,
    INVERSE: tl.constexpr, BINS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Value and log-slope of ``ROWS`` elements."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lines, columns = rows < count, tl.arange(0, PADDED)
    starts = rows // group * stride + rows % group * (3 * BINS + 1)  # of their parameters
    x = tl.load(x_ + rows, lines, other=0.0)
    position = (x + bound) / (2 * bound)
    index, widths, heights = _bins(INVERSE, starts, lines, columns, parameters, position, floor, BINS)
    chosen, before = _chosen(widths, columns, index)
    width, left = _place(chosen, before, index, bound, floor, BINS)
    chosen, before = _chosen(heights, columns, index)
    height, bottom = _place(chosen, before, index, bound, floor, BINS)
    raw = parameters + starts + 2 * BINS + index
    slope0 = _slope(tl.load(raw, lines, other=0.0).to(tl.float32), limit)
    slope1 = _slope(tl.load(raw + 1, lines, other=0.0).to(tl.float32), limit)

    mean_slope = height / width
    d0, d1 = slope0 / mean_slope, slope1 / mean_slope
    bend = d0 + d1 - 2
    inside = tl.minimum(tl.maximum(x, -bound), bound)
    outside = x - inside
    edge = tl.where(outside < 0, slope0, slope1)
    if INVERSE:
        r = tl.minimum(tl.maximum((inside - bottom) / height, 0.0), 1.0)
        theta = _solve(r, d0, bend)
        value = left + theta * width + outside / edge
    else:
        theta = tl.minimum(tl.maximum((inside - left) / width, 0.0), 1.0)
        t = theta * (1 - theta)
        value = bottom + height * (theta * theta + d0 * t) / (1 + bend * t) + outside * edge
    value = tl.where(x == x, value, x)  # NaN stays NaN
    t = theta * (1 - theta)
    numerator = d1 * theta * theta + 2 * t + d0 * (1 - theta) * (1 - theta)
    log_slope = tl.log(mean_slope * numerator) - 2 * tl.log(1 + bend * t)
    tl.store(value_ + rows, value, lines)
    tl.store(log_slope_ + rows, -log_slope if INVERSE else log_slope, lines)


@jit
def spline_backward(
    argument_, parameters, grad_value_, grad_log_, grad_x_, grad_parameters, count, group, stride, bound, floor,
    limit,
    INVERSE: tl.constexpr, BINS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of ``ROWS`` elements and of their parameters."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lines, columns = rows < count, tl.arange(0, PADDED)
    starts = rows // group * stride + rows % group * (3 * BINS + 1)  # of their parameters
    x = tl.load(argument_ + rows, lines, other=0.0)
    grad_value = tl.load(grad_value_ + rows, lines, other=0.0)
    grad_log = tl.load(grad_log_ + rows, lines, other=0.0)
    position = (x + bound) / (2 * bound)
    index, widths, heights = _bins(False, starts, lines, columns, parameters, position, floor, BINS)
    share_w, before_w = _chosen(widths, columns, index)
    width, left = _place(share_w, before_w, index, bound, floor, BINS)
    share_h, before_h = _chosen(heights, columns, index)
    height, _ = _place(share_h, before_h, index, bound, floor, BINS)
    raw = parameters + starts + 2 * BINS + index
    raw0 = tl.load(raw, lines, other=0.0).to(tl.float32)
    raw1 = tl.load(raw + 1, lines, other=0.0).to(tl.float32)
    slope0, slope1 = _slope(raw0, limit), _slope(raw1, limit)

    # What value and log-slope are made of, and how they change with x.
    mean_slope = height / width
    d0, d1 = slope0 / mean_slope, slope1 / mean_slope
    bend = d0 + d1 - 2
    inside = tl.minimum(tl.maximum(x, -bound), bound)
    excess = x - inside
    theta = tl.minimum(tl.maximum((inside - left) / width, 0.0), 1.0)
    u = 1 - theta
    t = theta * u
    over = 1 / (1 + bend * t)
    numerator = d1 * theta * theta + 2 * t + d0 * u * u
    slope = mean_slope * numerator * over * over
    lean = u - theta
    log_theta = 2 * (d1 * theta + lean - d0 * u) / numerator - 2 * bend * lean * over
    log_x = tl.where(excess == 0, log_theta / width, 0.0)
    if INVERSE:  # implicitly: the forward's gradient, with other incoming ones
        grad_x = (grad_value - grad_log * log_x) / slope
        grad_value, grad_log = -grad_x, -grad_log
    else:
        grad_x = grad_value * slope + grad_log * log_x
    tl.store(grad_x_ + rows, grad_x, lines)

    r = (theta * theta + d0 * t) * over
    through = tl.where(excess == 0, grad_value * slope, 0.0) + grad_log * log_x
    common = grad_value * height * t * over
    from_bend = 2 * grad_log * t * over
    grad0 = (common * (1 - r) + grad_log * u * u / numerator - from_bend) / mean_slope
    grad1 = (-common * r + grad_log * theta * theta / numerator - from_bend) / mean_slope
    tail = grad_value * excess
    grad_s = (grad_log - grad0 * slope0 - grad1 * slope1) / mean_slope
    grad0 += tl.where(excess < 0, tail, 0.0)
    grad1 += tl.where(excess > 0, tail, 0.0)

    scale = 2 * bound * (1 - floor)
    size_w, start_w = scale * (-through * theta - grad_s * mean_slope / width), -scale * through
    size_h, start_h = scale * (grad_value * r + grad_s / width), scale * grad_value
    out = grad_parameters + starts[:, None] + columns[None, :]
    wanted = lines[:, None] & (columns[None, :] < BINS)
    kind = grad_parameters.dtype.element_ty
    grad = _softmax_grad(widths, columns, index, size_w, start_w, share_w, before_w)
    tl.store(out, grad.to(kind), wanted)
    grad = _softmax_grad(heights, columns, index, size_h, start_h, share_h, before_h)
    tl.store(out + BINS, grad.to(kind), wanted)
    grad0 *= slope0 * _square(limit / (limit + tl.abs(raw0)))
    grad1 *= slope1 * _square(limit / (limit + tl.abs(raw1)))
    knots = tl.where(columns[None, :] == index[:, None], grad0[:, None], 0.0)
    knots += tl.where(columns[None, :] == index[:, None] + 1, grad1[:, None], 0.0)
    tl.store(out + 2 * BINS, knots.to(kind), wanted)
    last = tl.where(index + 1 == BINS, grad1, 0.0)
    tl.store(grad_parameters + starts + 3 * BINS, last.to(kind), lines)


@jit
def _softmax_grad(share, columns, index, grad_size, grad_start, chosen, before):
    """Return the gradient of the logits: the bins before the chosen one move its start."""
    mean = grad_start * before + grad_size * chosen
    grad = tl.where(columns[None, :] < index[:, None], grad_start[:, None], 0.0)
    grad = tl.where(columns[None, :] == index[:, None], grad_size[:, None], grad)
    return (grad - mean[:, None]) * share


@jit
def _square(x):
    return x * x
