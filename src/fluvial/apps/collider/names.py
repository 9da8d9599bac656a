"""What is read from NanoAOD for each object, under which names, in productions from v9 to v15: the one place.

A pair is a reconstructed object with the generator-level object it is matched to. Its context and targets are those of
FlashSim (Vaselli, Rizzi, Cattafesta, Cicconofri 2023, CMS NOTE-2023/003), under the names of the branches they come
from; ``GenMuon`` is the generator particle of a muon, ``ClosestMuon`` and ``ClosestJet`` what is found near it at
generator level.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fluvial.apps.collider.conditionals import Array
from fluvial.apps.collider.jets import NO_MUON
from fluvial.apps.collider.muons import NO_JET, STATUS_FLAGS
from fluvial.errors import DataError, nearest

NEAR = 0.4
"""How close, in ΔR = √(Δη² + Δφ²), is near."""

LEAST_MASS = 1e-4
"""The mass in GeV of generator jets without one: files hold 0, and rounding as far as −1e-6, of jets of one photon."""

COINCIDENT = 1e-6
"""The ΔR of objects in one place: far below what the directions in a file resolve, and not 0, which has no logarithm."""

LAST_COPY = 1 << STATUS_FLAGS.index("isLastCopy")


@dataclass(frozen=True)
class Relation:
    """A target that relates a reconstructed quantity to the generator-level one: both directions in one place."""

    target: str
    reconstructed: str
    generated: str
    kind: Literal["difference", "angle", "ratio"]

    def of(self, reconstructed: Array, generated: Array) -> Array:
        """Return the target."""
        if self.kind == "ratio":
            return reconstructed / generated
        difference = reconstructed - generated
        return wrapped(difference) if self.kind == "angle" else difference

    def inverse(self, target: Array, generated: Array) -> Array:
        """Return the reconstructed quantity.

        >>> phi = Relation("Jet_phiMinusGen", "Jet_phi", "GenJet_phi", "angle")
        >>> phi.inverse(phi.of(np.array([3.1]), np.array([-3.1])), np.array([-3.1])).round(6)
        array([3.1])
        """
        if self.kind == "ratio":
            return target * generated
        total = target + generated
        return wrapped(total) if self.kind == "angle" else total


@dataclass(frozen=True)
class Near:
    """Context columns of the closest (``rank`` 0) or next closest (1) object of another kind, and what they hold
    where there is none."""

    prefix: str
    rank: int
    nothing: Mapping[str, float]

    @property
    def names(self) -> list[str]:
        """The columns, in order."""
        return [f"{self.prefix}_{quantity}" for quantity in self.nothing]


@dataclass(frozen=True)
class Object:
    """A kind of reconstructed object and how its pairs are read.

    ``targets`` holds for each target the branches that may provide it: the original, then its successors in later
    productions, of which the first that a file has is taken, and names the column.
    """

    name: str  # as on the command line
    collection: str  # of reconstructed objects
    index: str  # the branch that points at the generator-level partner
    generated: str  # the collection that it points into
    alias: str  # how columns of the partner are called
    context: tuple[str, ...]  # of the partner, straight from the branches
    near: tuple[Near, ...]
    relations: tuple[Relation, ...]
    targets: tuple[tuple[str, ...], ...]
    event_context: tuple[str, ...] = ()  # one value an event


JET = Object(
    name="jet",
    collection="Jet",
    index="Jet_genJetIdx",
    generated="GenJet",
    alias="GenJet",
    context=("eta", "mass", "phi", "pt", "partonFlavour", "hadronFlavour"),
    near=(Near("ClosestMuon", 0, NO_MUON), Near("SecondClosestMuon", 1, NO_MUON)),
    relations=(
        Relation("Jet_etaMinusGen", "Jet_eta", "GenJet_eta", "difference"),
        Relation("Jet_massRatio", "Jet_mass", "GenJet_mass", "ratio"),
        Relation("Jet_phiMinusGen", "Jet_phi", "GenJet_phi", "angle"),
        Relation("Jet_ptRatio", "Jet_pt", "GenJet_pt", "ratio"),
    ),
    targets=(
        ("Jet_area",),
        ("Jet_btagCMVA",),
        ("Jet_btagCSVV2", "Jet_btagRobustParTAK4B", "Jet_btagUParTAK4B"),
        ("Jet_btagDeepB", "Jet_btagPNetB"),
        ("Jet_btagDeepC", "Jet_btagDeepCvL", "Jet_btagPNetCvL", "Jet_btagUParTAK4CvL"),
        ("Jet_btagDeepFlavB",),
        ("Jet_btagDeepFlavC", "Jet_btagDeepFlavCvL"),
        ("Jet_etaMinusGen",),
        ("Jet_bRegCorr", "Jet_PNetRegPtRawCorr", "Jet_UParTAK4RegPtRawCorr"),
        ("Jet_massRatio",),
        ("Jet_nConstituents",),
        ("Jet_phiMinusGen",),
        ("Jet_ptRatio",),
        ("Jet_qgl", "Jet_btagPNetQvG", "Jet_btagUParTAK4QvG"),
        ("Jet_muEF",),
        ("Jet_puId", "Jet_puIdDisc"),
        ("Jet_jetId",),
    ),
)
"""Jets: 14 context columns, 17 targets."""

MUON = Object(
    name="muon",
    collection="Muon",
    index="Muon_genPartIdx",
    generated="GenPart",
    alias="GenMuon",
    context=("eta", "phi", "pt"),
    near=(Near("ClosestJet", 0, NO_JET),),
    relations=(
        Relation("Muon_etaMinusGen", "Muon_eta", "GenMuon_eta", "difference"),
        Relation("Muon_phiMinusGen", "Muon_phi", "GenMuon_phi", "angle"),
        Relation("Muon_ptRatio", "Muon_pt", "GenMuon_pt", "ratio"),
    ),
    targets=(
        *(("Muon_etaMinusGen",), ("Muon_phiMinusGen",), ("Muon_ptRatio",)),
        *(("Muon_dxy",), ("Muon_dxyErr",), ("Muon_dz",), ("Muon_dzErr",), ("Muon_ip3d",)),
        *(("Muon_isGlobal",), ("Muon_isPFcand",), ("Muon_isTracker",)),
        *(("Muon_jetPtRelv2",), ("Muon_jetRelIso",), ("Muon_mediumId",)),
        *(("Muon_pfRelIso03_all",), ("Muon_pfRelIso03_chg",), ("Muon_pfRelIso04_all",)),
        *(("Muon_ptErr",), ("Muon_sip3d",), ("Muon_softId",)),
        *(("Muon_softMva", "Muon_softMvaRun3"), ("Muon_softMvaId",)),
    ),
    event_context=(
        *("Pileup_gpudensity", "Pileup_nPU", "Pileup_nTrueInt", "Pileup_pudensity"),
        *("Pileup_sumEOOT", "Pileup_sumLOOT"),
    ),
)
"""Muons: 30 context columns, 22 targets."""

OBJECTS: Mapping[str, Object] = {o.name: o for o in (JET, MUON)}


def object_named(name: str) -> Object:
    """Return the kind of object of that name.

    Raises
    ------
    DataError
        If there is none.
    """
    if name not in OBJECTS:
        raise DataError(f"no object {name!r}{nearest(name, OBJECTS)}")
    return OBJECTS[name]


def choose(wanted: Object, branches: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Return the column that stands for each target in a production, and the targets that it has nothing for.

    >>> found, missing = choose(JET, {"Jet_area", "Jet_qgl", "Jet_btagPNetB", "Jet_pt"})
    >>> found["Jet_btagDeepB"], found["Jet_ptRatio"], "Jet_puId" in missing
    ('Jet_btagPNetB', 'Jet_ptRatio', True)
    """
    derived = {r.target: r.reconstructed for r in wanted.relations}
    found: dict[str, str] = {}
    for alternatives in wanted.targets:
        for name in alternatives:
            if derived.get(name, name) in branches:
                found[alternatives[0]] = name
                break
    return found, [names[0] for names in wanted.targets if names[0] not in found]


def wrapped(angle: Array) -> Array:
    """Return an angle in radians brought to [−π, π).

    >>> wrapped(np.array([3.5, -3.5, 0.0])).round(4)
    array([-2.7832,  2.7832,  0.    ])
    """
    return (angle + np.pi) % (2 * np.pi) - np.pi
