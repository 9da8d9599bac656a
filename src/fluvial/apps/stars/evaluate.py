"""A density of labels on stars that it has not seen: how good its means are, and how honest its errors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluvial import check
from fluvial.density import Density
from fluvial.report.predictions import Scores, r_squared, slope

Array = np.ndarray

CHUNK = 256  # stars at once
LEVELS = np.linspace(0.05, 0.95, 19)


@dataclass(frozen=True)
class Evaluation:
    """What a density says of N test stars; D targets.

    Attributes:
        truth, mean, std: ``[N, D]`` in units.
        pulls, pit: ``[N, D]``.
        hpd: ``[N]``, the level of the joint region of highest density that just holds the truth.
        log_prob: ``[N]`` of the truth, in nats per unit of every target.
        seconds: of drawing and summarising.
    """

    truth: Array
    mean: Array
    std: Array
    pulls: Array
    pit: Array
    hpd: Array
    log_prob: Array
    seconds: float

    @property
    def nll(self) -> tuple[float, float]:
        """Mean −log p with its standard error."""
        return -float(self.log_prob.mean()), float(self.log_prob.std() / len(self.log_prob) ** 0.5)

    @property
    def r_squared(self) -> Array:
        """R² of the means, ``[D]``."""
        return r_squared(self.truth, self.mean)

    @property
    def slope(self) -> tuple[Array, Array]:
        """Slopes of residual against truth, and their standard errors, ``[D]``."""
        return slope(self.truth, self.mean - self.truth)

    @property
    def rms(self) -> Array:
        """Root mean square of residuals, ``[D]``, in units."""
        return np.sqrt(np.mean((self.mean - self.truth) ** 2, axis=0))

    @property
    def pull_mean(self) -> tuple[Array, Array]:
        """Means of pulls, and their standard errors, ``[D]``."""
        return self.pulls.mean(axis=0), self.pulls.std(axis=0) / len(self.pulls) ** 0.5

    @property
    def pull_width(self) -> tuple[Array, Array]:
        """Standard deviations of pulls, and their standard errors (from the fourth moment), ``[D]``."""
        width = self.pulls.std(axis=0)
        return width, np.square(self.pulls - self.pulls.mean(axis=0)).std(axis=0) / (
            2 * width * len(self.pulls) ** 0.5
        )

    def coverage(self, level: float) -> tuple[Array, Array]:
        """How often central intervals hold the truth, by target ``[D]``, and the binomial error of the level itself."""
        held = (np.abs(2 * self.pit - 1) < level).mean(axis=0)
        return held, np.full(held.shape, (level * (1 - level) / len(self.pit)) ** 0.5)

    def joint_coverage(self, level: float) -> tuple[float, float]:
        """How often the joint regions of highest density hold the truth, and the binomial error."""
        return float((self.hpd < level).mean()), (level * (1 - level) / len(self.hpd)) ** 0.5

    def scores(self) -> Scores:
        """What is drawn side by side."""
        rows: dict[str, tuple[Array, Array, float | None]] = {}
        nll, nll_error = self.nll
        rows["−log p [nats]"] = (np.array([nll]), np.array([nll_error]), None)
        rows["R²"] = (self.r_squared, _bootstrap(self.truth, self.mean), None)
        rows["pull width"] = (*self.pull_width, 1.0)
        for level in (0.68, 0.95):
            rows[f"{100 * level:.0f} % coverage"] = (*self.coverage(level), level)
        return Scores(rows)


def evaluate(density: Density, table: Mapping[str, Any], *, draws: int = 1000, seed: int = 0) -> Evaluation:
    """Ask a density about every row of a table with its context and its targets.

    >>> # evaluation = evaluate(fluvial.load("runs/stars-1"), test)
    """
    names = density.schema.target_names
    truth = np.stack([np.asarray(table[name], dtype=np.float64) for name in names], axis=-1)
    context = {name: table[name] for name in density.schema.context_names}
    rng = np.random.default_rng(seed)
    parts: dict[str, list[Array]] = {name: [] for name in ("mean", "std", "pulls", "pit", "hpd", "log_prob")}
    begin = time.perf_counter()
    for start in range(0, len(truth), CHUNK):
        part = slice(start, start + CHUNK)
        given = density.given({name: values[part] for name, values in context.items()})
        drawn, of_draws = given.sample_and_log_prob(draws, seed=seed + start)
        values = np.stack([drawn[name] for name in names], axis=-1)
        at = given.log_prob(truth[part])
        parts["mean"].append(values.mean(axis=1))
        parts["std"].append(values.std(axis=1, ddof=1))
        parts["pulls"].append(check.pulls(truth[part], values))
        parts["pit"].append(check.pit_values(truth[part], values, rng))
        parts["hpd"].append(check.hpd_values(at, of_draws, rng))
        parts["log_prob"].append(at)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return Evaluation(truth=truth, seconds=time.perf_counter() - begin, **joined)


def _bootstrap(truth: Array, mean: Array, times: int = 200) -> Array:
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(truth), (times, len(truth)))
    return np.array([r_squared(truth[p], mean[p]) for p in picks]).std(axis=0)
