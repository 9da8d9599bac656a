"""The posterior of a population's hyperparameters: drawn from a table, by emcee, nautilus or NUTS; what it is worth."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fluvial.errors import DataError, nearest
from fluvial.extras import optional_module
from fluvial.infer.population import PopulationLikelihood, Terms
from fluvial.infer.tabulate import ChebyshevTable, tabulate

SAMPLERS = ("auto", "table", "emcee", "nautilus", "nuts")
#: Posterior draws at which the likelihood is evaluated once more, exactly, with its Monte-Carlo error.
EXACT = 100
#: Largest root-mean-square error of a tabulated log-likelihood, in nats.
TABLE_ERROR = 0.1
#: Or of so much of the standard deviation that the Monte-Carlo sums leave to the log-likelihood, where that is more:
#: between its samples the likelihood is not smooth, and a table that followed it there would follow noise.
TABLE_SHARE = 0.5
#: Most points at which a table is evaluated to draw from it.
MOST_POINTS = 4_000_000
#: emcee's advice: a chain of so many autocorrelation times can be trusted.
TIMES = 50

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PopulationPosterior:
    """Draws of hyperparameters from their posterior, and diagnostics.

    Attributes
    ----------
    names : list of str
        The hyperparameters.
    samples : numpy.ndarray
        ``[n, d]``, equally weighted.
    rate : numpy.ndarray
        ``[n]``, how many events happened while the survey looked, detected or not, given N detected and the prior 1/R:
        R ξ ~ Gamma(N, 1).
    log_evidence, log_evidence_error : float or None
        log of the evidence ∫ L dp(λ), from nautilus alone.
    terms : Terms
        The exact likelihood with its Monte-Carlo error, at :data:`EXACT` draws.
    notes : list of str
        What a reader must know, such as a Monte-Carlo error that is too large.
    diagnostics : dict
        Numbers about the sampler: acceptance, autocorrelation time, effective draws, evaluations.
    """

    names: list[str]
    samples: np.ndarray
    rate: np.ndarray
    terms: Terms
    sampler: str
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    notes: list[str] = field(default_factory=list)
    diagnostics: dict[str, float] = field(default_factory=dict)

    def interval(self, level: float = 0.9) -> np.ndarray:
        """Return central credible intervals ``[d, 2]``."""
        return np.quantile(self.samples, [(1 - level) / 2, (1 + level) / 2], axis=0).T

    def level_of(self, truth: np.ndarray) -> np.ndarray:
        """Return for each hyperparameter the share of draws below a true value ``[d]``: uniform if all is right."""
        return (self.samples < np.asarray(truth)).mean(0)

    def to_json(self) -> dict[str, Any]:
        """Return medians, intervals, Monte-Carlo errors and diagnostics for JSON."""
        median = np.median(self.samples, axis=0)
        parameters = {
            name: {
                "median": float(median[i]),
                **{
                    f"interval_{round(100 * level)}": [float(v) for v in self.interval(level)[i]]
                    for level in (0.5, 0.9)
                },
            }
            for i, name in enumerate(self.names)
        }
        rate = np.quantile(self.rate, [0.05, 0.5, 0.95])
        return {
            "sampler": self.sampler,
            "draws": len(self.samples),
            "parameters": parameters,
            "rate": {"median": float(rate[1]), "interval_90": [float(rate[0]), float(rate[2])]},
            "log_evidence": self.log_evidence,
            "log_evidence_error": self.log_evidence_error,
            "monte_carlo": self.monte_carlo(),
            "diagnostics": self.diagnostics,
            "notes": self.notes,
        }

    def monte_carlo(self) -> dict[str, float]:
        """Return what the likelihood rests on, over the posterior: its variance, and effective numbers of samples."""
        terms = self.terms
        detected = terms.detected_effective.min()
        return {
            "mean_variance": float(terms.variance.mean()),
            "least_effective_samples": float(terms.least_effective.min()),
            "least_effective_injections": float(detected) if math.isfinite(detected) else -1.0,
            "refused_share": float(np.isneginf(terms.log_likelihood).mean()),
        }


def sample_posterior(
    likelihood: PopulationLikelihood,
    *,
    sampler: str = "auto",
    draws: int = 4000,
    seed: int = 0,
    tell: Progress | None = None,
) -> PopulationPosterior:
    """Draw hyperparameters from their posterior.

    Parameters
    ----------
    likelihood : PopulationLikelihood
        What to sample, with its priors.
    sampler : str
        ``"table"`` puts the log-likelihood of up to three hyperparameters in a Chebyshev table, at the cost of some
        hundred evaluations instead of tens of thousands, and draws from that, independently; it is compared with the
        likelihood at draws of the posterior. ``"emcee"`` is the affine-invariant ensemble, ``"nautilus"``
        importance nested sampling (the evidence too), ``"nuts"`` pyro's (the density must have gradients). ``"auto"``,
        the default, is the table where it comes out right within 0.1 nats, or within half the Monte-Carlo error
        of the log-likelihood itself where that is more; else emcee.
    draws : int
        How many draws to return.
    seed : int
        Decides them.
    tell : callable, optional
        Called with a line of progress.

    Raises
    ------
    DataError
        If the likelihood is nowhere to be believed: no effective samples at any hyperparameters.
    MissingExtraError
        If the sampler is not installed.
    """
    if sampler not in SAMPLERS:
        raise DataError(f"No sampler {sampler!r}{nearest(sampler, SAMPLERS)}")
    if draws < 1:
        raise DataError(f"Expected at least one draw; got {draws}.")
    tell = tell or (lambda line: None)
    rng = np.random.default_rng(seed)
    if sampler in ("emcee", "nautilus"):
        optional_module(sampler, "infer")
    start = _start(likelihood, rng)
    counted = _Counted(likelihood)
    drawn = None
    if sampler in ("auto", "table"):
        drawn = _from_table(counted, len(likelihood.names), draws, rng, tell, wanted=sampler == "table")
        sampler = "table" if drawn else "emcee"
    if drawn is None:
        tell(f"{sampler}: the likelihood at every step")
        chain = {"emcee": _emcee, "nautilus": _nautilus, "nuts": _nuts}[sampler]
        drawn = chain(counted, start, draws, rng)
    values = likelihood.from_unit(drawn.u)
    few = values[rng.choice(len(values), min(EXACT, len(values)), replace=False)]
    terms = likelihood.terms(few)
    notes = drawn.notes + _doubts(terms)
    if likelihood.extrapolates:
        notes.append(
            "Beyond the contexts that the density was trained on, it is a guess: "
            + ", ".join(f"{n} outside {a:g} to {b:g}" for n, (a, b) in likelihood.extrapolates.items())
        )
    return PopulationPosterior(
        likelihood.names,
        values,
        _rates(likelihood, values, few, terms, rng),
        terms,
        sampler,
        drawn.log_evidence,
        drawn.log_evidence_error,
        notes,
        {**drawn.diagnostics, "likelihood_evaluations": float(counted.calls)},
    )


@dataclass(frozen=True)
class Drawn:
    """What a sampler gives: points of the unit cube ``[n, d]``."""

    u: np.ndarray
    notes: list[str] = field(default_factory=list)
    diagnostics: dict[str, float] = field(default_factory=dict)
    log_evidence: float | None = None
    log_evidence_error: float | None = None


class _Counted:
    """The log-likelihood over the unit cube, its calls counted. ``guarded`` tells whether −∞ stands for disbelief."""

    def __init__(self, likelihood: PopulationLikelihood):
        self.likelihood = likelihood
        self.calls = 0

    def terms(self, u: np.ndarray) -> Terms:
        self.calls += len(u)
        return self.likelihood.terms(self.likelihood.from_unit(u))

    def __call__(self, u: np.ndarray, *, guarded: bool = True) -> np.ndarray:
        inside = ((u >= 0) & (u <= 1)).all(-1)
        out = np.full(len(u), -np.inf)
        terms = self.terms(u[inside])
        out[inside] = terms.log_likelihood if guarded else terms.unguarded
        return out


def _start(likelihood: PopulationLikelihood, rng: np.random.Generator) -> np.ndarray:
    """Return points of the unit cube to start from, the most likely first; raise if none can be believed."""
    places = rng.random((256, len(likelihood.names)))
    for u in (
        places[:64],
        places,
    ):  # the likelihood may take seconds: all of them only where the first say nothing
        terms = likelihood.terms(likelihood.from_unit(u))
        good = np.isfinite(terms.log_likelihood)
        if good.any():
            break
    if not good.any():
        injections = likelihood.injections is not None
        raise DataError(
            f"The likelihood rests on too few samples at all of {len(places)} places of the prior: at best "
            f"{terms.least_effective.max():.1f} effective samples of the poorest event (needed: "
            f"{likelihood.least_effective:g})"
            + (
                f" and {terms.detected_effective.max():.0f} effective injections (needed: more than "
                f"{4 * len(likelihood.events)})"
                if injections
                else ""
            )
            + ". Give more samples an event"
            + (" or more injections" if injections else "")
            + ", or check that events and density are in the same units."
        )
    order = np.argsort(-terms.log_likelihood, kind="stable")
    return u[order][: int(good.sum())]


def _from_table(
    counted: _Counted, dim: int, draws: int, rng: np.random.Generator, tell: Progress, *, wanted: bool
) -> Drawn | None:
    """Draw from a table of the log-likelihood, if it is as good as the likelihood itself where the posterior is."""

    def judge(table: ChebyshevTable) -> tuple[float, float]:
        """Return how far the table is off where the posterior is, and how far it may be, in nats."""
        u, _ = _resampled(table, 64, rng)
        terms = counted.terms(u)
        difference = table(u) - terms.unguarded
        if not np.isfinite(difference).all():
            return math.inf, TABLE_ERROR
        return float(np.std(difference)), max(
            TABLE_ERROR, TABLE_SHARE * min(1.0, math.sqrt(terms.variance.mean()))
        )

    def right(table: ChebyshevTable) -> bool:
        error, allowed = judge(table)
        good = error <= allowed
        if not good:
            size = " × ".join(map(str, table.values.shape))
            tell(f"a table of {size} is right within {error:.2g} nats ({allowed:.2g} allowed): a finer one")
        return good

    made = tabulate(lambda u: counted(u, guarded=False), dim, rng, right=right)
    if made is None:
        if wanted:
            raise DataError(
                "No table could be made of this likelihood (more than three hyperparameters, or values that are not "
                "finite); take emcee."
            )
        return None
    error, allowed = judge(made)
    u, effective = _resampled(made, draws, rng)
    tell(f"log-likelihood in a table after {counted.calls} evaluations: right within {error:.2g} nats")
    notes = []
    if error > allowed:
        if not wanted:
            return None
        notes.append(
            f"The table of the log-likelihood is right within {error:.2g} nats only; emcee would be exact."
        )
    return Drawn(u, notes, {"table_error": error, "effective_draws": effective})


def _resampled(table: ChebyshevTable, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return draws from exp(table), by resampling uniform points of its box: enough that hardly any comes twice."""
    dim = len(table.low)
    points, values, w = np.empty((0, dim)), np.empty(0), np.empty(0)
    effective = 0.0
    while effective < 10 * draws and len(points) < MOST_POINTS:
        more = table.low + rng.random((100 * draws, dim)) * (table.high - table.low)
        points, values = np.concatenate([points, more]), np.concatenate([values, table(more)])
        w = np.exp(values - values.max())
        effective = float(w.sum() ** 2 / (w * w).sum())
    return points[rng.choice(len(points), draws, p=w / w.sum())], min(effective, float(draws))


def _emcee(target: _Counted, start: np.ndarray, draws: int, rng: np.random.Generator) -> Drawn:
    emcee: Any = optional_module("emcee", "infer")
    dim = start.shape[1]
    walkers = max(32, 4 * dim)
    centre = start[: max(8, len(start) // 16)]
    begin = centre[rng.integers(len(centre), size=walkers)] + 1e-3 * rng.standard_normal((walkers, dim))
    begin = np.clip(begin, 1e-6, 1 - 1e-6)
    values = target(begin)
    good = np.isfinite(values)
    if not good.any():
        begin, good = np.repeat(start[:1], walkers, axis=0), np.ones(walkers, dtype=bool)
    begin[~good] = begin[good][rng.integers(int(good.sum()), size=int((~good).sum()))]
    begin = np.clip(begin + 1e-6 * rng.standard_normal(begin.shape), 0, 1)
    sampler = emcee.EnsembleSampler(walkers, dim, target, vectorize=True)
    sampler._random.seed(int(rng.integers(2**31)))
    state, steps, most = begin, 500, 20_000
    while True:
        state = sampler.run_mcmc(state, steps, progress=False, skip_initial_state_check=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a chain may not have moved at all yet
            time = float(np.max(sampler.get_autocorr_time(tol=0)))
        made = sampler.iteration
        if (
            math.isfinite(time) and made > TIMES * time and made * walkers / (2 * time) > draws / 4
        ) or made >= most:
            break
    notes = []
    if not (math.isfinite(time) and made > TIMES * time):
        notes.append(
            f"emcee has run for {made} steps, {made / time if math.isfinite(time) and time else 0:.0f} "
            f"autocorrelation times; {TIMES} are wanted: the posterior's edges may be rough."
        )
    burn = int(min(5 * time, made / 2)) if math.isfinite(time) else made // 2
    chain = sampler.get_chain(discard=burn, flat=True)
    kept = chain[rng.choice(len(chain), draws, replace=len(chain) < draws)]
    return Drawn(
        kept,
        notes,
        {
            "acceptance": float(np.mean(sampler.acceptance_fraction)),
            "autocorrelation_steps": time,
            "steps": float(made),
            "effective_draws": float(len(chain) / max(time, 1.0)) if math.isfinite(time) else 0.0,
        },
    )


def _nautilus(target: _Counted, start: np.ndarray, draws: int, rng: np.random.Generator) -> Drawn:
    nautilus: Any = optional_module("nautilus", "infer")

    def bounded(u: np.ndarray) -> np.ndarray:
        values = target(u)
        return np.where(np.isfinite(values), values, -1e30)  # nautilus asks for numbers

    sampler = nautilus.Sampler(
        lambda u: u,
        bounded,
        n_dim=start.shape[1],
        n_live=500,
        vectorized=True,
        pass_dict=False,
        seed=int(rng.integers(2**31)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its neural networks, which may stop early
        sampler.run(n_eff=max(draws, 1000), verbose=False)
    points, log_w, _ = sampler.posterior()
    w = np.exp(log_w - log_w.max())
    kept = points[rng.choice(len(points), draws, p=w / w.sum())]
    effective = float(w.sum() ** 2 / (w * w).sum())
    return Drawn(
        kept,
        [],
        {"effective_draws": effective, "calls": float(sampler.n_like)},
        float(sampler.log_z),
        1.0 / math.sqrt(effective),
    )


def _nuts(target: _Counted, start: np.ndarray, draws: int, rng: np.random.Generator) -> Drawn:
    from fluvial.infer.nuts import draw_nuts

    return draw_nuts(target.likelihood, start, draws, rng)


def _rates(
    likelihood: PopulationLikelihood,
    values: np.ndarray,
    few: np.ndarray,
    terms: Terms,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return draws of how many events happened, R ~ Gamma(N) / ξ(λ); ξ of each draw is that of the nearest known one."""
    scale = values.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    nearest_known = np.argmin((((values[:, None] - few[None]) / scale) ** 2).sum(-1), axis=1)
    return rng.gamma(len(likelihood.events), size=len(values)) / terms.detected[nearest_known]


def _doubts(terms: Terms) -> list[str]:
    """Return what the Monte-Carlo error of the likelihood leaves to doubt."""
    notes = []
    refused = np.isneginf(terms.log_likelihood).mean()
    if refused > 0.01:
        notes.append(
            f"At {100 * refused:.0f} % of the posterior draws the likelihood rests on too few effective samples "
            f"({terms.least_effective.min():.1f} of an event, {terms.detected_effective.min():.0f} injections): more "
            "samples an event, or more injections, would mend it."
        )
    if terms.variance.mean() > 1:
        notes.append(
            f"The Monte-Carlo variance of log L is {terms.variance.mean():.2f}; below 1 it does not matter "
            "(Talbot & Golomb 2023). More samples an event, or more injections, would mend it."
        )
    return notes
