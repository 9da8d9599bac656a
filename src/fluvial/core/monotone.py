r"""A fixed monotone map through given points: smooth, with an exact inverse and slope.

Between the points the rational-quadratic interpolant (Gregory & Delbourgo 1982, IMA J. Numer. Anal. 2, 123): with
:math:`\theta = (x - x_k) / w`, the mean slope s of the bin and the slopes :math:`d_0, d_1` at its ends,

.. math::
    y = y_k + h \frac{s \theta^2 + d_0\, \theta (1 - \theta)}{s + (d_0 + d_1 - 2 s)\, \theta (1 - \theta)}

which rises wherever the points do. Slopes at inner points are the weighted harmonic means of their neighbours'
(Fritsch & Butland 1984), so that a bin that is much steeper than the next does not throw it. Beyond the outermost
points the map goes on as straight lines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluvial.core.elementwise import Elementwise


class MonotoneSpline(Elementwise):
    """The rational-quadratic interpolant of rising points ``x: [K]``, ``y: [K]``, K ≥ 2, with straight tails.

    Raises
    ------
    ValueError
        Unless x and y have one length of at least 2, are finite and rise.

    >>> z, logdet = MonotoneSpline(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, 1.0, 2.0]))(torch.tensor([5.0]))
    >>> z, logdet
    (tensor([3.]), tensor(-0.6931))
    """

    x: Tensor
    y: Tensor
    slopes: Tensor

    def __init__(self, x: Tensor, y: Tensor):
        super().__init__()
        rising = x.dim() == 1 and x.shape == y.shape and len(x) >= 2 and bool(x.isfinite().all())
        if not (rising and bool(y.isfinite().all()) and bool((x.diff() > 0).all() and (y.diff() > 0).all())):
            raise ValueError(
                f"Expected two or more finite points that rise in x and y; got {x.numel()} and {y.numel()}."
            )
        width, mean = x.diff(), y.diff() / x.diff()
        left, right = width[:-1], width[1:]
        weight = (2 * right + left) / (3 * (left + right))
        inner = 1 / (weight / mean[:-1] + (1 - weight) / mean[1:])
        self.register_buffer("x", x)
        self.register_buffer("y", y)
        self.register_buffer("slopes", torch.cat((mean[:1], inner, mean[-1:])))

    def forward_elementwise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Interpolate."""
        knots, values, slopes = (v.to(x) for v in (self.x, self.y, self.slopes))
        k = torch.searchsorted(knots[1:-1].contiguous(), x.contiguous())
        inside = x.clamp(knots[0], knots[-1])
        width, height = knots[k + 1] - knots[k], values[k + 1] - values[k]
        d0, d1 = slopes[k] * width / height, slopes[k + 1] * width / height
        theta = ((inside - knots[k]) / width).clamp(0, 1)
        t = theta * (1 - theta)
        bend = d0 + d1 - 2
        y = values[k] + height * (theta.square() + d0 * t) / (1 + bend * t)
        excess = x - inside
        y = y + excess * torch.where(excess < 0, slopes[0], slopes[-1])
        return y, _log_slope(theta, d0, d1, height / width)

    def inverse_elementwise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for the point of a given value."""
        knots, values, slopes = (v.to(z) for v in (self.x, self.y, self.slopes))
        k = torch.searchsorted(values[1:-1].contiguous(), z.contiguous())
        inside = z.clamp(values[0], values[-1])
        width, height = knots[k + 1] - knots[k], values[k + 1] - values[k]
        d0, d1 = slopes[k] * width / height, slopes[k + 1] * width / height
        r = ((inside - values[k]) / height).clamp(0, 1)
        bend = d0 + d1 - 2
        # (1 − b) θ² + b θ − r = 0 with b = d₀ − r·bend: of the two forms of the root the one that adds.
        b = d0 - r * bend
        root = (b.square() + 4 * (1 - b) * r).clamp(min=0).sqrt()
        theta = torch.where(b > 0, 2 * r / (b.clamp(min=0) + root), (root - b) / (2 * (1 - b.clamp(max=0))))
        theta = torch.where(r > 0, theta, 0.0).clamp(0, 1)
        excess = z - inside
        x = knots[k] + theta * width + excess / torch.where(excess < 0, slopes[0], slopes[-1])
        return x, -_log_slope(theta, d0, d1, height / width)


def _log_slope(theta: Tensor, d0: Tensor, d1: Tensor, mean: Tensor) -> Tensor:
    t = theta * (1 - theta)
    numerator = d1 * theta.square() + 2 * t + d0 * (1 - theta).square()
    return (mean * numerator).log() - 2 * (1 + (d0 + d1 - 2) * t).log()
