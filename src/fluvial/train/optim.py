r"""The optimiser, how its learning rate moves over the budget, and averages of weights.

A schedule is a pure function of how much of the budget is spent, :math:`t \in [0, 1]`: so it is the same whether the
budget is epochs, steps or minutes, and a fit that is resumed is where it was.

=================== ==================================================================================================
``cosine``          :math:`\frac12 (1 + \cos \pi t)`: falls to zero (Loshchilov & Hutter 2017, arXiv:1608.03983)
``constant``        1
``cosine-restarts`` that cosine several times over, each over an equal share (SGDR, the same paper)
``one-cycle``       rises for 30 % of the budget from 1/25, then falls along a cosine (Smith & Topin 2017,
                    arXiv:1708.07120); it is its own warm-up
``plateau``         1, halved whenever the metric has not improved for some epochs
=================== ==================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.train.options import Schedule, TrainingOptions

#: Where a rate begins to rise, and the share of the budget that one-cycle rises for.
_FIRST, _ONE_CYCLE_RISE, _ONE_CYCLE_FIRST = 0.01, 0.3, 1 / 25


def make_optimizer(
    parameters: Iterable[nn.Parameter], options: TrainingOptions, rate: float
) -> torch.optim.Optimizer:
    """Return Adam (weight decay as an L2 penalty) or AdamW (decoupled from the gradient), all weights in one kernel."""
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, weight_decay=options.weight_decay, fused=True)


def rate_factor(schedule: Schedule, progress: float, *, warmup: float = 0.0, cycles: int = 4) -> float:
    """Return the factor on the learning rate when so much of the budget is spent: a linear rise, then the schedule.

    >>> [round(rate_factor("cosine", t, warmup=0.2), 3) for t in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.01, 0.5, 1.0, 0.5, 0.0]
    >>> [round(rate_factor("cosine-restarts", t, cycles=2), 3) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [1.0, 0.5, 1.0, 0.5, 0.0]
    >>> [round(rate_factor("one-cycle", t), 3) for t in (0.0, 0.15, 0.3, 0.65, 1.0)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    if schedule == "one-cycle":
        if progress < _ONE_CYCLE_RISE:
            return _ONE_CYCLE_FIRST + (1 - _ONE_CYCLE_FIRST) * progress / _ONE_CYCLE_RISE
        return _half_cosine((progress - _ONE_CYCLE_RISE) / (1 - _ONE_CYCLE_RISE))
    if progress < warmup:
        return max(progress / warmup, _FIRST)
    if schedule in ("constant", "plateau"):
        return 1.0
    along = (progress - warmup) / max(1 - warmup, 1e-9)
    if schedule == "cosine-restarts" and along < 1:
        along = math.fmod(along * cycles, 1.0)
    return _half_cosine(along)


def _half_cosine(along: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(along, 1.0)))


def batches_in_a_step(growth: int, progress: float) -> int:
    """Return how many batches make one step: powers of two up to ``growth``, each for an equal share of the budget.

    More rows in a step do what a smaller learning rate does (Smith, Kindermans, Ying & Le 2018, arXiv:1711.00489), in
    fewer and larger steps.

    >>> [batches_in_a_step(8, t) for t in (0.0, 0.24, 0.25, 0.5, 0.9, 1.0)]
    [1, 1, 2, 4, 8, 8]
    """
    doublings = int(math.log2(growth))
    return int(2 ** min(int(progress * (doublings + 1)), doublings))


class Average:
    r"""The exponential moving average of weights, :math:`\bar w \leftarrow \beta \bar w + (1 - \beta) w` each step.

    :math:`\beta` is ``decay``, less in the first steps, :math:`(1 + n) / (10 + n)`, so that the start is soon forgotten.
    Buffers are not averaged.
    """

    def __init__(self, flow: nn.Module, decay: float):
        self.decay = decay
        self._flow = flow
        self.weights = {name: p.detach().clone() for name, p in flow.named_parameters()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the flow's present weights, after so many steps."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        now = dict(self._flow.named_parameters())
        for name, average in self.weights.items():
            average.lerp_(now[name], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the flow's state with the averages in place of its weights."""
        return copy_of(self._flow) | {name: w.clone() for name, w in self.weights.items()}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take averages made before."""
        for name, own in self.weights.items():
            own.copy_(weights[name])


def copy_of(flow: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in flow.state_dict().items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimiser remembers of each weight, as ``NUMBER.NAME``: copies."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": v.detach().clone() for i, memory in state.items() for name, v in memory.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give back what :func:`optimizer_tensors` returned."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
