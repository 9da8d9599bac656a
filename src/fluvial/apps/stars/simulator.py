"""Simulate a survey like GALAH: spectra as a spectrograph gives them, with the labels they came from.

Stars come from :mod:`~fluvial.apps.stars.kiel`, their spectra from :mod:`~fluvial.apps.stars.spectrum`; then the
spectrograph takes its toll: noise by a signal-to-noise ratio with GALAH's distribution (median 50 per pixel in the
green arm, tail to 200), less of it in the blue arm and where lines are deep, a continuum that was not normalised
quite right, cosmic rays, dead pixels. The files are those that GALAH published for machine learning: ``spectra.npy``
``[n, 16384]`` float32 and ``labels.npy`` ``[n, 8]`` float64 with the columns mass [solar masses], age [Gyr], l_bol
[solar luminosities], dist [kpc], t_eff [K], log_g, fe_h, SNR.

As in GALAH, t_eff, log_g and fe_h are what a pipeline measured, with errors
(:func:`fluvial.apps.stars.kiel.measured`); what is true of the stars is in ``_grid/truth.npy``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import fluvial
from fluvial.apps.stars import kiel
from fluvial.apps.stars.spectrum import ARM_PIXELS, ARMS, RESOLVING_POWER, Stars, spectra, wavelengths
from fluvial.errors import DataError
from fluvial.words import whole_number

Array = np.ndarray

LABELS = ("mass", "age", "l_bol", "dist", "t_eff", "log_g", "fe_h", "SNR")
"""The columns of ``labels.npy``, in order."""

_BLOCK = 128  # stars with random numbers of their own: a longer survey begins like a shorter one
_ARM_SNR = np.array([0.65, 1.0, 1.25, 1.1])  # signal to noise of the arms over that of the green one
_DOMAIN = 0x57A25  # sets the random numbers apart from those of other simulators with the same seed


@dataclass(frozen=True)
class Survey:
    """Simulated stars.

    Attributes:
        flux: continuum-normalised, with noise, float32 ``[n, 16384]``.
        error: one standard deviation of the noise of each pixel, float32 ``[n, 16384]``.
        labels: float64 ``[n, 8]``, columns :data:`LABELS`.
        truth: float64 ``[n, 3]``: the true t_eff, log_g and fe_h.
    """

    flux: Array
    error: Array
    labels: Array
    truth: Array


def simulate(rows: int, seed: int = 0, *, noise: bool = True) -> Survey:
    """Simulate a survey in memory.

    Args:
        rows: stars, at least 1.
        seed: not negative; the same seed gives the same stars, of which a larger survey has more.
        noise: with ``False`` the spectra are those before noise, cosmic rays and dead pixels, of the same stars.

    Raises:
        DataError: if ``rows`` is less than 1, ``seed`` negative, or either no whole number.

    >>> survey = simulate(3, seed=1)
    >>> survey.flux.shape, survey.labels.shape, bool(np.isfinite(survey.flux).all())
    ((3, 16384), (3, 8), True)
    """
    blocks = list(_blocks(whole_number("rows", rows, 1), whole_number("seed", seed, 0), noise))
    return Survey(
        *(np.concatenate([getattr(b, name) for b in blocks]) for name in ("flux", "error", "labels", "truth"))
    )


def write(
    folder: str | os.PathLike[str],
    rows: int,
    seed: int = 0,
    *,
    errors: bool = False,
    noise: bool = True,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Simulate a survey into a folder, all files or none, in memory that does not grow with ``rows``.

    ``spectra.npy`` and ``labels.npy``; with ``errors`` also ``errors.npy``, one standard deviation a pixel; and
    ``_grid/wavelength.npy`` with ``_grid/about.json``, which readers of tables pass over because of the underscore.

    Args:
        folder: made if it is not there; files of these names in it are replaced.
        rows: see :func:`simulate`.
        seed: see :func:`simulate`.
        errors: whether to write the errors of pixels, as large as the spectra.
        noise: see :func:`simulate`.
        progress: called with the number of stars done.

    Raises:
        DataError: as :func:`simulate`, or if the folder cannot be written; what was there before is then left as it was.
    """
    folder = Path(folder)
    rows, seed = whole_number("rows", rows, 1), whole_number("seed", seed, 0)
    shapes: dict[str, tuple[tuple[int, ...], type]] = {"spectra": ((rows, len(wavelengths())), np.float32)}
    if errors:
        shapes["errors"] = shapes["spectra"]
    shapes["labels"] = ((rows, len(LABELS)), np.float64)
    with _all_or_none(folder) as temporary:
        maps = {
            name: np.lib.format.open_memmap(temporary / f"{name}.npy", mode="w+", dtype=kind, shape=shape)
            for name, (shape, kind) in shapes.items()
        }
        truth = np.empty((rows, 3))
        done = 0
        for block in _blocks(rows, seed, noise):
            here = slice(done, done + len(block.labels))
            maps["spectra"][here], maps["labels"][here] = block.flux, block.labels
            truth[here] = block.truth
            if errors:
                maps["errors"][here] = block.error
            done = here.stop
            if progress is not None:
                progress(done)
        for array in maps.values():
            array.flush()
        maps.clear()
        (temporary / "_grid").mkdir()
        np.save(temporary / "_grid" / "wavelength.npy", wavelengths())
        np.save(temporary / "_grid" / "truth.npy", truth)
        about = _about(rows, seed, noise)
        (temporary / "_grid" / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _about(rows: int, seed: int, noise: bool) -> dict[str, Any]:
    return {
        "simulator": "fluvial.apps.stars",
        "version": fluvial.__version__,
        "rows": rows,
        "seed": seed,
        "noise": noise,
        "labels": dict(
            zip(LABELS, ("Msun", "Gyr", "Lsun", "kpc", "K", "log cm/s2", "dex", "1"), strict=True)
        ),
        "wavelength": "air, Angstrom",
        "arms": dict(ARMS),
        "note": "a stand-in: schematic stars and one-layer atmospheres, no observation",
    }


@contextmanager
def _all_or_none(folder: Path) -> Iterator[Path]:
    """A folder to write into; its files take their places when the block ends well, and are removed if not."""
    temporary = folder / f"._simulating-{os.getpid()}"
    made = not folder.exists()
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for source in sorted(temporary.iterdir()):
            target = folder / source.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(source, target)
    except OSError as error:
        raise DataError(f"could not write into {str(folder)!r}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _blocks(rows: int, seed: int, noise: bool) -> Iterator[Survey]:
    """Yield the survey in blocks, made by as many threads as there are cores: numpy lets go of the interpreter."""
    counts = [min(_BLOCK, rows - start) for start in range(0, rows, _BLOCK)]
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, 8, len(counts))
    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for number, count in enumerate(counts):
            waiting.append(pool.submit(_block, seed, number, count, noise))
            if len(waiting) > workers:  # no further ahead than the reader follows: memory stays flat
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _block(seed: int, number: int, count: int, noise: bool) -> Survey:
    rng = np.random.Generator(np.random.SFC64([_DOMAIN, seed, number]))
    labels = kiel.draw(rng, _BLOCK)
    mixture = kiel.abundances(rng, labels)
    snr = np.clip(rng.lognormal(np.log(50.0), 0.45, _BLOCK), 8.0, 220.0)
    stars = Stars(
        labels.t_eff,
        labels.log_g,
        labels.fe_h,
        mixture,
        _rotation(rng, labels),
        rng.normal(0.0, 0.25, _BLOCK) * np.where(rng.random(_BLOCK) < 0.05, 4.0, 1.0),
        RESOLVING_POWER * rng.normal(1.0, 0.05, _BLOCK).clip(0.8, 1.2),
    )
    magnitude = rng.normal(13.1, 0.7, _BLOCK).clip(9.0, 14.5)
    distance = 10 ** ((magnitude - (4.75 - 2.5 * np.log10(labels.l_bol)) + 5) / 5) / 1000
    true = np.stack([labels.t_eff, labels.log_g, labels.fe_h], axis=1)
    measured = kiel.measured(rng, labels, snr)
    table = np.stack(
        [labels.mass, labels.age, labels.l_bol, distance, *measured, snr],
        axis=1,
    )
    # Stars of a block are independent of one another, but for the random numbers: all are drawn, then those needed made
    stars = _first(stars, count)
    flux = spectra(stars)
    error = _errors(flux, snr[:count], labels.t_eff[:count])
    _observe(flux, error, [_DOMAIN, seed, number], noise)
    return Survey(flux, error, table[:count], true[:count])


def _first(stars: Stars, count: int) -> Stars:
    cut = {f.name: getattr(stars, f.name)[:count] for f in fields(stars) if f.name != "abundances"}
    return Stars(**cut, abundances={element: values[:count] for element, values in stars.abundances.items()})


def _rotation(rng: np.random.Generator, labels: kiel.Labels) -> Array:
    """v sin i [km/s]: slow but for hot dwarfs, above the Kraft break at 6,250 K."""
    hot = 1 / (1 + np.exp(-(labels.t_eff - 6250.0) / 150.0)) * (labels.log_g > 3.6)
    fast = rng.rayleigh(9.0, len(hot)) * hot
    return np.clip(rng.normal(3.0, 1.0, len(hot)) + fast, 0.5, 40.0)


def _errors(flux: Array, snr: Array, t_eff: Array) -> Array:
    """Photon noise: worse in deep lines, at the ends of the arms, and in the blue of cool stars."""
    arm = np.repeat(_ARM_SNR, ARM_PIXELS)
    place = np.tile(np.linspace(-1, 1, ARM_PIXELS), len(ARMS))
    response = np.sqrt(1 - 0.45 * place**2)
    colour = np.ones((len(snr), len(ARMS)))
    colour[:, 0] = np.clip(t_eff / 5500.0, 0.7, 1.15) ** 1.5
    scale = (snr[:, None, None] * colour[:, :, None]).astype(np.float32)
    relative = (arm * response).astype(np.float32).reshape(1, len(ARMS), ARM_PIXELS) * scale
    error = np.sqrt(np.maximum(flux, 0.03))
    error.reshape(relative.shape)[...] /= relative
    return error


def _observe(flux: Array, error: Array, seeds: list[int], noise: bool) -> None:
    """Add to spectra, in place, what the spectrograph and the reduction do; each star has random numbers of its own."""
    x = np.linspace(-1, 1, ARM_PIXELS, dtype=np.float32)
    wiggle = np.stack([np.ones_like(x), x, 1.5 * x**2 - 0.5, np.sin(6 * x), np.cos(9 * x)])
    draw = np.empty(flux.shape[1], dtype=np.float32)
    for star in range(len(flux)):
        rng = np.random.Generator(np.random.SFC64([*seeds, star, 1]))
        arms = flux[star].reshape(len(ARMS), ARM_PIXELS)
        size = 0.00125 + 0.05 * error[star].reshape(arms.shape).mean(axis=1, keepdims=True)
        each = rng.standard_normal((len(ARMS), len(wiggle)), dtype=np.float32) * size
        arms *= 1 + each.astype(np.float32) @ wiggle
        if not noise:
            continue
        rng.standard_normal(out=draw, dtype=np.float32)
        draw *= error[star]
        flux[star] += draw
        hits = rng.integers(0, len(draw), rng.poisson(3.0))  # what the removal of cosmic rays left
        flux[star, hits] += rng.exponential(0.12, len(hits)).astype(np.float32)
        for pixel in rng.integers(0, len(draw), rng.poisson(1.0)):  # bad columns, patched by the reduction
            flux[star, pixel : pixel + 3] = 1.0
            error[star, pixel : pixel + 3] *= 5.0
    if noise:
        np.clip(flux, -0.2, 1.6, out=flux)
