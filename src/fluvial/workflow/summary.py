"""A few numbers that stand for a context, where it is looked at in parts: an array has too many."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fluvial.data.schema import Schema
from fluvial.workflow.data import columns


def summarise(
    schema: Schema, table: Mapping[str, np.ndarray], draws: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Return numbers ``[n, C]`` that stand for each context of a table, and a title with the unit of each.

    They are its scalar columns, and where it has arrays, the means of the targets that the density predicts from them:
    functions of the context alone, so that a part of them is a part of the context. ``draws``: ``[n, S, D]``.
    """
    names = [column.name for column in schema.scalars]
    scalars = columns(table, names)
    titles = [column.title for column in schema.scalars]
    if not schema.arrays:
        return scalars, titles
    first, *others = (column.title for column in schema.targets)
    return np.concatenate([scalars, draws.mean(axis=1)], axis=1), [*titles, f"predicted {first}", *others]
