r"""How many: the formation rate beside the shape, N(Z, alpha) beside p(M0, M1 | Z, alpha).

A cell i of the grid holds :math:`n_i` mergers of :math:`E_i` binaries that were simulated. With x the logarithms of the
context columns,

.. math:: n_i \sim \mathrm{Poisson}\big(E_i\, e^{f(x_i) + \epsilon_i}\big), \qquad
          f \sim \mathcal{GP}\big(\beta_0 + \beta^T x,\; s^2 e^{-|x - x'|^2 / 2 \ell^2}\big), \qquad
          \epsilon_i \sim \mathcal N(0, \sigma^2)

f is the log-rate, smooth in x; :math:`\epsilon` is what a cell has that its neighbours do not know of. The posterior is
Gaussian by Laplace's approximation (Rasmussen & Williams 2006, algorithms 3.1 and 3.2, with the Poisson likelihood), with
s, one length a column and σ where the evidence is highest. The rate between cells comes with an error, and a cell without
a merger says something too.

Weighted mergers count as so many equal ones as have the same relative error: :math:`n = (\sum w)^2 / \sum w^2`, with
E scaled so that the expected sum of weights is meant (Bohm & Zech 2014, NIM A 748, 1).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fluvial.errors import DataError, RunError
from fluvial.files import write_atomically

Array = NDArray[np.float64]

FORMAT = 1
#: Standard deviation of the prior on the constant and the slopes of f: wide.
TREND = 10.0
#: What is tried for s, every length (in standard deviations of the cells) and σ.
_TRIED = {
    "s": np.geomspace(0.05, 5, 9),
    "length": np.geomspace(0.2, 6, 9),
    "sigma": np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.4]),
}


@dataclass(frozen=True)
class Cells:
    """Counts on a grid: ``context: [n, C]``, ``counts: [n]`` (sums of weights), their variances, binaries simulated."""

    names: list[str]
    context: Array
    counts: Array
    variances: Array
    simulated: Array

    @property
    def effective(self) -> tuple[Array, Array]:
        """Equal mergers n, and what E is to be multiplied by."""
        some = self.counts > 0
        usual = float(self.variances[some].sum() / self.counts[some].sum()) if some.any() else 1.0
        each = np.where(
            some, self.variances / np.where(some, self.counts, 1.0), usual
        )  # weight of one of them
        return self.counts / each, 1 / each


def count_cells(
    context: Mapping[str, ArrayLike],
    *,
    weights: ArrayLike | None = None,
    simulated: ArrayLike = 1.0,
    leave_out: Array | None = None,
) -> Cells:
    """Count rows on the grid that the values of the context columns span; a cell without rows has the count 0.

    Parameters
    ----------
    context
        Columns by name, ``[rows]`` each.
    weights
        ``[rows]``, if rows are weighted.
    simulated
        Binaries simulated in every cell; with 1, rates are mergers a cell.
    leave_out
        ``[k, C]`` cells that are not counted: those held out.

    >>> cells = count_cells({"Z": [0.1, 0.1, 0.2], "alpha": [1.0, 2.0, 1.0]})
    >>> cells.context.tolist(), cells.counts.tolist()
    ([[0.1, 1.0], [0.1, 2.0], [0.2, 1.0], [0.2, 2.0]], [1.0, 1.0, 1.0, 0.0])
    """
    names = list(context)
    values = np.stack([np.asarray(context[n], dtype=np.float64) for n in names], axis=-1)
    w = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    axes = [np.unique(values[:, i]) for i in range(len(names))]
    if math.prod(map(len, axes)) > 5000:
        raise DataError(
            f"Expected a grid of {', '.join(names)} of at most 5,000 cells; found "
            f"{' × '.join(str(len(a)) for a in axes)} values. Rates are counted cell by cell."
        )
    at = np.ravel_multi_index(
        [np.searchsorted(a, values[:, i]) for i, a in enumerate(axes)], tuple(map(len, axes))
    )
    size = math.prod(map(len, axes))
    grid = np.array(list(itertools.product(*axes)))
    counts, squares = (np.bincount(at, weights=v, minlength=size).astype(np.float64) for v in (w, w**2))
    kept = np.ones(size, dtype=bool)
    if leave_out is not None and len(leave_out):
        kept = ~(grid[:, None] == np.asarray(leave_out)[None]).all(-1).any(-1)
    each = np.broadcast_to(np.asarray(simulated, dtype=np.float64), (size,))
    return Cells(names, grid[kept], counts[kept], squares[kept], each[kept])


@dataclass(frozen=True)
class Rates:
    """The posterior of the log-rate, to be asked at any context.

    Attributes
    ----------
    names : list of str
        The context columns.
    log, shift, scale
        How each is standardised.
    cells : Cells
        What it was fitted to.
    s, length, sigma
        The parameters of the prior with the highest evidence.
    """

    names: list[str]
    log: list[bool]
    shift: Array
    scale: Array
    cells: Cells
    s: float
    length: Array
    sigma: float
    slope: Array  # K⁻¹f at the cells: the mean at x is k(x)ᵀ slope
    precision: Array  # (K + W⁻¹)⁻¹: the variance at x is k(x, x) − k(x)ᵀ precision k(x)
    dispersion: float

    def log_rate(self, **context: ArrayLike) -> tuple[Array, Array]:
        """Return the mean of log(mergers per binary simulated) and its standard deviation, at contexts that broadcast.

        Raises :class:`~fluvial.DataError` if a column is missing or unknown, or not positive where its logarithm is used.
        """
        x, shape = self._standardised(context)
        k = self._kernel(x, self._cells_x())
        mean = k @ self.slope
        own = self.s**2 + TREND**2 * (1 + np.square(x).sum(-1))
        variance = own - np.einsum("ij,jk,ik->i", k, self.precision, k)
        return mean.reshape(shape), np.sqrt(np.maximum(variance, 0.0)).reshape(shape)

    def expected(self, simulated: float = 1.0, **context: ArrayLike) -> tuple[Array, Array]:
        """Return the expected number of mergers among so many binaries simulated, and its standard deviation.

        That is the mean and the standard deviation of the log-normal posterior; the scatter of a count comes on top.
        """
        mean, deviation = self.log_rate(**context)
        expected = simulated * np.exp(mean + deviation**2 / 2)
        return expected, expected * np.sqrt(np.expm1(deviation**2))

    def outside(self, **context: ArrayLike) -> NDArray[np.bool_]:
        """Return which contexts lie outside the range of the cells, where the rate is a guess."""
        values, shape = self._values(context)
        low, high = self.cells.context.min(0), self.cells.context.max(0)
        slack = 1e-6 * (high - low)
        return ((values < low - slack) | (values > high + slack)).any(-1).reshape(shape)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, at once or not at all."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(Path(path), (text + "\n").encode())

    def to_json(self) -> dict[str, Any]:
        """Return a value for JSON."""
        c = self.cells
        return {
            "format": FORMAT,
            "columns": [
                {"name": n, "log": log, "shift": float(a), "scale": float(b)}
                for n, log, a, b in zip(self.names, self.log, self.shift, self.scale, strict=True)
            ],
            "prior": {"s": self.s, "length": self.length.tolist(), "sigma": self.sigma},
            "cells": {
                "context": c.context.tolist(),
                "counts": c.counts.tolist(),
                "variances": c.variances.tolist(),
                "simulated": c.simulated.tolist(),
            },
            "slope": self.slope.tolist(),
            "precision": self.precision.tolist(),
            "dispersion": self.dispersion,
        }

    @classmethod
    def load(cls, path: str | Path) -> Rates:
        """Read what :meth:`save` has written; ``path`` may be a run folder that holds ``rates.json``.

        Raises :class:`~fluvial.RunError` if it is missing or damaged.
        """
        path = Path(path)
        path = path / "rates.json" if path.is_dir() else path
        try:
            value = json.loads(path.read_bytes())
            if value["format"] > FORMAT:
                raise RunError(f"{path} has format {value['format']}; this version reads up to {FORMAT}.")
            columns, cells = value["columns"], value["cells"]
            arrays = (
                np.array(cells[k], dtype=float) for k in ("context", "counts", "variances", "simulated")
            )
            names = [c["name"] for c in columns]
            return cls(
                names=names,
                log=[bool(c["log"]) for c in columns],
                shift=np.array([c["shift"] for c in columns]),
                scale=np.array([c["scale"] for c in columns]),
                cells=Cells(names, *arrays),
                s=float(value["prior"]["s"]),
                length=np.array(value["prior"]["length"]),
                sigma=float(value["prior"]["sigma"]),
                slope=np.array(value["slope"]),
                precision=np.array(value["precision"]),
                dispersion=float(value["dispersion"]),
            )
        except FileNotFoundError:
            raise RunError(
                f"Expected rates at {path}; found none. Make them with: fluvial binaries rates RUN"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged ({type(error).__name__}: {error}); make it again.") from error

    def _values(self, context: Mapping[str, ArrayLike]) -> tuple[Array, tuple[int, ...]]:
        if sorted(context) != sorted(self.names):
            raise DataError(f"Expected context columns {', '.join(self.names)}; got {', '.join(context)}.")
        arrays = np.broadcast_arrays(*(np.asarray(context[n], dtype=np.float64) for n in self.names))
        return np.stack([a.ravel() for a in arrays], -1), arrays[0].shape

    def _standardised(self, context: Mapping[str, ArrayLike]) -> tuple[Array, tuple[int, ...]]:
        values, shape = self._values(context)
        return _standardise(values, self.names, self.log, self.shift, self.scale), shape

    def _cells_x(self) -> Array:
        return _standardise(self.cells.context, self.names, self.log, self.shift, self.scale)

    def _kernel(self, a: Array, b: Array) -> Array:
        return _kernel(a, b, self.s, self.length)


def fit_rates(cells: Cells) -> Rates:
    """Fit the log-rate to counts.

    Raises
    ------
    DataError
        If no cell holds a merger, or a context column does not vary.
    """
    y, factor = cells.effective
    if not y.sum() > 0:
        raise DataError("Expected a merger in some cell; found none, so there is no rate to fit.")
    log = [bool((v > 0).all() and v.max() > 3 * v.min()) for v in cells.context.T]
    raw = np.stack([np.log(v) if is_log else v for v, is_log in zip(cells.context.T, log, strict=True)], -1)
    shift, scale = raw.mean(0), raw.std(0)
    if not (scale > 0).all():
        constant = ", ".join(n for n, s in zip(cells.names, scale, strict=True) if not s > 0)
        raise DataError(
            f"Expected a grid of more than one value in every context column; {constant} has one."
        )
    x = (raw - shift) / scale
    log_exposure = np.log(cells.simulated * factor)
    best = _best_prior(x, y, log_exposure)
    covariance = _prior(x, *best)
    _, slope, w = _laplace(covariance, y, log_exposure)
    root = np.sqrt(w)
    lower = np.linalg.cholesky(np.eye(len(y)) + root[:, None] * covariance * root)
    half = np.linalg.solve(lower, np.diag(root))
    s, length, sigma = best
    return Rates(
        names=list(cells.names),
        log=log,
        shift=shift,
        scale=scale,
        cells=cells,
        s=s,
        length=length,
        sigma=sigma,
        slope=slope,
        precision=half.T @ half,
        dispersion=float(np.mean(np.square(y - w) / np.maximum(w, 1e-12))),
    )


def _best_prior(x: Array, y: Array, log_exposure: Array) -> tuple[float, Array, float]:
    """Return s, lengths and σ of the highest evidence: one after the other, over and over, on a grid."""
    s, sigma, length = 1.0, 0.05, np.ones(x.shape[1])

    def evidence(s: float, length: Array, sigma: float) -> float:
        return _laplace(_prior(x, s, length, sigma), y, log_exposure)[0]

    best = evidence(s, length, sigma)
    for _ in range(6):
        before = best
        for value in _TRIED["s"]:
            found = evidence(float(value), length, sigma)
            best, s = (found, float(value)) if found > best else (best, s)
        for i in range(len(length)):
            for value in _TRIED["length"]:
                trial = length.copy()
                trial[i] = value
                found = evidence(s, trial, sigma)
                best, length = (found, trial) if found > best else (best, length)
        for value in _TRIED["sigma"]:
            found = evidence(s, length, float(value))
            best, sigma = (found, float(value)) if found > best else (best, sigma)
        if best <= before + 1e-3:
            break
    return s, length, sigma


def _prior(x: Array, s: float, length: Array, sigma: float) -> Array:
    return _kernel(x, x, s, length) + (sigma**2 + 1e-6) * np.eye(len(x))


def _kernel(a: Array, b: Array, s: float, length: Array) -> Array:
    square = (np.square((a[:, None] - b[None]) / length)).sum(-1)
    return s**2 * np.exp(-square / 2) + TREND**2 * (1 + a @ b.T)


def _laplace(covariance: Array, y: Array, log_exposure: Array) -> tuple[float, Array, Array]:
    """Return the log-evidence, K⁻¹f at the most probable f, and the expected counts there, the curvature W too."""
    identity = np.eye(len(y))
    # A start near the counts: the prior's mean is far from a small rate, and Newton's steps would overflow.
    f = np.log((y + 0.5) / np.exp(log_exposure))
    a = np.linalg.solve(covariance + identity / (y.mean() + 1), f)
    f = covariance @ a
    objective, step = -math.inf, 1.0
    for _ in range(100):
        w = np.exp(np.minimum(f + log_exposure, 50.0))
        root = np.sqrt(w)
        lower = np.linalg.cholesky(identity + root[:, None] * covariance * root)
        b = w * f + (y - w)
        inner = np.linalg.solve(lower, root * (covariance @ b))
        towards = b - root * np.linalg.solve(lower.T, inner)
        step = min(1.0, 2 * step)
        while True:  # halve the step until the posterior rises
            trial = a + step * (towards - a)
            g = covariance @ trial
            mean = np.exp(np.minimum(g + log_exposure, 50.0))
            found = float(-0.5 * trial @ g + (y * (g + log_exposure) - mean).sum())
            if found >= objective or step < 1e-6:
                break
            step /= 2
        gain, a, f, objective = found - objective, trial, g, found
        if abs(gain) < 1e-10:
            break
    w = np.exp(np.minimum(f + log_exposure, 50.0))
    root = np.sqrt(w)
    lower = np.linalg.cholesky(identity + root[:, None] * covariance * root)
    return objective - float(np.log(np.diag(lower)).sum()), a, w


def _standardise(
    values: Array, names: Sequence[str], log: Sequence[bool], shift: Array, scale: Array
) -> Array:
    out = np.empty_like(values)
    for i, is_log in enumerate(log):
        column = values[:, i]
        if is_log and not (column > 0).all():
            raise DataError(
                f"{names[i]}: expected values above 0, whose logarithm is used; found {column.min():g}."
            )
        out[:, i] = np.log(column) if is_log else column
    return (out - shift) / scale
