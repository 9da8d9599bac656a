"""A few numbers that stand for a context, where it is looked at in parts: an array has too many."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fluvial.data.schema import Schema
from fluvial.workflow.data import columns


def summarise(
    schema: Schema, table: Mapping[str, np.ndarray], draws: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Return numbers ``[n, C]`` that stand for each context of a table, and a title with the unit of each, for plots.

    They are its scalar columns, and where it has arrays, the means of the targets that the density predicts from them:
    functions of the context alone, so that a part of them is a part of the context. ``draws``: ``[n, S, D]``.
    """
    scalars = columns(table, [column.name for column in schema.scalars])
    values = np.concatenate([scalars, draws.mean(axis=1)], axis=1) if schema.arrays else scalars
    return values, _called(schema, [c.title for c in schema.scalars], [c.title for c in schema.targets])


def names_of_context(schema: Schema) -> list[str]:
    """Return what the numbers of :func:`summarise` are called in a sentence: no mathtext."""
    return _called(schema, [c.name for c in schema.scalars], schema.target_names)


def _called(schema: Schema, scalars: list[str], targets: list[str]) -> list[str]:
    return [*scalars, f"predicted {targets[0]}", *targets[1:]] if schema.arrays else scalars
