"""Tables from files and from memory: one small protocol, one class a format, one table of formats.

:func:`open_table` opens a source and gives a :class:`Reader`. Whatever the format, whole columns come out as
float64 and missing values as NaN, for :func:`fluvial.data.validate.validate` to catch. Messages count rows from
0, the first data row of a file. A new format is one reader class and one line in ``_FORMATS``; the libraries of
the formats are imported when a file needs them.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fluvial.data.read_arrow import CsvReader, ParquetReader
from fluvial.data.read_base import Reader
from fluvial.data.read_fits import FitsReader
from fluvial.data.read_hdf5 import Hdf5Reader
from fluvial.data.read_many import ManyReader, PartitionReader, partition_values
from fluvial.data.read_numpy import is_plain, open_npy, open_npz, open_side_by_side
from fluvial.data.read_remote import REMOTE, fetch
from fluvial.data.read_root import RootReader
from fluvial.data.tables import as_table, memory_table, write_table
from fluvial.errors import DataError, nearest

__all__ = ["Reader", "as_table", "fingerprint", "memory_table", "open_table", "write_table"]

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

#: What opens a file, by its suffix; ``inside`` names a tree, a group or an extension in it.
_FORMATS: dict[str, Callable[[Path], Reader]] = {
    ".parquet": ParquetReader,
    ".pq": ParquetReader,
    ".csv": CsvReader,
    ".npy": open_npy,
    ".npz": open_npz,
}
_CONTAINERS: dict[str, Callable[[Path, str | None], Reader]] = {
    ".h5": Hdf5Reader,
    ".hdf5": Hdf5Reader,
    ".fits": FitsReader,
    ".fit": FitsReader,
    ".fits.gz": FitsReader,
    ".root": RootReader,
}
_KNOWN = (*_FORMATS, *_CONTAINERS)
_SAME = {".pq": ".parquet", ".hdf5": ".h5", ".fit": ".fits", ".fits.gz": ".fits"}
_INSIDE = re.compile(rf"(.*(?:{'|'.join(map(re.escape, _CONTAINERS))})):(.+)", re.IGNORECASE)


def open_table(source: Source) -> Reader:
    """Open a table: a file, many files as one, or a folder of them.

    ``source`` is a path, a glob such as ``"train/*.h5"`` (in the order of the names), a folder, or a list
    of these. What lies inside a file with several tables is named after
    a colon, as in ``"events.root:Events"`` or ``"catalogue.fits:JOINT"``. Of a folder all tables in it are
    read, those below it too; folders named ``Z=0.001`` are a column Z. Plain npy files in one folder are
    columns of one table. ``"hf://owner/name"`` is a set on the Hugging Face Hub, or one file of it.

    Raises :class:`~fluvial.errors.DataError` where nothing is there (naming something like it nearby), a
    suffix has no reader, a file is truncated or corrupt, there are no rows; and
    :class:`~fluvial.errors.MissingExtraError` where the library of a format is not installed.
    """
    readers = [reader for one in _several(source) for reader in _open_one(one)]
    if not readers:
        raise DataError("expected at least one file as the source of a table; got an empty list")
    kept = [reader for reader in readers if reader.rows()]
    if not kept:
        raise DataError(f"{readers[0].path} has columns but no rows; expected at least one row")
    if len(kept) == 1:
        return kept[0]
    if isinstance(source, (str, os.PathLike)):
        return ManyReader(Path(source), kept)
    return ManyReader(Path(os.path.commonpath([r.path.absolute().parent for r in kept])), kept)


def fingerprint(source: Source) -> dict[str, Any]:
    """Return what tells one source from another, as a value for JSON.

    Keys: ``path`` (as given), ``bytes``, ``rows``, ``modified`` (the latest; ISO 8601, UTC), ``columns`` (a
    list of ``name`` and ``type``) and ``sha256``: of the whole file, or, of many files, of the list of their
    own (in hexadecimal, one a line), which are then under ``files``. Raises what :func:`open_table` raises.
    """
    reader = open_table(source)
    files = [_file_facts(path) for path in reader.parts()]
    digests = "".join(f"{file['sha256']}\n" for file in files)
    given = [os.fspath(one) for one in _several(source)]
    return {
        "path": given[0] if isinstance(source, (str, os.PathLike)) else given,
        "bytes": sum(file["bytes"] for file in files),
        "rows": reader.rows(),
        "modified": max(file["modified"] for file in files),
        "columns": [{"name": name, "type": kind} for name, kind in reader.columns().items()],
        "sha256": files[0]["sha256"] if len(files) == 1 else hashlib.sha256(digests.encode()).hexdigest(),
        **({"files": files} if len(files) > 1 else {}),
    }


def _several(source: Source) -> Sequence[str | os.PathLike[str]]:
    return [source] if isinstance(source, (str, os.PathLike)) else source


def _file_facts(path: Path) -> dict[str, Any]:
    stat = path.stat()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    modified = datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds")
    return {"path": str(path), "bytes": stat.st_size, "modified": modified, "sha256": digest}


def source_beside(source: Source, folder: str | os.PathLike[str]) -> str | list[str]:
    """Return a source whose relative paths are meant from a folder, such as that of the study."""
    if not isinstance(source, (str, os.PathLike)):
        return [str(source_beside(one, folder)) for one in source]
    text = os.fspath(source)
    if text.startswith(REMOTE):
        return text
    wildcards = glob.has_magic(text) and not Path(folder, text).exists()
    return str(Path(glob.escape(os.fspath(folder)) if wildcards else folder, text))


def absolute_source(source: Source) -> str | list[str]:
    """Return a source that means the same from any working directory, as a value for JSON."""
    return source_beside(source, Path.cwd())


def _open_one(source: str | os.PathLike[str]) -> list[Reader]:
    """Return the readers of one path, glob or folder."""
    text = os.fspath(source)
    if text.startswith(REMOTE):
        return _open_one(fetch(text))
    container = _INSIDE.fullmatch(text)
    text, inside = (container[1], container[2]) if container else (text, None)
    path = Path(text)
    if path.is_dir():
        return _open_folder(path)
    if glob.has_magic(text) and not path.exists():
        # The folder above the first wildcard: what is named Z=0.001 below it is a column.
        plain = itertools.takewhile(lambda part: not glob.has_magic(part), Path(text).parts)
        return _open_files(_matches(text), inside, root=Path(*plain))
    return [_open_file(path, inside)]


def _open_folder(folder: Path) -> list[Reader]:
    files = [
        p
        for p in folder.rglob("*")
        if _suffix(p)
        and p.is_file()
        and not any(x.startswith((".", "_")) for x in p.relative_to(folder).parts)
    ]
    if not files:
        known = ", ".join(_KNOWN)
        raise DataError(f"{folder} is a folder without tables; expected files that end in one of {known}")
    kinds = sorted({_SAME.get(_suffix(p), _suffix(p)) for p in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder} is a folder with tables of several formats ({', '.join(kinds)}); name those of one, as in "
            f"{folder / f'*{kinds[0]}'}"
        )
    files = sorted(files, key=_natural)
    if kinds == [".npy"] and all(map(is_plain, files)) and len({p.parent for p in files}) == 1:
        return [open_side_by_side(folder, files)]
    return _open_files(files, None, root=folder)


def _open_files(files: Sequence[Path], inside: str | None, root: Path) -> list[Reader]:
    readers = []
    for path in files:
        reader, values = _open_file(path, inside), partition_values(path, root)
        readers.append(PartitionReader(reader, values) if values else reader)
    return readers


def _open_file(path: Path, inside: str | None) -> Reader:
    known = ", ".join(_KNOWN)
    if not path.exists():
        if not path.parent.is_dir():
            raise DataError(f"{path} does not exist, nor does its folder {path.parent}; check the path")
        tables = sorted(p.name for p in path.parent.iterdir() if _suffix(p) and p.is_file())
        hint = nearest(path.name, tables) or "; its folder holds no tables"
        raise DataError(f"{path} does not exist{hint}")
    suffix = _suffix(path)
    if suffix in _CONTAINERS:
        return _CONTAINERS[suffix](path, inside)
    if suffix in _FORMATS:
        return _FORMATS[suffix](path)
    raise DataError(f"{path}: no reader for the suffix {path.suffix!r}; expected one of {known}")


def _matches(pattern: str) -> list[Path]:
    found = [Path(p) for p in glob.glob(pattern, recursive=True)]
    files = sorted((p for p in found if p.is_file()), key=_natural)
    if not files:
        raise DataError(f"no file matches {pattern}; check the folder and the wildcards")
    return files


def _suffix(path: Path) -> str:
    """Return the known suffix of a file, or an empty text."""
    name = path.name.lower()
    return next((suffix for suffix in _KNOWN if name.endswith(suffix)), "")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order names by the numbers in them: part-10 comes after part-9, and appended files after earlier ones."""
    pieces = re.split(r"(\d+)", str(path.with_suffix("")))
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]
