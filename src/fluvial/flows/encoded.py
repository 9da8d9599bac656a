r"""Flows over array-valued contexts: an encoder, evaluated once per context, and any flow given its features.

.. math:: p(x \mid c, a) = p\bigl(x \mid c, e(a)\bigr)

with scalars c and arrays a (a spectrum, its errors), which arrive side by side in one tensor: the coded scalars first,
then the arrays one after the other, in their units. Arrays of one length are the channels of one encoder; every other
length has an encoder of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.flows.amortized import unexpanded
from fluvial.flows.ensemble import EnsembleFlow
from fluvial.flows.featured import FeaturedFlow
from fluvial.flows.flow import AbstractFlow
from fluvial.flows.mixed import build_mixed_flow
from fluvial.nets.encoders import build_encoder
from fluvial.nets.inputs import ArrayInput

#: Contexts that pass through the encoder at once when no gradient is wanted.
ROWS = 256


@dataclass(frozen=True)
class ArrayKind:
    """What a flow must know of an array column: see :class:`fluvial.nets.ArrayInput`."""

    length: int
    clip: float | None = None
    pixels: bool = False
    masked: bool = False


class EncodedFlow(FeaturedFlow):
    """p(x | scalars, features of arrays): any flow, given what encoders make of the arrays of its context.

    The encoders run once per context, never once per draw: :meth:`encode` gives features, and
    :meth:`given_features` the distribution at them. Make one with :func:`with_encoder`.

    Attributes
    ----------
    inputs : ModuleList of ArrayInput
        One for each array.
    encoders : ModuleList of Encoder
        One for each length.
    """

    train_rows = 256

    def __init__(
        self,
        flow: AbstractFlow,
        inputs: Sequence[ArrayInput],
        encoders: Sequence[nn.Module],
        members: Sequence[Sequence[int]],
        *,
        scalars: int,
    ):
        super().__init__(targets=flow.targets, context=scalars + sum(one.length for one in inputs))
        self.inputs, self.encoders = nn.ModuleList(inputs), nn.ModuleList(encoders)
        self.members, self.scalars = [list(m) for m in members], scalars
        self._over(flow)

    def distances(self, arrays: Sequence[Tensor]) -> list[Tensor]:
        """Return how far arrays ``[*batch, length]``, in units, lie from the mean: the root mean square of pixels."""
        pairs = zip(self.inputs, arrays, strict=True)
        return [module(array).square().mean(-1).sqrt() for module, array in pairs]

    def _features(self, context: Tensor | None) -> Tensor:
        checked = self.checked(context)
        assert checked is not None, "an array is a context"
        own = unexpanded(checked)
        rows = own.reshape(-1, own.shape[-1])
        if torch.is_grad_enabled():
            features = self._encode_rows(rows)
        else:
            features = torch.cat([self._encode_rows(part) for part in rows.split(ROWS)])
        features = features.reshape(*own.shape[:-1], features.shape[-1])
        return features.expand(*checked.shape[:-1], features.shape[-1])

    def _encode_rows(self, rows: Tensor) -> Tensor:
        scalars, *arrays = rows.split([self.scalars, *(one.length for one in self.inputs)], dim=-1)
        inputs = [module(array) for module, array in zip(self.inputs, arrays, strict=True)]
        channels = (torch.stack([inputs[i] for i in members], 1) for members in self.members)
        return torch.cat([scalars, *(e(x) for e, x in zip(self.encoders, channels, strict=True))], -1)


def with_encoder(
    make: Callable[[int], AbstractFlow],
    *,
    scalars: int,
    arrays: Sequence[ArrayKind] = (),
    encoder: Mapping[str, Any] | None = None,
) -> AbstractFlow:
    """Return ``make(scalars)``, or with arrays that flow over the scalars and what encoders make of the arrays.

    Parameters
    ----------
    make : callable
        From the number of context columns to a flow.
    scalars : int
        Columns of the context that are numbers.
    arrays : sequence of ArrayKind
        Those that are arrays, in the order in which they come.
    encoder : mapping
        ``architecture``, and options of it (see :data:`fluvial.nets.encoders.ENCODERS`).

    Raises
    ------
    StudyError
        If the encoder is unknown, or an option cannot be.

    >>> from functools import partial
    >>> from fluvial.flows import build_flow
    >>> flow = with_encoder(lambda n: build_flow("maf", targets=2, context=n), scalars=1, arrays=[ArrayKind(64)],
    ...                     encoder={"architecture": "spectrum", "features": 8})
    >>> flow.context, flow(torch.zeros(5, 65)).sample((4,)).shape
    (65, torch.Size([4, 5, 2]))
    """
    if not arrays:
        return make(scalars)
    options = dict(encoder or {})
    name = options.pop("architecture")
    lengths = list(dict.fromkeys(kind.length for kind in arrays))
    members = [[i for i, kind in enumerate(arrays) if kind.length == length] for length in lengths]
    encoders = [
        build_encoder(name, channels=len(own), length=length, **options)
        for own, length in zip(members, lengths, strict=True)
    ]
    inputs = [ArrayInput(k.length, clip=k.clip, pixels=k.pixels, masked=k.masked) for k in arrays]
    flow = make(scalars + sum(e.features for e in encoders))
    return EncodedFlow(flow, inputs, encoders, members, scalars=scalars)


def build_encoded_flow(
    architecture: str,
    *,
    context: int,
    arrays: Sequence[ArrayKind] = (),
    encoder: Mapping[str, Any] | None = None,
    members: int = 1,
    **options: Any,
) -> AbstractFlow:
    """Build a flow over mixed columns (see :func:`fluvial.flows.build_mixed_flow`) whose context may hold arrays.

    ``context`` is the number of scalar columns; ``arrays`` and ``encoder`` are explained at :func:`with_encoder`. Each of
    several ``members`` has encoders of its own.
    """
    if members > 1:
        same = partial(
            build_encoded_flow, architecture, context=context, arrays=arrays, encoder=encoder, **options
        )
        return EnsembleFlow([same() for _ in range(members)])
    return with_encoder(
        lambda columns: build_mixed_flow(architecture, context=columns, **options),
        scalars=context,
        arrays=arrays,
        encoder=encoder,
    )
