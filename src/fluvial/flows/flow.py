"""A conditional flow, and the distribution that it gives for a context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.types import _size

from fluvial.core import BatchNorm, Bijection, StandardNormal, StudentT
from fluvial.flows import graphed
from fluvial.nets import MLP, Encoder

Base = Literal["normal", "student-t"]


class AbstractFlow(nn.Module):
    """What every architecture is: a module that turns a context into a distribution, and knows its own loss.

    ``flow(context)`` gives an object with ``log_prob(x)``, ``sample(shape, generator=...)`` and
    ``rsample_and_log_prob(shape, generator=...)``; no other part of the library asks more of a flow.

    Attributes
    ----------
    targets, context : int
        Numbers of targets D and of context columns C.
    loss_is_nll : bool
        Whether :meth:`loss` is the mean of −log p. Where it is not, training measures −log p beside it.
    recordable : bool
        Whether it does the same operations whatever the values are, and none of them waits for the GPU or draws random
        numbers: then :mod:`fluvial.flows.graphed` may record them.
    draw_rows : int
        How many draws to make at once: few enough for the caches, unless a flow gains from many at one context.
    train_rows : int
        How many rows :meth:`backward` takes at once; on a GPU it is all of them.
    validation_rows : int or None
        How many validation rows are enough, for a flow whose log-density is dear; ``None``: all of them.
    calibrated : bool
        Whether :meth:`calibrate` has something to set.
    """

    loss_is_nll: bool = True
    calibrated: bool = False
    recordable: bool = False
    draw_rows: int = 8192
    train_rows: int = 5120
    validation_rows: int | None = None

    def __init__(self, *, targets: int, context: int = 0):
        super().__init__()
        self.targets = targets
        self.context = context

    def forward(self, context: Tensor | None = None) -> Any:
        """Return p(x | context) for ``context: [*batch, C]``."""
        raise NotImplementedError

    def encode(self, context: Tensor | None) -> Tensor | None:
        """Return what the flow makes of contexts before it meets a target, once for each: here the contexts themselves.

        ``flow(context)`` is ``flow.given_features(flow.encode(context))``: whoever asks about a context again and again
        encodes it once.
        """
        return self.checked(context)

    def given_features(self, features: Tensor | None) -> Any:
        """Return p(x | context) for what :meth:`encode` made of a context, ``[*batch, F]``."""
        return self(features)

    def calibrate(self, x: Tensor, context: Tensor | None) -> None:
        """Set what is estimated on the validation rows, and not trained, if the flow is ``calibrated``."""

    def loss(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the scalar that training makes small: the mean of −log p(x | context), in nats.

        ``x: [n, D]``, ``context: [n, C]``; ``weight: [n]`` multiplies what each row adds, and is 1 on average over all
        rows; ``generator`` is for architectures whose loss draws random numbers.
        """
        return -weighted_mean(self(context).log_prob(x), weight)

    def backward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Add the gradient of :meth:`loss` to that of the parameters, and return the loss, detached.

        Rows go through in equal pieces of at most ``train_rows``: activations stay in the caches, and memory does not
        grow with the batch. The result is that of the whole batch but for rounding; where batch norm needs the whole
        batch, and on a GPU, it is used.
        """
        if x.is_cuda and (loss := graphed.backward(self, x, context, weight)) is not None:
            return loss
        whole = x.is_cuda or self._has_batch_norm()
        pieces = 1 if whole else max(1, math.ceil(len(x) / self.train_rows))
        rows = max(1, math.ceil(len(x) / pieces))
        total = x.new_zeros(())
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            share = len(x[part]) / len(x)
            given, weights = (None if t is None else t[part] for t in (context, weight))
            loss = share * self.loss(x[part], given, weight=weights, generator=generator)
            loss.backward()
            total += loss.detach()
        return total

    def _has_batch_norm(self) -> bool:
        return any(isinstance(m, (BatchNorm, nn.BatchNorm1d)) for m in self.modules())

    def use_bf16(self, on: bool) -> None:
        """Let conditioners and encoders multiply in bfloat16 while they train, or not; all else stays as it is.

        For a GPU, or a CPU with instructions for bfloat16 (AVX-512 BF16: then by the kernel in C, which sums in float32);
        anywhere else it is slower.
        """
        for module in self.modules():
            if isinstance(module, (MLP, Encoder)):
                module.bf16 = on

    def checked(self, context: Tensor | None) -> Tensor | None:
        """Return the context, or ``None`` for a flow without; raise ``ValueError`` if its last dimension is not C."""
        got = 0 if context is None else context.shape[-1]
        if got != self.context:
            shape = "no context" if context is None else f"shape {tuple(context.shape)}"
            raise ValueError(f"Expected context of trailing dimension {self.context}; got {shape}.")
        return context if self.context else None


class ConditionalFlow(AbstractFlow):
    r"""A bijection and a base density: :math:`\log p(x|c) = \log p_z(f(x; c)) + \log |\det \partial f / \partial x|`.

    Calling the flow with a context gives a :class:`FlowDistribution`. Architectures subclass this with a recipe
    for the bijection and nothing else.

    >>> from fluvial.flows import MAF
    >>> flow = MAF(targets=2, context=3)
    >>> p = flow(torch.zeros(5, 3))
    >>> p.batch_shape, p.event_shape, p.sample((4,)).shape
    (torch.Size([5]), torch.Size([2]), torch.Size([4, 5, 2]))
    """

    def __init__(self, bijection: Bijection, *, targets: int, context: int = 0, base: Base = "normal"):
        super().__init__(targets=targets, context=context)
        self.bijection = bijection
        self.base = make_base(base, targets)

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Return p(x | context) for ``context: [*batch, C]``; for an unconditional flow, ``context`` is ``None``.

        Raises
        ------
        ValueError
            If the last dimension of the context is not what the flow was built for.
        """
        return FlowDistribution(self, self.checked(context))

    def to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the latent of ``x: [*batch, D]``, given ``context: [*batch, C]``, and the logdet ``[*batch]``."""
        return graphed.apply(self, "to_latent", self.bijection, x, context)

    def from_latent(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Undo :meth:`to_latent`."""
        return graphed.apply(self, "from_latent", self.bijection.inverse, z, context)


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean of ``values: [n]``, each times its weight if there are weights."""
    return values.mean() if weight is None else (weight * values).mean()


def make_base(kind: Base, dim: int) -> StandardNormal | StudentT:
    """Return the base density of ``dim`` coordinates: ``normal``, or ``student-t`` with learned degrees of freedom."""
    if kind == "normal":
        return StandardNormal()
    if kind == "student-t":
        return StudentT(dim)
    raise ValueError(f"Expected base to be one of normal, student-t; got {kind!r}.")


class ContextDistribution(Distribution):
    """p(x | context): what the distributions of flows share.

    ``batch_shape`` comes from the context, ``event_shape`` is ``(D,)``.
    """

    flow: Any

    def __init__(self, flow: Any, context: Tensor | None):
        self.flow = flow
        self.context = context
        batch = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch, torch.Size((flow.targets,)), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """None: a flow's parameters are free."""
        return {}

    @property
    def support(self) -> constraints.Constraint:
        """All of R^D."""
        return constraints.real_vector

    def expand(self, batch_shape, _instance=None) -> Self:
        """Return the distribution with its context expanded to ``batch_shape``."""
        return type(self)(self.flow, self.context_at(batch_shape))

    def shape_of(self, value: Tensor) -> torch.Size:
        """Return the shape ``[*S, *batch]`` of the log-density of ``value: [*S, *batch, D]``.

        Raises
        ------
        ValueError
            If the last dimension of ``value`` is not D.
        """
        if value.shape[-1] != self.flow.targets:
            raise ValueError(
                f"Expected trailing dimension {self.flow.targets} for targets; got shape {tuple(value.shape)}."
            )
        return torch.broadcast_shapes(value.shape[:-1], self.batch_shape)

    def context_at(self, shape: Sequence[int]) -> Tensor | None:
        """Return the context expanded to ``[*shape, C]``; ``None`` for an unconditional flow."""
        return None if self.context is None else self.context.expand(*shape, self.context.shape[-1])

    @property
    def uniforms(self) -> int:
        """How many uniform numbers a draw is made of, see :meth:`draw_from`."""
        raise NotImplementedError

    def draw_from(self, uniform: Tensor) -> Tensor:
        """Return the draws made of given random numbers: a function of them and of the context, and of nothing else.

        ``uniform: [*S, *batch, uniforms]``, strictly between 0 and 1 and best in float64, gives ``[*S, *batch, D]``
        without gradients. Independent uniform numbers give draws of the distribution.
        """
        raise NotImplementedError


class FlowDistribution(ContextDistribution):
    """p(x | context) of a :class:`ConditionalFlow`; all has gradients towards x, the context and the parameters."""

    has_rsample = True

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value | context) in nats; ``value: [*S, *batch, D]``, result ``[*S, *batch]``.

        Raises
        ------
        ValueError
            If the last dimension of ``value`` is not D.
        """
        shape = self.shape_of(value)
        z, logdet = self.flow.to_latent(value.expand(*shape, -1), self.context_at(shape))
        return self.flow.base.log_prob(z) + logdet

    def rsample(self, sample_shape: _size = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[*sample_shape, *batch, D]`` with gradients."""
        return self._draw(sample_shape, generator)[0]

    def sample(self, sample_shape: _size = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[*sample_shape, *batch, D]`` without gradients."""
        with torch.no_grad():
            return self._draw(sample_shape, generator)[0]

    def rsample_and_log_prob(
        self, sample_shape: _size = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw with gradients, and return the log-density of each draw from the same pass."""
        x, z, logdet = self._draw(sample_shape, generator)
        return x, self.flow.base.log_prob(z) - logdet

    @property
    def uniforms(self) -> int:
        """How many uniform numbers a draw is made of."""
        return self.flow.targets * self.flow.base.uniforms

    def draw_from(self, uniform: Tensor) -> Tensor:
        """See :meth:`ContextDistribution.draw_from`."""
        with torch.no_grad():
            z = self.flow.base.from_uniform(uniform).to(next(self.flow.parameters()).dtype)
            return self._from_latent(z, self.context_at(z.shape[:-1]))

    def _from_latent(self, z: Tensor, context: Tensor | None) -> Tensor:
        return self.flow.from_latent(z, context)[0]

    def _draw(self, sample_shape: _size, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        z, context = self._latent(sample_shape, generator)
        x, logdet = self.flow.from_latent(z, context)
        return x, z, logdet

    def _latent(self, sample_shape: _size, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """Return draws of the base ``[*sample_shape, *batch, D]``, and the context of each."""
        shape = (*sample_shape, *self.batch_shape)
        like = next(self.flow.parameters())
        z = self.flow.base.sample(
            (*shape, self.flow.targets), generator=generator, dtype=like.dtype, device=like.device
        )
        return z, self.context_at(shape)
