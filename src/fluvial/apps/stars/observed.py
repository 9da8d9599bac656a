"""Observed spectra from files: GALAH's, MILES, FITS tables and images; with their errors and masks where they have them.

A pixel that a file masks, whose error is not positive, or that is not finite, becomes NaN; a density fitted with
``missing = "mask"`` for its spectra takes it as unknown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.apps.stars.grids import at_rest, grid_of, normalise, resample, to_air
from fluvial.errors import DataError, nearest
from fluvial.extras import optional_module

Array = np.ndarray

#: Names under which files keep these things, in lower case.
_NAMES = {
    "wavelength": ("wavelength", "wave", "lambda", "wl", "loglam", "log_wavelength"),
    "flux": ("flux", "spectra", "spectrum", "spec", "norm_flux", "flux_norm"),
    "error": (
        "error",
        "errors",
        "err",
        "sigma",
        "uncertainty",
        "flux_err",
        "flux_error",
        "e_flux",
        "sob_norm_err",
    ),
    "ivar": ("ivar", "inverse_variance", "invvar"),
    "mask": ("mask", "and_mask", "flag", "flags", "bad", "quality"),
}


@dataclass(frozen=True)
class Spectra:
    """Spectra of one grid.

    Attributes:
        wavelength: ``[L]`` [Å]; ``None`` where the file does not say.
        flux: ``[n, L]``; NaN where masked.
        error: one standard deviation a pixel, ``[n, L]``, or ``None``.
        labels: further columns of the file, ``[n]`` each, such as ``teff``.
        names: of the stars, where known.
    """

    wavelength: Array | None
    flux: Array
    error: Array | None = None
    labels: Mapping[str, Array] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.flux)


def load_spectra(path: str | os.PathLike[str]) -> Spectra:
    """Read spectra: a folder of npy files, an npz file, or a FITS file, by what it holds.

    ===========================  ==================================================================================
    a folder                     ``spectra.npy`` with ``labels.npy`` as GALAH published them; ``errors.npy`` and
                                 ``_grid/wavelength.npy`` (or ``wavelength.npy``) if they are there
    npz                          ``flux [n, L]``, ``wavelength [L]``, and columns ``[n]``: the layout of MILES here
    FITS, a table                one spectrum down the rows (wavelength or loglam, flux, error or ivar, mask), or one
    a row FITS, an image               one spectrum or one a row; the grid from CRVAL1, CDELT1 (or CD1_1), CRPIX1,
    DC-FLAG; errors
                                 and mask from image extensions of such names
    ===========================  ==================================================================================

    Raises:
        DataError: if there is nothing of the kind, or arrays disagree.
        MissingExtraError: of FITS, if astropy is not installed.
    """
    path = Path(path)
    if not path.exists():
        folder = path.parent
        near = nearest(path.name, sorted(p.name for p in folder.iterdir())) if folder.is_dir() else ""
        raise DataError(f"{path} does not exist{near}")
    if path.is_dir():
        return _folder(path)
    name = path.name.lower()
    if name.endswith(".npz"):
        with np.load(path, allow_pickle=False) as file:
            return _named({key: file[key] for key in file.files}, str(path))
    if name.endswith((".fits", ".fit", ".fits.gz")):
        return _fits(path)
    raise DataError(f"{path}: expected a folder of npy files, an npz file or a FITS file")


def load_miles(path: str | os.PathLike[str], *, normalised: bool = True) -> Spectra:
    """Read spectra of the MILES library kept as npz: wavelength, flux, teff, logg, feh, name.

    Labels come under the names of GALAH, ``t_eff``, ``log_g`` and ``fe_h``; ``normalised`` divides by a pseudo-continuum
    (:func:`~fluvial.apps.stars.grids.normalise`, windows of 150 Å, which lines at 2.5 Å resolution need).

    Cite Sánchez-Blázquez et al. (2006, MNRAS 371, 703) and, for the parameters, Cenarro et al. (2007, MNRAS 374, 664).
    """
    found = load_spectra(path)
    names = {"teff": "t_eff", "logg": "log_g", "feh": "fe_h"}
    missing = [name for name in names if name not in found.labels]
    if missing or found.wavelength is None:
        raise DataError(
            f"{path}: expected arrays wavelength, flux, teff, logg, feh; missing: {', '.join(missing)}"
        )
    labels = {names.get(name, name): values for name, values in found.labels.items()}
    flux = normalise(found.wavelength, found.flux, window=150.0)[0] if normalised else found.flux
    return Spectra(found.wavelength, flux.astype(np.float32), None, labels, found.names)


def prepare(
    sources: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    grid: Array | None = None,
    normalised: bool = False,
    window: float = 60.0,
    velocity: float = 0.0,
    vacuum: bool = False,
    fill: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Bring spectra of many files onto one grid, and write them as npy files that a study or a catalogue reads.

    Args:
        sources: files or folders that :func:`load_spectra` reads.
        folder: to write ``spectra.npy``, perhaps ``errors.npy``, a file for each label that all have,
        ``_grid/wavelength.npy``. grid: wavelengths ``[M]``; left out, those of the first source. normalised: divide
        by a pseudo-continuum, in windows of ``window`` Å. velocity: radial velocity [km/s] to take out of all.
        vacuum: the wavelengths of the sources are in vacuum; the grid is in air. fill: what stands in pixels without
        data; left out, NaN. progress: called with the number of spectra done.

    Returns:
        ``rows``, ``pixels``, ``masked`` (pixels without data) and ``columns`` that were written.

    Raises:
        DataError: if a source cannot be read, or has no wavelengths where they are needed.
    """
    out = Path(folder)
    flux, error, labels, names = [], [], [], []
    for source in sources:
        found = load_spectra(source)
        grid, one = _onto(found, grid, str(source), velocity, vacuum, normalised, window)
        flux.append(one.flux.astype(np.float32))
        error.append(None if one.error is None else one.error.astype(np.float32))
        labels.append(found.labels)
        names += list(found.names) or [f"{Path(source).stem}:{i}" for i in range(len(found))]
        if progress is not None:
            progress(sum(map(len, flux)))
    spectra = np.concatenate(flux)
    masked = ~np.isfinite(spectra)
    if fill is not None:
        spectra[masked] = fill
    columns: dict[str, Array] = {"spectra": spectra, "name": np.array(names)}
    if all(e is not None for e in error):
        columns["errors"] = np.concatenate([e for e in error if e is not None])
    shared = [name for name in labels[0] if all(name in one for one in labels)]
    columns |= {name: np.concatenate([one[name] for one in labels]) for name in shared if name not in columns}
    (out / "_grid").mkdir(parents=True, exist_ok=True)
    for name, values in columns.items():
        temporary = out / f"._{name}.npy"
        np.save(temporary, values)
        os.replace(temporary, out / f"{name}.npy")
    if grid is not None:
        np.save(out / "_grid" / "wavelength.npy", grid)
    facts = {
        "rows": len(spectra),
        "pixels": spectra.shape[1],
        "masked": int(masked.sum()),
        "columns": list(columns),
    }
    about = facts | {"sources": [str(source) for source in sources]}
    (out / "_grid" / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return facts


def _onto(
    found: Spectra,
    grid: Array | None,
    where: str,
    velocity: float,
    vacuum: bool,
    normalised: bool,
    window: float,
) -> tuple[Array | None, Spectra]:
    """Spectra on the grid, or on their own where none is given; and the grid."""
    wavelength, flux, error = found.wavelength, found.flux, found.error
    if wavelength is None:
        if grid is not None and len(grid) == flux.shape[1]:
            wavelength = grid
        elif grid is not None or normalised or velocity or vacuum:
            raise DataError(f"{where}: the file does not say its wavelengths, which are needed here")
        else:
            return None, found
    if vacuum:
        wavelength = to_air(wavelength)
    if velocity:
        wavelength = at_rest(wavelength, velocity)
    if normalised:
        flux, continuum = normalise(wavelength, flux, window=window)
        error = None if error is None else error / continuum
    grid = wavelength if grid is None else grid_of(grid, "grid")
    if len(grid) != len(wavelength) or not np.allclose(
        grid, wavelength, rtol=0, atol=1e-3 * np.diff(grid).min()
    ):
        flux, error = resample(wavelength, flux, to=grid, error=error)
    return grid, Spectra(grid, flux, error, found.labels, found.names)


def _folder(path: Path) -> Spectra:
    from fluvial.data.read_numpy import GALAH_LABELS

    paths = [p for p in sorted(path.glob("*.npy")) if p.name[0] not in "._"]
    files = {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in paths}
    for place in (path / "_grid" / "wavelength.npy", path / "wavelength.npy"):
        if place.exists():
            files["wavelength"] = np.load(place)
            break
    labels = files.pop("labels", None)
    if labels is not None and labels.ndim == 2:
        names = (
            GALAH_LABELS
            if labels.shape[1] == len(GALAH_LABELS)
            else [f"label_{i}" for i in range(labels.shape[1])]
        )
        files |= {name: np.asarray(labels[:, i]) for i, name in enumerate(names)}
    return _named(files, str(path))


def _named(arrays: Mapping[str, Array], where: str) -> Spectra:
    """Spectra from arrays by their names."""
    lower = {name.lower(): name for name in arrays}

    def find(what: str) -> Array | None:
        name = next((lower[n] for n in _NAMES[what] if n in lower), None)
        return None if name is None else arrays[name]

    flux = find("flux")
    if flux is None:
        raise DataError(
            f"{where}: expected an array named flux or spectra; found {', '.join(arrays) or 'nothing'}"
        )
    flux = np.atleast_2d(flux)
    wavelength = _wavelength(
        find("wavelength"), "loglam" in lower or "log_wavelength" in lower, flux.shape[1], where
    )
    flux, error = _masked(flux, find("error"), find("ivar"), find("mask"), where)
    used = {lower[n] for group in _NAMES.values() for n in group if n in lower}
    rest = {
        name: np.asarray(a) for name, a in arrays.items() if name not in used and np.shape(a) == (len(flux),)
    }
    text = next((name for name, a in rest.items() if a.dtype.kind in "US"), None)
    names = tuple(map(str, rest.pop(text))) if text else ()
    labels = {name: a for name, a in rest.items() if a.dtype.kind in "iufb"}
    return Spectra(wavelength, flux, error, labels, names)


def _wavelength(values: Array | None, logarithmic: bool, length: int, where: str) -> Array | None:
    if values is None:
        return None
    grid = np.asarray(values, dtype=np.float64)
    if grid.ndim == 2 and (grid == grid[0]).all():
        grid = grid[0]
    if grid.shape != (length,):
        raise DataError(f"{where}: expected wavelengths [{length}], as the flux has; got {list(grid.shape)}")
    return 10**grid if logarithmic else grid


def _masked(
    flux: Array, error: Array | None, ivar: Array | None, mask: Array | None, where: str
) -> tuple[Array, Array | None]:
    """Flux with NaN where it is bad, and errors."""
    for what, values in (("errors", error), ("inverse variances", ivar), ("mask", mask)):
        if values is not None and np.atleast_2d(values).shape != flux.shape:
            found = list(np.shape(values))
            raise DataError(
                f"{where}: expected {what} of the shape of the flux, {list(flux.shape)}; got {found}"
            )
    bad = np.zeros(flux.shape, dtype=bool) if mask is None else np.atleast_2d(mask) != 0
    if error is None and ivar is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            error = 1 / np.sqrt(np.asarray(ivar, dtype=np.float64))
    if error is not None:
        error = np.atleast_2d(error)
        bad |= ~(np.isfinite(error) & (error > 0))
        error = np.where(bad, np.nan, error).astype(np.float32)
    if not bad.any():
        return flux, error
    return np.where(bad, np.nan, flux).astype(np.float32), error


def _fits(path: Path) -> Spectra:
    fits: Any = optional_module("astropy.io.fits", "fits")
    try:
        with fits.open(path, memmap=False) as file:
            tables = [unit for unit in file if unit.header.get("XTENSION") in ("BINTABLE", "TABLE")]
            for unit in tables:
                names = [str(name) for name in unit.columns.names]
                if any(n.lower() in _NAMES["flux"] for n in names):
                    return _fits_table(unit, names, str(path))
            return _fits_image(file, str(path))
    except OSError as error:
        raise DataError(
            f"{path} is not a FITS file that can be read ({error}); copy or write it again"
        ) from error


def _fits_table(unit: Any, names: list[str], where: str) -> Spectra:
    columns = {name: np.asarray(unit.data[name]) for name in names}
    columns = {
        n: a.astype(a.dtype.newbyteorder("=")) if a.dtype.kind in "iuf" else a for n, a in columns.items()
    }
    flux = next(columns[n] for n in names if n.lower() in _NAMES["flux"])
    if flux.ndim == 1:  # one spectrum down the rows
        grids, known = _NAMES["wavelength"], {n for group in _NAMES.values() for n in group}
        columns = {n: a if n.lower() in grids else a[None] for n, a in columns.items() if n.lower() in known}
    return _named(columns, where)


def _fits_image(file: Any, where: str) -> Spectra:
    images = [
        (i, unit)
        for i, unit in enumerate(file)
        if unit.header.get("NAXIS", 0) in (1, 2) and unit.data is not None
    ]
    if not images:
        raise DataError(
            f"{where}: expected a table with a column flux, or an image [L] or [n, L]; found neither"
        )
    named = {str(unit.name).lower(): np.asarray(unit.data, dtype=np.float64) for _, unit in images}
    header, first = images[0][1].header, np.asarray(images[0][1].data, dtype=np.float64)
    arrays = {
        name: values for name, values in named.items() if any(name in group for group in _NAMES.values())
    }
    arrays.setdefault("flux", first)
    if not any(n in arrays for n in _NAMES["wavelength"]) and "CRVAL1" in header:
        step = header.get("CDELT1", header.get("CD1_1"))
        if step is not None:
            grid = header["CRVAL1"] + (np.arange(first.shape[-1]) + 1 - header.get("CRPIX1", 1)) * step
            arrays["wavelength"] = 10**grid if header.get("DC-FLAG", 0) == 1 else grid
    return _named(arrays, where)
