r"""A mixture of Gaussians whose weights, means and factors come from the context (a mixture density network).

.. math:: p(x \mid c) = \sum_k w_k(c) \; \mathcal{N}\bigl(x;\, \mu_k(c),\, L_k(c) L_k(c)^\top\bigr)

(Bishop 1994.) There is no bijection here: the density is the sum itself, and a draw chooses a component and draws from
that.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.types import _size

from fluvial.core.triangular import squash, triangular_affine, triangular_parameters
from fluvial.flows.amortized import Numbers, coordinates_first
from fluvial.flows.flow import AbstractFlow, ContextDistribution
from fluvial.flows.transformer import check_sizes

#: Log-weights before their softmax stay within ± this.
LOGIT_LIMIT = 15.0


class MixtureOfGaussians(AbstractFlow):
    """A mixture of Gaussians whose weights, means and covariances come from the context.

    It starts with components spread evenly over the standardised targets: equal ones would never part.

    Parameters
    ----------
    targets, context : int
        Numbers of targets and of context columns.
    components : int
        Gaussians in the mixture.
    covariance : str
        ``full`` or ``diagonal``.
    width, depth, residual, activation
        The network of the context; see :class:`fluvial.nets.MLP`.

    Examples
    --------
    >>> flow = MixtureOfGaussians(targets=2, context=3, components=4)
    >>> flow(torch.zeros(5, 3)).sample((7,)).shape
    torch.Size([7, 5, 2])
    """

    start: Tensor

    def __init__(
        self,
        targets: int,
        context: int = 0,
        *,
        components: int = 8,
        covariance: Literal["full", "diagonal"] = "full",
        width: int = 128,
        depth: int = 2,
        residual: bool = False,
        activation: str = "silu",
    ):
        check_sizes(targets=targets, context=context, components=components, width=width, depth=depth)
        if covariance not in ("full", "diagonal"):
            raise ValueError(f"Expected covariance to be one of full, diagonal; got {covariance!r}.")
        super().__init__(targets=targets, context=context)
        self.components = components
        self.full = covariance == "full"
        size = 1 + triangular_parameters(targets, full=self.full)
        network = {"width": width, "depth": depth, "residual": residual, "activation": activation}
        self.numbers = Numbers(context, size * components, **network)
        scale = components ** (-1 / (targets + 2))
        start = torch.zeros(size, components)
        start[1 : 1 + targets] = math.sqrt(1 - scale**2) * spread_points(components, targets).t()
        start[1 + targets : 1 + 2 * targets] = math.log(scale)
        self.register_buffer("start", start, persistent=False)

    def forward(self, context: Tensor | None = None) -> MixtureDistribution:
        """Return p(x | context) for ``context: [*batch, C]``; raise ``ValueError`` if C is another."""
        return MixtureDistribution(self, self.checked(context))

    def mixture(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log-weights ``[K, B]`` and the numbers of the factors ``[size, K, B]``; B contexts differ"""
        numbers = self.numbers(context).reshape(*self.start.shape, -1) + self.start[..., None]
        return squash(numbers[0], LOGIT_LIMIT).log_softmax(0), numbers[1:]


class MixtureDistribution(ContextDistribution):
    """p(x | context) of a :class:`MixtureOfGaussians`.

    ``batch_shape`` comes from the context, ``event_shape`` is ``(D,)``. ``log_prob`` has gradients towards x, the context
    and the parameters. Draws have those of the Gaussian that was chosen; none passes through the choice, so
    ``has_rsample`` is false.
    """

    has_rsample = False

    flow: MixtureOfGaussians

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value | context) in nats; ``value: [*S, *batch, D]``, result ``[*S, *batch]``.

        Raises
        ------
        ValueError
            If the last dimension of ``value`` is not D.
        """
        shape = self.shape_of(value)
        log_weight, numbers = self.flow.mixture(self.context_at(shape))
        x = coordinates_first(value.expand(*shape, -1), log_weight.shape[-1])
        return self._log_prob(x, log_weight, numbers).t().reshape(shape)

    def sample(self, sample_shape: _size = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[*sample_shape, *batch, D]`` without gradients."""
        with torch.no_grad():
            return self._draw(sample_shape, generator, with_log_prob=False)[0]

    def rsample_and_log_prob(
        self, sample_shape: _size = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw with the gradients of the Gaussian chosen, and return the exact log-density of each draw."""
        return self._draw(sample_shape, generator, with_log_prob=True)

    def _draw(
        self, sample_shape: _size, generator: torch.Generator | None, *, with_log_prob: bool
    ) -> tuple[Tensor, Tensor]:
        shape = torch.Size((*sample_shape, *self.batch_shape))
        like = self.flow.start
        z = torch.randn(
            (*shape, self.flow.targets), generator=generator, dtype=like.dtype, device=like.device
        )
        u = torch.rand((*shape, 1), generator=generator, dtype=like.dtype, device=like.device)
        return self._choose(z, u, shape, with_log_prob=with_log_prob)

    @property
    def uniforms(self) -> int:
        """How many uniform numbers a draw is made of: one chooses the Gaussian."""
        return self.flow.targets + 1

    def draw_from(self, uniform: Tensor) -> Tensor:
        """See :meth:`ContextDistribution.draw_from`."""
        with torch.no_grad():
            z = torch.special.ndtri(uniform[..., 1:]).to(self.flow.start.dtype)
            return self._choose(z, uniform[..., :1], z.shape[:-1], with_log_prob=False)[0]

    def _choose(
        self, z: Tensor, u: Tensor, shape: torch.Size, *, with_log_prob: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the draws made of normal ``z: [*shape, D]``, each of the Gaussian that ``u: [*shape, 1]`` falls on."""
        log_weight, numbers = self.flow.mixture(self.context_at(shape))
        contexts = log_weight.shape[-1]

        # (the last sum is 1 but for rounding, so it is left out: u never goes beyond the last component)
        reached = log_weight.detach().exp().cumsum(0)[:-1, :, None]
        chosen = (reached <= coordinates_first(u, contexts)).sum(0)
        of_chosen = numbers.transpose(1, 2).gather(2, chosen.expand(len(numbers), -1, -1))
        x, _ = triangular_affine(coordinates_first(z, contexts), of_chosen, full=self.flow.full, inverse=True)
        log_prob = self._log_prob(x, log_weight, numbers) if with_log_prob else x.new_empty(x.shape[1:])
        return x.permute(2, 1, 0).reshape(*shape, len(x)), log_prob.t().reshape(shape)

    def _log_prob(self, x: Tensor, log_weight: Tensor, numbers: Tensor) -> Tensor:
        """Return ``[B, S]`` for ``x: [D, B, S]``."""
        z, logdet = triangular_affine(x.unsqueeze(1), numbers.unsqueeze(-1), full=self.flow.full)
        # (the clamp as in StandardNormal: the square stays finite)
        normal = -0.5 * z.clamp(-1e15, 1e15).square().sum(0) - 0.5 * math.log(2 * math.pi) * len(x)
        return (log_weight.unsqueeze(-1) + normal + logdet).logsumexp(0)


def spread_points(points: int, dim: int) -> Tensor:
    r"""Return ``[points, dim]`` spread like a standard normal: the normal quantiles of a low-discrepancy sequence.

    The sequence is :math:`\tfrac12 + k \alpha_i \bmod 1` with :math:`\alpha_i = \phi^{-i}`, :math:`\phi^{d+1} = \phi + 1`
    (Roberts 2018); for one dimension, the golden ratio.
    """
    phi = 2.0
    for _ in range(60):
        phi = (1 + phi) ** (1 / (dim + 1))
    steps = torch.arange(points, dtype=torch.float64)[:, None]
    powers = phi ** -torch.arange(1, dim + 1, dtype=torch.float64)
    return torch.special.ndtri((0.5 + steps * powers).remainder(1).clamp(1e-3, 1 - 1e-3)).float()
