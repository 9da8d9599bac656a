"""Binary black holes out of the HDF5 files that COSMIC and other pandas programs write.

COSMIC (Breivik et al. 2020, ApJ 898, 71) leaves ``bpp``, a table of the moments at which something happened to each
binary, and ``initC``, its initial conditions and settings. :func:`extract` takes from them every bound pair of black
holes, at the moment when the second one forms:

===============  ====  ==========================================================================
column           unit  meaning
===============  ====  ==========================================================================
Mass_0, Mass_1   Msun  the remnants of the star that was born heavier, and of the other
Z                1     metallicity (``metallicity`` of ``initC``)
alpha            1     common-envelope efficiency (``alpha1`` of ``initC``)
separation       Rsun  semi-major axis
eccentricity     1
formation_time   Myr   since the birth of the binary
delay_time       Myr   from there to the merger; NaN if there is none before the simulation ends
merges           1     whether it merges before the simulation ends (0 or 1)
===============  ====  ==========================================================================

pandas writes the names of columns as a pickle; they are read off it without running it, so a file runs no code.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.data.readers import write_table
from fluvial.errors import DataError, nearest
from fluvial.extras import optional_module

BLACK_HOLE, COALESCENCE = 14, 6
#: Names under which settings are found in ``initC``.
KNOWN = {"Z": ("metallicity", "Z"), "alpha": ("alpha1", "alpha1_0", "alpha1_1", "alpha")}


def extract(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    set_to: Mapping[str, float] | None = None,
    from_path: str | None = None,
) -> dict[str, np.ndarray]:
    """Write the bound binary black holes of COSMIC's HDF5 files as one table; return it.

    Parameters
    ----------
    files
        What ``cosmic-pop`` or ``pandas.to_hdf`` have written, with a table ``bpp``.
    out
        A ``.parquet`` file (or what else :func:`fluvial.data.readers.write_table` writes).
    set_to
        Columns with the same value everywhere, such as ``{"alpha": 1.0}`` where no table holds it.
    from_path
        A regular expression whose named groups are found in the path of every file:
        ``"Z(?P<Z>[0-9.e-]+)_alpha(?P<alpha>[0-9.]+)"``.

    Raises
    ------
    DataError
        If a file is no HDF5 file of such tables, lacks a column, or leaves Z or alpha unknown; or if no file holds a
        bound pair of black holes.
    MissingExtraError
        If h5py is not installed.
    """
    parts = [_of_file(Path(f), dict(set_to or {}), from_path) for f in files]
    table = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    if not len(table["Z"]):
        raise DataError(f"Expected bound binary black holes in {len(parts)} files; found none.")
    write_table(out, table)
    return table


def _of_file(path: Path, set_to: Mapping[str, float], from_path: str | None) -> dict[str, np.ndarray]:
    given = dict(set_to) | _in_path(path, from_path)
    h5py = optional_module("h5py", "hdf5")
    try:
        with h5py.File(path, "r") as file:
            bpp = read_pandas(file, "bpp", path)
            initial = read_pandas(file, "initC", path) if "initC" in file else {}
    except OSError as error:
        raise DataError(
            f"{path}: expected an HDF5 file that COSMIC or pandas wrote; it cannot be read ({error})."
        ) from None
    needed = ("bin_num", "kstar_1", "kstar_2", "mass_1", "mass_2", "sep", "ecc", "evol_type", "tphys")
    for name in needed:
        if name not in bpp:
            raise DataError(f"{path}: table bpp has no column {name!r}{nearest(name, bpp)}")
    holes = (bpp["kstar_1"] == BLACK_HOLE) & (bpp["kstar_2"] == BLACK_HOLE) & (bpp["sep"] > 0)
    rows = np.flatnonzero(holes)
    _, first = np.unique(bpp["bin_num"][rows], return_index=True)
    rows = rows[np.sort(first)]
    merged = bpp["evol_type"] == COALESCENCE
    when = dict(zip(bpp["bin_num"][merged].tolist(), bpp["tphys"][merged].tolist(), strict=True))
    numbers = bpp["bin_num"][rows]
    ends = np.array([when.get(n, np.nan) for n in numbers.tolist()], dtype=np.float64)
    out = {
        "Mass_0": bpp["mass_1"][rows],
        "Mass_1": bpp["mass_2"][rows],
        **{name: _setting(name, numbers, given, initial, path) for name in KNOWN},
        **{name: np.full(len(rows), float(v)) for name, v in given.items() if name not in KNOWN},
        "separation": bpp["sep"][rows],
        "eccentricity": bpp["ecc"][rows],
        "formation_time": bpp["tphys"][rows],
        "delay_time": ends - bpp["tphys"][rows],
        "merges": np.isfinite(ends).astype(np.float64),
    }
    return {name: np.asarray(values, dtype=np.float64) for name, values in out.items()}


def _setting(
    name: str,
    numbers: np.ndarray,
    given: Mapping[str, float],
    initial: Mapping[str, np.ndarray],
    path: Path,
) -> np.ndarray:
    if name in given:
        return np.full(len(numbers), float(given[name]))
    column = next((c for c in KNOWN[name] if c in initial), None)
    if column is None or "bin_num" not in initial:
        raise DataError(
            f"{path}: {name} is not known: no table initC with {' or '.join(KNOWN[name])}. Give it with --set "
            f"{name}=VALUE, or with --from-path where it is part of the file's path."
        )
    order = np.argsort(initial["bin_num"])
    at = np.searchsorted(initial["bin_num"], numbers, sorter=order)
    at = order[np.minimum(at, len(order) - 1)]
    if not (initial["bin_num"][at] == numbers).all():
        raise DataError(f"{path}: table initC lacks some of the binaries (bin_num) of table bpp.")
    return initial[column][at]


def _in_path(path: Path, pattern: str | None) -> dict[str, float]:
    if pattern is None:
        return {}
    try:
        found = re.search(pattern, str(path))
    except re.error as error:
        raise DataError(f"--from-path: {pattern!r} is no regular expression ({error}).") from None
    if found is None or not found.groupdict():
        raise DataError(f"--from-path: expected {pattern!r}, with named groups, in {path}; it is not there.")
    try:
        return {name: float(value.rstrip(".")) for name, value in found.groupdict().items()}
    except (ValueError, AttributeError):
        raise DataError(
            f"--from-path: expected numbers in {path}; found {found.groupdict()}. Change the expression."
        ) from None


def read_pandas(file: Any, key: str, path: Path) -> dict[str, np.ndarray]:
    """Return the numeric columns of a DataFrame that pandas stored in an open HDF5 file, in either of its formats.

    Raises :class:`~fluvial.DataError` if there is no such table.
    """
    if key not in file:
        raise DataError(f"{path}: expected a table {key!r}{nearest(key, list(file))}")
    group = file[key]
    if "table" in group:  # format="table": a dataset of records, the names of columns in attributes
        records, out = group["table"], {}
        for block in records.dtype.names or ():
            kind = records.attrs.get(f"{block}_kind")
            if block == "index" or kind is None:
                continue
            names = _strings(kind)
            dtype = records.dtype[block]
            if (dtype.base if dtype.subdtype else dtype).kind not in "fiub":
                continue
            values = records[block].reshape(len(records), -1)
            if len(names) == values.shape[1]:
                out |= {name: values[:, i] for i, name in enumerate(names)}
        if "bin_num" not in out and "index" in (records.dtype.names or ()):
            out["bin_num"] = records["index"]
        return out
    if "axis0" in group:  # format="fixed"
        out = {}
        for number in range(int(group.attrs.get("nblocks", 0))):
            values = group[f"block{number}_values"]
            if values.dtype.kind not in "fiub" or values.ndim != 2:
                continue
            names = [n.decode() if isinstance(n, bytes) else str(n) for n in group[f"block{number}_items"][:]]
            content = values[:]
            out |= {name: content[:, i] for i, name in enumerate(names)}
        if "bin_num" not in out and "axis1" in group:
            out["bin_num"] = group["axis1"][:]
        return out
    raise DataError(
        f"{path}: {key!r} is no table of pandas (neither format='table' nor format='fixed'); found "
        f"{', '.join(list(group)[:8]) if hasattr(group, 'keys') else type(group).__name__}."
    )


def _strings(pickled: Any) -> list[str]:
    """Return the strings in a pickled list of strings, without unpickling it.

    >>> import pickle
    >>> _strings(pickle.dumps(["mass_1", "sep"], 0)), _strings(np.bytes_(pickle.dumps(["a"], 4)))
    (['mass_1', 'sep'], ['a'])
    """
    text = pickled if isinstance(pickled, (bytes, bytearray)) else bytes(pickled)
    return [
        argument
        for opcode, argument, _ in pickletools.genops(bytes(text))
        if "UNICODE" in opcode.name and isinstance(argument, str)
    ]
