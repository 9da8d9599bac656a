r"""The log-density of a density as a function of tensors, in physical units, with gradients to events and to context.

A sampler that follows gradients (Hamiltonian Monte Carlo, variational inference) asks for
:math:`\partial \log p(x | c) / \partial x` and :math:`\partial \log p(x | c) / \partial c`. Column transforms are then
part of the graph, in float64; the flow is evaluated in the type of the events.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fluvial.data.schema import Column
from fluvial.data.transforms import ColumnTransforms
from fluvial.errors import DataError
from fluvial.flows.flow import AbstractFlow

if TYPE_CHECKING:
    from fluvial.density import Density


def log_prob_tensor(density: Density, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Return log p(x | context) in nats per unit of every target; see :meth:`fluvial.Density.log_prob_tensor`."""
    schema = density.schema
    x = _checked(x, schema.targets, "x")
    if context is None:
        context = x.new_empty((*x.shape[:-1], 0))
    context = _checked(context, schema.context, "context")
    try:
        shape = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    except RuntimeError:
        raise DataError(
            f"Expected x and context of batch shapes that broadcast; got {tuple(x.shape[:-1])} and "
            f"{tuple(context.shape[:-1])}."
        ) from None
    _require_possible(context, schema.context)
    inside = torch.from_numpy(_possible(x, schema.targets))
    anything = density.target_transforms.inverse(np.zeros(density.target_transforms.layout.width))
    # Outside the support the density is zero whatever x is: a value inside stands in, and gets no gradient.
    stand_in = torch.from_numpy(anything).to(x.device)
    safe = torch.where(inside[..., None], x.double(), stand_in)
    u, logdet = _coded(density.target_transforms, safe)
    v, _ = _coded(density.context_transforms, context.double())
    flow = _in_type(density, x.dtype)
    u, v = u.to(x.dtype).expand(*shape, -1), v.to(x.dtype).expand(*shape, -1)
    out = flow(v if v.shape[-1] else None).log_prob(u) + logdet.to(x.dtype)
    return torch.where(inside, out, -math.inf)


def _in_type(density: Density, dtype: torch.dtype) -> AbstractFlow:
    """Return the flow with weights of a type; that in float64 is made once."""
    if dtype == torch.float32:
        return density.flow
    kept: dict[str, Any] = vars(density)
    made = kept.get("_double")
    if made is None or made[0] is not density.flow:  # members of an ensemble begin as copies of it
        made = kept["_double"] = (density.flow, deepcopy(density.flow).double())
    return made[1]


def _coded(transforms: ColumnTransforms, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return coded columns ``[*batch, N]`` and logdet ``[*batch]`` of float64 ``values: [*batch, D]``, with gradients."""
    numbers: list[Tensor] = []
    logdet = values.new_zeros(values.shape[:-1])
    for i, (name, code) in enumerate(zip(transforms.names, transforms.codes, strict=True)):
        if code.turn is not None:
            low, high = code.turn
            angle = (values[..., i] - low) * (2 * math.pi / (high - low)) - math.pi
            if code.kind == "circle":
                numbers += [angle.cos(), angle.sin()]
                continue
            numbers.append(angle)
            logdet = logdet + math.log(2 * math.pi / (high - low))
        elif code.kind == "number" and code.chain is not None:
            z, log_slope = code.chain(values[..., i : i + 1])
            numbers.append(z[..., 0])
            logdet = logdet + log_slope
        else:
            raise DataError(
                f"Column {name} has atoms or whole numbers, so log p has no gradient to it; expected continuous or "
                "periodic columns. log_prob takes any, without gradients."
            )
    return torch.stack(numbers, -1) if numbers else values.new_empty((*values.shape[:-1], 0)), logdet


def _checked(values: Tensor, columns: tuple[Column, ...], what: str) -> Tensor:
    if not (isinstance(values, Tensor) and values.dtype in (torch.float32, torch.float64)):
        found = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise DataError(f"{what}: expected a float32 or float64 tensor; got {found}.")
    if values.ndim == 0 or values.shape[-1] != len(columns):
        names = ", ".join(c.name for c in columns)
        raise DataError(
            f"{what}: expected a tensor [..., {len(columns)}] for columns {names}; got shape {tuple(values.shape)}."
        )
    return values


def _possible(values: Tensor, columns: tuple[Column, ...]) -> np.ndarray:
    array = values.detach().cpu().double().numpy()
    inside = np.ones(array.shape[:-1], dtype=bool)
    for i, column in enumerate(columns):
        inside &= column.contains(array[..., i])
    return inside


def _require_possible(context: Tensor, columns: tuple[Column, ...]) -> None:
    array = context.detach().cpu().double().numpy()
    for i, column in enumerate(columns):
        bad = ~column.contains(array[..., i])
        if bad.any():
            raise DataError(
                f"context: {column.name} = {array[..., i][bad].flat[0]:g} is outside the support "
                f"{column.describe_support()} ({int(bad.sum())} of {bad.size} values)."
            )
