"""Normalisation as a bijection: batch norm and act norm between the steps of a flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fluvial.core.bijection import Bijection

#: Log-scales of a normalisation are squashed to ± this number.
LOG_SCALE_LIMIT = 6.0


class ActNorm(Bijection):
    r"""One shift and one scale for each coordinate, :math:`z = (x + b)\, e^{s}`, started from the first training batch.

    On the first forward pass in training mode, b and s are set so that every coordinate of z has mean 0 and
    variance 1 over that batch; from then on they are ordinary parameters. (Kingma & Dhariwal 2018, arXiv:1807.03039,
    section 3.1.)
    """

    started: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalise."""
        if self.training and not self.started:
            self._start(x)
        s = _squash(self.log_scale)
        return (x + self.shift) * s.exp(), s.sum().expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo the normalisation."""
        s = _squash(self.log_scale)
        return z * (-s).exp() - self.shift, (-s.sum()).expand(z.shape[:-1])

    def _start(self, x: Tensor) -> None:
        with torch.no_grad():
            rows = x.reshape(-1, x.shape[-1])
            if len(rows) < 2:
                return
            scale = rows.std(0).clamp(min=1e-3)
            self.shift.copy_(-rows.mean(0))
            wanted = -scale.log()
            # the inverse of the squashing, so that the effective log-scale is the wanted one
            limited = wanted.clamp(-0.9 * LOG_SCALE_LIMIT, 0.9 * LOG_SCALE_LIMIT)
            self.log_scale.copy_(LOG_SCALE_LIMIT * torch.atanh(limited / LOG_SCALE_LIMIT))
            self.started.fill_(True)


class BatchNorm(Bijection):
    r"""Batch normalisation as a bijection, with learned shift and scale (Papamakarios et al. 2017, eqs. 19–21).

    In training mode ``forward`` normalises by the mean and variance of the batch, and keeps running averages of
    both; in evaluation mode, and in ``inverse`` always, the running averages stand in. Only in evaluation mode
    is it a pure map.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int, *, momentum: float = 0.1, floor: float = 1e-5):
        super().__init__()
        self.momentum, self.floor = momentum, floor
        self.shift = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalise by the batch (training) or by the running averages (evaluation)."""
        mean, variance = self.mean, self.variance
        rows = x.reshape(-1, x.shape[-1])
        if self.training and len(rows) > 1:
            mean, variance = rows.mean(0), rows.var(0)
            with torch.no_grad():
                self.mean.lerp_(mean, self.momentum)
                self.variance.lerp_(variance, self.momentum)
        log_slope = _squash(self.log_scale) - 0.5 * (variance + self.floor).log()
        return (x - mean) * log_slope.exp() + self.shift, log_slope.sum().expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo the normalisation by the running averages."""
        log_slope = _squash(self.log_scale) - 0.5 * (self.variance + self.floor).log()
        return (z - self.shift) * (-log_slope).exp() + self.mean, (-log_slope.sum()).expand(z.shape[:-1])


def _squash(log_scale: Tensor) -> Tensor:
    return LOG_SCALE_LIMIT * torch.tanh(log_scale / LOG_SCALE_LIMIT)
