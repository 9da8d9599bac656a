"""Where packed tables live: a folder of folders, each found by a hash of all that went into it.

The folder is ``$FLUVIAL_CACHE``, or else ``fluvial`` in the user's cache folder. An entry appears whole or not
at all. Everything in it can be made again from its sources, so that it may be cleared at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluvial.errors import DataError

#: The file that describes an entry, written last.
ABOUT = "packed.json"
#: How much of a source is read to tell it from another: this many pieces of this many bytes, evenly spaced.
PIECES, PIECE_BYTES = 18, 2**16


def cache_folder() -> Path:
    """Return the folder of packed tables; it need not exist.

    ``$FLUVIAL_CACHE`` where that is set; else ``fluvial`` under ``$XDG_CACHE_HOME`` or ``~/.cache``, on macOS
    under ``~/Library/Caches``, on Windows under ``%LOCALAPPDATA%``.
    """
    chosen = os.environ.get("FLUVIAL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fluvial"


def identify(paths: Sequence[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """Return what tells files from others or from their later selves, cheaply, as a value for JSON.

    For each file: ``path`` (resolved), ``bytes``, ``modified_ns`` and ``pieces_sha256``, the SHA-256 of 18
    pieces of 64 KiB, evenly spaced from its beginning to its end: all of a file up to 1.1 MB.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    found = []
    for path in map(Path, paths):
        try:
            stat, digest = path.stat(), hashlib.sha256()
            last = max(stat.st_size - PIECE_BYTES, 0)
            with path.open("rb") as file:
                for i in range(PIECES):
                    file.seek(last * i // (PIECES - 1))
                    digest.update(file.read(PIECE_BYTES))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        found.append(
            {
                "path": str(path.resolve()),
                "bytes": stat.st_size,
                "modified_ns": stat.st_mtime_ns,
                "pieces_sha256": digest.hexdigest(),
            }
        )
    return found


def address(description: Mapping[str, Any]) -> str:
    """Return the name of the entry that a description (a value for JSON) leads to: 24 hexadecimal digits."""
    text = json.dumps(description, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def made_once(folder: Path, complete: Callable[[Path], bool], make: Callable[[Path], None]) -> None:
    """Make an entry unless it is there: ``make`` fills a temporary folder, which then takes the name ``folder``.

    Where several processes want the entry at once, one makes it and the others wait; on a file system without
    locks all make it, and the first that is done counts. An entry that is not ``complete`` is made again.

    Raises
    ------
    DataError
        If the folder cannot be written (a full disk), in which case nothing is left of it; and what ``make``
        raises.
    """
    if complete(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder) as held:
            if complete(folder):  # another process was faster
                return
            if held:  # no other process is at it: what is there was left by killed ones
                for leftover in [folder, *folder.parent.glob(f".{folder.name}.*.tmp")]:
                    shutil.rmtree(leftover, ignore_errors=True)
            temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
            temporary.mkdir()
            try:
                make(temporary)
                _claim(temporary, folder, complete)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"Could not pack the data into {folder.parent}: {error.strerror or error}. Nothing half-made is left; "
            "make room there ('fluvial cache --clear' empties it), or set FLUVIAL_CACHE to a folder on another disk."
        ) from error


def _claim(temporary: Path, folder: Path, complete: Callable[[Path], bool]) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not complete(folder):  # else another process, without a lock, was faster: its entry is as good
            raise


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold a lock beside a folder; yield whether the system gave one. It serves speed, not correctness."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield False
        else:
            yield True


@dataclass(frozen=True)
class Entry:
    """One packed table in the cache."""

    folder: Path
    bytes: int
    rows: int
    made: str
    sources: list[str]


def entries() -> list[Entry]:
    """Return what is in the cache, oldest first."""
    found = []
    for about in cache_folder().glob(f"*/{ABOUT}"):
        try:
            content = json.loads(about.read_bytes())
            size = sum(file.stat().st_size for file in about.parent.iterdir())
            sources = [source["path"] for source in content["description"]["sources"]]
            rows = sum(part["rows"] for part in content["parts"].values())
            found.append(Entry(about.parent, size, rows, content["made"], sources))
        except (OSError, ValueError, KeyError):  # being removed, or of another version: no entry of ours
            continue
    return sorted(found, key=lambda entry: entry.made)


def clear() -> int:
    """Remove all packed tables, and what killed processes left; return the bytes freed.

    Raises
    ------
    DataError
        If something cannot be removed.
    """
    freed = 0
    folder = cache_folder()
    for child in folder.iterdir() if folder.is_dir() else ():
        if child.is_dir() and ((child / ABOUT).is_file() or child.name.endswith(".tmp")):
            size = sum(file.stat().st_size for file in child.iterdir())
            try:
                shutil.rmtree(child)
            except OSError as error:
                raise DataError(f"Could not remove {child}: {error.strerror or error}") from error
            freed += size
        elif child.name.startswith(".") and child.suffix == ".lock":
            child.unlink(missing_ok=True)
    return freed  # whatever else a user keeps there is not ours to remove
