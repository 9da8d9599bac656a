"""The packed form: a table packed once, so that training reads it at the speed of the disk.

A packed table is a folder with one file of fixed-size records for each of train, validation, test and calibration
(``train.rows``, …: row-major, memory-mappable, in the order of the source), a uniform sample of each that is
longer than :data:`SAMPLE` rows (``train.sample``), and ``packed.json``, which says what is where.

How a column is stored, and when exactly, is said in :mod:`fluvial.data.forms`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from fluvial.data.cache import ABOUT
from fluvial.data.forms import FORMS, ColumnForm, Layout
from fluvial.data.schema import Support
from fluvial.data.split import uniform
from fluvial.errors import DataError

FORMAT = 1
PARTS = ("train", "validation", "test", "calibration")
#: Rows of each part in its uniform sample, which stands for it wherever a table in memory is needed.
SAMPLE = 131_072
#: Rows encoded at once.
CHUNK = 65_536
#: A piece of a table: its columns, and the numbers of its rows in the source.
Piece = tuple[Mapping[str, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Packed:
    """A packed table on disk."""

    folder: Path
    about: dict[str, Any]

    @cached_property
    def layout(self) -> Layout:
        """How columns lie in a record."""
        columns = self.about["columns"]
        codes = {c["name"]: np.array(c["values"]) for c in columns if c["values"] is not None}
        return Layout({c["name"]: c["form"] for c in columns}, codes)

    @property
    def names(self) -> list[str]:
        """The columns, in order."""
        return self.layout.names

    def rows(self, part: str) -> int:
        """Return the number of rows of a part."""
        return self.about["parts"].get(part, {"rows": 0})["rows"]  # few have rows for calibration

    def path(self, part: str) -> Path:
        """Return the file of a part's records."""
        return self.folder / f"{part}.rows"

    def range(self, name: str, part: str | None = None) -> tuple[float, float]:
        """Return the smallest and the largest value of a column as the source holds them, in one part or in all."""
        ranges = [
            self.about["parts"][p]["ranges"][name] for p in ((part,) if part else PARTS) if self.rows(p)
        ]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def landmarks(self, name: str) -> np.ndarray:
        """Return values that a sample may lack: all that a coded column takes, else the ends of its range."""
        coded = self.layout.codes.get(name)
        return np.array(self.range(name)) if coded is None else np.sort(coded)

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        """Yield a column of all rows, float64, a chunk at a time."""
        place = self.names.index(name)
        for part in PARTS:
            records = self._map(self.path(part), self.rows(part))
            for first in range(0, len(records), CHUNK):
                yield self.layout.decode(records[first : first + CHUNK])[:, place]

    def table(self, part: str) -> dict[str, np.ndarray]:
        """Return all rows of a part, float64, in the order of the source."""
        return self._columns(self._map(self.path(part), self.rows(part)))

    def sample(self, part: str) -> dict[str, np.ndarray]:
        """Return a uniform sample of a part: all of it up to :data:`SAMPLE` rows, in the order of the source."""
        if self.rows(part) <= SAMPLE:
            return self.table(part)
        return self._columns(self._map(self.folder / f"{part}.sample", SAMPLE))

    def records(self, part: str) -> np.ndarray:
        """Return a part's records, memory-mapped: ``[n, itemsize]``, uint8."""
        return self._map(self.path(part), self.rows(part))

    def _map(self, path: Path, rows: int) -> np.ndarray:
        size = self.layout.dtype.itemsize
        if rows == 0:
            return np.empty((0, size), dtype=np.uint8)
        try:
            return np.memmap(path, np.uint8, "r", shape=(rows, size))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); clear the cache and fit again") from error

    def _columns(self, records: np.ndarray) -> dict[str, np.ndarray]:
        out = {name: np.empty(len(records)) for name in self.names}
        for first in range(0, len(records), CHUNK):
            values = self.layout.decode(records[first : first + CHUNK])
            for i, column in enumerate(out.values()):
                column[first : first + CHUNK] = values[:, i]
        return out


def open_packed(folder: Path) -> Packed | None:
    """Open a packed table; return ``None`` where there is none, or not all of it."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        packed = Packed(folder, about)
        size = packed.layout.dtype.itemsize
        for part in about["parts"]:
            rows = packed.rows(part)
            if packed.path(part).stat().st_size != rows * size:
                return None
            if rows > SAMPLE and (folder / f"{part}.sample").stat().st_size != SAMPLE * size:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return packed if about["format"] == FORMAT else None


def pack(
    folder: Path,
    names: Iterable[str],
    pieces: Callable[[], Iterator[Piece]],
    which: Callable[[np.ndarray], np.ndarray],
    *,
    supports: Mapping[str, Support],
    atoms: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
    about: Callable[[], Mapping[str, Any]] = dict,
) -> Packed:
    """Pack a table that comes in pieces into an empty folder.

    One pass over the pieces, or two where a later piece shows that the first rows misled about a column's form.
    Memory holds a piece and the samples.

    Parameters
    ----------
    folder
        Empty; left half-filled if something goes wrong (see :func:`fluvial.data.cache.made_once`).
    names
        The columns to pack, in order.
    pieces
        Starts a pass: yields sound rows (finite, in their supports) with their numbers in the source.
    which
        The part of each row number: 0 train, 1 validation, 2 test.
    supports
        By column; a column left out has the real line.
    atoms
        By column, values that must be kept exactly, such as the one that a failed measurement leaves.
    seed
        Decides the samples, together with the row numbers.
    about
        More for ``packed.json``, asked for when all pieces have been seen.

    Raises
    ------
    OSError
        If the disk is full; and what ``pieces`` raises.
    """
    columns = [ColumnForm(name, supports.get(name, Support()), (atoms or {}).get(name, ())) for name in names]
    writer = _Writer(folder, columns)
    with writer:
        _pass(columns, writer, pieces, which, seed)
    if any(column.changed for column in columns):
        for column in columns:
            column.begin_again()
        writer = _Writer(folder, columns)
        with writer:
            _pass(columns, writer, pieces, which, seed)
    parts = {name: part.finish() for name, part in writer.parts.items()}
    if not parts["calibration"]["rows"]:  # as if there were no such part: packs made before it are the same
        del parts["calibration"]
        (folder / "calibration.rows").unlink()
    described = [column.describe() for column in columns]
    content = hashlib.sha256(json.dumps([parts, described], sort_keys=True).encode()).hexdigest()
    description = {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        **about(),
        "sha256": content,
        "columns": described,
        "parts": parts,
    }
    with (folder / ABOUT).open("w", encoding="utf-8") as file:
        json.dump(description, file, indent=1, ensure_ascii=False, allow_nan=False)
        _flush(file)
    packed = open_packed(folder)
    if packed is None:
        raise OSError("what was written is not there in full")
    return packed


def _pass(
    columns: list[ColumnForm],
    writer: _Writer,
    pieces: Callable[[], Iterator[Piece]],
    which: Callable[[np.ndarray], np.ndarray],
    seed: int,
) -> None:
    """Go over all pieces once: write, until a column changes its form; from there on, only look."""
    for table, rows in _even(pieces(), [column.name for column in columns]):
        for column in columns:
            column.look(table[column.name])
        if not any(column.changed for column in columns):
            writer.write(table, which(rows), uniform(seed ^ _SAMPLING, rows))


_SAMPLING = 0x53414D50  # the samples' random numbers are not those of the split


def _even(pieces: Iterator[Piece], names: list[str]) -> Iterator[Piece]:
    """Yield the same rows in pieces of :data:`CHUNK` rows: what is packed does not hang on how it was read."""
    held: list[Piece] = []
    count = 0
    for table, rows in pieces:
        first = 0
        while first < len(rows):
            part = slice(first, first + CHUNK - count)
            held.append(({name: table[name][part] for name in names}, rows[part]))
            count, first = count + len(held[-1][1]), part.stop
            if count == CHUNK:
                yield _joined(held, names)
                held, count = [], 0
    if count:
        yield _joined(held, names)


def _joined(pieces: list[Piece], names: list[str]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    return (
        {name: np.concatenate([table[name] for table, _ in pieces]) for name in names},
        np.concatenate([rows for _, rows in pieces]),
    )


class _Writer:
    """The files of all parts, while they are written."""

    def __init__(self, folder: Path, columns: list[ColumnForm]) -> None:
        self._folder, self._columns = folder, columns
        self._layout: Layout | None = None
        self.parts = {name: _PartWriter(folder, name, [c.name for c in columns]) for name in PARTS}

    def __enter__(self) -> None:
        with contextlib.ExitStack() as files:
            for part in self.parts.values():
                files.enter_context(part.file())
            self._files = files.pop_all()

    def __exit__(self, *error: object) -> None:
        with self._files:  # closes all, whatever fails
            if error[0] is None:
                for part in self.parts.values():
                    part.flush()

    def write(self, table: Mapping[str, np.ndarray], which: np.ndarray, priority: np.ndarray) -> None:
        if self._layout is None:  # the columns have their forms now
            self._layout = Layout({c.name: c.form or "float32" for c in self._columns}, {})
        records = np.zeros(len(which), dtype=self._layout.dtype)
        place = dict.fromkeys(FORMS, 0)
        for column in self._columns:
            form = column.form or "float32"
            records[form][:, place[form]] = column.encode(table[column.name])
            place[form] += 1
        content = records.view(np.uint8).reshape(
            len(records), -1
        )  # as bytes, numpy keeps the padding as it is
        for number, part in enumerate(self.parts.values()):
            chosen = which == number
            if chosen.any():
                part.write(content[chosen], {n: v[chosen] for n, v in table.items()}, priority[chosen])


class _PartWriter:
    """The file of one part, its digest, its ranges, and its sample: the rows whose hashes are smallest."""

    def __init__(self, folder: Path, name: str, columns: list[str]) -> None:
        self._path, self._sample_path = folder / f"{name}.rows", folder / f"{name}.sample"
        self._digest = hashlib.sha256()
        self._rows = 0
        self._ranges = {column: [math.inf, -math.inf] for column in columns}
        self._sample: list[tuple[np.ndarray, np.ndarray]] = []
        self._held, self._limit = 0, math.inf

    def file(self) -> IO[bytes]:
        """Begin the file of records, and return it."""
        self._file = self._path.open("wb")
        return self._file

    def flush(self) -> None:
        """See that all records are on disk."""
        _flush(self._file)

    def write(self, records: np.ndarray, table: Mapping[str, np.ndarray], priority: np.ndarray) -> None:
        content = records.tobytes()
        self._file.write(content)
        self._digest.update(content)
        self._rows += len(records)
        for name, (low, high) in self._ranges.items():
            values = table[name]
            self._ranges[name] = [min(low, float(values.min())), max(high, float(values.max()))]
        chosen = priority < self._limit
        self._sample.append((records[chosen], priority[chosen]))
        self._held += len(self._sample[-1][1])
        if self._held > 2 * SAMPLE:
            self._thin()

    def _thin(self) -> None:
        """Keep the rows with the smallest hashes; they stay in the order of the source."""
        records = np.concatenate([r for r, _ in self._sample])
        priority = np.concatenate([p for _, p in self._sample])
        kept = np.sort(np.argpartition(priority, SAMPLE - 1)[:SAMPLE])
        self._sample, self._held = [(records[kept], priority[kept])], SAMPLE
        self._limit = float(priority[kept].max())

    def finish(self) -> dict[str, Any]:
        """Write the sample, and return what ``packed.json`` says of the part."""
        if self._rows > SAMPLE:
            self._thin()
            with self._sample_path.open("wb") as file:
                file.write(self._sample[0][0].tobytes())
                _flush(file)
        ranges = {name: ends if self._rows else [0.0, 0.0] for name, ends in self._ranges.items()}
        return {"rows": self._rows, "sha256": self._digest.hexdigest(), "ranges": ranges}


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
