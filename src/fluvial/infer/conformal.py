r"""Conformal regions: regions of a density that hold the truth as often as they say, whatever the density.

With a score s(x, c) that is large where x is surprising, scores :math:`s_1 \dots s_n` of rows that the density was not
trained on, and :math:`q` the :math:`\lceil (n + 1) \alpha \rceil`-th smallest of them, the region
:math:`\{x : s(x, c) \le q\}` holds the x of the next row with a probability of

.. math:: \alpha \;\le\; P\bigl(s(x, c) \le q\bigr) \;\le\; \alpha + \frac{1}{n + 1}

where rows are exchangeable and scores do not tie; where they tie, the left side holds (Papadopoulos et al. 2002; Vovk,
Gammerman & Shafer 2005; Lei et al. 2018, arXiv:1604.04173, theorem 2). No assumption is made of the density: a poor one
gives large regions, not wrong ones. The probability is over contexts and targets together; it is not promised at every
single context.

Two scores: :math:`-\log p(x | c)`, whose regions are highest-density regions of all targets together; and for each
target its distance from the median of draws, in units of that of their 16 % or 84 % quantile on the same side,

.. math:: s = \max\Bigl(\frac{q_{50} - x}{q_{50} - q_{16}},\; \frac{x - q_{50}}{q_{84} - q_{50}}\Bigr)

whose regions are central intervals :math:`[q_{50} - s\,(q_{50} - q_{16}),\; q_{50} + s\,(q_{84} - q_{50})]`: as wide as
the density says at each context, times one number. (A rank among draws would not do: no interval of an overconfident
density would reach beyond its draws.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from fluvial.conditional import Conditional, stack_columns
from fluvial.density import Density
from fluvial.errors import DataError, RunError
from fluvial.files import write_atomically

CONFORMAL_FILE = "conformal.safetensors"
FORMAT = 1
#: Rows whose scores are kept, and for central intervals, at most; draws behind their quantiles.
ROWS, CENTRAL_ROWS, DRAWS = 100_000, 1_000, 400
#: Draws behind an area, unless given.
AREA_DRAWS = 4_000
#: The quantiles of draws that an interval is made of.
QUANTILES = (0.15865525393145707, 0.5, 0.8413447460685429)


def conformal_threshold(scores: ArrayLike, level: float) -> float:
    """Return the threshold q: the ⌈(n + 1)·level⌉-th smallest score; infinity where n is too small for the level.

    >>> conformal_threshold(np.arange(1, 100), 0.9)
    90.0
    >>> conformal_threshold([1.0, 2.0], 0.9)
    inf

    Raises
    ------
    DataError
        If ``level`` is not between 0 and 1, or a score is NaN.
    """
    values = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not 0 < level < 1:
        raise DataError(f"Expected a level between 0 and 1; got {level}.")
    if np.isnan(values).any():
        raise DataError("Expected scores without NaN.")
    # (a level such as 0.9 is a hair above nine tenths: without the slack, 99 scores would give the 91st)
    rank = math.ceil((len(values) + 1) * level - 1e-9)
    return float(values[rank - 1]) if rank <= len(values) else math.inf


@dataclass(frozen=True, eq=False)
class ConformalRegions:
    """Regions of a density with a guarantee; see the module.

    Attributes
    ----------
    density : Density
        The density.
    scores : dict
        Sorted scores of the calibration rows: under ``"density"`` of all targets together, under each target's name of
        its central interval.
    about : dict
        Which split they come from, how many rows, when.
    """

    density: Density
    scores: Mapping[str, np.ndarray]
    about: Mapping[str, Any]

    @classmethod
    def fit(
        cls, density: Density, table: Mapping[str, np.ndarray], *, seed: int = 0, **about: Any
    ) -> ConformalRegions:
        """Score the rows of a table of targets and context that the density was not trained on.

        More than :data:`ROWS` rows are thinned. ``about`` is kept with the scores.
        """
        rows = len(next(iter(table.values())))
        rng = np.random.default_rng(seed)
        order = rng.permutation(rows)
        dear = density.flow.validation_rows
        kept = np.sort(order[: min(ROWS, dear or ROWS)])
        names = density.schema.target_names
        scores = {"density": -density.log_prob({name: v[kept] for name, v in table.items()})}
        few = np.sort(order[: min(CENTRAL_ROWS, dear or CENTRAL_ROWS)])
        chosen = {name: v[few] for name, v in table.items()}
        draws = density.given(chosen if density.schema.context else None).sample(
            DRAWS if density.schema.context else DRAWS * len(few), seed=seed
        )
        x = np.stack([chosen[name] for name in names], axis=-1)
        y = np.stack([draws[name] for name in names], axis=-1).reshape(len(few), DRAWS, len(names))
        scores |= {name: _central_scores(x[:, j], _quantiles(y[:, :, j])) for j, name in enumerate(names)}
        sizes = {"rows": len(kept), "central_rows": len(few)}
        return cls(density, {name: np.sort(s) for name, s in scores.items()}, {**about, **sizes})

    def at(self, table: Any = None, /, **context: ArrayLike) -> Region:
        """Return the regions at one context or at many, given as to :meth:`fluvial.Density.given`."""
        return Region(self, self.density.given(table, outside="warn", **context))

    def threshold(self, level: float) -> float:
        """Return the log-density above which an event is in the region of all targets together."""
        return -conformal_threshold(self.scores["density"], level)

    def save(self, folder: str | Path) -> None:
        """Write ``conformal.safetensors``: scores, and ``about`` in its header."""
        about = json.dumps({"format": FORMAT, **self.about})
        # Names of targets may be anything; the order of the schema stands for them.
        arrays = {"density": self.scores["density"]}
        arrays |= {f"central{j}": self.scores[n] for j, n in enumerate(self.density.schema.target_names)}
        write_atomically(Path(folder) / CONFORMAL_FILE, safetensors_bytes(arrays, metadata={"about": about}))

    @classmethod
    def load(cls, folder: str | Path) -> ConformalRegions:
        """Read the regions of a run, or of any folder with a density that was checked.

        Raises
        ------
        RunError
            If there are none, or the file is damaged.
        """
        path = Path(folder) / CONFORMAL_FILE
        density = Density.load(folder)
        density.folder = Path(folder)
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads(file.metadata()["about"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except FileNotFoundError:
            raise RunError(f"Expected {path}; found none. Make it with: fluvial check {folder}") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is damaged ({error}); make it again with: fluvial check {folder}"
            ) from error
        if about["format"] > FORMAT:
            raise RunError(
                f"{path} has format {about['format']}, which is newer than this fluvial. Update it."
            )
        names = density.schema.target_names
        scores = {"density": arrays["density"]} | {n: arrays[f"central{j}"] for j, n in enumerate(names)}
        return cls(density, scores, about)


@dataclass(frozen=True, eq=False)
class Region:
    """The conformal regions at given contexts."""

    regions: ConformalRegions
    given: Conditional

    def contains(self, events: Any, level: float) -> np.ndarray:
        """Return whether each event is in the region of all targets together; shapes broadcast as in ``log_prob``."""
        return -self.given.log_prob(events) <= conformal_threshold(self.regions.scores["density"], level)

    def area(
        self, level: float, *, draws: int = AREA_DRAWS, seed: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Return the size of that region and its standard error, in units of the targets, of the contexts' shape.

        By draws of the density: :math:`\int 1[p \ge t]\, dx = E_p\bigl[1[p \ge t] / p\bigr]`. Infinite where the level
        asks for more calibration rows than there are.
        """
        threshold = self.regions.threshold(level)
        if math.isinf(threshold):
            shape = self.given.shape
            return np.full(shape, np.inf), np.full(shape, np.nan)
        _, log_prob = self.given.sample_and_log_prob(draws, seed=seed)
        terms = np.where(log_prob >= threshold, np.exp(-np.maximum(log_prob, threshold)), 0.0)
        return terms.mean(axis=-1), terms.std(axis=-1, ddof=1) / math.sqrt(draws)

    def intervals(
        self, level: float, *, draws: int = DRAWS, seed: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return the central interval of each target: arrays ``[*shape, 2]`` of lower and upper ends, in its unit.

        Each interval by itself holds its target with the probability of the level; it ends where the support does. Its
        quantiles are those of so many draws, as many as behind the scores unless given: the guarantee is for these. It is
        infinite where the level asks for more calibration rows than there are.
        """
        drawn = self.given.sample(draws, seed=seed)
        found = {}
        for column in self.regions.density.schema.targets:
            low, middle, high = np.moveaxis(_quantiles(drawn[column.name]), -1, 0)
            times = conformal_threshold(self.regions.scores[column.name], level)
            ends = np.stack([middle - times * (middle - low), middle + times * (high - middle)], axis=-1)
            if column.plain:
                ends = np.clip(ends, column.support.lower, column.support.upper)
            found[column.name] = ends
        return found

    def covers(
        self, events: Any, level: float, *, draws: int = DRAWS, seed: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return for each target whether its value lies in its central interval."""
        columns = self.regions.density.schema.targets
        values = stack_columns(events, columns, "events")
        ends = self.intervals(level, draws=draws, seed=seed)
        return {
            c.name: (values[..., i] >= ends[c.name][..., 0]) & (values[..., i] <= ends[c.name][..., 1])
            for i, c in enumerate(columns)
        }


def _quantiles(draws: np.ndarray) -> np.ndarray:
    """Return the three quantiles of draws ``[..., S]`` as ``[..., 3]``, apart by a rounding error at least."""
    low, middle, high = np.quantile(draws, QUANTILES, axis=-1)
    least = 1e-9 * (np.abs(middle) + (high - low)) + 1e-300
    return np.stack([np.minimum(low, middle - least), middle, np.maximum(high, middle + least)], axis=-1)


def _central_scores(x: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    low, middle, high = np.moveaxis(quantiles, -1, 0)
    return np.maximum((middle - x) / (middle - low), (x - middle) / (high - middle))
