r"""Stars of a magnitude-limited survey: labels from a schematic Kiel diagram.

Three populations (thin and thick disc, halo) give [Fe/H] and [α/Fe]; four stages (main sequence up to the turn-off,
subgiants, red giant branch, red clump) give mass, luminosity and effective temperature by short formulas that follow
stellar tracks of the kind of PARSEC (Bressan et al. 2012) to some 100 K and 0.1 dex; gravity follows from these three
exactly,

.. math:: \log g = 4.438 + \log M + 4 \log(T_{eff}/5772\,\mathrm{K}) - \log L.

The distribution of labels looks like GALAH's (Buder et al. 2021, fig. 6); it is no population synthesis, and ages are
rough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

STAGES = ("main sequence", "subgiant", "giant", "clump")
STAGE_SHARES = (0.56, 0.12, 0.20, 0.12)
T_SUN = 5772.0

_POPULATIONS = (  # share, mean and scatter of [Fe/H], of [α/Fe]
    (0.79, -0.04, 0.20, 0.02, 0.03),
    (0.18, -0.50, 0.25, 0.20, 0.05),
    (0.03, -1.35, 0.40, 0.28, 0.08),
)
#: How far [X/Fe] of an element follows [α/Fe], a slope with [Fe/H], and the scatter of stars about both [dex].
_PATTERN = {
    "Li": (0.0, 0.0, 0.5),
    "C": (0.3, 0.0, 0.10),
    "O": (1.3, 0.0, 0.08),
    "Na": (0.2, 0.1, 0.08),
    "Mg": (1.0, 0.0, 0.03),
    "Al": (0.9, 0.0, 0.06),
    "Si": (0.9, 0.0, 0.03),
    "K": (0.6, 0.0, 0.10),
    "Ca": (0.8, 0.0, 0.03),
    "Sc": (0.5, 0.0, 0.05),
    "Ti": (0.9, 0.0, 0.03),
    "V": (0.1, 0.0, 0.06),
    "Cr": (0.0, 0.0, 0.03),
    "Mn": (-0.4, 0.2, 0.05),
    "Co": (0.2, 0.0, 0.05),
    "Ni": (0.1, 0.0, 0.02),
    "Cu": (0.1, 0.3, 0.08),
    "Zn": (0.4, 0.0, 0.08),
    "Rb": (0.0, 0.0, 0.10),
    "Y": (-0.2, 0.0, 0.12),
    "Zr": (0.0, 0.0, 0.12),
    "Ba": (-0.3, 0.0, 0.15),
    "La": (0.0, 0.0, 0.12),
    "Eu": (1.2, 0.0, 0.10),
}
_ERRORS = np.array([38.0, 0.10, 0.026])
_ERROR_CORRELATION = np.array([[1.0, 0.6, 0.6], [0.6, 1.0, 0.4], [0.6, 0.4, 1.0]])


@dataclass(frozen=True)
class Labels:
    """What is true of the stars; arrays ``[stars]``.

    Attributes:
        mass: [solar masses].
        age: [Gyr].
        l_bol: bolometric luminosity [solar].
        t_eff: [K]; log_g: log10 of [cm/s²]; fe_h: [dex]; alpha_fe: [dex].
        stage: index into :data:`STAGES`.
    """

    mass: Array
    age: Array
    l_bol: Array
    t_eff: Array
    log_g: Array
    fe_h: Array
    alpha_fe: Array
    stage: Array


def draw(rng: np.random.Generator, stars: int) -> Labels:
    """Draw stars of the survey.

    >>> labels = draw(np.random.default_rng(0), 4000)
    >>> bool((3800 < labels.t_eff).all() and (labels.t_eff < 7600).all())
    True
    >>> giants = labels.log_g < 3.5
    >>> bool(0.2 < giants.mean() < 0.4), bool(labels.t_eff[giants].mean() < 5000)
    (True, True)
    """
    fe_h, alpha_fe, old = _populations(rng, stars)
    stage = rng.choice(len(STAGES), size=stars, p=STAGE_SHARES)
    # Masses: turn-off and evolved stars of an old population cannot be heavy
    mass = np.where(stage == 0, rng.normal(1.0, 0.19, stars), 0.98 + rng.gamma(2.0, 0.13, stars))
    mass = np.where(old, np.where(stage == 0, np.minimum(mass, 0.95), 0.85 + 0.1 * rng.random(stars)), mass)
    mass = np.clip(mass, 0.62, 1.75)
    log_l, log_t, evolved = _main_sequence(rng.random(stars) ** 0.8, mass, fe_h)
    for number, place in ((1, _subgiant), (2, _giant), (3, _clump)):
        here = stage == number
        log_l[here], log_t[here] = place(rng, mass[here], fe_h[here])
    log_t += rng.normal(0.0, 0.004, stars)  # what the formulas leave out: helium, rotation, binaries
    log_g = 4.438 + np.log10(mass) + 4 * (log_t - np.log10(T_SUN)) - log_l
    lifetime = 10.0 * mass**-2.9 * 10 ** (0.12 * fe_h)
    age = np.clip(lifetime * np.where(stage == 0, evolved, 1.05) * rng.lognormal(0, 0.1, stars), 0.1, 13.5)
    t_eff = np.clip(10**log_t, 3900.0, 7500.0)
    return Labels(mass, age, 10**log_l, t_eff, log_g, fe_h, alpha_fe, stage)


def abundances(rng: np.random.Generator, labels: Labels) -> dict[str, Array]:
    """Draw [X/Fe] [dex] of each element with lines; lithium is spent in cool and evolved stars."""
    out = {}
    for element, (slope, with_iron, scatter) in _PATTERN.items():
        out[element] = (
            slope * labels.alpha_fe + with_iron * labels.fe_h + rng.normal(0, scatter, len(labels.fe_h))
        )
    dwarf = (labels.log_g > 3.7) & (labels.t_eff > 5600)
    out["Li"] = out["Li"] + np.where(dwarf, 1.2, 0.0) - labels.fe_h
    return out


def measured(rng: np.random.Generator, labels: Labels, snr: Array) -> tuple[Array, Array, Array]:
    """Return Teff, log g and [Fe/H] as the pipeline of a survey measures them: the truth with errors like those of
    GALAH.

    At a signal-to-noise ratio of 50 they are 38 K, 0.10 and 0.026 dex, correlated (too hot goes with too heavy and
    too rich in metals); larger at lower ratios, in stars that are hard to measure (cool, fast or poor in metals), and
    2.2 times as large in one star of ten.

    >>> rng = np.random.default_rng(0)
    >>> labels = draw(rng, 4000)
    >>> t_eff, log_g, fe_h = measured(rng, labels, np.full(4000, 50.0))
    >>> bool(38 < (t_eff - labels.t_eff).std() < 65)
    True
    """
    stars = len(snr)
    draws = rng.standard_normal((stars, 3)) @ np.linalg.cholesky(_ERROR_CORRELATION).T
    hard = (
        1
        + 0.6 / (1 + np.exp((labels.t_eff - 4400.0) / 150.0))
        + 0.6 / (1 + np.exp((labels.fe_h + 1.2) / 0.15))
    )
    hard += 0.5 / (1 + np.exp(-(labels.t_eff - 6400.0) / 100.0))
    size = hard * np.sqrt(0.5 + 0.5 * (50.0 / snr) ** 2) * np.where(rng.random(stars) < 0.1, 2.2, 1.0)
    error = draws * _ERRORS * size[:, None]
    return labels.t_eff + error[:, 0], labels.log_g + error[:, 1], labels.fe_h + error[:, 2]


def _populations(rng: np.random.Generator, stars: int) -> tuple[Array, Array, Array]:
    shares, *rest = (np.array(column) for column in zip(*_POPULATIONS, strict=True))
    which = rng.choice(len(shares), size=stars, p=shares)
    mean, scatter, alpha, alpha_scatter = (column[which] for column in rest)
    fe_h = np.clip(rng.normal(mean, scatter), -2.4, 0.5)
    alpha_fe = rng.normal(alpha, alpha_scatter) - 0.08 * np.where(which == 0, fe_h, 0.0)
    return fe_h, alpha_fe, which > 0


def _main_sequence(evolved: Array, mass: Array, fe_h: Array) -> tuple[Array, Array, Array]:
    """Log L, log Teff on the main sequence at a share of the lifetime; no star is older than 13 Gyr."""
    evolved = np.minimum(evolved, 13.0 / (10.0 * mass**-2.9 * 10 ** (0.12 * fe_h)))
    log_m = np.log10(mass)
    log_l = -0.15 + 4.6 * log_m - 0.20 * fe_h + 0.22 * evolved + 0.20 * evolved**3
    hot = 1 / (1 + np.exp(-(log_m - 0.04) / 0.02))  # heavier than 1.1: turn to the right while they evolve
    log_t = np.log10(5640.0) + 0.60 * log_m - 0.7 * np.maximum(log_m, 0) ** 2 - 0.045 * fe_h
    log_t += (1 - hot) * (0.024 * evolved - 0.012 * evolved**3) - hot * (0.035 * evolved**2)
    return log_l, log_t, evolved


def _subgiant(rng: np.random.Generator, mass: Array, fe_h: Array) -> tuple[Array, Array]:
    ones = np.ones_like(mass)
    log_l, turn_off, _ = _main_sequence(ones, mass, fe_h)
    along = rng.random(len(mass)) ** 0.9
    foot = _branch(3.55, mass, fe_h)
    return log_l + 0.10 + 0.08 * along - 0.1 * along**3, turn_off + (foot - turn_off) * along**1.2


def _giant(rng: np.random.Generator, mass: Array, fe_h: Array) -> tuple[Array, Array]:
    log_g = 3.55 - 2.75 * rng.random(len(mass)) ** 1.35  # fewer the higher up: evolution is fast there
    log_t = _branch(log_g, mass, fe_h)
    return 4.438 + np.log10(mass) + 4 * (log_t - np.log10(T_SUN)) - log_g, log_t


def _clump(rng: np.random.Generator, mass: Array, fe_h: Array) -> tuple[Array, Array]:
    log_l = rng.normal(1.75, 0.06, len(mass)) - 0.05 * fe_h
    log_t = np.log10(4850.0 - 330.0 * np.clip(fe_h, -1.5, 0.5) + 180.0 * (mass - 1.2)) + rng.normal(
        0, 0.004, len(mass)
    )
    return log_l, log_t


def _branch(log_g: Array | float, mass: Array, fe_h: Array) -> Array:
    """Log Teff on the red giant branch: solar: 5,000 K at its foot, 4,600 K at log g = 2.5, 4,050 K at 1."""
    below = 3.55 - np.asarray(log_g)
    t = (
        5000.0
        - 370.0 * below
        - 4.0 * below**3
        - 360.0 * np.clip(fe_h, -1.8, 0.5)
        + 300.0 * np.log10(mass / 1.2)
    )
    return np.log10(t)
