"""The one table from an architecture's name in a study to the flow."""

from __future__ import annotations

from typing import Any

from fluvial.errors import StudyError, nearest
from fluvial.flows.autoregressive import MAF, AutoregressiveSpline
from fluvial.flows.coupling import CouplingAffine, CouplingSpline
from fluvial.flows.flow import ConditionalFlow

ARCHITECTURES: dict[str, type[ConditionalFlow]] = {
    "maf": MAF,
    "autoregressive-spline": AutoregressiveSpline,
    "coupling-affine": CouplingAffine,
    "coupling-spline": CouplingSpline,
}


def default_architecture(targets: int) -> str:
    """Return what is used when a study names none.

    An autoregressive flow is the more expressive of the two at equal size and draws in one pass a target; with
    many targets a coupling flow draws faster by that factor.

    >>> default_architecture(2), default_architecture(17)
    ('autoregressive-spline', 'coupling-spline')
    """
    return "autoregressive-spline" if targets <= 4 else "coupling-spline"


def build_flow(architecture: str, *, targets: int, context: int, **options: Any) -> ConditionalFlow:
    """Build a flow by name.

    >>> build_flow("maf", targets=2, context=1, steps=3).targets
    2

    Raises
    ------
    StudyError
        If the name is unknown, or an option cannot be.
    """
    if architecture not in ARCHITECTURES:
        raise StudyError(
            f"[flow] architecture {architecture!r} is not known{nearest(architecture, ARCHITECTURES)}."
        )
    try:
        return ARCHITECTURES[architecture](targets=targets, context=context, **options)  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise StudyError(f"[flow] {architecture}: {error}") from error
