r"""Recalibration in latent space: a trained flow, and one small monotone map between its bijection and its base.

With f a trained flow's bijection and r a map that acts on each latent coordinate alone,

.. math:: \log p(x | c) = \log p_z\bigl(r(f(x; c); c)\bigr) + \sum_i \log r_i'(f_i) + \log|\det \partial f|

is again a normalised density with an exact Jacobian: the same as before where r is the identity, wider where r squeezes
the latent. An overconfident flow leaves latents that scatter more than its base says; r, fitted by maximum likelihood
to rows that the flow was not trained on, takes that scatter out (see :func:`fluvial.train.recalibrate.fit_latent_map`).
What it cannot mend is dependence between latent coordinates: each is mapped by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.types import _size

from fluvial.core import Bijection, Chain, rational_quadratic
from fluvial.core.spline import spline_parameters
from fluvial.flows.ensemble import EnsembleFlow
from fluvial.flows.flow import AbstractFlow, ConditionalFlow, FlowDistribution
from fluvial.flows.held import presence
from fluvial.flows.mixed import MixedFlow

#: Half the side of the box in which the spline bends the latent; beyond it the map is a straight line.
BOUND = 4.0
#: The scale of the latent changes by a factor of at most this, either way, and its shift is at most this.
LARGEST_FACTOR = 20.0
#: Context columns enter squeezed smoothly to ± this many standard deviations.
CONTEXT_RANGE = 3.0


class LatentMap(Bijection):
    r"""A monotone map of each latent coordinate: :math:`r(z; c) = s\bigl((z - a(c))\, e^{b(c)}\bigr)`.

    a and b are numbers, or with ``steered`` linear in the squeezed context; s is a rational-quadratic spline, or with no
    ``bins`` the identity. A new one is the identity.

    Parameters
    ----------
    dim, context : int
        Numbers of coordinates and of context columns.
    bins : int
        Bins of the spline; 0: none.
    steered : bool
        Whether shift and scale depend on the context.
    present : sequence of int, optional
        For each coordinate the context column that is 1 where it is present; −1: always. Absent ones are left alone.
    angles : sequence of bool, optional
        Coordinates that are angles: left alone too.

    >>> LatentMap(2, 0, bins=4)(torch.tensor([[0.5, -7.0]]))[0].detach()
    tensor([[ 0.5000, -7.0000]])
    """

    index: Tensor
    turning: Tensor

    def __init__(
        self,
        dim: int,
        context: int = 0,
        *,
        bins: int = 8,
        steered: bool = False,
        present: Sequence[int] | None = None,
        angles: Sequence[bool] | None = None,
    ):
        super().__init__()
        self.bins = bins
        self.shift, self.log_scale = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.steering = nn.Parameter(torch.zeros(2, dim, context)) if steered and context else None
        self.knots = nn.Parameter(torch.zeros(dim, spline_parameters(bins))) if bins else None
        index = [-1] * dim if present is None else list(present)
        turning = [False] * dim if angles is None else list(angles)
        self.register_buffer("index", torch.tensor(index, dtype=torch.long), persistent=False)
        self.register_buffer("turning", torch.tensor(turning), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the trained flow's latents to those of the base."""
        z, log_slope = self.forward_elementwise(x, context)
        return z, log_slope.sum(-1)

    def forward_elementwise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mapped latents and the log-slope of each, both of the shape of ``x``."""
        shift, log_scale = self._affine(context)
        z, log_slope = (x - shift) * log_scale.exp(), log_scale.expand(x.shape)
        if self.knots is not None:
            z, bent = rational_quadratic(z, self.knots.expand(*z.shape, -1), bound=BOUND)
            log_slope = log_slope + bent
        return self._where_mapped(x, z, log_slope, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latents of the base to those of the trained flow."""
        shift, log_scale = self._affine(context)
        x, log_slope = z, -log_scale.expand(z.shape)
        if self.knots is not None:
            x, bent = rational_quadratic(z, self.knots.expand(*z.shape, -1), bound=BOUND, inverse=True)
            log_slope = log_slope + bent
        x, log_slope = self._where_mapped(z, x * (-log_scale).exp() + shift, log_slope, context)
        return x, log_slope.sum(-1)

    def mapped(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Return which coordinates the map acts on: those that are present, and no angles."""
        mapped = ~self.turning.expand(x.shape)
        if context is not None and bool((self.index >= 0).any()):
            mapped = mapped & presence(context, self.index)
        return mapped

    def _where_mapped(
        self, before: Tensor, after: Tensor, log_slope: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        mapped = self.mapped(before, context)
        return torch.where(mapped, after, before), torch.where(mapped, log_slope, 0.0)

    def _affine(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.shift, self.log_scale
        if self.steering is not None and context is not None:
            squeezed = context * torch.rsqrt(1 + (context / CONTEXT_RANGE).square())
            moved = squeezed @ self.steering.flatten(0, 1).mT
            by_shift, by_scale = moved.unflatten(-1, (2, -1)).unbind(-2)
            shift, log_scale = shift + by_shift, log_scale + by_scale
        return _limited(shift, LARGEST_FACTOR), _limited(log_scale, math.log(LARGEST_FACTOR))


def _limited(value: Tensor, limit: float) -> Tensor:
    return limit * torch.tanh(value / limit)


class RecalibratedFlow(ConditionalFlow):
    """A flow with a :class:`LatentMap` between its bijection and its base. Made by :func:`recalibrated`."""

    def __init__(self, flow: ConditionalFlow, latent_map: LatentMap):
        super().__init__(Chain([flow.bijection, latent_map]), targets=flow.targets, context=flow.context)
        self.base = flow.base
        self.draw_rows, self.train_rows = flow.draw_rows, flow.train_rows
        self.validation_rows = flow.validation_rows

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Return p(x | context)."""
        return _Distribution(self, self.checked(context))


class _Distribution(FlowDistribution):
    """p(x | context) of a recalibrated flow; its draws skip the log-determinant where that of the flow is dear."""

    def sample(self, sample_shape: _size = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[*sample_shape, *batch, D]`` without gradients."""
        trained, latent_map = self.flow.bijection.bijections
        draw = getattr(trained, "draw", None)
        if draw is None:
            return super().sample(sample_shape, generator=generator)
        with torch.no_grad():
            z, context = self._latent(sample_shape, generator)
            return draw(latent_map.inverse(z, context)[0], context)


def recalibrated(
    flow: AbstractFlow, *, bins: int = 8, steered: bool = False, **held: Any
) -> tuple[AbstractFlow, LatentMap]:
    """Put a new :class:`LatentMap`, the identity, into a flow; return the flow and the map.

    The flow over numbers inside a :class:`~fluvial.flows.mixed.MixedFlow`, a trunk or an encoder is the one that gets
    it; what is around it stays, and is changed in place. In an ensemble every member gets one of its own
    (:func:`latent_maps`); the first is returned.

    Raises
    ------
    ValueError
        If the flow has no latent (a mixture, a flow of another library), or is recalibrated already.

    >>> from fluvial.flows import MAF
    >>> flow, latent_map = recalibrated(MAF(targets=2, context=3), bins=4, steered=True)
    >>> flow(torch.zeros(5, 3)).sample((4,)).shape
    torch.Size([4, 5, 2])
    """
    if isinstance(flow, EnsembleFlow):
        made = [recalibrated(member, bins=bins, steered=steered, **held) for member in flow.members]  # type: ignore[arg-type]
        flow.members = nn.ModuleList(member for member, _ in made)
        return flow, made[0][1]
    if isinstance(flow, RecalibratedFlow):
        raise ValueError("it is recalibrated already; recalibrate the run that it was made from")
    if isinstance(flow, ConditionalFlow):
        latent_map = LatentMap(flow.targets, flow.context, bins=bins, steered=steered, **held)
        return RecalibratedFlow(flow, latent_map), latent_map
    inner = getattr(flow, "flow", None)
    if not isinstance(inner, AbstractFlow):
        what = "has integer columns only" if isinstance(flow, MixedFlow) else "has no latent space"
        raise ValueError(f"a {type(flow).__name__} {what}, in which a map could stand")
    if isinstance(flow, MixedFlow) and flow.held:
        held = {"present": flow.index.tolist(), "angles": flow.turning.tolist()}
    flow.flow, latent_map = recalibrated(inner, bins=bins, steered=steered, **held)
    return flow, latent_map


def latent_maps(flow: AbstractFlow) -> list[LatentMap]:
    """Return the maps in a recalibrated flow: one, or one for each member of an ensemble."""
    return [module for module in flow.modules() if isinstance(module, LatentMap)]
