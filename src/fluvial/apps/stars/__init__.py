"""Stars: labels (effective temperature, gravity, metallicity) from spectra, with errors that can be trusted.

>>> from fluvial.apps.stars import load_miles, normalise, resample
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fluvial.apps.stars.catalogue import catalogue
    from fluvial.apps.stars.grids import normalise, resample, to_air
    from fluvial.apps.stars.observed import load_miles, load_spectra, prepare

_HOME = {
    "catalogue": "catalogue",
    "load_miles": "observed",
    "load_spectra": "observed",
    "normalise": "grids",
    "prepare": "observed",
    "resample": "grids",
    "to_air": "grids",
}

__all__ = ["catalogue", "load_miles", "load_spectra", "normalise", "prepare", "resample", "to_air"]


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'fluvial.apps.stars' has no attribute {name!r}")
    return getattr(import_module(f"fluvial.apps.stars.{_HOME[name]}"), name)
