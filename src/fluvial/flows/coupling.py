r"""Coupling flows: one part of the coordinates steers the map of the other, so both directions take one pass.

.. math:: z_a = x_a, \qquad z_b = \tau(x_b; h(x_a, c))

(Dinh, Sohl-Dickstein & Bengio 2017, arXiv:1605.08803; with splines: Durkan et al. 2019, arXiv:1906.04032.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluvial.core import Bijection, Chain, Permutation
from fluvial.flows.flow import Base, ConditionalFlow
from fluvial.flows.mixing import Mixing, Norm, chain_of_steps, mixing_between
from fluvial.flows.transformer import AffineTransformer, SplineTransformer, Transformer, check_sizes
from fluvial.nets import MLP


class Coupling(Bijection):
    """One coupling step: it maps the last half of the coordinates given the first, or with ``flip`` the first.

    With a single coordinate nothing steers but the context.
    """

    def __init__(self, dim: int, context: int, transformer: Transformer, *, flip: bool = False, **network):
        super().__init__()
        self.transformer = transformer
        self.flip = flip
        half = dim // 2
        self.sizes = (half, dim - half) if not flip else (dim - half, half)
        if dim == 1:
            self.sizes, self.flip = (0, 1), False
        steering, mapped = (self.sizes[1], self.sizes[0]) if self.flip else self.sizes
        self.conditioner = MLP(steering, context, mapped * transformer.size, **network)
        self.conditioner.keeps_bf16 = isinstance(transformer, SplineTransformer)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map one part; the other stays."""
        return self._couple(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`, at the same cost."""
        return self._couple(z, context, inverse=True)

    def _couple(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        first, last = x.split(self.sizes, dim=-1)
        steering, mapped = (last, first) if self.flip else (first, last)
        parameters = self.conditioner(steering, context).unflatten(
            -1, (mapped.shape[-1], self.transformer.size)
        )
        mapped, log_slope = self.transformer(mapped, parameters, inverse=inverse)
        parts = (mapped, last) if self.flip else (first, mapped)
        return torch.cat(parts, dim=-1), log_slope.sum(-1)


class CouplingAffine(ConditionalFlow):
    """Coupling flow with affine steps (RealNVP).

    Parameters
    ----------
    targets, context, steps, width, depth, residual, activation, gate, batch_norm, dropout, gain, mixing, norm, base
        As for :class:`CouplingSpline`.
    """

    def __init__(
        self,
        targets: int,
        context: int = 0,
        *,
        steps: int = 8,
        width: int = 128,
        depth: int = 2,
        residual: bool = False,
        activation: str = "silu",
        gate: bool = False,
        batch_norm: bool = False,
        dropout: float = 0.0,
        gain: float = 1.0,
        mixing: Mixing = "lu",
        norm: Norm = "none",
        base: Base = "normal",
    ):
        network = {
            "width": width, "depth": depth, "residual": residual, "activation": activation, "gate": gate,
            "batch_norm": batch_norm, "dropout": dropout, "gain": gain,
        }  # fmt: skip
        chain = _chain(targets, context, steps, AffineTransformer(), mixing, norm, network)
        super().__init__(chain, targets=targets, context=context, base=base)
        self.recordable = norm != "act" and not dropout


class CouplingSpline(ConditionalFlow):
    """Coupling flow whose steps are rational-quadratic splines; the default for many targets.

    FlashSim's flow is ``steps = 17, width = 298, depth = 10, residual = true, gate = true, batch_norm = true, bins = 128,
    activation = "relu"``.

    Parameters
    ----------
    targets, context : int
        Numbers of targets and of context columns.
    steps : int
        Coupling steps, at least 2 for two or more targets: each maps half of the coordinates.
    width, depth, residual, activation, gate, batch_norm, dropout, gain
        The conditioner of each step; see :class:`fluvial.nets.MLP`.
    mixing : str
        Between steps: ``lu`` (a learned matrix), ``permutation``, ``reverse`` or ``none``.
    norm : str
        Between steps: ``none``, ``batch`` (batch norm) or ``act`` (act norm).
    bins : int
        Bins of every spline.
    bound : float
        The splines' box is ±bound, in standard deviations of the transformed targets.
    base : str
        Where the latent lives: ``normal``, or ``student-t`` (degrees of freedom are learned) for heavy tails.
    """

    def __init__(
        self,
        targets: int,
        context: int = 0,
        *,
        steps: int = 6,
        width: int = 128,
        depth: int = 2,
        residual: bool = False,
        activation: str = "silu",
        gate: bool = False,
        batch_norm: bool = False,
        dropout: float = 0.0,
        gain: float = 1.0,
        mixing: Mixing = "lu",
        norm: Norm = "none",
        bins: int = 16,
        bound: float = 5.0,
        base: Base = "normal",
    ):
        check_sizes(bins=bins)
        network = {
            "width": width, "depth": depth, "residual": residual, "activation": activation, "gate": gate,
            "batch_norm": batch_norm, "dropout": dropout, "gain": gain,
        }  # fmt: skip
        chain = _chain(targets, context, steps, SplineTransformer(bins, bound), mixing, norm, network)
        super().__init__(chain, targets=targets, context=context, base=base)
        self.recordable = norm != "act" and not dropout


def _chain(
    targets: int,
    context: int,
    steps: int,
    transformer: Transformer,
    mixing: Mixing,
    norm: Norm,
    network: dict,
) -> Chain:
    check_sizes(targets=targets, context=context, steps=steps, width=network["width"], depth=network["depth"])
    if targets > 1 and steps < 2:
        raise ValueError(
            "Expected at least 2 coupling steps: one alone leaves half of the targets as they are; got 1."
        )
    # A reordering brings the other half into place by itself; else the steps take the halves in turn.
    in_turn = mixing in ("lu", "none")
    return chain_of_steps(
        steps,
        norm,
        targets,
        mix=lambda step: _mixing(mixing, targets, step),
        make=lambda step: Coupling(targets, context, transformer, flip=in_turn and step % 2 == 1, **network),
    )


def _mixing(kind: Mixing, dim: int, step: int) -> list[Bijection]:
    """Return what stands between coupling steps; a permutation is one that brings the steering half to be mapped."""
    if kind != "permutation" or dim == 1:
        return mixing_between(kind, dim, step)
    generator = torch.Generator().manual_seed(1000 * dim + step)
    half = dim // 2
    first, last = (
        torch.randperm(half, generator=generator),
        half + torch.randperm(dim - half, generator=generator),
    )
    return [Permutation(torch.cat((last, first)).tolist())]
