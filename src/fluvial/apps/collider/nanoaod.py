"""Events of one NanoAOD file (TTree or RNTuple), read in pieces into flat arrays, by uproot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluvial.errors import DataError, FluvialError
from fluvial.extras import optional_module

EXTRA = "collider"
TREE = "Events"
RUNS = "Runs"

Flat = NDArray[Any]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Some consecutive events: flat arrays of every branch, and how many objects each event has.

    ``values`` holds a branch of a collection as one array over all objects, an event-level branch as one value an
    event. ``counts[collection]`` has one entry an event.
    """

    start: int
    events: int
    values: Mapping[str, Flat]
    counts: Mapping[str, Whole]

    def event_of(self, collection: str) -> Whole:
        """Return, for each object of a collection, the event it is in."""
        return np.repeat(np.arange(self.events), self.counts[collection])

    def offsets(self, collection: str) -> Whole:
        """Return, for each event, where its objects begin."""
        counts = self.counts[collection]
        return np.cumsum(counts) - counts

    def parts(self, events: int) -> Iterator[Piece]:
        """Yield the same in pieces of at most ``events`` events; one piece if there are none."""
        if self.events <= events:
            yield self
            return
        edges = {name: np.append(0, np.cumsum(counts)) for name, counts in self.counts.items()}
        for start in range(0, self.events, events):
            stop = min(start + events, self.events)
            counts = {name: number[start:stop] for name, number in self.counts.items()}
            values = {}
            for name, flat in self.values.items():
                edge = edges.get(name.partition("_")[0])
                values[name] = flat[start:stop] if edge is None else flat[edge[start] : edge[stop]]
            yield Piece(self.start + start, stop - start, values, counts)


class EventFile:
    """An open NanoAOD file. Made by :func:`open_events`."""

    def __init__(self, path: str, tree: Any, runs: Any = None):
        self.path = path
        self._tree = tree
        self._runs = runs
        self.events = int(tree.num_entries)
        self.branches = frozenset(tree.keys())

    def require(self, names: Iterable[str], why: str) -> None:
        """Raise :class:`~fluvial.errors.DataError` if a branch is missing; ``why`` says what it is needed for."""
        missing = [name for name in names if name not in self.branches]
        if missing:
            shown = ", ".join(missing[:6]) + (" …" if len(missing) > 6 else "")
            raise DataError(f"{self.path}: no branch {shown}; {why}")

    def read(self, names: Iterable[str], step: int = 50_000) -> Iterator[Piece]:
        """Yield the events in order, at most ``step`` at a time; an empty tree yields one empty piece.

        Raises
        ------
        DataError
            If branches of one collection disagree about the number of objects in an event.
        """
        names = list(names)
        for start in range(0, max(self.events, 1), step):
            stop = min(start + step, self.events)
            with _readable(self.path):
                arrays = self._tree.arrays(names, entry_start=start, entry_stop=stop)
                piece = self._piece(arrays, names, start, stop - start)
            yield piece

    def runs(self) -> dict[str, Flat]:
        """Return the flat numeric branches of ``Runs``: event counts and sums of weights; nothing without such a tree."""
        if self._runs is None:
            return {}
        with _readable(self.path):
            tree = self._runs
            flat = [n for n in tree.keys() if _plain_number(tree[n])]  # noqa: SIM118 (not a mapping)
            return tree.arrays(flat, library="np") if flat else {}

    def _piece(self, arrays: Any, names: list[str], start: int, events: int) -> Piece:
        ak: Any = optional_module("awkward", EXTRA)
        values: dict[str, Flat] = {}
        counts: dict[str, Whole] = {}
        first: dict[str, str] = {}
        for name in names:
            column = arrays[name]
            if column.ndim == 1:
                values[name] = ak.to_numpy(column)
                continue
            collection = name.partition("_")[0]
            number = np.asarray(ak.to_numpy(ak.num(column)), dtype=np.int64)
            values[name] = ak.to_numpy(ak.flatten(column))
            if (bad := np.flatnonzero(number != counts.setdefault(collection, number))).size:
                raise DataError(
                    f"{self.path}, event {start + bad[0]}: expected as many values of {name} as of "
                    f"{first[collection]}, {counts[collection][bad[0]]}; found {number[bad[0]]}"
                )
            first.setdefault(collection, name)
        return Piece(start, events, values, counts)


def _plain_number(branch: Any) -> bool:
    kind = str(branch.typename).removeprefix("std::").removesuffix("_t")
    return kind in (
        "float",
        "double",
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )


@contextlib.contextmanager
def open_events(path: str | Path) -> Iterator[EventFile]:
    """Open a NanoAOD file for reading.

    Raises
    ------
    DataError
        If there is no such file, it is damaged or no ROOT file, or it has no ``Events``.
    MissingExtraError
        If uproot or awkward is not installed.
    """
    uproot: Any = optional_module("uproot", EXTRA)
    optional_module("awkward", EXTRA)
    path = str(path)
    if "://" not in path and not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    with contextlib.ExitStack() as stack:
        with _readable(path):
            file = stack.enter_context(uproot.open(path, array_cache=None))
            keys = [key.partition(";")[0] for key in file.keys(recursive=False)]
            if TREE not in keys:
                found = ", ".join(keys[:8]) or "nothing"
                raise DataError(f"{path}: expected {TREE}, a tree or RNTuple of events; found {found}")
            events = EventFile(path, file[TREE], file[RUNS] if RUNS in keys else None)
        yield events


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turn what goes wrong in a damaged file into one message. What comes is anything: the bytes decide."""
    try:
        yield
    except (FluvialError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise DataError(f"{path}: could not be read ({type(error).__name__}: {reason:.200})") from error
