"""The [columns.NAME] sections of a study: what it says of each column, and the column that this makes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    WithJsonSchema,
    model_validator,
)

from fluvial.data.choice import implied_support
from fluvial.data.discrete import MOST_VALUES
from fluvial.data.schema import Column, Role, Support


class Section(BaseModel):
    """What every section of a study is: strict, frozen, without unknown keys."""

    # Strict: `epochs = "30"` and `epochs = true` are mistakes, not numbers; `clip = 5` is a number.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _read_support(value: Any) -> Any:
    if value == "positive":
        return (0.0, math.inf)
    if value == "real":
        return (-math.inf, math.inf)
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return tuple(value)
    if value is None:
        return None
    raise ValueError(f"expected 'positive', 'real' or [lower, upper]; found {value!r}")


def _read_period(value: Any) -> Any:
    if value == "pi":
        return (-math.pi, math.pi)
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return tuple(_in_pi(v) for v in value)
    if value is None:
        return None
    raise ValueError(f'expected [lower, upper] or "pi"; found {value!r}')


def _in_pi(value: Any) -> Any:
    """Return a number of which 3.14159 stands for π: half a turn written with few digits is still half a turn.

    >>> _in_pi("-pi") == _in_pi(-3.1416) == -math.pi, _in_pi("2pi") == 2 * math.pi, _in_pi(180)
    (True, True, 180)
    """
    if isinstance(value, str):
        factor = {"pi": 1.0, "-pi": -1.0, "2pi": 2.0, "0": 0.0}.get(value.replace(" ", "").replace("*", ""))
        if factor is None:
            raise ValueError(f'expected a number, "pi", "-pi" or "2pi"; found {value!r}')
        return factor * math.pi
    if isinstance(value, (int, float)):
        turns = value / math.pi
        if round(turns) and abs(turns) < 3 and abs(turns - round(turns)) < 3e-5:
            return round(turns) * math.pi
    return value


def _ends(word: dict[str, Any], *kinds: str) -> WithJsonSchema:
    """Return what editors are told of a word, or two ends."""
    ends = {"type": "array", "prefixItems": [{"type": list(kinds)}] * 2, "minItems": 2, "maxItems": 2}
    return WithJsonSchema({"anyOf": [{"type": "string", **word}, ends, {"type": "null"}]})


class SaturateSection(Section):
    """Ends at which a column saturates."""

    above: float | None = Field(default=None, description="values from here on are one atom, here")
    below: float | None = Field(default=None, description="values up to here are one atom, here")


class ColumnSection(Section):
    """What a study says of one column."""

    model_config = ConfigDict(allow_inf_nan=True)  # a bound may be inf

    unit: str = Field(default="", description="for axes, messages and the report, such as Msun")
    support: Annotated[
        tuple[float, float] | None,
        BeforeValidator(_read_support),
        _ends({"enum": ["positive", "real"]}, "number"),
    ] = Field(
        default=None,
        description='where the column can be: "positive", "real", or [lower, upper], either of which may be -inf or inf; '
        "draws never leave it; of an integer column, the first and the last whole number",
    )
    transform: str | dict[str, float] | None = Field(
        default=None,
        description="how it is brought to the real line: standardise, log, log1p, softplus, logit, asinh, arctan (or "
        "{arctan = width}) or quantile; left out, log for a support bounded on one side, logit on both, else "
        "standardise, or asinh where tails are heavy; quantile for a mixed column that comes up to an atom. Of an array "
        "column: standardise (all pixels alike; the default), standardise-pixels (each pixel by itself), or log-clip (or "
        "{log-clip = 0.2}): log(max(x, 0.2)), then each pixel by itself",
    )
    kind: Literal["continuous", "integer"] = Field(
        default="continuous",
        description="integer: one of finitely many whole numbers, each with its probability",
    )
    values: Annotated[list[float], Field(strict=False)] = Field(
        default=[], description="of an integer column; left out, those that occur in the table"
    )
    atoms: Annotated[list[float], Field(strict=False)] = Field(
        default=[], description="values with a probability of their own, such as -1 for a tagger that failed"
    )
    saturate: SaturateSection = Field(
        default=SaturateSection(), description="{above = 7.0}: values from 7 on are one atom at 7; or below"
    )
    period: Annotated[
        tuple[float, float] | None,
        BeforeValidator(_read_period),
        _ends({"const": "pi"}, "number", "string"),
    ] = Field(
        default=None,
        description='the ends of one turn of an angle, such as [-180, 180]; "pi" means from -π to π',
    )
    missing: Literal["error", "mask"] = Field(
        default="error",
        description="of an array column: mask puts missing pixels (NaN) at their mean, and counts them",
    )
    noise: str | PositiveFloat | None = Field(
        default=None,
        description="of an array column that the table holds without noise: the standard deviation of the Gaussian "
        "noise to add, a number or a column of the source with one a row or one a pixel; drawn anew in every epoch of "
        "training, once and for all for validation and test rows",
    )
    jitter: str | PositiveFloat | None = Field(
        default=None,
        description="of an array column: noise of this size that only training sees, on top of all else, against "
        "learning by heart; too much of it makes a density too wide",
    )
    label: str = Field(default="", description="for plots; may hold $mathtext$")

    @model_validator(mode="after")
    def _possible(self) -> ColumnSection:
        if self.support is not None and not self.support[0] < self.support[1]:
            raise ValueError(f"support: expected lower < upper; found {list(self.support)}")
        if isinstance(self.transform, dict) and not (
            list(self.transform) in (["arctan"], ["log-clip"])
            and all(0 < v < math.inf for v in self.transform.values())
        ):
            raise ValueError(
                f"transform: expected a name, {{arctan = width}} or {{log-clip = least}}; found {self.transform}"
            )
        mixed = bool(self.atoms) or self.saturate != SaturateSection()
        extra = [
            name
            for name, there in (
                ("atoms or saturate", mixed),
                ("period", self.period is not None),
                ('kind = "integer"', self.kind == "integer"),
            )
            if there
        ]
        if len(extra) > 1:
            raise ValueError(f"expected one of {', '.join(extra)}; found them together")
        if self.values and self.kind != "integer":
            raise ValueError('values: expected kind = "integer" beside it, or atoms instead')
        if self.kind == "integer":
            self._integers()
        if mixed:
            self._levels()
        if self.period is not None:
            if not -math.inf < self.period[0] < self.period[1] < math.inf:
                raise ValueError(f"period: expected lower < upper; found {list(self.period)}")
            if self.support is not None:
                raise ValueError("support: a periodic column has none; its period says all")
        return self

    def _integers(self) -> tuple[float, ...]:
        """Return the declared values of an integer column; none if they are to be found in the table."""
        values = self.values
        if self.support is not None:
            low, high = self.support
            if values:
                raise ValueError("support: expected values or support of an integer column, not both")
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(
                    f"support: expected the first and the last whole number; found {list(self.support)}"
                )
            values = [float(v) for v in range(math.ceil(low), math.floor(high) + 1)[: MOST_VALUES + 1]]
        if any(v != round(v) for v in values if math.isfinite(v)) or not all(map(math.isfinite, values)):
            raise ValueError(f"values: expected whole numbers; found {values}")
        if len(values) > MOST_VALUES or len(values) == 1:
            raise ValueError(f"values: expected 2 to {MOST_VALUES} of an integer column; found {len(values)}")
        return tuple(sorted(set(values)))

    def _levels(self) -> tuple[tuple[float, ...], Support, Support | None]:
        """Return the atoms of a mixed column, where it saturates, and the support of its continuous part."""
        low, high = self.saturate.below, self.saturate.above
        saturate = Support(-math.inf if low is None else low, math.inf if high is None else high)
        atoms = sorted({*self.atoms, *(v for v in (low, high) if v is not None)})
        if not all(map(math.isfinite, atoms)) or not saturate.lower < saturate.upper:
            raise ValueError(f"atoms: expected finite numbers, below < above; found {atoms}")
        if atoms[0] < saturate.lower or atoms[-1] > saturate.upper:
            raise ValueError(f"atoms: expected all where the column does not saturate; found {atoms}")
        if saturate == Support() and self.support is None:
            return tuple(atoms), saturate, None
        transform = self.transform if isinstance(self.transform, str) else None
        bounds = Support(*self.support) if self.support is not None else implied_support(transform, None)
        lower, upper = max(bounds.lower, saturate.lower), min(bounds.upper, saturate.upper)
        if not lower < upper:
            raise ValueError(f"saturate: nothing of the support {bounds} is left")
        return tuple(atoms), saturate, Support(lower, upper)

    def column(self, name: str, role: Role) -> Column:
        """Return the column that the section describes."""
        transform, scale = self.transform, None
        if isinstance(transform, dict):
            ((transform, scale),) = transform.items()
        usual = Column(
            name,
            role,
            unit=self.unit,
            transform=transform,
            scale=scale,
            label=self.label,
            kind=self.kind,
            missing=self.missing,
        )
        support = Support(*self.support) if self.support is not None else None
        if self.kind == "integer":
            return replace(usual, values=self._integers())
        atoms: tuple[float, ...] = ()
        saturate = Support()
        if self.atoms or self.saturate != SaturateSection():
            atoms, saturate, support = self._levels()
        return replace(
            usual,
            support=implied_support(transform, support),
            atoms=atoms,
            saturate=saturate,
            period=self.period,
        )
