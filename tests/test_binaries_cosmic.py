"""COSMIC's HDF5 tables, in both formats that pandas writes, without running what is pickled in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fluvial import DataError
from fluvial.apps.binaries.cosmic import extract
from fluvial.data.readers import open_table

INTEGERS = ("kstar_1", "kstar_2", "evol_type", "bin_num")
FLOATS = ("tphys", "mass_1", "mass_2", "sep", "ecc")
#: Binary 7 forms two holes and merges, 3 forms them and does not, 5 is disrupted, 9 forms one only.
ROWS = [
    # kstar_1, kstar_2, evol_type, bin_num, tphys, mass_1, mass_2, sep, ecc
    (1, 1, 1, 7, 0.0, 40.0, 30.0, 90.0, 0.1),
    (14, 14, 2, 7, 6.0, 12.0, 9.0, 20.0, 0.2),
    (14, 14, 10, 7, 6.5, 12.0, 9.0, 19.0, 0.2),
    (14, 15, 6, 7, 506.0, 21.0, 0.0, 0.0, 0.0),
    (14, 14, 2, 3, 7.0, 15.0, 14.0, 5000.0, 0.3),
    (14, 14, 2, 5, 7.0, 15.0, 14.0, -1.0, -1.0),
    (14, 13, 2, 9, 7.0, 15.0, 2.0, 20.0, 0.0),
]


def columns() -> dict[str, np.ndarray]:
    values = np.array(ROWS)
    return {n: values[:, i].astype(int if n in INTEGERS else float) for i, n in enumerate(INTEGERS + FLOATS)}


def write(path: Path, form: str, **initial: list[float]) -> Path:
    """Write bpp and initC as pandas does."""
    tables = {"bpp": columns()}
    if initial:
        tables["initC"] = {n: np.array(v, dtype=float) for n, v in initial.items()}
    with h5py.File(path, "w") as file:
        for key, table in tables.items():
            (_as_table if form == "table" else _as_fixed)(file.create_group(key), table)
    return path


def _blocks(table: dict[str, np.ndarray]) -> list[tuple[list[str], np.ndarray]]:
    kinds: dict[str, list[str]] = {}
    for name, values in table.items():
        kinds.setdefault(values.dtype.kind, []).append(name)
    return [(names, np.stack([table[n] for n in names], 1)) for names in kinds.values()]


def _as_table(group: Any, table: dict[str, np.ndarray]) -> None:
    blocks = _blocks(table)
    dtype = [("index", "i8")] + [
        (f"values_block_{k}", v.dtype, (v.shape[1],)) for k, (_, v) in enumerate(blocks)
    ]
    records = np.zeros(len(blocks[0][1]), dtype=dtype)
    for k, (_, values) in enumerate(blocks):
        records[f"values_block_{k}"] = values
    data = group.create_dataset("table", data=records)
    for k, (names, _) in enumerate(blocks):
        data.attrs[f"values_block_{k}_kind"] = np.void(pickle.dumps(names, 0))


def _as_fixed(group: Any, table: dict[str, np.ndarray]) -> None:
    blocks = _blocks(table)
    group.attrs["nblocks"] = len(blocks)
    group["axis0"] = np.array(list(table), dtype="S")
    group["axis1"] = np.arange(len(blocks[0][1]))
    for k, (names, values) in enumerate(blocks):
        group[f"block{k}_items"] = np.array(names, dtype="S")
        group[f"block{k}_values"] = values


INITIAL: dict[str, list[float]] = {
    "bin_num": [9, 7, 5, 3],
    "metallicity": [0.02, 0.001, 0.02, 0.002],
    "alpha1_0": [1.0, 3.0, 1.0, 5.0],
}


@pytest.mark.parametrize("form", ["table", "fixed"])
def test_bound_pairs_of_black_holes(tmp_path: Path, form: str) -> None:
    table = extract([write(tmp_path / "a.h5", form, **INITIAL)], tmp_path / "out.parquet")
    assert table["Mass_0"].tolist() == [12.0, 15.0]
    assert table["Mass_1"].tolist() == [9.0, 14.0]
    assert table["Z"].tolist() == [0.001, 0.002]
    assert table["alpha"].tolist() == [3.0, 5.0]
    assert table["merges"].tolist() == [1.0, 0.0]
    assert table["separation"].tolist() == [20.0, 5000.0]
    assert table["delay_time"][0] == 500.0
    assert np.isnan(table["delay_time"][1])
    read = open_table(tmp_path / "out.parquet")
    assert list(read.columns()) == list(table)
    assert read.rows() == 2


def test_many_files_with_settings_in_their_names(tmp_path: Path) -> None:
    files = []
    for z, alpha in ((0.0002, 1), (0.02, 3)):
        files.append(write(tmp_path / f"Z{z}_alpha{alpha}.h5", "table"))
    pattern = r"Z(?P<Z>[0-9.e-]+)_alpha(?P<alpha>[0-9.]+)"
    table = extract(files, tmp_path / "out.parquet", from_path=pattern)
    assert table["Z"].tolist() == [0.0002, 0.0002, 0.02, 0.02]
    assert table["alpha"].tolist() == [1.0, 1.0, 3.0, 3.0]
    table = extract(files[:1], tmp_path / "out.parquet", set_to={"Z": 0.1, "alpha": 2, "kick": 265})
    assert table["kick"].tolist() == [265.0, 265.0]


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", "table", **INITIAL)
    done = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (done.touch, ())

    with h5py.File(path, "a") as file:
        file["bpp/table"].attrs["values_block_0_kind"] = np.void(pickle.dumps(Evil(), 0))
    with pytest.raises(DataError, match="table bpp has no column"):
        extract([path], tmp_path / "out.parquet")
    assert not done.exists()


def test_mistakes_are_named(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    bare = write(tmp_path / "bare.h5", "fixed")
    with pytest.raises(DataError, match=r"Z is not known: .* --set Z=VALUE"):
        extract([bare], out)
    with pytest.raises(DataError, match="no regular expression"):
        extract([bare], out, from_path="(")
    with pytest.raises(DataError, match="it is not there"):
        extract([bare], out, from_path="Z(?P<Z>[0-9]+)")
    lacking = write(tmp_path / "l.h5", "table", bin_num=[7], metallicity=[0.1], alpha1=[1])
    with pytest.raises(DataError, match="initC lacks some of the binaries"):
        extract([lacking], out)
    (tmp_path / "no.h5").write_bytes(b"no")
    with pytest.raises(DataError, match="expected an HDF5 file"):
        extract([tmp_path / "no.h5"], out)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["bcm"] = [1]
    with pytest.raises(DataError, match="expected a table 'bpp'; known: bcm"):
        extract([tmp_path / "other.h5"], out)
    assert not out.exists()
