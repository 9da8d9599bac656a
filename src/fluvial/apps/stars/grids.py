"""Spectra from one wavelength grid to another, and to a continuum of one. Pixels that are NaN count as masked."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike

from fluvial.errors import DataError

Array = np.ndarray

COVERED = 0.5  # of a new pixel that good old pixels must cover for it to be good
LIGHT = 299_792.458  # km/s


def resample(
    wavelength: ArrayLike,
    flux: ArrayLike,
    *,
    to: ArrayLike,
    error: ArrayLike | None = None,
    method: str = "conserve",
) -> tuple[Array, Array | None]:
    r"""Bring spectra onto another wavelength grid.

    ``"conserve"`` takes each pixel as a constant flux density between the midpoints of the grid and gives new pixels
    its mean over them, so that :math:`\sum f \Delta\lambda` is kept exactly, whatever the two grids; ``"linear"``
    interpolates between centres, which does not broaden lines where the new pixels are the narrower.

    Args:
        wavelength: old grid [Å or any unit], ``[L]``, increasing.
        flux: flux densities ``[L]`` or ``[n, L]``; NaN is masked.
        to: new grid in the same unit, ``[M]``, increasing.
        error: one standard deviation of each pixel, of the shape of ``flux``.
        method: ``"conserve"`` or ``"linear"``.

    Returns:
        Flux ``[M]`` or ``[n, M]`` and its errors (``None`` if none were given). New pixels less than half covered by
        good old ones are NaN. Errors treat old pixels as independent; the correlation of new ones is not told.

    Raises:
        DataError: if shapes disagree, a grid does not increase, the method is unknown, or the grids do not overlap.

    >>> old, new = np.linspace(5000, 5100, 1001), np.linspace(5010, 5090, 201)
    >>> flux, _ = resample(old, 1 - 0.5 * np.exp(-0.5 * ((old - 5050) / 0.4) ** 2), to=new)
    >>> width = float((1 - flux).sum() * 0.4)  # equivalent width: 0.5 × 0.4 × √2π = 0.501
    >>> round(width, 3)
    0.501
    """
    old, new = grid_of(wavelength, "wavelength"), grid_of(to, "to")
    values = np.asarray(flux, dtype=np.float64)
    if values.ndim not in (1, 2) or values.shape[-1] != len(old):
        raise DataError(
            f"resample: expected flux [{len(old)}] or [n, {len(old)}], as wavelength has; got {values.shape}."
        )
    errors = None if error is None else np.asarray(error, dtype=np.float64)
    if errors is not None and errors.shape != values.shape:
        raise DataError(
            f"resample: expected errors of the shape of flux, {values.shape}; got {errors.shape}."
        )
    if old[-1] < new[0] or old[0] > new[-1]:
        raise DataError(
            f"resample: spectra from {old[0]:g} to {old[-1]:g} do not reach the grid from {new[0]:g} to {new[-1]:g}. "
            "Are both in the same unit (Ångström, not nm), and both in air or both in vacuum?"
        )
    if method not in ("conserve", "linear"):
        raise DataError(f"resample: expected the method 'conserve' or 'linear'; got {method!r}.")
    shape = (*values.shape[:-1], len(new))
    rows = values.reshape(-1, len(old))
    spread = None if errors is None else errors.reshape(-1, len(old))
    out, out_error = (_conserve if method == "conserve" else _linear)(old, rows, new, spread)
    return out.reshape(shape), None if out_error is None else out_error.reshape(shape)


def _conserve(old: Array, rows: Array, new: Array, error: Array | None) -> tuple[Array, Array | None]:
    edges, new_edges = _edges(old), _edges(new)
    # A gap between arms is no pixel: where the step jumps, nothing is known in between.
    step = np.diff(edges)
    good = np.isfinite(rows)
    if error is not None:
        good &= np.isfinite(error)
    width = np.minimum(step, 3 * np.median(step) if len(step) > 1 else step)
    known = np.where(good, width / step, 0.0)

    def integral(density: Array) -> Array:
        summed = np.concatenate([np.zeros((len(density), 1)), np.cumsum(density * step, axis=1)], axis=1)
        place = np.clip(np.searchsorted(edges, new_edges, side="right") - 1, 0, len(old) - 1)
        share = np.clip((new_edges - edges[place]) / step[place], 0.0, 1.0)
        at = summed[:, place] * (1 - share) + summed[:, place + 1] * share
        return np.diff(at, axis=1)

    covered = integral(known)
    new_step = np.diff(new_edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        out = integral(np.where(good, rows, 0.0) * known) / covered
        bad = covered < COVERED * new_step
        out[bad] = np.nan
        if error is None:
            return out, None
        # Of old pixels that a new one holds whole, Σ w²σ²; of those wider than it, σ² itself.
        fine = np.minimum(1.0, np.interp(new, old, step) / new_step)
        variance = integral(np.where(good, error, 0.0) ** 2 * known) / covered * fine
    variance[bad] = np.nan
    return out, np.sqrt(variance)


def _linear(old: Array, rows: Array, new: Array, error: Array | None) -> tuple[Array, Array | None]:
    right = np.clip(np.searchsorted(old, new), 1, len(old) - 1)
    share = (new - old[right - 1]) / (old[right] - old[right - 1])
    out = rows[:, right - 1] * (1 - share) + rows[:, right] * share
    outside = (share < -0.5) | (share > 1.5) | (old[right] - old[right - 1] > 10 * np.median(np.diff(old)))
    out[:, outside] = np.nan
    if error is None:
        return out, None
    variance = error[:, right - 1] ** 2 * (1 - share) ** 2 + error[:, right] ** 2 * share**2
    return out, np.where(np.isfinite(out), np.sqrt(variance), np.nan)


def _edges(grid: Array) -> Array:
    middle = (grid[1:] + grid[:-1]) / 2
    return np.concatenate([[grid[0] - (middle[0] - grid[0])], middle, [grid[-1] + (grid[-1] - middle[-1])]])


def grid_of(values: ArrayLike, what: str) -> Array:
    """Return a wavelength grid as float64, or say why it is none."""
    grid = np.asarray(values, dtype=np.float64)
    if grid.ndim != 1 or len(grid) < 3:
        raise DataError(f"{what}: expected wavelengths [L], at least 3; got shape {grid.shape}.")
    if not np.isfinite(grid).all() or (np.diff(grid) <= 0).any():
        raise DataError(
            f"{what}: expected wavelengths that increase and are finite; got {grid[0]:g} … {grid[-1]:g}. "
            "Sort them, spectra alike."
        )
    return grid


def normalise(
    wavelength: ArrayLike, flux: ArrayLike, *, window: float = 60.0, quantile: float = 0.90, gap: float = 20.0
) -> tuple[Array, Array]:
    """Divide spectra by a pseudo-continuum: a high quantile of the flux in windows, joined smoothly.

    In each window of the given width the quantile of good pixels is taken, smoothed over three windows, and
    interpolated linearly; each stretch between gaps of the grid (arms) is treated by itself. For spectra with noise a
    quantile above 0.9 rides on the noise; the bias is the same for like spectra, and training and use must choose the
    same.

    Args:
        wavelength: ``[L]`` [Å].
        flux: ``[L]`` or ``[n, L]``, any scale; NaN is masked.
        window: width [Å] of a window: wider than the lines (Hα: some 50 Å), narrower than the shape of the continuum.
        quantile: between 0 and 1.
        gap: a step of the grid [Å] that ends a stretch.

    Returns:
        Normalised flux, and the continuum, of the shape of ``flux``; NaN where flux is masked or a continuum is not
        positive.

    Raises:
        DataError: if shapes disagree or ``quantile`` is not between 0 and 1.

    >>> w = np.linspace(5000, 5500, 2000)
    >>> flat, _ = normalise(w, 3e-14 * (w / 5200) ** 2)
    >>> bool(np.abs(flat - 1).max() < 0.02)
    True
    """
    grid = grid_of(wavelength, "wavelength")
    values = np.asarray(flux, dtype=np.float64)
    if values.shape[-1:] != grid.shape or values.ndim > 2:
        raise DataError(f"normalise: expected flux [{len(grid)}] or [n, {len(grid)}]; got {values.shape}.")
    if not 0 < quantile < 1 or not window > 0:
        raise DataError(
            f"normalise: expected a quantile between 0 and 1 and a window > 0; got {quantile}, {window}."
        )
    rows = values.reshape(-1, len(grid))
    continuum = np.empty_like(rows)
    ends = [0, *(np.flatnonzero(np.diff(grid) > gap) + 1).tolist(), len(grid)]
    for start, stop in itertools.pairwise(ends):
        part = slice(start, stop)
        rough = _stretch(grid[part], rows[:, part], window, quantile)
        # A slope within a window lifts its quantile; what the first pass has flattened has none.
        with np.errstate(divide="ignore", invalid="ignore"):
            flat = np.where(rough > 0, rows[:, part] / rough, np.nan)
        continuum[:, part] = rough * _stretch(grid[part], flat, window, quantile)
    continuum[~(continuum > 0)] = np.nan
    return (rows / continuum).reshape(values.shape), continuum.reshape(values.shape)


def _stretch(grid: Array, rows: Array, window: float, quantile: float) -> Array:
    number = max(3, round((grid[-1] - grid[0]) / window))
    bounds = np.linspace(grid[0], grid[-1], number + 1)
    place = np.clip(np.searchsorted(bounds, grid, side="right") - 1, 0, number - 1)
    levels = np.full((len(rows), number), np.nan)
    for k in range(number):
        part = rows[:, place == k]
        known = np.isfinite(part).any(axis=1)
        if part.shape[1] and known.any():
            levels[known, k] = np.nanquantile(part[known], quantile, axis=1)
    centres = (bounds[1:] + bounds[:-1]) / 2
    out = np.empty_like(rows)
    for i, level in enumerate(levels):
        known = np.isfinite(level)
        if not known.any():
            out[i] = np.nan
            continue
        knots = np.interp(centres, centres[known], level[known])
        padded = np.concatenate([[2 * knots[0] - knots[1]], knots, [2 * knots[-1] - knots[-2]]])
        smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
        # beyond the first and the last centre the line goes on
        x = np.concatenate([[bounds[0]], centres, [bounds[-1]]])
        y = np.concatenate(
            [[1.5 * smooth[0] - 0.5 * smooth[1]], smooth, [1.5 * smooth[-1] - 0.5 * smooth[-2]]]
        )
        out[i] = np.interp(grid, x, y)
    return out


def to_air(vacuum: ArrayLike) -> Array:
    """Return wavelengths in air [Å] for those in vacuum (Ciddor 1996, in the form of VALD; 2000 Å and above).

    >>> round(float(to_air(6564.61)), 2)
    6562.8
    """
    w = np.asarray(vacuum, dtype=np.float64)
    s = (1e4 / w) ** 2
    return w / (1 + 0.0000834254 + 0.02406147 / (130 - s) + 0.00015998 / (38.9 - s))


def at_rest(wavelength: ArrayLike, velocity: float) -> Array:
    """Return wavelengths in the rest frame of a star that moves away at a velocity [km/s]."""
    return np.asarray(wavelength, dtype=np.float64) / (1 + velocity / LIGHT)
