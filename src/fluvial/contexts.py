"""The contexts that a density is asked about: scalars and arrays of a table, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fluvial.conditional import listed, stack_columns
from fluvial.data.arrays import array_values
from fluvial.data.schema import Column, Schema
from fluvial.data.tables import column_names
from fluvial.errors import DataError, nearest


@dataclass(frozen=True)
class Contexts:
    """Contexts of one ``shape``: scalars ``[*shape, S]`` float64 and arrays ``[*shape, length]`` float32, in units."""

    scalars: np.ndarray
    arrays: tuple[np.ndarray, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the contexts: ``()`` for one."""
        return self.arrays[0].shape[:-1] if self.arrays else self.scalars.shape[:-1]


def stack_contexts(table: Any, schema: Schema) -> Contexts:
    """Return the context columns of anything table-like; shapes broadcast.

    Raises :class:`~fluvial.errors.DataError` where a column is missing, not numeric, or an array of another length.
    """
    if not schema.arrays:
        return Contexts(stack_columns(table, schema.context, "context"))
    if isinstance(table, np.ndarray) and table.dtype.names is None:
        if len(schema.context) > 1:
            raise DataError(
                f"context: expected columns {listed(schema.context_names)} by name; got one plain array."
            )
        table = {schema.arrays[0].name: table}
    arrays = [array_values(_column(table, column, schema), column, "context") for column in schema.arrays]
    scalars = np.empty(0)
    if schema.scalars:
        scalars = stack_columns(table, schema.scalars, "context")
    try:
        shape = np.broadcast_shapes(scalars.shape[:-1], *(a.shape[:-1] for a in arrays))
    except ValueError:
        shapes = ", ".join(f"{c.name} {a.shape}" for c, a in zip(schema.arrays, arrays, strict=True))
        of = f" and {scalars.shape[:-1]} of the others" if schema.scalars else ""
        raise DataError(f"context: expected columns of shapes that broadcast; got {shapes}{of}.") from None
    return Contexts(
        np.broadcast_to(scalars, (*shape, scalars.shape[-1])),
        tuple(np.broadcast_to(a, (*shape, a.shape[-1])) for a in arrays),
    )


def _column(table: Any, column: Column, schema: Schema) -> Any:
    try:
        return table[column.name]
    except (KeyError, IndexError, TypeError, ValueError):
        known = column_names(table) or []
        raise DataError(
            f"context: expected columns {listed(schema.context_names)}; {column.name!r} is missing"
            f"{nearest(column.name, known)}."
        ) from None
