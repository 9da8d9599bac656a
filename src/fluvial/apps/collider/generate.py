"""Reconstructed jets and muons drawn for the generator-level events of NanoAOD files, written as NanoAOD.

Every generator jet gives one jet, and every stable generator muon (pdgId ±13, status 1) one muon: neither the
efficiency to find an object nor objects that correspond to nothing are simulated. Events without either are kept.

With ``oversample`` = N every event is written N times, one after the other, with objects drawn anew. Such copies share
``run``, ``luminosityBlock``, ``event`` and ``genEventIndex`` (the place of the event in its file); ``fold`` counts them
from 0, ``folds`` is N, and ``genWeight`` is divided by N, so that weighted sums stay right. Copies of one event are not
independent: :func:`fluvial.apps.collider.folds.histogram` works out statistical errors from the sums over the folds of
each event.

The random numbers of an object belong to the seed, the names of its event, its place in the event and the fold
(:mod:`fluvial.apps.collider.noise`): an event has the same objects in whatever file, company or order it comes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fluvial.apps.collider.names import JET, MUON, OBJECTS, Object
from fluvial.apps.collider.nanoaod import EXTRA, EventFile, Piece, Whole, open_events
from fluvial.apps.collider.noise import event_keys, uniforms
from fluvial.apps.collider.pairs import EVENT, Columns, branches_of_context, context_columns
from fluvial.errors import DataError, nearest
from fluvial.extras import optional_module

if TYPE_CHECKING:
    from fluvial.density import Density

LAYOUT = 1  # of the outputs; another number makes them anew
_READ = 16_384  # events read at once: less would unpack the same baskets again and again
_PIECE = 8_192  # events drawn and written at once, all folds together, but never less than one
_COPIED = ("GenJet_", "GenPart_", "Pileup_", "Generator_")
_MADE = "fluvial"  # what a file was made with, as JSON, lies under this name in it
_FLAGS = frozenset(
    f"Muon_{name}" for name in ("isGlobal", "isPFcand", "isTracker", "mediumId", "softId", "softMvaId")
)


@dataclass(frozen=True)
class Generated:
    """What became of one file: ``events`` read, ``objects`` written, and where the seconds went.

    ``outside`` counts, for each context column, the generator-level objects beyond what the density has been trained
    on: there its draws are a guess.
    """

    path: str
    out: str
    status: Literal["written", "kept", "failed"]
    events: int = 0
    objects: int = 0
    read_seconds: float = 0.0
    draw_seconds: float = 0.0
    write_seconds: float = 0.0
    outside: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        return self.read_seconds + self.draw_seconds + self.write_seconds


def generate(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    jets: Density | None = None,
    muons: Density | None = None,
    oversample: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    on_file: Callable[[Generated], None] | None = None,
    on_piece: Callable[[Generated, int], None] | None = None,
) -> list[Generated]:
    """Draw reconstructed objects for the events of NanoAOD files and write NanoAOD files.

    Parameters
    ----------
    files
        Paths (or URLs that uproot opens), each once.
    out
        For one file: the ROOT file to write. For many: a folder, made if needed, in which each output has the name
        of its input; outputs that the same call made are kept, so that it takes up where it stopped.
    jets, muons
        The densities to draw from, one at least; their columns are those of :mod:`fluvial.apps.collider.names`.
    oversample
        Copies of every event, see above.
    seed
        The same seed gives the same objects for the same event, see above.
    overwrite
        Draw anew what is there.
    on_file
        Called after each file.
    on_piece
        Called every few thousand events, with what has become of the file so far, and how many events it has.

    Raises
    ------
    DataError
        If the request cannot be met: no density, columns that no generator level gives, an output that exists.
        What is wrong with one file of many is in its result instead.
    """
    paths = [os.fspath(f) for f in files]
    out = Path(out)
    densities = [(o, d) for o, d in ((JET, jets), (MUON, muons)) if d is not None]
    _check_request(paths, densities, oversample)
    single = len(paths) == 1 and not out.is_dir()
    if single and out.suffix != ".root":
        raise DataError(f"expected an output that ends in .root; got {str(out)!r}")
    if single and not out.parent.is_dir():
        raise DataError(f"no folder {str(out.parent)!r} to write {out.name!r} into; create it first")
    if single and out.exists() and not overwrite:
        raise DataError(f"{out} exists; choose another output, or --overwrite")
    if not single:
        out.mkdir(parents=True, exist_ok=True)
    results = []
    made: dict[str, Any] = {"layout": LAYOUT, "seed": seed, "folds": oversample}
    made["densities"] = {wanted.name: _fingerprint(density) for wanted, density in densities}
    for path in paths:
        target = out if single else out / Path(path).name
        if target.exists() and "://" not in path and target.samefile(path):
            raise DataError(f"{target} would be written over itself; choose another output")
        of_file = made | {"source": _source(path)}
        if target.exists() and not overwrite:
            result = _kept(path, target, of_file)
        else:
            result = _one_file(path, target, densities, of_file, on_piece)
        if single and result.status == "failed":
            raise DataError(result.problem)
        results.append(result)
        if on_file is not None:
            on_file(result)
    return results


def _check_request(paths: list[str], densities: list[tuple[Object, Density]], oversample: int) -> None:
    if not paths:
        raise DataError("expected NanoAOD files; got none")
    names = [Path(p).name for p in paths]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise DataError(
            f"expected files of different names, for each names its output; found twice: {twice[0]}"
        )
    if not densities:
        raise DataError("expected a density of jets, of muons, or both; got none")
    if oversample < 1:
        raise DataError(f"expected oversample to be at least 1; got {oversample}")
    for wanted, density in densities:
        known = context_names(wanted)
        for name in density.schema.context_names:
            if name not in known:
                raise DataError(
                    f"context column {name!r} of the {wanted.name} density is none that the generator level "
                    f"gives{nearest(name, known)}"
                )
        for name in density.schema.target_names:
            if not name.startswith(f"{wanted.collection}_"):
                raise DataError(
                    f"expected targets of the {wanted.name} density to begin with {wanted.collection}_; found "
                    f"{name!r}: is it a density of something else?"
                )


def context_names(wanted: Object) -> list[str]:
    """Return the context columns that the generator level gives for a kind of object."""
    empty = np.zeros(0)
    names = branches_of_context(wanted)
    piece = Piece(0, 0, dict.fromkeys(names, empty), {n.partition("_")[0]: empty.astype(int) for n in names})
    return list(context_columns(piece, wanted, empty.astype(int), empty.astype(int)))


def _fingerprint(density: Density) -> str:
    """Return what tells one density from another: a digest of its columns, their transforms, and its weights."""
    described = [
        density.schema.to_json(),
        density.target_transforms.to_json(),
        density.context_transforms.to_json(),
    ]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(density.flow.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _source(path: str) -> Any:
    """Return what tells one input from another, wherever it lies: the size of a file, or its address."""
    return os.path.getsize(path) if "://" not in path and os.path.isfile(path) else path


def _kept(path: str, target: Path, made: dict[str, Any]) -> Generated:
    """Return that an output is kept if the same request made it, and else that it is in the way."""
    uproot: Any = optional_module("uproot", EXTRA)
    try:
        with uproot.open(target) as file:
            found = json.loads(str(file[_MADE]))
    except Exception:  # whatever it is, it is none of ours, or damaged
        found = {}
    if found == made:
        return Generated(path, str(target), "kept")
    differing = ", ".join(k for k in made if found.get(k) != made[k]) if found else ""
    why = f"was made with another {differing}" if differing else "was not made by this command"
    return Generated(
        path,
        str(target),
        "failed",
        problem=f"{target} exists and {why}; choose another output, or --overwrite",
    )


def _one_file(
    path: str,
    target: Path,
    densities: list[tuple[Object, Density]],
    made: dict[str, Any],
    on_piece: Callable[[Generated, int], None] | None,
) -> Generated:
    """Write the output of one file, whole or not at all; a failure is a result, not an exception."""
    uproot: Any = optional_module("uproot", EXTRA)
    folds, seed = made["folds"], made["seed"]
    temporary = target.with_name(f".{target.stem}-{os.getpid()}.tmp.root")
    events = objects = 0
    seconds = [0.0, 0.0, 0.0]  # read, draw, write
    outside: Counter[str] = Counter()
    try:
        # (zstd at its lowest level packs as small as ROOT's default, in a fifth of the time)
        with (
            open_events(path) as source,
            uproot.recreate(temporary, compression=uproot.ZSTD(1)) as file,
        ):
            clock = _Clock(seconds)
            tree = None
            for read in source.read(_branches(source, densities), step=_READ):
                clock.lap(0)
                for piece in read.parts(max(_PIECE // folds, 1)):
                    drawn = {
                        w.collection: _reconstruct(piece, w, d, folds, seed, outside) for w, d in densities
                    }
                    clock.lap(1)
                    table = _events(piece, drawn, folds)
                    if tree is None:
                        tree = file.mktree("Events", {name: _type(values) for name, values in table.items()})
                    if piece.events:
                        tree.extend(table)
                    events += piece.events
                    objects += sum(int(counts.sum()) for _, counts in drawn.values())
                    clock.lap(2)
                    if on_piece is not None:
                        so_far = _so_far(path, target, events, objects, seconds, outside)
                        on_piece(so_far, source.events)
            if runs := source.runs():
                file["Runs"] = runs
            file[_MADE] = json.dumps(made)
            clock.lap(2)
        os.replace(temporary, target)
    except OSError as error:
        return Generated(path, str(target), "failed", problem=f"could not write {str(target)!r}: {error}")
    except DataError as error:
        return Generated(path, str(target), "failed", problem=str(error))
    finally:
        temporary.unlink(missing_ok=True)
    return _so_far(path, target, events, objects, seconds, outside)


def _so_far(
    path: str, target: Path, events: int, objects: int, seconds: list[float], outside: Counter[str]
) -> Generated:
    read, draw, write = seconds
    return Generated(path, str(target), "written", events, objects, read, draw, write, dict(outside))


class _Clock:
    def __init__(self, seconds: list[float]):
        self._seconds = seconds
        self._last = time.perf_counter()

    def lap(self, of: int) -> None:
        now = time.perf_counter()
        self._seconds[of] += now - self._last
        self._last = now


def _branches(source: EventFile, densities: list[tuple[Object, Density]]) -> list[str]:
    needed = [name for wanted, _ in densities for name in branches_of_context(wanted)]
    needed += ["GenPart_status"] * any(wanted is MUON for wanted, _ in densities)
    source.require(needed, "the generator level is needed: is this simulation?")
    copied = sorted(name for name in source.branches if name.startswith(_COPIED))
    return list(dict.fromkeys([*needed, *copied, *({"genWeight"} & source.branches)]))


def _reconstruct(
    piece: Piece, wanted: Object, density: Density, folds: int, seed: int, outside: Counter[str]
) -> tuple[Columns, Whole]:
    """Return the drawn objects, by event, fold and falling pt, and how many each (event, fold) has.

    Contexts beyond the training range are counted in ``outside``.
    """
    generated = np.arange(piece.counts[wanted.generated].sum())
    if wanted is MUON:
        stable = (np.abs(piece.values["GenPart_pdgId"]) == 13) & (piece.values["GenPart_status"] == 1)
        generated = np.flatnonzero(stable)
    event = piece.event_of(wanted.generated)[generated]
    from fluvial.conditional import ExtrapolationWarning

    context = context_columns(piece, wanted, event, generated)
    index = generated - piece.offsets(wanted.generated)[event]
    given = {name: context[name] for name in density.schema.context_names}
    _count_outside(given, density, outside)
    with warnings.catch_warnings():  # counted above: once a file, not once a piece
        warnings.simplefilter("ignore", ExtrapolationWarning)
        p = density.given(given)
    keys = event_keys(seed, *(piece.values[name] for name in EVENT))
    keys = keys[0][event], keys[1][event], keys[2][event]
    kind = list(OBJECTS).index(wanted.name)
    drawn = p.draw_from(uniforms(keys, kind, index, folds, p.uniforms))
    values = _restored({name: drawn[name] for name in density.schema.target_names}, wanted, context, index)
    # NanoAOD has the objects of an event by falling pt.
    rank = -values.get(f"{wanted.collection}_pt", np.zeros((len(event), folds)))
    keys = (np.broadcast_to(k, rank.shape).ravel() for k in (rank, np.arange(folds), event[:, None]))
    order = np.lexsort(tuple(keys))
    counts = np.repeat(np.bincount(event, minlength=piece.events), folds)
    return {name: np.broadcast_to(v, rank.shape).ravel()[order] for name, v in values.items()}, counts


def _count_outside(given: Columns, density: Density, outside: Counter[str]) -> None:
    for name, (low, high) in density.context_range.items():
        slack = 1e-6 * (high - low)  # as the density itself has it
        if number := int(((given[name] < low - slack) | (given[name] > high + slack)).sum()):
            outside[name] += number


def _restored(drawn: Columns, wanted: Object, context: Columns, index: Whole) -> Columns:
    """Return branches ``[n, folds]`` (or ``[n, 1]``) as NanoAOD has them: relations undone, flags and integers."""
    relations = {r.target: r for r in wanted.relations}
    out: Columns = {}
    for name, values in drawn.items():
        if (relation := relations.get(name)) is not None:
            generated = context[relation.generated].astype(np.float64)[:, None]
            out[relation.reconstructed] = relation.inverse(values, generated).astype(np.float32)
        elif name in _FLAGS:
            out[name] = np.rint(values).astype(bool)
        else:
            out[name] = values.astype(np.int32 if _whole_numbers(name) else np.float32)
    out[wanted.index] = index.astype(np.int32)[:, None]
    if wanted is MUON:
        out["Muon_charge"] = context["GenMuon_charge"][:, None]
        out["Muon_pdgId"] = -13 * context["GenMuon_charge"][:, None]
    else:
        for flavour in ("partonFlavour", "hadronFlavour"):
            out[f"Jet_{flavour}"] = context[f"GenJet_{flavour}"].astype(np.int32)[:, None]
    return out


def _whole_numbers(name: str) -> bool:
    return name in ("Jet_nConstituents", "Jet_puId", "Jet_jetId")


def _events(piece: Piece, made: dict[str, tuple[Columns, Whole]], folds: int) -> dict[str, Any]:
    """Return the branches of the output: what names an event, generator content, drawn objects."""
    ak: Any = optional_module("awkward", EXTRA)
    copy = np.repeat(np.arange(piece.events), folds)
    weight = piece.values.get("genWeight", np.ones(piece.events, dtype=np.float32))
    out: dict[str, Any] = {name: piece.values[name][copy] for name in EVENT}
    out["genWeight"] = (weight[copy] / folds).astype(np.float32)
    out["fold"] = np.tile(np.arange(folds, dtype=np.int32), piece.events)
    out["folds"] = np.full(len(copy), folds, dtype=np.int32)
    out["genEventIndex"] = piece.start + copy
    collections: dict[str, dict[str, Any]] = {}
    for name, values in piece.values.items():
        collection, _, quantity = name.partition("_")
        if collection in piece.counts:
            jagged = ak.unflatten(values, piece.counts[collection])
            collections.setdefault(collection, {})[quantity] = jagged[copy] if folds > 1 else jagged
        elif name not in out:
            out[name] = values[copy]
    for collection, (columns, counts) in made.items():
        collections[collection] = {
            name.partition("_")[2]: ak.unflatten(values, counts) for name, values in columns.items()
        }
    return {**out, **{name: ak.zip(fields) for name, fields in collections.items()}}


def _type(values: NDArray[Any] | Any) -> Any:
    """Return what uproot calls a branch of such values."""
    if isinstance(values, np.ndarray):
        return values.dtype
    ak: Any = optional_module("awkward", EXTRA)
    return ak.type(values).content
