r"""A stand-in population of merging binary black holes whose density is known exactly.

**The numbers here are invented.** This is no population synthesis: no star evolves in it, and nothing about
nature may be inferred from it. It has the shape of such a catalogue, so that a fitted density can be compared
with the truth row by row, which a real catalogue never allows.

What it imitates. Population synthesis finds merging black holes from about 5 to 60 solar masses, heavier at
low metallicity, where winds remove less of the star, up to a ceiling and a pile-up beneath it that
pulsational pair instability sets (Giacobbo & Mapelli 2018, MNRAS 480, 2011; Spera et al. 2019, MNRAS 485,
889). Most systems are of nearly equal mass, many lie in a few narrow pile-ups at low mass, and all of it
shifts with metallicity and with the efficiency of common-envelope ejection (Iorio et al. 2023, MNRAS 524,
426, whose 15 metallicities :data:`METALLICITIES` repeats).

The density is a mixture. With :math:`y_i = \ln(M_i / M_\odot)`, mean :math:`u = (y_0 + y_1)/2` and difference
:math:`r = y_1 - y_0`, each component k is a normalised product in one of two pairs of coordinates, and

.. math::
   p(M_0, M_1 \mid Z, \alpha) = \frac{1}{M_0 M_1} \sum_k w_k(Z, \alpha)\, f_k(a_k)\, g_k(b_k),
   \qquad (a_k, b_k) = (y_0, y_1) \text{ or } (u, r).

Going from (y0, y1) to (u, r) has unit Jacobian, so p integrates to 1 because the weights sum to 1. All
factors are normal densities but one: the tail's f is a power law between two masses, smeared by a normal
kernel, and this too has a closed form (:func:`_log_smeared_power_law`). The components are

=====================  ===========  ==================================================================
component              coordinates  what it is
=====================  ===========  ==================================================================
spike, 4 × 4 pairs     (y0, y1)     each mass in one of four narrow peaks between 5.5 and 9.5
mixed, 2 × 4           (y0, y1)     one mass in a peak, the other heavier; either may be the heavier
continuum              (u, r)       a broad floor under the peaks
tail, twins and broad  (u, r)       the power law, up to a ceiling that falls with metallicity
pile-up                (u, r)       just below the ceiling, at low metallicity
=====================  ===========  ==================================================================

Every weight, centre and width is a smooth function of log Z and log alpha, so the density is defined
between the simulated (Z, alpha) too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fluvial.errors import DataError

Array = NDArray[np.float64]

METALLICITIES: tuple[float, ...] = (
    *(0.0001, 0.0002, 0.0004, 0.0006, 0.0008),
    *(0.001, 0.002, 0.004, 0.006, 0.008),
    *(0.01, 0.014, 0.017, 0.02, 0.03),
)
"""The simulated metallicities Z (mass fraction of what is heavier than helium), ascending."""

ALPHAS: tuple[float, ...] = (0.5, 1.0, 3.0, 5.0)
"""The simulated common-envelope efficiencies alpha (dimensionless), ascending."""

_LOG_2PI = math.log(2 * math.pi)
_ROWS_AT_ONCE = 16_384  # keeps the work arrays of a block in the processor's cache
_ROUNDING = 1e-6  # relative slack at the ends of the range, so that float32 contexts are accepted

_PEAKS = np.array([5.95, 6.85, 7.80, 8.80])[:, None]  # solar masses
_PEAK_WIDTHS = np.array([0.19, 0.21, 0.24, 0.27])[:, None]  # solar masses


def log_density(mass_0: ArrayLike, mass_1: ArrayLike, Z: ArrayLike, alpha: ArrayLike) -> Array:
    """Return the exact ln p(mass_0, mass_1 | Z, alpha), in nats per square solar mass.

    The formula is at the top of this module. The result is finite for positive finite masses, however far
    out, and −inf where the density is zero: at masses that are not positive, or infinite.

    Args:
        mass_0: mass of the remnant of the star that was born heavier, in solar masses; any shape.
        mass_1: mass of the other, in solar masses; broadcasts with the rest. Either may be the heavier.
        Z: metallicity, from 0.0001 to 0.03; need not lie on the grid.
        alpha: common-envelope efficiency, from 0.5 to 5; need not lie on the grid.

    Returns:
        float64 array of the broadcast shape.

    Raises:
        DataError: if a mass is NaN, if Z or alpha is out of range, or if the shapes do not broadcast.

    >>> log_density(7.8, [6.9, 40.0, -1.0], Z=0.001, alpha=1.0).round(3)
    array([ -2.135, -18.379,    -inf])
    """
    masses = _mass("mass_0", mass_0), _mass("mass_1", mass_1)
    context = _context(Z, alpha)
    shape = _broadcast_shape(*masses, *context)
    mass_0, mass_1 = (np.broadcast_to(m, shape).reshape(-1) for m in masses)
    one = context[0].size == context[1].size == 1  # then its parameters are worked out once a block
    x, y = (c.reshape(-1) if one else np.broadcast_to(c, shape).reshape(-1) for c in context)
    out = np.empty(mass_0.size)
    for rows in _blocks(out.size):
        at = slice(None) if one else rows
        out[rows] = _log_density(mass_0[rows], mass_1[rows], x[at], y[at])
    return out.reshape(shape)


def sample(Z: ArrayLike, alpha: ArrayLike, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw one pair of masses from p(mass_0, mass_1 | Z, alpha) for each context.

    Args:
        Z: metallicity, from 0.0001 to 0.03; any shape.
        alpha: common-envelope efficiency, from 0.5 to 5; broadcasts with ``Z``.
        rng: the source of randomness; the same state gives the same draws.

    Returns:
        ``(mass_0, mass_1)``, in solar masses, each a float64 array of the broadcast shape; always positive.

    Raises:
        DataError: if Z or alpha is out of range, or if the shapes do not broadcast.

    >>> mass_0, mass_1 = sample(np.full(3, 0.001), 1.0, np.random.default_rng(0))
    >>> mass_0.shape, bool((mass_0 > 0).all())
    ((3,), True)
    """
    x, y = _context(Z, alpha)
    shape = _broadcast_shape(x, y)
    x, y = (np.broadcast_to(v, shape).reshape(-1) for v in (x, y))
    log_mass = np.empty((2, x.size))
    for block in _blocks(x.size):
        log_mass[:, block] = _draw(_components(x[block], y[block]), rng)
    mass_0, mass_1 = np.exp(log_mass)
    return mass_0.reshape(shape), mass_1.reshape(shape)


@dataclass(frozen=True)
class _PowerLaw:
    """What a power law needs besides its lower end and its smearing; see :func:`_log_smeared_power_law`."""

    slope: Array
    length: Array


@dataclass(frozen=True)
class _Component:
    """One term of the mixture; every array broadcasts with the contexts ``[n]``.

    ``diagonal`` says in which coordinates (a, b) it is a product: (u, r) if true, else (y0, y1). ``centre``
    and ``width`` are the means and standard deviations of a and b. With a ``power_law``, a starts at
    ``centre[0]``.
    """

    log_weight: Array
    diagonal: bool
    centre: tuple[Array, Array]
    width: tuple[Array, Array]
    power_law: _PowerLaw | None = None

    def log_prob(self, y0: Array, y1: Array) -> Array:
        """Return ln of weight × f(a) × g(b): a density in (y0, y1), whose unit is 1."""
        a, b = (0.5 * (y0 + y1), y1 - y0) if self.diagonal else (y0, y1)
        out = self.log_weight + _log_normal_pdf(b, self.centre[1], self.width[1])
        if self.power_law is None:
            return out + _log_normal_pdf(a, self.centre[0], self.width[0])
        beyond = a - self.centre[0]
        return out + _log_smeared_power_law(
            beyond, self.width[0], self.power_law.slope, self.power_law.length
        )

    def draw(self, rows: NDArray[np.intp], normal: Array, uniform: Array) -> tuple[Array, Array]:
        """Turn ``normal`` [2, m] and ``uniform`` [m] into (y0, y1) for those ``rows`` of the contexts."""
        a, b = (c[rows] + w[rows] * e for c, w, e in zip(self.centre, self.width, normal, strict=True))
        if self.power_law is not None:
            slope, length = self.power_law.slope[rows], self.power_law.length[rows]
            a = a - np.log1p(uniform * np.expm1(-slope * length)) / slope
        return (a - 0.5 * b, a + 0.5 * b) if self.diagonal else (a, b)


def _components(x: Array, y: Array) -> list[_Component]:
    """Return the mixture at the scaled contexts x (of log Z) and y (of log alpha), both [n] and in [−1, 1].

    Every array of the result has shape [n].
    """
    # Winds strip metal-rich stars, so what they do sets in towards the upper end of log Z.
    winds = 1 / (1 + np.exp(-(x - 0.15) / 0.22))
    ceiling = np.log(40.0) - 0.70 * winds + 0.04 * y  # log of the mass where the tail and the pile-up end
    spike, mixed, continuum, tail, pile_up = _log_softmax(
        np.stack(
            [
                0.22 + 0.28 * winds - 0.18 * y + 0.12 * x * y,
                -0.95 + 0.20 * x + 0.15 * y,
                -1.10 + 0.10 * y - 0.15 * winds,
                0.05 - 0.25 * x + 0.12 * y,
                -2.00 - 3.00 * winds - 0.20 * y,
            ]
        )
    )
    peak, peak_width, popularity = _peaks(x, y)
    return [
        *_spike(spike, peak, peak_width, popularity, x, y),
        *_mixed(mixed, peak, peak_width, popularity, x, y),
        _diagonal(continuum, np.log(7.6) - 0.05 * x, 0.20 + 0.02 * x, -0.06 + 0.04 * y, 0.24 + 0.03 * x),
        *_tail(tail, ceiling, winds, x, y),
        _diagonal(pile_up, ceiling - 0.22, 0.080 - 0.01 * y, -0.04 + 0.03 * y, 0.13 + 0.02 * y),
    ]


def _peaks(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return the log-mass, the width in log-mass and the log-popularity of the four peaks, each [4, n]."""
    mass = _PEAKS + 0.08 * x - 0.06 * y
    width = _PEAK_WIDTHS * (1 + 0.06 * x + 0.04 * y) / _PEAKS
    flat, by_x, by_y, by_xy = np.array(
        [
            [0.15, 0.40, -0.25, 0.10],
            [0.30, 0.05, 0.15, -0.20],
            [0.00, -0.15, 0.20, 0.10],
            [-0.25, -0.20, 0.25, 0.0],
        ]
    ).T[..., None]
    return np.log(mass), width, flat + by_x * x + by_y * y + by_xy * x * y


def _spike(
    log_weight: Array, peak: Array, width: Array, popularity: Array, x: Array, y: Array
) -> list[_Component]:
    """Both masses in a peak, close ones preferred; the star that was born heavier tends to stay it."""
    j, k = np.indices((4, 4))[..., None]
    closeness = 0.75 + 0.25 * x - 0.20 * y
    order = 0.16 - 0.14 * y - 0.06 * x
    pair = popularity[:, None] + popularity[None, :] - closeness * np.abs(j - k) + order * (j - k)
    pair = log_weight + _log_softmax(pair.reshape(16, -1))
    return [
        _Component(pair[4 * j + k], False, (peak[j], peak[k]), (width[j], width[k]))
        for j in range(4)
        for k in range(4)
    ]


def _mixed(
    log_weight: Array, peak: Array, width: Array, popularity: Array, x: Array, y: Array
) -> list[_Component]:
    """One mass in a peak, the other heavier; which of the two is the heavier depends on the context."""
    heavy = np.log(13.0) - 0.16 * x + 0.06 * y, 0.23 - 0.03 * x
    reversal = -0.5 - 0.6 * x + 0.5 * y  # log-odds that mass_1 is the heavier
    log_peak = _log_softmax(popularity + 0.35 * np.arange(4)[:, None])
    out = []
    for k in range(4):
        light = peak[k], width[k]
        first = log_weight + log_peak[k] - np.logaddexp(0, reversal)
        second = log_weight + log_peak[k] - np.logaddexp(0, -reversal)
        out.append(_Component(first, False, (heavy[0], light[0]), (heavy[1], light[1])))
        out.append(_Component(second, False, (light[0], heavy[0]), (light[1], heavy[1])))
    return out


def _tail(log_weight: Array, ceiling: Array, winds: Array, x: Array, y: Array) -> list[_Component]:
    """The power law in exp(u) up to the ceiling, with twins and with broad mass ratios."""
    lower = np.log(10.2) - 0.06 * x
    law = _PowerLaw(slope=0.75 + 0.55 * winds - 0.20 * y, length=ceiling - lower)
    smear = 0.07 + 0.01 * x
    odds = -0.35 + 0.30 * x - 0.45 * y  # log-odds of twins, that is, of a nearly equal pair
    twins, broad = log_weight - np.logaddexp(0, -odds), log_weight - np.logaddexp(0, odds)
    return [
        _diagonal(twins, lower, smear, -0.015 + 0.010 * y, 0.085 + 0.015 * y, law),
        _diagonal(broad, lower, smear, -0.140 + 0.160 * y - 0.05 * x, 0.270 + 0.020 * x, law),
    ]


def _diagonal(
    log_weight: Array, mean: Array, width: Array, ratio: Array, spread: Array, law: _PowerLaw | None = None
) -> _Component:
    """A component in u (``mean``, ``width``) and r (``ratio``, ``spread``)."""
    return _Component(log_weight, True, (mean, ratio), (width, spread), law)


def _log_density(mass_0: Array, mass_1: Array, x: Array, y: Array) -> Array:
    inside = (mass_0 > 0) & (mass_1 > 0) & np.isfinite(mass_0) & np.isfinite(mass_1)
    y0, y1 = (np.log(np.where(inside, m, 1.0)) for m in (mass_0, mass_1))
    terms = np.stack([c.log_prob(y0, y1) for c in _components(x, y)])
    top = terms.max(0)  # finite: no component reaches −inf at a finite log-mass
    total = top + np.log(np.exp(terms - top).sum(0))
    return np.where(inside, total - y0 - y1, -np.inf)


def _draw(components: list[_Component], rng: np.random.Generator) -> Array:
    """Return log-masses [2, n]; every context consumes the same amount of randomness."""
    cumulative = np.cumsum(np.exp([c.log_weight for c in components]), axis=0)
    n = cumulative.shape[1]
    # The last sum is 1 up to rounding; scaling by it makes every uniform number fall in some component.
    chosen = (cumulative <= rng.random(n) * cumulative[-1]).sum(0)
    normal, uniform = rng.standard_normal((2, n)), rng.random(n)
    out = np.empty((2, n))
    for k, component in enumerate(components):
        rows = np.flatnonzero(chosen == k)
        out[:, rows] = component.draw(rows, normal[:, rows], uniform[rows])
    return out


def _log_normal_pdf(value: Array, mean: Array, width: Array) -> Array:
    return -0.5 * (((value - mean) / width) ** 2 + _LOG_2PI) - np.log(width)


def _log_smeared_power_law(a: Array, width: Array, slope: Array, length: Array) -> Array:
    r"""Return the log-density of v + width·ε, with v ~ exponential(slope) cut off at ``length``, ε ~ N(0, 1).

    A power law in mass is an exponential in log-mass. With κ = slope, L = length, σ = width,

    .. math:: p(a) = \frac{\kappa\, e^{-\kappa a + \kappa^2\sigma^2/2}}{1 - e^{-\kappa L}}
              \left[\Phi\!\left(\frac{a - \kappa\sigma^2}{\sigma}\right)
              - \Phi\!\left(\frac{a - L - \kappa\sigma^2}{\sigma}\right)\right].
    """
    upper = a / width - slope * width
    lower = upper - length / width
    # Φ(upper) − Φ(lower) = Φ(−lower) − Φ(−upper): the form whose terms are both small keeps its digits.
    flip = upper + lower > 0
    big, small = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
    log_big = _log_normal_cdf(big)
    log_window = log_big + np.log1p(-np.exp(_log_normal_cdf(small) - log_big))
    log_scale = np.log(slope) - np.log(-np.expm1(-slope * length))
    return log_scale - slope * a + 0.5 * (slope * width) ** 2 + log_window


def _log_normal_cdf(z: Array) -> Array:
    """Return ln Φ(z) for z [n], however far out; the relative error of Φ is about 1e-12."""
    t = z / -math.sqrt(2)  # Φ(z) = erfc(t)/2
    erfc = np.fromiter(map(math.erfc, np.minimum(t, 20.0).tolist()), dtype=np.float64, count=t.size)
    out = np.log(0.5 * erfc)
    beyond = t > 20.0  # erfc(20) ~ 5e-176 is still a normal number, and the series has converged by there
    far = t[beyond]
    w = 0.5 / far**2
    series = np.log1p(-w * (1 - 3 * w * (1 - 5 * w * (1 - 7 * w))))
    out[beyond] = series - far**2 - np.log(2 * math.sqrt(math.pi) * far)
    return out


def _log_softmax(logits: Array) -> Array:
    """Return log-weights that sum to 1 over the first axis."""
    top = logits.max(0)
    return logits - (top + np.log(np.exp(logits - top).sum(0)))


def _numbers(name: str, value: ArrayLike) -> Array:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected {name} to be a number or an array of numbers; got {value!r}") from error


def _mass(name: str, value: ArrayLike) -> Array:
    mass = _numbers(name, value)
    if (bad := np.flatnonzero(np.isnan(mass))).size:
        raise DataError(
            f"expected {name} in solar masses; got NaN at index {bad[0]} ({bad.size} of {mass.size} are NaN)"
        )
    return mass


def _context(Z: ArrayLike, alpha: ArrayLike) -> tuple[Array, Array]:
    """Check the ranges; return log Z and log alpha, each mapped linearly from its range to [−1, 1]."""
    scaled = []
    for name, given, levels in (("Z", Z, METALLICITIES), ("alpha", alpha, ALPHAS)):
        value = _numbers(name, given)
        low, high = levels[0], levels[-1]
        inside = (value >= low * (1 - _ROUNDING)) & (value <= high * (1 + _ROUNDING))
        if not inside.all():
            bad = np.flatnonzero(~inside)
            raise DataError(
                f"expected {name} from {low:g} to {high:g}, where the population is defined; "
                f"got {value.ravel()[bad[0]]:g} at index {bad[0]} ({bad.size} of {value.size} outside)"
            )
        middle, half = 0.5 * math.log(low * high), 0.5 * math.log(high / low)
        scaled.append((np.log(value) - middle) / half)
    return scaled[0], scaled[1]


def _broadcast_shape(*arrays: Array) -> tuple[int, ...]:
    shapes = [a.shape for a in arrays]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as error:
        shown = ", ".join(map(str, shapes))
        raise DataError(f"expected arrays whose shapes broadcast together; got {shown}") from error


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(i, i + _ROWS_AT_ONCE) for i in range(0, rows, _ROWS_AT_ONCE))
