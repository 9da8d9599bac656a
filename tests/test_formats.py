"""Every format, on files made by the ecosystem's own writers: values, chunks, many files, and what is broken."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import awkward as ak
import h5py
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import uproot
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from fluvial.data.readers import Reader, fingerprint, memory_table, open_table
from fluvial.errors import DataError, MissingExtraError

ROWS = 1000
RNG = np.random.default_rng(7)
TABLE = {
    "mass": RNG.lognormal(3, 1, ROWS),
    "z": RNG.normal(size=ROWS).astype(np.float32),
    "kind": RNG.integers(-3, 14, ROWS).astype(np.int16),
    "flux": RNG.normal(size=(ROWS, 12)).astype(np.float32),
}


def save_parquet(path: Path, table: dict[str, np.ndarray], **options: object) -> None:
    columns = {
        name: pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
        if values.ndim > 1
        else values
        for name, values in table.items()
    }
    pq.write_table(pa.table(columns), path, **{"row_group_size": 256, **options})


def save_hdf5(path: Path, table: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for name, values in table.items():
            file.create_dataset(name, data=values, compression="gzip", chunks=True)


def save_compound(path: Path, table: dict[str, np.ndarray]) -> None:
    kinds = [(name, values.dtype, values.shape[1:]) for name, values in table.items()]
    rows = np.empty(len(table["mass"]), dtype=kinds)
    for name, values in table.items():
        rows[name] = values
    if path.suffix == ".npy":
        np.save(path, rows)
    else:
        with h5py.File(path, "w") as file:
            file["events"] = rows


def save_npz(path: Path, table: dict[str, np.ndarray]) -> None:
    np.savez(path, **table)  # type: ignore[arg-type]


def save_fits(path: Path, table: dict[str, np.ndarray]) -> None:
    Table(table).write(path, overwrite=True)


def save_root(path: Path, table: dict[str, np.ndarray]) -> None:
    with uproot.recreate(path) as file:
        file.mktree("Events", {name: (v.dtype, v.shape[1:]) for name, v in table.items()})
        half = len(table["mass"]) // 2  # two baskets
        file["Events"].extend({name: values[:half] for name, values in table.items()})
        file["Events"].extend({name: values[half:] for name, values in table.items()})


def save_rntuple(path: Path, table: dict[str, np.ndarray]) -> None:
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", {n: np.dtype((v.dtype, v.shape[1:])) for n, v in table.items()}).extend(
            table
        )


WRITERS: dict[str, tuple[str, Callable[[Path, dict[str, np.ndarray]], None]]] = {
    "parquet": ("t.parquet", save_parquet),
    "hdf5": ("t.h5", save_hdf5),
    "hdf5-compound": ("t.hdf5", save_compound),
    "npy-structured": ("t.npy", save_compound),
    "npz": ("t.npz", save_npz),
    "fits": ("t.fits", save_fits),
    "root": ("t.root", save_root),
    "rntuple": ("t.root", save_rntuple),
}


@pytest.fixture(params=list(WRITERS))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[..., None]]:
    name, write = WRITERS[request.param]
    write(tmp_path / name, TABLE)
    return tmp_path / name, write


def joined(reader: Reader, names: list[str], rows: int, *limits: int) -> dict[str, np.ndarray]:
    """Return chunks as whole columns, and see that each is within its size and in the stored type."""
    chunks = list(reader.chunks(names, rows, *limits))
    for chunk in chunks:
        assert list(chunk) == names
        sizes = {len(values) for values in chunk.values()}
        assert len(sizes) == 1
        assert 1 <= sizes.pop() <= rows
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}


def test_columns_come_back(written: tuple[Path, Callable[..., None]]) -> None:
    reader = open_table(written[0])
    assert reader.rows() == ROWS
    assert set(reader.columns()) == set(TABLE)
    assert reader.parts() == [written[0]]
    assert reader.locate(17) == (written[0], 17)
    assert [reader.length(name) for name in TABLE] == [None, None, None, 12]
    read = reader.read(["flux", "kind", "mass", "z"])
    assert list(read) == ["flux", "kind", "mass", "z"]
    for name, values in read.items():
        np.testing.assert_array_equal(values, TABLE[name])
        assert values.flags.writeable
    assert [read[name].dtype for name in ("mass", "kind", "flux")] == [np.float64, np.float64, np.float32]


@pytest.mark.parametrize("rows", [100, 256, 257, 5000])
def test_chunks_cover_every_row_once(written: tuple[Path, Callable[..., None]], rows: int) -> None:
    reader = open_table(written[0])
    names = list(TABLE)
    for limits in ((), (0, ROWS), (255, 257), (256, 777), (999, 1000)):
        found = joined(reader, names, rows, *limits)
        for name, values in found.items():
            np.testing.assert_array_equal(values, TABLE[name][slice(*limits) if limits else slice(None)])
            assert values.dtype == TABLE[name].dtype
    np.testing.assert_array_equal(joined(reader, ["z"], 1, 254, 258)["z"], TABLE["z"][254:258])
    assert list(reader.chunks(names, rows, 5, 5)) == []
    with pytest.raises(ValueError, match="within 0 to 1000"):
        reader.chunks(names, rows, 5, ROWS + 1)


def test_one_element_of_an_array_is_a_column(written: tuple[Path, Callable[..., None]]) -> None:
    reader = open_table(written[0])
    read = reader.read(["flux[0]", "mass", "flux[11]"])
    np.testing.assert_array_equal(read["flux[0]"], TABLE["flux"][:, 0])
    np.testing.assert_array_equal(read["flux[11]"], TABLE["flux"][:, 11])
    assert read["flux[11]"].dtype == np.float64
    assert reader.length("flux[3]") is None
    with pytest.raises(DataError, match=r"no column 'flux\[12\]': flux has 12 elements, from 0"):
        reader.read(["flux[12]"])
    with pytest.raises(DataError, match=r"no column 'mass\[0\]': mass has one number a row"):
        reader.read(["mass[0]"])


def test_many_files_are_one_table(written: tuple[Path, Callable[..., None]]) -> None:
    first, write = written
    for i in (9, 10):  # 10 comes after 9
        write(first.with_stem(f"t{i}"), {name: values[:300] + i for name, values in TABLE.items()})
    expected = {
        n: np.concatenate([v, v[:300] + v.dtype.type(9), v[:300] + v.dtype.type(10)])
        for n, v in TABLE.items()
    }
    files = [first, first.with_stem("t9"), first.with_stem("t10")]
    for source in (str(first.with_stem("t*")), files, first.parent, [first, str(first.with_stem("t?*"))]):
        reader = open_table(source)
        assert reader.rows() == 1600
        assert reader.parts() == files
        assert reader.locate(999) == (files[0], 999)
        assert reader.locate(1000) == (files[1], 0)
        assert reader.locate(1599) == (files[2], 299)
        for name, values in reader.read(list(TABLE)).items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-6)
        np.testing.assert_array_equal(joined(reader, ["z"], 400, 990, 1310)["z"], expected["z"][990:1310])
    facts = fingerprint(files)
    assert facts["rows"] == 1600
    assert [file["path"] for file in facts["files"]] == [str(f) for f in files]
    assert fingerprint(files[::-1])["sha256"] != facts["sha256"]


def test_files_that_disagree_are_named(written: tuple[Path, Callable[..., None]]) -> None:
    first, write = written
    other = first.with_stem("u")
    write(other, {name: values for name, values in TABLE.items() if name != "z"})
    reader = open_table([first, other])
    assert set(reader.columns()) == {"mass", "kind", "flux"}
    assert reader.read(["mass"])["mass"].size == 2 * ROWS  # what is not asked for may be missing
    with pytest.raises(DataError, match=rf"{other.name}: no column 'z'.*{first.name} has it"):
        reader.read(["z"])
    with pytest.raises(DataError, match=rf"{other.name}: no column 'z'.*{first.name} has it"):
        open_table([other, first]).chunks(["z"], 10)
    with pytest.raises(DataError, match=rf"{first.name}: no column 'Mass'; did you mean 'mass'"):
        reader.read(["Mass"])
    write(other, TABLE | {"flux": TABLE["flux"][:, :11]})
    with pytest.raises(
        DataError,
        match=rf"{other.name}: column 'flux' holds an array of 11 a row, but in .*{first.name} an array of 12",
    ):
        open_table([first, other]).read(["flux"])


def test_a_truncated_file_is_said_to_be(written: tuple[Path, Callable[..., None]]) -> None:
    path = written[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{path.name} looks truncated.*copy or write it again"):
        open_table(path)


# ------------------------------------------------------------------------------------------- HDF5


def test_hdf5_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "jets.h5"
    with h5py.File(path, "w") as file:
        file["data"] = TABLE["flux"]
        file["jets/pt"] = TABLE["mass"]
        file["jets/eta"] = TABLE["z"].astype(">f4")
        file["edges"] = np.arange(13.0)
        file["version"] = 3
    reader = open_table(path)
    assert set(reader.columns()) == {"data", "jets/pt", "jets/eta"}
    np.testing.assert_array_equal(reader.read(["jets/eta"])["jets/eta"], TABLE["z"])
    with pytest.raises(DataError, match="column 'edges' has 13 rows; the others have 1000"):
        reader.read(["edges"])
    with pytest.raises(DataError, match="column 'version' is a single number; the others have 1000"):
        reader.read(["version"])
    group = open_table(f"{path}:jets")
    assert list(group.columns()) == ["eta", "pt"]
    assert list(open_table(f"{path}:data").columns()) == ["data"]
    assert open_table(f"{path}:jets/pt").read(["pt"])["pt"].size == ROWS
    with pytest.raises(DataError, match="no group or dataset 'jet'; did you mean 'jets'"):
        open_table(f"{path}:jet")


def test_hdf5_faults(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_group("empty")
    with pytest.raises(DataError, match=r"x\.h5 holds no datasets"):
        open_table(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"x\.h5 is not an HDF5 file: it starts with b'a,b"):
        open_table(path)
    with h5py.File(path, "w") as file:
        file["name"] = np.array([b"a", b"b"])
        file["x"] = [1.0, 2.0]
    with pytest.raises(DataError, match=r"column 'name' \(\|S1\) holds b'a' in row 0"):
        open_table(path).read(["name"])
    with pytest.raises(DataError, match="no column 'y'"):
        open_table(path).read(["y"])


# ----------------------------------------------------------------------------------------- numpy


def test_galah_spectra_beside_labels(tmp_path: Path) -> None:
    labels = RNG.normal(size=(ROWS, 8))
    np.save(tmp_path / "spectra.npy", TABLE["flux"])
    np.save(tmp_path / "labels.npy", labels)
    reader = open_table(tmp_path)
    assert reader.length("spectra") == 12
    read = reader.read(["t_eff", "log_g", "fe_h", "SNR", "mass", "spectra", "labels[4]"])
    for name, i in {"mass": 0, "t_eff": 4, "log_g": 5, "fe_h": 6, "SNR": 7, "labels[4]": 4}.items():
        np.testing.assert_array_equal(read[name], labels[:, i])
    np.testing.assert_array_equal(read["spectra"], TABLE["flux"])
    assert {p.name for p in reader.parts()} == {"spectra.npy", "labels.npy"}
    np.save(tmp_path / "labels.npy", labels[:-1])
    with pytest.raises(DataError, match=r"same number of rows; got labels\.npy 999, spectra\.npy 1000"):
        open_table(tmp_path)


def test_a_plain_npy_is_one_column(tmp_path: Path) -> None:
    np.save(tmp_path / "flux.npy", TABLE["flux"])
    reader = open_table(tmp_path / "flux.npy")
    assert reader.columns() == {"flux": "float32[12]"}
    np.testing.assert_array_equal(reader.read(["flux[3]"])["flux[3]"], TABLE["flux"][:, 3])
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    with pytest.raises(DataError, match=r"got \[2, 3, 4\]"):
        open_table(tmp_path / "cube.npy")


def test_numpy_files_never_run_code(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"x\.npy holds Python objects \(a pickle\), which could run code"):
        open_table(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", x=np.array([{}, {}], dtype=object), y=np.arange(2.0))
    assert open_table(tmp_path / "x.npz").read(["y"])["y"].tolist() == [0, 1]
    with pytest.raises(DataError, match=r"x\.npz holds Python objects"):
        open_table(tmp_path / "x.npz").read(["x"])


def test_npz_with_an_axis_of_its_own(tmp_path: Path) -> None:
    names = np.array(["a", "b"] * (ROWS // 2))
    np.savez_compressed(
        tmp_path / "s.npz", wavelength=np.arange(12.0), flux=TABLE["flux"], teff=TABLE["mass"], name=names
    )
    reader = open_table(tmp_path / "s.npz")
    assert set(reader.columns()) == {"flux", "teff", "name"}
    with pytest.raises(DataError, match="column 'wavelength' has 12 rows; the others have 1000"):
        reader.read(["wavelength"])
    with pytest.raises(DataError, match=r"column 'name' .* holds 'a' in row 0"):
        reader.read(["name"])


# --------------------------------------------------------------------------------------- Parquet


def test_hive_partitions_are_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"Z": np.repeat([0.001, 0.02], 50), "alpha": np.tile([1.0, 5.0], 50), "m": np.arange(100.0)}
    )
    frame.to_parquet(tmp_path / "grid", partition_cols=["Z", "alpha"])
    for source in (
        tmp_path / "grid",
        str(tmp_path / "grid" / "*" / "*" / "*.parquet"),
        str(tmp_path / "gr*/**/*.parquet"),
    ):
        reader = open_table(source)
        table = reader.read(["m", "Z", "alpha"])
        order = np.argsort(table["m"])
        for name, values in table.items():
            np.testing.assert_array_equal(values[order], frame[name])
        np.testing.assert_array_equal(reader.levels("Z"), [0.001, 0.02])
        assert len(reader.parts()) == 4
        chunked = joined(reader, ["alpha", "Z"], 7)
        np.testing.assert_array_equal(chunked["Z"], table["Z"])
        np.testing.assert_array_equal(chunked["alpha"], table["alpha"])
        assert sum(map(len, reader.spans({"Z": (0.0, 0.01)}))) == 50
    table = pa.table({"code": ["BSE", "SSE", None], "m": [1.0, 2.0, 3.0]})
    ds.write_dataset(
        table, tmp_path / "codes", format="parquet", partitioning=["code"], partitioning_flavor="hive"
    )
    reader = open_table(tmp_path / "codes")
    assert sorted(reader.read(["m"])["m"]) == [1, 2, 3]
    with pytest.raises(DataError, match=r"column 'code' \(partition\) holds 'BSE'"):
        reader.read(["code"])


def test_row_group_statistics_skip_groups(tmp_path: Path) -> None:
    values = np.arange(1000)
    table = {
        "i": values,
        "x": (values / 1000).astype(np.float32),
        "y": np.where(values < 500, np.nan, values),
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=100)
    reader = open_table(tmp_path / "t.parquet")
    assert reader.spans({}) == [range(1000)]
    assert reader.spans({"i": (250, 449)}) == [range(200, 500)]
    assert reader.spans({"i": (99, 100), "x": (0.0, 0.05)}) == [range(100)]
    assert reader.spans({"i": (5000, np.inf)}) == []
    assert reader.spans({"y": (-np.inf, 550)})[-1].stop == 600
    assert reader.spans({"x": (0.1, 0.1)})[0] == range(100, 200)  # 0.1 means the nearest float32
    pq.write_table(pa.table(table), tmp_path / "u.parquet", row_group_size=100, write_statistics=False)
    assert open_table(tmp_path / "u.parquet").spans({"i": (250, 449)}) == [range(1000)]


def test_lists_of_one_length_are_arrays(tmp_path: Path) -> None:
    rows = [[1.0, 2.0], [3.0, None], None, [5.0, 6.0]]
    pq.write_table(pa.table({"flux": rows, "x": range(4)}), tmp_path / "t.parquet", row_group_size=2)
    reader = open_table(tmp_path / "t.parquet")
    assert reader.length("flux") == 2
    nan = np.nan
    np.testing.assert_array_equal(reader.read(["flux"])["flux"], [[1, 2], [3, nan], [nan, nan], [5, 6]])
    rows[3] = [5.0, 6.0, 7.0]
    pd.DataFrame({"flux": rows}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(
        DataError, match=r"column 'flux' holds an array of length 3 in row 3; expected 2, as in row 0"
    ):
        open_table(tmp_path / "t.parquet").read(["flux"])


def test_integers_with_nulls_are_floats_in_their_chunk(tmp_path: Path) -> None:
    pq.write_table(pa.table({"k": [1, 2, None, 4]}), tmp_path / "t.parquet")
    first, second = open_table(tmp_path / "t.parquet").chunks(["k"], 2)
    assert first["k"].dtype == np.int64
    np.testing.assert_array_equal(second["k"], [np.nan, 4])


# ------------------------------------------------------------------------------------------ FITS


def test_fits_nulls_and_scales(tmp_path: Path) -> None:
    table = Table({
        "id": MaskedColumn(np.arange(5, dtype=np.int16), mask=[0, 0, 1, 0, 0]),
        "counts": np.arange(65531, 65536, dtype=np.uint16),
        "good": np.array([True, False, True, False, True]),
        "name": ["a", "b", "c", "d", "e"],
    })  # fmt: skip
    table.write(tmp_path / "t.fits.gz")
    reader = open_table(tmp_path / "t.fits.gz")
    read = reader.read(["id", "counts", "good"])
    np.testing.assert_array_equal(read["id"], [0, 1, np.nan, 3, 4])
    np.testing.assert_array_equal(read["counts"], np.arange(65531, 65536))
    np.testing.assert_array_equal(read["good"], [1, 0, 1, 0, 1])
    with pytest.raises(DataError, match=r"column 'name' .* holds 'a' in row 0"):
        reader.read(["name"])


def test_fits_spectra_as_images_and_extensions(tmp_path: Path) -> None:
    table = fits.BinTableHDU(Table({"teff": TABLE["mass"]}), name="LABELS")
    units = [fits.PrimaryHDU(TABLE["flux"]), fits.ImageHDU(TABLE["flux"] * 2, name="ERROR"), table]
    fits.HDUList(units).writeto(tmp_path / "t.fits")
    path = tmp_path / "t.fits"
    assert list(open_table(path).columns()) == ["teff"]  # a table comes before an image
    np.testing.assert_array_equal(open_table(f"{path}:0").read(["flux"])["flux"], TABLE["flux"])
    np.testing.assert_array_equal(
        joined(open_table(f"{path}:error"), ["ERROR"], 77)["ERROR"], TABLE["flux"] * 2
    )
    with pytest.raises(DataError, match="no table or image 'LABEL'; did you mean 'LABELS'"):
        open_table(f"{path}:LABEL")
    for i in range(3):
        fits.writeto(tmp_path / f"star{i}.fits", TABLE["flux"][i])
    stars = open_table(str(tmp_path / "star*.fits"))
    np.testing.assert_array_equal(stars.read(["flux"])["flux"], TABLE["flux"][:3])
    fits.writeto(tmp_path / "star3.fits", TABLE["flux"][3, :11])
    with pytest.raises(DataError, match=r"star3\.fits: column 'flux' holds an array of 11 a row"):
        open_table(str(tmp_path / "star*.fits")).read(["flux"])


# ------------------------------------------------------------------------------------------ ROOT


def test_root_jagged_branches_name_the_extraction(tmp_path: Path) -> None:
    path = tmp_path / "nano.root"
    jets = ak.Array([[30.0, 25.0], [], [99.0]])
    with uproot.recreate(path) as file:
        file["Events"] = {"Jet_pt": jets, "MET_pt": np.array([1.0, 2.0, 3.0])}
        file["Runs"] = {"run": np.array([1])}
    reader = open_table(f"{path}:Events")
    assert reader.read(["MET_pt"])["MET_pt"].tolist() == [1, 2, 3]
    assert "Jet_pt" in reader.columns()
    with pytest.raises(
        DataError, match=r"'Jet_pt' .* varying number of values in an entry.*fluvial collider extract"
    ):
        reader.read(["Jet_pt"])
    with pytest.raises(DataError, match=r'found Events, Runs; name one, as in "nano\.root:Events"'):
        open_table(path)
    with pytest.raises(DataError, match="no tree 'Event'; did you mean 'Events'"):
        open_table(f"{path}:Event")
    path.write_text("not a tree")
    with pytest.raises(DataError, match=r"nano\.root is not a ROOT file: it starts with b'not '"):
        open_table(path)


# ------------------------------------------------------------------------------- memory, and remote


@pytest.mark.parametrize("kind", ["dict", "pandas", "polars", "arrow", "structured"])
def test_a_table_in_memory_is_a_reader(kind: str) -> None:
    scalars = {name: values for name, values in TABLE.items() if name != "flux"} | {
        "code": np.array(["a"] * ROWS)
    }
    data = {
        "dict": lambda: TABLE | {"code": ["a"] * ROWS},
        "pandas": lambda: pd.DataFrame(scalars),
        "polars": lambda: pl.DataFrame(scalars),
        "arrow": lambda: pa.table(scalars),
        "structured": lambda: pd.DataFrame(scalars).to_records(index=False),
    }[kind]()
    reader = memory_table(data)
    assert reader.rows() == ROWS
    assert reader.parts() == []
    for name, values in joined_any(reader, ["kind", "mass", "z"], 300).items():
        np.testing.assert_array_equal(values, TABLE[name])
    with pytest.raises(DataError, match=r"the table in memory: column 'code' .* holds 'a' in row 0"):
        reader.read(["code"])
    if kind == "dict":
        np.testing.assert_array_equal(reader.read(["flux[3]"])["flux[3]"], TABLE["flux"][:, 3])


def joined_any(reader: Reader, names: list[str], rows: int) -> dict[str, np.ndarray]:
    chunks = list(reader.chunks(names, rows))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}


def test_memory_refuses() -> None:
    with pytest.raises(DataError, match="one length; got x 3, y 2"):
        memory_table({"x": np.zeros(3), "y": np.zeros(2)})
    with pytest.raises(DataError, match=r"expected a mapping, a DataFrame, .* got list"):
        memory_table([1, 2])


def test_remote_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    save_parquet(tmp_path / "a.parquet", TABLE)
    asked: list[object] = []

    def download(repo: str, *, repo_type: str, allow_patterns: list[str] | None) -> str:
        asked.append((repo, repo_type, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_table("hf://owner/grid").rows() == ROWS
    assert open_table("hf://owner/grid/a.parquet").rows() == ROWS
    assert open_table("hf://owner/grid/*.parquet").rows() == ROWS
    patterns = [None, ["a.parquet"], ["*.parquet"]]
    assert asked == [("owner/grid", "dataset", pattern) for pattern in patterns]
    with pytest.raises(DataError, match="expected hf://owner/name"):
        open_table("hf://owner")

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        DataError, match=r"cannot be reached \(offline\?\).*hf download owner/grid --repo-type dataset"
    ):
        open_table("hf://owner/grid")

    def unknown(*_: object, **__: object) -> str:
        raise RepositoryNotFoundError("401 Client Error", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
    with pytest.raises(DataError, match=r"has no such set, or it is not open to you \(401 Client Error\)"):
        open_table("hf://owner/grid")


@pytest.mark.parametrize(
    ("library", "extra", "name"),
    [("h5py", "hdf5", "t.h5"), ("astropy.io.fits", "fits", "t.fits"), ("uproot", "root", "t.root")],
)
def test_a_missing_library_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, extra: str, name: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'fluvial\[{extra}\]'"):
        open_table(tmp_path / name)
