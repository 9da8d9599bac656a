r"""The contract of a bijection, and how bijections compose.

A bijection :math:`f` maps targets x to latents z, given a context c. Its density by change of variables is

.. math:: \log p(x \mid c) = \log p_z(f(x; c)) + \log \left| \det \partial f(x; c) / \partial x \right|

so every call returns the value together with ``logdet``, the log abs det of the Jacobian *of that call*:
``inverse`` returns minus what ``forward`` returned at the matching point.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


class Bijection(nn.Module):
    """An invertible map between x and z, possibly steered by a context.

    Subclasses implement both directions for ``x: [*batch, D]``, ``context: [*batch, C]`` (or ``None``) and
    return ``logdet: [*batch]``. Both are pure: the same input gives the same output, in the dtype of the
    input; values and gradients are finite for every finite input inside the domain, however far out.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x to z; return ``(z, logdet)``."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z to x; return ``(x, logdet)`` of this inverse map."""
        raise NotImplementedError

    def inverse_value(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the x of :meth:`inverse` alone: where draws are made, and no log-determinant is asked for."""
        return self.inverse(z, context)[0]


class Chain(Bijection):
    r"""Bijections one after the other: :math:`f = f_n \circ \dots \circ f_1`; log-determinants add up.

    >>> import torch
    >>> from fluvial.core import Affine, Log
    >>> z, logdet = Chain([Log(), Affine(torch.zeros(1), torch.ones(1))])(torch.tensor([1.0]))
    >>> z
    tensor([0.])
    """

    def __init__(self, bijections: Iterable[Bijection]):
        super().__init__()
        self.bijections = nn.ModuleList(bijections)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the bijections in order."""
        total = x.new_zeros(x.shape[:-1])
        for bijection in self.bijections:
            x, logdet = bijection(x, context)
            total = total + logdet
        return x, total

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo the bijections, the last one first."""
        total = z.new_zeros(z.shape[:-1])
        for bijection in reversed(self.bijections):
            z, logdet = bijection.inverse(z, context)  # type: ignore[operator]
            total = total + logdet
        return z, total

    def inverse_value(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Undo the bijections, without their log-determinants."""
        for bijection in reversed(self.bijections):
            z = bijection.inverse_value(z, context)  # type: ignore[operator]
        return z


class Inverse(Bijection):
    """A bijection with its two directions exchanged."""

    def __init__(self, bijection: Bijection):
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the inverse of the wrapped bijection."""
        return self.bijection.inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the wrapped bijection."""
        return self.bijection(z, context)
