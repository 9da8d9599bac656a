r"""How a packed column is stored: the smallest form that serves it, chosen from its values.

======== ===== ==================================================================================================
form     bytes for
======== ===== ==================================================================================================
codes8   1     a column of at most 256 distinct values: integers, categories, grids; exact, through a table
codes16  2     one of at most 65,536 distinct values, which half-precision numbers and short integers are too
float32  4     every other column whose rounding to float32 is harmless
float64  8     the rest: times with a large offset, values that crowd at an end of their support, atoms that need it
======== ===== ==================================================================================================

Rounding a value :math:`v` to float32 is harmless where it moves it by at most :data:`TOLERANCE` of

.. math:: \min\{|v - a|, |v - b|, \max(s, |v - m|)\},

with the column's support :math:`(a, b)`, its median :math:`m` and its interquartile range :math:`s` in the first
rows. So no value leaves its support, and standardised values, logarithms and logits move by no more than about
that tolerance. The largest relative rounding of each column is on record; 0 says that it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fluvial.data.schema import Support

#: Largest shift by rounding to float32, relative to the distances that matter.
TOLERANCE = 1e-5

Form = Literal["codes8", "codes16", "float32", "float64"]
#: From the narrowest to the widest.
FORMS: tuple[Form, ...] = ("codes8", "codes16", "float32", "float64")
_DTYPES = {"codes8": "u1", "codes16": "<u2", "float32": "<f4", "float64": "<f8"}
_MOST_CODES = {"codes8": 256, "codes16": 65_536}
# Distinct values in the first rows above which codes are not tried: more will come.
_TRY_CODES = {"codes8": 200, "codes16": 16_384}


class Layout:
    """How columns lie in a record: a field for each form that occurs, the widest first.

    Where every column is float32, records are simply rows ``[n, K]`` of float32.
    """

    def __init__(self, forms: Mapping[str, Form], codes: Mapping[str, np.ndarray]) -> None:
        self.forms, self.codes = dict(forms), dict(codes)
        self.names = list(forms)
        self._members = {form: [i for i, n in enumerate(self.names) if forms[n] == form] for form in FORMS}
        used = [form for form in reversed(FORMS) if self._members[form]]
        widths = [np.dtype(_DTYPES[form]).itemsize * len(self._members[form]) for form in used]
        align = np.dtype(_DTYPES[used[0]]).itemsize
        self.dtype = np.dtype(
            {
                "names": used,
                "formats": [(_DTYPES[form], (len(self._members[form]),)) for form in used],
                "offsets": [sum(widths[:i]) for i in range(len(used))],
                "itemsize": -(-sum(widths) // align) * align,  # so that every record is aligned
            }
        )

    @property
    def is_float32(self) -> bool:
        """Whether records are rows of float32 and nothing else."""
        return len(self._members["float32"]) == len(self.names)

    def decode(self, records: np.ndarray, dtype: type = np.float64) -> np.ndarray:
        """Return the values ``[n, K]`` of records ``[n, itemsize]`` (uint8), columns in order."""
        fields = records.view(self.dtype)[:, 0]
        if self.is_float32:
            return fields["float32"].astype(dtype, copy=False)
        out = np.empty((len(records), len(self.names)), dtype=dtype)
        for form, members in self._members.items():
            for j, i in enumerate(members):
                stored = fields[form][:, j]
                out[:, i] = self.codes[self.names[i]][stored] if form in _MOST_CODES else stored
        return out


class ColumnForm:
    """The form of one column: as small as the rows seen so far allow."""

    def __init__(self, name: str, support: Support, atoms: Sequence[float] = ()) -> None:
        self.name, self.support = name, support
        # A value that means something by itself must come back as it went in.
        self._least: Form = "float32" if all(float(np.float32(a)) == a for a in atoms) else "float64"
        self.form: Form | None = None
        self.changed = False  # since rows were first written
        self.values = np.empty(0)  # the distinct values, in the order in which they came: code to value
        self.rounding = 0.0
        self._middle = self._spread = 0.0

    def look(self, values: np.ndarray) -> None:
        """Widen the form where these values need it."""
        if self.form is None:
            self._begin(values)
        if self.form in _MOST_CODES:
            self._add_values(values)
            if len(self.values) <= _MOST_CODES[self.form]:
                return
            self._widen("codes16" if len(self.values) <= _MOST_CODES["codes16"] else self._least)
        if self.form == "float32" and not self._harmless(values):
            self._widen("float64")

    def begin_again(self) -> None:
        """Forget that the form changed: nothing is written yet."""
        self.changed = False

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return values as they are stored: codes, or the values themselves, still to be rounded."""
        return self._codes(values) if self.form in _MOST_CODES else values

    def describe(self) -> dict[str, Any]:
        """Return name, form, table of codes and largest relative rounding, as a value for JSON."""
        coded = self.form in _MOST_CODES
        exact = self.form != "float32"
        values = self.values.tolist() if coded else None
        return {
            "name": self.name,
            "form": self.form,
            "values": values,
            "rounding": 0.0 if exact else self.rounding,
        }

    def _begin(self, values: np.ndarray) -> None:
        low, self._middle, high = np.quantile(values.astype(np.float64), [0.25, 0.5, 0.75]).tolist()
        self._spread = high - low
        distinct = len(np.unique(values))
        tried = distinct < len(values) / 4 + 20  # a few rows tell nothing of how many values there are
        if tried and distinct <= _TRY_CODES["codes16"]:
            self.form = "codes8" if distinct <= _TRY_CODES["codes8"] else "codes16"
        else:
            self.form = self._least

    def _widen(self, form: Form) -> None:
        self.form, self.changed = form, True
        if form == "float32" and not self._harmless(self.values):  # values of rows seen before
            self.form = "float64"

    def _codes(self, values: np.ndarray) -> np.ndarray:
        order = np.argsort(self.values)
        at = np.searchsorted(self.values, values, sorter=order)
        return order[np.minimum(at, len(order) - 1)]

    def _add_values(self, values: np.ndarray) -> None:
        new = values
        if len(self.values):
            new = values[self.values[self._codes(values)] != values]
        if len(new):
            self.values = np.concatenate([self.values, np.unique(new).astype(np.float64)])

    def _harmless(self, values: np.ndarray) -> bool:
        """Say whether values may be rounded to float32, and take note of the largest relative rounding."""
        if values.dtype == np.float32:
            return True
        with np.errstate(over="ignore"):
            shift = np.abs(values.astype(np.float32).astype(np.float64) - values)
        if not shift.any():
            return True
        allowed = np.maximum(self._spread, np.abs(values - self._middle))
        for bound in (self.support.lower, self.support.upper):
            if math.isfinite(bound):
                allowed = np.minimum(allowed, np.abs(values - bound))
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(shift == 0, 0.0, shift / np.abs(values))
        self.rounding = max(self.rounding, float(relative.max()))
        return bool((shift <= TOLERANCE * allowed).all())
