r"""Muons: a generator-level spectrum like that of top-quark pairs, and a detector response known exactly.

**The numbers here are invented.** They have the shape of a CMS simulation (names, units, flags, isolation with an
atom at zero, correlations; see :mod:`fluvial.apps.collider.simulator`) but describe no detector.

The context is drawn by :func:`draw_context`; the response is the chain :data:`MUONS`, step by step below. Half of
the muons are prompt (of W bosons, some through tau leptons), the others of heavy hadrons: softer, displaced, and
inside jets. Lengths are in cm.
"""

from __future__ import annotations

import math

import numpy as np

from fluvial.apps.collider.chain import Chain, Columns, Step, Table, Variable, stored
from fluvial.apps.collider.conditionals import (
    Array,
    Atom,
    Conditional,
    Exp,
    Expit,
    Johnson,
    Normal,
    TwoNormals,
    expit,
    yes_or_no,
)

NO_JET = {"dr": 0.5, "deta": 0.5, "dphi": 0.5, "pt": 0.0, "mass": 0.0}
"""What the jet columns hold where there is no generator jet within 0.4 of the muon."""

STATUS_FLAGS: tuple[str, ...] = (
    *("isPrompt", "isDecayedLeptonHadron", "isTauDecayProduct", "isPromptTauDecayProduct"),
    *("isDirectTauDecayProduct", "isDirectPromptTauDecayProduct", "isDirectHadronDecayProduct"),
    *("isHardProcess", "fromHardProcess", "isHardProcessTauDecayProduct"),
    *("isDirectHardProcessTauDecayProduct", "fromHardProcessBeforeFSR", "isFirstCopy", "isLastCopy"),
    "isLastCopyBeforeFSR",
)
"""What the bits of ``GenPart_statusFlags`` mean, the lowest first."""

CONTEXT: tuple[Variable, ...] = (
    Variable("GenMuon_eta", "continuous", "1", -6.0, 6.0),
    Variable("GenMuon_phi", "continuous", "rad", -3.1415928, 3.1415928),  # π as a float32 is above π
    Variable("GenMuon_pt", "continuous", "GeV", 0.0),
    Variable("GenMuon_charge", "integer", "e", -1, 1, (-1, 1)),
    *(Variable(f"GenPart_statusFlags{bit}", "integer", "1", 0, 1) for bit in range(len(STATUS_FLAGS))),
    Variable("ClosestJet_dr", "mixed", "1", 0.0, 0.4, (NO_JET["dr"],)),
    Variable("ClosestJet_deta", "mixed", "1", -0.4, 0.4, (NO_JET["deta"],)),
    Variable("ClosestJet_dphi", "mixed", "rad", -0.4, 0.4, (NO_JET["dphi"],)),
    Variable("ClosestJet_pt", "mixed", "GeV", 0.0, math.inf, (NO_JET["pt"],)),
    Variable("ClosestJet_mass", "mixed", "GeV", 0.0, math.inf, (NO_JET["mass"],)),
    Variable("Pileup_gpudensity", "continuous", "1/cm", 0.0),
    Variable("Pileup_nPU", "integer", "1", 0, 10_000),
    Variable("Pileup_nTrueInt", "continuous", "1", 0.0),
    Variable("Pileup_pudensity", "continuous", "1/cm", 0.0),
    Variable("Pileup_sumEOOT", "integer", "1", 0, 100_000),
    Variable("Pileup_sumLOOT", "integer", "1", 0, 100_000),
)
"""The 30 context columns."""


def _flag(name: str) -> Variable:
    return Variable(f"Muon_{name}", "integer", "1", 0, 1)


TARGETS: tuple[Variable, ...] = (
    Variable("Muon_etaMinusGen"),
    Variable("Muon_phiMinusGen", "continuous", "rad"),
    Variable("Muon_ptRatio", lower=0.0),
    Variable("Muon_dxy", "continuous", "cm"),
    Variable("Muon_dxyErr", "continuous", "cm", 0.0),
    Variable("Muon_dz", "continuous", "cm"),
    Variable("Muon_dzErr", "continuous", "cm", 0.0),
    Variable("Muon_ip3d", "continuous", "cm", 0.0),
    _flag("isGlobal"),
    _flag("isPFcand"),
    _flag("isTracker"),
    Variable("Muon_jetPtRelv2", "mixed", "GeV", 0.0, math.inf, (0.0,)),
    Variable("Muon_jetRelIso", "continuous", "1", -0.08),
    _flag("mediumId"),
    Variable("Muon_pfRelIso03_all", "mixed", "1", 0.0, math.inf, (0.0,)),
    Variable("Muon_pfRelIso03_chg", "mixed", "1", 0.0, math.inf, (0.0,)),
    Variable("Muon_pfRelIso04_all", "mixed", "1", 0.0, math.inf, (0.0,)),
    Variable("Muon_ptErr", "continuous", "GeV", 0.0),
    Variable("Muon_sip3d", lower=0.0),
    _flag("softId"),
    Variable("Muon_softMva", "continuous", "1", -1.0, 1.0),
    _flag("softMvaId"),
)
"""The 22 targets."""


# ------------------------------------------------------------------------------------------- generator level


_SHARES = {
    "ttbar": (0.42, 0.08, 0.46),
    "dy": (0.88, 0.04, 0.06),
}  # of W or Z, tau, heavy hadron; the rest: others
_PROMPT = {"ttbar": (36.0, 0.6), "dy": (41.0, 0.35)}  # GeV above 3, and spread


def draw_context(rng: np.random.Generator, n: int, process: str = "ttbar") -> Table:
    """Draw ``n`` generator-level muons like those of top-quark pairs, or (``dy``) of Z bosons: most prompt and alone.

    Muons are above 3 GeV and within |eta| < 2.5.
    """
    kind = np.searchsorted(np.cumsum(_SHARES[process]), rng.random(n))
    of_prompt, width = _PROMPT[process]
    median, spread = np.array([of_prompt, 18.0, 5.0, 3.0])[kind], np.array([width, 0.7, 0.9, 0.8])[kind]
    pt = 3.0 + median * np.exp(spread * rng.standard_normal(n))
    reach = np.array([1.25, 1.25, 1.35, 1.9])[kind]
    values = {
        "GenMuon_eta": 2.5 * np.tanh(reach * rng.standard_normal(n) / 2.5),
        "GenMuon_phi": np.pi * (2.0 * rng.random(n) - 1.0),
        "GenMuon_pt": pt,
        "GenMuon_charge": np.where(rng.random(n) < 0.5, -1.0, 1.0),
        **_flags(kind, rng),
        **_jet(kind, pt, rng),
        **_pile_up(rng, n),
    }
    return {v.name: stored(values[v.name], v.kind) for v in CONTEXT}


# The chance of each status flag, for muons of W bosons, tau leptons, heavy hadrons, and others. Where several flags
# say one thing they are drawn from one random number: see the groups.
_FLAG_CHANCE = np.array(
    [
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.01, 1.0, 0.0, 0.0, 0.97, 0.55, 0.998, 0.55],
        [0.0, 0.0, 1.0, 0.92, 0.99, 0.91, 0.0, 0.0, 0.0, 0.91, 0.9, 0.0, 0.75, 0.998, 0.75],
        [0.0, 0.004, 0.0, 0.0, 0.0, 0.0, 0.97, 0.0, 0.0, 0.0, 0.0, 0.0, 0.9, 0.998, 0.9],
        [0.1, 0.02, 0.02, 0.0, 0.0, 0.0, 0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.8, 0.99, 0.8],
    ]
).T
_FLAG_GROUP = np.array([0, 1, 2, 3, 3, 3, 2, 4, 0, 3, 3, 5, 6, 7, 6])


def _flags(kind: np.ndarray, rng: np.random.Generator) -> Table:
    u = rng.random((8, kind.size))
    return {
        f"GenPart_statusFlags{bit}": (u[group] < chance[kind]).astype(np.float64)
        for bit, (chance, group) in enumerate(zip(_FLAG_CHANCE, _FLAG_GROUP, strict=True))
    }


def _jet(kind: np.ndarray, pt: Array, rng: np.random.Generator) -> Table:
    """The closest generator jet: of a prompt muon often the muon itself, for generator jets contain muons."""
    n = kind.size
    there = rng.random(n) < np.array([0.8, 0.75, 0.93, 0.45])[kind]
    scale = np.array([0.02, 0.03, 0.08, 0.15])[kind]
    dr = -scale * np.log1p(np.expm1(-0.399 / scale) * rng.random(n)) + 1e-5
    angle = 2 * np.pi * rng.random(n)
    more = np.array([0.06, 0.1, 2.6, 4.0])[kind] * np.exp(0.8 * rng.standard_normal(n))
    jet_pt = np.maximum(pt * (1.0 + more), 10.0 + rng.random(n))
    values = {
        "dr": dr,
        "deta": dr * np.cos(angle),
        "dphi": dr * np.sin(angle),
        "pt": jet_pt,
        "mass": jet_pt * np.exp(np.array([-4.0, -3.4, -2.0, -2.0])[kind] + 0.4 * rng.standard_normal(n)),
    }
    return {f"ClosestJet_{name}": np.where(there, value, NO_JET[name]) for name, value in values.items()}


def _pile_up(rng: np.random.Generator, n: int) -> Table:
    true = 2.0 + 31.0 * np.exp(0.32 * rng.standard_normal(n))
    number = np.maximum(np.rint(true + np.sqrt(true) * rng.standard_normal(n)), 0.0)
    density = number / 22.0 * np.exp(0.25 * rng.standard_normal(n)) + 0.02
    early, late = (np.rint(np.maximum(true * f + 9 * rng.standard_normal(n), 0.0)) for f in (6.0, 1.0))
    return {
        "Pileup_gpudensity": 0.9 * density * np.exp(0.05 * rng.standard_normal(n)),
        "Pileup_nPU": number,
        "Pileup_nTrueInt": true,
        "Pileup_pudensity": density,
        "Pileup_sumEOOT": early,
        "Pileup_sumLOOT": late,
    }


# ---------------------------------------------------------------------------------------------- the response


def _features(c: Columns) -> Table:
    """Work out, once a row, what the steps share."""
    pt, eta = c["GenMuon_pt"], np.abs(c["GenMuon_eta"])
    log_pt = np.log(pt / 20.0)
    prompt = np.maximum(c["GenPart_statusFlags0"], c["GenPart_statusFlags3"])
    near = (c["ClosestJet_dr"] < 0.4).astype(np.float64)
    return {
        "log_pt": log_pt,
        "t": np.tanh(0.7 * log_pt),
        "eta2": (eta / 2.4) ** 2,
        "prompt": prompt,
        "tau": c["GenPart_statusFlags2"],
        "crack": np.exp(-0.5 * ((eta - 0.25) / 0.1) ** 2),  # a gap between wheels of the muon system
        "resolution": np.hypot(0.009 + 0.012 * (eta / 2.4) ** 2, 1.6e-4 * pt),
        "angle": 2.0e-4 + 3.0e-3 / pt,
        # What the jet has beside the muon, relative to the muon.
        "around": near * np.clip(c["ClosestJet_pt"] / pt - 1.0, 0.0, 20.0),
        "near": near,
        "dr": np.minimum(c["ClosestJet_dr"], 0.4),
        "pile_up": (c["Pileup_nPU"] - 33.0) / 12.0,
        "density": np.log(c["Pileup_pudensity"] / 1.5),
    }


def _is_global(k: Columns) -> Conditional:
    return yes_or_no(2.6 + 2.0 * k["t"] - 0.8 * k["eta2"] - 1.0 * k["crack"] + 0.6 * k["prompt"])


def _is_tracker(k: Columns) -> Conditional:
    return yes_or_no(3.0 + 2.2 * k["Muon_isGlobal"] - 0.8 * k["crack"] + 0.5 * k["t"])


def _is_pf(k: Columns) -> Conditional:
    odds = -1.2 + 3.2 * k["Muon_isGlobal"] + 2.0 * k["Muon_isTracker"] + 0.7 * k["prompt"] + 0.5 * k["t"]
    return yes_or_no(odds)


def _pt_ratio(k: Columns) -> Conditional:
    bias = 0.0008 * k["GenMuon_charge"] * k["log_pt"] - 0.001 * k["eta2"]
    width = k["resolution"] * (1.0 + 0.7 * (1 - k["Muon_isGlobal"]) + 0.15 * (1 - k["prompt"]))
    return Exp(Johnson(bias, width, tail=1.35, skew=0.05))


def _eta_minus_gen(k: Columns) -> Conditional:
    pull = np.minimum(np.abs(np.log(k["Muon_ptRatio"])) / k["resolution"], 6.0)
    return Johnson(0.0, k["angle"] * (0.85 + 0.12 * pull), tail=1.5)


def _phi_minus_gen(k: Columns) -> Conditional:
    curved = k["GenMuon_charge"] * np.clip(np.log(k["Muon_ptRatio"]) / k["resolution"], -6.0, 6.0)
    return Johnson(-0.3 * k["angle"] * curved, 0.8 * k["angle"] * (1.0 + 0.2 * k["eta2"]), tail=1.5)


def _pt_error(k: Columns) -> Conditional:
    pt = k["GenMuon_pt"] * k["Muon_ptRatio"]
    pull = np.minimum(np.abs(np.log(k["Muon_ptRatio"])) / k["resolution"], 8.0)
    centre = np.log(pt * k["resolution"]) + 0.05 * pull + 0.25 * (1 - k["Muon_isGlobal"])
    return Exp(Johnson(centre, 0.10 + 0.03 * k["eta2"], tail=1.4, skew=-0.3))


def _dxy_error(k: Columns) -> Conditional:
    centre = np.log(0.0011 + 0.02 / k["GenMuon_pt"] * (1.0 + 0.8 * k["eta2"]))
    return Exp(Johnson(centre + 0.2 * (1 - k["Muon_isGlobal"]), 0.14, tail=1.4, skew=-0.35))


def _dz_error(k: Columns) -> Conditional:
    centre = 0.7 * np.log(k["Muon_dxyErr"]) - 1.2 + 1.4 * k["eta2"]
    return Exp(Johnson(centre, 0.12, tail=1.5, skew=-0.25))


def _dxy(k: Columns) -> Conditional:
    flight = (1 - k["prompt"]) * (0.018 - 0.008 * k["tau"])
    return Johnson(0.0, np.hypot(1.05 * k["Muon_dxyErr"], flight), tail=1.7 - 0.6 * (1 - k["prompt"]))


def _dz(k: Columns) -> Conditional:
    transverse = 0.7 * np.minimum(np.abs(k["Muon_dxy"]), 0.5) * (1 - 0.8 * k["prompt"])
    width = np.hypot(np.hypot(1.1 * k["Muon_dzErr"], 0.0015), transverse) * (1.0 + 0.06 * k["density"])
    return Johnson(0.0, width, tail=1.15)


def _ip3d(k: Columns) -> Conditional:
    length = np.hypot(np.hypot(k["Muon_dxy"], 0.9 * k["Muon_dz"]), 0.15 * k["Muon_dxyErr"])
    return Exp(Johnson(np.log(length), 0.10, tail=1.2, skew=0.2))


def _sip3d(k: Columns) -> Conditional:
    error = np.hypot(k["Muon_dxyErr"], 0.35 * k["Muon_dzErr"])
    return Exp(Johnson(np.log(k["Muon_ip3d"] / error), 0.12, tail=1.4))


def _isolation_charged(k: Columns) -> Conditional:
    busy = np.log1p(k["around"])
    nothing = expit(0.9 + 0.7 * k["t"] - 2.6 * busy - 0.35 * k["pile_up"] - 0.9 * (1 - k["prompt"]))
    centre = -2.8 - 0.4 * k["log_pt"] + 1.1 * busy + 0.15 * k["pile_up"] + 0.7 * (1 - k["prompt"])
    return Atom(nothing, 0.0, Exp(Johnson(centre, 0.7, tail=2.5, skew=0.2)))


def _isolation(k: Columns) -> Conditional:
    charged = k["Muon_pfRelIso03_chg"]
    some = (charged > 0).astype(np.float64)
    nothing = expit(0.5 + 0.5 * k["t"] - 0.3 * k["pile_up"] - 4.5 * some)
    centre = np.log(charged + 0.03 * np.exp(-0.5 * k["log_pt"] + 0.15 * k["pile_up"])) + 0.25 * some
    return Atom(nothing, 0.0, Exp(Johnson(centre, 0.7 - 0.35 * some, tail=1.8, skew=-0.2)))


def _isolation_wide(k: Columns) -> Conditional:
    narrow = k["Muon_pfRelIso03_all"]
    some = (narrow > 0).astype(np.float64)
    nothing = expit(0.8 - 0.35 * k["pile_up"] - 5.0 * some)
    centre = np.log(narrow + 0.04 * np.exp(-0.5 * k["log_pt"])) + 0.18 * some
    return Atom(nothing, 0.0, Exp(Johnson(centre, 0.75 - 0.45 * some, tail=1.6, skew=-0.3)))


def _jet_isolation(k: Columns) -> Conditional:
    inside = np.where(k["near"] > 0, 0.9 * k["around"], k["Muon_pfRelIso04_all"])
    centre = np.log(0.08 + inside + 0.3 * k["Muon_pfRelIso04_all"])
    return Exp(Johnson(centre, 0.22 + 0.12 * (1 - k["near"]), tail=1.5), shift=0.08)


def _jet_pt_rel(k: Columns) -> Conditional:
    alone = expit(2.4 - 2.2 * k["near"] - 7.0 * np.minimum(k["Muon_jetRelIso"], 1.0) + 1.2 * k["prompt"])
    centre = 0.4 + 0.7 * np.log(k["dr"] + 0.01) + 0.9 * k["log_pt"] + 1.5 * (1 - k["prompt"])
    return Atom(alone, 0.0, Exp(Johnson(centre, 0.55, tail=1.8, skew=0.25)))


def _soft_mva(k: Columns) -> Conditional:
    quality = 2.2 * k["Muon_isGlobal"] + 1.2 * k["Muon_isTracker"] + 0.6 * k["Muon_isPFcand"] - 2.6
    share = 0.03 + 0.94 * expit(quality - 0.5 * k["crack"] + 0.4 * k["t"])
    return Expit(TwoNormals(share, Normal(1.5 + 0.5 * k["t"], 0.9), Normal(-2.2, 1.1)), -1.0, 1.0)


def _soft_mva_id(k: Columns) -> Conditional:
    return yes_or_no(14.0 * (k["Muon_softMva"] - 0.35) - 2.0 * (1 - k["Muon_isGlobal"]))


def _soft_id(k: Columns) -> Conditional:
    far = np.log1p(np.abs(k["Muon_dxy"]) / 0.1)
    return yes_or_no(1.5 + 2.5 * k["Muon_isTracker"] + 1.5 * k["Muon_softMva"] - 1.5 * far)


def _medium_id(k: Columns) -> Conditional:
    good = 2.5 * k["Muon_isPFcand"] + 1.6 * k["Muon_isGlobal"] + 0.8 * k["Muon_softMva"]
    return yes_or_no(-2.2 + good + 0.8 * k["Muon_softMvaId"] + 0.3 * k["prompt"])


_STEPS: tuple[tuple[str, Step], ...] = (
    ("Muon_isGlobal", _is_global),
    ("Muon_isTracker", _is_tracker),
    ("Muon_isPFcand", _is_pf),
    ("Muon_ptRatio", _pt_ratio),
    ("Muon_etaMinusGen", _eta_minus_gen),
    ("Muon_phiMinusGen", _phi_minus_gen),
    ("Muon_ptErr", _pt_error),
    ("Muon_dxyErr", _dxy_error),
    ("Muon_dzErr", _dz_error),
    ("Muon_dxy", _dxy),
    ("Muon_dz", _dz),
    ("Muon_ip3d", _ip3d),
    ("Muon_sip3d", _sip3d),
    ("Muon_pfRelIso03_chg", _isolation_charged),
    ("Muon_pfRelIso03_all", _isolation),
    ("Muon_pfRelIso04_all", _isolation_wide),
    ("Muon_jetRelIso", _jet_isolation),
    ("Muon_jetPtRelv2", _jet_pt_rel),
    ("Muon_softMva", _soft_mva),
    ("Muon_softMvaId", _soft_mva_id),
    ("Muon_softId", _soft_id),
    ("Muon_mediumId", _medium_id),
)

MUONS = Chain(CONTEXT, TARGETS, _features, _STEPS)
"""The response of the detector to a muon: p(22 targets | 30 context columns)."""
