r"""One layer of a stellar atmosphere: pressures, the continuous opacity of H⁻, and populations by Boltzmann and Saha.

A line of a solar-type star forms about continuum optical depth :math:`\tau_l = 0.15`, at
:math:`T_l = 0.91\,T_{eff}`. There the electron pressure follows from two conditions: hydrostatic equilibrium,
:math:`P_g \simeq 1.6\, g\,\tau_l/\kappa(T, P_e)` with :math:`\kappa` that of H⁻ per gram, and the electrons that
metals and hydrogen give, each by Saha's equation. Both are monotone in :math:`P_e`, which bisection finds for all
stars at once.

Sources: D. F. Gray, *The Observation and Analysis of Stellar Photospheres* (3rd ed. 2005), eqs. 8.11–8.12 for
bound-free H⁻ (Wishart 1979) and table D.2 for partition functions; Asplund et al. (2009, ARA&A 47, 481) for solar
abundances; NIST for ionisation potentials. Left out: H⁻ free-free, H bound-free and Rayleigh scattering (some 5 to 15
per cent up to 7,000 K), second ionisation, molecules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Array = np.ndarray

K_EV = 8.617333e-5  # Boltzmann's constant [eV/K]
K_ERG = 1.380649e-16  # [erg/K]
ATOMIC_MASS = 1.660539e-24  # [g]
LINE_DEPTH = 0.15  # continuum optical depth where lines form
LINE_TEMPERATURE = 0.91  # of Teff, there
HELIUM = 0.085  # atoms to one of hydrogen
MASS_PER_HYDROGEN = 1.36  # atomic masses, with helium


class Element(NamedTuple):
    """What Saha and Boltzmann need.

    Attributes:
        mass: atomic mass units.
        abundance: A(X) of the Sun = log10 N(X)/N(H) + 12.
        ionisation: potential of the neutral atom [eV].
        neutral, ion: log10 of the partition functions at θ = 5040 K / T = 1.0 and 0.5.
    """

    mass: float
    abundance: float
    ionisation: float
    neutral: tuple[float, float]
    ion: tuple[float, float]


ELEMENTS: Mapping[str, Element] = {
    "H": Element(1.008, 12.00, 13.598, (0.30, 0.30), (0.00, 0.00)),
    "Li": Element(6.94, 1.05, 5.392, (0.32, 0.49), (0.00, 0.00)),
    "C": Element(12.01, 8.43, 11.260, (0.97, 1.00), (0.78, 0.78)),
    "O": Element(16.00, 8.69, 13.618, (0.94, 0.97), (0.60, 0.61)),
    "Na": Element(22.99, 6.24, 5.139, (0.31, 0.60), (0.00, 0.00)),
    "Mg": Element(24.31, 7.60, 7.646, (0.01, 0.15), (0.31, 0.31)),
    "Al": Element(26.98, 6.45, 5.986, (0.77, 0.81), (0.00, 0.01)),
    "Si": Element(28.09, 7.51, 8.152, (0.98, 1.04), (0.76, 0.77)),
    "K": Element(39.10, 5.03, 4.341, (0.34, 0.60), (0.00, 0.00)),
    "Ca": Element(40.08, 6.34, 6.113, (0.07, 0.55), (0.34, 0.54)),
    "Sc": Element(44.96, 3.15, 6.561, (1.08, 1.49), (1.36, 1.52)),
    "Ti": Element(47.87, 4.95, 6.828, (1.48, 1.88), (1.75, 1.92)),
    "V": Element(50.94, 3.93, 6.746, (1.62, 2.03), (1.64, 1.89)),
    "Cr": Element(52.00, 5.64, 6.767, (1.02, 1.51), (0.86, 1.22)),
    "Mn": Element(54.94, 5.43, 7.434, (0.81, 1.16), (0.89, 1.13)),
    "Fe": Element(55.85, 7.50, 7.902, (1.43, 1.74), (1.63, 1.80)),
    "Co": Element(58.93, 4.99, 7.881, (1.52, 1.76), (1.46, 1.66)),
    "Ni": Element(58.69, 6.22, 7.640, (1.47, 1.60), (1.02, 1.28)),
    "Cu": Element(63.55, 4.19, 7.726, (0.36, 0.58), (0.01, 0.18)),
    "Zn": Element(65.38, 4.56, 9.394, (0.00, 0.03), (0.30, 0.30)),
    "Rb": Element(85.47, 2.52, 4.177, (0.36, 0.70), (0.00, 0.00)),
    "Y": Element(88.91, 2.21, 6.217, (1.08, 1.50), (1.18, 1.41)),
    "Zr": Element(91.22, 2.58, 6.634, (1.53, 1.99), (1.66, 1.91)),
    "Ba": Element(137.33, 2.18, 5.212, (0.36, 0.92), (0.62, 0.85)),
    "La": Element(138.91, 1.10, 5.577, (1.41, 1.85), (1.47, 1.71)),
    "Eu": Element(151.96, 0.52, 5.670, (0.90, 1.11), (1.18, 1.20)),
}
"""The elements that have lines or give electrons."""

_DONORS = ("H", "Mg", "Si", "Fe", "Al", "Ca", "Na", "K")
_ALPHA = ("O", "Mg", "Si", "Ca", "Ti")


@dataclass(frozen=True)
class Layer:
    """The layer where lines form; arrays ``[stars]``.

    Attributes:
        temperature: [K].
        electron_pressure, gas_pressure: [dyn/cm²].
    """

    temperature: Array
    electron_pressure: Array
    gas_pressure: Array


def layer(t_eff: Array, log_g: Array, fe_h: Array, alpha_fe: Array) -> Layer:
    """Return the line-forming layer of each star; [K], [cgs], [dex], [dex], each ``[stars]``.

    >>> sun = layer(*(np.array([x]) for x in (5777.0, 4.44, 0.0, 0.0)))
    >>> round(float(np.log10(sun.gas_pressure[0])), 1), round(float(np.log10(sun.electron_pressure[0])), 1)
    (4.7, 0.7)
    """
    temperature = LINE_TEMPERATURE * t_eff
    donors = [
        (
            10 ** (ELEMENTS[e].abundance - 12 + (0 if e == "H" else fe_h + alpha_fe * (e in _ALPHA))),
            saha(e, temperature),
        )
        for e in _DONORS
    ]
    per_gram = h_minus(temperature, 5000.0) / (MASS_PER_HYDROGEN * ATOMIC_MASS)  # per electron pressure
    weight = 1.6 * 10**log_g * LINE_DEPTH / per_gram  # gas pressure × electron pressure

    low, high = (
        np.full_like(temperature, -6.0),
        np.full_like(temperature, 5.0),
    )  # log10 of the electron pressure
    for _ in range(40):
        middle = (low + high) / 2
        electron = 10**middle
        hydrogen = weight / electron / (1 + HELIUM)
        given = hydrogen * sum(a / (1 + electron / phi) for a, phi in donors)
        too_low = electron < given
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    electron = 10 ** ((low + high) / 2)
    return Layer(temperature, electron, weight / electron)


def saha(element: str, temperature: Array) -> Array:
    r"""Return :math:`N_1 P_e / N_0 = 0.6665\, (U_1/U_0)\, T^{5/2}\, 10^{-\theta I}` [dyn/cm²] (Gray, eq. 1.20)."""
    e = ELEMENTS[element]
    u0, u1 = partition(e.neutral, temperature), partition(e.ion, temperature)
    return 0.6665 * u1 / u0 * temperature**2.5 * np.exp(-e.ionisation / (K_EV * temperature))


def partition(table: tuple[float, float], temperature: Array) -> Array:
    """Return a partition function, its logarithm linear in θ = 5040 K / T between θ = 1.0 and 0.5, and beyond."""
    theta = 5040.0 / temperature
    return 10 ** (table[0] + (table[1] - table[0]) * (1.0 - theta) / 0.5)


def h_minus(temperature: Array, wavelength: Array | float) -> Array:
    r"""Return the bound-free opacity of H⁻ in cm² per neutral hydrogen atom and unit of electron pressure.

    :math:`4.158\times10^{-10}\,\alpha(\lambda)\,\theta^{5/2}\,10^{0.754\theta}` with stimulated emission in it (Gray,
    eqs. 8.11–8.12); 2250–15000 Å.
    """
    w = np.asarray(wavelength, dtype=float)
    polynomial = (1.99654, -1.18267e-5, 2.64243e-6, -4.40524e-10, 3.23992e-14, -1.39568e-18, 2.78701e-23)
    alpha = sum(c * w**i for i, c in enumerate(polynomial)) * 1e-18
    theta = 5040.0 / temperature
    return 4.158e-10 * alpha * theta**2.5 * 10 ** (0.754 * theta)


def fraction(species: str, layer: Layer) -> Array:
    """Return the share of an element that is neutral (``"Fe I"``) or singly ionised (``"Fe II"``), ``[stars]``.

    >>> sun = layer(*(np.array([x]) for x in (5777.0, 4.44, 0.0, 0.0)))
    >>> bool(fraction("Fe II", sun)[0] > 0.9), bool(fraction("Fe I", sun)[0] < 0.1)
    (True, True)
    """
    element, stage = species.split()
    ratio = saha(element, layer.temperature) / layer.electron_pressure
    return 1 / (1 + ratio) if stage == "I" else ratio / (1 + ratio)


def statistical_sum(species: str, temperature: Array) -> Array:
    """Return the partition function of a species, such as ``"Fe II"``."""
    element, stage = species.split()
    e = ELEMENTS[element]
    return partition(e.neutral if stage == "I" else e.ion, temperature)
