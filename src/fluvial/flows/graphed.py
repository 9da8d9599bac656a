"""Flows on an NVIDIA GPU as CUDA graphs: what a step launches one by one, recorded once and launched as a whole.

A flow is hundreds of small operations, and for a GPU each takes less long than Python takes to ask for it. So what comes
back with the same shapes is recorded at its third time, and played from then on: the gradient of the loss in training,
and both directions of the map where no gradient is wanted. A recording reads weights and buffers where they lie: it
holds until they are moved. Flows say by ``recordable`` whether their operations are the same for all values; others run
as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fluvial.core import gpu, native

if TYPE_CHECKING:
    from fluvial.flows.flow import AbstractFlow

#: The time a shape comes by at which it is recorded: kernels are then compiled, and libraries set up.
TIME = 3
#: Recordings of one flow; each holds the memory of a pass.
MOST = 4

Maybe = Tensor | None


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    given: list[Maybe]
    made: list[Maybe]

    def play(self, given: Sequence[Maybe]) -> list[Maybe]:
        for place, value in zip(self.given, given, strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        self.graph.replay()
        return self.made


@dataclass
class _Book:
    """The recordings of a flow, and how often each kind of pass has come by."""

    places: tuple[int, ...]
    recordings: dict[tuple, _Recording] = field(default_factory=dict)
    seen: dict[tuple, int] = field(default_factory=dict)


_books: WeakKeyDictionary[nn.Module, _Book] = WeakKeyDictionary()


def backward(flow: AbstractFlow, x: Tensor, context: Maybe, weight: Maybe) -> Maybe:
    """Add the gradient of the loss to that of the parameters and return the loss; ``None`` if that is not recorded.

    Gradients lie in the recording's own memory: whoever wants to keep one beyond the next call copies it.
    """
    if not (torch.is_grad_enabled() and flow.training):
        return None
    parameters = [p for p in flow.parameters() if p.requires_grad]

    def gradient(x: Tensor, context: Maybe, weight: Maybe) -> list[Maybe]:
        loss = flow.loss(x, context, weight=weight)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        # As optimisers take them: laid out as the parameters are.
        return [loss.detach(), *(None if g is None else g.contiguous() for g in grads)]

    for p in parameters:
        if p.grad is not None:  # it may lie where the recording writes
            p.grad = p.grad.clone()
    kind = ("loss", _in_bf16(flow), *(p.requires_grad for p in flow.parameters()))
    made = _played(flow, kind, gradient, [x, context, weight])
    if made is None:
        return None
    loss, *grads = made
    assert loss is not None
    for p, grad in zip(parameters, grads, strict=True):
        if grad is not None:
            p.grad = grad if p.grad is None else p.grad + grad
    return loss.clone()


def forget(flow: AbstractFlow) -> None:
    """Let go of a flow's recordings and of their memory."""
    _books.pop(flow, None)


def apply(
    flow: AbstractFlow, name: str, function: Callable[..., tuple[Tensor, Tensor]], x: Tensor, context: Maybe
) -> tuple[Tensor, Tensor]:
    """Return ``function(x, context)``, the value and the logdet of a direction of the flow's map, played if recorded."""
    # One context for many rows: what it makes is then made once, but not in a recording.
    spread = context is not None and 0 in context.stride()
    if not (torch.is_grad_enabled() or flow.training or spread):
        made = _played(flow, (name,), lambda *given: list(function(*given)), [x, context])
        if made is not None:
            value, logdet = made
            assert value is not None
            assert logdet is not None
            return value.clone(), logdet.clone()
    return function(x, context)


def _played(
    flow: AbstractFlow, kind: tuple, function: Callable[..., list[Maybe]], given: list[Maybe]
) -> list[Maybe] | None:
    """Return what a function gives by its recording, which is made if it is time; else ``None``."""
    first = given[0]
    assert first is not None
    if not (first.is_cuda and flow.recordable and gpu.available()) or native.is_transformed():
        return None
    places = tuple(t.data_ptr() for t in (*flow.parameters(), *flow.buffers()))
    book = _books.get(flow)
    if book is None or book.places != places:
        book = _books[flow] = _Book(places)
    key = (*kind, *(None if t is None else (t.shape, t.dtype) for t in given))
    recording = book.recordings.get(key)
    if recording is None:
        book.seen[key] = book.seen.get(key, 0) + 1
        if book.seen[key] < TIME or len(book.recordings) >= MOST:
            return None
        recording = book.recordings[key] = _record(function, given)
    return recording.play(given)


def _record(function: Callable[..., list[Maybe]], given: list[Maybe]) -> _Recording:
    places = [None if t is None else t.detach().clone(memory_format=torch.contiguous_format) for t in given]
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as those that load batches, may ask for memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        made = function(*places)
    return _Recording(graph, places, made)


def _in_bf16(flow: AbstractFlow) -> bool:
    return any(getattr(m, "bf16", False) for m in flow.modules())
