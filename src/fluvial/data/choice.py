"""Which transform a column gets: the one that its study declares, or one that fits its support and its rows."""

from __future__ import annotations

import math

import numpy as np

from fluvial.data.schema import Column, Support
from fluvial.errors import StudyError, nearest

TRANSFORMS = ("standardise", "log", "log1p", "softplus", "logit", "asinh", "arctan", "quantile")
#: What an array column may have instead.
ARRAY_TRANSFORMS = ("standardise", "standardise-pixels", "log-clip")
#: Where ``log-clip`` clips unless the study says: what is commonly done to GALAH's spectra.
CLIP = 0.2

#: Half the distance between the quantiles 0.001 and 0.999 over that between the quartiles: 2.3 for a normal; from here
#: on a column on the real line has tails that asinh draws in.
HEAVY_TAIL = 8.0
#: From fewer rows nothing is concluded about tails.
FEWEST_ROWS = 1000


def implied_support(transform: str | None, support: Support | None) -> Support:
    """Return the support that a column has when its study may leave it out: ``log`` alone means positive.

    >>> str(implied_support("log", None))
    '(0, inf)'
    """
    if support is not None:
        return support
    if transform in ("log", "softplus"):
        return Support(lower=0.0)
    if transform == "log1p":
        return Support(lower=-1.0)
    if transform == "logit":
        return Support(0.0, 1.0)
    return Support()


def choose_transform(column: Column) -> str:
    """Return the transform of a column: the declared one, or the one that fits its support.

    On the real line :func:`choose_for_rows` may take ``asinh`` instead of ``standardise``, when it has seen the rows.

    >>> choose_transform(Column("mass", "target", support=Support(lower=0.0)))
    'log'

    Raises
    ------
    StudyError
        If the transform is unknown, or does not fit the support.
    """
    lower, upper = math.isfinite(column.support.lower), math.isfinite(column.support.upper)
    name = column.transform
    where = f"[columns.{column.name}]"
    if name is None:
        return "logit" if lower and upper else "log" if lower or upper else "standardise"
    if name not in TRANSFORMS:
        if name in ARRAY_TRANSFORMS:
            raise StudyError(f"{where} transform {name!r} is for array columns; this one is a number a row.")
        raise StudyError(
            f"{where} transform {name!r} is not known{nearest(name, (*TRANSFORMS, *ARRAY_TRANSFORMS))}"
        )
    if column.kind == "integer" or column.period is not None:
        what = "an integer column" if column.kind == "integer" else "a periodic column"
        raise StudyError(f"{where} transform {name!r}: {what} has none; leave it out.")
    if name == "logit" and not (lower and upper):
        raise StudyError(f"{where} transform 'logit' needs support = [a, b]; found {column.support}.")
    if name in ("log", "softplus") and lower == upper:
        raise StudyError(
            f"{where} transform {name!r} needs a support bounded on one side, such as 'positive'; "
            f"found {column.support}."
        )
    if name == "log1p" and column.support.lower < -1:
        raise StudyError(f"{where} transform 'log1p' needs values above -1; found {column.support}.")
    if name in ("standardise", "asinh", "arctan", "log1p") and column.role == "target":
        needed = Support(lower=-1.0) if name == "log1p" else Support()
        if column.support != needed:
            fit = "logit" if lower and upper else "log or softplus"
            raise StudyError(
                f"{where} transform {name!r} cannot keep draws inside the support {column.support}; use {fit}, "
                "or drop support."
            )
    return name


def check_array(column: Column) -> None:
    """Raise :class:`~fluvial.errors.StudyError` where what a study says of an array column cannot be of one."""
    where = f"[columns.{column.name}]"
    if not column.plain:
        raise StudyError(f"{where}: the column is an array; expected no atoms, period or integer kind of it.")
    if column.transform is not None and column.transform not in ARRAY_TRANSFORMS:
        known = ", ".join(ARRAY_TRANSFORMS)
        raise StudyError(
            f"{where} transform {column.transform!r}: of an array column, expected one of {known}."
        )


def choose_for_rows(column: Column, values: np.ndarray) -> tuple[str, str]:
    r"""Return the transform of a column given its rows, and why.

    The reason is empty where a study declares the transform, and where nothing asks for more than to standardise.
    Without a bound, heavy tails decide: with quantiles q, :math:`(q_{0.999} - q_{0.001}) / 2 (q_{0.75} - q_{0.25})` is
    2.3 for a normal and 1 for a uniform distribution; from 8 on ``asinh`` draws the tails in. A mixed column whose
    continuous part comes up to an atom gets ``quantile``.

    >>> t = np.random.default_rng(0).standard_t(1.5, 10_000)
    >>> choose_for_rows(Column("pull", "target"), t)[0]
    'asinh'
    """
    name = choose_transform(column)
    if column.transform is not None:
        return name, ""
    touched = [a for a in column.atoms if a in (column.support.lower, column.support.upper)]
    if touched and len(values) >= FEWEST_ROWS:
        # A truncated density does not vanish at its end: log and logit would make an exponential tail of it.
        return "quantile", f"its values come up to the atom at {touched[0]:g}"
    if name != "standardise":
        return name, f"support {column.support}"
    low, first, third, high = np.quantile(values, [0.001, 0.25, 0.75, 0.999])
    reach = 0.5 * (high - low) / (third - first) if third > first else math.inf
    if len(values) >= FEWEST_ROWS and HEAVY_TAIL <= reach < math.inf:
        return "asinh", f"its tails reach {reach:.3g} times the distance of its quartiles"
    return name, ""
