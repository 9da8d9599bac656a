"""``holdout`` under ``[data]``: contexts that a fit never sees, so that what it says there can be judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluvial.data.expressions import quoted

_CELL = {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1}
#: What a study may hold, for editors.
HOLDOUT_SCHEMA = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": _CELL, "minItems": 1}, {"type": "null"}]
}


def read_holdout(value: Any) -> str | None:
    """Return the condition that a study's ``holdout`` means: an expression, or a list of contexts.

    >>> read_holdout([{"Z": 0.001, "alpha": 3.0}, {"Z": 0.02}])
    '(Z == 0.001 and alpha == 3.0) or (Z == 0.02)'

    Raises
    ------
    ValueError
        If it is neither, or a list of nothing.
    """
    if value is None or isinstance(value, str):
        return value
    wanted = 'expected contexts such as [{ Z = 0.001, alpha = 3 }], or a condition such as "Z == 0.001"'
    if not isinstance(value, Sequence) or not value:
        raise ValueError(f"{wanted}; found {value!r:.80}")
    cells = []
    for cell in value:
        sound = isinstance(cell, Mapping) and cell and all(_number(v) for v in cell.values())
        if not sound:
            raise ValueError(f"{wanted}; found {cell!r:.80} among them")
        cells.append(" and ".join(f"{quoted(str(name))} == {v!r}" for name, v in cell.items()))
    return " or ".join(f"({cell})" for cell in cells)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def without(where: str | None, holdout: str | None) -> str | None:
    """Return the condition of the rows that are fitted: those of ``where`` that are not held out.

    >>> without("Mass_0 < 100", "Z == 0.001"), without(None, "Z > 1"), without("a < 1", None)
    ('(Mass_0 < 100) and not (Z == 0.001)', 'not (Z > 1)', 'a < 1')
    """
    if holdout is None:
        return where
    return f"not ({holdout})" if where is None else f"({where}) and not ({holdout})"


def within(where: str | None, holdout: str) -> str:
    """Return the condition of the rows that are held out.

    >>> within("Mass_0 < 100", "Z == 0.001")
    '(Mass_0 < 100) and (Z == 0.001)'
    """
    return holdout if where is None else f"({where}) and ({holdout})"
