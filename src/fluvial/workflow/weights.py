"""Weighted rows on their way from a table into training and checks.

The weight of a row travels as one more column, the last, of the context of the batches; the mean over the train split is
1, so that losses are comparable with those of rows without weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.check import effective_rows
from fluvial.data.packed import CHUNK, Packed
from fluvial.data.select import View
from fluvial.data.stream import Split
from fluvial.errors import DataError

SPLITS = ("train", "validation", "test")


def refuse_weights(view: View, name: str, weights: np.ndarray, rows: np.ndarray) -> None:
    """Raise :class:`~fluvial.errors.DataError` where a weight is negative or no number; it names the first row."""
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        first = int(bad.argmax())
        raise DataError(
            f"{view.reader.path}: column {name!r} ([data] weight): expected weights of at least 0; found "
            f"{weights[first]:g} in {view.place(int(rows[first]))}. Mend the weights, or leave such rows out with "
            f'`where = "{name} >= 0"` under [data].'
        )


def check_weights(
    view: View, name: str | None, weights: np.ndarray | None, rows: np.ndarray | None, split: Split
) -> dict[str, Any]:
    """Return what a record says of the weights: how many equal rows those of each split are worth; nothing without any.

    ``rows`` are the numbers of the rows in the source, where weights have not been looked at before.

    Raises
    ------
    DataError
        If a weight is negative or no number, or all of a split are zero.
    """
    if name is None or weights is None:
        return {}
    if rows is not None:
        refuse_weights(view, name, weights, rows)
    effective = {}
    for part in SPLITS:
        of_part = weights[getattr(split, part)]
        if not (of_part > 0).any():
            raise DataError(
                f"{view.reader.path}: column {name!r} ([data] weight): all {len(of_part)} weights of the {part} split "
                "are zero, so no row of it counts; expected some above zero."
            )
        effective[part] = effective_rows(of_part)
    return {"weight": {"column": name, "effective_rows": effective}}


def mean_weight(packed: Packed) -> float:
    """Return the mean weight of all rows of the train split: the last column of the packed table."""
    records, total = packed.records("train"), 0.0
    for first in range(0, len(records), CHUNK):
        total += float(packed.layout.decode(np.asarray(records[first : first + CHUNK]))[:, -1].sum())
    return total / len(records)


def with_weight(context: Tensor, weight: np.ndarray | None) -> Tensor:
    """Return the context with the weights as its last column; as it is without."""
    if weight is None:
        return context
    return torch.cat([context, torch.from_numpy(weight.astype(np.float32))[:, None]], dim=1)
