r"""Column transforms: from physical columns to standardised real numbers and back, exactly.

Each column gets a chain of scalar bijections: one that takes its support to the real line, then a
standardisation to mean 0 and variance 1 over the training rows. All of it is counted in ``log_prob``, and its
inverse cannot leave the support. Transforms work in float64: they stand where units of 1e−4 and of 1e10 meet.

=========== ============================= =====================================================
name        support                       map before standardisation
=========== ============================= =====================================================
standardise the real line                 x
log         bounded on one side           log \|x − bound\|
log1p       bounded below by −1           log(1 + x)
softplus    bounded on one side           log of \|x − bound\| near the bound, linear far from it
logit       an interval                   log((x − a) / (b − x))
asinh       the real line                 asinh(x / w) w: linear inside w, logarithmic in the tails
arctan      the real line                 arctan(x / w), then logit of its interval: as asinh, with a sharper knee
quantile    any                           a smooth monotone map through quantiles to a normal, after log or logit
=========== ============================= =====================================================

Columns that are not plain numbers are coded for the flow, which sees *numbers* first and *levels* after them:

=========== =========================================================== =======================================
column      as a target                                                 as context
=========== =========================================================== =======================================
mixed       its number, 0 where it is on an atom; its level: 0 where it its number, 0 on an atom; an indicator for each
            is continuous, k on the k-th atom                           atom
integer     its level: which of its values, from 0                      an indicator for each value; a number if they
                                                                        are many
periodic    its angle in [−π, π)                                        cosine and sine
=========== =========================================================== =======================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from fluvial.core import Affine, ArctanLogit, Asinh, Bijection, Chain, Log, Logit, MonotoneSpline, Softplus
from fluvial.data.choice import choose_for_rows
from fluvial.data.schema import Column
from fluvial.errors import DataError

#: Knots of a quantile transform.
KNOTS = 33

Steps = list[dict[str, Any]]


@dataclass(frozen=True)
class Layout:
    """How coded columns lie side by side: N numbers, then K levels.

    Attributes
    ----------
    numbers : int
        How many real numbers come first.
    levels : tuple of int
        For each level after them, how many values it can take.
    holder : tuple of (int or None)
        For each number, which of the levels says whether it is there (0) or stands aside (above 0); ``None``: it
        always is.
    angles : tuple of bool
        For each number, whether it is an angle in [−π, π).
    indicators : int
        Of a context: how many zeros and ones come last.
    """

    numbers: int
    levels: tuple[int, ...] = ()
    holder: tuple[int | None, ...] = ()
    angles: tuple[bool, ...] = ()
    indicators: int = 0

    @property
    def plain(self) -> bool:
        """Whether there are numbers only, none of them an angle."""
        return not self.levels and not any(self.angles)

    @property
    def width(self) -> int:
        """Numbers, levels and indicators together."""
        return self.numbers + len(self.levels) + self.indicators

    @property
    def held(self) -> bool:
        """Whether a flow must treat some numbers apart: those that can be absent, and angles."""
        return any(h is not None for h in self.holder) or any(self.angles)

    @property
    def arguments(self) -> dict[str, Any]:
        """What :func:`fluvial.flows.mixed.build_mixed_flow` asks of its targets, by name."""
        return {n: getattr(self, n) for n in ("numbers", "levels", "holder", "angles")}


def layout_of(columns: Sequence[Column]) -> Layout:
    """Return the layout that columns will have, before any row is seen.

    Integers whose values are yet to be found count as if they had two.

    >>> layout_of([Column("pt", "target"), Column("btag", "target", atoms=(-1.0,))])
    Layout(numbers=2, levels=(2,), holder=(None, 0), angles=(False, False), indicators=0)
    """
    steps = [
        [*_code_step(c), *([{"kind": "affine", "shift": 0.0, "scale": 1.0}] * _has_number(c))]
        for c in columns
    ]
    return ColumnTransforms([c.name for c in columns], steps).layout


class ColumnTransforms:
    """The fitted transforms of ordered columns: ``[*batch, D]`` in units to coded numbers and levels, and back.

    Attributes
    ----------
    names : list of str
        The columns, in order.
    steps : list
        For each column its fitted steps, as they stand in ``density.json``.
    layout : Layout
        What the coded numbers and levels are.
    reasons : dict
        By column, why a transform was chosen that the study left open, if there is a reason; after :meth:`fit` only.
    """

    def __init__(
        self, names: Sequence[str], steps: Sequence[Steps], reasons: Mapping[str, str] | None = None
    ):
        self.names = list(names)
        self.steps = [list(s) for s in steps]
        self.reasons = dict(reasons or {})
        self.codes = [_Code(s) for s in self.steps]
        numbers, levels, holder, angles = 0, [], [], []
        for code in self.codes:
            numbers += code.numbers
            holder += [len(levels) if code.kind == "atoms" else None] * code.numbers
            angles += [code.kind == "angle"] * code.numbers
            levels += [code.size] * code.levels
        indicators = sum(len(c.values) for c in self.codes if c.kind == "indicators")
        self.layout = Layout(numbers, tuple(levels), tuple(holder), tuple(angles), indicators)

    @property
    def coded_names(self) -> list[str]:
        """The column behind each coded number, level and indicator, in their order."""
        pairs = list(zip(self.names, self.codes, strict=True))
        numbers = [name for name, code in pairs for _ in range(code.numbers)]
        others = ((n, len(c.values) if c.kind == "indicators" else c.levels) for n, c in pairs)
        return numbers + [name for name, count in others for _ in range(count)]

    @classmethod
    def fit(cls, columns: Sequence[Column], table: Mapping[str, np.ndarray]) -> ColumnTransforms:
        """Fit to the rows of a table, every one of them possible, no column constant.

        Raises
        ------
        DataError
            If a column spreads too little, or too far, to be standardised in float64.
        """
        fitted = [_fit_column(c, np.asarray(table[c.name], dtype=np.float64)) for c in columns]
        reasons = {c.name: why for c, (_, why) in zip(columns, fitted, strict=True) if why}
        return cls([c.name for c in columns], [steps for steps, _ in fitted], reasons)

    def forward(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coded values ``[*batch, N + K]`` and logdet (both float64) for ``values: [*batch, D]`` in units.

        A value on an atom has no slope: it adds nothing to logdet.
        """
        values = np.asarray(values, dtype=np.float64)
        logdet = np.zeros(values.shape[:-1])
        numbers: list[np.ndarray] = []
        levels: list[np.ndarray] = []
        for i, code in enumerate(self.codes):
            for number, log_slope in code.encode(values[..., i]):
                numbers.append(number)
                logdet = logdet + log_slope
            levels += code.encode_levels(values[..., i])
        coded = numbers + levels
        return np.stack(coded, axis=-1) if coded else np.empty((*values.shape[:-1], 0)), logdet

    def inverse(self, coded: np.ndarray) -> np.ndarray:
        """Return values in units for ``coded: [*batch, N + K]``: inside the supports, on the very atoms and integers.

        Defined for targets; a context, whose indicators say things twice, has no need of it.
        """
        coded = np.asarray(coded, dtype=np.float64)
        number, level = 0, self.layout.numbers
        out = np.empty((*coded.shape[:-1], len(self.names)))
        for i, code in enumerate(self.codes):
            z = coded[..., number] if code.numbers else None
            k = coded[..., level] if code.levels else None
            out[..., i] = code.decode(z, k)
            number, level = number + code.numbers, level + code.levels
        return out

    def to_json(self) -> dict[str, Steps]:
        """Return the fitted steps by column, for ``density.json``."""
        return dict(zip(self.names, self.steps, strict=True))

    @classmethod
    def from_json(cls, value: Mapping[str, Steps]) -> ColumnTransforms:
        """Inverse of :meth:`to_json`."""
        return cls(list(value), list(value.values()))

    def describe(self) -> dict[str, str]:
        """Return one readable line for each column, such as ``log(x), (· − 2.1) / 0.4``."""
        return {
            name: ", ".join(_DESCRIBE[s["kind"]](s) for s in steps)
            for name, steps in zip(self.names, self.steps, strict=True)
        }


#: What the first step of a column may be, if it is no plain number.
_CODES = ("atoms", "integer", "indicators", "circle", "angle")


class _Code:
    """One column: a chain for its number, if it has one, and how its atoms, values or angle are coded."""

    def __init__(self, steps: Steps):
        first = steps[0]
        self.kind: str = first["kind"] if first["kind"] in _CODES else "number"
        rest = steps if self.kind == "number" else steps[1:]
        self.chain = _chain(rest) if rest else None
        values = first["values"] if self.kind in ("atoms", "integer", "indicators") else []
        self.column = Column("", "target", atoms=tuple(float(v) for v in values))  # for its levels
        self.values = np.asarray(values, dtype=np.float64)
        self.turn = (
            (float(first["lower"]), float(first["upper"])) if self.kind in ("circle", "angle") else None
        )
        self.numbers = {"circle": 2, "angle": 1}.get(self.kind, 1 if self.chain is not None else 0)
        self.levels = int(self.kind in ("atoms", "integer"))
        self.size = len(values) + (self.kind == "atoms")

    def encode(self, x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray | float]]:
        """Return each number of the column with its log-slope."""
        if self.turn is not None:
            low, high = self.turn
            angle = (x - low) * (2 * math.pi / (high - low)) - math.pi
            if self.kind == "circle":
                return [(np.cos(angle), 0.0), (np.sin(angle), 0.0)]
            return [(angle, math.log(2 * math.pi / (high - low)))]
        if self.chain is None:
            return []
        if not self.values.size:
            return [_apply(self.chain, x)]
        aside = self.column.level(x) >= 0
        stand_in, _ = _apply(self.chain, np.zeros(()), inverse=True)
        z, log_slope = _apply(self.chain, np.where(aside, stand_in, x))
        return [(np.where(aside, 0.0, z), np.where(aside, 0.0, log_slope))]

    def encode_levels(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the level of a target, or the indicators of a context."""
        if not self.values.size:
            return []
        level = self.column.level(x)
        if self.kind == "indicators":
            return [(level == k).astype(np.float64) for k in range(len(self.values))]
        return [(level + (self.kind == "atoms")).astype(np.float64)]

    def decode(self, z: np.ndarray | None, level: np.ndarray | None) -> np.ndarray:
        """Return values in units."""
        if self.kind == "angle" and self.turn is not None and z is not None:
            low, high = self.turn
            x = low + (z + math.pi) * ((high - low) / (2 * math.pi))
            return np.clip(x, low, np.nextafter(high, low))
        if self.kind == "integer" and level is not None:
            return self.values[level.astype(np.int64)]
        if self.chain is None or z is None:
            raise ValueError(f"Expected a target's code; got {self.kind}, which has no inverse.")
        with torch.no_grad():
            x = self.chain.inverse_value(_column(z)).squeeze(-1).numpy()
        if level is None:
            return x
        k = level.astype(np.int64)
        return np.where(k > 0, self.values[np.maximum(k - 1, 0)], x)


def _apply(chain: Chain, x: np.ndarray, *, inverse: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Apply a chain of scalar bijections to ``[*batch]`` in float64."""
    with torch.no_grad():
        column = _column(x)
        z, logdet = chain.inverse(column) if inverse else chain(column)
    return z.squeeze(-1).numpy(), logdet.numpy()


def _column(x: np.ndarray) -> torch.Tensor:
    """Return ``[*batch]`` as a tensor ``[*batch, 1]`` of float64."""
    return torch.from_numpy(np.require(x, np.float64, ["C", "W"])).unsqueeze(-1)


def _code_step(column: Column) -> Steps:
    """Return the step that says how a column is coded; none for a plain number."""
    context = column.role == "context"
    if column.period is not None:
        low, high = column.period
        return [{"kind": "circle" if context else "angle", "lower": low, "upper": high}]
    if column.kind == "integer" and not column.counts:
        values = list(column.values) or [0.0, 1.0]
        return [{"kind": "indicators" if context else "integer", "values": values}]
    if column.mixed:
        return [{"kind": "indicators" if context else "atoms", "values": list(column.atoms)}]
    return []


def _has_number(column: Column) -> bool:
    """Say whether a column has a number that a chain of bijections standardises."""
    if column.kind == "integer":
        return column.counts
    return column.period is None


def _fit_column(column: Column, values: np.ndarray) -> tuple[Steps, str]:
    """Return the fitted steps of a column, and why its transform was chosen (empty: the study says so)."""
    first = _code_step(column)
    if not _has_number(column):
        return first, ""
    if column.mixed:
        values = values[column.level(values) < 0]
        if not values.size:
            raise DataError(
                f"Column {column.name}: every row of the train split is on one of its atoms; give more rows, or "
                f'declare it kind = "integer" under [columns.{column.name}].'
            )
    steps, why = _fit_number(column, values)
    return [*first, *steps], why


def _fit_number(column: Column, values: np.ndarray) -> tuple[Steps, str]:
    name, why = choose_for_rows(column, values)
    steps = _fit_steps(column, name, values)
    z, _ = _apply(_chain(steps), values)
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
    return [*steps, {"kind": "affine", "shift": shift, "scale": scale}], why


def _fit_steps(column: Column, name: str, values: np.ndarray) -> Steps:
    """Return the steps of a transform before standardisation."""
    support = column.support
    bounds = math.isfinite(support.lower) + math.isfinite(support.upper)
    if name == "quantile":
        before = _fit_steps(column, "logit" if bounds == 2 else "log", values) if bounds else []
        z, _ = _apply(_chain(before), values)
        return [*before, _fit_quantiles(column, z)]
    if name in ("log", "log1p", "softplus"):
        sign = 1 if name == "log1p" or math.isfinite(support.lower) else -1
        bound = -1.0 if name == "log1p" else support.lower if sign == 1 else support.upper
        step: dict[str, Any] = {"kind": "log" if name == "log1p" else name, "bound": bound, "sign": sign}
        if name == "softplus":
            # Linear for all but the few per cent of rows that lie closest to the bound.
            step["width"] = 0.5 * float(np.quantile(sign * (values - bound), 0.05))
        return [step]
    if name == "logit":
        return [{"kind": "logit", "lower": support.lower, "upper": support.upper}]
    if name in ("asinh", "arctan"):
        low, high = np.quantile(values, [0.25, 0.75])
        shift, width = float(np.median(values)), float(high - low) or float(values.std())
        if name == "asinh":
            return [{"kind": "affine", "shift": shift, "scale": 1.0}, {"kind": "asinh", "width": width}]
        return [
            {"kind": "affine", "shift": shift, "scale": 1.0},
            {"kind": "arctan", "width": column.scale or width},
        ]
    return []


def _fit_quantiles(column: Column, values: np.ndarray) -> dict[str, Any]:
    """Return knots of a monotone spline from quantiles to those of a normal, spread evenly over the latter."""
    most = -NormalDist().inv_cdf(min(0.1, 10 / len(values)))  # ten rows beyond the outermost knots
    scores = np.linspace(-most, most, KNOTS)
    knots = np.quantile(values, [NormalDist().cdf(s) for s in scores])
    # Where rows repeat a value, quantiles tie: such knots are left out.
    apart = np.concatenate([[True], np.diff(knots) > 1e-9 * (knots[-1] - knots[0])])
    if apart.sum() < 2 or not knots[-1] > knots[0]:
        raise DataError(
            f'Column {column.name}: its quantiles coincide, so transform = "quantile" cannot spread them; leave it '
            f"out under [columns.{column.name}], or declare the value that repeats as one of its atoms."
        )
    return {"kind": "quantile", "x": knots[apart].tolist(), "y": scores[apart].tolist()}


def _chain(steps: Steps) -> Chain:
    return Chain(_build(s) for s in steps)


def _build(step: dict[str, Any]) -> Bijection:
    kind = step["kind"]
    options = {k: v for k, v in step.items() if k != "kind"}
    if kind == "affine":
        return Affine(*(torch.tensor([options[k]], dtype=torch.float64) for k in ("shift", "scale")))
    if kind == "quantile":
        return MonotoneSpline(*(torch.tensor(options[k], dtype=torch.float64) for k in ("x", "y")))
    maps = {"log": Log, "softplus": Softplus, "logit": Logit, "asinh": Asinh, "arctan": ArctanLogit}
    return maps[kind](**options)


def _half_line(step: dict[str, Any]) -> str:
    if step["sign"] < 0:
        return f"{step['bound']:g} − x"
    return "x" if step["bound"] == 0 else f"x − {step['bound']:g}"


def _values(step: dict[str, Any]) -> str:
    values = step["values"]
    return ", ".join(f"{v:g}" for v in values[:8]) + (f", … ({len(values)})" if len(values) > 8 else "")


_DESCRIBE = {
    "affine": lambda s: f"(· − {s['shift']:.4g}) / {s['scale']:.4g}",
    "log": lambda s: f"log({_half_line(s)})",
    "softplus": lambda s: f"softplus⁻¹({_half_line(s)}; width {s['width']:.3g})",
    "logit": lambda s: f"logit on ({s['lower']:.4g}, {s['upper']:.4g})",
    "asinh": lambda s: f"asinh(·; width {s['width']:.3g})",
    "arctan": lambda s: f"logit(arctan(·); width {s['width']:.3g})",
    "quantile": lambda s: f"quantiles at {len(s['x'])} knots to those of a normal",
    "atoms": lambda s: f"atoms at {_values(s)}, else",
    "integer": lambda s: f"one of {_values(s)}",
    "indicators": lambda s: f"indicators of {_values(s)}",
    "circle": lambda s: f"cos and sin of a turn from {s['lower']:g} to {s['upper']:g}",
    "angle": lambda s: f"angle of a turn from {s['lower']:g} to {s['upper']:g}",
}
