r"""Baselines that keep a flow honest: how many nats per row it gains over densities that need no flow.

Every baseline is a proper density, normalised exactly or to rounding, of standardised targets ``[n, D]`` given
standardised context ``[n, C]``; add the log-determinant of the column transforms, and its nats are those of the flow.
Free choices (bandwidths, numbers of neighbours) are made on rows held out of the training rows, never on those that are
scored.

========================= ============================================================================================
marginal density          context ignored: Gaussian kernels, with one bandwidth, of the covariance of the targets
nearest neighbours        Gaussian kernels at the targets of the rows that are nearest in context, with their covariance
linear Gaussian           a mean linear in the context, one covariance for all contexts
boosted quantiles         quantiles of each target given the context and the targets before it, by gradient-boosted trees
                          (scikit-learn); the density is flat between two quantiles, exponential beyond the outermost
========================= ============================================================================================

A thousandth of a wide Gaussian is mixed into all but the linear Gaussian, so that no row is impossible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fluvial.check._arrays import array, finite
from fluvial.errors import DataError

#: Rows behind kernels, and rows held out to choose their width, at most.
KERNELS, NEIGHBOURS, HELD_OUT = 4_000, 40_000, 500
#: Rows behind boosted quantiles, over all targets, and trees for each.
BOOSTED_ROWS, TREES = 30_000, 60
#: Quantiles between which the boosted density is flat.
LEVELS = np.array([0.005, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.995])
#: The share of a wide Gaussian in kernels and boosted quantiles.
WIDE = 1e-3
#: No flat part of the boosted density is narrower than this, in standard deviations.
NARROWEST = 1e-3
#: A baseline does as well as the flow if that gains no more than so many standard errors, and so many nats per row.
STANDARD_ERRORS, SMALL_GAIN = 2.0, 0.05

_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Baseline:
    """A baseline beside the flow: nats per row, on the same rows.

    ``nll``: the mean of −log p over ``n`` rows, ± ``error``; ``gain``: the mean of log p(flow) − log p(baseline) row by
    row, ± ``gain_error``, above 0 if the flow is better. ``note`` says why there is none, where there is none.
    """

    name: str
    nll: float = math.nan
    error: float = math.nan
    gain: float = math.nan
    gain_error: float = math.nan
    n: int = 0
    note: str = ""

    @property
    def made(self) -> bool:
        """Whether the baseline could be made."""
        return self.n > 0

    @property
    def suffices(self) -> bool:
        """Whether the flow is no better than this: by less than 0.05 nats per row, and less than two standard errors."""
        return self.made and self.gain < SMALL_GAIN and self.gain <= STANDARD_ERRORS * self.gain_error

    def to_json(self) -> dict[str, Any]:
        """Return a value for JSON, without NaN."""
        return {k: v for k, v in asdict(self).items() if not (isinstance(v, float) and math.isnan(v))}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Baseline:
        """Inverse of :meth:`to_json`; ``null`` is NaN."""
        known: dict[str, Any] = {k: math.nan if v is None else v for k, v in value.items()}
        return cls(**known)


def compare(name: str, log_prob: np.ndarray, flow: np.ndarray) -> Baseline:
    """Return a baseline beside the flow from the log-densities of both at the same rows, ``[n]``.

    >>> compare("worse", np.array([-2.0, -2.2, -1.9]), np.array([-1.0, -1.1, -1.1])).suffices
    False
    """
    theirs = array("log_prob", log_prob, ("n",)).astype(np.float64)
    ours = array("flow", flow, (len(theirs),)).astype(np.float64)
    n = len(theirs)
    if n < 2:
        raise DataError(f"baselines: expected at least 2 rows to compare on; got {n}.")
    with np.errstate(invalid="ignore"):
        gain = ours - theirs
        root = math.sqrt(n)
        return Baseline(
            name,
            float(-theirs.mean()),
            float(theirs.std(ddof=1)) / root,
            float(gain.mean()),
            float(gain.std(ddof=1)) / root,
            n,
        )


def marginal(train: np.ndarray, test: np.ndarray, *, seed: int = 0) -> np.ndarray:
    r"""Return log p of ``test [m, D]`` under a kernel density of ``train [n, D]``, context ignored.

    .. math:: p(x) = \frac{1}{n} \sum_i \mathcal N(x; x_i, h^2 \Sigma)

    with Σ the covariance of the training rows and h the best of eight on held-out ones.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(3000, 1))
    >>> bool(abs(marginal(x[:2000], x[2000:]).mean() + 1.42) < 0.05)  # the entropy of a normal is 1.42
    True
    """
    x, y = _pair("train", train, "test", test)
    order = np.random.default_rng(seed).permutation(len(x))
    held = x[order[:HELD_OUT]] if len(x) > 4 * HELD_OUT else x[order[: len(x) // 4]]
    kernels = x[order[len(held) :]][:KERNELS]
    white, logdet = _whitener(x)
    k, h, t = kernels @ white, held @ white, y @ white
    widths = np.array([0.03, 0.05, 0.08, 0.13, 0.2, 0.32, 0.5, 0.8])
    best = max(widths, key=lambda width: _kernel_density(h, k, width).mean())
    return _with_wide(_kernel_density(t, k, best) + logdet, y, x)


def nearest_neighbours(
    train: np.ndarray, train_context: np.ndarray, test: np.ndarray, test_context: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    r"""Return log p of ``test [m, D]`` given ``test_context [m, C]`` by kernels at the k rows nearest in context.

    .. math:: p(x | c) = \frac{1}{k} \sum_{i \in N_k(c)} \mathcal N\bigl(x; x_i, h^2 \Sigma(c)\bigr)

    with Σ(c) the covariance of those k targets, drawn a little towards that of all; k and h are the best on held-out
    rows.
    Of rows equally near, as on a grid, any will do.
    """
    x, y = _pair("train", train, "test", test)
    c, d = _pair("train_context", train_context, "test_context", test_context)
    if len(c) != len(x) or len(d) != len(y) or not c.shape[1]:
        raise DataError("baselines: expected one context of at least one column for each row of targets.")
    order = np.random.default_rng(seed).permutation(len(x))
    held = order[: min(HELD_OUT, len(x) // 4)]
    kept = order[len(held) :][:NEIGHBOURS]
    x_kept, c_kept = x[kept], c[kept]
    white, _ = _whitener(c)
    sizes = sorted({min(k, len(kept)) for k in (30, 100, 300, 1000)})
    near_held = _nearest(c[held] @ white, c_kept @ white, sizes[-1])
    overall = np.atleast_2d(np.cov(x.T))
    best, choice = -math.inf, (sizes[0], 0.3)
    for k in sizes:
        parts = _local(x_kept, near_held[:, :k], overall)
        for width in (0.08, 0.15, 0.25, 0.4, 0.6):
            found = _with_wide(
                _local_density(x[held], x_kept, near_held[:, :k], parts, width), x[held], x
            ).mean()
            if found > best:
                best, choice = found, (k, width)
    k, width = choice
    near = _nearest(d @ white, c_kept @ white, k)
    parts = _local(x_kept, near, overall)
    return _with_wide(_local_density(y, x_kept, near, parts, width), y, x)


def linear_gaussian(
    train: np.ndarray, train_context: np.ndarray, test: np.ndarray, test_context: np.ndarray
) -> np.ndarray:
    """Return log p of ``test [m, D]`` given ``test_context [m, C]`` by least squares and the covariance of its residuals.

    >>> rng = np.random.default_rng(0)
    >>> c = rng.normal(size=(4000, 1)); x = 2 * c + rng.normal(size=(4000, 1))
    >>> bool(abs(linear_gaussian(x[:3000], c[:3000], x[3000:], c[3000:]).mean() + 1.42) < 0.05)
    True
    """
    x, y = _pair("train", train, "test", test)
    design = np.concatenate([np.ones((len(x), 1)), train_context], 1)
    weights, *_ = np.linalg.lstsq(design, x, rcond=None)
    residual = x - design @ weights
    covariance = np.atleast_2d(residual.T @ residual) / max(len(x) - design.shape[1], 1)
    covariance += 1e-9 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    out = y - np.concatenate([np.ones((len(y), 1)), test_context], 1) @ weights
    factor = np.linalg.cholesky(covariance)
    z = np.linalg.solve(factor, out.T)
    logdet = -np.log(np.diag(factor)).sum()
    return -0.5 * np.square(z).sum(0) - 0.5 * y.shape[1] * math.log(2 * math.pi) + logdet


def boosted_quantiles(
    train: np.ndarray,
    train_context: np.ndarray,
    test: np.ndarray,
    test_context: np.ndarray,
    *,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> np.ndarray:
    """Return log p of ``test [m, D]`` given ``test_context [m, C]`` by gradient-boosted quantiles; needs scikit-learn.

    Each target is predicted from the context and the targets before it (their order is that of the columns).

    Raises:
        ImportError: scikit-learn is not installed.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    x, y = _pair("train", train, "test", test)
    targets = x.shape[1]
    most = max(BOOSTED_ROWS // targets, 1_000)
    chosen = np.random.default_rng(seed).permutation(len(x))[:most]
    total = np.zeros(len(y))
    for j in range(targets):
        tell(f"boosted quantiles, target {j + 1} of {targets}")
        inputs = np.concatenate([train_context, x[:, :j]], 1)[chosen]
        at = np.concatenate([test_context, y[:, :j]], 1)
        if not inputs.shape[1]:
            quantiles = np.broadcast_to(np.quantile(x[chosen, j], LEVELS), (len(y), len(LEVELS)))
        else:
            predicted = [
                HistGradientBoostingRegressor(
                    loss="quantile",
                    quantile=level,
                    max_iter=TREES,
                    max_leaf_nodes=15,
                    min_samples_leaf=40,
                    learning_rate=0.1,
                    max_bins=63,
                    early_stopping=False,  # type: ignore[arg-type]
                    random_state=seed,
                )
                .fit(inputs, x[chosen, j])
                .predict(at)
                for level in LEVELS
            ]
            quantiles = np.sort(np.stack(predicted, 1), 1)
        found = quantile_density(y[:, j], quantiles, LEVELS)
        total += _with_wide(found, y[:, j : j + 1], x[:, j : j + 1])
    return total


def quantile_density(x: np.ndarray, quantiles: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return log p of ``x [m]`` under the densities with the given ``quantiles [m, Q]`` (rising) at ``levels [Q]``.

    Flat between two quantiles; beyond the outermost an exponential, continuous with its neighbour.

    >>> q = np.array([[-1.0, 0.0, 1.0]])
    >>> quantile_density(np.array([0.5]), q, np.array([0.1, 0.5, 0.9])).round(3)  # log 0.4
    array([-0.916])
    """
    gap = np.maximum(np.diff(quantiles, axis=1), NARROWEST)
    edges = np.concatenate([quantiles[:, :1], quantiles[:, :1] + np.cumsum(gap, axis=1)], axis=1)
    log_height = np.log(np.diff(levels)) - np.log(gap)
    k = np.clip((edges <= x[:, None]).sum(axis=1) - 1, 0, gap.shape[1] - 1)
    inside = np.take_along_axis(log_height, k[:, None], 1)[:, 0]
    # A tail of probability a and density h at its edge: h exp(−h d / a).
    low, high = np.exp(log_height[:, 0]) / levels[0], np.exp(log_height[:, -1]) / (1 - levels[-1])
    below, above = edges[:, 0] - x, x - edges[:, -1]
    out = np.where(below > 0, log_height[:, 0] - low * below, inside)
    return np.where(above > 0, log_height[:, -1] - high * above, out)


def _pair(what: str, a: np.ndarray, other: str, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two float64 tables of finite numbers with as many columns."""
    x = finite(what, array(what, a, ("n", "D"))).astype(np.float64)
    y = finite(other, array(other, b, ("m", x.shape[1]))).astype(np.float64)
    if len(x) < 50:
        raise DataError(f"baselines: expected at least 50 training rows; got {len(x)}.")
    return x, y


def _whitener(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Return W such that x W has the unit covariance, and the log-determinant of W."""
    value, vector = np.linalg.eigh(np.atleast_2d(np.cov(x.T)))
    value = np.maximum(value, 1e-6 * value.max() + 1e-300)
    return vector / np.sqrt(value), float(-0.5 * np.log(value).sum())


def _log_mean_exp(values: np.ndarray) -> np.ndarray:
    top = values.max(axis=1, keepdims=True)
    return top[:, 0] + np.log(np.exp(values - top).mean(axis=1))


def _kernel_density(x: np.ndarray, kernels: np.ndarray, width: float) -> np.ndarray:
    out, square = np.empty(len(x)), np.square(kernels).sum(1)
    step = max(1, _ELEMENTS // len(kernels))
    for start in range(0, len(x), step):
        part = x[start : start + step]
        distance = np.square(part).sum(1)[:, None] + square - 2 * part @ kernels.T
        out[start : start + step] = _log_mean_exp(-0.5 * distance / width**2)
    return out - x.shape[1] * (math.log(width) + 0.5 * math.log(2 * math.pi))


def _with_wide(log_density: np.ndarray, x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Mix in a thousandth of a Gaussian three times as wide as the training rows."""
    centre, width = train.mean(0), 3 * train.std(0) + 1e-300
    wide = -0.5 * np.square((x - centre) / width).sum(1) - np.log(width).sum()
    wide -= 0.5 * x.shape[1] * math.log(2 * math.pi)
    return np.logaddexp(math.log1p(-WIDE) + log_density, math.log(WIDE) + wide)


def _nearest(points: np.ndarray, reference: np.ndarray, k: int) -> np.ndarray:
    """Return the indices of the k nearest references of each point, nearest first."""
    out, square = np.empty((len(points), k), dtype=np.int64), np.square(reference).sum(1)
    step = max(1, _ELEMENTS // len(reference))
    for start in range(0, len(points), step):
        distance = square - 2 * points[start : start + step] @ reference.T
        near = np.argpartition(distance, k - 1, axis=1)[:, :k] if k < len(reference) else np.argsort(distance)
        order = np.argsort(np.take_along_axis(distance, near, 1), axis=1, kind="stable")
        out[start : start + step] = np.take_along_axis(near, order, 1)
    return out


def _local(x: np.ndarray, near: np.ndarray, overall: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each point the inverse of the Cholesky factor of its neighbours' covariance, and its log-determinant."""
    dim = x.shape[1]
    covariance = np.empty((len(near), dim, dim))
    step = max(1, _ELEMENTS // (near.shape[1] * dim))
    for start in range(0, len(near), step):
        of = x[near[start : start + step]]
        of = of - of.mean(1, keepdims=True)
        covariance[start : start + step] = np.einsum("nki,nkj->nij", of, of) / near.shape[1]
    drawn = dim / (near.shape[1] + dim)
    covariance = (1 - drawn) * covariance + drawn * overall
    covariance += 1e-9 * np.trace(overall) / dim * np.eye(dim)
    factor = np.linalg.inv(np.linalg.cholesky(covariance))
    return factor, np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)


def _local_density(
    x: np.ndarray, train: np.ndarray, near: np.ndarray, parts: tuple[np.ndarray, np.ndarray], width: float
) -> np.ndarray:
    factor, logdet = parts
    out = np.empty(len(x))
    step = max(1, _ELEMENTS // (near.shape[1] * x.shape[1]))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        z = np.einsum("nij,nkj->nki", factor[rows], x[rows, None] - train[near[rows]])
        out[rows] = _log_mean_exp(-0.5 * np.square(z).sum(2) / width**2)
    return out + logdet - x.shape[1] * (math.log(width) + 0.5 * math.log(2 * math.pi))
