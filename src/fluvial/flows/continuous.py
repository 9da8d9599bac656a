r"""Continuous flows: the latent is carried to the target by an ordinary differential equation.

With a base draw z at time 0 and a target x at time 1, flow matching (Lipman et al. 2023, arXiv:2210.02747, with the
optimal-transport path of their eqs. 20–23 at :math:`\sigma_{\min} = 0`) joins the two by a straight line,

.. math:: x_t = (1 - t)\, z + t\, x, \qquad \dot x_t = x - z

and fits a velocity v to it by plain regression, without ever solving the equation:

.. math:: \mathcal L = \mathbb E_{t, z, (x, c)} \lVert v(x_t, t, c) - (x - z) \rVert^2 / D .

Its minimum is the mean velocity at :math:`x_t`, and :math:`\dot x = v(x, t, c)` then carries p(z) to p(x | c). A
draw solves that equation from 0 to 1; the density solves it backwards, and multiplies the determinants of its steps.

**The log-determinant is that of the map that is used**, not of the equation that it approximates: every step of the
solver is differentiated exactly, by D forward derivatives a stage, and the determinant of the step is taken. So the
density integrates to one whatever the number of steps, as long as each step is one-to-one. Only that backward and
forward solutions undo each other holds to the tolerance of the solver, O(steps⁻⁴).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.types import _size

from fluvial.core import Bijection
from fluvial.flows.flow import ConditionalFlow, FlowDistribution, weighted_mean
from fluvial.flows.transformer import check_sizes
from fluvial.nets.mlp import INPUT_RANGE, draw_in

#: The velocity is squashed smoothly to ± this many standard deviations per unit of time.
SPEED_LIMIT = 100.0
#: Rows times tangents that pass through the network at once.
CHUNK = 8192
#: Where in a step of Runge and Kutta's method its four slopes are taken.
STAGES = (0.0, 0.5, 0.5, 1.0)
#: Time enters the network as this many cosines and sines.
FREQUENCIES = 4
#: Steps from one irrational number to the next spread the times of a batch evenly: 1/φ, the golden ratio.
_GOLDEN = (math.sqrt(5) - 1) / 2


class Velocity(nn.Module):
    r"""The velocity v(x, t, c): a perceptron of x, of :math:`\cos k\pi t, \sin k\pi t`, and of the context.

    Bounded, and with a bounded slope in x, so that the solution exists and is finite wherever it starts. A new one is
    zero everywhere. It carries derivatives with respect to x along with the values, layer by layer.

    Parameters
    ----------
    dim, context : int
        Numbers of coordinates and of context columns.
    width, depth : int
        Units of a hidden layer, and number of hidden layers (residual: of blocks with two layers each).
    residual : bool
        Residual blocks instead of plain layers.
    activation : str
        One of ``silu``, ``elu``, ``tanh``: smooth, as a solver wants them.
    """

    def __init__(
        self,
        dim: int,
        context: int,
        *,
        width: int = 128,
        depth: int = 3,
        residual: bool = False,
        activation: str = "silu",
    ):
        super().__init__()
        if activation not in SMOOTH:
            raise ValueError(f"Expected activation to be one of {', '.join(SMOOTH)}; got {activation!r}.")
        self.activation = SMOOTH[activation]
        self.residual = residual
        self.from_x = nn.Linear(dim, width)
        self.from_time = nn.Linear(2 * FREQUENCIES, width, bias=False)
        self.from_context = nn.Linear(context, width, bias=False) if context else None
        self.hidden = nn.ModuleList(
            nn.Linear(width, width) for _ in range(2 * depth if residual else depth - 1)
        )
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def steer(self, context: Tensor | None) -> Tensor | None:
        """Return what the context adds to the first layer ``[*batch, width]``: once a solution, not once a stage."""
        return None if self.from_context is None else self.from_context(context)

    def forward(self, x: Tensor, time: Tensor, steer: Tensor | None) -> Tensor:
        """Return the velocity ``[*batch, D]`` at ``x: [*batch, D]`` and ``time: [*batch, 1]`` or ``[1]``."""
        return self._evaluate(x, time, steer, None)[0]

    def with_jacobian(self, x: Tensor, time: Tensor, steer: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the velocity, and its derivative ``[*batch, D, D]`` with ∂v_i / ∂x_j at ``[..., i, j]``."""
        v, along = self._evaluate(x, time, steer, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device))
        assert along is not None
        return v, along.mT

    def _evaluate(
        self, x: Tensor, time: Tensor, steer: Tensor | None, along: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return v and, with ``along: [D, D]`` directions, ``[*batch, directions, D]`` its derivative along each."""
        k = math.pi * torch.arange(1, FREQUENCIES + 1, dtype=x.dtype, device=x.device)
        waves = torch.cat(((k * time).cos(), (k * time).sin()), -1)
        drawn = draw_in(x)
        if along is not None:
            # d/dx of x / √(1 + (x/B)²) is that root to the power −3
            along = along * torch.rsqrt(1 + (x / INPUT_RANGE).square()).pow(3)[..., None, :]
        h, along = _layer(self.from_x, drawn, along)
        h = h + self.from_time(waves)
        h = h if steer is None else h + steer
        if self.residual:
            for first, second in zip(self.hidden[::2], self.hidden[1::2], strict=True):
                inner, inner_along = _layer(first, *_bend(self.activation, h, along))
                out, out_along = _layer(second, *_bend(self.activation, inner, inner_along))
                h = h + out
                along = None if along is None or out_along is None else along + out_along
        else:
            for layer in self.hidden:
                h, along = _layer(layer, *_bend(self.activation, h, along))
        raw, along = _layer(self.last, *_bend(self.activation, h, along))
        shrink = torch.rsqrt(1 + (raw / SPEED_LIMIT).square())
        return raw * shrink, None if along is None else along * shrink.pow(3)[..., None, :]


def _layer(layer: nn.Module, h: Tensor, along: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return a linear layer's output and the derivative of it."""
    return layer(h), None if along is None else along @ layer.weight.mT  # type: ignore[operator, union-attr]


def _bend(
    activation: Callable[[Tensor], tuple[Tensor, Tensor]], h: Tensor, along: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return an activation's output and the derivative of it."""
    value, slope = activation(h)
    return value, None if along is None else along * slope[..., None, :]


def _silu(h: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(h)
    return h * s, s * (1 + h * (1 - s))


def _elu(h: Tensor) -> tuple[Tensor, Tensor]:
    below = torch.exp(h.clamp(max=0))
    return torch.where(h > 0, h, below - 1), below


def _tanh(h: Tensor) -> tuple[Tensor, Tensor]:
    t = torch.tanh(h)
    return t, 1 - t.square()


#: Activations with their slopes.
SMOOTH = {"silu": _silu, "elu": _elu, "tanh": _tanh}


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
        Of the :class:`Velocity`.
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
        steer = self.velocity.steer(context)
        for time, step in self._steps(0.0, 1.0):
            slopes: list[Tensor] = []
            for share in STAGES:
                at = z + share * step * slopes[-1] if share else z
                slopes.append(self.velocity(at, z.new_full((1,), time + share * step), steer))
            z = z + step * _mean_slope(slopes)
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
        contexts: Sequence[Tensor | None] = [None] * len(rows)
        if context is not None:
            contexts = context.expand(*batch, -1).reshape(-1, context.shape[-1]).split(len(rows[0]))
        parts = [self._carry(a, b, start, end) for a, b in zip(rows, contexts, strict=True)]
        y, logdet = (torch.cat(p) for p in zip(*parts, strict=True))
        return y.reshape(*batch, dim), logdet.reshape(batch)

    def _carry(self, x: Tensor, context: Tensor | None, start: float, end: float) -> tuple[Tensor, Tensor]:
        steer = self.velocity.steer(context)
        unit = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        logdet = x.new_zeros(x.shape[:-1])
        for time, step in self._steps(start, end):
            slopes: list[Tensor] = []
            jacobians: list[Tensor] = []  # of the slopes, with respect to the start of the step: [n, D, D]
            for share in STAGES:
                at = x + share * step * slopes[-1] if share else x
                v, local = self.velocity.with_jacobian(at, x.new_full((1,), time + share * step), steer)
                slopes.append(v)
                jacobians.append(local + share * step * (local @ jacobians[-1]) if share else local)
            x = x + step * _mean_slope(slopes)
            logdet = logdet + torch.linalg.slogdet(unit + step * _mean_slope(jacobians)).logabsdet
        return x, logdet


def _mean_slope(stages: list[Tensor]) -> Tensor:
    """Return the slope with which Runge and Kutta's fourth-order step goes."""
    k1, k2, k3, k4 = stages
    return (k1 + 2 * (k2 + k3) + k4) / 6


class ContinuousFlow(ConditionalFlow):
    """Continuous flow trained by flow matching: a free-form network, cheap steps to train, many passes to draw.

    Parameters
    ----------
    targets, context : int
        Numbers of targets and of context columns.
    solver_steps : int
        Steps of the differential equation's solver, four passes of the network each. It plays no part in training.
    width, depth, residual, activation
        The network of the :class:`Velocity`; activations are ``silu``, ``elu``, ``tanh``.
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
    ):
        check_sizes(targets=targets, context=context, solver_steps=solver_steps, width=width, depth=depth)
        transport = Transport(
            targets,
            context,
            solver_steps=solver_steps,
            width=width,
            depth=depth,
            residual=residual,
            activation=activation,
        )
        super().__init__(transport, targets=targets, context=context)

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Return p(x | context); its draws skip the log-determinant."""
        return _ContinuousDistribution(self, self.checked(context))

    def loss(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the mean square of what the velocity misses, per target: 1 + 1 for a standard normal target at v = 0.

        The times of a batch are a golden-ratio sequence from a random start: each is uniform, together they are spread
        evenly.
        """
        like = {"dtype": x.dtype, "device": x.device}
        context = self.checked(context)
        start = torch.rand((), generator=generator, **like)
        turns = _GOLDEN * torch.arange(len(x), dtype=torch.float64, device=x.device)[:, None]
        time = ((start + turns) % 1).to(x.dtype)
        z = torch.randn(x.shape, generator=generator, **like)
        velocity = self.bijection.velocity
        missed = velocity((1 - time) * z + time * x, time, velocity.steer(context)) - (x - z)
        return weighted_mean(missed.square().mean(-1), weight)


class _ContinuousDistribution(FlowDistribution):
    """p(x | context) of a continuous flow."""

    flow: ContinuousFlow

    def expand(self, batch_shape, _instance=None) -> FlowDistribution:
        """Return the distribution with its context expanded to ``batch_shape``."""
        context = self.context
        return (
            self if context is None else _ContinuousDistribution(self.flow, context.expand(*batch_shape, -1))
        )

    def rsample(self, sample_shape: _size = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[*sample_shape, *batch, D]`` with gradients."""
        return self._from_latent(*self._latent(sample_shape, generator))

    def _from_latent(self, z: Tensor, context: Tensor | None) -> Tensor:
        return self.flow.bijection.draw(z, context)

    def sample(self, sample_shape: _size = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[*sample_shape, *batch, D]`` without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator=generator)
