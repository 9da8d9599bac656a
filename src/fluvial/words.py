"""Words of the command line, and arguments of simulators, as values."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

from fluvial.errors import DataError


def is_folder(out: str) -> bool:
    """Return whether an output is meant as a folder: it ends in a slash, or is one."""
    return out.endswith("/") or Path(out).is_dir()


def read_part(text: str | None) -> tuple[int, int]:
    """Return ``i/n`` as two numbers; (0, 1) of nothing.

    >>> read_part("3/8"), read_part(None)
    ((3, 8), (0, 1))
    """
    if text is None:
        return 0, 1
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise DataError(f"--part: expected i/n with 0 ≤ i < n, such as 0/8; found {text!r}.")
    return int(first), int(second)


def read_given(given: list[str] | None, option: str = "--given") -> dict[str, float]:
    """Return ``NAME=NUMBER`` options, several of them or several in one, as a dictionary.

    >>> read_given(["Z=0.001", "alpha=1, q=0.5"])
    {'Z': 0.001, 'alpha': 1.0, 'q': 0.5}
    """
    values: dict[str, float] = {}
    for text in [part for whole in given or [] for part in whole.split(",")]:
        name, _, value = text.partition("=")
        name = name.strip()
        try:
            number = float(value)  # of "NAME" alone, the value is "", and no number
        except ValueError:
            raise DataError(f"{option}: expected NAME=NUMBER, such as Z=0.001; found {text!r}.") from None
        if name in values:
            raise DataError(f"{option}: expected {name} once; found {values[name]:g} and {number:g}.")
        values[name] = number
    return values


def whole_number(name: str, value: Any, least: int) -> int:
    """Return a whole number from ``least`` on, or raise :class:`~fluvial.errors.DataError`.

    >>> whole_number("rows", 3, 1)
    3
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise DataError(f"expected {name} to be a whole number; got {value!r}") from error
    if number < least:
        raise DataError(f"expected {name} to be at least {least}; got {number}")
    return number
