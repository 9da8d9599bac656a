"""What fluvial raises. Every message says what was expected, what was found, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FluvialError(Exception):
    """The base of all errors that a user can mend."""


class DataError(FluvialError, ValueError):
    """A table, a column or a row is not what the study or the call says."""


class StudyError(FluvialError, ValueError):
    """A study file has an unknown key or a value that cannot be."""


class RunError(FluvialError):
    """A run folder is missing, incomplete, or already there."""


class MissingExtraError(FluvialError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word closest to ``name``, ready to append to a message.

    >>> nearest("Mass0", ["Mass_0", "Mass_1", "Z"])
    "; did you mean 'Mass_0'?"
    >>> nearest("colour", ["Mass_0", "Z"])
    '; known: Mass_0, Z'
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        folded = {k.casefold(): k for k in known}
        close = [folded[c] for c in difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)]
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return f"; known: {shown}" if known else ""
