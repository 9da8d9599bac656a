r"""Point regression as a density: a mean from the context, and one covariance for all contexts.

.. math:: p(x \mid c) = \mathcal N\bigl(x;\, \mu(c),\, \Sigma\bigr)

The mean is trained by least squares on the standardised targets, as a regression is; the covariance is that of the
residuals on the validation rows, which have not been trained on, set anew whenever these are measured. So it says what
such a regression can honestly say, and is compared with a density by the same log-probability.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluvial.core import Bijection
from fluvial.flows.amortized import Numbers
from fluvial.flows.flow import ConditionalFlow, weighted_mean
from fluvial.flows.transformer import check_sizes

#: Smallest standard deviation of residuals, in those of the targets.
_LEAST = 1e-4


class Residual(Bijection):
    r""":math:`z = L^{-1} (x - \mu(c))`, with the mean from a network of the context and one triangular factor for all."""

    factor: Tensor

    def __init__(self, dim: int, context: int, **network):
        super().__init__()
        self.numbers = Numbers(context, dim, **network)
        self.register_buffer("factor", torch.eye(dim))

    def mean(self, context: Tensor | None) -> Tensor:
        """Return the means ``[*batch, D]``; the network runs once for each context that differs."""
        return self.numbers(context).movedim(0, -1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Standardise the residual."""
        residual = (x - self.mean(context)).unsqueeze(-1)
        z = torch.linalg.solve_triangular(self.factor, residual, upper=False).squeeze(-1)
        return z, -self._logdet().expand(z.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`."""
        return self.mean(context) + z @ self.factor.mT, self._logdet().expand(z.shape[:-1])

    def _logdet(self) -> Tensor:
        return self.factor.diagonal().log().sum()


class PointRegression(ConditionalFlow):
    """Regression: the mean of each target from the context, by least squares; one covariance, that of its residuals.

    The covariance is estimated on the validation rows. Errors are then the same for every context, which is all that a
    regression knows of them.

    Parameters
    ----------
    targets, context : int
        Numbers of targets and of context columns.
    width, depth, residual, activation
        The network of the context; see :class:`fluvial.nets.MLP`.
    """

    loss_is_nll = False
    calibrated = True
    draw_rows = 65_536  # its network runs once for each context
    bijection: Residual

    def __init__(
        self,
        targets: int,
        context: int = 0,
        *,
        width: int = 128,
        depth: int = 2,
        residual: bool = False,
        activation: str = "silu",
    ):
        check_sizes(targets=targets, context=context, width=width, depth=depth)
        network = {"width": width, "depth": depth, "residual": residual, "activation": activation}
        super().__init__(Residual(targets, context, **network), targets=targets, context=context)

    def loss(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the mean square of the residuals, over rows and targets."""
        residual = x - self.bijection.mean(self.checked(context))
        return weighted_mean(residual.square().mean(-1), weight)

    def calibrate(self, x: Tensor, context: Tensor | None) -> None:
        """Set the covariance to that of the residuals of ``x: [n, D]``: their mean square about zero."""
        residual = (x - self.bijection.mean(self.checked(context))).double()
        covariance = residual.mT @ residual / len(residual)
        if bool(covariance.isfinite().all()):
            least = _LEAST**2 * torch.eye(len(covariance), dtype=torch.float64, device=x.device)
            self.bijection.factor.copy_(torch.linalg.cholesky(covariance + least))
