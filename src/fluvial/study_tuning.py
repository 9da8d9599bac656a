"""The ``[tune]`` section of a study: which options to search, how, and what each trial may cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from fluvial.study_columns import Section
from fluvial.study_training import Seed

Choice = str | bool | int | float


class Range(Section):
    """Numbers from ``low`` to ``high``, both included; whole ones where both are written without a point."""

    low: int | float
    high: int | float
    log: bool = Field(default=False, description="evenly in the logarithm")
    step: int | float | None = Field(
        default=None, description="only low, low + step, …; of a grid, its points"
    )
    points: Annotated[int, Field(ge=2)] | None = Field(default=None, description="of a grid, how many")

    @model_validator(mode="after")
    def _possible(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"expected low < high; found {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: expected low above 0, and no step beside it")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step: expected more than 0, and at most high - low; found {self.step}")
        if self.whole and self.step is not None and not isinstance(self.step, int):
            raise ValueError(f"step: expected a whole number between whole numbers; found {self.step}")
        return self

    @property
    def whole(self) -> bool:
        """Whether these are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def grid(self) -> list[int | float]:
        """Return the values that a grid takes.

        >>> Range(low=2, high=6, step=2).grid(), Range(low=0.001, high=0.1, log=True, points=3).grid()
        ([2, 4, 6], [0.001, 0.01, 0.1])
        """
        if self.points is None:
            assert self.step is not None
            number = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return [self.low + i * self.step for i in range(number)]
        space = np.geomspace if self.log else np.linspace
        values = [float(f"{v:.6g}") for v in space(self.low, self.high, self.points)]
        return list(dict.fromkeys(round(v) for v in values)) if self.whole else list(values)


def _read_space(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        if len(value) < 2 or not all(isinstance(v, (str, bool, int, float)) for v in value):
            raise ValueError(f"expected a list of two values or more; found {value!r:.80}")
        if len({(type(v), v) for v in value}) < len(value):
            raise ValueError(f"expected every value once; found {value!r:.80}")
        return list(value)
    if isinstance(value, (Mapping, Range)):
        return value
    raise ValueError(
        f"expected a list of values, or a range such as {{low = 2, high = 12}}; found {value!r:.80}"
    )


Space = Annotated[list[Choice] | Range, BeforeValidator(_read_space)]


class TuneSection(Section):
    """What to search, how, and what a trial may cost."""

    trials: PositiveInt | None = Field(
        default=None, description="fits in all; left out, 50, or all combinations of a grid"
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        default="tpe",
        description="how trials are chosen: tpe learns from those before, grid takes all combinations",
    )
    pruner: Literal["median", "asha", "none"] = Field(
        default="none",
        description="which trials are ended early: those worse than the median of others at that point, or by successive "
        "halving",
    )
    epochs: PositiveInt | None = Field(
        default=None, description="the budget of every trial, instead of the study's"
    )
    minutes: PositiveFloat | None = Field(
        default=None, description="or the same wall time for every trial: what is slow gets fewer epochs"
    )
    check: bool = Field(default=False, description="check every trial on the test rows, and write its report")
    seed: Seed = Field(default=0, description="decides which trials are chosen")
    space: dict[str, Space] = Field(
        description='options to search, by section and name: `"flow.steps" = {low = 2, high = 12}`, '
        '`"training.learning_rate" = {low = 1e-4, high = 1e-2, log = true}`, `"flow.activation" = ["relu", "tanh"]`',
        min_length=1,
    )

    @model_validator(mode="after")
    def _possible(self) -> TuneSection:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("epochs: expected epochs or minutes, not both")
        for name in self.space:
            section, _, key = name.partition(".")
            if section not in ("flow", "encoder", "training") or not key or "." in key:
                raise ValueError(
                    f'space: expected "flow.OPTION", "encoder.OPTION" or "training.OPTION"; found {name!r}'
                )
            if name in ("training.epochs", "training.steps", "training.minutes"):
                raise ValueError(
                    f"space: {name} is the budget, which epochs or minutes of [tune] set for all trials"
                )
        if self.sampler == "grid":
            for name, values in self.space.items():
                if isinstance(values, Range) and values.step is None and values.points is None:
                    raise ValueError(
                        f'space: {name}: of a grid expected "points" or "step" of a range, or a list'
                    )
        return self

    def combinations(self) -> list[dict[str, Choice]]:
        """Return every combination of a grid, the last option running fastest."""
        values = [v.grid() if isinstance(v, Range) else v for v in self.space.values()]
        return [dict(zip(self.space, point, strict=True)) for point in itertools.product(*values)]

    @property
    def number(self) -> int:
        """Trials in all."""
        if self.sampler == "grid":
            every = math.prod(len(v.grid() if isinstance(v, Range) else v) for v in self.space.values())
            return min(every, self.trials or every)
        return self.trials or 50

    def corners(self) -> dict[str, list[Choice]]:
        """Return, for each option, values that have to be possible if all are: every choice, the ends of ranges."""
        return {n: [v.low, v.high] if isinstance(v, Range) else list(v) for n, v in self.space.items()}
