r"""Hamiltonian Monte Carlo over hyperparameters: pyro's no-U-turn sampler on the gradients of the flow.

The chain moves in y with :math:`u = 1 / (1 + e^{-y})` in the unit cube and :math:`\lambda = Q(u)`, the priors'
quantiles; the potential is :math:`-\log L(\lambda) - \sum \log u (1 - u)`.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fluvial.errors import DataError
from fluvial.extras import optional_module
from fluvial.infer.population import PopulationLikelihood
from fluvial.infer.priors import LogUniform, Prior, Uniform

if TYPE_CHECKING:
    from fluvial.infer.posterior import Drawn


def log_likelihood_tensor(likelihood: PopulationLikelihood, values: Tensor) -> Tensor:
    """Return log L at one set of hyperparameters ``[d]``, with its gradient; the guard on effective samples left out.

    Raises
    ------
    DataError
        If the density has no gradients, is an ensemble, or the number of events is predicted as well.
    """
    density, events = likelihood.density, likelihood.events
    if not hasattr(density, "log_prob_tensor"):
        raise DataError("NUTS needs a density with gradients (log_prob_tensor); take emcee.")
    if likelihood.expected is not None or len(getattr(density, "members", (0,))) > 1:
        raise DataError("NUTS takes no ensemble and no predicted number of events; take emcee.")
    names = list(density.schema.context_names)
    parts = [
        values[likelihood.names.index(n)] if n in likelihood.names else values.new_tensor(likelihood.fixed[n])
        for n in names
    ]
    context = torch.stack(parts)

    def log_p(samples: np.ndarray) -> Tensor:
        x = torch.as_tensor(samples, dtype=values.dtype)
        return density.log_prob_tensor(x, context.expand(len(x), -1))

    weights = log_p(events.samples) - torch.as_tensor(events.log_prior, dtype=values.dtype)
    total = values.new_zeros(())
    for part in weights.split(events.counts().tolist()):
        total = total + torch.logsumexp(part, 0) - math.log(len(part))
    found = likelihood.injections
    if found is not None:
        share = log_p(found.found) + torch.as_tensor(found.log_weight - found.log_draw, dtype=values.dtype)
        total = total - len(events) * (torch.logsumexp(share, 0) - math.log(found.drawn))
    return total


def draw_nuts(
    likelihood: PopulationLikelihood, start: np.ndarray, draws: int, rng: np.random.Generator
) -> Drawn:
    """Draw points of the unit cube by pyro's NUTS, from the best of ``start``, after half as many steps of warm-up."""
    from fluvial.infer.posterior import Drawn

    pyro: Any = optional_module("pyro", "pyro")
    mcmc: Any = optional_module("pyro.infer", "pyro")
    pyro.set_rng_seed(int(rng.integers(2**31)))
    priors = list(likelihood.priors.values())

    def potential(parameters: dict[str, Tensor]) -> Tensor:
        y = parameters["y"]
        u = torch.sigmoid(y)
        values = torch.stack([_quantile(prior, part) for prior, part in zip(priors, u, strict=True)])
        jacobian = torch.nn.functional.logsigmoid(y) + torch.nn.functional.logsigmoid(-y)
        return -(log_likelihood_tensor(likelihood, values) + jacobian.sum())

    begin = torch.as_tensor(np.clip(start[0], 0.02, 0.98), dtype=torch.float64)
    kernel = mcmc.NUTS(potential_fn=potential)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's tracing inside pyro
        run = mcmc.MCMC(
            kernel,
            num_samples=draws,
            warmup_steps=max(100, draws // 2),
            initial_params={"y": torch.logit(begin)},
            disable_progbar=True,
        )
        run.run()
    chain = run.get_samples(group_by_chain=True)["y"]
    found = run.diagnostics()
    effective = float(found["y"]["n_eff"].min())
    divergent = sum(map(len, found["divergences"].values()))
    notes = [f"NUTS had {divergent} divergent steps: its posterior may be biased."] if divergent else []
    return Drawn(torch.sigmoid(chain[0]).numpy(), notes, {"effective_draws": effective})


def _quantile(prior: Prior, u: Tensor) -> Tensor:
    """Return a prior's quantile with its gradient."""
    if isinstance(prior, Uniform):
        return prior.low + (prior.high - prior.low) * u
    if isinstance(prior, LogUniform):
        return prior.low * (prior.high / prior.low) ** u
    ends = torch.special.ndtr((torch.tensor([prior.low, prior.high]).to(u) - prior.mean) / prior.width)
    p = ends[0] + (ends[1] - ends[0]) * u
    return prior.mean + prior.width * torch.special.ndtri(p.clamp(1e-15, 1 - 1e-15))
