"""The one table from an architecture's name in a study to the flow."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_type_hints

from fluvial.errors import StudyError, nearest
from fluvial.flows.amortized import DiagonalGaussian, FullGaussian, Gaussianization
from fluvial.flows.autoregressive import MAF, AutoregressiveSpline
from fluvial.flows.continuous import ContinuousFlow
from fluvial.flows.coupling import CouplingAffine, CouplingSpline
from fluvial.flows.ensemble import EnsembleFlow
from fluvial.flows.flow import AbstractFlow
from fluvial.flows.mixture import MixtureOfGaussians
from fluvial.flows.point import PointRegression
from fluvial.flows.trunk import with_trunk
from fluvial.flows.zuko import PREFIX, ZukoFlow, zuko_class, zuko_options

ARCHITECTURES: dict[str, type[AbstractFlow]] = {
    "maf": MAF,
    "autoregressive-spline": AutoregressiveSpline,
    "coupling-affine": CouplingAffine,
    "coupling-spline": CouplingSpline,
    "continuous": ContinuousFlow,
    "diagonal-gaussian": DiagonalGaussian,
    "full-gaussian": FullGaussian,
    "gaussianization": Gaussianization,
    "mixture": MixtureOfGaussians,
    "point": PointRegression,
}


def default_architecture(targets: int) -> str:
    """Return what is used when a study names none.

    An autoregressive flow is the more expressive of the two at equal size and draws in one pass a target; with
    many targets a coupling flow draws faster by that factor.

    >>> default_architecture(2), default_architecture(17)
    ('autoregressive-spline', 'coupling-spline')
    """
    return "autoregressive-spline" if targets <= 4 else "coupling-spline"


def find_architecture(name: str) -> Callable[..., AbstractFlow]:
    """Return what builds the flows of a name: one of :data:`ARCHITECTURES`, or ``zuko:NAME`` for a flow of zuko.

    >>> find_architecture("maf").__name__
    'MAF'

    Raises
    ------
    StudyError
        If the name is unknown.
    MissingExtraError
        If the name is that of a zuko flow, and zuko is not installed.
    """
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if isinstance(name, str) and name.startswith(PREFIX):
        zuko_class(name.removeprefix(PREFIX))
        return partial(ZukoFlow, name.removeprefix(PREFIX))
    hint = nearest(str(name), [*ARCHITECTURES, f"{PREFIX}NSF"])
    raise StudyError(f"[flow] architecture {name!r} is not known{hint}")


def architecture_options(name: str) -> dict[str, tuple[Any, Any]]:
    """Return the options of an architecture: name -> (type, default), read off its signature.

    >>> architecture_options("maf")["steps"]
    (<class 'int'>, 8)

    Raises as :func:`find_architecture` does.
    """
    make = find_architecture(name)
    if name.startswith(PREFIX):
        return zuko_options(name.removeprefix(PREFIX)) | _TRUNK
    init = make.__init__
    hints = get_type_hints(init)
    own = {
        key: (hints[key], parameter.default)
        for key, parameter in inspect.signature(init).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return own | _TRUNK


#: What every architecture takes beside its own options.
_TRUNK: dict[str, tuple[Any, Any]] = {"trunk": (int, 0)}


def build_flow(
    architecture: str, *, targets: int, context: int, trunk: int = 0, members: int = 1, **options: Any
) -> AbstractFlow:
    """Build a flow by name; with ``trunk``, over so many features that one network makes of the context.

    With more than one of ``members``, build an ensemble of them.

    >>> build_flow("maf", targets=2, context=1, steps=3).targets
    2

    Raises
    ------
    StudyError
        If the name is unknown, or an option cannot be.
    MissingExtraError
        If the flow is one of zuko's, and zuko is not installed.
    """
    make = find_architecture(architecture)
    if members > 1:
        sizes = {"targets": targets, "context": context, "trunk": trunk}
        return EnsembleFlow([build_flow(architecture, **sizes, **options) for _ in range(members)])
    try:
        return with_trunk(
            lambda columns: make(targets=targets, context=columns, **options), context=context, trunk=trunk
        )
    except (TypeError, ValueError) as error:
        raise StudyError(f"[flow] {architecture}: {error}") from error
