r"""Novelty: how unlike the training rows a context is, with a stated rate of false alarms.

A density answers wherever it is asked, also where nothing was learnt: beyond the range of its table, and in holes within
it. The score here is large there, and its threshold is set on rows that it was not made from, so that a context like
those of the table is flagged with a probability of at most ``rate`` (1 % unless chosen), whatever their distribution:
with n such rows and their scores :math:`s_i`, a context of score s has

.. math:: p = \frac{1 + \#\{s_i \ge s\}}{n + 1}

which is at most r with probability at most r for a context exchangeable with them (Vovk, Gammerman & Shafer 2005; Bates
et al. 2023, arXiv:2104.08279).

*Numbers*: the logarithm of the distance to the k-th nearest of some thousand training contexts, robustly whitened, less
the mean of the same for those k neighbours (Schubert, Zimek & Kriegel 2014, "simplified LOF"): so a hole in a crowd and a
point beyond a sparse tail are both found. Contexts of many columns (features of an array) are scored by their Mahalanobis
distance instead.

*Grids*: a column of few values (such as simulated metallicities) has cells. A cell that training rows had is known; a
context *between* grid points whose neighbouring cells are all known is an interpolation, said so and not flagged; any
other is novel.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as safetensors_bytes

from fluvial.errors import DataError, RunError
from fluvial.files import write_atomically

FORMAT = 1
NOVELTY_FILE, ARRAYS_FILE = "novelty.json", "novelty.safetensors"
#: The share of contexts like those of the table that are flagged.
RATE = 0.01
#: Training contexts that are kept, and held-out ones whose scores are kept, at most.
REFERENCES, CALIBRATION = 5_000, 20_000
#: Which neighbour's distance is taken.
NEIGHBOUR = 8
#: Contexts of more columns are scored by their Mahalanobis distance.
MOST_COLUMNS = 40
#: A column is a grid if it has at most so many values, and rows enough for each.
GRID_VALUES, ROWS_PER_VALUE = 64, 20
#: A context is on a grid point if it is nearer to it than this share of the grid's spacing.
ON_GRID = 1e-3

_ELEMENTS = 4_000_000  # of a matrix of distances, at once


@dataclass(frozen=True, eq=False)
class NoveltyResult:
    """How unlike the training rows contexts are; every array has the shape of the contexts.

    Attributes
    ----------
    p : array of float
        The probability that a context like those of the table is as unlike them as this one: small means novel.
    flag : array of bool
        Whether p is at most ``rate``.
    between : array of bool
        Whether the context lies between known points of a grid: what the density says there is an interpolation.
    rate : float
        The share of false alarms.
    """

    p: np.ndarray
    flag: np.ndarray
    between: np.ndarray
    rate: float

    def __str__(self) -> str:
        between = f", {int(self.between.sum()):,} between grid points" if self.between.any() else ""
        return f"{int(self.flag.sum()):,} of {self.flag.size:,} contexts novel (false alarms {self.rate:.2g}){between}"


@dataclass(frozen=True, eq=False)
class Novelty:
    """A fitted score; contexts are rows of coded, standardised columns ``[n, C]``.

    Attributes
    ----------
    about : dict
        What ``novelty.json`` says: rate, rows, which split set the threshold, grid columns.
    arrays : dict
        The numbers behind it.
    """

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @classmethod
    def fit(
        cls,
        train: np.ndarray,
        held_out: np.ndarray,
        *,
        rate: float = RATE,
        split: str = "validation",
        seed: int = 0,
    ) -> Novelty:
        """Fit to training contexts ``[n, C]``; set the threshold by ``[m, C]`` of the same kind that were held out.

        Raises
        ------
        DataError
            If the shapes do not agree, there are no rows or columns, or ``rate`` is not between 0 and 1.

        >>> rng = np.random.default_rng(0)
        >>> angle = rng.uniform(0, 2 * np.pi, 6000)
        >>> ring = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * rng.normal(size=(6000, 2))
        >>> novelty = Novelty.fit(ring[:4000], ring[4000:])
        >>> novelty(np.array([[1.0, 0.0], [0.0, 0.0], [3.0, 0.0]])).flag
        array([False,  True,  True])
        """
        train, held_out = _rows(train), _rows(held_out)
        if train.shape[1] != held_out.shape[1] or not train.size or not held_out.size:
            raise DataError(
                f"novelty: expected training and held-out contexts [n, C] of one C > 0; got {list(train.shape)} and "
                f"{list(held_out.shape)}."
            )
        if not 0 < rate < 1:
            raise DataError(f"novelty: expected a rate of false alarms between 0 and 1; got {rate}.")
        rng = np.random.default_rng(seed)
        levels = {j: found for j, column in enumerate(train.T) if (found := _grid_levels(column)) is not None}
        grid = list(levels)
        free = [j for j in range(train.shape[1]) if j not in levels]
        arrays: dict[str, np.ndarray] = {f"levels{j}": found for j, found in levels.items()}
        about: dict[str, Any] = {
            "format": FORMAT,
            "rate": rate,
            "columns": train.shape[1],
            "grid": grid,
            "free": free,
            "score": "grid" if not free else "mahalanobis" if len(free) > MOST_COLUMNS else "neighbours",
            "train_rows": len(train),
        }
        if grid:
            index = np.stack([np.searchsorted(levels[j], train[:, j]) for j in grid], 1)
            arrays["cells"] = np.unique(_cell_keys(index))
        if free:
            arrays |= _fit_numbers(train[:, free], about["score"], rng)
        chosen = rng.permutation(len(held_out))[:CALIBRATION]
        about |= {"threshold_split": split, "threshold_rows": len(chosen)}
        draft = cls(about, arrays)
        scores, _ = draft._scores(held_out[np.sort(chosen)])
        return cls(about, arrays | {"scores": np.sort(scores)})

    def __call__(self, context: np.ndarray, rate: float | None = None) -> NoveltyResult:
        """Score contexts ``[..., C]``, coded and standardised as those of the fit; ``rate``: the fit's, unless given."""
        values = np.asarray(context, dtype=np.float64)
        share = float(self.about["rate"] if rate is None else rate)
        scores, between = self._scores(values.reshape(-1, values.shape[-1]))
        known = self.arrays["scores"]
        p = (1.0 + len(known) - np.searchsorted(known, scores, side="left")) / (len(known) + 1.0)
        shape = values.shape[:-1]
        return NoveltyResult(p.reshape(shape), (p <= share).reshape(shape), between.reshape(shape), share)

    def describe(self) -> str:
        """Return one sentence on what is looked at."""
        about = self.about
        how = {
            "grid": "whether its cell of the grid has training rows",
            "neighbours": f"its distance to the {NEIGHBOUR}th nearest training context, relative to theirs",
            "mahalanobis": "its Mahalanobis distance from the training contexts",
        }[about["score"]]
        also = (
            ", and whether its cell of the grid has training rows" if about["free"] and about["grid"] else ""
        )
        return (
            f"A context is flagged by {how}{also}; of contexts like those of the table at most {100 * about['rate']:g} % "
            f"are flagged, by {about['threshold_rows']:,} {about['threshold_split']} rows."
        )

    def save(self, folder: str | Path) -> None:
        """Write ``novelty.json`` and ``novelty.safetensors``."""
        text = json.dumps(self.about, indent=2, ensure_ascii=False, allow_nan=False)
        arrays = {name: np.ascontiguousarray(value) for name, value in self.arrays.items()}
        write_atomically(Path(folder) / ARRAYS_FILE, safetensors_bytes(arrays))
        write_atomically(Path(folder) / NOVELTY_FILE, (text + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path) -> Novelty | None:
        """Read it from a folder, or return ``None`` if there is none.

        Raises
        ------
        RunError
            If a file is damaged, or of a newer format.
        """
        path = Path(folder) / NOVELTY_FILE
        if not path.exists():
            return None
        try:
            about = json.loads(path.read_bytes())
            if about["format"] > FORMAT:
                raise RunError(
                    f"{path} has format {about['format']}; this version reads up to {FORMAT}. Update fluvial."
                )
            return cls(about, load_file(path.with_name(ARRAYS_FILE)))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RunError(
                f"{path} is damaged ({type(error).__name__}: {error}); remove it, or run fluvial check again."
            ) from error

    def _scores(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the score of each row, and whether it lies between grid points."""
        if values.shape[1] != self.about["columns"]:
            raise DataError(f"novelty: expected contexts [..., {self.about['columns']}]; got {values.shape}.")
        scores, between = np.full(len(values), -np.inf), np.zeros(len(values), dtype=bool)
        free, grid = self.about["free"], self.about["grid"]
        if free:
            scores = _number_scores(values[:, free], self.about["score"], self.arrays)
        if grid:
            levels = [self.arrays[f"levels{j}"] for j in grid]
            unknown, between = _grid_place(values[:, grid], levels, self.arrays["cells"])
            scores[unknown] = np.inf
        return scores, between


def _rows(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise DataError(f"novelty: expected contexts of shape [n, C]; got {list(values.shape)}.")
    return values


def _grid_levels(column: np.ndarray) -> np.ndarray | None:
    """Return the values of a column of few, or ``None``."""
    # A thousand rows show most columns of numbers for what they are; only the others are looked at whole.
    few = min(GRID_VALUES, len(column) // ROWS_PER_VALUE)
    if len(np.unique(column[:1000])) > max(few, 1):
        return None
    levels = np.unique(column)
    return levels if len(levels) <= max(few, 1) else None


def _cell_keys(index: np.ndarray) -> np.ndarray:
    """Return one number for each row of whole numbers: a hash with wrap-around, so that any number of columns will do."""
    multipliers = np.random.default_rng(20_260_101).integers(1, 2**62, index.shape[1]) | 1
    return (index.astype(np.int64) * multipliers).sum(axis=1)


def _grid_place(
    values: np.ndarray, levels: list[np.ndarray], cells: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows are in cells that are not known, and which lie between known ones."""
    low = np.empty(values.shape, dtype=np.int64)
    high = np.empty_like(low)
    outside = np.zeros(len(values), dtype=bool)
    for j, known in enumerate(levels):
        x = values[:, j]
        spacing = np.diff(known).min() if len(known) > 1 else max(abs(float(known[0])), 1.0)
        above = np.searchsorted(known, x)
        below = np.clip(above - 1, 0, len(known) - 1)
        above = np.clip(above, 0, len(known) - 1)
        near = np.where(np.abs(x - known[below]) <= np.abs(x - known[above]), below, above)
        on = np.abs(x - known[near]) <= ON_GRID * spacing
        low[:, j], high[:, j] = np.where(on, near, below), np.where(on, near, above)
        outside |= ~on & (low[:, j] == high[:, j])
    between = (low != high).any(axis=1)
    open_columns = np.flatnonzero((low != high).any(axis=0))
    known_corners = np.ones(len(values), dtype=bool)
    for corner in itertools.product((False, True), repeat=min(len(open_columns), 8)):
        index = low.copy()
        for j, up in zip(open_columns, corner, strict=False):
            index[:, j] = np.where(up, high[:, j], low[:, j])
        known_corners &= np.isin(_cell_keys(index), cells)
    unknown = outside | ~known_corners
    return unknown, between & ~unknown


def _fit_numbers(train: np.ndarray, score: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    centre, whiten = _whitening(train)
    arrays = {"centre": centre, "whiten": whiten}
    if score == "neighbours":
        chosen = np.sort(rng.permutation(len(train))[:REFERENCES])
        reference = (train[chosen] - centre) @ whiten
        arrays["reference"] = reference
        distance, _ = _neighbours(reference, reference, own=True)
        # Rows that repeat have distance 0: they are near one another, not infinitely so.
        floor = 1e-3 * float(np.median(distance)) or 1e-6
        arrays["floor"] = np.array([floor])
        arrays["spread"] = np.log(distance + floor)
    return arrays


def _number_scores(values: np.ndarray, score: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    white = (values - arrays["centre"]) @ arrays["whiten"]
    if score == "mahalanobis":
        return np.sqrt(np.square(white).sum(axis=1))
    distance, nearest = _neighbours(white, arrays["reference"])
    return np.log(distance + arrays["floor"][0]) - arrays["spread"][nearest].mean(axis=1)


def _whitening(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a centre and a matrix that make contexts uncorrelated and of unit width; outliers count little."""
    centre = np.median(train, axis=0)
    width = 1.4826 * np.median(np.abs(train - centre), axis=0)
    width = np.where(width > 0, width, train.std(axis=0))
    width = np.where(width > 0, width, 1.0)
    scaled = np.clip((train - centre) / width, -4, 4)
    covariance = np.atleast_2d(np.cov(scaled.T))
    value, vector = np.linalg.eigh(covariance)
    # Columns that say the same leave directions without width: small ones, but not ones that drown all others.
    value = np.maximum(value, 1e-3 * value.max())
    return centre, (vector / np.sqrt(value)) / width[:, None]


def _neighbours(
    points: np.ndarray, reference: np.ndarray, *, own: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the k-th nearest reference, and the indices of all k; ``own``: points are the references."""
    k = min(NEIGHBOUR, len(reference) - own)
    if k < 1:
        return np.ones(len(points)), np.zeros((len(points), 1), dtype=np.int64)
    distance, nearest = np.empty(len(points)), np.empty((len(points), k), dtype=np.int64)
    # In few dimensions neighbours are so near that float32 would mix them up; in many it is three times as fast.
    dtype = torch.float64 if reference.shape[1] <= 3 else torch.float32
    known = torch.from_numpy(reference).to(dtype)
    square = known.square().sum(1)
    step = max(1, _ELEMENTS // len(reference))
    for start in range(0, len(points), step):
        part = points[start : start + step]
        d = torch.addmm(square, torch.from_numpy(part).to(dtype), known.T, alpha=-2)
        if own:
            d[torch.arange(len(part)), torch.arange(start, start + len(part))] = math.inf
        near = d.topk(k, largest=False, sorted=False).indices.numpy()
        nearest[start : start + step] = near
        gap = part[:, None, :] - reference[near]  # exact, where the difference above has lost its digits
        distance[start : start + step] = np.sqrt(np.square(gap).sum(axis=2).max(axis=1))
    return distance, nearest
