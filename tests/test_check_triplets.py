"""Every check that judges a density by draws: exact passes, over- and underconfident fail; nothing fails by chance."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fluvial import check as checks
from fluvial.check import CheckResult
from fluvial.check._chance import excess
from fluvial.errors import DataError, MissingExtraError

EXACT, OVERCONFIDENT, UNDERCONFIDENT = 1.0, 0.7, 1.45
COLUMNS = ["a", "b"]


@dataclass
class Made:
    """Truth and draws of a density whose width is wrong by a factor, with what the checks take."""

    truth: np.ndarray
    draws: np.ndarray
    log_prob_truth: np.ndarray
    log_prob_draws: np.ndarray
    exact_truth: np.ndarray
    exact_draws: np.ndarray
    context: np.ndarray
    rng: np.random.Generator

    @property
    def one(self) -> np.ndarray:
        return self.draws[:, 0]

    @property
    def pit(self) -> np.ndarray:
        return checks.pit_values(self.truth, self.draws, self.rng)

    @property
    def hpd(self) -> np.ndarray:
        return checks.hpd_values(self.log_prob_truth, self.log_prob_draws, self.rng)


def log_normal(u: np.ndarray, width: float) -> np.ndarray:
    return (-0.5 * (u / width) ** 2 - math.log(width) - 0.5 * math.log(2 * math.pi)).sum(axis=-1)


def make(width: float, rows: int = 4000, seed: int = 0, draws: int = 100) -> Made:
    rng = np.random.default_rng(seed)
    context = rng.uniform(-1, 1, size=(rows, 2))
    scale = np.exp(0.3 * context[:, :1]) * [1.0, 2.0]  # the density depends on context
    u, y = rng.standard_normal((rows, 2)), width * rng.standard_normal((rows, draws, 2))
    truth, drawn = context + scale * u, context[:, None] + scale[:, None] * y
    jacobian = np.log(scale).sum(axis=1)
    return Made(
        truth,
        drawn,
        log_normal(u, width) - jacobian,
        log_normal(y, width) - jacobian[:, None],
        log_normal(u, 1.0) - jacobian,
        log_normal(y, 1.0) - jacobian[:, None],
        context,
        rng,
    )


def against_exact(m: Made, score) -> list[CheckResult]:
    """Compare a score with that of draws from the truth."""
    other = make(1.0, len(m.truth), seed=99)
    scale = np.exp(0.3 * m.context[:, :1]) * [1.0, 2.0]
    y = (other.draws - other.context[:, None]) / (np.exp(0.3 * other.context[:, :1]) * [1.0, 2.0])[:, None]
    exact = m.context[:, None] + scale[:, None] * y
    a, b = score(m.truth, m.draws), score(m.truth, exact)
    pairs = [(a, b)] if a.ndim == 1 else zip(a.T, b.T, strict=True)
    return [checks.compare_scores(one, two, "score") for one, two in pairs]


CHECKS = {
    "SBC": lambda m: checks.sbc_ranks(
        m.truth, m.draws, COLUMNS, m.rng, log_prob_truth=m.log_prob_truth, log_prob_draws=m.log_prob_draws
    ),
    "TARP": lambda m: [checks.tarp(m.truth, m.draws, m.rng, references=3 * m.context)],
    "TARP, references anywhere": lambda m: [checks.tarp(m.truth, m.draws, m.rng)],
    "local coverage": lambda m: [checks.local_coverage(m.hpd, m.context)],
    "local regression": lambda m: checks.local_regression(m.pit, m.context, COLUMNS, m.rng),
    "CRPS": lambda m: against_exact(m, checks.crps),
    "energy score": lambda m: against_exact(m, checks.energy_score),
    "KS": lambda m: checks.kolmogorov_smirnov(m.truth, m.draws.reshape(-1, 2), COLUMNS),
    "Wasserstein": lambda m: checks.wasserstein(m.truth, m.one, COLUMNS, m.rng),
    "sliced Wasserstein": lambda m: [checks.sliced_wasserstein(m.truth, m.one, m.rng)],
    "MMD": lambda m: [checks.mmd(m.truth, m.one, m.rng)],
    "classifier": lambda m: checks.classifier_test(m.truth, m.one, m.context, m.rng),
    "local classifier": lambda m: [checks.local_classifier_test(m.truth, m.one, m.context, m.rng)],
    "JS": lambda m: [
        checks.js_divergence(m.exact_truth, m.log_prob_truth, m.exact_draws[:, 0], m.log_prob_draws[:, 0])
    ],
    "tails": lambda m: checks.tail_rates(m.pit, COLUMNS),
}


#: Of a threshold that allows more, such as in a part of context, more is asked.
FURTHER = {"local regression": 2.0}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(
    ("width", "expected"), [(EXACT, "pass"), (OVERCONFIDENT, "fail"), (UNDERCONFIDENT, "fail")]
)
def test_triplet(name: str, width: float, expected: str):
    for seed in range(3):
        results = CHECKS[name](make(width ** FURTHER.get(name, 1.0), seed=seed))
        assert {r.verdict for r in results} == {expected}, (seed, [str(r) for r in results])


@pytest.mark.parametrize("name", sorted(set(CHECKS) - {"JS"}))  # of an exact density it is 0, without scatter
def test_few_rows_do_not_pass_and_an_exact_density_does_not_fail(name: str):
    for seed in range(3):
        for rows in (60, 30):
            assert {r.verdict for r in CHECKS[name](make(EXACT, rows, seed))} == {"insufficient data"}, rows


@pytest.mark.parametrize("method", ["quadratic", "boosting"])
def test_learners_find_what_only_context_shows(method: str):
    if method == "boosting":
        pytest.importorskip("sklearn")
    m = make(EXACT, 3000, draws=60)
    pit, one = m.pit[:, :1], m.one
    corner = (m.context > 0).all(axis=1)  # a quarter of the rows
    wrong = np.where(corner[:, None], pit**2, pit)
    exact, found = (
        checks.local_regression(u, m.context, ["a"], m.rng, method=method)[0] for u in (pit, wrong)
    )
    assert (exact.verdict, found.verdict) == ("pass", "fail")
    assert "context column" in found.meaning
    # Draws that are right on average over context and shifted at every one.
    shifted = one + 0.6 * np.sign(m.context)
    assert checks.local_classifier_test(m.truth, shifted, m.context, m.rng, method=method).verdict == "fail"
    assert {r.verdict for r in checks.classifier_test(m.truth, one, m.context, m.rng, method=method)} == {
        "pass"
    }


def test_the_region_is_where_the_density_is_wrong():
    rng = np.random.default_rng(0)
    context, u = rng.uniform(-1, 1, (6000, 2)), rng.random((6000, 1))
    u[context[:, 1] > 0.6] **= 3
    deviation = checks.predicted_deviation(u, context, rng)
    assert deviation.shape == (6000, 1, 5)
    wrong = context[:, 1] > 0.6
    assert deviation[wrong, 0, 2].mean() > 0.2  # P(u³ < 1/2) − 1/2 = 0.29
    assert abs(deviation[~wrong, 0, 2].mean()) < 0.03
    (result,) = checks.local_regression(u, context, ["a"], rng)
    assert "context column 1 is from 0." in result.meaning
    (result,) = checks.local_regression(u, context, ["a"], rng, context_columns=["Z", "alpha"])
    assert "context alpha is from 0." in result.meaning


@pytest.mark.parametrize("context", [np.empty((2000, 0)), np.ones((2000, 2))])
def test_a_context_that_does_not_vary_leaves_one_region(context: np.ndarray):
    rng = np.random.default_rng(0)
    u = rng.random((2000, 1))
    assert checks.local_regression(u, context, ["a"], rng)[0].verdict == "pass"
    assert checks.local_regression(u**2, context, ["a"], rng)[0].verdict == "fail"
    x = rng.normal(size=(2000, 2))
    found = checks.classifier_test(x, rng.permutation(x) + 0.01 * x, context, rng)
    assert {r.verdict for r in found} <= {"pass", "insufficient data"}


def test_boosting_without_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    m = make(EXACT, 200)
    with pytest.raises(MissingExtraError, match=r"fluvial\[baselines\]"):
        checks.classifier_test(m.truth, m.one, None, m.rng, method="boosting")


# --- false alarms -----------------------------------------------------------------------------------------


def _nulls():
    folder = Path(__file__).parent.parent / "benchmarks"
    spec = importlib.util.spec_from_file_location("check_nulls", folder / "check_nulls.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NULLS = _nulls()


@pytest.mark.parametrize("name", NULLS.NULLS)
def test_exact_densities_do_not_fail_by_chance(name: str):
    # Threshold 0: the standard error alone decides. 1,000 of each: benchmarks/checks.py.
    for rows in (100, 400):
        found = NULLS.deviations(name, rows, 30)
        assert not np.isinf(found).any(), (rows, found)


def test_the_count_of_false_alarms_can_count():
    # The control: standard errors of half their size.
    found = NULLS.deviations("pulls", 400, 200)
    assert (2 * found > 4).mean() > 0.01


# --- what they are ----------------------------------------------------------------------------------------


def test_excess_is_zero_by_chance_and_the_distance_far_away():
    assert excess(0.09, 0.01, 0.05)[0] == 0.0
    distance, error = excess(3.0, 0.01, 0.05)
    assert distance == pytest.approx(3.0, rel=1e-3)
    # Four standard errors are where the norm exceeds its mean by 4 σ.
    assert excess(0.1 + 4 * 0.05, 0.01, 0.05)[0] == pytest.approx(4 * error)


def test_crps_and_energy_score_of_a_normal():
    rng = np.random.default_rng(0)
    truth, draws = rng.normal(size=(3000, 1)), rng.normal(size=(3000, 200, 1))
    expected = stats.norm.pdf(truth) * 2 + truth * (2 * stats.norm.cdf(truth) - 1) - 1 / math.sqrt(math.pi)
    found = checks.crps(truth, draws)
    assert abs((found - expected).mean()) < 4 * (found - expected).std() / math.sqrt(3000)
    energy = checks.energy_score(truth, draws, scale=np.ones(1))
    assert abs((energy - found[:, 0]).mean()) < 4 * (energy - found[:, 0]).std() / math.sqrt(3000)
    few = checks.crps(truth, draws[:, :2])  # the fair score is unbiased, whatever the number of draws
    assert abs((few - expected).mean()) < 4 * (few - expected).std() / math.sqrt(3000)


def test_a_broken_draw_makes_a_score_nan_and_fails():
    m = make(EXACT, 100)
    good = checks.energy_score(m.truth, m.draws)
    m.draws[3, 0, 0] = np.nan
    m.draws[4, 5, 1] = np.inf
    for bad in (
        checks.energy_score(m.truth, m.draws, scale=np.ones(2)),
        checks.crps(m.truth, m.draws).sum(1),
    ):
        assert np.flatnonzero(np.isnan(bad)).tolist() == [3, 4]
        assert checks.compare_scores(bad, good, "score").verdict == "fail"


def test_a_better_score_never_fails():
    rng = np.random.default_rng(0)
    worse = 1 + rng.random(1000)
    result = checks.compare_scores(0.5 * worse, worse, "score", "a")
    assert (result.verdict, result.statistic) == ("pass", pytest.approx(-0.5))


def test_distances_of_shifted_samples():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 1)), rng.normal(1.0, 1, (4000, 1))
    pooled = math.sqrt(1.25)
    (w,) = checks.wasserstein(x, y, ["a"], rng)
    assert w.statistic == pytest.approx(1 / pooled, abs=4 * w.uncertainty)
    (ks,) = checks.kolmogorov_smirnov(x, y, ["a"])
    assert ks.statistic == pytest.approx(stats.ks_2samp(x[:, 0], y[:, 0]).statistic, abs=1e-3)
    sliced = checks.sliced_wasserstein(x, y, rng)
    assert sliced.statistic == pytest.approx(w.statistic, abs=1e-3)
    assert stats.wasserstein_distance(x[:, 0], y[:, 0]) / np.concatenate([x, y]).std() == pytest.approx(
        w.statistic, abs=2e-3
    )


def test_distances_see_a_correlation_that_no_column_shows():
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], size=4000)
    y = rng.normal(size=(4000, 2))
    assert {r.verdict for r in checks.wasserstein(x, y, COLUMNS, rng)} == {"pass"}
    for result in (checks.sliced_wasserstein(x, y, rng), checks.mmd(x, y, rng)):
        assert result.verdict == "fail"
    assert {r.verdict for r in checks.classifier_test(x, y, None, rng)} == {"fail"}


def test_mmd_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 1)), rng.normal(0.8, 1, (200, 1))
    both = np.concatenate([x, y])
    z = (both - both.mean()) / both.std()
    a, b = z[:300], z[300:]
    result = checks.mmd(x, y, rng, memory=100_000)
    apart = (z - z.T) ** 2
    kernel = np.exp(-apart / (2 * np.median(apart[np.triu_indices(500, 1)])))
    xx = (kernel[:300, :300].sum() - 300) / (300 * 299)
    yy = (kernel[300:, 300:].sum() - 200) / (200 * 199)
    assert len(a) == 300
    assert len(b) == 200
    assert result.statistic == pytest.approx(math.sqrt(xx + yy - 2 * kernel[:300, 300:].mean()), rel=1e-6)


def test_js_of_two_normals_and_of_a_density_that_vanishes():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=20_000), rng.normal(1.0, 1, 20_000)
    p, q = stats.norm(0, 1), stats.norm(1, 1)
    result = checks.js_divergence(p.logpdf(x), q.logpdf(x), p.logpdf(y), q.logpdf(y))
    grid = np.linspace(-8, 9, 20_001)
    middle = (p.pdf(grid) + q.pdf(grid)) / 2
    exact = sum(np.trapezoid(d.pdf(grid) * np.log(d.pdf(grid) / middle), grid) for d in (p, q)) / 2
    assert result.statistic == pytest.approx(exact, abs=4 * result.uncertainty)
    zero, none = np.zeros(100), np.full(100, -np.inf)
    assert checks.js_divergence(zero, none, none, zero).statistic == pytest.approx(math.log(2))
    with pytest.raises(DataError, match=r"log_prob: expected numbers or −inf, got NaN"):
        checks.js_divergence(zero, np.full(100, np.nan), none, zero)


def test_ranks_and_tarp_by_hand():
    truth, draws = np.array([[2.5]]), np.array([[[1.0], [2.0], [3.0]]])
    assert checks.rank_counts(truth, draws).tolist() == [[2]]
    rng = np.random.default_rng(0)
    value = checks.tarp_values(truth, draws, rng, references=np.array([[3.0]]))
    assert 0.25 <= value[0] < 0.5  # one of three draws is closer to 3 than 2.5 is
    with pytest.raises(DataError, match="both or neither"):
        checks.sbc_ranks(truth, draws, ["a"], rng, log_prob_truth=np.zeros(1))


def test_tarp_needs_references_that_know_the_context_to_find_out_a_marginal_density():
    rng = np.random.default_rng(0)
    c = rng.normal(size=(5000, 1))
    truth = c + 0.5 * rng.normal(size=(5000, 1))
    draws = math.sqrt(1.25) * rng.normal(size=(5000, 60, 1))  # knows nothing of c
    assert checks.tarp(truth, draws, rng).verdict == "pass"
    assert checks.tarp(truth, draws, rng, references=c).verdict == "fail"


def test_curves_of_tarp_follow_the_levels():
    m = make(EXACT, 3000)
    levels = np.linspace(0, 1, 11)
    observed, error = checks.tarp_curve(m.truth, m.draws, levels, m.rng)
    assert (np.abs(observed - levels) < 4 * error + 1e-3).all()


def test_sensitivity_to_the_seed():
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000)
    base = rng.normal(size=(4, 1000, 50, 1))
    same = np.tile(-0.5 * x**2, (4, 1))
    shift = np.array([-0.4, -0.1, 0.1, 0.4])[:, None]
    shifted = -0.5 * (x - shift) ** 2
    verdicts = lambda d, q: [r.verdict for r in checks.seed_sensitivity(d, q, ["a"])]  # noqa: E731
    assert verdicts(base, same) == ["pass", "pass"]
    assert verdicts(base + shift[:, :, None, None], shifted) == ["fail", "fail"]
    ratio, loss = checks.seed_sensitivity(base + shift[:, :, None, None], shifted, ["a"])
    assert ratio.statistic == pytest.approx(np.std([-0.4, -0.1, 0.1, 0.4], ddof=1), abs=0.02)
    assert loss.statistic == pytest.approx(0.5 * 0.34 / 3, abs=4 * loss.uncertainty)  # x² has mean 1
    same[2, 5] = -np.inf
    assert verdicts(base, same) == ["pass", "fail"]
    with pytest.raises(DataError, match="at least 2 members"):
        checks.seed_sensitivity(base[:1], same[:1], ["a"])


def test_extrapolation_counts_contexts_outside():
    rng = np.random.default_rng(0)
    training = rng.normal(size=(5000, 3)) * [1, 100, 0.01]
    inside, outside = (rng.normal(size=(1000, 3)) * [1, 100, 0.01] for _ in range(2))
    outside[:100, 1] += 1000
    ratio = checks.neighbour_ratio(outside, training)
    assert (ratio[:100] > 1).all()
    assert checks.extrapolation(outside, training).verdict == "fail"
    assert checks.extrapolation(inside, training).verdict == "pass"
    # Nearer than they should be: that is no extrapolation.
    middle = checks.extrapolation(np.zeros((2000, 3)), training, alarm=0.05)
    assert (middle.statistic, middle.verdict) == (0.0, "pass")
    grid = np.repeat(np.arange(5.0), 20)[:, None]
    assert checks.neighbour_ratio(np.array([[2.0], [2.5]]), grid).tolist() == [0.0, math.inf]
    with pytest.raises(DataError, match="at least 7 rows"):
        checks.neighbour_ratio(inside, training[:5])


def test_work_in_batches_keeps_to_its_memory_and_tells():
    seen, told = [], []

    def work(rows: slice):
        seen.append(rows.stop - rows.start)
        return np.arange(rows.start, rows.stop), np.ones((rows.stop - rows.start, 2))

    ranks, ones = checks.in_batches(work, 100, 1000, memory=32 * 7000, progress=lambda *a: told.append(a))
    assert ranks.tolist() == list(range(100))
    assert ones.shape == (100, 2)
    assert max(seen) == 7
    assert told[-1] == (100, 100)
    with pytest.raises(DataError, match="memory"):
        checks.in_batches(work, 100, 1000, memory=0)


def test_memory_does_not_change_the_answer():
    m = make(EXACT, 300)
    for score in (checks.crps, checks.energy_score, checks.rank_counts):
        np.testing.assert_allclose(score(m.truth, m.draws), score(m.truth, m.draws, memory=50_000))
    whole, parts = (
        checks.tarp_values(m.truth, m.draws, np.random.default_rng(1), references=m.context, memory=memory)
        for memory in (None, 10**9)
    )
    np.testing.assert_array_equal(whole, parts)
