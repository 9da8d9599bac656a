r"""Densities of one variable with parameters a row, from which the simulated detector response is built.

Each has a closed log-density and an exact sampler, so a chain of them,

.. math:: p(x_1, \dots, x_D | c) = \prod_d p(x_d | x_1, \dots, x_{d-1}, c),

has an exact log-density too. Densities are against the counting measure on atoms and integers and the Lebesgue
measure elsewhere. Parameters are arrays ``[n]`` or numbers; ``draw`` and ``log_prob`` work row by row. Values
where there is no density give −inf, without a warning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Parameter = Array | float

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Conditional(Protocol):
    """One variable given everything before it, for ``n`` rows."""

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """Draw one value a row, ``[n]``; the randomness used depends on n alone."""
        ...

    def log_prob(self, x: Array) -> Array:
        """Return the log-density (or log-probability) of ``x: [n]``, row by row."""
        ...


@dataclass(frozen=True)
class Johnson:
    r"""Johnson's :math:`S_U`: a bell with heavy, possibly lopsided tails (Johnson 1949, Biometrika 36, 149).

    With z standard normal, :math:`x = m + w\,\delta \sinh((z - \gamma)/\delta)`. Near the centre it is a normal
    density of width w; the smaller ``tail`` (δ), the heavier the tails; a positive ``skew`` (γ) leans to low x.

    >>> float(Johnson(0.0, 1.0, tail=1e4).log_prob(np.array([1.0]))[0].round(4))
    -1.4189
    """

    centre: Parameter
    width: Parameter
    tail: Parameter = 1.5
    skew: Parameter = 0.0

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """See :class:`Conditional`."""
        z = rng.standard_normal(n)
        return self.centre + self.width * self.tail * np.sinh((z - self.skew) / self.tail)

    def standard(self, x: Array | float) -> Array:
        """Return the z whose image is x: the normal quantile of x."""
        return self.skew + self.tail * np.arcsinh((x - self.centre) / (self.width * self.tail))

    def log_prob(self, x: Array) -> Array:
        """See :class:`Conditional`."""
        t = (x - self.centre) / (self.width * self.tail)
        z = self.skew + self.tail * np.arcsinh(t)
        return -0.5 * (z * z + np.log1p(t * t)) - np.log(self.width) - _LOG_SQRT_2PI


@dataclass(frozen=True)
class Normal:
    """A normal density."""

    centre: Parameter
    width: Parameter

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """See :class:`Conditional`."""
        return self.centre + self.width * rng.standard_normal(n)

    def standard(self, x: Array | float) -> Array:
        """Return (x − centre) / width."""
        return (x - self.centre) / np.asarray(self.width)

    def log_prob(self, x: Array) -> Array:
        """See :class:`Conditional`."""
        z = (x - self.centre) / self.width
        return -0.5 * z * z - np.log(self.width) - _LOG_SQRT_2PI


@dataclass(frozen=True)
class TwoNormals:
    """A mixture of two normal densities; ``share`` is the weight of the first, strictly between 0 and 1."""

    share: Parameter
    first: Normal
    second: Normal

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """See :class:`Conditional`."""
        first = rng.random(n) < self.share
        z = rng.standard_normal(n)
        centre = np.where(first, self.first.centre, self.second.centre)
        return centre + np.where(first, self.first.width, self.second.width) * z

    def log_prob(self, x: Array) -> Array:
        """See :class:`Conditional`."""
        first = np.log(self.share) + self.first.log_prob(x)
        second = np.log1p(-np.asarray(self.share)) + self.second.log_prob(x)
        low, high = np.minimum(first, second), np.maximum(first, second)
        return high + np.log1p(np.exp(low - high))


@dataclass(frozen=True)
class Exp:
    """``exp(y) − shift`` of a real variable y: lives above −shift."""

    inner: Johnson | Normal
    shift: float = 0.0

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """See :class:`Conditional`."""
        return np.exp(self.inner.draw(rng, n)) - self.shift

    def standard(self, x: Array | float) -> Array:
        """Return the normal quantile of x."""
        return self.inner.standard(np.log(x + self.shift))

    def log_prob(self, x: Array) -> Array:
        """See :class:`Conditional`."""
        inside = x > -self.shift
        y = np.log(np.where(inside, x + self.shift, 1.0))
        return np.where(inside, self.inner.log_prob(y) - y, -np.inf)


@dataclass(frozen=True)
class Expit:
    """``lower + (upper − lower) / (1 + exp(−y))`` of a real variable y: lives strictly between the two."""

    inner: Johnson | Normal | TwoNormals
    lower: Parameter = 0.0
    upper: Parameter = 1.0

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """See :class:`Conditional`."""
        # Beyond ±15 a float32 could round to a bound. All densities here leave less than 1e-9 out there.
        y = np.clip(self.inner.draw(rng, n), -15.0, 15.0)
        return self.lower + (self.upper - self.lower) * expit(y)

    def log_prob(self, x: Array) -> Array:
        """See :class:`Conditional`."""
        width = np.asarray(self.upper - self.lower)
        inside = (x > self.lower) & (x < self.upper)
        below = np.log(np.where(inside, x - self.lower, 0.5 * width))
        above = np.log(np.where(inside, self.upper - x, 0.5 * width))
        return np.where(inside, self.inner.log_prob(below - above) - below - above + np.log(width), -np.inf)


@dataclass(frozen=True)
class Saturated:
    """A variable whose values beyond ``above`` all read ``above``: there lies an atom."""

    inner: Exp
    above: float

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """See :class:`Conditional`."""
        return np.minimum(self.inner.draw(rng, n), self.above)

    def log_prob(self, x: Array) -> Array:
        """See :class:`Conditional`."""
        out = np.where(x < self.above, self.inner.log_prob(x), -np.inf)
        at = np.flatnonzero(x == self.above)
        if at.size:  # the normal survival function, where it is needed alone: it is slow without scipy
            z = np.broadcast_to(self.inner.standard(self.above), x.shape)[at]
            out[at] = [math.log(0.5 * math.erfc(v / math.sqrt(2))) for v in z.tolist()]
        return out


@dataclass(frozen=True)
class Atom:
    """``value`` with probability ``share`` (which may be 0 or 1), a continuous variable otherwise."""

    share: Parameter
    value: float
    inner: Exp | Expit

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """See :class:`Conditional`."""
        at = rng.random(n) < self.share
        return np.where(at, self.value, self.inner.draw(rng, n))

    def log_prob(self, x: Array) -> Array:
        """See :class:`Conditional`."""
        with np.errstate(divide="ignore"):
            at, beside = np.log(self.share), np.log1p(-np.asarray(self.share))
        return np.where(x == self.value, at, beside + self.inner.log_prob(x))


@dataclass(frozen=True)
class Choice:
    """One of a few ``values``, with probabilities in proportion to ``exp(scores)``: ``scores`` is ``[k, n]``."""

    values: tuple[int, ...]
    scores: Array

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """See :class:`Conditional`."""
        p = np.exp(self.scores - self.scores.max(0))
        cumulative = np.cumsum(p, axis=0)
        at = (cumulative[:-1] <= rng.random(n) * cumulative[-1]).sum(0)
        return np.array(self.values, dtype=np.float64)[at]

    def log_prob(self, x: Array) -> Array:
        """See :class:`Conditional`."""
        top = self.scores.max(0)
        total = top + np.log(np.exp(self.scores - top).sum(0))
        out = np.full(x.shape, -np.inf)
        for value, score in zip(self.values, self.scores, strict=True):
            out = np.where(x == value, score - total, out)
        return out


def yes_or_no(log_odds: Array) -> Choice:
    """Return 1 with probability ``expit(log_odds)``, else 0.

    >>> yes_or_no(np.zeros(2)).log_prob(np.array([1.0, 0.5])).round(4)
    array([-0.6931,    -inf])
    """
    return Choice((0, 1), np.stack([np.zeros_like(log_odds), log_odds]))


@dataclass(frozen=True)
class Count:
    r"""An integer from ``low`` to ``high``: a logistic density, collected in unit bins and cut off at the ends.

    .. math:: P(k) \propto F(k + \tfrac12) - F(k - \tfrac12), \qquad F(x) = 1 / (1 + e^{-(x - m)/s}).
    """

    centre: Parameter
    scale: Parameter
    low: int
    high: int

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """See :class:`Conditional`."""
        first = expit((self.low - 0.5 - self.centre) / np.asarray(self.scale))
        last = expit((self.high + 0.5 - self.centre) / np.asarray(self.scale))
        u = first + (last - first) * rng.random(n)
        with np.errstate(divide="ignore"):  # u may round to 0 or 1: the clip answers for it
            y = self.centre + self.scale * (np.log(u) - np.log1p(-u))
        return np.clip(np.ceil(y - 0.5), self.low, self.high)

    def log_prob(self, x: Array) -> Array:
        """See :class:`Conditional`."""
        inside = (x >= self.low) & (x <= self.high) & (x == np.floor(x))
        k = np.where(inside, x, self.low)
        return np.where(inside, self._log_bin(k, 1.0) - self._log_whole(), -np.inf)

    def _log_whole(self) -> Array:
        return self._log_bin(self.low, self.high - self.low + 1.0)

    def _log_bin(self, k: Array | float, bins: float) -> Array:
        """Return ln(F(k − ½ + bins) − F(k − ½)) without cancellation, however far from the centre."""
        width = bins / np.asarray(self.scale)
        a = (k - 0.5 - self.centre) / self.scale
        b = a + width
        # F(b) − F(a) = (e^b − e^a) / ((1 + e^a)(1 + e^b)), each factor by what is left of it where it is large.
        ends = np.log1p(np.exp(-np.abs(a))) + np.log1p(np.exp(-np.abs(b)))
        return np.minimum(b, 0.0) - np.maximum(a, 0.0) + np.log(-np.expm1(-width)) - ends


def expit(x: Array) -> Array:
    """Return 1 / (1 + exp(−x)), without overflow for |x| < 700.

    >>> expit(np.array([0.0, -40.0])).round(3)
    array([0.5, 0. ])
    """
    return 1.0 / (1.0 + np.exp(-x))
