r"""Population inference: the posterior of the hyperparameters :math:`\lambda` of a density, given N measured events.

A density :math:`p(\theta | \lambda)` says how a population is distributed at hyperparameters :math:`\lambda` (its
context). Every event brings posterior samples :math:`\theta_{is}` under a sampling prior :math:`\pi`; a survey finds a
share :math:`\xi(\lambda)` of the population. With the rate marginalised under a prior 1/R (Mandel, Farr & Gair 2019,
MNRAS 486, 1086, eq. 7; Thrane & Talbot 2019, PASA 36, e010, eq. 32):

.. math::

    \log L(\lambda) = \sum_{i=1}^N \log \frac{1}{S_i} \sum_s \frac{p(\theta_{is} | \lambda)}{\pi(\theta_{is})}
                      - N \log \xi(\lambda)

or, where the number of mergers :math:`\mathcal N(\lambda)` that happened is predicted as well, with
:math:`+ N \log \mathcal N \xi - \mathcal N \xi` in place of nothing. Both sums are Monte-Carlo estimates. Their relative
variances, :math:`v = \sum w^2 / (\sum w)^2 - 1/S`, make the variance of :math:`\log L` (Essick & Farr 2022,
arXiv:2204.00461; Talbot & Golomb 2023, MNRAS 526, 3495, eq. 9):

.. math:: \mathrm{var} \log L = \sum_i v_i + N^2 v_\xi, \qquad n_\mathrm{eff} = 1 / v

Detection must be decided by the data of an event alone (a threshold on its signal-to-noise ratio); the detection
probability is then that of its true parameters, :math:`p_\mathrm{det}(\theta) = \int_\mathrm{found} p(d | \theta)\,dd`,
and does not enter the first sum.

Where an estimate rests on too few samples (``least_effective`` for an event; 4 N for the selection, Farr 2019), the
likelihood is not to be believed: it is put to −∞ there, and such places are counted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluvial.errors import DataError, nearest
from fluvial.infer.events import Events, Injections
from fluvial.infer.priors import Prior

Table = dict[str, np.ndarray]
#: Log-densities evaluated at once: rows of samples times hyperparameters.
BLOCK = 400_000
#: Effective injections that the selection needs for each event (Farr 2019).
PER_EVENT = 4


@dataclass(frozen=True)
class Terms:
    """The log-likelihood and what it rests on, each ``[K]`` for K hyperparameters.

    Attributes
    ----------
    log_likelihood
        log L, −inf where the Monte-Carlo estimate is not to be believed.
    unguarded
        The same without that rule.
    variance
        The Monte-Carlo variance of log L.
    least_effective
        The smallest effective number of samples of any event, (Σw)² / Σw².
    detected, detected_effective
        The share ξ that the survey finds, and the effective number of injections behind it (1 and infinity without
        selection).
    """

    log_likelihood: np.ndarray
    unguarded: np.ndarray
    variance: np.ndarray
    least_effective: np.ndarray
    detected: np.ndarray
    detected_effective: np.ndarray


class PopulationLikelihood:
    """log L(λ) of a population's hyperparameters, for any sampler to call.

    Parameters
    ----------
    density
        p(targets | context): what :func:`fluvial.load` returns, or anything whose
        ``given(**context).log_prob(samples)`` broadcasts. Of an ensemble, every member is a population of its own, and
        the likelihood is their mean: what the emulator does not know widens the posterior.
    events : Events
        Posterior samples of every event.
    priors : mapping
        The prior of each hyperparameter, by the name of its context column.
    fixed : mapping, optional
        Values of the context columns that are known.
    detection : callable or Injections, optional
        The detection probability of a table of targets ``{name: [n]}``, or injections. Without: all is detected.
    expected : callable, optional
        The number of events that happened while the survey looked, detected or not, for a table of hyperparameters;
        then the number of events counts as well as their shape.
    least_effective : float
        Effective samples that every event must have.
    injections : int
        How many injections to make where ``detection`` is a probability.
    outside : str
        ``"refuse"`` a prior that reaches beyond the contexts that the density was trained on, or ``"allow"`` it (then
        :attr:`extrapolates` says by how much).
    seed : int
        Decides the injections.

    Raises
    ------
    DataError
        If a hyperparameter is no context column, one is left without value, a prior reaches beyond the trained range,
        or nothing would ever be detected.
    """

    def __init__(
        self,
        density: Any,
        events: Events,
        priors: Mapping[str, Prior],
        *,
        fixed: Mapping[str, float] | None = None,
        detection: Callable[[Table], np.ndarray] | Injections | None = None,
        expected: Callable[[Table], np.ndarray] | None = None,
        least_effective: float = 10.0,
        injections: int = 10_000,
        outside: str = "refuse",
        seed: int = 0,
    ):
        self.density = density
        self.events = events
        self.priors = dict(priors)
        self.fixed = {name: float(value) for name, value in (fixed or {}).items()}
        self.expected = expected
        self.least_effective = least_effective
        self.extrapolates = _check_names(density, events, self.priors, self.fixed, outside)
        if detection is None or isinstance(detection, Injections):
            self.injections = detection
        else:
            self.injections = self._inject(detection, injections, np.random.default_rng(seed))
        if self.injections is not None and self.injections.names != events.names:
            raise DataError(f"Expected injections of {events.names}; found {self.injections.names}.")

    @property
    def names(self) -> list[str]:
        """The hyperparameters, in the order of an array's last dimension."""
        return list(self.priors)

    def __call__(self, hyperparameters: Mapping[str, Any] | np.ndarray) -> np.ndarray | float:
        """Return log L, ``[...]``, for ``[..., d]`` hyperparameters, or for a mapping from name to value.

        A mapping of numbers gives a number: the form that bilby's and nautilus' likelihoods have.
        """
        if isinstance(hyperparameters, Mapping):
            missing = [n for n in self.names if n not in hyperparameters]
            if missing:
                raise DataError(f"Expected values of {', '.join(self.names)}; missing: {', '.join(missing)}.")
            values = np.stack(np.broadcast_arrays(*(hyperparameters[n] for n in self.names)), -1)
        else:
            values = np.asarray(hyperparameters, dtype=np.float64)
        if values.ndim == 0 or values.shape[-1] != len(self.names):
            raise DataError(
                f"Expected hyperparameters [..., {len(self.names)}] ({', '.join(self.names)}); got shape {values.shape}."
            )
        flat = values.reshape(-1, len(self.names))
        out = self.terms(flat).log_likelihood.reshape(values.shape[:-1])
        return float(out) if out.ndim == 0 else out

    def log_prior(self, values: np.ndarray) -> np.ndarray:
        """Return log p(λ) of ``[..., d]`` hyperparameters, −inf outside the priors."""
        parts = [prior.log_prob(values[..., i]) for i, prior in enumerate(self.priors.values())]
        return np.sum(parts, axis=0)

    def from_unit(self, u: np.ndarray) -> np.ndarray:
        """Return hyperparameters for points of the unit cube ``[..., d]``: each prior's quantiles."""
        return np.stack([p.quantile(u[..., i]) for i, p in enumerate(self.priors.values())], axis=-1)

    def terms(self, values: np.ndarray) -> Terms:
        """Return log L with all that it rests on, for hyperparameters ``[K, d]``."""
        inside = np.isfinite(self.log_prior(values))
        parts = [self._one_block(values[rows]) for rows in self._blocks(np.flatnonzero(inside))]
        out = {}
        blank = {"unguarded": -np.inf, "detected": np.nan, "variance": np.inf}
        for name in ("unguarded", "variance", "least_effective", "detected", "detected_effective"):
            column = np.full(len(values), blank.get(name, 0.0))
            if parts:
                column[inside] = np.concatenate([part[name] for part in parts])
            out[name] = column
        sound = (out["least_effective"] >= self.least_effective) & (
            out["detected_effective"] > PER_EVENT * len(self.events)
        )
        return Terms(log_likelihood=np.where(sound, out["unguarded"], -np.inf), **out)

    def weights(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return log p(θ|λ)/π of every sample, and log w p(θ|λ)/p_draw of every injection, for one λ ``[d]``.

        Of an ensemble, the mean of its members.
        """
        log_p = _mean_of(self._log_prob(values[None], self.events.samples)[:, 0])
        if self.injections is None:
            return log_p - self.events.log_prior, None
        found = _mean_of(self._log_prob(values[None], self.injections.found)[:, 0])
        return log_p - self.events.log_prior, found - self.injections.log_draw + self.injections.log_weight

    def _blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        samples = len(self.events.samples) + (len(self.injections.found) if self.injections else 0)
        each = max(1, BLOCK // samples)
        return [rows[i : i + each] for i in range(0, len(rows), each)]

    def _one_block(self, values: np.ndarray) -> dict[str, np.ndarray]:
        number = len(self.events)
        weights = self._log_prob(values, self.events.samples) - self.events.log_prior
        log_mean, relative = _averages(weights, self.events.starts)  # [members, K, N]
        members = log_mean.sum(-1)
        variance = relative.sum(-1)
        with np.errstate(divide="ignore"):
            least = 1.0 / (relative + 1.0 / self.events.counts()).max(
                -1
            )  # (Σw)²/Σw², at most the number of samples
        detected, effective = np.ones_like(members), np.full(members.shape, np.inf)
        if self.injections is not None:
            found = self._log_prob(values, self.injections.found)
            found = found - self.injections.log_draw + self.injections.log_weight
            ends = np.array([0, len(self.injections.found)])
            log_sum, share = _averages(found, ends, self.injections.drawn)
            detected = np.exp(log_sum[..., 0])
            with np.errstate(divide="ignore"):
                effective = 1.0 / share[..., 0]
            variance = variance + number**2 * share[..., 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.expected is None:
                members = members - number * np.log(detected)
            else:
                happened = np.asarray(self.expected(self._context(values)), dtype=np.float64)
                members = members + number * np.log(happened) - happened * detected
        members = np.where(np.isnan(members), -np.inf, members)
        share = _shares(members)  # of each member in the likelihood
        return {
            "unguarded": _mean_of(members),
            "variance": (share * np.where(share > 0, variance, 0.0)).sum(0),
            "least_effective": np.where(share > 0, least, np.inf).min(0),
            "detected": (share * detected).sum(0),
            "detected_effective": np.where(share > 0, effective, np.inf).min(0),
        }

    def _context(self, values: np.ndarray) -> Table:
        table = {name: values[:, i] for i, name in enumerate(self.names)}
        return table | {name: np.full(len(values), value) for name, value in self.fixed.items()}

    def _log_prob(self, values: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Return log p(θ|λ) as ``[members, K, S]``."""
        context = {name: column[:, None] for name, column in self._context(values).items()}
        with warnings.catch_warnings():
            if self.extrapolates:  # allowed, and said in the posterior's notes
                warnings.simplefilter("ignore")
            given = self.density.given(**context)
        table = {name: samples[None, :, i] for i, name in enumerate(self.events.names)}
        of_members = getattr(given, "log_prob_members", None)
        if of_members is not None:
            return np.asarray(of_members(table))
        return np.asarray(given.log_prob(table))[None]

    def _inject(
        self, detection: Callable[[Table], np.ndarray], wanted: int, rng: np.random.Generator
    ) -> Injections:
        """Draw from the population at hyperparameters all over the prior, and keep what is detected.

        Their density is the mean over those hyperparameters, so that no population under the prior is far from it, and
        ξ(λ) comes out smooth: all λ share the injections.
        """
        values = self.from_unit(_stratified(PROPOSALS, len(self.names), rng))
        context = self._context(values)
        found, drawn = [], 0
        each = max(1, math.ceil(wanted / PROPOSALS))
        names = self.events.names
        while sum(map(len, found)) < wanted and drawn < MOST_DRAWS * wanted:
            draws = self.density.given(**context).sample(each, seed=int(rng.integers(2**31)))
            table = {name: draws[name].reshape(-1) for name in names}
            probability = np.asarray(detection(table), dtype=np.float64)
            if probability.shape != (drawn_now := len(table[names[0]]),):
                raise DataError(f"Expected one detection probability a draw; got shape {probability.shape}.")
            if not ((probability >= 0) & (probability <= 1)).all():
                worst = probability[~((probability >= 0) & (probability <= 1))][0]
                raise DataError(f"Expected detection probabilities between 0 and 1; found {worst:g}.")
            kept = rng.random(drawn_now) < probability
            found.append(np.stack([table[name][kept] for name in names], axis=-1))
            drawn += drawn_now
        samples = np.concatenate(found)
        if not len(samples):
            raise DataError(
                f"None of {drawn} draws from the population was detected: expected a detection probability that is not "
                "zero all over it. Are its units those of the columns?"
            )
        log_draw = np.empty(len(samples))
        rows = max(1, BLOCK // PROPOSALS)
        for start in range(0, len(samples), rows):
            part = slice(start, start + rows)
            log_p = self._log_prob(values, samples[part])
            log_draw[part] = _mean_of(log_p.reshape(-1, log_p.shape[-1]))
        return Injections(names, samples, log_draw, drawn, np.zeros(len(samples)))


#: Hyperparameters that injections are drawn at, and the most draws for each injection wanted.
PROPOSALS, MOST_DRAWS = 64, 200


def _check_names(
    density: Any, events: Events, priors: Mapping[str, Prior], fixed: Mapping[str, float], outside: str
) -> dict[str, tuple[float, float]]:
    """Return the priors' ranges that reach beyond the trained contexts; raise on anything that cannot be."""
    if outside not in ("refuse", "allow"):
        raise DataError(f"Expected outside to be 'refuse' or 'allow'; found {outside!r}.")
    schema = getattr(density, "schema", None)
    beyond: dict[str, tuple[float, float]] = {}
    if not priors:
        raise DataError("Expected a prior for at least one hyperparameter; found none.")
    twice = sorted(set(priors) & set(fixed))
    if twice:
        raise DataError(f"Expected a prior or a fixed value, not both; found both for {', '.join(twice)}.")
    if schema is None:
        return beyond
    if list(events.names) != schema.target_names:
        raise DataError(
            f"Expected samples of the targets {', '.join(schema.target_names)}; found {', '.join(events.names)}."
        )
    known = schema.context_names
    for name in (*priors, *fixed):
        if name not in known:
            raise DataError(
                f"Hyperparameter {name!r} is no context column of the density{nearest(name, known)}"
            )
    missing = [n for n in known if n not in priors and n not in fixed]
    if missing:
        raise DataError(
            f"Expected a prior or a fixed value for every context column; missing: {', '.join(missing)}."
        )
    for name, prior in priors.items():
        low, high = density.context_range.get(name, (-math.inf, math.inf))
        slack = 1e-6 * (high - low) if math.isfinite(high - low) else 0.0
        if prior.low < low - slack or prior.high > high + slack:
            beyond[name] = (low, high)
            if outside == "refuse":
                raise DataError(
                    f"The prior of {name} reaches from {prior.low:g} to {prior.high:g}, but the density was trained on "
                    f"{low:g} to {high:g}: beyond, it is a guess. Narrow the prior, or allow it with outside='allow'."
                )
    return beyond


def _averages(
    log_w: np.ndarray, starts: np.ndarray, number: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log of the mean weight, and its relative variance, over stretches of the last dimension.

    ``number`` is how many weights there are in all, those that are zero and left out included.
    """
    first = starts[:-1]
    count = np.diff(starts) if number is None else np.array([number])
    peak = np.maximum.reduceat(log_w, first, axis=-1)
    spread = np.repeat(np.where(np.isfinite(peak), peak, 0.0), np.diff(starts), axis=-1)
    w = np.exp(log_w - spread)
    total, squares = np.add.reduceat(w, first, axis=-1), np.add.reduceat(w * w, first, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mean = np.where(np.isfinite(peak), peak, 0.0) + np.log(total / count)
        relative = np.where(total > 0, np.maximum(squares / total**2 - 1.0 / count, 0.0), np.inf)
    return log_mean, relative


def _mean_of(log_values: np.ndarray) -> np.ndarray:
    """Return the log of the mean over the first dimension."""
    if len(log_values) == 1:
        return log_values[0]
    peak = log_values.max(0)
    safe = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(divide="ignore"):
        return safe + np.log(np.exp(log_values - safe).mean(0))


def _shares(log_values: np.ndarray) -> np.ndarray:
    """Return each member's share of the sum over the first dimension; equal shares where all are −inf."""
    peak = log_values.max(0)
    w = np.exp(log_values - np.where(np.isfinite(peak), peak, 0.0))
    total = w.sum(0)
    return np.where(total > 0, w / np.where(total > 0, total, 1.0), 1.0 / len(log_values))


def _stratified(number: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Return points of the unit cube, ``[number, dim]``, one in each of so many slices along every axis."""
    slices = np.stack([rng.permutation(number) for _ in range(dim)], axis=-1)
    return (slices + rng.random((number, dim))) / number
