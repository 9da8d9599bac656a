"""Population inference, held to a population whose posterior is known in closed form."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fluvial.data.schema import Column, Schema, Support
from fluvial.errors import DataError
from fluvial.infer.events import Events, Injections
from fluvial.infer.nuts import log_likelihood_tensor
from fluvial.infer.population import PopulationLikelihood
from fluvial.infer.posterior import sample_posterior
from fluvial.infer.predictive import predictive
from fluvial.infer.priors import LogUniform, TruncatedNormal, Uniform, parse_prior
from fluvial.infer.tabulate import tabulate


class Normal:
    """p(x | mu, width): a normal density, in the form of a fluvial density."""

    def given(self, **context):
        return _Given(*(np.asarray(context[n], dtype=float) for n in ("mu", "width")))


class _Given:
    def __init__(self, mu, width):
        self.mu, self.width = np.broadcast_arrays(mu, width)

    def log_prob(self, table):
        z = (table["x"] - self.mu) / self.width
        return -0.5 * z * z - np.log(self.width * math.sqrt(2 * math.pi))

    def sample(self, draws, *, seed):
        rng = np.random.default_rng(seed)
        x = self.mu[..., None] + self.width[..., None] * rng.standard_normal((*self.mu.shape, draws))
        out = np.empty(x.shape, dtype=[("x", float)])
        out["x"] = x
        return out


NOISE = 0.3


def _events(rng, mu=1.0, width=0.5, number=60, samples=400, selected=False):
    """Return events of a normal population; the sampling prior of each is normal of width 2 about 0.

    A survey finds what it measures above 0.9.
    """
    out = []
    while len(out) < number:
        seen = rng.normal(rng.normal(mu, width), NOISE)
        if selected and seen < 0.9:
            continue
        precision = 1 / NOISE**2 + 1 / 4
        draws = rng.normal(seen / NOISE**2 / precision, precision**-0.5, samples)
        out.append({"x": draws, "log_prior": -0.5 * draws**2 / 4})
    return Events.from_samples(out, ["x"])


def _selection(table):
    """The probability that x is measured above 0.9."""
    return np.array([0.5 * math.erfc((0.9 - x) / NOISE / math.sqrt(2)) for x in table["x"]])


PRIORS = {"mu": Uniform(-1.0, 3.0), "width": LogUniform(0.1, 2.0)}


def test_likelihood_is_that_of_the_closed_form():
    rng = np.random.default_rng(0)
    seen, noise = rng.normal(1.0, math.hypot(0.5, 0.3), 50), 0.3
    events = Events.from_samples([{"x": rng.normal(s, noise, 4000)} for s in seen], ["x"])
    likelihood = PopulationLikelihood(Normal(), events, PRIORS)
    values = np.array([[1.0, 0.5], [0.8, 0.7], [1.2, 0.4]])

    def exact(mu, width):
        total = math.hypot(width, noise)
        return float(np.sum(-0.5 * ((seen - mu) / total) ** 2 - math.log(total * math.sqrt(2 * math.pi))))

    got = likelihood(values)
    expected = np.array([exact(*v) for v in values])
    error = np.sqrt(likelihood.terms(values).variance)
    assert (np.abs(got - expected) < 4 * error).all()
    assert (error < 0.2).all()
    assert likelihood({"mu": 1.0, "width": 0.5}) == pytest.approx(got[0])


def test_monte_carlo_variance_is_what_repetition_shows():
    rng = np.random.default_rng(1)
    seen, values = rng.normal(1.0, 0.6, 20), np.array([[1.0, 0.5]])
    estimates, claimed = [], []
    for _ in range(60):
        events = Events.from_samples([{"x": rng.normal(s, 0.3, 60)} for s in seen], ["x"])
        terms = PopulationLikelihood(Normal(), events, PRIORS, least_effective=1).terms(values)
        estimates.append(terms.log_likelihood[0])
        claimed.append(terms.variance[0])
    assert np.var(estimates) == pytest.approx(np.mean(claimed), rel=0.6)


def test_selection_is_the_detected_share():
    rng = np.random.default_rng(2)
    likelihood = PopulationLikelihood(
        Normal(), _events(rng, number=5), PRIORS, detection=_selection, injections=8000, seed=3
    )
    terms = likelihood.terms(np.array([[1.0, 0.5], [0.0, 0.5], [2.0, 1.0]]))
    x = rng.normal(size=400_000)
    exact = [(m + math.hypot(w, NOISE) * x > 0.9).mean() for m, w in ((1.0, 0.5), (0.0, 0.5), (2.0, 1.0))]
    assert np.abs(terms.detected - exact) == pytest.approx(0, abs=4 * max(exact) / 40)
    assert (terms.detected_effective > 100).all()


@pytest.mark.parametrize("selected", [False, True])
def test_posterior_covers_the_truth(selected):
    """Over 40 surveys the truth's rank among the draws is uniform; without the selection term it is not."""
    ranks, wrong = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        mu, width = rng.uniform(0.0, 2.0), 0.3 * 3 ** rng.random()
        priors = {"mu": Uniform(0.0, 2.0), "width": LogUniform(0.3, 0.9)}
        events = _events(rng, mu, width, number=20, samples=200, selected=selected)
        likelihood = PopulationLikelihood(
            Normal(),
            events,
            priors,
            detection=_selection if selected else None,
            injections=4000,
            least_effective=3,
            seed=seed,
        )
        posterior = sample_posterior(likelihood, draws=200, seed=seed)
        ranks.append(posterior.level_of(np.array([mu, width])))
        if selected and seed < 10:
            blind = PopulationLikelihood(Normal(), events, priors, least_effective=3)
            wrong.append(sample_posterior(blind, draws=200, seed=seed).level_of(np.array([mu, width]))[0])
    levels = np.array(ranks)
    for j in range(2):
        distance = np.abs(np.sort(levels[:, j]) - (np.arange(40) + 0.5) / 40).max()
        assert distance < 1.63 / math.sqrt(40), (j, distance)  # Kolmogorov–Smirnov at 1 %
    if selected:
        assert np.mean(wrong) < 0.3  # it takes the population to lie higher than it does


def test_table_and_exact_likelihood_give_the_same_posterior():
    events = _events(np.random.default_rng(4), number=15, samples=60)
    # No place is refused to emcee.
    likelihood = PopulationLikelihood(Normal(), events, PRIORS, least_effective=1)
    a = sample_posterior(likelihood, draws=4000, seed=1)
    b = sample_posterior(likelihood, sampler="emcee", draws=500, seed=2)
    assert (a.sampler, b.sampler) == ("table", "emcee")
    assert a.diagnostics["likelihood_evaluations"] < 0.1 * b.diagnostics["likelihood_evaluations"]
    width = b.samples.std(0)
    assert np.abs(a.samples.mean(0) - b.samples.mean(0)) == pytest.approx(0, abs=0.35 * width.min())
    assert a.samples.std(0) == pytest.approx(width, rel=0.2)


@pytest.mark.parametrize(("variance", "good"), [(0.01, False), (0.8, True), (math.inf, True)])
def test_a_table_need_not_follow_the_noise_of_the_likelihood(monkeypatch, variance, good):
    likelihood = PopulationLikelihood(Normal(), _events(np.random.default_rng(4), samples=100), PRIORS)
    exact = likelihood.terms

    def wiggling(values):  # 0.2 nats, far finer than any table
        terms = exact(values)
        noise = 0.28 * np.sin(1e4 * np.asarray(values)[..., 0])
        found = {"unguarded": terms.unguarded + noise, "variance": np.full(len(noise), variance)}
        return dataclasses.replace(terms, **found)

    monkeypatch.setattr(likelihood, "terms", wiggling)
    heard = []
    posterior = sample_posterior(likelihood, sampler="table", draws=500, seed=1, tell=heard.append)
    assert any("emcee would be exact" in note for note in posterior.notes) != good
    assert any("a finer one" in line for line in heard) != good
    assert 0.15 < posterior.diagnostics["table_error"] < 0.3


def test_same_seed_same_posterior():
    likelihood = PopulationLikelihood(Normal(), _events(np.random.default_rng(4), samples=100), PRIORS)
    a, b = (sample_posterior(likelihood, draws=200, seed=5) for _ in range(2))
    assert (a.samples == b.samples).all()
    assert (a.rate == b.rate).all()


def test_rate_is_that_of_the_events_that_happened():
    rng = np.random.default_rng(6)
    events = _events(rng, number=80, selected=True)
    likelihood = PopulationLikelihood(Normal(), events, PRIORS, detection=_selection, injections=20_000)
    posterior = sample_posterior(likelihood, draws=2000, seed=7)
    share = (rng.normal(1.0, math.hypot(0.5, NOISE), 100_000) > 0.9).mean()
    low, high = np.quantile(posterior.rate, [0.01, 0.99])
    assert low < 80 / share < high


def test_expected_number_counts():
    """Where the number of events is predicted, it says more than their shape does."""
    rng = np.random.default_rng(8)
    events = _events(rng, number=100, samples=200)
    priors = {"mu": Uniform(0.0, 2.0), "width": LogUniform(0.2, 1.0)}
    blind = sample_posterior(PopulationLikelihood(Normal(), events, priors), draws=2000)
    counted = sample_posterior(
        PopulationLikelihood(Normal(), events, priors, expected=lambda t: 100 * np.exp(3 * (t["mu"] - 1.0))),
        draws=2000,
    )
    assert counted.samples[:, 0].std() < 0.75 * blind.samples[:, 0].std()
    assert abs(counted.samples[:, 0].mean() - 1.0) < 0.15


class TwoMembers:
    """An ensemble of two populations that differ in their mean by 0.4."""

    def given(self, **context):
        return _Members(
            [Normal().given(mu=np.asarray(context["mu"]) + d, width=context["width"]) for d in (-0.2, 0.2)]
        )


class _Members:
    def __init__(self, members):
        self.members = members

    def log_prob_members(self, table):
        return np.stack([m.log_prob(table) for m in self.members])


def test_members_of_an_ensemble_widen_the_posterior():
    events = _events(np.random.default_rng(9), number=200, samples=100)
    one = sample_posterior(PopulationLikelihood(Normal(), events, PRIORS, least_effective=2), draws=2000)
    two = sample_posterior(PopulationLikelihood(TwoMembers(), events, PRIORS, least_effective=2), draws=2000)
    assert two.samples[:, 0].std() > 2 * one.samples[:, 0].std()


def test_predictive_check_tells_a_wrong_population():
    rng = np.random.default_rng(10)
    events = _events(rng, samples=200)
    likelihood = PopulationLikelihood(Normal(), events, PRIORS)
    right = predictive(likelihood, sample_posterior(likelihood, draws=500), catalogues=200)
    assert all(0.02 < p < 0.98 for p in right.p_values()["x"].values())
    # Two clumps, which no normal population can give: its spread cannot be right both inside and at the ends.
    clumps = [
        {"x": rng.normal(m, 0.1, 200)}
        for m in np.concatenate([rng.normal(0, 0.05, 55), rng.normal(2.5, 0.05, 5)])
    ]
    wrong = PopulationLikelihood(Normal(), Events.from_samples(clumps, ["x"]), PRIORS)
    p = predictive(wrong, sample_posterior(wrong, draws=500), catalogues=200).p_values()["x"]
    assert min(*p.values(), *(1 - v for v in p.values())) < 0.02


def test_nautilus_gives_the_evidence():
    pytest.importorskip("nautilus")
    rng = np.random.default_rng(11)
    likelihood = PopulationLikelihood(Normal(), _events(rng, number=4, samples=50), PRIORS, least_effective=1)
    posterior = sample_posterior(likelihood, sampler="nautilus", draws=1000, seed=1)
    u = rng.random((10_000, 2))
    values = likelihood(likelihood.from_unit(u))
    exact = values.max() + math.log(np.mean(np.exp(values - values.max())))
    assert posterior.log_evidence == pytest.approx(exact, abs=0.15)
    reference = sample_posterior(likelihood, draws=3000)
    assert posterior.samples.mean(0) == pytest.approx(reference.samples.mean(0), abs=0.1)


class NormalTensor(Normal):
    """The same with gradients, in the form of a density with a schema."""

    schema = Schema(
        (Column("x", "target"),),
        (Column("mu", "context"), Column("width", "context", support=Support(lower=0.0))),
    )
    context_range = {"mu": (-2.0, 4.0), "width": (0.05, 3.0)}  # noqa: RUF012
    members = (None,)

    def log_prob_tensor(self, x, context):
        mu, width = context.unbind(-1)
        return torch.distributions.Normal(mu, width).log_prob(x[..., 0])


def test_nuts_draws_from_the_same_posterior():
    pytest.importorskip("pyro")
    events = _events(np.random.default_rng(12), number=15, samples=40)
    likelihood = PopulationLikelihood(NormalTensor(), events, PRIORS, least_effective=2)
    value = torch.tensor([0.9, 0.6], dtype=torch.float64, requires_grad=True)
    log_l = log_likelihood_tensor(likelihood, value)
    assert log_l.item() == pytest.approx(likelihood(np.array([0.9, 0.6])))
    (gradient,) = torch.autograd.grad(log_l, value)
    step = 1e-5
    numeric = [
        (likelihood(np.array([0.9, 0.6]) + d) - likelihood(np.array([0.9, 0.6]) - d)) / (2 * step)
        for d in np.eye(2) * step
    ]
    assert gradient.numpy() == pytest.approx(numeric, rel=1e-5)
    nuts = sample_posterior(likelihood, sampler="nuts", draws=300, seed=1)
    table = sample_posterior(likelihood, draws=2000, seed=1)
    width = table.samples.std(0)
    assert (np.abs(nuts.samples.mean(0) - table.samples.mean(0)) < 0.4 * width).all()
    assert nuts.samples.std(0) == pytest.approx(width, rel=0.3)
    with pytest.raises(DataError, match="gradients"):
        log_likelihood_tensor(PopulationLikelihood(Normal(), events, PRIORS), value)


def test_what_the_density_does_not_know_is_refused():
    events = _events(np.random.default_rng(0), number=3)
    wide = {"mu": Uniform(-5.0, 3.0), "width": PRIORS["width"]}
    with pytest.raises(DataError, match=r"mu reaches from -5 to 3, but the density was trained on -2 to 4"):
        PopulationLikelihood(NormalTensor(), events, wide)
    allowed = PopulationLikelihood(NormalTensor(), events, wide, outside="allow", least_effective=2)
    assert any("it is a guess" in note for note in sample_posterior(allowed, draws=50).notes)
    for priors, says in (
        ({"mu": PRIORS["mu"]}, "missing: width"),
        (PRIORS | {"nu": Uniform(0.0, 1.0)}, "'nu' is no context column"),
    ):
        with pytest.raises(DataError, match=says):
            PopulationLikelihood(NormalTensor(), events, priors)
    with pytest.raises(DataError, match="samples of the targets x; found y"):
        PopulationLikelihood(NormalTensor(), Events.from_samples([{"y": np.ones(3)}], ["y"]), PRIORS)


def test_table_of_a_sharp_peak():
    rng = np.random.default_rng(0)
    made = tabulate(
        lambda u: -0.5 * (((u - [0.3, 0.71]) / [0.01, 0.004]) ** 2).sum(-1), 2, rng, lambda t: True
    )
    u = np.array([0.3, 0.71]) + rng.normal(size=(500, 2)) * [0.01, 0.004]
    exact = -0.5 * (((u - [0.3, 0.71]) / [0.01, 0.004]) ** 2).sum(-1)
    assert made is not None
    assert np.abs(made(u) - exact).max() < 0.15
    assert made(np.array([[0.99, 0.01]]))[0] == -np.inf
    assert tabulate(lambda u: np.full(len(u), -np.inf), 2, rng, lambda t: True) is None


@pytest.mark.parametrize(
    "prior", [Uniform(-1.0, 3.0), LogUniform(1e-4, 0.02), TruncatedNormal(1.0, 0.7, 0.0, 2.0)], ids=str
)
def test_priors_are_normalised_and_their_quantiles_belong_to_them(prior):
    x = np.linspace(prior.low, prior.high, 400_001)
    density = np.exp(prior.log_prob(x))
    share = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(x))])
    assert share[-1] == pytest.approx(1, rel=1e-4)
    u = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    assert np.interp(prior.quantile(u), x, share) == pytest.approx(u, abs=2e-4)
    assert prior.log_prob(prior.high + 1) == -np.inf


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flat:0:1", "no form 'flat'"),
        ("uniform:0", "expected uniform:LOW:HIGH"),
        ("uniform:1:0", "low < high"),
        ("loguniform:0:1", "greater than 0"),
        ("normal:0:1:50:60", "no weight"),
        ("normal:0:-1:0:1", "width greater than 0"),
        ("uniform:a:b", "with numbers"),
    ],
)
def test_bad_priors(text, says):
    with pytest.raises(DataError, match=says):
        parse_prior(text)


def test_bad_events():
    good = {"x": np.ones(3)}
    with pytest.raises(DataError, match="at least one event"):
        Events.from_samples([], ["x"])
    with pytest.raises(DataError, match=r"event b: column 'x' is missing; did you mean 'X'"):
        Events.from_samples([good, {"X": np.ones(3)}], ["x"], labels=["a", "b"])
    with pytest.raises(DataError, match="not finite, the first in sample 1"):
        Events.from_samples([{"x": np.array([1.0, np.nan])}], ["x"])
    with pytest.raises(DataError, match="as many of each"):
        Events.from_samples([{"x": np.ones(3), "y": np.ones(2)}], ["x", "y"])
    with pytest.raises(DataError, match="column 'event'"):
        Events.from_table({"x": np.ones(3)}, ["x"])
    with pytest.raises(DataError, match="one finite log_prior"):
        Events.from_samples([good], ["x"], log_prior=lambda t: np.zeros(2))


def test_events_from_a_table_keep_their_order():
    table = {"event": np.array(["b", "a", "b", "a"]), "x": np.array([1.0, 2.0, 3.0, 4.0])}
    events = Events.from_table(table, ["x"])
    assert events.labels == ("b", "a")
    assert events.samples[:, 0].tolist() == [1.0, 3.0, 2.0, 4.0]
    assert events.thinned(1).counts().tolist() == [1, 1]


def test_no_effective_samples_is_said():
    far = Events.from_samples([{"x": np.full(5, 50.0)}], ["x"])
    with pytest.raises(DataError, match=r"at best 5.0 effective samples.*same units"):
        sample_posterior(PopulationLikelihood(Normal(), far, PRIORS, least_effective=10), draws=10)


def test_no_effective_injections_is_said():
    events = _events(np.random.default_rng(0), number=40)
    with pytest.raises(DataError, match="effective injections"):
        sample_posterior(
            PopulationLikelihood(Normal(), events, PRIORS, detection=_selection, injections=20), draws=10
        )


def test_bad_detection():
    events = _events(np.random.default_rng(0), number=3)
    for detection, says in (
        (lambda t: np.zeros(len(t["x"])), "None of .* was detected"),
        (lambda t: np.full(len(t["x"]), 2.0), "between 0 and 1; found 2"),
        (lambda t: np.zeros(3), "one detection probability a draw"),
    ):
        with pytest.raises(DataError, match=says):
            PopulationLikelihood(Normal(), events, PRIORS, detection=detection, injections=100)
    with pytest.raises(DataError, match="None of 10 injections"):
        Injections.from_table({"x": [], "log_draw": []}, ["x"], 10)
    with pytest.raises(DataError, match="no more injections found than drawn"):
        Injections.from_table({"x": [1.0, 2.0], "log_draw": [0.0, 0.0]}, ["x"], 1)


def test_bad_calls():
    likelihood = PopulationLikelihood(Normal(), _events(np.random.default_rng(0), number=3), PRIORS)
    with pytest.raises(DataError, match="missing: width"):
        likelihood({"mu": 1.0})
    with pytest.raises(DataError, match=r"\[..., 2\]"):
        likelihood(np.ones(3))
    with pytest.raises(DataError, match="did you mean 'emcee'"):
        sample_posterior(likelihood, sampler="emce")
    with pytest.raises(DataError, match="both for mu"):
        PopulationLikelihood(Normal(), likelihood.events, PRIORS, fixed={"mu": 1.0})
    assert likelihood(np.array([9.0, 0.5])) == -np.inf  # outside the prior
