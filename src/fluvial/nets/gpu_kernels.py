"""What stands between the products of a conditioner, in Triton: norm, activation, gate and sum, and their gradients.

Matrices are ``[rows, width]``, contiguous; a program takes ``CHUNK`` rows of ``COLUMNS`` columns, ``ROWS`` at a time.
Sums over the rows are made in two steps: one partial sum for each chunk, then those together. All is computed in float32.
What a map's bias adds is added here where a sweep follows anyway: products without are faster.
"""

# There may be no Triton; and what a kernel's constants leave out is not unbound.
# pyright: reportMissingImports=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton.language as tl
from triton import jit


@jit
def _activated(z, ACTIVATION: tl.constexpr):
    """Activations as :data:`fluvial.nets.native.ACTIVATIONS` counts them: ReLU, SiLU, ELU, tanh."""
    if ACTIVATION == 0:
        return tl.maximum(z, 0.0)
    elif ACTIVATION == 1:
        return z * tl.sigmoid(z)
    elif ACTIVATION == 2:
        return tl.where(z > 0, z, tl.exp(tl.minimum(z, 0.0)) - 1)
    else:
        return 2 * tl.sigmoid(2 * z) - 1


@jit
def _slope(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == 0:
        return (z > 0).to(tl.float32)
    elif ACTIVATION == 1:
        s = tl.sigmoid(z)
        return s * (1 + z * (1 - s))
    elif ACTIVATION == 2:
        return tl.where(z > 0, 1.0, tl.exp(tl.minimum(z, 0.0)))
    else:
        t = 2 * tl.sigmoid(2 * z) - 1
        return 1 - t * t


@jit
def entrance(
    x,
    context,
    out,
    rows,
    inputs,
    contexts,
    width,
    limit,
    CONTEXT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What a network takes: x drawn in to ± ``limit``, the context, and zeros up to ``width``."""
    lines = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = (lines < rows)[:, None]
    first = here & (columns < inputs)[None, :]
    value = tl.load(x + lines.to(tl.int64)[:, None] * inputs + columns[None, :], first, other=0.0)
    value *= tl.rsqrt(1 + value / limit * (value / limit))
    if CONTEXT:
        other = here & ((columns >= inputs) & (columns < inputs + contexts))[None, :]
        at = lines.to(tl.int64)[:, None] * contexts + columns[None, :] - inputs
        value += tl.load(context + at, other, other=0.0)
    at = lines.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), here & (columns < width)[None, :])


@jit
def entrance_grad(grad, x, out, rows, inputs, width, limit, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The gradient of x through :func:`entrance`."""
    lines = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (lines < rows)[:, None] & (columns < inputs)[None, :]
    at = lines.to(tl.int64)[:, None] * inputs + columns[None, :]
    slope = tl.load(x + at, inside, other=0.0) / limit
    slope = tl.rsqrt(1 + slope * slope)
    place = grad + lines.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out + at, tl.load(place, inside, other=0.0).to(tl.float32) * slope * slope * slope, inside)


@jit
def _sums(pointer, columns, wanted, sums, width):
    tl.store(pointer + tl.program_id(0) * width + columns, tl.sum(sums, 0), wanted)


@jit
def moments(y, sums, squares, rows, width, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of the values and of their squares, for each chunk."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = columns < width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    total_square = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, CHUNK, ROWS):
        lines = tl.program_id(0) * CHUNK + start + tl.arange(0, ROWS)
        at = lines.to(tl.int64)[:, None] * width + columns[None, :]
        value = tl.load(y + at, (lines < rows)[:, None] & wanted[None, :], other=0.0).to(tl.float32)
        total += value
        total_square += value * value
    _sums(sums, columns, wanted, total, width)
    _sums(squares, columns, wanted, total_square, width)


@jit
def total(parts, out, width, chunks, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums over all chunks, ``[n, chunks, width]`` to ``[n, width]``."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    every = tl.arange(0, PARTS)
    wanted = columns < width
    at = (tl.program_id(1) * chunks + every)[:, None] * width + columns[None, :]
    part = tl.load(parts + at, (every < chunks)[:, None] & wanted[None, :], other=0.0)
    tl.store(out + tl.program_id(1) * width + columns, tl.sum(part, 0), wanted)


@jit
def batch_norm(
    sums, squares, weight, bias, added, running_mean, running_var, table, rows, width, units, chunks, chunk, epsilon,
    momentum, ADDED: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """From the sums of all chunks: what to multiply by and to add, mean and 1 / deviation, as the rows of ``table``.

    The chunks' variances and means are put together as Chan, Golub & LeVeque (1979) do. Columns beyond ``units`` get
    zeros. A bias that was left out, ``added``, moves nothing but the mean that is kept.
    """
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = columns < width
    parts = tl.arange(0, PARTS)
    inside = (parts < chunks)[:, None] & wanted[None, :]
    at = parts[:, None] * width + columns[None, :]
    part = tl.load(sums + at, inside, other=0.0)
    square = tl.load(squares + at, inside, other=0.0)
    counts = tl.minimum(tl.maximum(rows - parts * chunk, 1), chunk).to(tl.float32)[:, None]
    mean = tl.sum(part, 0) / rows
    away = part / counts - mean[None, :]
    spread = tl.maximum(square - part * part / counts, 0.0) + counts * away * away
    variance = tl.sum(tl.where(inside, spread, 0.0), 0) / rows
    rate = tl.rsqrt(variance + epsilon)
    real = columns < units
    scale = tl.load(weight + columns, real, other=0.0) * rate
    shift = tl.load(bias + columns, real, other=0.0) - mean * scale
    tl.store(table + columns, scale, wanted)
    tl.store(table + width + columns, tl.where(real, shift, 0.0), wanted)
    tl.store(table + 2 * width + columns, mean, wanted)
    tl.store(table + 3 * width + columns, rate, wanted)
    if ADDED:
        mean += tl.load(added + columns, real, other=0.0)
    old = tl.load(running_mean + columns, real, other=0.0)
    tl.store(running_mean + columns, old + momentum * (mean - old), real)
    old = tl.load(running_var + columns, real, other=0.0)
    unbiased = variance * rows / tl.maximum(rows - 1, 1)
    tl.store(running_var + columns, old + momentum * (unbiased - old), real)


@jit
def activate(
    y, table, out, rows, width, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``activation(scale · y + shift)``."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = columns < width
    if NORM:
        scale = tl.load(table + columns, wanted, other=0.0)[None, :]
        shift = tl.load(table + width + columns, wanted, other=0.0)[None, :]
    for start in range(0, CHUNK, ROWS):
        lines = tl.program_id(0) * CHUNK + start + tl.arange(0, ROWS)
        at = lines.to(tl.int64)[:, None] * width + columns[None, :]
        inside = (lines < rows)[:, None] & wanted[None, :]
        z = tl.load(y + at, inside, other=0.0).to(tl.float32)
        if NORM:
            z = scale * z + shift
        tl.store(out + at, _activated(z, ACTIVATION).to(out.dtype.element_ty), inside)


@jit
def add(
    h, y, bias, gate, bias_gate, out, sums, squares, rows, width, units, GATE: tl.constexpr, MOMENTS: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``h + y · sigmoid(gate)``, y and gate with their biases, and the moments of that."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = columns < width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    total_square = tl.zeros((ROWS, COLUMNS), tl.float32)
    level = tl.load(bias + columns, columns < units, other=0.0)[None, :]
    if GATE:
        level_gate = tl.load(bias_gate + columns, columns < units, other=0.0)[None, :]
    for start in range(0, CHUNK, ROWS):
        lines = tl.program_id(0) * CHUNK + start + tl.arange(0, ROWS)
        at = lines.to(tl.int64)[:, None] * width + columns[None, :]
        inside = (lines < rows)[:, None] & wanted[None, :]
        value = tl.load(y + at, inside, other=0.0).to(tl.float32)
        value += level
        if GATE:
            value *= tl.sigmoid(tl.load(gate + at, inside, other=0.0).to(tl.float32) + level_gate)
        value = (value + tl.load(h + at, inside, other=0.0).to(tl.float32)).to(out.dtype.element_ty)
        tl.store(out + at, value, inside)
        if MOMENTS:
            rounded = tl.where(inside, value.to(tl.float32), 0.0)
            total += rounded
            total_square += rounded * rounded
    if MOMENTS:
        _sums(sums, columns, wanted, total, width)
        _sums(squares, columns, wanted, total_square, width)


@jit
def activate_sums(
    grad, y, table, sums, products, rows, width, ACTIVATION: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What batch norm's gradient needs of a chunk: the sums of z's gradient, and of it times the normalised value."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = columns < width
    scale = tl.load(table + columns, wanted, other=0.0)[None, :]
    shift = tl.load(table + width + columns, wanted, other=0.0)[None, :]
    mean = tl.load(table + 2 * width + columns, wanted, other=0.0)[None, :]
    rate = tl.load(table + 3 * width + columns, wanted, other=0.0)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    total_product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, CHUNK, ROWS):
        lines = tl.program_id(0) * CHUNK + start + tl.arange(0, ROWS)
        at = lines.to(tl.int64)[:, None] * width + columns[None, :]
        inside = (lines < rows)[:, None] & wanted[None, :]
        value = tl.load(y + at, inside, other=0.0).to(tl.float32)
        through = tl.load(grad + at, inside, other=0.0).to(tl.float32)
        through *= _slope(scale * value + shift, ACTIVATION)
        total += through
        total_product += through * (value - mean) * rate
    _sums(sums, columns, wanted, total, width)
    _sums(products, columns, wanted, total_product, width)


@jit
def activate_grad(
    grad, y, table, totals, more, out, sums, rows, width, NORM: tl.constexpr, MORE: tl.constexpr,
    ACTIVATION: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of y, plus ``more``; and its sums over each chunk.

    ``totals: [2, width]`` are the sums over all rows of what :func:`activate_sums` sums.
    """
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = columns < width
    if NORM:
        scale = tl.load(table + columns, wanted, other=0.0)[None, :]
        shift = tl.load(table + width + columns, wanted, other=0.0)[None, :]
        mean = tl.load(table + 2 * width + columns, wanted, other=0.0)[None, :]
        rate = tl.load(table + 3 * width + columns, wanted, other=0.0)[None, :]
        level = tl.load(totals + columns, wanted, other=0.0)[None, :] / rows
        lean = tl.load(totals + width + columns, wanted, other=0.0)[None, :] / rows
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, CHUNK, ROWS):
        lines = tl.program_id(0) * CHUNK + start + tl.arange(0, ROWS)
        at = lines.to(tl.int64)[:, None] * width + columns[None, :]
        inside = (lines < rows)[:, None] & wanted[None, :]
        value = tl.load(y + at, inside, other=0.0).to(tl.float32)
        through = tl.load(grad + at, inside, other=0.0).to(tl.float32)
        if NORM:
            through *= _slope(scale * value + shift, ACTIVATION)
            through = scale * (through - level - (value - mean) * rate * lean)
        else:
            through *= _slope(value, ACTIVATION)
        if MORE:
            through += tl.load(more + at, inside, other=0.0).to(tl.float32)
        tl.store(out + at, through.to(out.dtype.element_ty), inside)
        total += tl.where(inside, through, 0.0)
    _sums(sums, columns, wanted, total, width)


@jit
def gate_grad(
    grad, y, bias, gate, bias_gate, out, out_gate, sums, sums_gate, rows, width, units,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradients of y and of the gate in ``y · sigmoid(gate)``, and their sums over each chunk."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = columns < width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    total_gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    level = tl.load(bias + columns, columns < units, other=0.0)[None, :]
    level_gate = tl.load(bias_gate + columns, columns < units, other=0.0)[None, :]
    for start in range(0, CHUNK, ROWS):
        lines = tl.program_id(0) * CHUNK + start + tl.arange(0, ROWS)
        at = lines.to(tl.int64)[:, None] * width + columns[None, :]
        inside = (lines < rows)[:, None] & wanted[None, :]
        value = tl.load(y + at, inside, other=0.0).to(tl.float32) + level
        through = tl.load(grad + at, inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(tl.load(gate + at, inside, other=0.0).to(tl.float32) + level_gate)
        through_gate = through * value * share * (1 - share)
        through *= share
        tl.store(out + at, through.to(out.dtype.element_ty), inside)
        tl.store(out_gate + at, through_gate.to(out.dtype.element_ty), inside)
        total += through
        total_gate += through_gate
    _sums(sums, columns, wanted, total, width)
    _sums(sums_gate, columns, wanted, total_gate, width)
