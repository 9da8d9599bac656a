r"""Flows over columns that are not plain numbers: atoms, integers, angles — exactly.

With b the *levels* (which atom, or 0 where a column is continuous; which value of an integer) and x the numbers that are
present,

.. math:: p(x, b | c) = \prod_k P(b_k | b_{<k}, c) \; p(x | b, c)

P is a product of categorical probabilities, each from a network of the context and of the levels before it;
p(x | b, c) is any flow, whose context is c and the levels. Nothing is smeared and nothing leaks: the probability of an
atom is a number that the network gives, and a number that stands aside for an atom is no variable of the density at
all (:mod:`fluvial.flows.held`). The density is against (counting measure on levels) × (Lebesgue measure on numbers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.types import _size

from fluvial.core import Permutation
from fluvial.errors import StudyError
from fluvial.flows.build import architecture_options, build_flow
from fluvial.flows.ensemble import EnsembleFlow
from fluvial.flows.flow import AbstractFlow, ConditionalFlow, ContextDistribution, weighted_mean
from fluvial.flows.held import cannot_hold, hold, presence
from fluvial.flows.trunk import with_trunk
from fluvial.nets import MLP

#: Options of an architecture that its level networks share.
SHARED = ("width", "depth", "residual", "activation")
#: Options of an architecture that are those of its conditioners.
CONDITIONER = (*SHARED, "gate", "batch_norm", "dropout", "gain")


class Levels(nn.Module):
    r"""Categorical probabilities of K levels, one after the other: :math:`\prod_k P(b_k | b_{<k}, c)`.

    Each level has a network of its own, of the one-hot levels before it and of the context: a draw runs every network
    once. (A single masked network would run K times, and share its hidden units out among the levels.)

    Parameters
    ----------
    sizes : sequence of int
        How many values each level takes.
    context : int
        Number of context columns.
    **network
        Options of :class:`fluvial.nets.MLP`.
    """

    def __init__(self, sizes: Sequence[int], context: int, **network: Any):
        super().__init__()
        self.sizes = list(sizes)
        self.networks = nn.ModuleList(
            MLP(sum(self.sizes[:k]), context, size, **network) for k, size in enumerate(self.sizes)
        )

    def log_prob(self, levels: Tensor, context: Tensor | None) -> Tensor:
        """Return log P of ``levels: [*batch, K]``, whole numbers from 0; −inf for any other. ``context: [*batch, C]``."""
        total = levels.new_zeros(levels.shape[:-1])
        known = self.one_hot(levels)
        first = 0
        for level, size, network in zip(levels.unbind(-1), self.sizes, self.networks, strict=True):
            log_p = network(known[..., :first], context).log_softmax(-1)
            index = level.round().clamp(0, size - 1)
            chosen = log_p.gather(-1, index.long().unsqueeze(-1)).squeeze(-1)
            total = total + torch.where(index == level, chosen, -math.inf)
            first += size
        return total

    def sample(
        self, shape: Sequence[int], context: Tensor | None, *, like: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Draw levels ``[*shape, K]`` and return them with their log P; ``context: [*shape, C]``."""
        # (float64: in float32 a draw may be exactly 0, and so fall on a level of no probability)
        u = torch.rand(
            (*shape, len(self.sizes)), generator=generator, dtype=torch.float64, device=like.device
        )
        return self.from_uniform(u, context, like=like)

    def from_uniform(self, u: Tensor, context: Tensor | None, *, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the levels on which ``u: [*shape, K]``, between 0 and 1, fall one after the other, and their log P."""
        shape = u.shape[:-1]
        total = like.new_zeros(shape)
        known = like.new_zeros((*shape, 0))
        levels: list[Tensor] = []
        for k, (size, network) in enumerate(zip(self.sizes, self.networks, strict=True)):
            log_p = network(known, context).log_softmax(-1).expand(*shape, size)
            # (the last sum is 1 but for rounding, so it is left out: u never goes beyond the last level)
            index = (log_p.exp().cumsum(-1)[..., :-1] <= u[..., k : k + 1]).sum(-1, keepdim=True)
            total = total + log_p.gather(-1, index).squeeze(-1)
            known = torch.cat((known, like.new_zeros((*shape, size)).scatter_(-1, index, 1.0)), -1)
            levels.append(index.squeeze(-1).to(like.dtype))
        return torch.stack(levels, -1) if levels else like.new_zeros((*shape, 0)), total

    def one_hot(self, levels: Tensor) -> Tensor:
        """Return ``[*batch, ΣK]`` indicators of ``levels: [*batch, K]``."""
        parts = [
            levels.new_zeros((*level.shape, size)).scatter_(
                -1, level.round().clamp(0, size - 1).long().unsqueeze(-1), 1.0
            )
            for level, size in zip(levels.unbind(-1), self.sizes, strict=True)
        ]
        return torch.cat(parts, -1) if parts else levels.new_zeros((*levels.shape[:-1], 0))


class MixedFlow(AbstractFlow):
    """A flow over N numbers and K levels: ``flow(context)`` is a distribution over ``[*batch, N + K]``, numbers first.

    Make one with :func:`build_mixed_flow`.

    Attributes
    ----------
    levels : Levels
        P(b | c).
    flow : AbstractFlow or None
        p(x | b, c), whose context is c and the one-hot levels; ``None`` where there are no numbers.
    """

    index: Tensor
    turning: Tensor

    def __init__(
        self,
        flow: AbstractFlow | None,
        levels: Levels,
        *,
        numbers: int,
        context: int,
        present: Sequence[int] | None = None,
        angles: Sequence[bool] = (),
    ):
        super().__init__(targets=numbers + len(levels.sizes), context=context)
        self.numbers = numbers
        self.flow = flow
        self.levels = levels
        self.held = present is not None
        index = torch.tensor([-1] * numbers if present is None else list(present), dtype=torch.long)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("turning", torch.tensor(list(angles) or [False] * numbers), persistent=False)
        if flow is not None:
            self.loss_is_nll = flow.loss_is_nll
            self.draw_rows, self.train_rows = flow.draw_rows, flow.train_rows
            self.validation_rows = flow.validation_rows

    def forward(self, context: Tensor | None = None) -> MixedDistribution:
        """Return p(x, b | context) for ``context: [*batch, C]``; ``None`` for an unconditional flow."""
        return MixedDistribution(self, self.checked(context))

    def loss(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the mean of −log P(b | c) and the loss of the flow over the numbers, that need not be −log p."""
        if self.flow is None or self.flow.loss_is_nll:
            return -weighted_mean(self(context).log_prob(x), weight)
        context = self.checked(context)
        number, level = x.split((self.numbers, len(self.levels.sizes)), -1)
        inner = self.inner_context(level, context)
        loss = self.flow.loss(number, inner, weight=weight, generator=generator)
        return loss - weighted_mean(self.levels.log_prob(level, context), weight)

    def inner_context(self, levels: Tensor, context: Tensor | None) -> Tensor | None:
        """Return the context of the flow over the numbers: ``context`` and one-hot levels."""
        if not self.levels.sizes:
            return context
        one_hot = self.levels.one_hot(levels)
        return one_hot if context is None else torch.cat((context, one_hot), -1)


class MixedDistribution(ContextDistribution):
    """p(x, b | context); the last dimension holds N numbers (0 where absent), then K levels."""

    has_rsample = False

    flow: MixedFlow

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value | context) in nats; ``value: [*S, *batch, N + K]``, result ``[*S, *batch]``.

        Raises
        ------
        ValueError
            If the last dimension of ``value`` is not N + K.
        """
        flow = self.flow
        shape = self.shape_of(value)
        context = self.context_at(shape)
        x, levels = value.expand(*shape, -1).split((flow.numbers, len(flow.levels.sizes)), -1)
        log_prob = flow.levels.log_prob(levels, context)
        if flow.flow is None:
            return log_prob
        inner = flow.inner_context(levels, context)
        if not flow.held:
            return log_prob + flow.flow(inner).log_prob(x)
        assert isinstance(flow.flow, ConditionalFlow)
        here = self._here(inner, x)
        z, logdet = flow.flow.bijection(torch.where(here, x, 0.0), inner)
        return log_prob + self._base(z, inner) + logdet

    def sample(self, sample_shape: _size = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[*sample_shape, *batch, N + K]``."""
        with torch.no_grad():
            return self.rsample_and_log_prob(sample_shape, generator=generator)[0]

    def rsample_and_log_prob(
        self, sample_shape: _size = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw, and return the log-density of each draw from the same pass; numbers have gradients, levels none."""
        flow = self.flow
        shape = (*sample_shape, *self.batch_shape)
        context = self.context_at(shape)
        like = next(flow.parameters())
        levels, log_prob = flow.levels.sample(shape, context, like=like, generator=generator)
        if flow.flow is None:
            return levels, log_prob
        inner = flow.inner_context(levels, context)
        if not flow.held:
            rest = sample_shape if inner is None else ()
            x, log_density = flow.flow(inner).rsample_and_log_prob(rest, generator=generator)
            return torch.cat((x, levels), -1), log_prob + log_density
        assert isinstance(flow.flow, ConditionalFlow)
        size = (*shape, flow.numbers)
        z = flow.flow.base.sample(size, generator=generator, dtype=like.dtype, device=like.device)
        if flow.turning.any():
            turn = torch.rand(size, generator=generator, dtype=like.dtype, device=like.device)
            z = torch.where(flow.turning, math.pi * (2 * turn - 1), z)
        z = torch.where(self._here(inner, z), z, 0.0)
        x, logdet = flow.flow.bijection.inverse(z, inner)
        return torch.cat((x, levels), -1), log_prob + self._base(z, inner) - logdet

    @property
    def uniforms(self) -> int:
        """How many uniform numbers a draw is made of: one for each level, then those of the numbers."""
        flow = self.flow
        number = 0
        if flow.flow is not None:
            levels = next(flow.parameters()).new_zeros((*self.batch_shape, len(flow.levels.sizes)))
            number = flow.flow(flow.inner_context(levels, self.context)).uniforms
        return len(flow.levels.sizes) + number

    def draw_from(self, uniform: Tensor) -> Tensor:
        """See :meth:`ContextDistribution.draw_from`."""
        flow = self.flow
        like = next(flow.parameters())
        with torch.no_grad():
            context = self.context_at(uniform.shape[:-1])
            of_levels, of_numbers = uniform.tensor_split([len(flow.levels.sizes)], -1)
            levels, _ = flow.levels.from_uniform(of_levels, context, like=like)
            if flow.flow is None:
                return levels
            inner = flow.inner_context(levels, context)
            if not flow.held:
                return torch.cat((flow.flow(inner).draw_from(of_numbers), levels), -1)
            assert isinstance(flow.flow, ConditionalFlow)
            z = flow.flow.base.from_uniform(of_numbers)
            if flow.turning.any():
                z = torch.where(flow.turning, math.pi * (2 * of_numbers[..., : flow.numbers] - 1), z)
            z = torch.where(self._here(inner, z), z, 0.0).to(like.dtype)
            return torch.cat((flow.flow.bijection.inverse(z, inner)[0], levels), -1)

    def _here(self, inner: Tensor | None, x: Tensor) -> Tensor:
        """Return which coordinates are present; without levels, all are."""
        if inner is None:
            return torch.ones_like(x, dtype=torch.bool)
        return presence(inner, self.flow.index)

    def _base(self, z: Tensor, inner: Tensor | None) -> Tensor:
        """Return the base density of the coordinates that are present; that of an angle is uniform."""
        flow = self.flow
        assert isinstance(flow.flow, ConditionalFlow)
        each = torch.where(flow.turning, -math.log(2 * math.pi), flow.flow.base.log_density(z))
        return torch.where(self._here(inner, z), each, 0.0).sum(-1)


def build_mixed_flow(
    architecture: str,
    *,
    numbers: int,
    levels: Sequence[int],
    holder: Sequence[int | None],
    angles: Sequence[bool] = (),
    context: int,
    trunk: int = 0,
    members: int = 1,
    **options: Any,
) -> AbstractFlow:
    """Build a flow over numbers and levels from an architecture and its options; without either, the architecture's own.

    Parameters
    ----------
    architecture : str
        The flow over the numbers, a name of :data:`fluvial.flows.ARCHITECTURES`. With numbers that can be absent, or
        angles, it must act coordinate by coordinate.
    numbers : int
        How many numbers N.
    levels : sequence of int
        How many values each of the K levels takes.
    holder : sequence of (int or None)
        For each number the level that says whether it is present (0) or absent; ``None``: always present.
    angles : sequence of bool
        For each number whether it is an angle in [−π, π).
    context : int
        Number of context columns.
    trunk : int
        With it, levels and numbers see so many features that one network makes of the context.
    members : int
        With more than one, an ensemble of so many such flows.

    Raises
    ------
    StudyError
        If the architecture is unknown, an option cannot be, or it cannot leave coordinates out.

    >>> flow = build_mixed_flow("maf", numbers=1, levels=[2], holder=[0], context=3, steps=2)
    >>> flow(torch.zeros(5, 3)).sample((4,)).shape
    torch.Size([4, 5, 2])
    """
    if members > 1:
        layout = {"numbers": numbers, "levels": levels, "holder": holder, "angles": angles}
        same = partial(build_mixed_flow, architecture, **layout, context=context, trunk=trunk, **options)
        return EnsembleFlow([same() for _ in range(members)])
    if not levels and not any(angles):
        return build_flow(architecture, targets=numbers, context=context, trunk=trunk, **options)
    if trunk:
        make = partial(
            build_mixed_flow,
            architecture,
            numbers=numbers,
            levels=levels,
            holder=holder,
            angles=angles,
            **options,
        )
        try:
            return with_trunk(lambda columns: make(context=columns), context=context, trunk=trunk)
        except StudyError:
            raise  # it names the architecture already
        except ValueError as error:
            raise StudyError(f"[flow] {architecture}: {error}") from error
    every = {name: default for name, (_, default) in architecture_options(architecture).items()} | options
    network = {k: every[k] for k in SHARED if k in every}
    chances = Levels(levels, context, **network)
    if not numbers:
        return MixedFlow(None, chances, numbers=0, context=context)
    inner = context + sum(levels)
    flow = build_flow(architecture, targets=numbers, context=inner, **options)
    angles = list(angles) or [False] * numbers
    if not any(angles) and all(h is None for h in holder):
        return MixedFlow(flow, chances, numbers=numbers, context=context)
    starts = [context + sum(levels[:k]) for k in range(len(levels))]
    present = [-1 if h is None else starts[h] for h in holder]
    conditioner = {k: every[k] for k in CONDITIONER if k in every}
    try:
        if not isinstance(flow, ConditionalFlow):
            raise ValueError(cannot_hold(flow, any(angles)))
        flow.bijection, order = hold(flow.bijection, present, angles, inner, conditioner)
    except ValueError as error:
        raise StudyError(f"[flow] {architecture}: {error}") from error
    # The latent's coordinates stand in the order in which the chain leaves them.
    if order != sorted(order):
        back = sorted(range(numbers), key=order.__getitem__)
        flow.bijection.bijections.append(Permutation(back))
    return MixedFlow(flow, chances, numbers=numbers, context=context, present=present, angles=angles)
