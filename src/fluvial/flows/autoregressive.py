r"""Masked autoregressive flows: every coordinate is mapped given those before it and the context.

.. math:: z_i = \tau(x_i; h_i(x_{<i}, c)), \qquad \log|\det| = \sum_i \log |\partial \tau / \partial x_i|

One pass of the network gives the density, and one, unfolded coordinate by coordinate, a draw. (Papamakarios, Pavlakou &
Murray 2017, arXiv:1705.07057; with splines: Durkan et al. 2019, arXiv:1906.04032.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluvial.core import Bijection, Chain
from fluvial.flows.flow import Base, ConditionalFlow
from fluvial.flows.mixing import Mixing, Norm, chain_of_steps, mixing_between
from fluvial.flows.transformer import AffineTransformer, SplineTransformer, Transformer, check_sizes, total
from fluvial.nets import MLP, unfolded


class Autoregressive(Bijection):
    """One autoregressive step over ``dim`` coordinates in their given order."""

    def __init__(self, dim: int, context: int, transformer: Transformer, **network):
        super().__init__()
        self.transformer = transformer
        degrees = torch.arange(dim).repeat_interleave(transformer.size).tolist()
        self.conditioner = MLP(dim, context, dim * transformer.size, output_degrees=degrees, **network)
        self.conditioner.keeps_bf16 = isinstance(transformer, SplineTransformer)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map all coordinates in one pass of the network."""
        z, log_slope = self.transformer(x, self._steer(x, context))
        return z, total(log_slope)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the coordinates one after the other, each given those already found.

        Without gradients the network is unfolded (:func:`fluvial.nets.unfolded`) and all coordinates together cost one
        pass of it; with gradients each costs a pass.
        """
        conditioner = self.conditioner
        if not torch.is_grad_enabled() and not (conditioner.training and conditioner.depends_on_mode):
            return self._unfold(z, context)
        x = torch.zeros_like(z)
        known: list[Tensor] = []
        logdet = z.new_zeros(z.shape[:-1])
        for i in range(z.shape[-1]):
            mine = slice(i * self.transformer.size, (i + 1) * self.transformer.size)
            parameters = self.conditioner(x, context, mine)
            value, log_slope = self.transformer(z[..., i], parameters, inverse=True)
            known.append(value)
            logdet = logdet + log_slope
            x = torch.cat((torch.stack(known, -1), z.new_zeros((*z.shape[:-1], z.shape[-1] - i - 1))), -1)
        return x, logdet

    def _unfold(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = z.reshape(-1, z.shape[-1])
        if context is not None:
            context = context.expand(*z.shape[:-1], -1)
            shared = all(
                size == 1 or stride == 0
                for size, stride in zip(context.shape, context.stride()[:-1], strict=False)
            )
            context = context[(0,) * (z.dim() - 1)][None] if shared else context.reshape(len(rows), -1)
        network = unfolded(self.conditioner, context, len(rows), rows)
        x, logdet = torch.empty_like(rows), rows.new_zeros(len(rows))
        for i in range(rows.shape[1]):
            mine = slice(i * self.transformer.size, (i + 1) * self.transformer.size)
            parameters = network.outputs(i, x[:, :i], mine)
            x[:, i], log_slope = self.transformer(rows[:, i], parameters, inverse=True)
            logdet += log_slope
        return x.reshape(z.shape), logdet.reshape(z.shape[:-1])

    def _steer(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.conditioner(x, context).unflatten(-1, (x.shape[-1], self.transformer.size))


class MAF(ConditionalFlow):
    """Masked autoregressive flow with affine steps.

    Parameters
    ----------
    targets, context : int
        Numbers of targets and of context columns.
    steps : int
        Autoregressive steps, with ``mixing`` between them.
    width, depth, residual, activation, gate, batch_norm, dropout, gain
        The conditioner of each step; see :class:`fluvial.nets.MLP`.
    mixing : str
        Between steps: ``reverse``, ``permutation``, ``lu`` (a learned matrix) or ``none``.
    norm : str
        Between steps: ``none``, ``batch`` (batch norm) or ``act`` (act norm).
    base : str
        Where the latent lives: ``normal``, or ``student-t`` (degrees of freedom are learned) for heavy tails.
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
        mixing: Mixing = "reverse",
        norm: Norm = "none",
        base: Base = "normal",
    ):
        network = {
            "width": width, "depth": depth, "residual": residual, "activation": activation, "gate": gate,
            "batch_norm": batch_norm, "dropout": dropout, "gain": gain,
        }  # fmt: skip
        super().__init__(
            _chain(targets, context, steps, AffineTransformer(), mixing, norm, network),
            targets=targets,
            context=context,
            base=base,
        )
        self.recordable = norm != "act" and not dropout


class AutoregressiveSpline(ConditionalFlow):
    """Autoregressive flow whose steps are rational-quadratic splines; the default for few targets.

    Parameters
    ----------
    targets, context, steps, width, depth, residual, activation, gate, batch_norm, dropout, gain, mixing, norm, base
        As for :class:`MAF`.
    bins : int
        Bins of every spline.
    bound : float
        The splines' box is ±bound, in standard deviations of the transformed targets.
    """

    def __init__(
        self,
        targets: int,
        context: int = 0,
        *,
        steps: int = 2,
        width: int = 128,
        depth: int = 1,
        residual: bool = True,
        activation: str = "silu",
        gate: bool = False,
        batch_norm: bool = False,
        dropout: float = 0.0,
        gain: float = 1.0,
        mixing: Mixing = "reverse",
        norm: Norm = "none",
        bins: int = 32,
        bound: float = 5.0,
        base: Base = "normal",
    ):
        network = {
            "width": width, "depth": depth, "residual": residual, "activation": activation, "gate": gate,
            "batch_norm": batch_norm, "dropout": dropout, "gain": gain,
        }  # fmt: skip
        check_sizes(bins=bins)
        transformer = SplineTransformer(bins, bound)
        chain = _chain(targets, context, steps, transformer, mixing, norm, network)
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
    return chain_of_steps(
        steps,
        norm,
        targets,
        mix=lambda step: mixing_between(mixing, targets, step),
        make=lambda step: Autoregressive(targets, context, transformer, **network),
    )
