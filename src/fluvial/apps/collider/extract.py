"""Matched pairs of many NanoAOD files in one Parquet table, file by file, so that work is not lost when it stops.

Each file's pairs go to a part of their own, beside the output; a part that is already there, of the same file
unchanged, is not made again. At the end the parts are joined. Memory holds a few tens of thousands of events,
however many files there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import fluvial
from fluvial.apps.collider.names import Object, choose, object_named
from fluvial.apps.collider.nanoaod import EventFile, open_events
from fluvial.apps.collider.pairs import (
    EVENT,
    Columns,
    branches_of_context,
    branches_of_targets,
    context_columns,
    partners,
    target_columns,
)
from fluvial.errors import DataError

LAYOUT = 1  # of the parts; another number makes them anew
_KEY = b"fluvial.collider"
_ROWS = 131_072  # at least so many rows in a row group of the joined table, except the last


@dataclass(frozen=True)
class FileResult:
    """What became of one file.

    ``objects`` are the reconstructed objects in it, ``pairs`` those with a partner whose columns are all finite,
    ``unusable`` those with a partner and a column that is not (such as a ratio to a massless jet). ``columns`` are the
    target columns, ``missing`` the targets that the production has nothing for.
    """

    path: str
    status: Literal["read", "kept", "failed"]
    events: int = 0
    objects: int = 0
    pairs: int = 0
    unusable: int = 0
    columns: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Extraction:
    """What :func:`extract` did: a result a file, in the order given."""

    out: Path
    files: tuple[FileResult, ...]

    @property
    def pairs(self) -> int:
        """Pairs in the table."""
        return sum(f.pairs for f in self.files)

    @property
    def failed(self) -> tuple[FileResult, ...]:
        """The files that could not be used."""
        return tuple(f for f in self.files if f.status == "failed")


def extract(
    files: Sequence[str | os.PathLike[str]],
    object_name: str,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    on_file: Callable[[FileResult], None] | None = None,
) -> Extraction:
    """Write the matched pairs of NanoAOD files to a Parquet table.

    A row is one reconstructed object with its generator-level partner: ``run``, ``luminosityBlock`` and ``event``,
    then context and targets as :mod:`fluvial.apps.collider.names` has them. Values are those of the file; nothing is
    clipped, smeared or transformed. A file that cannot be used is reported in the result, and the others are done.

    Parameters
    ----------
    files
        Paths (or URLs that uproot opens), each once.
    object_name
        ``"jet"`` or ``"muon"``.
    out
        The table to write, with the suffix ``.parquet``. Until all files are done, parts lie in a folder of that name
        with ``.parts`` added; the same call takes them up. They stay if a file failed.
    overwrite
        Replace a table that is there.
    on_file
        Called after each file.

    Raises
    ------
    DataError
        If ``out`` exists or cannot be written, if a file is given twice or none is given, or if none could be used.
    """
    wanted = object_named(object_name)
    out = Path(out)
    paths = [os.fspath(f) for f in files]
    _check_request(paths, out, overwrite)
    parts = out.with_name(out.name + ".parts")
    parts.mkdir(exist_ok=True)
    results: list[FileResult] = []
    columns: tuple[str, ...] | None = None
    for path in paths:
        result = _one_file(path, wanted, parts / _part_name(path), columns)
        if columns is None and result.status != "failed":
            columns = result.columns
        results.append(result)
        if on_file is not None:
            on_file(result)
    extraction = Extraction(out, tuple(results))
    good = [parts / _part_name(f.path) for f in results if f.status != "failed"]
    if not good:
        shutil.rmtree(parts)
        raise DataError("\n".join(["no file could be used:", *(f"  {f.problem}" for f in results)]))
    _join(good, out)
    if not extraction.failed:
        shutil.rmtree(parts)
    return extraction


def _check_request(paths: list[str], out: Path, overwrite: bool) -> None:
    if not paths:
        raise DataError("expected NanoAOD files; got none")
    twice = sorted({p for p in paths if paths.count(p) > 1}) if len(set(paths)) < len(paths) else []
    if twice:
        raise DataError(f"expected every file once; given twice: {', '.join(twice[:5])}")
    if out.suffix != ".parquet":
        raise DataError(f"expected an output that ends in .parquet; got {str(out)!r}")
    if not out.parent.is_dir():
        raise DataError(f"no folder {str(out.parent)!r} to write {out.name!r} into; create it first")
    if out.exists() and not overwrite:
        raise DataError(f"{out} exists; choose another output, or --overwrite")


def _one_file(path: str, wanted: Object, part: Path, columns: tuple[str, ...] | None) -> FileResult:
    """Make the part of a file unless it is there; a failure is a result, not an exception."""
    try:
        stamp = _stamp(path, wanted)
        result = _kept(part, stamp)
        if result is None:
            with open_events(path) as events:
                result = _write_part(events, wanted, part, stamp)
        if columns is not None and result.columns != columns:
            other = sorted(set(columns) ^ set(result.columns))
            raise DataError(
                f"{path}: its columns are not those of the files before it (they differ in {', '.join(other)}); "
                "extract productions of different versions to tables of their own"
            )
    except DataError as error:
        return FileResult(path, "failed", problem=str(error))
    return result


def _write_part(events: EventFile, wanted: Object, part: Path, stamp: dict[str, Any]) -> FileResult:
    import pyarrow.parquet as pq

    found, missing = choose(wanted, events.branches)
    context = branches_of_context(wanted)
    generated = [b for b in context if b.startswith("Gen")]
    events.require(generated, "the generator level is needed: is this simulation?")
    events.require([*context, wanted.index, *(r.reconstructed for r in wanted.relations)], "it is needed")
    names = list(dict.fromkeys([*context, *branches_of_targets(wanted, found)]))
    result = FileResult(
        events.path, "read", events.events, columns=tuple(found.values()), missing=tuple(missing)
    )
    temporary = part.with_suffix(f".{os.getpid()}.tmp")
    writer = None
    try:
        for piece in events.read(names):
            event, reconstructed, partner = partners(piece, wanted)
            values: Columns = {name: piece.values[name][event] for name in EVENT}
            made = context_columns(piece, wanted, event, partner)
            values |= made | target_columns(piece, wanted, found, reconstructed, made)
            finite = np.all([np.isfinite(v) for v in values.values()], axis=0)
            result = replace(
                result,
                objects=result.objects + int(piece.counts[wanted.collection].sum()),
                pairs=result.pairs + int(finite.sum()),
                unusable=result.unusable + int((~finite).sum()),
            )
            table = _arrow({name: v[finite] for name, v in values.items()}, wanted)
            writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
            writer.write_table(table)
        assert writer is not None  # an empty tree yields one empty piece
        writer.add_key_value_metadata({_KEY: json.dumps({"stamp": stamp, "result": asdict(result)})})
        writer.close()
        os.replace(temporary, part)
    except OSError as error:
        raise DataError(f"could not write {str(part)!r}: {error}") from error
    finally:
        if writer is not None:
            writer.close()
        temporary.unlink(missing_ok=True)
    return result


def _arrow(values: Columns, wanted: Object) -> Any:
    """Return an Arrow table: floats as float32, flags and integers as int32, what names the event as it is."""
    import pyarrow as pa

    def column(name: str, v: np.ndarray) -> Any:
        if name in EVENT:
            return pa.array(v)
        return pa.array(v.astype(np.float32 if v.dtype.kind == "f" else np.int32))

    metadata = {"extracted": f"fluvial.apps.collider {wanted.name}", "version": fluvial.__version__}
    return pa.table({name: column(name, v) for name, v in values.items()}, metadata=metadata)


def _stamp(path: str, wanted: Object) -> dict[str, Any]:
    """Return what tells whether a part is still that of its file."""
    stamp: dict[str, Any] = {"path": path, "object": wanted.name, "layout": LAYOUT}
    if "://" not in path and os.path.exists(path):
        status = os.stat(path)
        stamp |= {"size": status.st_size, "modified": status.st_mtime_ns}
    return stamp


def _kept(part: Path, stamp: dict[str, Any]) -> FileResult | None:
    """Return the result of a part that is already there and of the same file, else ``None``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not part.exists():
        return None
    try:
        described = json.loads((pq.read_metadata(part).metadata or {})[_KEY])
        if described["stamp"] != stamp:
            return None
        result = FileResult(**described["result"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None  # not one of ours, or of another version: it is made anew
    return replace(result, status="kept", columns=tuple(result.columns), missing=tuple(result.missing))


def _part_name(path: str) -> str:
    digest = hashlib.sha256(os.path.abspath(path).encode() if "://" not in path else path.encode())
    return f"{Path(path).stem[:60]}-{digest.hexdigest()[:12]}.parquet"


def _join(parts: list[Path], out: Path) -> None:
    """Join the parts in order, row group by row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(parts[0]).remove_metadata()
    schema = schema.with_metadata({"version": fluvial.__version__, "files": str(len(parts))})
    temporary = out.with_name(f".{out.stem}-{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            waiting: list[Any] = []
            for part in parts:
                with pq.ParquetFile(part) as file:
                    for batch in file.iter_batches(_ROWS):
                        waiting.append(pa.Table.from_batches([batch]).cast(schema))
                        if sum(t.num_rows for t in waiting) >= _ROWS:
                            writer.write_table(pa.concat_tables(waiting))
                            waiting.clear()
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
        os.replace(temporary, out)
    except OSError as error:
        raise DataError(f"could not write {str(out)!r}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
