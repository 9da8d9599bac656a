"""Base densities: where the latent lives."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    r"""D independent standard normals: :math:`\log p(z) = -\tfrac12 (\lVert z \rVert^2 + D \log 2\pi)`.

    >>> StandardNormal().log_prob(torch.zeros(3, 2))
    tensor([-1.8379, -1.8379, -1.8379])
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density of ``z: [*batch, D]`` as ``[*batch]``, in nats.

        Beyond 1e15 the latent is taken at 1e15, so that its square stays finite in float32.
        """
        z = z.clamp(-1e15, 1e15)
        return -0.5 * z.square().sum(-1) - 0.5 * math.log(2 * math.pi) * z.shape[-1]

    def sample(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draw latents of the given shape, whose last entry is D."""
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)
