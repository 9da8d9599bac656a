"""Base densities: where the latent lives."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


class StandardNormal(nn.Module):
    r"""D independent standard normals: :math:`\log p(z) = -\tfrac12 (\lVert z \rVert^2 + D \log 2\pi)`.

    >>> StandardNormal().log_prob(torch.zeros(3, 2))
    tensor([-1.8379, -1.8379, -1.8379])
    """

    #: How many uniform numbers a coordinate of a draw is made of.
    uniforms = 1

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density of ``z: [*batch, D]`` as ``[*batch]``, in nats.

        Beyond 1e15 the latent is taken at 1e15, so that its square stays finite in float32.
        """
        z = z.clamp(-1e15, 1e15)
        return -0.5 * z.square().sum(-1) - 0.5 * math.log(2 * math.pi) * z.shape[-1]

    def log_density(self, z: Tensor) -> Tensor:
        """Return the log-density of every coordinate by itself, of the shape of ``z``."""
        return -0.5 * z.clamp(-1e15, 1e15).square() - 0.5 * math.log(2 * math.pi)

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

    def from_uniform(self, u: Tensor) -> Tensor:
        """Return the latents whose quantiles are ``u: [*batch, D]``, strictly between 0 and 1; best in float64.

        >>> StandardNormal().from_uniform(torch.tensor([0.5, 0.975], dtype=torch.float64))
        tensor([0.0000, 1.9600], dtype=torch.float64)
        """
        return torch.special.ndtri(u)


class StudentT(nn.Module):
    r"""D independent Student-t variables, for targets with tails heavier than a normal's.

    .. math:: \log p(z) = \sum_i \log\Gamma\tfrac{\nu_i + 1}{2} - \log\Gamma\tfrac{\nu_i}{2} - \tfrac12 \log(\pi\nu_i)
              - \tfrac{\nu_i + 1}{2} \log(1 + z_i^2 / \nu_i)

    A flow that goes on as a straight line beyond its box keeps the tails of its base, so a heavy-tailed target
    needs a heavy-tailed base (Jaini, Kobyzev, Yu & Brubaker 2020, arXiv:1907.04481). The degrees of freedom, one for each
    coordinate, are :math:`\nu = 2 + \mathrm{softplus}(\cdot) > 2`: the variance is finite.

    Parameters
    ----------
    dim : int
        The number D of coordinates.
    degrees : float
        Degrees of freedom ν at the start, above 2.
    learnable : bool
        Whether training moves them.

    Raises
    ------
    ValueError
        Unless ``degrees`` is above 2.

    >>> base = StudentT(2, degrees=5.0)
    >>> base.degrees
    tensor([5., 5.], grad_fn=<AddBackward0>)
    >>> base.log_prob(torch.zeros(2)).item()
    -1.937239170074463
    """

    #: How many uniform numbers a coordinate of a draw is made of.
    uniforms = 2

    raw_degrees: Tensor

    def __init__(self, dim: int, *, degrees: float = 5.0, learnable: bool = True):
        super().__init__()
        if not 2 < degrees < math.inf:
            raise ValueError(f"Expected degrees of freedom above 2; got {degrees}.")
        excess = degrees - 2.0
        raw = torch.full((dim,), excess + math.log(-math.expm1(-excess)))  # softplus(raw) = excess
        if learnable:
            self.raw_degrees = nn.Parameter(raw)
        else:
            self.register_buffer("raw_degrees", raw)

    @property
    def degrees(self) -> Tensor:
        """Degrees of freedom ν > 2 of every coordinate, ``[D]``."""
        return 2.0 + softplus(self.raw_degrees)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density of ``z: [*batch, D]`` as ``[*batch]``, in nats.

        Beyond 1e15 the latent is taken at 1e15, so that its square stays finite in float32.
        """
        return self.log_density(z).sum(-1)

    def log_density(self, z: Tensor) -> Tensor:
        """Return the log-density of every coordinate by itself, of the shape of ``z``."""
        nu = self.degrees.to(z.dtype)
        half = 0.5 * (nu + 1)
        norm = torch.lgamma(half) - torch.lgamma(0.5 * nu) - 0.5 * (math.pi * nu).log()
        z = z.clamp(-1e15, 1e15)
        return norm - half * torch.log1p(z.square() / nu)

    def sample(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        r"""Draw latents of the given shape, whose last entry is D, with gradients towards ν.

        With E exponential and V uniform, :math:`\sqrt{\nu (e^{2E/\nu} - 1)} \cos 2\pi V` is a Student-t variable (Bailey
        1994, Math. Comp. 62, 779: Box and Muller's formula, which is its limit for many degrees of freedom).
        """
        dtype = dtype or self.raw_degrees.dtype
        exponential = torch.empty(shape, dtype=dtype, device=device).exponential_(generator=generator)
        turn = torch.rand(shape, generator=generator, dtype=dtype, device=device)
        return self._polar(exponential, turn)

    def from_uniform(self, u: Tensor) -> Tensor:
        """Return latents ``[*batch, D]`` made of ``u: [*batch, 2 D]``, strictly between 0 and 1, as in :meth:`sample`."""
        first, turn = u.chunk(2, -1)
        return self._polar(-first.log(), turn)

    def _polar(self, exponential: Tensor, turn: Tensor) -> Tensor:
        nu = self.degrees.to(turn.dtype)
        radius = (nu * torch.expm1(2 * exponential / nu)).clamp(min=torch.finfo(turn.dtype).tiny).sqrt()
        return radius * torch.cos(2 * math.pi * turn)


class Uniform(nn.Module):
    r"""D independent uniform variables on [low, high): the base of a flow over angles.

    >>> base = Uniform(-math.pi, math.pi)
    >>> base.log_prob(torch.tensor([[0.0, 3.0], [0.0, 4.0]]))
    tensor([-3.6758,    -inf])
    """

    def __init__(self, low: float, high: float):
        super().__init__()
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"Expected finite low < high; got {low} and {high}.")
        self.low = float(low)
        self.high = float(high)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return ``-D log(high - low)`` for ``z: [*batch, D]`` within the box, −inf outside, as ``[*batch]``."""
        inside = ((z >= self.low) & (z <= self.high)).all(-1)
        density = z.new_full((), -z.shape[-1] * math.log(self.high - self.low))
        return torch.where(inside, density, -math.inf)

    def sample(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draw latents of the given shape, whose last entry is D."""
        u = torch.rand(shape, generator=generator, dtype=dtype, device=device)
        return self.low + (self.high - self.low) * u
