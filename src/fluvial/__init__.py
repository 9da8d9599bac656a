"""fluvial: conditional densities p(target | context) with normalizing flows, for the physical sciences.

>>> import fluvial
>>> density = fluvial.fit("binaries.toml")  # doctest: +SKIP
>>> density.given(Z=0.001, alpha=1.0).sample(10_000)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fluvial.conditional import Conditional, ExtrapolationWarning
    from fluvial.data.schema import Column, Schema, Support
    from fluvial.density import Density
    from fluvial.errors import DataError, FluvialError, MissingExtraError, RunError, StudyError
    from fluvial.flows import (
        MAF,
        AbstractFlow,
        AutoregressiveSpline,
        ConditionalFlow,
        ContinuousFlow,
        CouplingAffine,
        CouplingSpline,
        DiagonalGaussian,
        FullGaussian,
        Gaussianization,
        MixtureOfGaussians,
        build_flow,
        sbi_estimator,
    )
    from fluvial.infer.conformal import ConformalRegions
    from fluvial.novelty import NoveltyResult
    from fluvial.workflow import (
        check_run,
        conformal_regions,
        fit,
        infer_population,
        list_runs,
        load,
        recalibrate,
        report_run,
        resume,
        sample_shards,
        write_card,
    )

__version__ = "0.1.0"

_HOME = {
    "AbstractFlow": "fluvial.flows",
    "AutoregressiveSpline": "fluvial.flows",
    "Column": "fluvial.data.schema",
    "Conditional": "fluvial.conditional",
    "ConditionalFlow": "fluvial.flows",
    "ConformalRegions": "fluvial.infer.conformal",
    "ContinuousFlow": "fluvial.flows",
    "CouplingAffine": "fluvial.flows",
    "CouplingSpline": "fluvial.flows",
    "DataError": "fluvial.errors",
    "Density": "fluvial.density",
    "DiagonalGaussian": "fluvial.flows",
    "ExtrapolationWarning": "fluvial.conditional",
    "FluvialError": "fluvial.errors",
    "FullGaussian": "fluvial.flows",
    "Gaussianization": "fluvial.flows",
    "MAF": "fluvial.flows",
    "MissingExtraError": "fluvial.errors",
    "MixtureOfGaussians": "fluvial.flows",
    "NoveltyResult": "fluvial.novelty",
    "RunError": "fluvial.errors",
    "Schema": "fluvial.data.schema",
    "StudyError": "fluvial.errors",
    "Support": "fluvial.data.schema",
    "build_flow": "fluvial.flows",
    "check_run": "fluvial.workflow",
    "conformal_regions": "fluvial.workflow",
    "fit": "fluvial.workflow",
    "infer_population": "fluvial.workflow",
    "list_runs": "fluvial.workflow",
    "load": "fluvial.workflow",
    "recalibrate": "fluvial.workflow",
    "report_run": "fluvial.workflow",
    "resume": "fluvial.workflow",
    "sample_shards": "fluvial.workflow",
    "sbi_estimator": "fluvial.flows",
    "write_card": "fluvial.workflow",
}

__all__ = [
    "MAF",
    "AbstractFlow",
    "AutoregressiveSpline",
    "Column",
    "Conditional",
    "ConditionalFlow",
    "ConformalRegions",
    "ContinuousFlow",
    "CouplingAffine",
    "CouplingSpline",
    "DataError",
    "Density",
    "DiagonalGaussian",
    "ExtrapolationWarning",
    "FluvialError",
    "FullGaussian",
    "Gaussianization",
    "MissingExtraError",
    "MixtureOfGaussians",
    "NoveltyResult",
    "RunError",
    "Schema",
    "StudyError",
    "Support",
    "__version__",
    "build_flow",
    "check_run",
    "conformal_regions",
    "fit",
    "infer_population",
    "list_runs",
    "load",
    "recalibrate",
    "report_run",
    "resume",
    "sample_shards",
    "sbi_estimator",
    "write_card",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that ``import fluvial`` brings no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'fluvial' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
