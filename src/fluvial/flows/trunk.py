"""A trunk: one network of the context, evaluated once per context, whose features every step of a flow shares."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fluvial.flows.featured import FeaturedFlow
from fluvial.flows.flow import AbstractFlow
from fluvial.nets import MLP

#: Residual blocks of a trunk.
DEPTH = 2


class TrunkedFlow(FeaturedFlow):
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

    >>> import torch
    >>> from fluvial.flows import build_flow
    >>> flow = build_flow("maf", targets=2, context=3, trunk=16)
    >>> flow(torch.zeros(5, 3)).sample((4,)).shape
    torch.Size([4, 5, 2])
    """

    def __init__(self, flow: AbstractFlow, *, context: int, features: int):
        super().__init__(targets=flow.targets, context=context)
        self.trunk = MLP(0, context, features, width=features, depth=DEPTH, residual=True, zero_start=False)
        self._over(flow)

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
