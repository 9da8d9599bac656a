r"""Continuum-normalised spectra from labels: populations, curve of growth, broadening.

Each line of the list (:mod:`~fluvial.apps.stars.lines`) has, in each star, an equivalent width from the curve of
growth and a shape: a Voigt profile whose far wings are exactly those of the damped line and whose core is as broad as
the saturated line, the rotation and the spectrograph make it. Lines overlap by multiplication. Hα and Hβ have the
wings of linear Stark broadening, :math:`\propto n_e N_2 \Delta\lambda^{-5/2}`, over H⁻, which is why they tell the
temperature.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fluvial.apps.stars.atmosphere import (
    ATOMIC_MASS,
    ELEMENTS,
    K_ERG,
    K_EV,
    Layer,
    fraction,
    h_minus,
    layer,
    statistical_sum,
)
from fluvial.apps.stars.growth import grow
from fluvial.apps.stars.lines import LineList, line_list

Array = np.ndarray

LIGHT = 299_792.458  # km/s
ARMS: Mapping[str, tuple[float, float]] = {
    "blue": (4718.0, 4903.0),
    "green": (5649.0, 5873.0),
    "red": (6481.0, 6739.0),
    "infrared": (7590.0, 7890.0),
}
"""The arms of HERMES, first and last pixel [Å]."""
ARM_PIXELS = 4096
RESOLVING_POWER = 28_000.0
SURFACE = (
    0.72  # of Teff: where the cores of the strongest lines form (Holweger & Müller 1974: 4,170 K in the Sun)
)
_GRADIENT = 0.5
"""How much less the source function rises beneath weak lines than the depth of the strongest says, and what
continuous opacity is left out.

One number for all lines: it brings the equivalent widths of the Sun to the measured ones, to some 20 per cent.
"""
_DAMPING = 0.5  # of Unsöld's constant: damped wings form higher than the layer, where the pressure is lower
_SUN = 5777.0
_BALMER = {"Hα": (6562.797, 2.6e-29, 2), "Hβ": (4861.323, 1.3e-29, 0)}
"""Centre [Å], Stark constant [cm² Å^2.5 per electron/cm³], arm. They give the Sun 4.0 and 3.7 Å."""


@functools.cache
def wavelengths() -> Array:
    """Return the 16,384 wavelengths in air [Å]: 4,096 in each arm, equally spaced in it."""
    out = np.concatenate([np.linspace(low, high, ARM_PIXELS) for low, high in ARMS.values()])
    out.setflags(write=False)
    return out


@dataclass(frozen=True)
class Stars:
    """What a spectrum depends on; arrays ``[stars]``.

    Attributes:
        t_eff: effective temperature [K].
        log_g: log10 of the surface gravity [cm/s²].
        fe_h: [Fe/H] in dex.
        abundances: [X/Fe] in dex by element, such as ``{"Mg": …}``; 0 where left out.
        v_sin_i: projected rotation [km/s].
        velocity: what is left of the radial velocity [km/s].
        resolution: resolving power of the fibre.
    """

    t_eff: Array
    log_g: Array
    fe_h: Array
    abundances: Mapping[str, Array]
    v_sin_i: Array
    velocity: Array
    resolution: Array

    @classmethod
    def plain(cls, t_eff: Array | float, log_g: Array | float, fe_h: Array | float) -> Stars:
        """Return stars of solar mixture, rotating at 2 km/s, at rest."""
        t, g, f = (np.atleast_1d(np.asarray(x, dtype=float)) for x in np.broadcast_arrays(t_eff, log_g, fe_h))
        ones = np.ones_like(t)
        return cls(t, g, f, {}, 2 * ones, 0 * ones, RESOLVING_POWER * ones)


@dataclass(frozen=True)
class Strengths:
    """Lines of stars: equivalent width, Gaussian and Lorentzian full widths at half maximum [Å], ``[stars, lines]``."""

    width: Array
    gauss: Array
    lorentz: Array


def microturbulence(t_eff: Array, log_g: Array) -> Array:
    """Return the microturbulence [km/s]: 1.1 in the Sun, 1.5 in a red giant, 1.7 at 6,500 K."""
    t = np.clip(t_eff, 4000.0, 7000.0) - 5500.0
    return np.clip(1.05 + 2.2e-4 * t + 1.5e-7 * t**2 + 0.25 * (4.3 - log_g), 0.7, 2.5)


def strengths(stars: Stars, lines: LineList | None = None) -> Strengths:
    """Return equivalent widths and shapes of all lines.

    >>> lines = line_list()
    >>> sun = strengths(Stars.plain(5777.0, 4.44, 0.0))
    >>> bool(0.03 < sun.width[0, lines.nearest(6516.08)] < 0.09)  # Fe II: 55 mÅ in the Sun
    True
    """
    lines = line_list() if lines is None else lines
    alpha = stars.abundances.get("Mg", np.zeros_like(stars.t_eff))
    at = layer(stars.t_eff, stars.log_g, stars.fe_h, alpha)
    t = at.temperature[:, None]
    wavelength = lines.wavelength * 1e-8  # cm
    mass = np.array([ELEMENTS[s.split()[0]].mass for s in lines.species])
    turbulence = microturbulence(stars.t_eff, stars.log_g)[:, None] * 1e5
    doppler = np.sqrt(2 * K_ERG * t / (mass * ATOMIC_MASS) + turbulence**2)  # cm/s
    continuum = h_minus(t, lines.wavelength) * at.electron_pressure[:, None]
    energy = 12398.42 / lines.wavelength  # eV
    cross_section = 0.026540 / np.sqrt(np.pi) * 10**lines.log_gf * wavelength / doppler
    boltzmann = np.exp(-lines.excitation / (K_EV * t)) * (1 - np.exp(-energy / (K_EV * t)))
    eta = _ground(stars, lines, at) * cross_section * boltzmann / continuum
    a = _damping(lines, at) * wavelength / (4 * np.pi * doppler)
    area, fwhm = grow(eta, a)
    unit = lines.wavelength * doppler / (LIGHT * 1e5)  # Doppler width in Å
    # The far wing of the absorbed profile, area × lorentz / 2π x², is that of η itself: linear again.
    lorentz = 2 * np.sqrt(np.pi) * eta * a / area * unit
    core = np.sqrt(np.clip((fwhm * unit) ** 2 - lorentz**2, (1.665 * unit) ** 2, None))
    return Strengths(depth(stars.t_eff[:, None], lines.wavelength) * area * unit, core, lorentz)


def depth(t_eff: Array, wavelength: Array | float) -> Array:
    r"""Return the depth of a line of infinite strength, :math:`1 - B_\lambda(0.72\,T_{eff}) / B_\lambda(T_{eff})`."""
    x = 1.438777e8 / (np.asarray(wavelength) * t_eff)
    return 1 - np.expm1(x) / np.expm1(x / SURFACE)


def _ground(stars: Stars, lines: LineList, at: Layer) -> Array:
    """Atoms of each line's species to one of hydrogen, over the partition function, ``[stars, lines]``."""
    of: dict[str, Array] = {}
    for species in dict.fromkeys(lines.species):
        element = species.split()[0]
        ratio = stars.fe_h + stars.abundances.get(element, 0.0)
        number = _GRADIENT * 10 ** (ELEMENTS[element].abundance - 12 + ratio)
        of[species] = number * fraction(species, at) / statistical_sum(species, at.temperature)
    return np.stack([of[s] for s in lines.species], axis=1)


def _damping(lines: LineList, at: Layer) -> Array:
    """Damping constants [rad/s]: classical radiation, and van der Waals by Unsöld (Gray, eq. 11.29)."""
    ionisation = np.array(
        [
            ELEMENTS[s.split()[0]].ionisation if s.endswith(" I") else 2.1 * ELEMENTS[s.split()[0]].ionisation
            for s in lines.species
        ]
    )
    upper = ionisation - lines.excitation - 12398.42 / lines.wavelength
    lower = ionisation - lines.excitation
    upper = np.maximum(upper, 0.4)
    c6 = 0.3e-30 * np.abs(1 / upper**2 - 1 / lower**2)
    c6 = np.maximum(c6, 1e-33)
    waals = 10 ** (
        20 + 0.4 * np.log10(c6) + np.log10(at.gas_pressure[:, None]) - 0.7 * np.log10(at.temperature[:, None])
    )
    return _DAMPING * waals + 0.2223 / (lines.wavelength * 1e-8) ** 2


def spectra(stars: Stars) -> Array:
    """Return continuum-normalised spectra without noise, float32 ``[stars, 16384]`` on :func:`wavelengths`, in (0, 1].

    >>> flux = spectra(Stars.plain([5777.0, 4600.0], [4.44, 2.4], 0.0))
    >>> flux.shape, bool(flux.min() > 0), bool(flux.max() <= 1), bool(flux[1].mean() < flux[0].mean())
    ((2, 16384), True, True, True)
    """
    lines = line_list()
    found = strengths(stars, lines)
    grid = wavelengths()
    flux = np.ones((len(stars.t_eff), len(grid)), dtype=np.float32)
    _balmer(flux, stars)
    shift = (1 + stars.velocity / LIGHT)[:, None]
    # Full width at half maximum that instrument, rotation (variance v²/4) and macroturbulence (2 km/s) add
    speed = np.sqrt((LIGHT / stars.resolution) ** 2 + 2.355**2 * (stars.v_sin_i**2 / 4 + 2.0**2))
    centre = lines.wavelength * shift
    gauss = np.hypot(found.gauss, speed[:, None] / LIGHT * lines.wavelength)
    total, mixing = _pseudo_voigt(gauss, found.lorentz)
    gauss_top = ((1 - mixing) * found.width * np.sqrt(4 * np.log(2) / np.pi) / total).astype(np.float32)
    lorentz_top = (mixing * found.width * 2 / (np.pi * total)).astype(np.float32)
    inverse = (2 / total).astype(np.float32)
    for number, (start, stop) in enumerate(_windows()):
        x = (grid[start:stop] - centre[:, number, None]).astype(np.float32)
        x *= inverse[:, number, None]
        np.square(x, out=x)
        profile = lorentz_top[:, number, None] / (1 + x)
        x *= np.float32(-np.log(2))
        np.exp(x, out=x)
        x *= gauss_top[:, number, None]
        profile += x
        np.minimum(profile, np.float32(0.97), out=profile)
        np.subtract(1, profile, out=profile)
        flux[:, start:stop] *= profile
    return flux


def _pseudo_voigt(gauss: Array, lorentz: Array) -> tuple[Array, Array]:
    """Full width at half maximum of a Voigt profile, and its Lorentzian share (Thompson, Cox & Hastings 1987)."""
    g, h = gauss, lorentz
    total = (
        g**5 + 2.69269 * g**4 * h + 2.42843 * g**3 * h**2 + 4.47163 * g**2 * h**3 + 0.07842 * g * h**4 + h**5
    ) ** 0.2
    ratio = h / total
    return total, 1.36603 * ratio - 0.47719 * ratio**2 + 0.11116 * ratio**3


@functools.cache
def _windows() -> tuple[tuple[int, int], ...]:
    """The pixels of each line: as far as it may reach in any star, 0.9 Å and more where it may be strong or damped."""
    lines, grid = line_list(), wavelengths()
    extremes = Stars.plain(
        np.array([4000.0, 4300.0, 4200.0, 5000.0, 6000.0, 7200.0]),
        np.array([1.0, 1.8, 4.7, 4.6, 4.2, 3.9]),
        np.full(6, 0.5),
    )
    found = strengths(extremes, lines)
    reach = np.sqrt(found.width * found.lorentz / (2 * np.pi * 1e-3)).max(axis=0)  # wings down to 0.001
    reach = 0.9 + np.clip(np.maximum(reach, found.width.max(axis=0)), 0, 12)
    start = np.searchsorted(grid, lines.wavelength - reach)
    stop = np.searchsorted(grid, lines.wavelength + reach)
    arm = np.searchsorted([high for _, high in ARMS.values()], lines.wavelength)
    start, stop = np.maximum(start, arm * ARM_PIXELS), np.minimum(stop, (arm + 1) * ARM_PIXELS)
    return tuple(zip(start.tolist(), stop.tolist(), strict=True))


def _balmer(flux: Array, stars: Stars) -> None:
    """Multiply Hα and Hβ into spectra, in place.

    Deep wings, so the layer is hotter, 1.02 Teff in the Sun; that it moves outwards as the wings grow is told by the
    square root, with which Hα has the widths of real dwarfs from 4,500 K (1.4 Å) to 7,000 K (8 Å).
    """
    t = 1.02 * np.sqrt(_SUN * stars.t_eff)
    grid = wavelengths()
    for centre, stark, number in _BALMER.values():
        arm = slice(number * ARM_PIXELS, (number + 1) * ARM_PIXELS)
        excited = 4 * np.exp(-10.1988 / (K_EV * t))  # atoms in n = 2 to one of hydrogen
        strength = (
            stark * excited / (K_ERG * t) / h_minus(t, centre)
        )  # the pressure of electrons is in both and cancels
        shift = grid[arm] - centre * (1 + stars.velocity[:, None] / LIGHT)
        eta = strength[:, None] * (shift**2 + 0.2**2) ** -1.25
        flux[:, arm] *= 1 - depth(stars.t_eff[:, None], centre) * eta / (1 + eta)
