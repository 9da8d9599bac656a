"""ROOT files through uproot: the flat branches of a TTree, and the flat fields of an RNTuple."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.data.read_base import Field, TableReader, numbers
from fluvial.errors import DataError, nearest
from fluvial.extras import optional_module

_TABLES = ("TTree", "ROOT::RNTuple")


class RootReader(TableReader):
    """A TTree or an RNTuple: one row an entry, one column a branch with one number (or a fixed array) an entry.

    A branch with a varying number of values in an entry (the jets of an event) is shown in :meth:`columns`, and
    refused when it is asked for: ``fluvial collider extract`` makes a table with a row an object of such files.

    ``inside`` is the name of the tree, needed where the file holds several.
    """

    def __init__(self, path: Path, inside: str | None = None) -> None:
        self.path = path
        self._jagged: set[str] = set()
        with self._open() as file:
            kinds = {name.partition(";")[0]: kind for name, kind in file.classnames().items()}
            tables = [name for name, kind in kinds.items() if kind in _TABLES]
            self._tree = _choose(tables, inside, path)
            tree = file[self._tree]
            self._rows = int(tree.num_entries)
            self._fields = list(self._flat(tree, kinds[self._tree]))

    def _open(self) -> Any:
        uproot = optional_module("uproot", "root")
        try:
            file = uproot.open(self.path)
        except _faults() as error:
            raise DataError(_fault(self.path, error)) from error
        size, said = self.path.stat().st_size, file.file.fEND
        if size < said:
            file.close()
            raise DataError(
                f"{self.path} looks truncated: {size} of {said} bytes are there; copy or write it again"
            )
        return file

    def _flat(self, tree: Any, kind: str) -> Iterator[Field]:
        """Yield the fields, and remember which are jagged."""
        if kind == "TTree":
            for name, branch in tree.items(recursive=False):
                yield self._field(name, branch.typename, _branch_shape(branch))
            return
        form, _ = tree.to_akform()
        for name in form.fields:
            yield self._field(name, str(tree[name].typename), _form_shape(form.content(name)))

    def _field(self, name: str, kind: str, shape: tuple[int, ...] | None) -> Field:
        if shape is None:
            self._jagged.add(name)
        length = int(np.prod(shape)) if shape else None
        return Field(name, kind.partition("[")[0] if length else kind, length)

    def _find(self, name: str) -> tuple[Field, int | None]:
        field, element = super()._find(name)
        if field.name in self._jagged:
            raise DataError(
                f"{self.path}: column {field.name!r} ({field.kind}) holds a varying number of values in an entry; "
                "expected one number. Of such files, fluvial collider extract makes a table with one row an object"
            )
        return field, element

    def _blocks(self, names: list[str], rows: int, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        awkward = optional_module("awkward", "root")
        with self._open() as file:
            tree = file[self._tree]
            for row in range(start, stop, rows):
                end = min(row + rows, stop)
                try:
                    block = tree.arrays(names, entry_start=row, entry_stop=end)
                except _faults() as error:
                    raise DataError(
                        f"{self.path}: rows {row} to {end - 1} of {self._tree} cannot be read ({error}); the file "
                        "looks truncated or corrupt: copy or write it again"
                    ) from error
                out = {}
                for name in names:
                    values = awkward.to_numpy(block[name])
                    flat = values.reshape(len(values), -1) if values.ndim > 1 else values
                    out[name] = numbers(flat, name, str(self.path), row)
                yield out


def _choose(tables: list[str], inside: str | None, path: Path) -> str:
    listed = ", ".join(tables) or "none"
    if inside is not None and inside not in tables:
        raise DataError(f"{path}: no tree {inside!r}{nearest(inside, tables) or '; the file holds none'}")
    if inside is None and len(tables) != 1:
        example = f'; name one, as in "{path.name}:{tables[0]}"' if tables else ""
        raise DataError(f"{path}: expected one TTree or RNTuple; found {listed}{example}")
    return inside or tables[0]


def _branch_shape(branch: Any) -> tuple[int, ...] | None:
    """Return the shape of an entry, ``()`` for a number, ``None`` where it varies or is no number."""
    dtype = getattr(branch.interpretation, "to_dtype", None)
    if dtype is None or np.dtype(dtype).base.kind not in "biuf":
        return None
    return np.dtype(dtype).shape


def _form_shape(form: Any) -> tuple[int, ...] | None:
    inner = [] if form.is_numpy else [form.size] if form.is_regular else None
    if inner is None:
        return None
    if inner:
        rest = _form_shape(form.content)
        return None if rest is None else (*inner, *rest)
    return tuple(form.inner_shape)


def _faults() -> tuple[type[Exception], ...]:
    uproot = optional_module("uproot", "root")
    return (OSError, ValueError, EOFError, LookupError, struct.error, zlib.error, uproot.DeserializationError)


def _fault(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    if head and head != b"root":
        return f"{path} is not a ROOT file: it starts with {head!r}, not b'root'; mend the suffix"
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{path} looks truncated or corrupt ({first}); copy or write it again"
