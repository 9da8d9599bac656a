r"""Splines on the circle: bijections of an angle (Rezende et al. 2020, arXiv:2002.02428, section 2.1.2).

A rational-quadratic spline of [−π, π] onto itself that has the same slope at both ends, after a turn by a phase φ:

.. math:: z = F(\mathrm{wrap}(x + \varphi)), \qquad F(\pm\pi) = \pm\pi, \qquad F'(-\pi) = F'(\pi)

with :math:`\mathrm{wrap}(a) = a - 2\pi \lfloor (a + \pi) / 2\pi \rfloor`. The density that it gives is continuous and
exactly periodic: the seam at ±π is a place like any other. Without the phase the seam would stay where it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fluvial.core.bijection import Bijection
from fluvial.core.spline import rational_quadratic


def circular_spline_parameters(bins: int) -> int:
    """Return how many numbers :func:`circular_spline` takes per angle: K widths, K heights, K slopes, 1 phase."""
    return 3 * bins + 1


def circular_spline(x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Apply a spline on the circle, or its inverse, to every angle.

    Parameters
    ----------
    x : Tensor
        ``[*batch]``, angles in radians; taken modulo 2π.
    parameters : Tensor
        ``[*batch, 3K + 1]``, unconstrained: logits of the K widths, logits of the K heights, the slopes at the K knots
        (0 means slope 1; the first is that of both ends), and the phase in radians. All zeros give the identity.
    inverse : bool
        Apply the inverse map.

    Returns
    -------
    tuple[Tensor, Tensor]
        The angle in [−π, π) and the log of the slope of the map applied, both ``[*batch]``.

    Examples
    --------
    >>> z, log_slope = circular_spline(torch.tensor([0.5, 0.5 + 2 * math.pi]), torch.zeros(2, 13))
    >>> z
    tensor([0.5000, 0.5000])
    """
    bins = (parameters.shape[-1] - 1) // 3
    # The slope at −π serves at π too; the last parameter is the phase.
    spline = torch.cat((parameters[..., :-1], parameters[..., 2 * bins : 2 * bins + 1]), -1)
    phase = parameters[..., -1]
    if inverse:
        y, log_slope = rational_quadratic(wrap(x), spline, bound=math.pi, inverse=True)
        return wrap(y - phase), log_slope
    y, log_slope = rational_quadratic(wrap(x + phase), spline, bound=math.pi)
    return wrap(y), log_slope


def wrap(angle: Tensor) -> Tensor:
    """Return the angle in [−π, π) that differs from ``angle`` by whole turns; the slope is 1.

    >>> wrap(torch.tensor([0.0, 4.0, -7.0]))
    tensor([ 0.0000, -2.2832, -0.7168])
    """
    turns = torch.floor((angle.detach() + math.pi) / (2 * math.pi))
    angle = angle - 2 * math.pi * turns
    # Rounding may leave it an ulp beyond either end; the slope stays 1 all the same.
    angle = torch.where(angle >= math.pi, angle - 2 * math.pi, angle)
    return torch.where(angle < -math.pi, (angle - angle.detach()) - math.pi, angle)


class CircularSpline(Bijection):
    """An unconditional spline on the circle for each of D angles; starts at the identity.

    Parameters
    ----------
    dim : int
        The number D of angles.
    bins : int
        Bins of every spline.

    >>> CircularSpline(2)(torch.tensor([[0.5, -7.0]]))[0]
    tensor([[ 0.5000, -0.7168]], grad_fn=...)
    """

    def __init__(self, dim: int, *, bins: int = 16):
        super().__init__()
        self.parameters_ = nn.Parameter(torch.zeros(dim, circular_spline_parameters(bins)))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the spline to every angle of ``x: [*batch, D]``."""
        return self._apply_spline(x, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the inverse spline."""
        return self._apply_spline(z, inverse=True)

    def _apply_spline(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        y, log_slope = circular_spline(x, self.parameters_.expand(*x.shape, -1), inverse=inverse)
        return y, log_slope.sum(-1)
