"""Steps that hold coordinates: absent ones pass untouched, angles stay on their circle.

A flow over mixed columns meets rows in which a coordinate is *absent*: the column sits on an atom, and no number is
left to transform. Every step then maps that coordinate by the identity and shows 0 in its place to the conditioners,
so that what remains is exactly a flow over the coordinates that are present. Which are present a step reads off its
context, where one-hot levels stand beside the user's columns.

:func:`hold` rebuilds the chain of a flow from such steps. Only what acts coordinate by coordinate can be held:
autoregressive and coupling steps, triangular maps, and permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.core import Bijection, Chain, Permutation, circular_spline
from fluvial.flows.amortized import Amortized, Numbers, TriangularMap, unexpanded
from fluvial.flows.autoregressive import Autoregressive
from fluvial.flows.coupling import Coupling
from fluvial.flows.transformer import SplineTransformer, Transformer
from fluvial.nets import MLP, Unfolding


def presence(context: Tensor, index: Tensor) -> Tensor:
    """Return which coordinates are present, ``[*batch, D]``, given where the context says so; −1 means always.

    >>> presence(torch.tensor([[0.3, 1.0], [0.3, 0.0]]), torch.tensor([-1, 1]))
    tensor([[ True,  True],
            [ True, False]])
    """
    return (context.index_select(-1, index.clamp(min=0)) > 0.5) | (index < 0)


def hold(
    bijection: Bijection,
    present: Sequence[int],
    angles: Sequence[bool],
    context: int,
    network: dict[str, Any],
) -> tuple[Chain, list[int]]:
    """Return a chain like ``bijection`` whose steps hold coordinates, and the order in which it leaves them.

    Parameters
    ----------
    bijection : Bijection
        A chain of autoregressive or coupling steps and permutations, or one amortised triangular map.
    present : sequence of int
        For each coordinate the context column that is 1 where it is present and 0 where it is absent; −1: always.
    angles : sequence of bool
        For each coordinate whether it is an angle in [−π, π); conditioners see its cosine and sine.
    context : int
        The number of context columns.
    network : dict
        Options of the conditioners, for those that must be built anew to see angles.

    Raises
    ------
    ValueError
        If a step mixes coordinates, or cannot hold them.
    """
    order = list(range(len(present)))
    steps: list[Bijection] = []
    for step in bijection.bijections if isinstance(bijection, Chain) else [bijection]:
        here, turn = [present[i] for i in order], [angles[i] for i in order]
        if isinstance(step, Permutation):
            order = [order[i] for i in step.order.tolist()]
            steps.append(step)
        elif isinstance(step, Autoregressive):
            steps.append(HeldAutoregressive(step, here, turn, context, network))
        elif isinstance(step, Coupling):
            steps.append(HeldCoupling(step, here, turn, context, network))
        elif isinstance(step, Amortized) and not any(angles):
            steps.append(_hold_amortized(step, here))
        else:
            raise ValueError(cannot_hold(step, any(angles)))
    return Chain(steps), order


def cannot_hold(step: Any, angles: bool) -> str:
    """Return the message that a step, or a whole flow, cannot hold coordinates, and what can."""
    what, kind = "periodic" if angles else "mixed", type(step).__name__
    if kind == "LU" or "Norm" in kind:
        option = 'mixing = "lu"' if kind == "LU" else "norm"
        return (
            f"{what} targets need steps that act on each coordinate alone; {option} does not. Expected "
            'mixing = "permutation", "reverse" or "none", and norm = "none".'
        )
    can = "autoregressive-spline or coupling-spline"
    if not angles:
        can = (
            "maf, autoregressive-spline, coupling-affine, coupling-spline, diagonal-gaussian or full-gaussian"
        )
    return f"{what} targets need an architecture that acts on each coordinate alone: {can}."


class _Held(Bijection):
    """What held steps share: the map of some coordinates, given their parameters."""

    index: Tensor

    def __init__(self, transformer: Transformer, present: Sequence[int], angles: Sequence[bool]):
        super().__init__()
        if any(angles) and not isinstance(transformer, SplineTransformer):
            raise ValueError(cannot_hold(transformer, True))
        self.transformer = transformer
        self.angles = list(angles)
        self.absent = any(i >= 0 for i in present)
        self.register_buffer("index", torch.tensor(list(present), dtype=torch.long), persistent=False)

    def here(self, context: Tensor | None) -> Tensor | None:
        """Return which coordinates are present; ``None`` where all always are."""
        return presence(context, self.index) if self.absent and context is not None else None

    def map(
        self, x: Tensor, parameters: Tensor, here: Tensor | None, part: slice, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """Map the coordinates ``part``, ``x: [*batch, n]`` with ``parameters: [*batch, n * size]``."""
        parameters = parameters.unflatten(-1, (x.shape[-1], self.transformer.size))
        value, log_slope = self.transformer(x, parameters, inverse=inverse)
        turning = [i for i, angle in enumerate(self.angles[part]) if angle]
        if turning:
            at = torch.tensor(turning, device=x.device)
            turned, log_turn = circular_spline(
                x.index_select(-1, at), parameters.index_select(-2, at), inverse=inverse
            )
            value, log_slope = value.index_copy(-1, at, turned), log_slope.index_copy(-1, at, log_turn)
        if here is not None:
            value = torch.where(here[..., part], value, x)
            log_slope = torch.where(here[..., part], log_slope, 0.0)
        return value, log_slope


class HeldAutoregressive(_Held):
    """An autoregressive step that holds coordinates; see the module."""

    def __init__(
        self,
        step: Autoregressive,
        present: Sequence[int],
        angles: Sequence[bool],
        context: int,
        network: dict[str, Any],
    ):
        super().__init__(step.transformer, present, angles)
        self.conditioner: MLP | AngleInputs = step.conditioner
        # A coordinate sees the features of those before it: an angle has two.
        self.first = [sum(1 + a for a in angles[:i]) for i in range(len(angles) + 1)]
        if any(angles):
            degrees = [d for d in self.first[:-1] for _ in range(step.transformer.size)]
            mlp = MLP(self.first[-1], context, len(degrees), output_degrees=degrees, **network)
            self.conditioner = AngleInputs(mlp, angles)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map all coordinates in one pass of the network."""
        parameters = self.conditioner(x, context)
        z, log_slope = self.map(x, parameters, self.here(context), slice(None), inverse=False)
        return z, log_slope.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the coordinates one after the other; without gradients in one pass of the network, unfolded."""
        network = self.conditioner.network if isinstance(self.conditioner, AngleInputs) else self.conditioner
        if not torch.is_grad_enabled() and not (network.training and network.depends_on_mode):
            return self._unfold(network, z, context)
        here = self.here(context)
        x, known = torch.zeros_like(z), []
        logdet = z.new_zeros(z.shape[:-1])
        size, dim = self.transformer.size, z.shape[-1]
        for i in range(dim):
            parameters = self.conditioner(x, context, slice(i * size, (i + 1) * size))
            part = slice(i, i + 1)
            value, log_slope = self.map(z[..., part], parameters, here, part, inverse=True)
            known.append(value)
            logdet = logdet + log_slope.squeeze(-1)
            x = torch.cat((*known, z.new_zeros((*z.shape[:-1], dim - i - 1))), -1)
        return x, logdet

    def _unfold(self, network: MLP, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = z.reshape(-1, z.shape[-1])
        if context is not None:
            context = context.expand(*z.shape[:-1], -1).reshape(len(rows), -1)
        here = self.here(context)
        unfolding = Unfolding(network, context, len(rows))
        x, logdet = torch.empty_like(rows), rows.new_zeros(len(rows))
        features = rows.new_empty(len(rows), self.first[-1])
        size, asked = self.transformer.size, 0
        for i, first in enumerate(self.first[:-1]):
            for between in range(
                asked, first
            ):  # the sine of an angle: no output has its degree, but units do
                unfolding.outputs(between, features[:, :between], slice(0, 0))
            parameters = unfolding.outputs(first, features[:, :first], slice(i * size, (i + 1) * size))
            part, asked = slice(i, i + 1), first + 1
            x[:, part], log_slope = self.map(rows[:, part], parameters, here, part, inverse=True)
            logdet += log_slope.squeeze(-1)
            features[:, first : self.first[i + 1]] = _features(x[:, part], self.angles[part])
        return x.reshape(z.shape), logdet.reshape(z.shape[:-1])


class HeldCoupling(_Held):
    """A coupling step that holds coordinates; see the module."""

    def __init__(
        self,
        step: Coupling,
        present: Sequence[int],
        angles: Sequence[bool],
        context: int,
        network: dict[str, Any],
    ):
        super().__init__(step.transformer, present, angles)
        first, last = step.sizes
        parts = slice(0, first), slice(first, first + last)
        self.mapped, self.steering = parts if step.flip else parts[::-1]
        self.flip = step.flip
        self.conditioner: MLP | AngleInputs = step.conditioner
        seen = list(angles)[self.steering]
        if any(seen):
            mapped = len(angles) - len(seen)
            mlp = MLP(len(seen) + sum(seen), context, mapped * step.transformer.size, **network)
            self.conditioner = AngleInputs(mlp, seen)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map one part; the other stays."""
        return self._couple(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`, at the same cost."""
        return self._couple(z, context, inverse=True)

    def _couple(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        steering, mapped = x[..., self.steering], x[..., self.mapped]
        parameters = self.conditioner(steering, context)
        value, log_slope = self.map(mapped, parameters, self.here(context), self.mapped, inverse=inverse)
        parts = (value, steering) if self.flip else (steering, value)
        return torch.cat(parts, -1), log_slope.sum(-1)


class AngleInputs(nn.Module):
    """A conditioner that sees every angle as its cosine and sine, so that a whole turn changes nothing."""

    def __init__(self, network: MLP, angles: Sequence[bool]):
        super().__init__()
        self.network = network
        self.angles = list(angles)

    def forward(self, x: Tensor, context: Tensor | None = None, outputs: slice | None = None) -> Tensor:
        """Return the parameters for every row, or only those that ``outputs`` picks."""
        return self.network(_features(x, self.angles), context, outputs)


def _features(x: Tensor, angles: Sequence[bool]) -> Tensor:
    """Return ``x: [*batch, D]`` with the cosine and the sine of every angle in its place."""
    features: list[Tensor] = []
    for column, angle in zip(x.unbind(-1), angles, strict=True):
        features += [column.cos(), column.sin()] if angle else [column]
    return torch.stack(features, -1)


class PresentNumbers(nn.Module):
    """The numbers that steer an amortised chain, zero where they belong to a coordinate that is absent."""

    index: Tensor

    def __init__(self, numbers: Numbers, index: Sequence[int]):
        super().__init__()
        self.numbers = numbers
        self.register_buffer("index", torch.tensor(list(index), dtype=torch.long), persistent=False)

    def forward(self, context: Tensor | None) -> Tensor:
        """Evaluate the network once for every context that differs."""
        assert context is not None
        context = unexpanded(context)
        return self.numbers(context) * presence(context, self.index).movedim(-1, 0)


def _hold_amortized(step: Amortized, present: Sequence[int]) -> Amortized:
    """Zero numbers are the identity: those of an absent coordinate, and those that would let others into it."""
    dim = len(present)
    owners: list[int] = []
    for one in step.maps:
        if not isinstance(one, TriangularMap):
            raise ValueError(cannot_hold(step, False))
        owners += [*range(dim)] * 2 + [i for i in range(dim) for _ in range(i) if one.full]
    step.numbers = PresentNumbers(step.numbers, [present[i] for i in owners])  # type: ignore[assignment]
    return step
