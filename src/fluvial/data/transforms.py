r"""Column transforms: from physical columns to standardised real numbers and back, exactly.

Each column gets a chain of scalar bijections: one that takes its support to the real line, then a
standardisation to mean 0 and variance 1 over the training rows. All of it is counted in ``log_prob``, and its
inverse cannot leave the support. Transforms work in float64: they stand where units of 1e−4 and of 1e10 meet.

========== ============================= =====================================================
name       support                       map before standardisation
========== ============================= =====================================================
standardise the real line                x
log        bounded on one side           log \|x − bound\|
softplus   bounded on one side           log of \|x − bound\| near the bound, linear far from it
logit      an interval                   log((x − a) / (b − x))
asinh      the real line                 asinh(x / w) w: linear inside w, logarithmic in the tails
========== ============================= =====================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fluvial.core import Affine, Asinh, Bijection, Chain, Columnwise, Log, Logit, Softplus
from fluvial.data.schema import Column, Support
from fluvial.errors import DataError, StudyError, nearest

TRANSFORMS = ("standardise", "log", "softplus", "logit", "asinh")

Steps = list[dict[str, Any]]


def implied_support(transform: str | None, support: Support | None) -> Support:
    """Return the support that a column has when its study may leave it out: ``log`` alone means positive.

    >>> str(implied_support("log", None))
    '(0, inf)'
    """
    if support is not None:
        return support
    if transform in ("log", "softplus"):
        return Support(lower=0.0)
    if transform == "logit":
        return Support(0.0, 1.0)
    return Support()


def choose_transform(column: Column) -> str:
    """Return the transform of a column: the declared one, or the one that fits its support.

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
        raise StudyError(f"{where} transform {name!r} is not known{nearest(name, TRANSFORMS)}")
    if name == "logit" and not (lower and upper):
        raise StudyError(f"{where} transform 'logit' needs support = [a, b]; found {column.support}.")
    if name in ("log", "softplus") and lower == upper:
        raise StudyError(
            f"{where} transform {name!r} needs a support bounded on one side, such as 'positive'; "
            f"found {column.support}."
        )
    if name in ("standardise", "asinh") and column.role == "target" and (lower or upper):
        fit = "logit" if lower and upper else "log or softplus"
        raise StudyError(
            f"{where} transform {name!r} cannot keep draws inside the support {column.support}; use {fit}, "
            "or drop support."
        )
    return name


class ColumnTransforms:
    """The fitted transforms of ordered columns: ``[*batch, D]`` in units to standardised, and back."""

    def __init__(self, names: Sequence[str], steps: Sequence[Steps]):
        self.names = list(names)
        self.steps = [list(s) for s in steps]
        self.bijection = Columnwise(_chain(s) for s in self.steps)

    @classmethod
    def fit(cls, columns: Sequence[Column], table: Mapping[str, np.ndarray]) -> ColumnTransforms:
        """Fit to the rows of a table, every one inside the supports, none constant.

        Raises
        ------
        DataError
            If a column spreads too little, or too far, to be standardised in float64.
        """
        return cls([c.name for c in columns], [_fit_column(c, table[c.name]) for c in columns])

    def forward(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return standardised values and logdet (both float64) for ``values: [*batch, D]`` in units."""
        if not self.names:  # no context
            return values, np.zeros(values.shape[:-1])
        with torch.no_grad():
            z, logdet = self.bijection(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)))
        return z.numpy(), logdet.numpy()

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """Return values in units for standardised ``z: [*batch, D]``, strictly inside the supports."""
        if not self.names:
            return z
        with torch.no_grad():
            x, _ = self.bijection.inverse(torch.from_numpy(np.ascontiguousarray(z, dtype=np.float64)))
        return x.numpy()

    def to_json(self) -> dict[str, Steps]:
        """Return the fitted steps by column, for ``density.json``."""
        return dict(zip(self.names, self.steps, strict=True))

    @classmethod
    def from_json(cls, value: Mapping[str, Steps]) -> ColumnTransforms:
        """Inverse of :meth:`to_json`."""
        return cls(list(value), list(value.values()))

    def describe(self) -> dict[str, str]:
        """Return one readable line for each column, such as ``log(x), standardised``."""
        return {
            name: ", ".join(_DESCRIBE[s["kind"]](s) for s in steps)
            for name, steps in zip(self.names, self.steps, strict=True)
        }


def _fit_column(column: Column, values: np.ndarray) -> Steps:
    name = choose_transform(column)
    values = np.asarray(values, dtype=np.float64)
    support = column.support
    steps: Steps = []
    if name in ("log", "softplus"):
        sign = 1 if math.isfinite(support.lower) else -1
        bound = support.lower if sign == 1 else support.upper
        step: dict[str, Any] = {"kind": name, "bound": bound, "sign": sign}
        if name == "softplus":
            # Linear for all but the few per cent of rows that lie closest to the bound.
            step["width"] = 0.5 * float(np.quantile(sign * (values - bound), 0.05))
        steps.append(step)
    elif name == "logit":
        steps.append({"kind": "logit", "lower": support.lower, "upper": support.upper})
    elif name == "asinh":
        low, high = np.quantile(values, [0.25, 0.75])
        shift, width = float(np.median(values)), float(high - low) or float(values.std())
        steps += [{"kind": "affine", "shift": shift, "scale": 1.0}, {"kind": "asinh", "width": width}]
    z = _chain(steps)(torch.from_numpy(values[:, None]))[0].numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        shift, scale = float(z.mean()), float(z.std())
    # A spread of a few steps of float64 is rounding, not physics; one beyond its range has no square.
    if not (math.isfinite(scale) and scale > 8 * np.finfo(float).eps * abs(shift)):
        raise DataError(
            f"Column {column.name} runs from {values.min():.17g} to {values.max():.17g} in the train split; "
            f"after {name} its standard deviation is {scale:.3g} about {shift:.3g}, so it cannot be "
            "standardised in float64. Give it in another unit, subtract an offset, or set another transform "
            f"under [columns.{column.name}]."
        )
    return [*steps, {"kind": "affine", "shift": shift, "scale": scale}]


def _chain(steps: Steps) -> Chain:
    return Chain(_build(s) for s in steps)


def _build(step: dict[str, Any]) -> Bijection:
    kind = step["kind"]
    options = {k: v for k, v in step.items() if k != "kind"}
    if kind == "affine":
        return Affine(*(torch.tensor([options[k]], dtype=torch.float64) for k in ("shift", "scale")))
    return {"log": Log, "softplus": Softplus, "logit": Logit, "asinh": Asinh}[kind](**options)


def _half_line(step: dict[str, Any]) -> str:
    if step["sign"] < 0:
        return f"{step['bound']:g} − x"
    return "x" if step["bound"] == 0 else f"x − {step['bound']:g}"


_DESCRIBE = {
    "affine": lambda s: f"(· − {s['shift']:.4g}) / {s['scale']:.4g}",
    "log": lambda s: f"log({_half_line(s)})",
    "softplus": lambda s: f"softplus⁻¹({_half_line(s)}; width {s['width']:.3g})",
    "logit": lambda s: f"logit on ({s['lower']:g}, {s['upper']:g})",
    "asinh": lambda s: f"asinh(·; width {s['width']:.3g})",
}
