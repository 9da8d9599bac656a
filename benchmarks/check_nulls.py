"""Exact densities, for counting false alarms: every check on truth and draws of one distribution, with threshold 0.

A threshold of 0 leaves the verdict to the standard error alone: what fails then, fails by chance. In use, thresholds of
practical size come on top, and false alarms are rarer still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from fluvial import check as checks
from fluvial.check import CheckResult

NAMES = ["a", "b"]
Null = Callable[[np.random.Generator, int], Iterable[CheckResult]]


def _exact(rng: np.random.Generator, rows: int, size: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return context [N, 1], truth [N, 2] and draws [N, S, 2] of a density that is skewed, correlated and changes."""
    c = rng.uniform(-1, 1, (rows, 1))
    u = rng.standard_exponential((rows, size + 1, 2)) - 1
    u[..., 1] = 0.6 * u[..., 0] + 0.8 * u[..., 1]
    x = 3 * c[:, None] + np.exp(c)[:, None] * u
    return c, x[:, 0], x[:, 1:]


def _pit(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.random((rows, 2))  # exactly what pit_values gives of an exact density


def _normal(x: np.ndarray) -> np.ndarray:
    return -0.5 * x**2


def _pulls(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    _, x, y = _exact(rng, rows)
    return checks.pull_checks(x, y, NAMES, threshold=0.0)


def _coverage(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    x, y = rng.normal(size=rows), rng.normal(size=(rows, 60))
    return [checks.coverage(_normal(x), _normal(y), rng, threshold=0.0)]


def _sbc(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    _, x, y = _exact(rng, rows)
    return checks.sbc_ranks(x, y, NAMES, rng, threshold=0.0)


def _tarp(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    c, x, y = _exact(rng, rows)
    return [checks.tarp(x, y, rng, references=np.tile(5 * c, 2), threshold=0.0)]


def _score(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    _, x, y = _exact(rng, rows)
    half = y.shape[1] // 2
    scores = [checks.energy_score(x, part) for part in (y[:, :half], y[:, half:])]
    return [checks.compare_scores(*scores, "energy score", threshold=0.0)]


def _crps(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    _, x, y = _exact(rng, rows)
    half = y.shape[1] // 2
    scores = [checks.crps(x[:, :1], part[:, :, :1])[:, 0] for part in (y[:, :half], y[:, half:])]
    return [checks.compare_scores(*scores, "CRPS", threshold=0.0)]


def _independent(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two samples at contexts of their own: the hardest case, as equal contexts bring samples closer."""
    return _exact(rng, rows, 1)[1], _exact(rng, rows, 1)[1]


def _classifier(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    c, x, y = _exact(rng, rows, 1)
    return checks.classifier_test(x, y[:, 0], c, rng, threshold=0.0)


def _local_classifier(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    c, x, y = _exact(rng, rows, 1)
    bins = checks.context_slices(c, 4, 50)
    return [checks.local_classifier_test(x, y[:, 0], c, rng, bins, threshold=0.0)]


def _local(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    c = rng.normal(size=(rows, 2))
    return checks.local_calibration(_pit(rng, rows), c, NAMES, checks.context_slices(c, 4, 50), threshold=0.0)


def _local_coverage(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    c = rng.normal(size=(rows, 2))
    return [checks.local_coverage(rng.random(rows), c, checks.context_slices(c, 4, 50), threshold=0.0)]


def _kl(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    # An exact density has no scatter; one that is normalised and as far off as the error has.
    x = rng.normal(size=rows)
    shift = 1e-3
    return [checks.kl_divergence(_normal(x), _normal(x - shift), threshold=shift**2)]


def _js(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    x, y = rng.normal(size=(2, rows))
    shift = 1e-3
    return [
        checks.js_divergence(
            _normal(x), _normal(x - shift), _normal(y + shift), _normal(y), threshold=shift**2
        )
    ]


def _levels(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    c = rng.random((rows, 1))
    values = rng.integers(0, 3, (rows, 61)).astype(float)
    bins = checks.context_slices(c, 4, 50)
    return [
        checks.level_probabilities(values[:, 0], values[:, 1:], c, "n", [0.0, 1.0, 2.0], bins, threshold=0.0)
    ]


def _extrapolation(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    training, context = rng.normal(size=(800, 2)), rng.normal(size=(rows, 2))
    return [checks.extrapolation(context, training, threshold=0.0)]


def _seeds(rng: np.random.Generator, rows: int) -> list[CheckResult]:
    draws = rng.standard_exponential((3, rows, 60, 1))
    return checks.seed_sensitivity(draws, np.zeros((3, rows)), ["a"], threshold=0.0)


NULLS: dict[str, Null] = {
    "PIT": lambda rng, n: checks.pit(_pit(rng, n), NAMES, threshold=0.0),
    "pulls": _pulls,
    "coverage": _coverage,
    "SBC ranks": _sbc,
    "TARP": _tarp,
    "tails": lambda rng, n: checks.tail_rates(_pit(rng, n), NAMES, threshold=0.0),
    "PIT across context": _local,
    "coverage across context": _local_coverage,
    "PIT by regression": lambda rng, n: checks.local_regression(
        _pit(rng, n), rng.normal(size=(n, 2)), NAMES, rng, threshold=0.0
    ),
    "CRPS": _crps,
    "energy score": _score,
    "KS distance": lambda rng, n: checks.kolmogorov_smirnov(*_independent(rng, n), NAMES, threshold=0.0),
    "Wasserstein distance": lambda rng, n: checks.wasserstein(
        *_independent(rng, n), NAMES, rng, threshold=0.0
    ),
    "sliced Wasserstein": lambda rng, n: [
        checks.sliced_wasserstein(*_independent(rng, n), rng, threshold=0.0)
    ],
    "MMD": lambda rng, n: [checks.mmd(*_independent(rng, n), rng, max_rows=400, threshold=0.0)],
    "classifier": _classifier,
    "classifier across context": _local_classifier,
    "KL": _kl,
    "JS": _js,
    "level probability": _levels,
    "extrapolation": _extrapolation,
    "seeds": _seeds,
}


def deviations(name: str, rows: int, trials: int, seed: int = 0) -> np.ndarray:
    """Return each result's deviation in standard errors, infinite where it fails: [trials, results]."""
    out = []
    for trial in range(trials):
        results = NULLS[name](np.random.default_rng([seed, trial]), rows)
        out.append([np.inf if r.verdict == "fail" else _in_errors(r) for r in results])
    return np.array(out)


def _in_errors(result: CheckResult) -> float:
    return result.deviation / result.uncertainty if result.deviation else 0.0
