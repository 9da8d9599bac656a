"""A flow over features that networks make of the context, once for each context: what trunks and encoders share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluvial.flows.flow import AbstractFlow


class FeaturedFlow(AbstractFlow):
    r"""p(x | h(c)): any flow, given features :math:`h` of the context in place of the context.

    A subclass makes its networks, then calls :meth:`_over` with the flow, and gives the features by :meth:`_features`.
    """

    flow: AbstractFlow

    def _over(self, flow: AbstractFlow) -> None:
        """Take the flow that gets the features, and what it says of itself."""
        self.flow = flow
        self.loss_is_nll, self.calibrated = flow.loss_is_nll, flow.calibrated
        self.draw_rows, self.validation_rows = flow.draw_rows, flow.validation_rows
        self.train_rows = min(self.train_rows, flow.train_rows)

    def _features(self, context: Tensor | None) -> Tensor:
        """Return the features ``[*batch, F]`` of ``context: [*batch, C]``."""
        raise NotImplementedError

    def forward(self, context: Tensor | None = None) -> Any:
        """Return p(x | context) for ``context: [*batch, C]``."""
        return self.given_features(self.encode(context))

    def encode(self, context: Tensor | None) -> Tensor | None:
        """Return the features ``[*batch, F]`` of contexts."""
        return self.flow.encode(self._features(context))

    def given_features(self, features: Tensor | None) -> Any:
        """Return p(x | features) for what :meth:`encode` gave."""
        return self.flow.given_features(features)

    def loss(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of the flow at the features."""
        return self.flow.loss(x, self._features(context), weight=weight, generator=generator)

    def calibrate(self, x: Tensor, context: Tensor | None) -> None:
        """Let the flow do so at the features."""
        self.flow.calibrate(x, self._features(context))
