"""Calibration: an exact, an overconfident and an underconfident density must get the right verdict."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from fluvial.check import (
    CheckResult,
    central_coverage_curve,
    coverage,
    coverage_curve,
    hpd_values,
    pit,
    pit_values,
    pull_checks,
    pulls,
    uniform_distance,
)
from fluvial.errors import DataError

EXACT, OVERCONFIDENT, UNDERCONFIDENT = 1.0, 0.8, 1.25
SEEDS = 20


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_exponential(shape) - 1.0


def normal_log_prob(u: np.ndarray) -> np.ndarray:
    return -0.5 * u**2


def skewed_log_prob(u: np.ndarray) -> np.ndarray:
    return np.where(u > -1.0, -1.0 - u, -np.inf)


CASES = {
    "normal, D = 1": (normal, normal_log_prob, 1),
    "normal, D = 3": (normal, normal_log_prob, 3),
    "skewed, D = 1": (skewed, skewed_log_prob, 1),
}


def simulate(case: str, width: float, rows: int, seed: int, draws: int = 40):
    """Return truth, draws and their log-densities for a density whose width is wrong by a factor."""
    shape, log_prob, targets = CASES[case]
    rng = np.random.default_rng(seed)
    context = rng.uniform(-1, 1, size=(rows, 1))
    scale = np.exp(context) * np.arange(1, targets + 1)  # the density depends on context, and on the column
    truth = 5.0 * context + scale * shape(rng, (rows, targets))
    u = width * shape(rng, (rows, draws, targets))
    found = 5.0 * context[:, None] + scale[:, None] * u
    at_truth = log_prob((truth - 5.0 * context) / scale / width).sum(axis=1)
    return truth, found, at_truth, log_prob(u / width).sum(axis=2), rng


def verdicts(case: str, width: float, rows: int, seed: int) -> dict[str, list[CheckResult]]:
    truth, draws, at_truth, of_draws, rng = simulate(case, width, rows, seed)
    names = [f"x{j}" for j in range(truth.shape[1])]
    pull = pull_checks(truth, draws, names)
    return {
        "PIT": pit(pit_values(truth, draws, rng), names),
        "pull width": [r for r in pull if r.name == "pull width"],
        "pull mean": [r for r in pull if r.name == "pull mean"],
        "coverage": [coverage(at_truth, of_draws, rng)],
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("width", "expected"), [(EXACT, "pass"), (OVERCONFIDENT, "fail"), (UNDERCONFIDENT, "fail")]
)
def test_triplet(case: str, width: float, expected: str):
    for seed in range(SEEDS):
        found = verdicts(case, width, rows=5000, seed=seed)
        for check in ("PIT", "pull width", "coverage"):
            assert [r.verdict for r in found[check]] == [expected] * len(found[check]), (check, seed)
        assert {r.verdict for r in found["pull mean"]} == {"pass"}, seed  # the mean is right in all three


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", [EXACT, OVERCONFIDENT, UNDERCONFIDENT])
def test_few_rows_are_insufficient(case: str, width: float):
    for seed in range(SEEDS):
        for rows in (15, 150):
            for results in verdicts(case, width, rows, seed).values():
                allowed = {"insufficient data"}
                if width != EXACT and rows == 150:
                    allowed.add("fail")  # rightly: too few rows to pass can be enough to fail
                assert {r.verdict for r in results} <= allowed


def test_a_trivial_deviation_passes_however_certain():
    z = np.random.default_rng(0).standard_normal((1_000_000, 1)) / 0.97
    result = pit(stats.norm.cdf(z), ["x"])[0]
    assert result.verdict == "pass"
    assert result.statistic > 10 * result.uncertainty


def test_a_shift_fails_the_pull_mean_and_the_pit():
    rng = np.random.default_rng(0)
    truth, draws = rng.normal(size=(5000, 2)), rng.normal(size=(5000, 60, 2))
    truth[:, 1] += 0.2
    assert [r.verdict for r in pull_checks(truth, draws, ["a", "b"])] == ["pass", "pass", "fail", "pass"]
    assert [r.verdict for r in pit(pit_values(truth, draws, rng), ["a", "b"])] == ["pass", "fail"]


def test_coverage_sees_a_correlation_that_no_column_shows():
    rng = np.random.default_rng(0)
    truth = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size=5000)
    draws = rng.normal(size=(5000, 60, 2))
    assert {r.verdict for r in pit(pit_values(truth, draws, rng), ["a", "b"])} == {"pass"}
    assert coverage(normal_log_prob(truth).sum(1), normal_log_prob(draws).sum(2), rng).verdict == "fail"


# --- false alarms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [20, 100, 1000])
def test_uniform_values_do_not_fail_by_chance(rows: int):
    values = np.random.default_rng(rows).random((rows, 4000))
    found = Counter(r.verdict for r in pit(values, [""] * 4000))
    assert found["fail"] <= 4  # 1/1000; 2 exp(−9.6) = 1.4e-4 is expected
    assert found["pass"] == 0


HEAVY = {
    "normal": normal,
    "exponential": skewed,
    "Student t3": lambda rng, shape: rng.standard_t(3, shape),
    "Cauchy": lambda rng, shape: rng.standard_cauchy(shape),
    "one row in 200": lambda rng, shape: (
        (rng.random(shape) < 0.005) * 30.0 + 0.1 * rng.standard_normal(shape)
    ),
}


@pytest.mark.parametrize("shape", HEAVY)
def test_exact_pulls_do_not_fail_by_chance_whatever_the_tails(shape: str):
    # Columns are trials. A standard error from the rows alone fails up to a third of the heavy-tailed ones.
    rng = np.random.default_rng(5)
    truth, draws = HEAVY[shape](rng, (60, 1000)), HEAVY[shape](rng, (60, 100, 1000))
    found = pull_checks(truth, draws, [""] * 1000)
    assert sum(r.verdict == "fail" for r in found) <= 1
    naive = [(w - 1.0) / e for w, e in map(naive_width, pulls(truth, draws).T)]
    if shape == "one row in 200":
        assert np.mean(np.abs(naive) > 4) > 0.1  # the control: it is the rule that holds, not the data


def naive_width(t: np.ndarray) -> tuple[float, float]:
    width = math.sqrt(np.mean(t**2))
    return width, np.std(t**2) / (2 * width * math.sqrt(t.size))


# --- PIT --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [1, 2, 7])
def test_pit_is_exactly_uniform_for_few_draws_and_ties(draws: int):
    rng = np.random.default_rng(draws)
    truth, found = rng.integers(0, 3, (20_000, 1)), rng.integers(0, 3, (20_000, draws, 1))
    assert stats.kstest(pit_values(truth, found, rng)[:, 0], "uniform").pvalue > 0.01
    unbroken = (found < truth[:, None]).mean(axis=1)  # the control: ties not broken
    assert stats.kstest(unbroken[:, 0], "uniform").pvalue < 1e-10


def test_pit_by_hand():
    truth, draws = np.array([[2.0, -1.0]]), np.array([[[1.0, -1.0], [3.0, -1.0], [4.0, 0.0]]])
    rng = np.random.default_rng(0)
    u = np.random.default_rng(0).random((1, 2))
    np.testing.assert_allclose(pit_values(truth, draws, rng), (np.array([[1, 0]]) + u * [[1, 3]]) / 4)


def test_pit_counts_draws_that_are_nan_as_above():
    u = pit_values(np.zeros((1, 1)), np.full((1, 9, 1), np.nan), np.random.default_rng(0))
    assert 0 <= u[0, 0] <= 0.1


def test_pieces_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch):
    truth, draws, *_ = simulate("normal, D = 3", 1.0, 100, 0)
    whole = pit_values(truth, draws, np.random.default_rng(1)), pulls(truth, draws)
    monkeypatch.setattr("fluvial.check._arrays._ELEMENTS_AT_ONCE", 700)
    parts = pit_values(truth, draws, np.random.default_rng(1)), pulls(truth, draws)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_distance_is_that_of_kolmogorov_less_chance():
    values = np.random.default_rng(0).beta(1.2, 1, 300)
    distance, error = uniform_distance(values[:, None])
    ks = stats.kstest(values, "uniform").statistic
    assert distance[0] == pytest.approx(math.sqrt(ks**2 - math.pi**2 / 12 / 300))
    assert error == pytest.approx(0.5 / math.sqrt(300))


def test_distance_squared_of_uniform_values_is_zero_on_average():
    values = np.random.default_rng(0).random((200, 4000))
    ks = np.array([stats.kstest(v, "uniform").statistic for v in values.T[:500]])
    assert abs(np.mean(ks**2) * 200 - math.pi**2 / 12) < 0.1


# --- pulls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [2, 5, 50])
@pytest.mark.parametrize("shape", ["normal", "Student t3", "Cauchy"])
def test_pulls_have_mean_zero_and_mean_square_one_exactly(shape: str, draws: int):
    # Over all choices of which of S + 1 values is the truth, not only on average over simulations.
    rng = np.random.default_rng(draws)
    values = HEAVY[shape](rng, draws + 1)
    truth = values[:, None]
    others = np.array([np.delete(values, i) for i in range(draws + 1)])[:, :, None]
    t = pulls(truth, others)
    assert np.mean(t) == pytest.approx(0, abs=1e-12)
    assert np.mean(t**2) == pytest.approx(1, rel=1e-12)


def test_pulls_follow_the_formula_and_approach_the_plain_one():
    rng = np.random.default_rng(0)
    truth, draws = rng.normal(size=(50, 2)), rng.normal(size=(50, 400, 2))
    r = (truth - draws.mean(axis=1)) / draws.std(axis=1, ddof=1)
    np.testing.assert_allclose(pulls(truth, draws), r * 400 / np.sqrt(400**2 - 1 + 400 * r**2))
    np.testing.assert_allclose(pulls(truth, draws), r, rtol=0.02)


def test_pulls_do_not_depend_on_unit_or_offset():
    truth, draws, *_ = simulate("normal, D = 3", 1.0, 50, 0)
    np.testing.assert_allclose(pulls(truth, draws), pulls(1e9 + 10 * truth, 1e9 + 10 * draws), rtol=1e-5)
    np.testing.assert_allclose(pulls(truth, draws), pulls(1e100 * truth, 1e100 * draws), rtol=1e-9)


def test_pulls_without_spread():
    truth = np.array([[1.0, 2.0, 0.0]])
    draws = np.tile([[[1.0, 1.0, np.nan]]], (1, 9, 1))
    np.testing.assert_allclose(pulls(truth, draws), [[np.nan, 3.0, np.inf]])


def test_rows_without_a_pull_are_left_out_and_broken_draws_fail():
    rng = np.random.default_rng(0)
    truth, draws = rng.normal(size=(3000, 1)), rng.normal(size=(3000, 60, 1))
    truth[:1000], draws[:1000] = 7.0, 7.0
    assert {(r.n, r.verdict) for r in pull_checks(truth, draws, ["x"])} == {(2000, "pass")}
    draws[-1, 0] = np.inf
    assert {(r.statistic, r.verdict) for r in pull_checks(truth, draws, ["x"])} == {(math.inf, "fail")}
    assert {r.verdict for r in pull_checks(truth[:1000], draws[:1000], ["x"])} == {"insufficient data"}


@pytest.mark.parametrize("width", [0.0, 1e-3, 1e3])
def test_a_grossly_wrong_width_fails(width: float):
    rng = np.random.default_rng(0)
    truth, draws = width * rng.normal(size=(500, 1)), rng.normal(size=(500, 60, 1))
    assert pull_checks(truth, draws - draws.mean(axis=1, keepdims=True), ["x"])[1].verdict == "fail"


# --- coverage ---------------------------------------------------------------------------------------------


def test_highest_density_values_by_hand():
    rng = np.random.default_rng(0)
    at, of = np.array([-1.0, -np.inf, np.nan]), np.tile([-2.0, -0.5, -3.0], (3, 1))
    values = hpd_values(at, of, rng)
    assert 0.25 <= values[0] < 0.5
    assert (values[1:] >= 0.75).all()


def test_highest_density_ties_are_uniform():
    values = hpd_values(np.zeros(5000), np.zeros((5000, 5)), np.random.default_rng(0))
    assert stats.kstest(values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("width", [EXACT, OVERCONFIDENT, UNDERCONFIDENT])
def test_curves_follow_theory(width: float):
    levels = np.linspace(0, 1, 21)
    truth, draws, at, of, rng = simulate("normal, D = 1", width, 5000, 3, draws=200)
    expected = 2 * stats.norm.cdf(width * stats.norm.ppf((1 + levels) / 2)) - 1
    for observed, error in (
        coverage_curve(at, of, levels, rng),
        (c[:, 0] for c in central_coverage_curve(truth, draws, levels, rng)),
    ):
        assert observed.shape == error.shape == (21,)
        assert (error > 0).all()
        assert (np.abs(observed - expected) < 4 * error + 0.005).all()  # 200 draws blur the level by 0.005


def test_curves_have_a_column_for_each_target():
    truth, draws, *_, rng = simulate("normal, D = 3", 1.0, 300, 0)
    observed, error = central_coverage_curve(truth, draws, np.array([0.0, 0.5, 1.0]), rng)
    assert observed.shape == error.shape == (3, 3)
    assert (observed[0] == 0).all()
    assert (observed[2] == 1).all()


# --- what is refused --------------------------------------------------------------------------------------


def test_mistakes_are_named():
    rng = np.random.default_rng(0)
    good = np.zeros((4, 2)), np.zeros((4, 9, 2))
    with pytest.raises(DataError, match=r"draws: expected shape \[4, S, 2\], got \[4, 9, 3\]"):
        pit_values(good[0], np.zeros((4, 9, 3)), rng)
    with pytest.raises(
        DataError, match=r"truth: expected finite numbers, got 1 that are not, the first in row 2"
    ):
        pit_values(np.array([[0.0], [1.0], [np.nan], [2.0]]), np.zeros((4, 9, 1)), rng)
    with pytest.raises(DataError, match="at least one draw"):
        pit_values(good[0], np.zeros((4, 0, 2)), rng)
    with pytest.raises(DataError, match="at least 2"):
        pulls(good[0], np.zeros((4, 1, 2)))
    with pytest.raises(DataError, match="expected 2 names, one per target, got 1"):
        pull_checks(*good, ["a"])
    with pytest.raises(DataError, match="one string"):
        pit(np.zeros((4, 2)), "ab")
    with pytest.raises(DataError, match="between 0 and 1, got -1 to 2"):
        pit(np.array([[-1.0], [2.0]]), ["x"])
    with pytest.raises(DataError, match="an array of numbers, got dtype <U1"):
        pit(np.array([["a"]]), ["x"])
    with pytest.raises(DataError, match="levels"):
        coverage_curve(np.zeros(3), np.zeros((3, 2)), np.array([50.0]), rng)
    with pytest.raises(DataError, match="at least one row"):
        coverage_curve(np.zeros(0), np.zeros((0, 2)), np.array([0.5]), rng)


def test_no_rows_are_insufficient():
    rng = np.random.default_rng(0)
    none = np.zeros((0, 1)), np.zeros((0, 5, 1))
    results = [*pit(pit_values(*none, rng), ["x"]), *pull_checks(*none, ["x"])]
    results.append(coverage(np.zeros(0), np.zeros((0, 5)), rng))
    assert {r.verdict for r in results} == {"insufficient data"}
