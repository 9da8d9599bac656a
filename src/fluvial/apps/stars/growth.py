r"""The curve of growth of a Milne–Eddington line, tabulated once: from weak to saturated to damped.

With a source function linear in optical depth the depth of a line in the flux is

.. math:: 1 - F/F_c = \beta\, \frac{\eta(v)}{1 + \eta(v)}, \qquad \eta(v) = \eta_0 H(a, v),

where :math:`\eta_0` is the ratio of line to continuous opacity, H the Voigt (Hjerting) function of the distance v in
Doppler widths and the damping a, and :math:`\beta` the depth of a line of infinite strength. Its area in units of
:math:`\beta \Delta\lambda_D` is the curve of growth. See Gray (2005), ch. 16; for H: Weideman (1994, SIAM J. Numer.
Anal. 31, 1497).
"""

from __future__ import annotations

import functools

import numpy as np

Array = np.ndarray

LOG_ETA = np.linspace(-4.0, 7.0, 111)
LOG_A = np.linspace(-4.0, 1.0, 51)


def voigt(a: Array | float, v: Array | float, terms: int = 32) -> Array:
    """Return the Hjerting function H(a, v), which is exp(−v²) for a = 0; relative error below 1e-6 for a ≥ 1e-4.

    >>> float(np.round(voigt(0.0, 1.0), 6)), float(np.round(voigt(1.0, 0.0), 6))
    (0.367879, 0.427584)
    """
    z = np.asarray(v) + 1j * np.asarray(a)
    scale, coefficients = _weideman(terms)
    ratio = (scale + 1j * z) / (scale - 1j * z)
    polynomial = np.polyval(coefficients, ratio)
    return np.real(2 * polynomial / (scale - 1j * z) ** 2 + (1 / np.sqrt(np.pi)) / (scale - 1j * z))


@functools.cache
def _weideman(terms: int) -> tuple[float, Array]:
    points = 2 * terms
    k = np.arange(-points + 1, points)
    scale = float(np.sqrt(terms / np.sqrt(2.0)))
    t = scale * np.tan(k * np.pi / (2 * points))
    f = np.concatenate([[0.0], np.exp(-(t**2)) * (scale**2 + t**2)])
    coefficients = np.real(np.fft.fft(np.fft.fftshift(f))) / (2 * points)
    return scale, np.flipud(coefficients[1 : terms + 1])


@functools.cache
def tables() -> tuple[Array, Array]:
    """Return log10 of area and of full width at half depth, both in Doppler widths, ``[eta, a]``."""
    v = np.concatenate([np.linspace(0, 6, 301), np.geomspace(6.05, 3e4, 500)])
    area = np.empty((len(LOG_ETA), len(LOG_A)))
    width = np.empty_like(area)
    for j, log_a in enumerate(LOG_A):
        h = voigt(10**log_a, v)
        eta = 10 ** LOG_ETA[:, None] * h
        depth = eta / (1 + eta)
        area[:, j] = 2 * np.trapezoid(depth, v, axis=1)
        half = depth[:, 0] / 2
        # depth falls with v: the last point above half of the centre, and the next one
        last = (depth > half[:, None]).sum(axis=1) - 1
        rows = np.arange(len(depth))
        d0, d1 = depth[rows, last], depth[rows, last + 1]
        width[:, j] = 2 * (v[last] + (d0 - half) / (d0 - d1) * (v[last + 1] - v[last]))
    return np.log10(area), np.log10(width)


def grow(eta: Array, a: Array) -> tuple[Array, Array]:
    r"""Return area and full width at half depth of lines, in Doppler widths, for :math:`\eta_0` and damping of any
    one shape.

    Between the points of the table both are bilinear in the logarithms; beyond its ends (1e-4 … 1e7, 1e-4 … 10) weak
    lines go on linearly and other values are held.

    >>> weak, _ = grow(np.array([1e-6]), np.array([1e-3]))
    >>> round(float(weak[0] / (np.sqrt(np.pi) * 1e-6)), 2)
    1.0
    """
    log_eta, log_a = np.log10(eta), np.log10(a)
    i, u = _cell(log_eta, LOG_ETA)
    j, w = _cell(log_a, LOG_A)
    out = []
    for table in tables():
        flat = table.ravel()
        corner = i * len(LOG_A) + j
        low = flat[corner] * (1 - w) + flat[corner + 1] * w
        high = flat[corner + len(LOG_A)] * (1 - w) + flat[corner + len(LOG_A) + 1] * w
        out.append(low * (1 - u) + high * u)
    below = np.minimum(log_eta - LOG_ETA[0], 0.0)
    return 10 ** (out[0] + below), 10 ** out[1]


def _cell(x: Array, grid: Array) -> tuple[Array, Array]:
    position = np.clip((x - grid[0]) / (grid[1] - grid[0]), 0.0, len(grid) - 1 - 1e-9)
    i = position.astype(np.intp)
    return i, position - i
