"""Divergence from a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fluvial.check import kl_divergence, nll
from fluvial.errors import DataError

METHODS = ["plain", "control-variate"]


def log_normal(x: np.ndarray, mean: float = 0.0, width: float = 1.0) -> np.ndarray:
    return -0.5 * ((x - mean) / width) ** 2 - math.log(width) - 0.5 * math.log(2 * math.pi)


def exact_kl(mean: float, width: float) -> float:
    return math.log(width) + (1 + mean**2) / (2 * width**2) - 0.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("mean", "width", "verdict"),
    [(0.0, 1.0, "pass"), (0.1, 1.05, "pass"), (0.5, 1.0, "fail"), (0.0, 0.7, "fail"), (0.0, 1.38, "fail")],
)
def test_it_is_the_divergence(method: str, mean: float, width: float, verdict: str):
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=5000)
        result = kl_divergence(log_normal(x), log_normal(x, mean, width), method=method)
        assert abs(result.statistic - exact_kl(mean, width)) <= 4.5 * result.uncertainty
        assert result.verdict == verdict


def test_the_control_variate_is_sharper_near_the_truth():
    x = np.random.default_rng(0).normal(size=5000)
    plain, sharper = (kl_divergence(log_normal(x), log_normal(x, 0.05), method=m) for m in METHODS)
    assert sharper.uncertainty < plain.uncertainty / 10


def test_only_plain_bears_a_density_with_longer_tails():
    # The ratio q/p has no variance for a width above √2, and so the control variate none either.
    x = np.random.default_rng(0).normal(size=5000)
    plain, other = (kl_divergence(log_normal(x), log_normal(x, 0.0, 2.5), method=m) for m in METHODS)
    assert other.uncertainty > 5 * plain.uncertainty
    assert plain.verdict == "fail"


def test_only_plain_sees_probability_that_leaks_out_of_the_support():
    # Truth uniform on (0, 1), fit uniform on (0, 1.2): the divergence is log 1.2; a sixth leaks.
    p, q = np.zeros(1000), np.full(1000, -math.log(1.2))
    assert kl_divergence(p, q).statistic == pytest.approx(math.log(1.2))
    assert kl_divergence(p, q, method="control-variate").statistic == pytest.approx(math.log(1.2) - 1 / 6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
def test_an_impossible_row_is_an_infinite_divergence(method: str, value: float):
    q = np.zeros(1000)
    q[5] = value
    result = kl_divergence(np.zeros(1000), q, method=method)
    assert (result.statistic, result.verdict) == (math.inf, "fail")
    assert "1 of 1000 rows" in result.meaning


def test_a_density_better_than_the_truth_fails():
    x = np.random.default_rng(0).normal(size=2000)
    assert kl_divergence(log_normal(x), log_normal(x) + 0.2).verdict == "fail"


def test_an_enormous_log_density_does_not_overflow():
    result = kl_divergence(np.zeros(100), np.full(100, 5000.0), method="control-variate")
    assert result.verdict == "fail"
    assert math.isfinite(result.statistic)


def test_few_or_noisy_rows_are_insufficient():
    x = np.random.default_rng(0).normal(size=300)
    assert kl_divergence(log_normal(x[:30]), log_normal(x[:30], 0.1)).verdict == "insufficient data"
    assert kl_divergence(np.zeros(0), np.zeros(0)).verdict == "insufficient data"
    assert kl_divergence(log_normal(x), log_normal(x, 0.0, 0.75)).verdict == "insufficient data"


def test_nll():
    x = np.random.default_rng(0).normal(size=10_000)
    mean, error = nll(log_normal(x))
    assert abs(mean - 0.5 * math.log(2 * math.pi * math.e)) < 4 * error
    assert error == pytest.approx(math.sqrt(0.5 / 10_000), rel=0.1)
    assert nll(np.array([-1.0, -np.inf])) == (math.inf, math.inf)
    assert all(math.isnan(v) for v in nll(np.zeros(0)))


def test_mistakes_are_named():
    with pytest.raises(DataError, match=r"log_prob: expected shape \[3\], got \[2\]"):
        kl_divergence(np.zeros(3), np.zeros(2))
    with pytest.raises(DataError, match="expected one of plain, control-variate, got 'k3'"):
        kl_divergence(np.zeros(3), np.zeros(3), method="k3")
    with pytest.raises(DataError, match="log_truth"):
        kl_divergence(np.array([0.0, -np.inf]), np.zeros(2))
