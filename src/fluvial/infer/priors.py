"""Priors of hyperparameters: independent, one a parameter, each with its density and its quantile function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from fluvial.errors import DataError, nearest

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Uniform:
    """p(λ) = 1 / (high − low) between ``low`` and ``high``.

    >>> Uniform(0.5, 5.0).log_prob([1.0, 6.0])
    array([-1.5040774,       -inf])
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_ends(self, self.low, self.high)

    def log_prob(self, value: ArrayLike) -> np.ndarray:
        """Return log p(value), −inf outside."""
        value = np.asarray(value, dtype=np.float64)
        inside = (value >= self.low) & (value <= self.high)
        return np.where(inside, -math.log(self.high - self.low), -np.inf)

    def quantile(self, u: ArrayLike) -> np.ndarray:
        """Return the values below which a share ``u`` of the prior lies; ``u`` in [0, 1]."""
        return self.low + (self.high - self.low) * np.asarray(u, dtype=np.float64)


@dataclass(frozen=True)
class LogUniform:
    """p(λ) ∝ 1/λ between ``low`` and ``high``, both positive.

    >>> LogUniform(1e-4, 1e-2).quantile(0.5)
    np.float64(0.001)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_ends(self, self.low, self.high)
        if self.low <= 0:
            raise DataError(f"Expected the ends of {self} to be greater than 0; found {self.low:g}.")

    def log_prob(self, value: ArrayLike) -> np.ndarray:
        """Return log p(value), −inf outside."""
        value = np.asarray(value, dtype=np.float64)
        inside = (value >= self.low) & (value <= self.high)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(inside, -np.log(value) - math.log(math.log(self.high / self.low)), -np.inf)

    def quantile(self, u: ArrayLike) -> np.ndarray:
        """Return the values below which a share ``u`` of the prior lies; ``u`` in [0, 1]."""
        return self.low * (self.high / self.low) ** np.asarray(u, dtype=np.float64)


@dataclass(frozen=True)
class TruncatedNormal:
    """A normal density of given mean and width between ``low`` and ``high``.

    >>> TruncatedNormal(1.0, 0.5, low=0.0, high=2.0).quantile(0.5)
    np.float64(1.0)
    """

    mean: float
    width: float
    low: float
    high: float

    def __post_init__(self) -> None:
        _check_ends(self, self.low, self.high)
        if not (math.isfinite(self.mean) and 0 < self.width < math.inf):
            raise DataError(f"Expected a finite mean and a width greater than 0; found {self}.")
        if self._share() < 1e-12:
            raise DataError(f"{self} has no weight between its ends; expected them nearer to its mean.")

    def _cdf(self, value: float) -> float:
        return _NORMAL.cdf((value - self.mean) / self.width)

    def _share(self) -> float:
        return self._cdf(self.high) - self._cdf(self.low)

    def log_prob(self, value: ArrayLike) -> np.ndarray:
        """Return log p(value), −inf outside."""
        value = np.asarray(value, dtype=np.float64)
        inside = (value >= self.low) & (value <= self.high)
        z = (value - self.mean) / self.width
        norm = math.log(self.width * math.sqrt(2 * math.pi) * self._share())
        return np.where(inside, -0.5 * z * z - norm, -np.inf)

    def quantile(self, u: ArrayLike) -> np.ndarray:
        """Return the values below which a share ``u`` of the prior lies; ``u`` in [0, 1]."""
        start, share = self._cdf(self.low), self._share()
        p = np.clip(start + share * np.asarray(u, dtype=np.float64), 1e-15, 1 - 1e-15)
        z = np.vectorize(_NORMAL.inv_cdf, otypes=[np.float64])(p)
        return np.clip(self.mean + self.width * z, self.low, self.high)


Prior = Uniform | LogUniform | TruncatedNormal

_FORMS = {"uniform": Uniform, "loguniform": LogUniform, "normal": TruncatedNormal}
_ARGUMENTS = {"uniform": "LOW:HIGH", "loguniform": "LOW:HIGH", "normal": "MEAN:WIDTH:LOW:HIGH"}


def parse_prior(text: str) -> Prior:
    """Return the prior that a text such as ``loguniform:1e-4:0.02`` names.

    >>> parse_prior("uniform:0.5:5")
    Uniform(low=0.5, high=5.0)

    Raises
    ------
    DataError
        If the form is not known, or its numbers are not what it takes.
    """
    form, *rest = text.strip().split(":")
    if form not in _FORMS:
        raise DataError(f"prior {text!r}: no form {form!r}{nearest(form, _FORMS)}")
    try:
        numbers = [float(word) for word in rest]
    except ValueError:
        numbers = []
    if len(numbers) != _ARGUMENTS[form].count(":") + 1:
        raise DataError(f"prior {text!r}: expected {form}:{_ARGUMENTS[form]}, with numbers.")
    return _FORMS[form](*numbers)


def _check_ends(prior: Prior, low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(f"Expected finite ends with low < high; found {prior}.")
