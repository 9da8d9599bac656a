"""What a bulk sampling is to draw, in blocks and shards: a plan that any process makes the same rows of.

Rows are counted context by context: row r is draw ``r % draws`` at context ``r // draws``. They are drawn in **blocks**
of at most :data:`BLOCK` rows: whole contexts where they fit, else parts of one. Block b has a random generator of its
own, seeded by the plan's seed and by b alone, so a row does not depend on which process draws it, nor on how blocks are
gathered into **shards**, the files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fluvial import __version__
from fluvial.data.expressions import Expression
from fluvial.data.readers import Reader, absolute_source, open_table
from fluvial.data.schema import Column
from fluvial.data.select import parse_derived
from fluvial.density import DENSITY_FILE, WEIGHTS_FILE, Density
from fluvial.errors import DataError, RunError, nearest
from fluvial.files import write_atomically

FORMAT = 1
#: Starts with an underscore, as libraries that read a folder of Parquet files leave such names alone.
MANIFEST = "_manifest.json"
#: Rows of a block, and numbers of the contexts of one.
BLOCK, CONTEXT_NUMBERS = 2**14, 2**22
#: Rows of a shard and most shards, where their number is left open.
SHARD_ROWS, MOST_SHARDS = 2**24, 10_000
#: Numbers of contexts that are looked at together before drawing begins.
CHECKED_NUMBERS = 2**20


@dataclass(frozen=True)
class Plan:
    """What is drawn, and how it is cut.

    Attributes
    ----------
    run : str
        The run folder, or another folder with a density.
    density : str
        SHA-256 of the density's two files.
    source : str, list of str or None
        The table of contexts; ``None`` where ``given`` is the one context.
    contexts : dict
        Rows, bytes and a SHA-256 of the ends of the files of contexts: what tells one table from another.
    draws, seed, shards : int
        Draws at each context; what decides all of them; the number of files.
    context_rows, per_block : int
        Contexts, and how many of them make a block (0: a block is a part of one).
    columns : dict
        The columns that are written, with their types.
    outside : dict
        For each context column, how many contexts lie outside the range that the density was trained on.
    """

    run: str
    density: str
    source: str | list[str] | None
    given: dict[str, float]
    contexts: dict[str, Any]
    draws: int
    seed: int
    shards: int
    context_rows: int
    per_block: int
    compression: str
    columns: dict[str, str]
    outside: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows in all."""
        return self.context_rows * self.draws

    @property
    def blocks(self) -> int:
        """Blocks in all."""
        if self.per_block:
            return math.ceil(self.context_rows / self.per_block)
        return self.context_rows * self.parts

    @property
    def parts(self) -> int:
        """Blocks that the draws at one context are cut into, where one is not enough."""
        return math.ceil(self.draws / BLOCK)

    def first_row(self, block: int) -> int:
        """Return the first row of a block; of the number of blocks, the rows in all."""
        if self.per_block:
            return min(block * self.per_block, self.context_rows) * self.draws
        context, part = divmod(block, self.parts)
        return context * self.draws + part * BLOCK

    def of_shard(self, shard: int) -> range:
        """Return the blocks of a shard: those of all shards are every block once, in order."""
        return range(shard * self.blocks // self.shards, (shard + 1) * self.blocks // self.shards)

    def file(self, shard: int) -> str:
        """Return the name of a shard's file."""
        return f"part-{shard:0{max(5, len(str(self.shards - 1)))}}.parquet"

    def block_seed(self, block: int) -> int:
        """Return the seed of a block's generator, 63 bits."""
        state = np.random.SeedSequence(self.seed, spawn_key=(block,)).generate_state(1, np.uint64)
        return int(state[0]) >> 1

    def mine(self, part: tuple[int, int]) -> list[int]:
        """Return the shards that task ``part[0]`` of ``part[1]`` makes."""
        return list(range(part[0], self.shards, part[1]))


def make_plan(
    density: Density,
    *,
    source: str | Path | list[str] | None,
    given: Mapping[str, float],
    draws: int,
    seed: int,
    shards: int | None,
    least_shards: int,
    compression: str,
    wide: bool,
    like: Plan | None = None,
) -> Plan:
    """Look at every context once, and return what is to be drawn; ``like`` is a plan for which that has been done.

    Raises
    ------
    DataError
        If a context is missing or outside its column's support; the message names the first such row.
    """
    assert density.folder is not None
    if source is None:
        contexts, rows, outside = {}, 1, {}
    else:
        table = ContextTable(source, density.schema.context)
        rows = table.reader.rows()
        outside = like.outside if like else table.check(density.context_range)
        contexts = {"rows": rows, **_ends(table.reader.parts())}
    width = sum(c.length or 1 for c in density.schema.context) or 1
    per_block = 0 if draws > BLOCK else max(1, min(BLOCK // draws, CONTEXT_NUMBERS // width))
    plan = Plan(
        run=str(density.folder.resolve()),
        density=fingerprint(density.folder),
        source=None if source is None else absolute_source(source),
        given={name: float(value) for name, value in given.items()},
        contexts=contexts,
        draws=draws,
        seed=seed,
        shards=1,
        context_rows=rows,
        per_block=per_block,
        compression=compression,
        columns={c.name: column_type(c, wide=wide) for c in written_columns(density)},
        outside=outside,
    )
    number = shards or max(min(math.ceil(plan.rows / SHARD_ROWS), MOST_SHARDS), least_shards)
    if shards is not None and shards > plan.blocks:
        raise DataError(
            f"--shards: expected at most {plan.blocks:,}, one for each block of {BLOCK:,} rows that are drawn together; "
            f"found {shards:,}."
        )
    return Plan(**{**asdict(plan), "shards": min(number, plan.blocks)})


def written_columns(density: Density) -> list[Column]:
    """Return the columns that are written: the context but for arrays, and the targets."""
    scalar = [c for c in density.schema.context if c.length is None]
    return [*scalar, *density.schema.targets]


def column_type(column: Column, *, wide: bool) -> str:
    """Return the type that a column is written in: float32, unless it would change a value that has a probability.

    >>> column_type(Column("x", "target"), wide=False), column_type(Column("x", "target", atoms=(0.1,)), wide=False)
    ('float32', 'float64')
    """
    exact = all(float(np.float32(value)) == value for value in column.levels)
    return "float32" if exact and not wide else "float64"


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of a density: of its description and its weights."""
    digest = hashlib.sha256()
    for name in (DENSITY_FILE, WEIGHTS_FILE):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _ends(files: list[Path], size: int = 2**16) -> dict[str, Any]:
    """Return the bytes of files, and the SHA-256 of where they begin and end: the end of Parquet describes the whole."""
    digest, total = hashlib.sha256(), 0
    for path in files:
        total += (length := path.stat().st_size)
        with path.open("rb") as file:
            digest.update(file.read(size))
            file.seek(max(0, length - size))
            digest.update(file.read(size))
    return {"bytes": total, "sha256_of_ends": digest.hexdigest()}


class ContextTable:
    """The contexts of a table file, read by ranges of rows; a derived column is computed where it is absent."""

    def __init__(self, source: str | Path | list[str], columns: tuple[Column, ...]):
        self.reader: Reader = open_table(source)
        self.columns = columns
        known = self.reader.columns()
        absent = {c.name: c.expression for c in columns if c.expression is not None and c.name not in known}
        self.derived: dict[str, Expression] = parse_derived(absent)
        for expression in self.derived.values():
            expression.require([*known, *self.derived], str(self.reader.path))
        needed = [c.name for c in columns] + [n for e in self.derived.values() for n in e.columns]
        self.stored = [n for n in dict.fromkeys(needed) if n not in self.derived]
        for name in self.stored:
            self.reader.length(name)  # raises where it is missing

    def chunks(self, rows: int, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield the context columns of a range of rows, at most so many at a time."""
        for chunk in self.reader.chunks(self.stored, rows, start, stop):
            for name, expression in self.derived.items():
                chunk[name] = expression(chunk)
            yield {c.name: chunk[c.name] for c in self.columns}

    def check(self, ranges: Mapping[str, tuple[float, float]]) -> dict[str, int]:
        """Return how many rows lie outside the ranges; raise :class:`~fluvial.errors.DataError` at an impossible one."""
        outside: dict[str, int] = {}
        row = 0
        width = sum(c.length or 1 for c in self.columns)
        for chunk in self.chunks(max(1, CHECKED_NUMBERS // width), 0, self.reader.rows()):
            size = 0
            for column in self.columns:
                values = np.asarray(chunk[column.name], dtype=np.float64)
                size = len(values)
                good = column.contains(values)
                bad = ~(good.all(-1) if good.ndim > 1 else good)
                if bad.any():
                    first = int(bad.argmax())
                    raise DataError(
                        f"{self.reader.path}: column {column.name}, row {row + first}: {values[first]} is missing or "
                        f"outside the support {column.describe_support()}; correct such rows, or leave them out."
                    )
                if column.name in ranges and values.ndim == 1:
                    low, high = ranges[column.name]
                    slack = 1e-6 * (high - low)
                    far = int(((values < low - slack) | (values > high + slack)).sum())
                    if far:
                        outside[column.name] = outside.get(column.name, 0) + far
            row += size
        return outside


def given_context(density: Density, given: Mapping[str, float]) -> None:
    """Raise :class:`~fluvial.errors.DataError` unless every context column has a value, and no other name has one."""
    names = density.schema.context_names
    for name in given:
        if name not in names:
            raise DataError(f"Context column {name!r} is not known{nearest(name, names)}")
    missing = [n for n in names if n not in given]
    if missing:
        raise DataError(
            f"Expected a value for every context column ({', '.join(names)}), or a table of contexts; "
            f"missing: {', '.join(missing)}."
        )
    density.given(given)


#: What may differ between the command that began and one that goes on.
_FREE = {"run", "source", "outside"}


def read_plan(folder: Path) -> Plan | None:
    """Return the plan in a folder's manifest, ``None`` if there is none.

    Raises :class:`~fluvial.errors.RunError` if the manifest is damaged, or of a newer version.
    """
    path = folder / MANIFEST
    try:
        value = json.loads(path.read_bytes())
        if value["format"] > FORMAT:
            raise RunError(
                f"{path} has format {value['format']}; this fluvial reads up to {FORMAT}. Update it."
            )
        return Plan(**value["plan"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{path} is damaged ({error}); remove it, and all that is in {folder}, or restore it."
        ) from error


def require_same(found: Plan, asked: Plan, folder: Path) -> None:
    """Raise :class:`~fluvial.errors.RunError` unless two plans give the same rows in the same files."""
    ours, theirs = asdict(asked), asdict(found)
    for name in ours:
        if name not in _FREE and ours[name] != theirs[name]:
            raise RunError(
                f"{folder} holds draws of another kind: {name} is {_short(theirs[name])} there, and {_short(ours[name])} "
                "now. Choose another --out, or remove that folder."
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:24] + "…"


def write_manifest(folder: Path, plan: Plan, shards: list[dict[str, Any]]) -> None:
    """Write the manifest: the plan, and every finished shard with its checksum."""
    content = {
        "format": FORMAT,
        "fluvial": __version__,
        "complete": len(shards) == plan.shards,
        "rows": plan.rows,
        "rows_written": sum(s["rows"] for s in shards),
        "plan": asdict(plan),
        "shards": shards,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / MANIFEST, (text + "\n").encode())
