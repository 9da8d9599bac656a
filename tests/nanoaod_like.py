"""Small files like NanoAOD, made from scratch: events as lists of dicts, and writers of TTrees and RNTuples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

Event = dict[str, Any]

_V9 = "area btagCSVV2 btagDeepB btagDeepCvL btagDeepFlavB btagDeepFlavCvL bRegCorr qgl muEF nConstituents puId jetId"
_V15 = (
    "area btagDeepFlavB btagDeepFlavCvL btagPNetB btagPNetCvL btagPNetQvG btagUParTAK4B PNetRegPtRawCorr muEF "
    "nConstituents puIdDisc"
)
JET_BRANCHES = {"v9": _V9.split(), "v15": _V15.split()}
_MUON = (
    "dxy dxyErr dz dzErr ip3d isGlobal isPFcand isTracker jetPtRelv2 jetRelIso mediumId pfRelIso03_all "
    "pfRelIso03_chg pfRelIso04_all ptErr sip3d softId softMva softMvaId"
)
MUON_BRANCHES = _MUON.split()
_INTEGER = {"nConstituents", "puId", "jetId", "genJetIdx", "genPartIdx", "pdgId", "statusFlags", "status"}
_INTEGER |= {"partonFlavour", "hadronFlavour"}
_FLAG = {"isGlobal", "isPFcand", "isTracker", "mediumId", "softId", "softMvaId"}
PILE_UP = ("gpudensity", "nPU", "nTrueInt", "pudensity", "sumEOOT", "sumLOOT")


def make_events(n: int, seed: int = 0, production: str = "v9") -> list[Event]:
    """Make events: some without jets, jets without partners, partners that were not kept, muons of all kinds."""
    rng = np.random.default_rng(seed)
    events = []
    for number in range(n):
        gen_jets = [_object(rng, pt=15) for _ in range(rng.poisson(3))]
        for jet in gen_jets:
            jet |= {
                "partonFlavour": int(rng.choice([-5, 0, 4, 21])),
                "hadronFlavour": int(rng.choice([0, 4, 5])),
            }
        particles = []
        for jet in gen_jets:
            for _ in range(rng.integers(0, 4)):
                near = {"eta": jet["eta"] + 0.2 * rng.normal(), "phi": _wrap(jet["phi"] + 0.2 * rng.normal())}
                particles.append(_object(rng, pt=4) | near | _identity(rng))
        particles += [_object(rng, pt=30) | _identity(rng) for _ in range(rng.integers(0, 3))]
        jets = [_smeared(rng, gen) | {"genJetIdx": i} for i, gen in enumerate(gen_jets) if rng.random() < 0.8]
        jets += [_object(rng, pt=20) | {"genJetIdx": int(rng.choice([-1, len(gen_jets) + 1]))}]
        muons = [
            _smeared(rng, particle, 0.01) | {"genPartIdx": i}
            for i, particle in enumerate(particles)
            if abs(particle["pdgId"]) == 13 and rng.random() < 0.7
        ]
        muons += [_object(rng, pt=3) | {"genPartIdx": -1}] if rng.random() < 0.3 else []
        if rng.random() < 0.1:
            gen_jets, jets, particles, muons = [], [], [], []
        for jet in jets:
            jet |= {name: _value(rng, name) for name in JET_BRANCHES[production]}
        for muon in muons:
            muon |= {name: _value(rng, name) for name in MUON_BRANCHES}
        events.append(
            {
                "run": 1,
                "luminosityBlock": 1 + number // 100,
                "event": 1000 + number,
                "genWeight": float(rng.choice([-1.0, 1.0])),
                **{f"Pileup_{name}": float(rng.integers(10, 60)) for name in PILE_UP},
                "GenJet": gen_jets,
                "GenPart": particles,
                "Jet": jets,
                "Muon": muons,
            }
        )
    return events


def _object(rng: np.random.Generator, pt: float) -> dict[str, float]:
    pt = pt * (1 + rng.exponential())
    return {"pt": pt, "eta": 1.5 * rng.normal(), "phi": math.pi * (2 * rng.random() - 1), "mass": 0.1 * pt}


def _smeared(rng: np.random.Generator, gen: dict[str, float], width: float = 0.1) -> dict[str, float]:
    out = {q: gen[q] * (1 + width * rng.normal()) for q in ("pt", "mass")}
    out["eta"] = gen["eta"] + 0.1 * width * rng.normal()
    return out | {"phi": _wrap(gen["phi"] + 0.1 * width * rng.normal())}


def _identity(rng: np.random.Generator) -> dict[str, int]:
    # Bit 13 is isLastCopy.
    return {
        "pdgId": int(rng.choice([13, -13, 11, 22, 211])),
        "statusFlags": int(rng.integers(0, 1 << 13)) | (1 << 13 if rng.random() < 0.7 else 0),
        "status": 1,
    }


def _value(rng: np.random.Generator, name: str) -> float | int | bool:
    if name in _FLAG:
        return bool(rng.random() < 0.7)
    if name in _INTEGER:
        return int(rng.choice([0, 4, 6, 7]))
    return -1.0 if rng.random() < 0.1 else float(rng.random())


def _wrap(phi: float) -> float:
    return (phi + math.pi) % (2 * math.pi) - math.pi


def columns(events: list[Event], production: str = "v9", drop: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return awkward and numpy arrays a branch, typed as NanoAOD has them."""
    collections = {
        "GenJet": ["pt", "eta", "phi", "mass", "partonFlavour", "hadronFlavour"],
        "GenPart": ["pt", "eta", "phi", "mass", "pdgId", "statusFlags", "status"],
        "Jet": ["pt", "eta", "phi", "mass", "genJetIdx", *JET_BRANCHES[production]],
        "Muon": ["pt", "eta", "phi", "mass", "genPartIdx", *MUON_BRANCHES],
    }
    out: dict[str, Any] = {
        "run": np.array([e["run"] for e in events], dtype=np.uint32),
        "luminosityBlock": np.array([e["luminosityBlock"] for e in events], dtype=np.uint32),
        "event": np.array([e["event"] for e in events], dtype=np.uint64),
        "genWeight": np.array([e["genWeight"] for e in events], dtype=np.float32),
    }
    for name in PILE_UP:
        kind = np.int32 if name in ("nPU", "sumEOOT", "sumLOOT") else np.float32
        out[f"Pileup_{name}"] = np.array([e[f"Pileup_{name}"] for e in events], dtype=kind)
    for collection, quantities in collections.items():
        counts = np.array([len(e[collection]) for e in events], dtype=np.int64)
        for quantity in quantities:
            kind = np.int32 if quantity in _INTEGER else bool if quantity in _FLAG else np.float32
            flat = np.array([o[quantity] for e in events for o in e[collection]], dtype=kind)
            out[f"{collection}_{quantity}"] = ak.unflatten(flat, counts)
    return {name: values for name, values in out.items() if not name.startswith(drop)} if drop else out


def write_events(
    path: Path,
    events: list[Event],
    production: str = "v9",
    *,
    rntuple: bool = False,
    drop: tuple[str, ...] = (),
    **replaced: Any,
) -> list[Event]:
    """Write events to a ROOT file, as a TTree or an RNTuple; branches that start with one of ``drop`` are left out."""
    table = columns(events, production, drop) | replaced
    with uproot.recreate(path) as file:
        if rntuple:
            file.mkrntuple("Events", table)
        else:
            types = {
                name: v.dtype if isinstance(v, np.ndarray) else ak.type(v).content
                for name, v in table.items()
            }
            tree = file.mktree("Events", types)
            if events:
                tree.extend(table)
    return events
