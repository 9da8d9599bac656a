"""A catalogue of labels from spectra: for each star what its posterior says, and whether it can be believed.

Columns, for each target such as ``t_eff`` (all of them float64, in the target's unit):

==============================  ====================================================================================
``t_eff_mean``, ``t_eff_std``   mean and standard deviation of the posterior
``t_eff_q16``, ``_q50``, …      quantiles
``t_eff_lo68``, ``t_eff_hi68``  ends of the 68 % region of highest density; 95 % alike
``cov_t_eff_log_g``, …          covariances, one for each pair
``log_p68``, ``log_p95``        with ``joint``: log-densities above which the joint 68 and 95 % regions lie
``distance``                    root mean square of the standardised pixels; about 1 is usual
``novelty``                     p-value of the run's novelty score, small for a spectrum unlike those of training; NaN
                                where the run has none
``flags``                       the sum of :class:`Flag` values; 0 is good
==============================  ====================================================================================

before them ``row`` (place in the input, from 0), ``name`` where the input has one, and columns asked for with ``keep``.
"""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Any

import numpy as np

import fluvial
from fluvial.apps.stars.observed import load_spectra
from fluvial.data.readers import Reader, open_table
from fluvial.density import Density
from fluvial.errors import DataError, FluvialError
from fluvial.extras import optional_module
from fluvial.infer.summaries import LEVELS, QUANTILES, Summary, density_threshold, summarise

Array = np.ndarray

CHUNK = 512  # spectra that are encoded at once
PATCHED = 0.05  # of pixels that may be interpolated where a density knows no mask
NEGATIVE = 0.01  # of pixels below zero, from which on a spectrum is flagged


class Flag(IntFlag):
    """What may be wrong with a row; the catalogue holds the sum."""

    MISSING_PIXELS = 1
    """Some pixels are NaN; they were taken as unknown, or interpolated where the density knows no mask."""
    NO_SUMMARY = 2
    """Nothing to go by: no finite pixel, too many missing, or the same flux everywhere. Summaries are NaN."""
    NO_SIGNAL = 4
    """The signal-to-noise ratio in the input is 0, negative or missing."""
    EDGE = 8
    """The mean is within one standard deviation of the range of the training labels, or beyond."""
    NOVEL = 16
    """Unlike the spectra of training: by the run's novelty score, or farther from their mean than any of them."""
    NEGATIVE_FLUX = 32
    """More than 1 % of pixels are below zero: a poor subtraction of the sky, or no normalised spectrum."""


@dataclass(frozen=True)
class Catalogued:
    """What was written: rows, seconds of work, and how often each flag was set."""

    rows: int
    seconds: float
    flags: Mapping[str, int]
    notes: tuple[str, ...]


def catalogue(
    density: Density,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    draws: int = 1000,
    seed: int = 0,
    joint: bool = False,
    keep: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Catalogued:
    """Write a catalogue of every spectrum of a source, in chunks: memory does not grow with their number.

    Args:
        density: whose context holds spectra.
        source: anything that a study takes as its source, with the density's context columns; or what
            :func:`~fluvial.apps.stars.observed.load_spectra` reads.
        out: a file that ends in ``.parquet`` or ``.fits``.
        draws: at each star.
        seed: of the draws; the same seed and source give the same catalogue.
        joint: add ``log_p68`` and ``log_p95``.
        keep: scalar columns of the source to carry over.
        progress: called with the stars done and their number.

    Raises:
        DataError: if the source lacks a column, or its spectra are of another grid.
    """
    path = Path(out)
    if path.suffix not in (".parquet", ".fits"):
        raise DataError(f"{path}: expected a catalogue that ends in .parquet or .fits")
    if not path.parent.is_dir():
        raise DataError(f"no folder {str(path.parent)!r} to write {path.name!r} into; make it first")
    stars = _open(density, source, keep)
    ranges, notes = _target_ranges(density)
    begin, done = time.monotonic(), 0
    counts = dict.fromkeys(Flag, 0)
    with _Writer(path, density, draws) as writer:
        for chunk in stars.chunks(CHUNK):
            columns = _summarised(density, chunk, done, draws, seed, joint, ranges)
            counts = {flag: n + int((columns["flags"] & flag > 0).sum()) for flag, n in counts.items()}
            writer.add({"row": np.arange(done, done + len(columns["flags"])), **chunk.kept, **columns})
            done += len(columns["flags"])
            if progress is not None:
                progress(done, stars.rows)
    return Catalogued(
        done, time.monotonic() - begin, {str(f.name).lower(): n for f, n in counts.items()}, notes
    )


@dataclass(frozen=True)
class _Chunk:
    """Context columns of some stars, whose pixels may be NaN; their signal to noise, and columns to carry over."""

    context: dict[str, Array]
    snr: Array | None
    kept: dict[str, Array]


@dataclass(frozen=True)
class _Source:
    rows: int
    chunks: Callable[[int], Iterator[_Chunk]]


def _open(density: Density, source: str | os.PathLike[str], keep: Sequence[str]) -> _Source:
    """A source of spectra, in chunks, checked against what the density needs."""
    names = density.schema.context_names
    spectra = density.schema.arrays
    if not spectra:
        raise DataError(
            f"expected a density of spectra; the context of this one is {', '.join(names)}, numbers all"
        )
    try:
        reader = open_table(source)
    except DataError as error:
        reader, problem = None, error
    else:
        problem = None
    if reader is None or not set(names) <= set(reader.columns()):
        if len(names) == 1 and Path(source).exists():
            found = load_spectra(source)
            _check_length(found.flux.shape[1], spectra[0], source)
            return _Source(len(found), lambda size: _in_memory(found, names[0], keep, size))
        if problem is not None:
            raise problem
        missing = [n for n in names if reader is not None and n not in reader.columns()]
        raise DataError(
            f"{source}: expected the context columns {', '.join(names)}; missing: {', '.join(missing)}"
        )
    for column in spectra:
        _check_length(reader.length(column.name) or 1, column, source)
    return _Source(reader.rows(), lambda size: _from_reader(reader, names, keep, size))


def _check_length(length: int, column: Any, source: Any) -> None:
    if length != column.length:
        raise DataError(
            f"{source}: {column.name} has {length:,} pixels; the density was fitted to {column.length:,}. Resample the "
            f"spectra to its grid: fluvial stars prepare {source} --grid WAVELENGTH.npy --out FOLDER"
        )


def _from_reader(reader: Reader, names: Sequence[str], keep: Sequence[str], size: int) -> Iterator[_Chunk]:
    known = reader.columns()
    snr = next((n for n in known if n.lower() in ("snr", "sn", "s_n", "snr_c2")), None)
    wanted = [*names, *keep, *([snr] if snr else [])]
    for chunk in reader.chunks(list(dict.fromkeys(wanted)), size):
        kept = {name: np.array(chunk[name]) for name in keep}
        yield _Chunk(
            {
                name: np.array(chunk[name], dtype=np.float64 if chunk[name].ndim == 1 else np.float32)
                for name in names
            },
            np.asarray(chunk[snr], dtype=np.float64) if snr else None,
            kept,
        )


def _in_memory(found: Any, name: str, keep: Sequence[str], size: int) -> Iterator[_Chunk]:
    snr = next((values for n, values in found.labels.items() if n.lower() in ("snr", "sn")), None)
    for unknown in set(keep) - set(found.labels):
        raise DataError(
            f"--keep: no column {unknown!r} in the source; it has {', '.join(found.labels) or 'none'}"
        )
    for start in range(0, len(found), size):
        part = slice(start, start + size)
        kept = {"name": np.array(found.names[part])} if found.names else {}
        kept |= {n: found.labels[n][part] for n in keep}
        flux = np.array(found.flux[part], dtype=np.float32)
        yield _Chunk({name: flux}, None if snr is None else snr[part], kept)


def _summarised(
    density: Density, chunk: _Chunk, first: int, draws: int, seed: int, joint: bool, ranges: Array | None
) -> dict[str, Array]:
    """All columns of some stars but what is carried over."""
    context, flags, usable = _looked_at(density, chunk)
    names, n = density.schema.target_names, len(flags)
    table = {name: values[usable] for name, values in context.items()}
    columns: dict[str, Array] = {}
    if usable.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fluvial.ExtrapolationWarning)  # it is in the flags
            given = density.given(table)
            if joint:
                drawn, log_prob = given.sample_and_log_prob(draws, seed=seed + first)
            else:
                drawn, log_prob = given.sample(draws, seed=seed + first), None
        found = summarise(drawn)
        columns = _columns(found, names)
        if log_prob is not None:
            columns |= dict(zip(("log_p68", "log_p95"), density_threshold(log_prob).T, strict=True))
        distance, novelty, novel = _unlike(density, given, table)
        columns |= {"distance": distance, "novelty": novelty}
        here = np.flatnonzero(usable)
        flags[here[novel]] |= Flag.NOVEL
        if ranges is not None:
            near = (found.mean - found.std < ranges[0]) | (found.mean + found.std > ranges[1])
            flags[here[near.any(axis=1)]] |= Flag.EDGE
    else:
        zeros = np.zeros((1, 50, len(names)))
        columns = {name: values[:0] for name, values in _columns(summarise(zeros), names).items()}
        extra = ("log_p68", "log_p95", "distance", "novelty") if joint else ("distance", "novelty")
        columns |= {name: np.empty(0) for name in extra}
    out = {}
    for name, values in columns.items():
        out[name] = np.full(n, np.nan)
        out[name][usable] = values
    return out | {"flags": flags}


def _columns(found: Summary, names: Sequence[str]) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for j, name in enumerate(names):
        out[f"{name}_mean"], out[f"{name}_std"] = found.mean[:, j], found.std[:, j]
        for i, q in enumerate(QUANTILES):
            out[f"{name}_q{round(100 * q)}"] = found.quantiles[:, i, j]
        for i, level in enumerate(LEVELS):
            out[f"{name}_lo{round(100 * level)}"] = found.highest[:, i, 0, j]
            out[f"{name}_hi{round(100 * level)}"] = found.highest[:, i, 1, j]
    for (i, a), (j, b) in itertools.combinations(enumerate(names), 2):
        out[f"cov_{a}_{b}"] = found.covariance[:, i, j]
    return out


def _looked_at(density: Density, chunk: _Chunk) -> tuple[dict[str, Array], Array, Array]:
    """Context columns that the density takes, flags so far, and which stars can be summarised at all."""
    context = dict(chunk.context)
    n = len(next(iter(context.values())))
    flags, usable = np.zeros(n, dtype=np.int32), np.ones(n, dtype=bool)
    for number, column in enumerate(density.schema.arrays):
        values = context[column.name]
        bad = ~np.isfinite(values)
        share = bad.mean(axis=1)
        flags[share > 0] |= Flag.MISSING_PIXELS
        usable &= share < (1.0 if column.missing == "mask" else PATCHED)
        if column.missing != "mask":
            for row in np.flatnonzero((share > 0) & (share < PATCHED)):
                good = np.flatnonzero(~bad[row])
                values[row, bad[row]] = np.interp(np.flatnonzero(bad[row]), good, values[row, good])
        else:
            values[bad] = np.nan
        if number == 0:
            with np.errstate(invalid="ignore"):
                flags[(values < 0).mean(axis=1) > NEGATIVE] |= Flag.NEGATIVE_FLUX
            filled = np.where(bad, -np.inf, values).max(axis=1), np.where(bad, np.inf, values).min(axis=1)
            usable &= filled[0] > filled[1]
    for column in density.schema.scalars:
        usable &= column.contains(context[column.name])
    if chunk.snr is not None:
        with np.errstate(invalid="ignore"):
            flags[~(np.isfinite(chunk.snr) & (chunk.snr > 0))] |= Flag.NO_SIGNAL
    flags[~usable] |= Flag.NO_SUMMARY
    return context, flags, usable


def _unlike(density: Density, given: Any, table: dict[str, Array]) -> tuple[Array, Array, Array]:
    """Distance of pixels from their mean, novelty if the run has a score, and which stars are novel."""
    import torch

    flow: Any = density.flow
    arrays = [torch.from_numpy(table[column.name]) for column in density.schema.arrays]
    with torch.no_grad():
        distances = torch.stack(flow.distances(arrays), -1).numpy().astype(np.float64)
    ends = np.array([density.array_range.get(c.name, (0.0, np.inf)) for c in density.schema.arrays])
    score = getattr(density, "novelty", None)
    if score is None:
        novel = (distances > ends[:, 1]).any(axis=1)
        return distances[:, 0], np.full(len(distances), np.nan), np.asarray(novel)
    found = given.novelty()
    return distances[:, 0], np.asarray(found.p, dtype=np.float64), np.asarray(found.flag)


def _target_ranges(density: Density) -> tuple[Array | None, tuple[str, ...]]:
    """The smallest and largest training labels ``[2, D]``, from the source in the run's record."""
    from fluvial.record import RunFolder

    try:
        if density.folder is None:
            raise DataError("the density is not in a run folder")
        labels = open_table(RunFolder.open(density.folder).record()["data"]["source"]).read(
            density.schema.target_names
        )
    except (FluvialError, OSError, KeyError) as error:
        return None, (
            f"no star is flagged for the edge of the training labels, which could not be read: {error}",
        )
    stacked = np.stack([labels[name] for name in density.schema.target_names], axis=-1)
    return np.stack([np.nanmin(stacked, axis=0), np.nanmax(stacked, axis=0)]), ()


class _Writer:
    """A Parquet file, a row group at a time; or a FITS table, written at the end. Whole or not at all."""

    def __init__(self, path: Path, density: Density, draws: int) -> None:
        self.path, self.draws = path, draws
        self.units = {c.name: c.unit for c in density.schema.targets}
        self.model = str(density.folder or "")
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.writer: Any = None
        self.parts: list[dict[str, Array]] = []

    def __enter__(self) -> _Writer:
        return self

    def add(self, columns: dict[str, Array]) -> None:
        if self.path.suffix == ".fits":
            self.parts.append(columns)
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(columns)
        if self.writer is None:
            fields = [f.with_metadata({"unit": self._unit(f.name)}) for f in table.schema]
            schema = pa.schema(fields, metadata=self._about())
            self.writer = pq.ParquetWriter(self.temporary, schema, compression="zstd")
        self.writer.write_table(table.cast(self.writer.schema))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if self.writer is not None:
                self.writer.close()
            if kind is None:
                if self.parts:
                    self._write_fits()
                os.replace(self.temporary, self.path)
        except OSError as problem:
            raise DataError(f"could not write {self.path}: {problem}") from problem
        finally:
            self.temporary.unlink(missing_ok=True)

    def _write_fits(self) -> None:
        joined = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        fits: Any = optional_module("astropy.io.fits", "fits")
        unit = fits.table_to_hdu(optional_module("astropy.table", "fits").Table(joined))
        for number, name in enumerate(joined, 1):
            unit.header[f"TUNIT{number}"] = self._unit(name)
        unit.header["EXTNAME"] = "STARS"
        for key, value in self._about().items():
            unit.header.add_history(f"{key}: {value}")
        unit.writeto(self.temporary)

    def _unit(self, name: str) -> str:
        target = next(
            (t for t in sorted(self.units, key=len, reverse=True) if name.startswith(f"{t}_")), None
        )
        return self.units.get(target or "", "")

    def _about(self) -> dict[str, str]:
        flags = ", ".join(f"{flag.value} {str(flag.name).lower()}" for flag in Flag)
        return {
            "made by": f"fluvial {fluvial.__version__}",
            "run": self.model,
            "draws": str(self.draws),
            "flags": flags,
        }
