r"""Ensembles: K flows as one, whose disagreement tells how well the data have fixed the density.

.. math:: p(x | c) = \frac{1}{K} \sum_k p_k(x | c)

Members that differ in their initial weights and in the order of their rows agree where data are many, and part where they
are few (Lakshminarayanan, Pritzel & Blundell 2017, arXiv:1612.01474). The mixture is a density of its own: normalised,
and never worse on average than its members are (by convexity of −log).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.types import _size

from fluvial.flows.flow import AbstractFlow, ContextDistribution


class EnsembleFlow(AbstractFlow):
    """K flows over the same targets and context, each with the weight 1/K.

    Parameters
    ----------
    members : sequence of AbstractFlow
        At least one.

    >>> from fluvial.flows import MAF
    >>> flow = EnsembleFlow([MAF(targets=2, context=1) for _ in range(3)])
    >>> p = flow(torch.zeros(5, 1))
    >>> p.sample((4,)).shape, p.members_log_prob(torch.zeros(5, 2)).shape
    (torch.Size([4, 5, 2]), torch.Size([3, 5]))

    Raises
    ------
    ValueError
        If there is no member, or members differ in their numbers of targets or of context columns.
    """

    def __init__(self, members: Sequence[AbstractFlow]):
        sizes = {(m.targets, m.context) for m in members}
        if len(sizes) != 1:
            raise ValueError(
                f"Expected members of one number of targets and of context columns; got {sorted(sizes)}."
            )
        targets, context = sizes.pop()
        super().__init__(targets=targets, context=context)
        self.members = nn.ModuleList(members)
        self.draw_rows = max(m.draw_rows for m in members)
        self.train_rows = min(m.train_rows for m in members)
        self.calibrated = any(m.calibrated for m in members)
        dear = [m.validation_rows for m in members if m.validation_rows is not None]
        self.validation_rows = min(dear) if dear else None

    def forward(self, context: Tensor | None = None) -> EnsembleDistribution:
        """Return p(x | context) for ``context: [*batch, C]``; ``None`` for unconditional flows."""
        return self.given_features(self.encode(context))

    def encode(self, context: Tensor | None) -> Tensor | None:
        """Return what each member makes of contexts, side by side: ``[*batch, K F]``."""
        context = self.checked(context)
        return None if context is None else torch.cat([m.encode(context) for m in self._flows], -1)  # type: ignore[misc]

    @property
    def _flows(self) -> list[Any]:
        return list(self.members)

    def given_features(self, features: Tensor | None) -> EnsembleDistribution:
        """Return p(x | context) for what :meth:`encode` made of a context."""
        return EnsembleDistribution(self, features)

    def calibrate(self, x: Tensor, context: Tensor | None) -> None:
        """Let every member do so."""
        for member in self._flows:
            member.calibrate(x, context)


class EnsembleDistribution(ContextDistribution):
    """The mixture of what the members of an ensemble say of a context; what it holds are the features of all of them."""

    flow: EnsembleFlow

    def members_log_prob(self, value: Tensor) -> Tensor:
        """Return log p of every member, ``[K, *S, *batch]``, for ``value: [*S, *batch, D]``."""
        shape = self.shape_of(value)
        value = value.expand(*shape, -1)
        members = (self._member(k, self.context_at(shape)) for k in range(len(self.flow.members)))
        return torch.stack([member.log_prob(value).expand(shape) for member in members])

    def _member(self, number: int, features: Tensor | None) -> Any:
        """Return what a member says, given the features of all."""
        if features is not None:
            width = features.shape[-1] // len(self.flow.members)
            features = features[..., number * width : (number + 1) * width]
        return self.flow._flows[number].given_features(features)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value | context) in nats; ``value: [*S, *batch, D]``, result ``[*S, *batch]``.

        Raises ``ValueError`` if the last dimension of ``value`` is not D.
        """
        return self.members_log_prob(value).logsumexp(0) - math.log(len(self.flow.members))

    def sample(self, sample_shape: _size = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[*sample_shape, *batch, D]``: for every draw a member is drawn first."""
        with torch.no_grad():
            return self._draw(sample_shape, generator)

    def rsample_and_log_prob(
        self, sample_shape: _size = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw, and return the log-density of each draw in the mixture; gradients do not see which member was drawn."""
        x = self._draw(sample_shape, generator, gradients=True)
        return x, self.log_prob(x)

    def _draw(
        self, sample_shape: _size, generator: torch.Generator | None, gradients: bool = False
    ) -> Tensor:
        shape = (*sample_shape, *self.batch_shape)
        like = next(self.flow.parameters())
        number = math.prod(shape)
        which = torch.randint(len(self.flow.members), (number,), generator=generator, device=like.device)
        context = None
        if self.batch_shape:  # else one context, or none: a member makes all its draws at once
            at = self.context_at(shape)
            context = None if at is None else at.reshape(number, -1)
        parts, places = [], []
        for k in range(len(self.flow.members)):
            mine = (which == k).nonzero()[:, 0]
            if not len(mine):
                continue
            given = self._member(k, self.context if context is None else context[mine])
            rows = (len(mine),) if context is None else ()
            parts.append(
                given.rsample_and_log_prob(rows, generator=generator)[0]
                if gradients
                else given.sample(rows, generator=generator)
            )
            places.append(mine)
        if not parts:
            return like.new_zeros((*shape, self.flow.targets))
        order = torch.cat(places).argsort()
        return torch.cat(parts)[order].reshape(*shape, self.flow.targets)
