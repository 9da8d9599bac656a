"""Spectral lines: the few hundred that the simulator draws, and the few dozen that figures name.

``lines.csv`` beside this module holds 418 lines of 30 species in the four arms of HERMES, the spectrograph of GALAH:
wavelength in air [Å], species, excitation potential of the lower level [eV], log gf. These are published facts, taken
to two decimals in log gf from the lists that GALAH works with (De Silva et al. 2015, MNRAS 449, 2604; Buder et al.
2021, MNRAS 506, 150; Heiter et al. 2021, A&A 645, A106), from Sousa et al. (2008, A&A 487, 373), from Meléndez &
Barbuy (2009, A&A 497, 611; Fe II), and from the compilations VALD (Ryabchikova et al. 2015) and NIST ASD. Log gf of
lines of lesser weight are good to some 0.2 dex; hyperfine structure is left out, molecules too. So the spectra are
sane and useful for tests of methods, and no replacement for a spectral synthesis.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class NamedLine(NamedTuple):
    """A line that figures may name: wavelength in air [Å], and what to write beside it."""

    wavelength: float
    name: str


STRONG_LINES: tuple[NamedLine, ...] = (
    NamedLine(3933.66, "Ca II K"),
    NamedLine(3968.47, "Ca II H"),
    NamedLine(4101.73, "Hδ"),
    NamedLine(4226.73, "Ca I"),
    NamedLine(4304.0, "G band"),
    NamedLine(4340.46, "Hγ"),
    NamedLine(4383.54, "Fe I"),
    NamedLine(4731.45, "Fe II"),
    NamedLine(4754.04, "Mn I"),
    NamedLine(4762.37, "Mn I"),
    NamedLine(4783.43, "Mn I"),
    NamedLine(4810.53, "Zn I"),
    NamedLine(4823.52, "Mn I"),
    NamedLine(4861.33, "Hβ"),
    NamedLine(4871.32, "Fe I"),
    NamedLine(4883.68, "Y II"),
    NamedLine(4891.49, "Fe I"),
    NamedLine(5167.32, "Mg b"),
    NamedLine(5172.68, "Mg b"),
    NamedLine(5183.60, "Mg b"),
    NamedLine(5269.54, "Fe I"),
    NamedLine(5657.90, "Sc II"),
    NamedLine(5682.63, "Na I"),
    NamedLine(5688.21, "Na I"),
    NamedLine(5701.10, "Si I"),
    NamedLine(5711.09, "Mg I"),
    NamedLine(5782.13, "Cu I"),
    NamedLine(5853.67, "Ba II"),
    NamedLine(5857.45, "Ca I"),
    NamedLine(5889.95, "Na D"),
    NamedLine(5895.92, "Na D"),
    NamedLine(6122.22, "Ca I"),
    NamedLine(6162.17, "Ca I"),
    NamedLine(6496.90, "Ba II"),
    NamedLine(6499.65, "Ca I"),
    NamedLine(6516.08, "Fe II"),
    NamedLine(6562.80, "Hα"),
    NamedLine(6643.63, "Ni I"),
    NamedLine(6677.99, "Fe I"),
    NamedLine(6696.02, "Al I"),
    NamedLine(6707.76, "Li I"),
    NamedLine(6717.68, "Ca I"),
    NamedLine(7664.90, "K I"),
    NamedLine(7691.55, "Mg I"),
    NamedLine(7698.96, "K I"),
    NamedLine(7711.72, "Fe II"),
    NamedLine(7748.27, "Fe I"),
    NamedLine(7774.17, "O I"),
    NamedLine(7835.31, "Al I"),
)
"""Lines strong enough to be seen and named between 3900 and 7900 Å."""


@dataclass(frozen=True)
class LineList:
    """Lines as arrays ``[lines]``, in the order of the wavelength.

    Attributes:
        wavelength: in air [Å].
        species: such as ``"Fe I"``.
        excitation: potential of the lower level [eV].
        log_gf: decimal logarithm of statistical weight × oscillator strength.
    """

    wavelength: Array
    species: tuple[str, ...]
    excitation: Array
    log_gf: Array

    def __len__(self) -> int:
        return len(self.species)

    def nearest(self, wavelength: float) -> int:
        """Return the index of the line nearest to a wavelength [Å]."""
        return int(np.argmin(np.abs(self.wavelength - wavelength)))


@functools.cache
def line_list() -> LineList:
    """Read ``lines.csv``.

    >>> lines = line_list()
    >>> len(lines), lines.species[lines.nearest(6516.08)]
    (418, 'Fe II')
    """
    text = resources.files("fluvial.apps.stars").joinpath("lines.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return LineList(
        np.array([float(r["wavelength"]) for r in rows]),
        tuple(r["species"] for r in rows),
        np.array([float(r["excitation"]) for r in rows]),
        np.array([float(r["log_gf"]) for r in rows]),
    )


def named_between(low: float, high: float) -> list[NamedLine]:
    """Return the strong lines between two wavelengths [Å].

    >>> [line.name for line in named_between(6490, 6600)]
    ['Ba II', 'Ca I', 'Fe II', 'Hα']
    """
    return [line for line in STRONG_LINES if low <= line.wavelength <= high]
