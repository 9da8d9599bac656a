"""A first study for a table that nobody has described yet: what its columns look like, written out to be corrected."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fluvial.data.discrete import MOST_VALUES
from fluvial.data.readers import Reader, open_table, source_beside
from fluvial.errors import DataError, nearest
from fluvial.study import parse_study

#: Rows that are looked at, in stretches from all over the table.
ROWS, STRETCHES = 200_000, 20
#: A value that so large a share of the rows has is an atom, where at most so many values do.
ATOM_SHARE, MOST_ATOMS = 0.005, 4
#: A positive context that reaches over so large a factor is taken by its logarithm.
DECADES = 30.0
#: How near to a bound the rows must come for it to be taken for one.
_TOUCH = 0.02


@dataclass(frozen=True)
class Found:
    """What a column looks like: lines of its section in a study, and what a reader should know."""

    name: str
    said: str
    lines: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    constant: bool = False


def first_study(source: str, targets: Sequence[str], context: Sequence[str], *, folder: Path = Path()) -> str:
    """Return the text of a study for a table, its columns described by what they hold.

    Integers, atoms, bounds, angles and missing values are guessed from rows all over the table; each guess stands beside
    what it was made from.

    Parameters
    ----------
    source
        A path, as a study has it: a file, a glob, a folder.
    targets, context
        Columns; targets must not be empty.
    folder
        Where the study will lie: a relative source is beside it.

    Raises
    ------
    DataError
        If a column is not in the table, or a target does not vary.
    """
    reader = open_table(source_beside(source, folder))
    known = list(reader.columns())
    for name in (*targets, *context):
        if name not in known:
            raise DataError(f"{source}: no column {name!r}{nearest(name, known)}")
    if not targets:
        raise DataError(f"{source}: expected at least one target; its columns are {', '.join(known)}.")
    found = describe(reader, [*targets, *context], targets)
    still = [f.name for f in found[: len(targets)] if f.constant]
    if still:
        raise DataError(
            f"{source}: {', '.join(still)} is the same in every row; a target must vary. Leave it out."
        )
    text = _text(source, reader, targets, context, found)
    parse_study(tomllib.loads(text))
    return text


def describe(reader: Reader, names: Sequence[str], targets: Sequence[str] | None = None) -> list[Found]:
    """Return what columns look like, from rows all over a table.

    Without ``targets`` all are looked at as such, and one that holds no numbers says so; with them, of columns chosen for
    a study, it is an error.
    """
    out = []
    for name in names:
        if reader.length(name) is not None:
            out.append(Found(name, f"an array of {reader.length(name)} numbers a row"))
            continue
        try:
            values = _some(reader, name)
        except DataError as error:
            if targets is not None:
                raise
            text = "string" in reader.columns()[name]
            out.append(Found(name, "text: of use once it is numbers" if text else str(error)))
            continue
        out.append(describe_column(name, values, target=targets is None or name in targets))
    return out


def describe_column(name: str, values: np.ndarray, *, target: bool = True) -> Found:
    """Return what a column of numbers looks like.

    >>> describe_column("charge", np.array([-1.0, 1.0] * 500)).lines
    {'kind': '"integer"'}
    >>> x = np.random.default_rng(0).exponential(size=1000)
    >>> describe_column("isolation", np.append(x, np.zeros(100))).lines
    {'support': '"positive"', 'atoms': '[0]'}
    """
    finite = values[np.isfinite(values)]
    missing = len(values) - len(finite)
    if not len(finite):
        return Found(name, "no finite value", missing=missing)
    distinct, counts = np.unique(finite, return_counts=True)
    low, high = float(distinct[0]), float(distinct[-1])
    if len(distinct) == 1:
        return Found(name, f"{low:g} in every row", missing=missing, constant=True)
    whole = bool((distinct == np.round(distinct)).all())
    said = f"from {low:.6g} to {high:.6g}, median {np.median(finite):.6g}"
    if whole and len(distinct) <= min(MOST_VALUES, max(2, len(finite) // 10)):
        return Found(name, f"{len(distinct)} whole numbers, {said}", {"kind": '"integer"'}, missing)
    if len(distinct) <= min(64, len(finite) // 10):
        lines = {} if target else _context_lines(distinct)
        return Found(name, f"{len(distinct)} values, a grid: {said}", lines, missing)
    often = counts > max(ATOM_SHARE * len(finite), 5 * np.median(counts))
    atoms = distinct[often] if 0 < often.sum() <= MOST_ATOMS else distinct[:0]
    rest = distinct[~np.isin(distinct, atoms)]
    if not len(atoms):
        lines = _turn(rest) or (_bounds(rest) if target else _context_lines(rest))
    else:
        lines = _bounds(rest)
        lines["atoms"] = "[" + ", ".join(f"{a:.17g}" for a in atoms) + "]"
        share = counts[often].sum() / len(finite)
        said += f"; {100 * share:.2g} % are exactly {', '.join(f'{a:g}' for a in atoms)}"
    return Found(name, said, lines, missing)


def _some(reader: Reader, name: str) -> np.ndarray:
    """Return a column's values in rows from all over the table, at most :data:`ROWS`."""
    total = reader.rows()
    if total <= ROWS:
        return reader.read([name])[name]
    each = ROWS // STRETCHES
    starts = np.linspace(0, total - each, STRETCHES).astype(int)
    pieces = [
        np.asarray(chunk[name], dtype=np.float64)
        for start in starts
        for chunk in reader.chunks([name], each, int(start), int(start) + each)
    ]
    return np.concatenate(pieces)


def _turn(values: np.ndarray) -> dict[str, str]:
    """Return the period of an angle, of values that come up to both ends of one turn."""
    low, high = float(values[0]), float(values[-1])
    for a, b, text in (
        (-math.pi, math.pi, '"pi"'),
        (0.0, 2 * math.pi, '[0, "2pi"]'),
        (-180.0, 180.0, "[-180, 180]"),
        (0.0, 360.0, "[0, 360]"),
    ):
        near = _TOUCH * (b - a)
        if a <= low < a + near and b - near < high <= b * (1 + 1e-6):
            return {"period": text}
    return {}


def _bounds(rest: np.ndarray) -> dict[str, str]:
    """Return the support that values have."""
    low, high = float(rest[0]), float(rest[-1])
    if low > 0 and high < 1 and high > 1 - 5 * _TOUCH:
        return {"support": "[0, 1]"}
    if low > -1 and high < 1 and low < -1 + _TOUCH and high > 1 - _TOUCH:
        return {"support": "[-1, 1]"}
    if low > 0:
        return {"support": '"positive"'}
    return {}


def _context_lines(values: np.ndarray) -> dict[str, str]:
    """Return the logarithm for positive values over decades whose middle it brings nearer to the middle."""
    low, middle, high = (float(q) for q in np.quantile(values, [0.01, 0.5, 0.99]))
    if values.min() <= 0 or high < DECADES * low:
        return {}
    plain = (middle - low) / (high - low)
    by_log = math.log(middle / low) / math.log(high / low)
    return {"transform": '"log"'} if abs(by_log - 0.5) < abs(plain - 0.5) else {}


def _text(
    source: str, reader: Reader, targets: Sequence[str], context: Sequence[str], found: Sequence[Found]
) -> str:
    missing = [f"{f.missing:,} of {f.name}" for f in found if f.missing]
    lines = [
        "# A first study, written by `fluvial init` from what the rows look like: read it, correct it, then",
        "#   fluvial fit THIS_FILE",
        "# Every key is explained in docs/study.md; a key that is misspelt is an error that names the right one.",
        "",
        "[data]",
        f"source = {_quoted(source)}  # {reader.rows():,} rows",
        f"targets = {_listed(targets)}",
        f"context = {_listed(context)}",
        "split = { train = 0.7, validation = 0.1, test = 0.1, calibration = 0.1 }  # calibration: for `recalibrate`",
        "seed = 1",
    ]
    if missing:
        lines.append(
            f'missing = "drop"  # rows with NaN are left out; of those looked at: {", ".join(missing)}'
        )
    for of in found:
        lines += ["", f"[columns.{_key(of.name)}]  # {of.said}", 'unit = ""']
        lines += [f"{key} = {value}" for key, value in of.lines.items()]
    lines += [
        "",
        "# [flow]",
        '# architecture = "autoregressive-spline"  # the default for up to four targets; of more, "coupling-spline"',
        "",
        "[training]",
        "epochs = 30  # at most; or minutes = 5",
        "patience = 10  # epochs without a better validation loss",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _listed(names: Sequence[str]) -> str:
    return "[" + ", ".join(map(_quoted, names)) + "]"


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _quoted(name)


def write_study(out: Path, text: str, *, overwrite: bool = False) -> None:
    """Write a study; raise :class:`~fluvial.errors.DataError` where a file is there already."""
    if out.exists() and not overwrite:
        raise DataError(f"{out} is there already; give another name with --out, or --overwrite.")
    out.write_text(text, encoding="utf-8")
