"""Baselines: each a density that integrates to one, near the truth where it can be, and honest about the flow."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from fluvial.check import baselines
from fluvial.check.baselines import Baseline, compare, quantile_density
from fluvial.errors import DataError

ENTROPY = 0.5 * math.log(2 * math.pi * math.e)


def linear(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return targets, context, and the exact log-density of a linear Gaussian of two targets."""
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(rows, 2))
    z = rng.normal(size=(rows, 2))
    x = np.stack([c[:, 0] + 0.5 * z[:, 0], 0.3 * z[:, 0] + 0.2 * z[:, 1] - c[:, 1]], 1)
    return x, c, -0.5 * np.square(z).sum(1) - math.log(2 * math.pi) - math.log(0.5 * 0.2)


def curved(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a target whose mean and width bend with the context."""
    rng = np.random.default_rng(seed)
    c = rng.uniform(-2, 2, (rows, 1))
    width = 0.2 + 0.5 * np.abs(c[:, 0])
    z = rng.normal(size=rows)
    x = np.sin(2 * c[:, 0]) + width * z
    return x[:, None], c, -0.5 * z**2 - np.log(width) - 0.5 * math.log(2 * math.pi)


def of(name: str, make, rows: int = 4000):
    x, c, _ = make(rows, 0)
    y, d, truth = make(1000, 1)
    log_prob = {
        "marginal": lambda: baselines.marginal(x, y),
        "nearest": lambda: baselines.nearest_neighbours(x, c, y, d),
        "linear": lambda: baselines.linear_gaussian(x, c, y, d),
        "boosted": lambda: baselines.boosted_quantiles(x, c, y, d),
    }[name]()
    return (truth - log_prob).mean()  # KL(truth‖baseline), in nats


def test_each_is_near_the_truth_where_it_can_be_and_only_there() -> None:
    assert abs(of("linear", linear)) < 0.01
    assert of("marginal", linear) > 1  # the context says much
    assert 0 < of("nearest", linear) < 0.45
    assert 0 < of("boosted", linear) < 0.8
    assert of("linear", curved) > 0.2  # its mean bends, and its width
    assert 0 < of("nearest", curved) < 0.08
    assert 0 < of("boosted", curved) < 0.2
    x = np.random.default_rng(0).normal(size=(5000, 1))
    assert -baselines.marginal(x[:3000], x[3000:]).mean() == pytest.approx(ENTROPY, abs=0.05)


@pytest.mark.parametrize("name", ["marginal", "nearest", "linear", "boosted"])
def test_each_integrates_to_one(name: str) -> None:
    x, c, _ = curved(1500, 0)
    t = np.linspace(-15, 15, 40_001 if name == "boosted" else 4001)[:, None]
    at = np.full_like(t, 0.7)
    log_prob = {
        "marginal": lambda: baselines.marginal(x, t),
        "nearest": lambda: baselines.nearest_neighbours(x, c, t, at),
        "linear": lambda: baselines.linear_gaussian(x, c, t, at),
        "boosted": lambda: baselines.boosted_quantiles(x, c, t, at),
    }[name]()
    assert np.isfinite(log_prob).all()
    assert np.trapezoid(np.exp(log_prob), t[:, 0]) == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("name", ["marginal", "nearest"])
def test_two_targets_integrate_to_one(name: str) -> None:
    x, c, _ = linear(800, 0)
    axis = np.linspace(-10, 10, 241)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    if name == "marginal":
        log_prob = baselines.marginal(x, grid)
    else:
        log_prob = baselines.nearest_neighbours(x, c, grid, np.full_like(grid, 0.3))
    p = np.exp(log_prob).reshape(241, 241)
    assert np.trapezoid(np.trapezoid(p, axis), axis) == pytest.approx(1, abs=5e-3)


def test_a_grid_and_repeated_values_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    c = rng.integers(0, 4, (3000, 1)).astype(float)
    x = np.round(c + rng.normal(size=(3000, 1)), 1)  # ties in context and target
    for log_prob in (
        baselines.nearest_neighbours(x, c, x[:300], c[:300]),
        baselines.boosted_quantiles(x, c, x[:300], c[:300]),
        baselines.marginal(x, x[:300]),
    ):
        assert np.isfinite(log_prob).all()
        assert log_prob.mean() < 1


def test_quantile_density_is_flat_between_and_exponential_beyond() -> None:
    q, levels = np.array([[0.0, 1.0, 3.0]]), np.array([0.2, 0.5, 0.9])
    t = np.linspace(-20, 20, 400_001)
    p = np.exp(quantile_density(t, np.repeat(q, len(t), 0), levels))
    assert np.trapezoid(p, t) == pytest.approx(1, abs=1e-3)
    assert np.trapezoid(np.where(t < 1, p, 0), t) == pytest.approx(0.5, abs=1e-3)
    assert np.trapezoid(np.where(t > 3, p, 0), t) == pytest.approx(0.1, abs=1e-3)
    tied = quantile_density(np.array([1.0]), np.array([[1.0, 1.0, 1.0]]), levels)
    assert np.isfinite(tied).all()


def test_a_flow_that_is_not_needed_is_said_to_be_so() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.normal(size=2000)
    as_good = compare("a", theirs, theirs + 0.01 * rng.normal(size=2000))
    better = compare("b", theirs, theirs + 0.3 + 0.5 * rng.normal(size=2000))
    unclear = compare("c", theirs, theirs + 0.3 + 50 * rng.normal(size=2000))
    assert as_good.suffices
    assert not better.suffices
    assert not unclear.suffices  # a difference that is not known says nothing
    assert Baseline.from_json(better.to_json()) == better
    none = Baseline("none", note="why")
    assert not none.made
    assert not none.suffices
    assert Baseline.from_json(none.to_json()).note == "why"


def test_wrong_input_is_told_and_a_missing_library_is_an_import_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(DataError, match="at least 50 training rows; got 3"):
        baselines.marginal(np.zeros((3, 1)), np.zeros((3, 1)))
    with pytest.raises(DataError, match=r"test: expected shape \[m, 2\]"):
        baselines.marginal(np.zeros((60, 2)), np.zeros((3, 1)))
    with pytest.raises(DataError, match="one context of at least one column"):
        baselines.nearest_neighbours(np.zeros((60, 1)), np.zeros((60, 0)), np.zeros((3, 1)), np.zeros((3, 0)))
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ImportError):
        baselines.boosted_quantiles(np.zeros((60, 1)), np.zeros((60, 1)), np.zeros((3, 1)), np.zeros((3, 1)))
