"""A trunk: one network of the context, evaluated once per context, whose features every step of a flow shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluvial.flows.flow import AbstractFlow
from fluvial.nets import MLP

#: Residual blocks of a trunk.
DEPTH = 2


class TrunkedFlow(AbstractFlow):
    r"""p(x | h(c)): any flow, given features :math:`h` of the context in place of the context.

    The trunk runs once per context, never once per draw; gradients reach it through every step.

    Parameters
    ----------
    flow : AbstractFlow
        Built for ``features`` columns of context.
    context : int
        Context columns C.
    features : int
        What the trunk gives: a residual network of as many units.

    >>> from fluvial.flows import build_flow
    >>> flow = build_flow("maf", targets=2, context=3, trunk=16)
    >>> flow(torch.zeros(5, 3)).sample((4,)).shape
    torch.Size([4, 5, 2])
    """

    def __init__(self, flow: AbstractFlow, *, context: int, features: int):
        super().__init__(targets=flow.targets, context=context)
        self.trunk = MLP(0, context, features, width=features, depth=DEPTH, residual=True, zero_start=False)
        self.flow = flow
        self.loss_is_nll, self.calibrated = flow.loss_is_nll, flow.calibrated
        self.draw_rows, self.train_rows, self.validation_rows = (
            flow.draw_rows,
            flow.train_rows,
            flow.validation_rows,
        )

    def forward(self, context: Tensor | None = None) -> Any:
        """Return p(x | context) for ``context: [*batch, C]``."""
        return self.given_features(self.encode(context))

    def encode(self, context: Tensor | None) -> Tensor | None:
        """Return the trunk's features ``[*batch, F]``."""
        return self.flow.encode(self._features(context))

    def given_features(self, features: Tensor | None) -> Any:
        """Return p(x | features) for what :meth:`encode` gave."""
        return self.flow.given_features(features)

    def calibrate(self, x: Tensor, context: Tensor | None) -> None:
        """Let the flow do so at the trunk's features."""
        self.flow.calibrate(x, self._features(context))

    def loss(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of the flow at the trunk's features."""
        return self.flow.loss(x, self._features(context), weight=weight, generator=generator)

    def _features(self, context: Tensor | None) -> Tensor:
        checked = self.checked(context)
        assert checked is not None, "a trunk has at least one context column"
        return self.trunk(checked[..., :0], checked)


def with_trunk(make: Callable[[int], AbstractFlow], *, context: int, trunk: int) -> AbstractFlow:
    """Return ``make(context)``, or with ``trunk`` features that flow over them: ``make`` takes the number of columns.

    Raises
    ------
    ValueError
        If ``trunk`` is negative, or there is no context for it.
    """
    if trunk == 0:
        return make(context)
    if trunk < 0:
        raise ValueError(f"Expected trunk to be 0 (none) or a number of features; got {trunk}.")
    if context == 0:
        raise ValueError("Expected context columns with a trunk: it is a network of the context.")
    return TrunkedFlow(make(trunk), context=context, features=trunk)
