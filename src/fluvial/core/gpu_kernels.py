"""The kernels of :mod:`fluvial.core.gpu` in Triton: formulas and names are those of :mod:`fluvial.core.spline`.

What sees all bins of an element and what sees a few numbers of it are kernels of their own: in the first a warp works on
some rows of parameters, in the second each thread on an element. Between them stands a table ``[FOUND, elements]``.
"""

# There may be no Triton; and what a kernel's constants leave out is not unbound.
# pyright: reportMissingImports=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton.language as tl
from triton import jit

#: Rows of the tables between the kernels: bin, share of its width and of all before, the same of its height, both slopes
#: as they are given, and the logarithms of what the exponentials of the widths and of the heights sum to. And of the
#: gradients: of size, start and mean of the widths, the same of the heights, and of both slopes.
FOUND, GRADIENTS = 9, 8


@jit
def _rows(count, group, stride, BINS: tl.constexpr, ROWS: tl.constexpr):
    """Return the elements of this program, which there are, and where their parameters start."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    starts = (rows // group).to(tl.int64) * stride + rows % group * (3 * BINS + 1)
    return rows, rows < count, starts


@jit
def _shares(pointer, inside, real):
    """Return the softmax over the bins, and the logarithm of what the exponentials sum to."""
    logits = tl.where(real[None, :], tl.load(pointer, inside, other=0.0).to(tl.float32), -float("inf"))
    largest = tl.max(logits, 1)
    powers = tl.exp(logits - largest[:, None])
    total = tl.sum(powers, 1)
    return powers / total[:, None], largest + tl.log(total)


@jit
def find(
    x_, parameters, table, count, group, stride, bound, floor,
    INVERSE: tl.constexpr, BINS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Find the bins of ``ROWS`` elements."""
    rows, lines, starts = _rows(count, group, stride, BINS, ROWS)
    columns = tl.arange(0, PADDED)
    real = columns < BINS
    inside = lines[:, None] & real[None, :]
    pointer = parameters + starts[:, None] + columns[None, :]
    widths, log_width = _shares(pointer, inside, real)
    heights, log_height = _shares(pointer + BINS, inside, real)
    ends = (columns + 1).to(tl.float32)[None, :] * (floor / BINS)
    ends += (1 - floor) * tl.cumsum(heights if INVERSE else widths, 1)
    position = (tl.load(x_ + rows, lines, other=0.0) + bound) / (2 * bound)
    index = tl.sum(((ends <= position[:, None]) & real[None, :]).to(tl.int32), 1)
    index = tl.minimum(index, BINS - 1)
    mine, before = columns[None, :] == index[:, None], columns[None, :] < index[:, None]
    tl.store(table + rows, index.to(tl.float32), lines)
    tl.store(table + count + rows, tl.sum(tl.where(mine, widths, 0.0), 1), lines)
    tl.store(table + 2 * count + rows, tl.sum(tl.where(before, widths, 0.0), 1), lines)
    tl.store(table + 3 * count + rows, tl.sum(tl.where(mine, heights, 0.0), 1), lines)
    tl.store(table + 4 * count + rows, tl.sum(tl.where(before, heights, 0.0), 1), lines)
    knot = parameters + starts + 2 * BINS + index
    tl.store(table + 5 * count + rows, tl.load(knot, lines, other=0.0).to(tl.float32), lines)
    tl.store(table + 6 * count + rows, tl.load(knot + 1, lines, other=0.0).to(tl.float32), lines)
    tl.store(table + 7 * count + rows, log_width, lines)
    tl.store(table + 8 * count + rows, log_height, lines)


@jit
def _bin(table, rows, count, lines, bound, floor, limit, BINS: tl.constexpr):
    """Return width, left, height and bottom of the bin of each element, and the slopes at its ends."""
    even = tl.load(table + rows, lines, other=0.0) * (floor / BINS)
    chosen = tl.load(table + count + rows, lines, other=1.0)
    before = tl.load(table + 2 * count + rows, lines, other=0.0)
    width = 2 * bound * (floor / BINS + (1 - floor) * chosen)
    left = 2 * bound * (even + (1 - floor) * before) - bound
    chosen = tl.load(table + 3 * count + rows, lines, other=1.0)
    before = tl.load(table + 4 * count + rows, lines, other=0.0)
    height = 2 * bound * (floor / BINS + (1 - floor) * chosen)
    bottom = 2 * bound * (even + (1 - floor) * before) - bound
    slope0 = _slope(tl.load(table + 5 * count + rows, lines, other=0.0), limit)
    slope1 = _slope(tl.load(table + 6 * count + rows, lines, other=0.0), limit)
    return width, left, height, bottom, slope0, slope1


@jit
def _slope(raw, limit):
    return tl.exp(raw * limit / (limit + tl.abs(raw)))


@jit
def _clamped(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@jit
def _solve(r, d0, bend):
    b = d0 - r * bend
    root = tl.sqrt(tl.maximum(b * b + 4 * (1 - b) * r, 0.0))
    sums = tl.maximum(b, 0.0) + root
    adding = 2 * r / tl.where(sums > 0, sums, 1.0)
    theta = tl.where(b > 0, adding, (root - b) / (2 * (1 - tl.minimum(b, 0.0))))
    theta = tl.where(r > 0, _clamped(theta, 0.0, 1.0), 0.0)
    t = theta * (1 - theta)
    denominator = 1 + bend * t
    residual = theta * theta + d0 * t - r * denominator
    slope = (bend + 2 - d0) * theta * theta + 2 * t + d0 * (1 - theta) * (1 - theta)
    return _clamped(theta - residual * denominator / slope, 0.0, 1.0)


@jit
def evaluate(
    x_, table, value_, log_slope_, count, bound, floor, limit,
    INVERSE: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Value and log-slope of ``BLOCK`` elements, whose bins are known."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lines = rows < count
    x = tl.load(x_ + rows, lines, other=0.0)
    width, left, height, bottom, slope0, slope1 = _bin(table, rows, count, lines, bound, floor, limit, BINS)
    mean_slope = height / width
    d0, d1 = slope0 / mean_slope, slope1 / mean_slope
    bend = d0 + d1 - 2
    inside = _clamped(x, -bound, bound)
    outside = x - inside
    edge = tl.where(outside < 0, slope0, slope1)
    if INVERSE:
        theta = _solve(_clamped((inside - bottom) / height, 0.0, 1.0), d0, bend)
        value = left + theta * width + outside / edge
    else:
        theta = _clamped((inside - left) / width, 0.0, 1.0)
        t = theta * (1 - theta)
        value = bottom + height * (theta * theta + d0 * t) / (1 + bend * t) + outside * edge
    value = tl.where(x == x, value, x)  # NaN stays NaN
    t = theta * (1 - theta)
    numerator = d1 * theta * theta + 2 * t + d0 * (1 - theta) * (1 - theta)
    log_slope = tl.log(mean_slope * numerator) - 2 * tl.log(1 + bend * t)
    tl.store(value_ + rows, value, lines)
    tl.store(log_slope_ + rows, -log_slope if INVERSE else log_slope, lines)


@jit
def differentiate(
    argument_, table, grad_value_, grad_log_, grad_x_, gradients, count, bound, floor, limit,
    INVERSE: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of ``BLOCK`` elements, and of what :func:`find` found."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lines = rows < count
    x = tl.load(argument_ + rows, lines, other=0.0)
    grad_value = tl.load(grad_value_ + rows, lines, other=0.0)
    grad_log = tl.load(grad_log_ + rows, lines, other=0.0)
    width, left, height, _, slope0, slope1 = _bin(table, rows, count, lines, bound, floor, limit, BINS)
    mean_slope = height / width
    d0, d1 = slope0 / mean_slope, slope1 / mean_slope
    bend = d0 + d1 - 2
    inside = _clamped(x, -bound, bound)
    excess = x - inside
    theta = _clamped((inside - left) / width, 0.0, 1.0)
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
    size, start = scale * (-through * theta - grad_s * mean_slope / width), -scale * through
    _spread(gradients, rows, count, lines, size, start, table + count)
    size, start = scale * (grad_value * r + grad_s / width), scale * grad_value
    _spread(gradients + 3 * count, rows, count, lines, size, start, table + 3 * count)
    raw0 = tl.load(table + 5 * count + rows, lines, other=0.0)
    raw1 = tl.load(table + 6 * count + rows, lines, other=0.0)
    tl.store(gradients + 6 * count + rows, grad0 * slope0 * _bent(raw0, limit), lines)
    tl.store(gradients + 7 * count + rows, grad1 * slope1 * _bent(raw1, limit), lines)


@jit
def _spread(gradients, rows, count, lines, size, start, table):
    """Store the gradients of size and start of a bin, and their mean over all bins by shares."""
    chosen = tl.load(table + rows, lines, other=0.0)
    before = tl.load(table + count + rows, lines, other=0.0)
    tl.store(gradients + rows, size, lines)
    tl.store(gradients + count + rows, start, lines)
    tl.store(gradients + 2 * count + rows, start * before + size * chosen, lines)


@jit
def _bent(raw, limit):
    bend = limit / (limit + tl.abs(raw))
    return bend * bend


@jit
def scatter(
    parameters, table, gradients, grad_parameters, count, group, stride,
    BINS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of the parameters of ``ROWS`` elements."""
    rows, lines, starts = _rows(count, group, stride, BINS, ROWS)
    columns = tl.arange(0, PADDED)
    index = tl.load(table + rows, lines, other=0.0).to(tl.int32)
    wanted = lines[:, None] & (columns < BINS)[None, :]
    mine, before = columns[None, :] == index[:, None], columns[None, :] < index[:, None]
    place = starts[:, None] + columns[None, :]
    kind = grad_parameters.dtype.element_ty
    for axis in tl.static_range(2):
        logits = tl.load(parameters + place + axis * BINS, wanted, other=0.0).to(tl.float32)
        share = tl.exp(logits - tl.load(table + (7 + axis) * count + rows, lines, other=0.0)[:, None])
        part = gradients + 3 * axis * count + rows
        grad = tl.where(before, tl.load(part + count, lines, other=0.0)[:, None], 0.0)
        grad = tl.where(mine, tl.load(part, lines, other=0.0)[:, None], grad)
        grad = (grad - tl.load(part + 2 * count, lines, other=0.0)[:, None]) * share
        tl.store(grad_parameters + place + axis * BINS, grad.to(kind), wanted)
    grad0 = tl.load(gradients + 6 * count + rows, lines, other=0.0)
    grad1 = tl.load(gradients + 7 * count + rows, lines, other=0.0)
    knots = tl.where(mine, grad0[:, None], 0.0)
    knots = tl.where(columns[None, :] == index[:, None] + 1, grad1[:, None], knots)
    tl.store(grad_parameters + place + 2 * BINS, knots.to(kind), wanted)
    last = tl.where(index + 1 == BINS, grad1, 0.0)
    tl.store(grad_parameters + starts + 3 * BINS, last.to(kind), lines)


@jit
def affine(x_, parameters, value_, log_slope_, count, limit, INVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """Value and log-slope of an affine map with a bounded slope."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lines = rows < count
    x = tl.load(x_ + rows, lines, other=0.0)
    raw = tl.load(parameters + 2 * rows, lines, other=0.0)
    shift = tl.load(parameters + 2 * rows + 1, lines, other=0.0)
    log_scale = raw * limit / (limit + tl.abs(raw))
    if INVERSE:
        log_scale = -log_scale
        value = (x - shift) * tl.exp(log_scale)
    else:
        value = x * tl.exp(log_scale) + shift
    tl.store(value_ + rows, value, lines)
    tl.store(log_slope_ + rows, log_scale, lines)


@jit
def affine_backward(
    x_, parameters, grad_value_, grad_log_, grad_x_, grad_parameters, count, limit,
    INVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of an affine map."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lines = rows < count
    x = tl.load(x_ + rows, lines, other=0.0)
    raw = tl.load(parameters + 2 * rows, lines, other=0.0)
    shift = tl.load(parameters + 2 * rows + 1, lines, other=0.0)
    grad_value = tl.load(grad_value_ + rows, lines, other=0.0)
    grad_log = tl.load(grad_log_ + rows, lines, other=0.0)
    squash = limit / (limit + tl.abs(raw))
    if INVERSE:
        grad_x = grad_value * tl.exp(-raw * squash)
        grad_raw, grad_shift = -grad_x * (x - shift) - grad_log, -grad_x
    else:
        grad_x = grad_value * tl.exp(raw * squash)
        grad_raw, grad_shift = grad_x * x + grad_log, grad_value
    tl.store(grad_x_ + rows, grad_x, lines)
    tl.store(grad_parameters + 2 * rows, grad_raw * squash * squash, lines)
    tl.store(grad_parameters + 2 * rows + 1, grad_shift, lines)
