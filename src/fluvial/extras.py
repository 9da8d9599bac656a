"""Optional libraries: imported when they are first used, and named when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from fluvial.errors import MissingExtraError


def optional_module(name: str, extra: str) -> ModuleType:
    """Import an optional library, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"Expected {name.partition('.')[0]} to be installed; mend with: pip install 'fluvial[{extra}]'"
        ) from None
