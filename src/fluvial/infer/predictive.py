"""Posterior predictive checks of a population: would the population inferred have given events like those seen?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fluvial.infer.population import PopulationLikelihood
from fluvial.infer.posterior import PopulationPosterior

#: What is compared, by name: a number of the values ``[N]`` of one target.
STATISTICS = {
    "mean": np.mean,
    "standard deviation": np.std,
    "5 % quantile": lambda v: np.quantile(v, 0.05),
    "median": np.median,
    "95 % quantile": lambda v: np.quantile(v, 0.95),
}


#: Catalogues drawn at one posterior draw: the density is what takes time.
EACH = 8


@dataclass(frozen=True)
class Predictive:
    """Catalogues of N events, one for each of T posterior draws.

    Attributes
    ----------
    names : tuple of str
        The targets.
    observed : numpy.ndarray
        ``[T, N, D]``: of every event one sample, as likely as the population makes it.
    predicted : numpy.ndarray
        ``[T, N, D]``: N detected draws of the population.
    """

    names: tuple[str, ...]
    observed: np.ndarray
    predicted: np.ndarray

    def p_values(self) -> dict[str, dict[str, float]]:
        """Return for each target and statistic the share of catalogues in which the predicted one is the larger.

        Near 0 or 1 the population cannot have given the events. A share of ties counts half.
        """
        out: dict[str, dict[str, float]] = {}
        for j, name in enumerate(self.names):
            out[name] = {}
            for what, statistic in STATISTICS.items():
                seen = np.array([statistic(v) for v in self.observed[:, :, j]])
                made = np.array([statistic(v) for v in self.predicted[:, :, j]])
                out[name][what] = float(((made > seen) + 0.5 * (made == seen)).mean())
        return out


def predictive(
    likelihood: PopulationLikelihood, posterior: PopulationPosterior, *, catalogues: int = 200, seed: int = 0
) -> Predictive:
    """Return observed and predicted catalogues at posterior draws.

    With selection, predicted events are injections, weighted to the population; without, draws of the density.
    """
    rng = np.random.default_rng(seed)
    number, events = len(likelihood.events), likelihood.events
    values = np.repeat(
        posterior.samples[rng.choice(len(posterior.samples), -(-catalogues // EACH))], EACH, axis=0
    )
    observed = np.empty((catalogues, number, len(events.names)))
    predicted = np.empty_like(observed)
    log_w, found = np.empty(0), None
    for t, value in enumerate(values[:catalogues]):
        if t % EACH == 0:
            log_w, found = likelihood.weights(value)
        # The largest of log w + Gumbel noise is a draw with probability proportional to w.
        noisy = log_w + rng.gumbel(size=len(log_w))
        best = [
            a + int(np.argmax(noisy[a:b])) for a, b in zip(events.starts[:-1], events.starts[1:], strict=True)
        ]
        observed[t] = events.samples[best]
        if found is not None:
            assert likelihood.injections is not None
            w = np.exp(found - found.max())
            predicted[t] = likelihood.injections.found[rng.choice(len(w), number, p=w / w.sum())]
        else:
            context = dict(zip(likelihood.names, value, strict=True)) | likelihood.fixed
            draws = likelihood.density.given(**context).sample(number, seed=int(rng.integers(2**31)))
            predicted[t] = np.stack([draws[name] for name in events.names], axis=-1)
    return Predictive(events.names, observed, predicted)
