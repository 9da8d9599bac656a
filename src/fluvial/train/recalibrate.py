r"""Fitting the map of a recalibration: maximum likelihood on rows that the flow was not trained on.

Three maps of growing size are tried: shift and scale; a spline as well; shift and scale that depend on the context. Each
is fitted on three quarters of the rows, four times, and stopped where the held-out quarters like it best; a larger map is
taken only where it gains more, beyond one standard error, than the smaller one. If none gains anything beyond two
standard errors, there is nothing to mend, and the map stays the identity: recalibration does not make things worse, but
for what chance allows.

An ensemble has one map for all its members, between each one's bijection and base, fitted to the likelihood of the
mixture: members that are right, each by itself, would be too wide together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluvial.flows.recalibrated import LatentMap

FOLDS = 4
#: Rows that are used at most: the map has tens of numbers.
ROWS = 40_000
#: Stages of a fit, and L-BFGS iterations in each; the held-out rows choose the stage.
STAGES, ITERATIONS, PATIENCE = 12, 4, 3
#: Standard deviation, a priori, of every number of the map.
PRIOR = 0.7
#: Rows for each number of a map that depends on the context, at least.
ROWS_PER_NUMBER = 20

CANDIDATES: tuple[dict[str, Any], ...] = (
    {"bins": 0, "steered": False},
    {"bins": 8, "steered": False},
    {"bins": 8, "steered": True},
)


@dataclass(frozen=True)
class LatentFit:
    """A fitted map.

    Attributes
    ----------
    options : dict or None
        ``bins`` and ``steered`` of the map; ``None`` where there is nothing to mend.
    state : dict
        The numbers of the map.
    gain, gain_error : float
        Mean of log p after less before on held-out rows, in nats per row, and its standard error.
    rows : int
        Rows used.
    """

    options: dict[str, Any] | None
    state: dict[str, Tensor]
    gain: float
    gain_error: float
    rows: int


def fit_latent_map(
    make: Callable[[dict[str, Any]], LatentMap],
    z: Tensor,
    context: Tensor | None,
    log_density: Callable[[Tensor], Tensor],
    *,
    members: Tensor | None = None,
    seed: int = 0,
) -> LatentFit:
    """Choose and fit a :class:`~fluvial.flows.recalibrated.LatentMap`.

    Parameters
    ----------
    make
        Returns a new map for options of :data:`CANDIDATES`.
    z, context
        Latents ``[n, D]`` of the trained flow, and the context ``[n, C]`` that its bijection saw; of an ensemble,
        ``[n, K, D]`` and ``[n, K, C]``.
    log_density
        The base's log-density of every coordinate.
    members
        Of an ensemble, the log-determinants of the K bijections, ``[n, K]``.
    seed
        Decides the folds, and which rows are used if there are more than :data:`ROWS`.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(z), generator=generator)[:ROWS]
    z, context = z[order], None if context is None else context[order]
    look = _Likelihood(log_density, None if members is None else members[order])
    fold = torch.arange(len(z)) % FOLDS
    best: tuple[dict[str, Any], int, Tensor] | None = None
    identity = torch.zeros(len(z))
    for options in CANDIDATES:
        if options["steered"]:
            numbers = 0 if context is None else 2 * z.shape[-1] * context.shape[-1]
            if not numbers or len(z) < ROWS_PER_NUMBER * numbers:
                continue
        stage, gains = _held_out(lambda options=options: make(options), z, context, look, fold)
        ahead, error = _mean(gains - (identity if best is None else best[2]))
        if ahead > (2 if best is None else 1) * error:
            best = options, stage, gains
    if best is None:
        return LatentFit(None, {}, 0.0, 0.0, len(z))
    options, stage, gains = best
    latent_map = make(options)
    for _ in _stages(latent_map, z, context, look, stage + 1):
        pass
    state = {name: value.detach().clone() for name, value in latent_map.state_dict().items()}
    return LatentFit(options, state, *_mean(gains), len(z))


@dataclass(frozen=True)
class _Likelihood:
    """log p of every row but for what the map does not change."""

    log_density: Callable[[Tensor], Tensor]
    members: Tensor | None

    def at(self, rows: Tensor) -> _Likelihood:
        return _Likelihood(self.log_density, None if self.members is None else self.members[rows])

    def __call__(self, latent_map: LatentMap | None, z: Tensor, context: Tensor | None) -> Tensor:
        """Return that of the mapped latents; with no map, that of the identity."""
        if latent_map is None:
            each = self.log_density(z).sum(-1)
        else:
            out, log_slope = latent_map.forward_elementwise(z, context)
            each = (self.log_density(out) + log_slope).sum(-1)
        return each if self.members is None else (each + self.members).logsumexp(-1)


def _held_out(
    make: Callable[[], LatentMap],
    z: Tensor,
    context: Tensor | None,
    look: _Likelihood,
    fold: Tensor,
) -> tuple[int, Tensor]:
    """Return the best stage, and the gain in log p of every row where it was held out, at that stage."""
    history = [torch.zeros(len(z)) for _ in range(STAGES)]
    before = look(None, z, context)
    for k in range(FOLDS):
        inside, outside = fold != k, fold == k
        latent_map = make()
        seen = None if context is None else context[inside]
        kept = None if context is None else context[outside]
        best, since = -math.inf, 0
        for stage in _stages(latent_map, z[inside], seen, look.at(inside), STAGES):
            with torch.no_grad():
                gain = look.at(outside)(latent_map, z[outside], kept) - before[outside]
            for later in history[stage:]:  # a fold that has stopped counts with what it had
                later[outside] = gain
            mean = float(gain.mean())
            best, since = (mean, 0) if mean > best else (best, since + 1)
            if since >= PATIENCE:
                break
    means = [float(h.mean()) for h in history]
    stage = max(range(STAGES), key=means.__getitem__)
    return stage, history[stage]


def _stages(
    latent_map: LatentMap,
    z: Tensor,
    context: Tensor | None,
    look: _Likelihood,
    stages: int,
):
    """Yield the number of every stage after it is done."""
    parameters = [p for p in latent_map.parameters() if p.requires_grad]
    optimiser = torch.optim.LBFGS(parameters, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        prior = sum(p.square().sum() for p in parameters) / (2 * PRIOR**2 * len(z))
        loss = prior - look(latent_map, z, context).mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        for stage in range(stages):
            optimiser.step(closure)  # type: ignore[arg-type]
            yield stage


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))
