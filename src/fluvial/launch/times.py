"""Times as schedulers write them."""

from __future__ import annotations

import re

from fluvial.errors import RunError

_SLURM = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_WORDS = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})")


def seconds_of(text: str | float, what: str = "--time") -> int:
    """Return seconds of a time as SLURM takes it, or of a number with a unit; a number alone is minutes.

    >>> seconds_of("90"), seconds_of("2:00:00"), seconds_of("30:00"), seconds_of("1-12"), seconds_of("1.5h")
    (5400, 7200, 1800, 129600, 5400)

    Raises :class:`~fluvial.errors.RunError` if it is none of these.
    """
    text = str(text).strip()
    if found := _WORDS.fullmatch(text):
        return round(float(found[1]) * _UNITS[found[2]])
    found = _SLURM.fullmatch(text)
    if found is None:
        raise RunError(
            f"{what}: expected a time such as 90 (minutes), 2:00:00, 1-12:00:00 or 1.5h; found {text!r}."
        )
    days, *rest = (None if g is None else int(g) for g in found.groups())
    a, b, c = rest
    if days is not None:
        return days * 86400 + (a or 0) * 3600 + (b or 0) * 60 + (c or 0)
    if c is not None:
        return (a or 0) * 3600 + (b or 0) * 60 + c
    return (a or 0) * 60 + (b or 0)


def slurm_time(seconds: int) -> str:
    """Return seconds as SLURM's days-hours:minutes:seconds.

    >>> slurm_time(129600)
    '1-12:00:00'
    """
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-{hour:02d}:{minute:02d}:{second:02d}"


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds.

    >>> clock(83.2), clock(7203)
    ('1:23', '2:00:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
