r"""Amortised flows: one network turns the context into all numbers of a chain of maps, once for each context.

.. math:: z = f_n(\dots f_1(x; \theta_1(c)) \dots; \theta_n(c)), \qquad (\theta_1, \dots, \theta_n) = \mathrm{MLP}(c)

The maps see x only through :math:`\theta(c)`: the network never runs once per draw. A Gaussian is the simplest; three
Gaussianization layers with rotations between them reach any smooth density (Meng, Song, Song & Ermon 2020,
arXiv:2003.01941).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fluvial.core import Bijection
from fluvial.core.gaussianization import gaussianize, starting_kernels
from fluvial.core.triangular import rotate, squash, triangular_affine, triangular_parameters
from fluvial.flows.flow import ConditionalFlow
from fluvial.flows.transformer import check_sizes
from fluvial.nets import MLP
from fluvial.nets.mlp import draw_in

#: Draws that pass through the maps at once when no gradient is wanted: the small steps between kernels stay in the cache.
ROWS = 65536


class ParametricMap(Protocol):
    """A bijection of D coordinates as data: how many numbers steer it, and what it does given them.

    Coordinates come first: ``x: [D, B, S]`` for B contexts with S values each, ``parameters: [size, B, 1]``; returns
    the value and ``logdet: [B, S]``. All-zero parameters are the start, at which a standard normal stays (nearly) one.
    """

    @property
    def size(self) -> int:
        """How many numbers."""
        ...

    def __call__(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Apply the map or its inverse."""
        ...


@dataclass(frozen=True)
class TriangularMap:
    r""":math:`z = L^{-1} (x - \mu)`; see :func:`fluvial.core.triangular_affine`. Without ``full``, L is diagonal."""

    dim: int
    full: bool = True

    @property
    def size(self) -> int:
        """Means, log-scales and what is off the diagonal."""
        return triangular_parameters(self.dim, full=self.full)

    def __call__(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Apply the factor or its inverse."""
        return triangular_affine(x, parameters, full=self.full, inverse=inverse)


@dataclass(frozen=True)
class RotationMap:
    """An orthogonal map, D Householder reflections; see :func:`fluvial.core.triangular.rotate`."""

    dim: int

    @property
    def size(self) -> int:
        """D directions of D components."""
        return self.dim**2

    def __call__(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Apply the rotation or its inverse."""
        return rotate(x, parameters, inverse=inverse), x.new_zeros(x.shape[1:])


@dataclass(frozen=True)
class GaussianizationMap:
    """Mixture-CDF Gaussianization of each coordinate; see :func:`fluvial.core.gaussianize`."""

    dim: int
    kernels: int = 10
    mean_limit: float = 10.0
    log_scale_limit: float = math.log(100.0)
    logit_limit: float = 10.0

    @property
    def size(self) -> int:
        """A mean, a width and a weight for every kernel of every coordinate."""
        return 3 * self.kernels * self.dim

    def __call__(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Apply the maps of all coordinates or their inverses."""
        raw = parameters.squeeze(-1).unflatten(0, (3, self.kernels, self.dim))
        limits = (self.mean_limit, self.log_scale_limit, self.logit_limit)
        mean, log_scale, logits = (
            squash(r, limit) + start.to(r).reshape(-1, 1, 1)
            for r, limit, start in zip(raw, limits, starting_kernels(self.kernels), strict=True)
        )
        z, log_slope = gaussianize(x, mean, log_scale, logits, inverse=inverse)
        return z, log_slope.sum(0)


class Amortized(Bijection):
    """A chain of maps, all of whose numbers come from one network of the context, or are parameters without one."""

    def __init__(self, dim: int, context: int, maps: Sequence[ParametricMap], **network):
        super().__init__()
        self.maps = tuple(maps)
        self.sizes = [m.size for m in self.maps]
        self.numbers = Numbers(context, sum(self.sizes), **network)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the maps in order."""
        return self._apply_maps(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo the maps, the last one first."""
        return self._apply_maps(z, context, inverse=True)

    def _apply_maps(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        numbers = self.numbers(context)
        lead = numbers.shape[1:]
        numbers = numbers.flatten(1) if lead else numbers[:, None]
        contexts = numbers.shape[1]
        rows = coordinates_first(x, contexts)
        if torch.is_grad_enabled():
            value, logdet = self._chain(rows, numbers, inverse=inverse)
        else:
            value, logdet = rows.new_empty(rows.shape), rows.new_empty(rows.shape[1:])
            draws = rows.shape[2]
            step = max(1, ROWS // max(1, draws))
            for start in range(0, contexts, step):
                block = slice(start, start + step)
                for first in range(0, draws, ROWS):
                    part = slice(first, first + ROWS)
                    value[:, block, part], logdet[block, part] = self._chain(
                        rows[:, block, part], numbers[:, block], inverse=inverse
                    )
        return value.permute(2, 1, 0).reshape(x.shape), logdet.t().reshape(x.shape[:-1])

    def _chain(self, x: Tensor, numbers: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        total = x.new_zeros(x.shape[1:])
        steps = list(zip(self.maps, numbers[..., None].split(self.sizes), strict=True))
        for step, parameters in reversed(steps) if inverse else steps:
            x, logdet = step(x, parameters, inverse=inverse)
            total = total + logdet
        return x, total


class Numbers(nn.Module):
    """The numbers ``[size, *batch]`` that steer a chain of maps, given the context; zero at the start.

    Without a context they are parameters themselves, ``[size]``. A context beyond ten standard deviations is drawn in
    smoothly: one that lies far out cannot throw the numbers.
    """

    def __init__(self, context: int, size: int, **network):
        super().__init__()
        self.network = MLP(0, context, size, **network) if context else None
        self.constants = None if context else nn.Parameter(torch.zeros(size))

    def forward(self, context: Tensor | None) -> Tensor:
        """Evaluate the network once for every context that differs."""
        if self.constants is not None:
            return self.constants
        assert self.network is not None
        assert context is not None
        context = draw_in(unexpanded(context))
        return self.network(context.new_empty((*context.shape[:-1], 0)), context).movedim(-1, 0).contiguous()


def coordinates_first(x: Tensor, contexts: int) -> Tensor:
    """Return ``x: [*S, *batch, D]`` as ``[D, B, S]``, a view, where ``batch`` holds B contexts."""
    draws = x.shape[:-1].numel() // max(contexts, 1)
    return x.reshape(draws, contexts, x.shape[-1]).permute(2, 1, 0)


def unexpanded(context: Tensor) -> Tensor:
    """Return the context without the leading dimensions along which it was only expanded (or which have size 1).

    >>> unexpanded(torch.zeros(64, 4).expand(1000, 64, 4)).shape
    torch.Size([64, 4])
    """
    while context.dim() > 1 and (context.shape[0] == 1 or (context.shape[0] > 1 and context.stride(0) == 0)):
        context = context[0]
    return context


class DiagonalGaussian(ConditionalFlow):
    """Independent Gaussians: a mean and a scale of each target from the context, 6 numbers for three targets.

    Parameters
    ----------
    targets, context : int
        Numbers of targets and of context columns.
    width, depth, residual, activation
        The network of the context; see :class:`fluvial.nets.MLP`.
    """

    draw_rows = 65_536  # its network runs once for each context

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
        maps = [TriangularMap(targets, full=False)]
        super().__init__(Amortized(targets, context, maps, **network), targets=targets, context=context)


class FullGaussian(ConditionalFlow):
    """A Gaussian with means and a full covariance from the context, 9 numbers for three targets.

    Parameters
    ----------
    targets, context : int
        Numbers of targets and of context columns.
    width, depth, residual, activation
        The network of the context; see :class:`fluvial.nets.MLP`.
    """

    draw_rows = 65_536  # its network runs once for each context

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
        maps = [TriangularMap(targets)]
        super().__init__(Amortized(targets, context, maps, **network), targets=targets, context=context)


class Gaussianization(ConditionalFlow):
    """Layers of rotation and mixture-CDF Gaussianization after a triangular map, all numbers from the context.

    With its defaults 306 numbers in three dimensions. The network runs once for each context, so many draws for one
    context cost little more than the kernels.

    Parameters
    ----------
    targets, context : int
        Numbers of targets and of context columns.
    layers : int
        Gaussianization layers, each after a rotation.
    kernels : int
        Normal kernels of each layer and target.
    width, depth, residual, activation
        The network of the context; see :class:`fluvial.nets.MLP`.
    """

    draw_rows = 65_536  # its network runs once for each context

    def __init__(
        self,
        targets: int,
        context: int = 0,
        *,
        layers: int = 3,
        kernels: int = 10,
        width: int = 128,
        depth: int = 2,
        residual: bool = False,
        activation: str = "silu",
    ):
        check_sizes(
            targets=targets, context=context, layers=layers, kernels=kernels, width=width, depth=depth
        )
        network = {"width": width, "depth": depth, "residual": residual, "activation": activation}
        maps: list[ParametricMap] = [TriangularMap(targets)]
        for _ in range(layers):
            maps += [RotationMap(targets), GaussianizationMap(targets, kernels)]
        super().__init__(Amortized(targets, context, maps, **network), targets=targets, context=context)
