"""Matched pairs of one piece of events: which object belongs to which, what is near, and their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluvial.apps.collider.muons import STATUS_FLAGS
from fluvial.apps.collider.names import COINCIDENT, JET, LAST_COPY, LEAST_MASS, NEAR, Near, Object, wrapped
from fluvial.apps.collider.nanoaod import Piece, Whole

Columns = dict[str, NDArray[Any]]
EVENT = ("run", "luminosityBlock", "event")
"""What names an event."""


def branches_of_context(wanted: Object) -> list[str]:
    """Return every branch that the context needs, those that name the event too."""
    neighbours = {
        "jet": ["GenPart_eta", "GenPart_phi", "GenPart_pt", "GenPart_pdgId", "GenPart_statusFlags"],
        "muon": [
            "GenJet_eta",
            "GenJet_phi",
            "GenJet_pt",
            "GenJet_mass",
            "GenPart_pdgId",
            "GenPart_statusFlags",
        ],
    }[wanted.name]
    own = [f"{wanted.generated}_{quantity}" for quantity in wanted.context]
    return [*EVENT, *own, *neighbours, *wanted.event_context]


def branches_of_targets(wanted: Object, columns: Mapping[str, str]) -> list[str]:
    """Return every branch that the chosen target columns need, the matching too."""
    derived = {r.target: r.reconstructed for r in wanted.relations}
    return [wanted.index, *(derived.get(name, name) for name in columns.values())]


def partners(piece: Piece, wanted: Object) -> tuple[Whole, Whole, Whole]:
    """Return the matched pairs: event, reconstructed object and generator-level object (both as flat indices).

    An index below zero means no partner. One beyond the collection means a partner that the production did not keep
    (such as a generator jet below 10 GeV): no pair either.
    """
    event = piece.event_of(wanted.collection)
    index = piece.values[wanted.index].astype(np.int64)
    matched = (index >= 0) & (index < piece.counts[wanted.generated][event])
    reconstructed = np.flatnonzero(matched)
    event = event[matched]
    generated = piece.offsets(wanted.generated)[event] + index[matched]
    if wanted is not JET:
        muon = np.abs(piece.values["GenPart_pdgId"][generated]) == 13
        event, reconstructed, generated = event[muon], reconstructed[muon], generated[muon]
    return event, reconstructed, generated


def context_columns(piece: Piece, wanted: Object, event: Whole, generated: Whole) -> Columns:
    """Return the context of generator-level objects, in FlashSim's order."""
    values = piece.values
    own: Columns = {
        f"{wanted.alias}_{quantity}": _massive(quantity, values[f"{wanted.generated}_{quantity}"][generated])
        for quantity in wanted.context
    }
    near = _near_columns(piece, wanted, event, generated)
    if wanted is JET:
        return {**near, **own}
    # The muon has pdgId 13 and negative charge; its antiparticle −13 and positive.
    own["GenMuon_charge"] = -np.sign(values["GenPart_pdgId"][generated]).astype(np.int32)
    flags = values["GenPart_statusFlags"][generated].astype(np.int64)
    for bit in range(len(STATUS_FLAGS)):
        own[f"GenPart_statusFlags{bit}"] = (flags >> bit & 1).astype(np.int32)
    return {**own, **near, **{name: values[name][event] for name in wanted.event_context}}


def target_columns(
    piece: Piece, wanted: Object, columns: Mapping[str, str], reconstructed: Whole, context: Columns
) -> Columns:
    """Return the target columns of reconstructed objects whose partners have that context."""
    relations = {r.target: r for r in wanted.relations}
    out: Columns = {}
    for name in columns.values():
        if (relation := relations.get(name)) is None:
            out[name] = piece.values[name][reconstructed]
            continue
        both = (piece.values[relation.reconstructed][reconstructed], context[relation.generated])
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # a massless partner: such pairs are left out later
            out[name] = relation.of(*(v.astype(np.float64) for v in both))
    return out


def _near_columns(piece: Piece, wanted: Object, event: Whole, generated: Whole) -> Columns:
    values = piece.values
    if wanted is JET:
        flags, pdg = values["GenPart_statusFlags"].astype(np.int64), values["GenPart_pdgId"]
        keep = np.flatnonzero((np.abs(pdg) == 13) & ((flags & LAST_COPY) > 0))
        collection = "GenPart"
    else:
        keep = np.arange(len(values["GenJet_pt"]))
        collection = "GenJet"
    # Events come in order, so the kept objects of an event are still together.
    number = np.bincount(piece.event_of(collection)[keep], minlength=piece.events)
    eta, phi = values[f"{wanted.generated}_eta"][generated], values[f"{wanted.generated}_phi"][generated]
    there = {q: values[f"{collection}_{q}"][keep] for q in ("eta", "phi")}
    outer, inner, deta, dphi = _close_pairs(event, eta, phi, number, there["eta"], there["phi"])
    pairs = {"dr": np.maximum(np.hypot(deta, dphi), COINCIDENT), "deta": deta, "dphi": dphi}
    for quantity in wanted.near[0].nothing.keys() - pairs.keys():
        pairs[quantity] = _massive(quantity, values[f"{collection}_{quantity}"][keep[inner]])
    out: Columns = {}
    for near in wanted.near:
        out.update(_columns_of(near, len(generated), outer, pairs))
    return out


def _massive(quantity: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return values as they are, masses from :data:`LEAST_MASS` on: a density of positive masses can take them."""
    return np.maximum(values, values.dtype.type(LEAST_MASS)) if quantity == "mass" else values


def _close_pairs(
    event: Whole,
    eta: NDArray[Any],
    phi: NDArray[Any],
    number: Whole,
    other_eta: NDArray[Any],
    other_phi: NDArray[Any],
) -> tuple[Whole, Whole, NDArray[np.float64], NDArray[np.float64]]:
    """Return all (object, other) of one event within ``NEAR``, by object, the closest first; Δ is object − other."""
    begin = np.cumsum(number) - number
    repeats = number[event]
    outer = np.repeat(np.arange(len(event)), repeats)
    within = np.arange(len(outer)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    inner = begin[event][outer] + within
    deta = eta[outer].astype(np.float64) - other_eta[inner]
    dphi = wrapped(phi[outer].astype(np.float64) - other_phi[inner])
    dr = np.hypot(deta, dphi)
    close = np.flatnonzero(dr.astype(np.float32) < np.float32(NEAR))  # as the columns hold it
    close = close[np.lexsort((dr[close], outer[close]))]
    return outer[close], inner[close], deta[close], dphi[close]


def _columns_of(near: Near, n: int, outer: Whole, pairs: Columns) -> Columns:
    """Return the columns of the closest or next closest object: the sentinels where there is none."""
    pair = np.searchsorted(outer, np.arange(n)) + near.rank
    found = np.flatnonzero(pair < np.searchsorted(outer, np.arange(n), side="right"))
    out: Columns = {}
    for quantity, nothing in near.nothing.items():
        column = np.full(n, nothing, dtype=np.float32)
        column[found] = pairs[quantity][pair[found]]
        out[f"{near.prefix}_{quantity}"] = column
    return out
