"""Flows of zuko in fluvial: ``zuko:NAME`` (https://zuko.readthedocs.io) wherever an architecture is named.

The library is imported when it is first used.

Importing zuko turns off the argument checks of ``torch.distributions`` in the whole process
(``Distribution._validate_args = False``); zuko's flows need it so.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from fluvial.errors import StudyError, nearest
from fluvial.extras import optional_module
from fluvial.flows.flow import AbstractFlow
from fluvial.nets.mlp import ACTIVATIONS

PREFIX = "zuko:"


class ZukoFlow(AbstractFlow):
    """A flow of zuko, with the interface of ours.

    Parameters
    ----------
    name : str
        The name of the class in ``zuko.flows``, such as ``NSF``, ``NAF`` or ``GMM``.
    targets, context : int
        Numbers of targets and of context columns.
    **options
        Keywords of that class; see :func:`zuko_options`. ``None`` leaves zuko's default.

    Raises
    ------
    MissingExtraError
        If zuko is not installed.
    StudyError
        If zuko has no such flow.
    """

    def __init__(self, name: str, targets: int, context: int = 0, **options: Any):
        super().__init__(targets=targets, context=context)
        keywords = {key: value for key, value in options.items() if value is not None}
        if "activation" in keywords:
            if keywords["activation"] not in ACTIVATIONS:
                raise ValueError(
                    f"Expected activation to be one of {', '.join(ACTIVATIONS)}; got {keywords['activation']!r}."
                )
            keywords["activation"] = ACTIVATIONS[keywords["activation"]]
        self.flow = zuko_class(name)(targets, context, **keywords)

    def forward(self, context: Tensor | None = None) -> ZukoDistribution:
        """Return p(x | context) for ``context: [*batch, C]``."""
        return ZukoDistribution(self.flow(self.checked(context)))


class ZukoDistribution:
    """A distribution of zuko whose draws take a ``torch.Generator``."""

    def __init__(self, distribution: Distribution):
        self.distribution = distribution

    @property
    def batch_shape(self) -> torch.Size:
        """The shape of the contexts."""
        return self.distribution.batch_shape

    @property
    def event_shape(self) -> torch.Size:
        """``(D,)``."""
        return self.distribution.event_shape

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value | context) in nats; ``value: [*S, *batch, D]``, result ``[*S, *batch]``."""
        return self.distribution.log_prob(value)

    def sample(
        self, sample_shape: torch.Size | tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``[*sample_shape, *batch, D]`` without gradients."""
        with torch.no_grad():
            return _seeded(self.distribution.sample, sample_shape, generator)

    def rsample_and_log_prob(
        self, sample_shape: torch.Size | tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw, and return the log-density of each draw; with gradients where zuko's distribution has them."""
        together = getattr(self.distribution, "rsample_and_log_prob", None)
        if together is not None:
            return _seeded(together, sample_shape, generator)
        draw = self.distribution.rsample if self.distribution.has_rsample else self.distribution.sample
        x = _seeded(draw, sample_shape, generator)
        return x, self.distribution.log_prob(x)


def _seeded(
    draw: Callable[[torch.Size], Any], shape: tuple[int, ...], generator: torch.Generator | None
) -> Any:
    """Call ``draw``, which knows only the global random numbers, with these seeded from the generator meanwhile."""
    if generator is None:
        return draw(torch.Size(shape))
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    devices = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return draw(torch.Size(shape))


def zuko_class(name: str) -> Any:
    """Return the class of this name in ``zuko.flows``.

    Raises
    ------
    MissingExtraError
        If zuko is not installed.
    StudyError
        If zuko has no such flow.
    """
    zuko = optional_module("zuko", "zuko")
    known = [
        key
        for key, value in vars(zuko.flows).items()
        if isinstance(value, type)
        and issubclass(value, zuko.lazy.LazyDistribution)
        and "features" in inspect.signature(value).parameters
    ]
    if name not in known:
        raise StudyError(f"[flow] architecture: zuko has no flow {name!r}{nearest(name, known)}.")
    return getattr(zuko.flows, name)


def zuko_options(name: str) -> dict[str, tuple[Any, Any]]:
    """Return the keywords that a flow of zuko takes from a study: name -> (type, default).

    They are those of its constructor and of the constructors that it hands its other keywords to, down to the network;
    those that only Python can write (orders, masks, functions) are left out. A default of ``None`` is zuko's own.
    """
    zuko = optional_module("zuko", "zuko")
    flows = zuko.flows
    sources = [
        base for base in zuko_class(name).__mro__ if "features" in inspect.signature(base.__init__).parameters
    ]
    names = {base.__name__ for base in sources}
    if names & {"MAF", "NAF", "UNAF"}:
        sources.append(flows.MaskedAutoregressiveTransform)
    if "CNF" in names:
        sources.append(flows.FFJTransform)
    found: dict[str, tuple[Any, Any]] = {}
    for source in sources:
        for key, parameter in inspect.signature(source.__init__).parameters.items():
            if key in ("self", "features", "context") or parameter.kind is parameter.VAR_KEYWORD:
                continue
            annotation = _plain(parameter.annotation)
            if annotation is not None:
                found.setdefault(key, (annotation | None, None))
    masked = zuko.flows.MaskedAutoregressiveTransform in sources
    network = {"hidden_features": list[int], "activation": str, "residual" if masked else "normalize": bool}
    return found | {key: (annotation | None, None) for key, annotation in network.items() if key not in found}


def _plain(annotation: Any) -> Any:
    """Return the annotation if a study can write it, ``None`` otherwise."""
    if annotation in (int, float, bool, str):
        return annotation
    if annotation == int | None:
        return int
    if typing.get_origin(annotation) is typing.Literal:
        return annotation
    if typing.get_origin(annotation) is dict:
        return dict[str, Any]
    return None
