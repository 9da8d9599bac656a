r"""Jets: a generator-level spectrum like that of top-quark pairs, and a detector response known exactly.

**The numbers here are invented.** They have the shape of a CMS simulation (names, units, peaks, failures,
correlations; see :mod:`fluvial.apps.collider.simulator`) but describe no detector.

The context is drawn by :func:`draw_context`; the response is the chain :data:`JETS`, step by step below. Jets
are of radius 0.4; the tracker ends at :math:`|\eta| \approx 2.5`, and with it flavour tagging.
"""

from __future__ import annotations

import math

import numpy as np

from fluvial.apps.collider.chain import Chain, Columns, Step, Table, Variable, stored
from fluvial.apps.collider.conditionals import (
    Array,
    Atom,
    Choice,
    Conditional,
    Count,
    Exp,
    Expit,
    Johnson,
    Normal,
    Saturated,
    TwoNormals,
    expit,
)

FAILED = -1.0
"""What a tagger gives where it could not be evaluated."""

NO_MUON = {"dr": 0.5, "pt": 0.0, "deta": 0.5, "dphi": 0.5}
"""What the muon columns hold where there is no generator muon within 0.4 of the jet."""

MASS_RATIO_MAX, PT_RATIO_MAX = 7.0, 3.0
"""Where the ratios to generator level saturate."""


def _muon(prefix: str) -> tuple[Variable, ...]:
    return (
        Variable(f"{prefix}_dr", "mixed", "1", 0.0, 0.4, (NO_MUON["dr"],)),
        Variable(f"{prefix}_pt", "mixed", "GeV", 0.0, math.inf, (NO_MUON["pt"],)),
        Variable(f"{prefix}_deta", "mixed", "1", -0.4, 0.4, (NO_MUON["deta"],)),
        Variable(f"{prefix}_dphi", "mixed", "rad", -0.4, 0.4, (NO_MUON["dphi"],)),
    )


CONTEXT: tuple[Variable, ...] = (
    *_muon("ClosestMuon"),
    *_muon("SecondClosestMuon"),
    Variable("GenJet_eta", "continuous", "1", -6.0, 6.0),
    Variable("GenJet_mass", "continuous", "GeV", 0.0),
    Variable("GenJet_phi", "continuous", "rad", -3.1415928, 3.1415928),  # π as a float32 is above π
    Variable("GenJet_pt", "continuous", "GeV", 0.0),
    Variable("GenJet_partonFlavour", "integer", "1", -5, 21, (-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 21)),
    Variable("GenJet_hadronFlavour", "integer", "1", 0, 5, (0, 4, 5)),
)
"""The 14 context columns."""

TARGETS: tuple[Variable, ...] = (
    Variable("Jet_area", lower=0.0),
    Variable("Jet_btagCMVA", "mixed", "1", -1.0, 1.0, (FAILED,)),
    Variable("Jet_btagCSVV2", "mixed", "1", 0.0, 1.0, (FAILED,)),
    Variable("Jet_btagDeepB", "mixed", "1", 0.0, 1.0, (FAILED,)),
    Variable("Jet_btagDeepC", "mixed", "1", 0.0, 1.0, (FAILED,)),
    Variable("Jet_btagDeepFlavB", "mixed", "1", 0.0, 1.0, (FAILED,)),
    Variable("Jet_btagDeepFlavC", "mixed", "1", 0.0, 1.0, (FAILED,)),
    Variable("Jet_etaMinusGen"),
    Variable("Jet_bRegCorr", lower=0.0),
    Variable("Jet_massRatio", "mixed", "1", 0.0, MASS_RATIO_MAX, (MASS_RATIO_MAX,)),
    Variable("Jet_nConstituents", "integer", "1", 1, 150),
    Variable("Jet_phiMinusGen", "continuous", "rad"),
    Variable("Jet_ptRatio", "mixed", "1", 0.0, PT_RATIO_MAX, (PT_RATIO_MAX,)),
    Variable("Jet_qgl", "mixed", "1", 0.0, 1.0, (FAILED,)),
    Variable("Jet_muEF", "mixed", "1", 0.0, 1.0, (0.0,)),
    Variable("Jet_puId", "integer", "1", 0, 7, (0, 4, 6, 7)),
    Variable("Jet_jetId", "integer", "1", 0, 6, (0, 2, 6)),
)
"""The 17 targets."""


# ------------------------------------------------------------------------------------------- generator level


_SHARES = {
    "ttbar": (0.21, 0.11, 0.28, 0.34),
    "dy": (0.03, 0.07, 0.42, 0.41),
}  # b, c, light, gluon; the rest: none
_MEDIANS = {"ttbar": (55.0, 40.0, 42.0, 22.0, 6.0), "dy": (30.0, 26.0, 30.0, 20.0, 5.0)}  # GeV above 10


def draw_context(rng: np.random.Generator, n: int, process: str = "ttbar") -> Table:
    """Draw ``n`` generator-level jets like those of top-quark pairs, or (``dy``) of Z bosons with jets.

    Of top-quark pairs, about a fifth are b jets, a third of the rest come from W decays, and the others are radiated:
    softer and further forward. Beside Z bosons jets are softer, and few are b jets. Jets are above 10 GeV and within
    |eta| < 5.
    """
    kind = np.searchsorted(np.cumsum(_SHARES[process]), rng.random(n))
    median = np.array(_MEDIANS[process])[kind]
    spread = np.array([0.62, 0.66, 0.66, 0.85, 0.7])[kind]
    pt = 10.0 + median * np.exp(spread * rng.standard_normal(n)) * (0.35 + 0.65 * rng.random(n))
    reach = np.array([1.2, 1.35, 1.35, 2.1, 2.6])[kind]
    eta = 5.0 * np.tanh(reach * rng.standard_normal(n) / 5.0)
    log_mass = np.log(pt) - 1.95 + np.array([0.12, 0.0, -0.05, 0.14, 0.0])[kind] - 0.10 * np.log(pt / 50.0)
    log_mass = log_mass + 0.33 * rng.standard_normal(n)
    parton, hadron = _flavours(kind, rng)
    muon = _muons(hadron, pt, rng)
    values = {
        **muon,
        "GenJet_eta": eta,
        "GenJet_mass": np.exp(log_mass),
        "GenJet_phi": np.pi * (2.0 * rng.random(n) - 1.0),
        "GenJet_pt": pt,
        "GenJet_partonFlavour": parton,
        "GenJet_hadronFlavour": hadron,
    }
    return {v.name: stored(values[v.name], v.kind) for v in CONTEXT}


def _flavours(kind: np.ndarray, rng: np.random.Generator) -> tuple[Array, Array]:
    n = kind.size
    light = 1 + np.searchsorted([0.4, 0.75], rng.random(n))
    sign = np.where(rng.random(n) < 0.5, -1, 1)
    parton = np.choose(kind, [5 * sign, 4 * sign, light * sign, np.full(n, 21), np.zeros(n, dtype=int)])
    split = rng.random(n)  # a gluon may split to a heavy pair
    heavy = np.where(split < 0.03, 5, np.where(split < 0.09, 4, 0))
    hadron = np.choose(kind, [np.full(n, 5), np.full(n, 4), np.zeros(n, dtype=int), heavy, np.zeros(n, int)])
    return parton.astype(np.float64), hadron.astype(np.float64)


def _muons(hadron: Array, pt: Array, rng: np.random.Generator) -> Table:
    """Muons of heavy-hadron decays in the jet, at most two; the closer one first."""
    n = pt.size
    first = rng.random(n) < np.where(hadron == 5, 0.19, np.where(hadron == 4, 0.10, 0.008))
    second = first & (rng.random(n) < np.where(hadron == 5, 0.13, 0.04))
    scale = 0.11 * (50.0 / pt) ** 0.4  # harder jets are narrower
    # Exponential distances, cut off at 0.4.
    dr = -scale * np.log1p(np.expm1(-0.399 / scale) * rng.random((2, n))) + 1e-4
    dr = np.sort(np.where(second, dr, np.stack([dr[0], np.full(n, 1.0)])), axis=0)
    angle = 2 * np.pi * rng.random((2, n))
    share = rng.random((2, n)) ** np.where(hadron == 5, 1.6, 2.2) * np.array([[0.75], [0.4]])
    out: Table = {}
    for i, (prefix, there) in enumerate((("ClosestMuon", first), ("SecondClosestMuon", second))):
        values = {
            "dr": dr[i],
            "pt": 0.5 + share[i] * pt,
            "deta": dr[i] * np.cos(angle[i]),
            "dphi": dr[i] * np.sin(angle[i]),
        }
        for name, value in values.items():
            out[f"{prefix}_{name}"] = np.where(there, value, NO_MUON[name])
    return out


# ---------------------------------------------------------------------------------------------- the response


def _features(c: Columns) -> Table:
    """Work out, once a row, what the steps share."""
    pt, eta = c["GenJet_pt"], np.abs(c["GenJet_eta"])
    hadron, parton = c["GenJet_hadronFlavour"], c["GenJet_partonFlavour"]
    b, charm = (hadron == 5).astype(np.float64), (hadron == 4).astype(np.float64)
    log_pt = np.log(pt / 50.0)
    forward = expit((eta - 2.5) / 0.15)
    root = np.sqrt(pt)
    muon = c["ClosestMuon_pt"] + c["SecondClosestMuon_pt"]
    return {
        "log_pt": log_pt,
        "t": np.tanh(0.7 * log_pt),  # the same, bounded
        "forward": forward,
        "b": b,
        "charm": charm,
        "light": 1.0 - b - charm,
        "gluon": (parton == 21).astype(np.float64),
        "resolution": np.hypot(np.hypot(3.2 / pt, 0.75 / root), 0.045) * (1.0 + 0.35 * forward),
        "angle": 0.006 + 0.55 / pt,
        "muon": muon / pt,
        "has_muon": (c["ClosestMuon_dr"] < 0.4).astype(np.float64),
        "track": expit((3.5 - c["ClosestMuon_pt"]) / -0.8) * (c["ClosestMuon_dr"] < 0.4),
        # Jets of which b-tagging finds nothing to work with: beyond the tracker, or very soft.
        "lost": expit(-5.2 + 3.6 * forward - 2.2 * log_pt * (log_pt < 0)),
    }


def _pt_ratio(k: Columns) -> Conditional:
    response = -0.01 - 0.03 * k["b"] + 0.02 * k["light"] - 0.03 * k["gluon"] * k["t"]
    response = response - 0.35 * k["muon"] * (1.0 - k["track"])  # a muon that is not found is missed
    centre = response + 0.04 * k["forward"] * k["t"]
    return Saturated(Exp(Johnson(centre, k["resolution"], tail=1.9, skew=0.12)), PT_RATIO_MAX)


def _log_pt_ratio(k: Columns) -> Array:
    return np.log(k["Jet_ptRatio"])


def _eta_minus_gen(k: Columns) -> Conditional:
    pull = np.minimum(np.abs(_log_pt_ratio(k)) / k["resolution"], 6.0)  # a bad pt comes with a bad direction
    return Johnson(0.0, k["angle"] * (0.8 + 0.25 * pull), tail=1.6)


def _phi_minus_gen(k: Columns) -> Conditional:
    pull = np.minimum(np.abs(k["Jet_etaMinusGen"]) / k["angle"], 6.0)
    charged = k["GenJet_partonFlavour"] * (np.abs(k["GenJet_partonFlavour"]) < 10) / 5.0
    return Johnson(
        0.05 * charged * k["angle"], k["angle"] * (0.75 + 0.25 * pull) * (1.0 + 0.2 * k["forward"]), tail=1.6
    )


def _area(k: Columns) -> Conditional:
    centre = math.log(0.503) + 0.15 * np.abs(k["Jet_etaMinusGen"]) - 0.01 * k["t"]
    width = 0.035 * (1.0 - 0.45 * k["t"]) * (1.0 + 0.3 * k["forward"])
    return Exp(Johnson(centre, width, tail=1.3, skew=0.15))


def _constituents(k: Columns) -> Conditional:
    growth = np.exp(0.38 * k["log_pt"] + 0.3 * np.clip(_log_pt_ratio(k), -1.0, 1.0))
    mean = 15.0 * growth * (1.0 + 0.28 * k["gluon"] + 0.12 * k["b"]) * (1.0 - 0.5 * k["forward"])
    return Count(mean, 0.8 + 0.14 * mean, 1, 150)


def _mass_ratio(k: Columns) -> Conditional:
    full = np.log(k["Jet_nConstituents"]) - 2.7 - 0.38 * k["log_pt"]
    centre = (
        -0.02 + 0.9 * _log_pt_ratio(k) + 0.16 * full - 0.1 * (np.log(k["GenJet_mass"]) - 2.0 - k["log_pt"])
    )
    return Saturated(Exp(Johnson(centre, 0.06 + 0.9 * k["resolution"], tail=1.7, skew=-0.1)), MASS_RATIO_MAX)


def _qgl(k: Columns) -> Conditional:
    full = np.log(k["Jet_nConstituents"]) - 2.7 - 0.38 * k["log_pt"]
    quark = expit(0.6 - 1.5 * k["gluon"] - 2.2 * full - 0.4 * k["b"] + 0.3 * k["t"])
    scores = TwoNormals(
        0.02 + 0.96 * quark,
        Normal(2.2 - 0.8 * full, 1.2),
        Normal(-1.7 - 1.0 * full, 1.1),
    )
    few = expit((2.6 - k["Jet_nConstituents"]) / 0.6)
    return Atom(1.0 - (1.0 - few) * (1.0 - 0.35 * k["forward"]) * 0.995, FAILED, Expit(scores))


def _muon_fraction(k: Columns) -> Conditional:
    found = 0.012 + 0.95 * k["track"] * (1.0 - 0.9 * k["forward"])
    share = np.clip(k["muon"] / k["Jet_ptRatio"], 0.005, 0.95)
    known = np.log(share / (1.0 - share))
    centre = np.where(k["has_muon"] > 0, known, -2.0)
    return Atom(1.0 - found, 0.0, Expit(Normal(centre, np.where(k["has_muon"] > 0, 0.25, 1.0))))


def _deep_flavour_b(k: Columns) -> Conditional:
    good = 1.0 - 0.75 * k["forward"]
    odds = -3.6 + good * (5.2 * k["b"] + 2.1 * k["charm"]) + (0.5 * k["b"] - 0.3 * k["light"]) * k["t"]
    odds = odds + 0.6 * k["b"] * (k["Jet_muEF"] > 0) + 0.3 * k["gluon"]
    high = Normal(2.7 + 0.6 * k["b"] + 0.4 * k["t"], 1.7)
    low = Normal(-3.6 + 0.8 * k["charm"] + 0.4 * k["b"] - 0.3 * k["t"], 1.35)
    return Atom(k["lost"], FAILED, Expit(TwoNormals(0.01 + 0.98 * expit(odds), high, low)))


def _logit(x: Array) -> Array:
    """The log-odds of a score, 0 where the tagger failed."""
    x = np.where(x > 0, x, 0.5)
    return np.log(x) - np.log1p(-x)


def _deep_flavour_c(k: Columns) -> Conditional:
    """What is not b may be c: C lies between 0 and 1 − B."""
    b = k["Jet_btagDeepFlavB"]
    failed = b == FAILED
    odds = -1.6 + 2.6 * k["charm"] * (1.0 - 0.8 * k["forward"]) - 0.6 * k["light"] + 0.3 * k["t"]
    high, low = Normal(0.6 + 0.8 * k["charm"], 1.2), Normal(-2.9 - 0.1 * np.clip(_logit(b), -9, 9), 1.2)
    scores = TwoNormals(0.02 + 0.96 * expit(odds), high, low)
    return Atom(failed.astype(np.float64), FAILED, Expit(scores, 0.0, np.where(failed, 1.0, 1.0 - b)))


def _deep_b(k: Columns) -> Conditional:
    failed = k["Jet_btagDeepFlavB"] == FAILED
    other = np.clip(_logit(k["Jet_btagDeepFlavB"]), -7.0, 7.0)
    scores = TwoNormals(
        0.85, Normal(-0.35 + 0.72 * other, 0.85), Normal(-1.5 + 2.0 * k["b"] + 0.2 * other, 1.5)
    )
    return Atom(np.where(failed, 0.97, 0.004 + 0.1 * k["lost"]), FAILED, Expit(scores))


def _deep_c(k: Columns) -> Conditional:
    b = k["Jet_btagDeepB"]
    other = np.clip(_logit(k["Jet_btagDeepFlavC"]), -7.0, 7.0)
    scores = Normal(-0.5 + 0.55 * other - 0.12 * np.clip(_logit(b), -7.0, 7.0) + 0.4 * k["charm"], 0.8)
    return Atom((b == FAILED).astype(np.float64), FAILED, Expit(scores))


def _csv(k: Columns) -> Conditional:
    b = k["Jet_btagDeepB"]
    scores = Normal(0.55 + 0.6 * np.clip(_logit(b), -7.0, 7.0) + 0.3 * k["b"], 0.9)
    return Atom((b == FAILED).astype(np.float64), FAILED, Expit(scores))


def _cmva(k: Columns) -> Conditional:
    csv = k["Jet_btagCSVV2"]
    muon = 1.2 * (k["Jet_muEF"] > 0) * (0.3 + k["b"])  # it knows of soft muons
    high = Normal(-1.0 + 0.8 * np.clip(_logit(csv), -6.0, 6.0) + muon, 0.7)
    scores = TwoNormals(0.8, high, Normal(-1.2 + muon, 0.9))
    return Atom(np.where(csv == FAILED, 0.6, 0.003), FAILED, Expit(scores, -1.0, 1.0))


def _b_regression(k: Columns) -> Conditional:
    b_like = expit(np.clip(_logit(k["Jet_btagDeepFlavB"]), -7.0, 7.0))
    centre = 0.02 + 0.05 * b_like + 0.22 * np.sqrt(k["Jet_muEF"]) - 0.30 * np.clip(_log_pt_ratio(k), -1, 1)
    return Exp(Johnson(centre, 0.035 + 0.02 * k["b"] - 0.01 * k["t"], tail=1.7, skew=-0.2))


def _pile_up_id(k: Columns) -> Conditional:
    """Four working points, as bits: fail, loose, medium, tight; harder jets always pass all."""
    soft = -np.tanh(1.5 * (k["log_pt"] + 0.2))
    wide = np.clip(np.abs(np.log(k["Jet_area"] / 0.503)), 0.0, 1.0) + 0.4 * k["forward"]
    real = -2.2 - 1.2 * soft
    zero = np.zeros_like(soft)
    return Choice(
        (0, 4, 6, 7), np.stack([real + 2.0 * wide * (1 + soft), real - 0.3 + wide, real + 0.3, zero])
    )


def _jet_id(k: Columns) -> Conditional:
    """Fail, tight, tight with lepton veto: muons and lonely constituents spoil it."""
    lonely = (k["Jet_nConstituents"] < 2.5).astype(np.float64)
    muonic = 8.0 * (k["Jet_muEF"] - 0.8)
    zero = np.zeros_like(lonely)
    fail = -5.0 + 3.5 * lonely + 0.8 * k["forward"]
    return Choice((0, 2, 6), np.stack([fail, -4.0 + np.maximum(muonic, -1.0) + k["forward"], zero]))


_STEPS: tuple[tuple[str, Step], ...] = (
    ("Jet_ptRatio", _pt_ratio),
    ("Jet_etaMinusGen", _eta_minus_gen),
    ("Jet_phiMinusGen", _phi_minus_gen),
    ("Jet_area", _area),
    ("Jet_nConstituents", _constituents),
    ("Jet_massRatio", _mass_ratio),
    ("Jet_qgl", _qgl),
    ("Jet_muEF", _muon_fraction),
    ("Jet_btagDeepFlavB", _deep_flavour_b),
    ("Jet_btagDeepFlavC", _deep_flavour_c),
    ("Jet_btagDeepB", _deep_b),
    ("Jet_btagDeepC", _deep_c),
    ("Jet_btagCSVV2", _csv),
    ("Jet_btagCMVA", _cmva),
    ("Jet_bRegCorr", _b_regression),
    ("Jet_puId", _pile_up_id),
    ("Jet_jetId", _jet_id),
)

JETS = Chain(CONTEXT, TARGETS, _features, _STEPS)
"""The response of the detector to a jet: p(17 targets | 14 context columns)."""
