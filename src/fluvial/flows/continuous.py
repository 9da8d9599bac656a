r"""Continuous flows: the latent is carried to the target by an ordinary differential equation.

With a base draw z at time 0 and a target x at time 1, flow matching (Lipman et al. 2023, arXiv:2210.02747, with the
optimal-transport path of their eqs. 20–23 at :math:`\sigma_{\min} = 0`) joins the two by a straight line,

.. math:: x_t = (1 - t)\, z + t\, x, \qquad \dot x_t = x - z

and fits a velocity v to it by plain regression, without ever solving the equation:

.. math:: \mathcal L = \mathbb E_{t, z, (x, c)} \lVert v(x_t, t, c) - (x - z) \rVert^2 / D .

Its minimum is the mean velocity at :math:`x_t`, and :math:`\dot x = v(x, t, c)` then carries p(z) to p(x | c). A draw solves
that equation from 0 to 1; the density solves it backwards, and multiplies the determinants of its steps.

**The log-determinant is that of the map that is used**, not of the equation that it approximates: every step of the solver
is differentiated exactly, by D forward-mode products a stage, and the determinant of the step is taken. So the density
integrates to one whatever the number of steps, as long as each step is one-to-one. Only that backward and forward solutions
undo each other holds to the tolerance of the solver, O(steps⁻⁴).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from fluvial.core import Bijection
from fluvial.flows.flow import ConditionalFlow, FlowDistribution
from fluvial.flows.transformer import check_sizes
from fluvial.nets import MLP

#: The velocity is squashed smoothly to ± this many standard deviations per unit of time.
SPEED_LIMIT = 100.0
#: Rows times tangents that pass through the network at once.
CHUNK = 8192
#: Steps from one irrational number to the next spread the times of a batch evenly: 1/φ, the golden ratio.
_GOLDEN = (math.sqrt(5) - 1) / 2


class Velocity(nn.Module):
    r"""The velocity v(x, t, c): a perceptron of x, of :math:`\cos k\pi t, \sin k\pi t`, and of the context.

    Bounded, and with a bounded slope in x, so that the solution exists and is finite wherever it starts. Zero at the start.
    """

    def __init__(self, dim: int, context: int, *, frequencies: int = 4, **network):
        super().__init__()
        self.frequencies = frequencies
        self.network = MLP(dim + 2 * frequencies, context, dim, **network)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """Return the velocity ``[*batch, D]`` at ``x: [*batch, D]`` and ``time: [*batch, 1]`` or ``[1]``."""
        k = torch.arange(1, self.frequencies + 1, dtype=x.dtype, device=x.device)
        phase = (math.pi * k * time).expand(*x.shape[:-1], self.frequencies)
        raw = self.network(torch.cat((x, phase.cos(), phase.sin()), -1), context)
        return raw * torch.rsqrt(1 + (raw / SPEED_LIMIT).square())


class Transport(Bijection):
    """The solution of dx/dt = v(x, t, c) from time 1 (the target) to time 0 (the latent), and back.

    Runge and Kutta's classical method of fourth order, with steps of equal length.

    Parameters
    ----------
    dim, context : int
        Numbers of coordinates and of context columns.
    solver_steps : int
        Steps of the solver, four evaluations of the network each. May be changed after training.
    **network
        Of the velocity; see :class:`fluvial.nets.MLP`.
    """

    def __init__(self, dim: int, context: int, *, solver_steps: int = 12, **network):
        super().__init__()
        self.solver_steps = solver_steps
        self.velocity = Velocity(dim, context, **network)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Carry targets back to latents."""
        return self._carry_chunks(x, context, 1.0, 0.0)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Carry latents to targets."""
        return self._carry_chunks(z, context, 0.0, 1.0)

    def draw(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Carry latents to targets as :meth:`inverse` does, without the log-determinant: D + 1 times less work."""
        for time, step in self._steps(0.0, 1.0):
            z = z + step * _mean_slope(*self._stages(z, time, step, context))
        return z

    def _steps(self, start: float, end: float) -> list[tuple[float, float]]:
        """Return the time at which every step begins, and its signed length."""
        step = (end - start) / self.solver_steps
        return [(start + i * step, step) for i in range(self.solver_steps)]

    def _carry_chunks(
        self, x: Tensor, context: Tensor | None, start: float, end: float
    ) -> tuple[Tensor, Tensor]:
        """Solve from one time to the other with the log-determinant, a few rows at a time."""
        batch, dim = x.shape[:-1], x.shape[-1]
        if x.numel() == 0:
            return x, x.sum(-1)
        rows = x.reshape(-1, dim).split(max(CHUNK // (dim + 1), 1))
        contexts = [None] * len(rows)
        if context is not None:
            contexts = context.expand(*batch, -1).reshape(-1, context.shape[-1]).split(len(rows[0]))
        parts = [self._carry(a, b, start, end) for a, b in zip(rows, contexts, strict=True)]
        y, logdet = (torch.cat(p) for p in zip(*parts, strict=True))
        return y.reshape(*batch, dim), logdet.reshape(batch)

    def _carry(self, x: Tensor, context: Tensor | None, start: float, end: float) -> tuple[Tensor, Tensor]:
        unit = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        logdet = x.new_zeros(x.shape[:-1])
        for time, step in self._steps(start, end):
            slopes, jacobians = self._stages_and_jacobians(x, time, step, context)
            x = x + step * _mean_slope(*slopes)
            logdet = logdet + torch.linalg.slogdet(unit + step * _mean_slope(*jacobians)).logabsdet
        return x, logdet

    def _stages(self, x: Tensor, time: float, step: float, context: Tensor | None) -> tuple[Tensor, ...]:
        """Return the four slopes of one step."""
        k1 = self._velocity(x, time, context)
        k2 = self._velocity(x + step / 2 * k1, time + step / 2, context)
        k3 = self._velocity(x + step / 2 * k2, time + step / 2, context)
        k4 = self._velocity(x + step * k3, time + step, context)
        return k1, k2, k3, k4

    def _stages_and_jacobians(
        self, x: Tensor, time: float, step: float, context: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the four slopes of one step, and their derivatives ``[n, D, D]`` with respect to its start."""
        slopes: list[Tensor] = []
        jacobians: list[Tensor] = []
        for share in (0.0, 0.5, 0.5, 1.0):
            at = x + share * step * slopes[-1] if share else x
            k, local = self._velocity_and_jacobian(at, time + share * step, context)
            slopes.append(k)
            jacobians.append(local + share * step * local @ jacobians[-1] if share else local)
        return slopes, jacobians

    def _velocity(self, x: Tensor, time: float, context: Tensor | None) -> Tensor:
        return self.velocity(x, x.new_full((1,), time), context)

    def _velocity_and_jacobian(self, x: Tensor, time: float, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return v and dv/dx ``[n, D, D]``, by one forward-mode product for every coordinate."""

        def along(direction: Tensor) -> tuple[Tensor, Tensor]:
            return jvp(lambda y: self._velocity(y, time, context), (x,), (direction.expand_as(x),))

        unit = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return vmap(along, out_dims=(None, -1))(unit)


def _mean_slope(k1: Tensor, k2: Tensor, k3: Tensor, k4: Tensor) -> Tensor:
    """Return the slope with which Runge and Kutta's fourth-order step goes."""
    return (k1 + 2 * (k2 + k3) + k4) / 6


class ContinuousFlow(ConditionalFlow):
    """Continuous flow trained by flow matching: a free-form network, few steps to train, many passes to draw.

    Parameters
    ----------
    targets, context : int
        Numbers of targets and of context columns.
    solver_steps : int
        Steps of the differential equation's solver, four passes of the network each. It plays no part in training.
    width, depth, residual, activation, gate, dropout
        The network of the velocity; see :class:`fluvial.nets.MLP`.
    """

    loss_is_nll = False
    validation_rows = 2000
    bijection: Transport

    def __init__(
        self,
        targets: int,
        context: int = 0,
        *,
        solver_steps: int = 12,
        width: int = 128,
        depth: int = 3,
        residual: bool = False,
        activation: str = "silu",
        gate: bool = False,
        dropout: float = 0.0,
    ):
        check_sizes(targets=targets, context=context, solver_steps=solver_steps, width=width, depth=depth)
        network = {
            "width": width, "depth": depth, "residual": residual, "activation": activation, "gate": gate,
            "dropout": dropout,
        }  # fmt: skip
        transport = Transport(targets, context, solver_steps=solver_steps, **network)
        super().__init__(transport, targets=targets, context=context)

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Return p(x | context); its draws skip the log-determinant."""
        return _ContinuousDistribution(self, self.checked(context))

    def loss(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean square of what the velocity misses, per target: 1 + 1 for a standard normal target at v = 0.

        The times of a batch are a golden-ratio sequence from a random start: each is uniform, together they are spread
        evenly, which takes most of the noise of t out of the gradient.
        """
        like = {"dtype": x.dtype, "device": x.device}
        context = self.checked(context)
        start = torch.rand((), generator=generator, **like)
        time = ((start + _GOLDEN * torch.arange(len(x), dtype=torch.float64, device=x.device)) % 1).to(x.dtype)[:, None]
        z = torch.randn(x.shape, generator=generator, **like)
        missed = self.bijection.velocity((1 - time) * z + time * x, time, context) - (x - z)
        return missed.square().mean()


class _ContinuousDistribution(FlowDistribution):
    """p(x | context) of a continuous flow."""

    flow: ContinuousFlow

    def expand(self, batch_shape, _instance=None) -> FlowDistribution:
        """Return the distribution with its context expanded to ``batch_shape``."""
        context = self.context
        return self if context is None else _ContinuousDistribution(self.flow, context.expand(*batch_shape, -1))

    def rsample(
        self, sample_shape: torch.Size | tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``[*sample_shape, *batch, D]`` with gradients."""
        z, context = self._latent(sample_shape, generator)
        return self.flow.bijection.draw(z, context)

    def sample(
        self, sample_shape: torch.Size | tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``[*sample_shape, *batch, D]`` without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator=generator)
