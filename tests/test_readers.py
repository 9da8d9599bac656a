"""Files in and out: what is read is what was written, and every fault says what, where and how to mend it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fluvial.data.readers import as_table, fingerprint, open_table, write_table
from fluvial.errors import DataError


@pytest.fixture
def masses() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "Mass_0": rng.lognormal(3, 1, 500),
        "Mass_1": rng.lognormal(2, 1, 500).astype(np.float32),
        "kind": rng.integers(0, 14, 500),
    }


def save(path: Path, columns: dict[str, object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".pq", ".csv", ".PARQUET"])
def test_what_is_written_is_read(tmp_path: Path, masses: dict[str, np.ndarray], suffix: str) -> None:
    path = tmp_path / f"mergers{suffix}"
    write_table(path, masses)
    reader = open_table(path)
    assert reader.path == path
    assert list(reader.columns()) == list(masses)
    assert reader.rows() == 500
    table = reader.read(["kind", "Mass_0", "Mass_1"])
    assert list(table) == ["kind", "Mass_0", "Mass_1"]
    for name, values in table.items():
        assert values.dtype == np.float64
        assert values.flags.writeable
        np.testing.assert_array_equal(values.astype(masses[name].dtype), masses[name])


def test_npy_is_a_structured_array_without_pickle(tmp_path: Path, masses: dict[str, np.ndarray]) -> None:
    path = tmp_path / "draws.npy"
    write_table(path, masses)
    table = np.load(path, allow_pickle=False)
    assert table.dtype.names == tuple(masses)
    assert table.dtype["Mass_1"] == np.float32
    for name, values in masses.items():
        np.testing.assert_array_equal(table[name], values)


def test_every_numeric_type_is_a_number(tmp_path: Path) -> None:
    columns = {
        "flag": pa.array([True, False, None]),
        "small": pa.array([1, -2, None], pa.int8()),
        "large": pa.array([2**53, 0, None], pa.uint64()),
        "half": pa.array(np.array([0.5, 2.0, np.nan], np.float16)),
        "price": pa.array([Decimal("1.25"), Decimal("-3.50"), None], pa.decimal128(5, 2)),
        "void": pa.nulls(3),
    }
    table = open_table(save(tmp_path / "types.parquet", columns)).read(list(columns))
    expected = [[1, 0], [1, -2], [2.0**53, 0], [0.5, 2], [1.25, -3.5], [np.nan, np.nan]]
    for values, pair in zip(table.values(), expected, strict=True):
        np.testing.assert_array_equal(values, [*pair, np.nan])


def test_integers_that_would_be_rounded_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "events.parquet", {"event": [1, 2**53 + 1]})
    with pytest.raises(DataError, match=r"events\.parquet: column 'event' holds integers beyond 2\^53"):
        open_table(path).read(["event"])
    with pytest.raises(DataError, match="beyond 2"):
        as_table({"event": np.array([1, 2**53 + 1])}, ["event"])


@pytest.mark.parametrize("values", [[0.02, 0.0001, 0.02, None], [3, 1, 3, None]])
def test_a_dictionary_of_numbers_is_decoded(tmp_path: Path, values: list[float | None]) -> None:
    encoded = pa.chunked_array(
        [pa.array(values).dictionary_encode(), pa.array(values[::-1]).dictionary_encode()]
    )
    path = save(tmp_path / "grid.parquet", {"Z": encoded, "plain": values * 2})
    reader = open_table(path)
    assert reader.columns()["Z"].startswith("dictionary<")
    read = reader.read(["Z", "plain"])
    expected = np.array(values + values[::-1], dtype=float)
    np.testing.assert_array_equal(read["Z"], expected)
    np.testing.assert_array_equal(reader.levels("Z"), sorted({v for v in values if v is not None}))
    assert reader.levels("plain") is None
    np.testing.assert_array_equal(as_table(pa.table({"Z": encoded}), ["Z"])["Z"], expected)


def test_a_pandas_category_has_levels(tmp_path: Path) -> None:
    frame = pd.DataFrame({"Z": [0.02, 0.001, 0.02], "code": ["BSE", "SSE", "BSE"], "alpha": [1.0, 2.0, 3.0]})
    frame = frame.astype({"Z": "category", "code": "category"})
    frame.to_parquet(tmp_path / "grid.parquet")
    reader = open_table(tmp_path / "grid.parquet")
    np.testing.assert_array_equal(reader.levels("Z"), [0.001, 0.02])
    np.testing.assert_array_equal(reader.read(["Z"])["Z"], [0.02, 0.001, 0.02])
    assert list(reader.levels("code")) == ["BSE", "SSE"]
    assert reader.levels("alpha") is None
    with pytest.raises(DataError, match=r"column 'code' \(string\) holds 'BSE' in row 0"):
        reader.read(["code"])
    with pytest.raises(DataError, match="no column 'metallicity'"):
        reader.levels("metallicity")


def test_a_file_of_another_writer(tmp_path: Path) -> None:
    """No Arrow schema inside, and many row groups."""
    values = np.arange(1000.0)
    pq.write_table(pa.table({"x": values}), tmp_path / "x.parquet", store_schema=False, row_group_size=64)
    reader = open_table(tmp_path / "x.parquet")
    assert reader.columns() == {"x": "double"}
    np.testing.assert_array_equal(reader.read(["x"])["x"], values)


def test_lists_and_dates_are_no_numbers(tmp_path: Path) -> None:
    path = save(tmp_path / "m.parquet", {"x": [["a"], ["b"]], "y": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"column 'x' \(string\) holds 'a' in row 0"):
        open_table(path).read(["x"])
    (tmp_path / "m.csv").write_text("night,x\n2020-01-01,1\n")
    with pytest.raises(DataError, match="column 'night' is stored as date32"):
        open_table(tmp_path / "m.csv").read(["night"])


def test_csv_empty_fields_and_nan_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text('a,b,flag\n1,,true\n nan,-inf,false\n+3e2,"2.5",\n')
    table = open_table(path).read(["a", "b", "flag"])
    np.testing.assert_array_equal(table["a"], [1, np.nan, 300])
    np.testing.assert_array_equal(table["b"], [np.nan, -np.inf, 2.5])
    np.testing.assert_array_equal(table["flag"], [1, 0, np.nan])


@pytest.mark.parametrize("bad", ["N/A", "NULL", "--", "1_0", "12:00 h"])
def test_csv_text_among_numbers_names_row_and_value(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f"Mass_0,Mass_1\n1,2\n3,4\n5,{bad}\n7,worse\n")
    reader = open_table(path)
    with pytest.raises(DataError) as error:
        reader.read(["Mass_0", "Mass_1"])
    assert f"m.csv: column 'Mass_1' (string) holds '{bad}' in row 2" in str(error.value)
    assert "the first data row is row 0" in str(error.value)
    np.testing.assert_array_equal(
        reader.read(["Mass_0"])["Mass_0"], [1, 3, 5, 7]
    )  # the other column is sound


def test_csv_text_far_beyond_the_first_block_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("a,b\n" + "1,2\n" * 300_000 + "N/A,2.5\n")
    with pytest.raises(DataError, match="holds 'N/A' in row 300000"):
        open_table(path).read(["a"])


def test_csv_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("a,b\n1,2\n3,4\n5")
    with pytest.raises(DataError, match=r"m\.csv cannot be read as CSV.*Row #4.*looks truncated") as error:
        open_table(path)
    assert "copy or write it again" in str(error.value)


def test_missing_file_names_the_one_like_it(tmp_path: Path) -> None:
    save(tmp_path / "mergers.parquet", {"x": [1.0]})
    with pytest.raises(DataError, match=r"does not exist; did you mean 'mergers\.parquet'"):
        open_table(tmp_path / "merger.parquet")
    with pytest.raises(DataError, match="nor does its folder"):
        open_table(tmp_path / "nowhere" / "mergers.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="its folder holds no tables"):
        open_table(tmp_path / "empty" / "mergers.parquet")


def test_folder_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder without tables; expected files .*\.parquet"):
        open_table(tmp_path)
    save(tmp_path / "mergers.parquet", {"x": [1.0]})
    assert open_table(tmp_path).rows() == 1
    (tmp_path / "mergers.csv").write_text("x\n1\n")
    with pytest.raises(DataError, match=r"several formats \(\.csv, \.parquet\); name those of one"):
        open_table(tmp_path)
    (tmp_path / "mergers.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"suffix '\.xlsx'; expected one of \.parquet, \.pq, \.csv"):
        open_table(tmp_path / "mergers.xlsx")


def test_parquet_cut_in_half(tmp_path: Path, masses: dict[str, np.ndarray]) -> None:
    path = tmp_path / "mergers.parquet"
    write_table(path, masses)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"mergers\.parquet looks truncated.*copy or write it again"):
        open_table(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="looks truncated: its 0 bytes"):
        open_table(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="is not a Parquet file: it starts with b'a,b"):
        open_table(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    values = np.random.default_rng(2).normal(size=5000)
    write_table(path, {"x": values})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet looks corrupt"):
        open_table(path).read(["x"])


def test_no_rows(tmp_path: Path) -> None:
    write_table(tmp_path / "m.parquet", {"a": np.empty(0)})
    (tmp_path / "m.csv").write_text("a,b\n")
    for name in ("m.parquet", "m.csv"):
        with pytest.raises(DataError, match=rf"{name} has columns but no rows"):
            open_table(tmp_path / name)
    (tmp_path / "m.csv").write_text("")
    with pytest.raises(DataError, match=r"m\.csv cannot be read as CSV: Empty"):
        open_table(tmp_path / "m.csv")


def test_missing_and_repeated_columns(tmp_path: Path) -> None:
    repeated = pa.table([[1.0], [2.0], [3.0]], names=["Mass_0", "Z", "Z"])
    pq.write_table(repeated, tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("Mass_0,Z,Z\n1,2,3\n")
    for name in ("m.parquet", "m.csv"):
        reader = open_table(tmp_path / name)
        assert reader.read(["Mass_0", "Mass_0"])["Mass_0"] == [1.0]
        with pytest.raises(DataError, match=rf"{name}: no column 'Mass0'; did you mean 'Mass_0'"):
            reader.read(["Mass0"])
        with pytest.raises(DataError, match=rf"{name}: 2 columns are named 'Z'"):
            reader.read(["Mass_0", "Z"])
    with pytest.raises(DataError, match="2 columns are named 'Z'"):
        as_table(repeated, ["Z"])


def test_fingerprint(tmp_path: Path, masses: dict[str, np.ndarray]) -> None:
    path = tmp_path / "mergers.parquet"
    write_table(path, masses)
    (tmp_path / "plain").touch()
    assert (
        path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    )  # not the private mode of a temporary file
    os.utime(path, (0, 86400))
    print_ = fingerprint(path)
    assert json.loads(json.dumps(print_)) == print_
    assert print_["path"] == str(path)
    assert print_["bytes"] == path.stat().st_size
    assert print_["rows"] == 500
    assert print_["modified"] == "1970-01-02T00:00:00+00:00"
    assert print_["columns"][1] == {"name": "Mass_1", "type": "float"}
    assert print_["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    masses["Mass_0"][7] *= 1.0000001
    write_table(path, masses)
    assert fingerprint(path)["sha256"] != print_["sha256"]


def test_write_refuses(tmp_path: Path) -> None:
    x = np.arange(3.0)
    with pytest.raises(DataError, match=r"suffix '\.h5'; expected one of \.parquet, \.pq, \.csv, \.npy"):
        write_table(tmp_path / "x.h5", {"x": x})
    with pytest.raises(DataError, match="does not exist; make it first"):
        write_table(tmp_path / "new" / "x.csv", {"x": x})
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match="expected columns of one length; got x 3, y 2"):
        write_table(tmp_path / "x.csv", {"x": x, "y": x[:2]})
    with pytest.raises(DataError, match=r"1-D column.* in 'x'; got shape \[3, 1\]"):
        write_table(tmp_path / "x.csv", {"x": x[:, None]})
    with pytest.raises(DataError, match="of object"):
        write_table(tmp_path / "x.npy", {"x": np.array([object()])})
    with pytest.raises(DataError, match="at least one column"):
        write_table(tmp_path / "x.csv", {})
    assert list(tmp_path.iterdir()) == []


def test_few_values_are_written_as_a_dictionary(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    z = rng.choice(np.geomspace(1e-4, 0.03, 15), 50_000)
    mass = rng.lognormal(3, 1, 50_000).astype(np.float32)
    path = tmp_path / "grid.parquet"
    write_table(path, {"Z": z, "mass": mass, "alpha": z > 0.01}, dictionary=["Z"])
    reader = open_table(path)
    np.testing.assert_array_equal(reader.levels("Z"), np.unique(z))
    assert reader.levels("alpha") is None
    for name, values in {"Z": z, "mass": mass}.items():
        np.testing.assert_array_equal(reader.read([name])[name], values)
    columns = {c.path_in_schema: c for c in map(pq.ParquetFile(path).metadata.row_group(0).column, range(3))}
    assert columns["Z"].total_compressed_size < 50_000 * 4.2 / 8  # log2(15) = 3.9 bits a row
    assert columns["mass"].total_compressed_size < 50_000 * 3.6  # its mantissa alone takes 2.9 bytes
    with pytest.raises(DataError, match="dictionary: no column 'z'; did you mean 'Z'"):
        write_table(path, {"Z": z}, dictionary=["z"])


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npy"])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, where: str
) -> None:
    path = tmp_path / f"x{suffix}"
    write_table(path, {"x": np.arange(3.0)})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, where, full)
    with pytest.raises(DataError, match=rf"x\{suffix} could not be written: No space left on device"):
        write_table(path, {"x": np.arange(4.0)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npy"])
def test_a_file_limit_is_reported(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("resource")  # POSIX only
    script = (
        "import resource, sys, numpy as np; from fluvial.data.readers import write_table\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "write_table(sys.argv[1], {'x': np.random.default_rng(0).normal(size=100_000)})\n"
    )
    path = tmp_path / f"x{suffix}"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert f"DataError: {path} could not be written: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_files_keep_every_bit(tmp_path: Path) -> None:
    x = np.array([0.1, 1e-308, 5e-324, 1.7976931348623157e308, -np.inf, np.nan, 1 / 3])
    for path in (tmp_path / "x.csv", tmp_path / "x.parquet"):
        write_table(path, {"x": x, "big": x.astype(">f8"), "tensor": torch.tensor(x)})  # type: ignore[dict-item]
        for values in open_table(path).read(["x", "big", "tensor"]).values():
            np.testing.assert_array_equal(values, x)


# -------------------------------------------------------------------------------- tables in memory

EVENTS = np.array([[30.0, 20.0], [8.0, 5.0], [12.0, 7.0]])
NAMES = ["Mass_0", "Mass_1"]


class Frame:
    """A DataFrame as polars has it: a list of names, and columns that numpy can take."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]


STRUCT = np.array([(0, m1, m0) for m0, m1 in EVENTS], [("chi", "f4"), ("Mass_1", "f4"), ("Mass_0", ">f8")])


@pytest.mark.parametrize(
    "data",
    [
        {"Mass_0": EVENTS[:, 0], "Mass_1": list(EVENTS[:, 1]), "chi": ["not", "a", "number"]},
        pd.DataFrame({"chi": ["a", "b", "c"], "Mass_1": EVENTS[:, 1].astype(int), "Mass_0": EVENTS[:, 0]}),
        pa.table({"Mass_0": EVENTS[:, 0], "Mass_1": EVENTS[:, 1]}),
        pa.record_batch({"Mass_0": EVENTS[:, 0], "Mass_1": EVENTS[:, 1]}),
        Frame({"Mass_1": EVENTS[:, 1], "Mass_0": EVENTS[:, 0]}),
        STRUCT,
        EVENTS,
        EVENTS.astype(np.float32),
        EVENTS.tolist(),
        torch.tensor(EVENTS, requires_grad=True),
    ],
    ids=["dict", "pandas", "arrow", "batch", "duck", "struct", "array", "float32", "lists", "tensor"],
)
def test_as_table_takes_every_kind(data: object) -> None:
    table = as_table(data, NAMES)
    assert list(table) == NAMES
    for i, name in enumerate(NAMES):
        assert table[name].dtype == np.float64
        np.testing.assert_array_equal(table[name], EVENTS[:, i])


def test_as_table_polars() -> None:
    polars = pytest.importorskip("polars")
    table = as_table(polars.DataFrame({"x": [1, None, 3], "y": [0.5, 1.5, None]}), ["y", "x"])
    np.testing.assert_array_equal(table["x"], [1, np.nan, 3])
    np.testing.assert_array_equal(table["y"], [0.5, 1.5, np.nan])


def test_as_table_repeats_scalars() -> None:
    table = as_table({"Z": 0.001, "alpha": np.array([0.5, 1, 2]), "n": np.int32(4)}, ["Z", "alpha", "n"])
    np.testing.assert_array_equal(table["Z"], [0.001] * 3)
    np.testing.assert_array_equal(table["n"], [4.0] * 3)
    assert as_table({"Z": 0.001}, ["Z"])["Z"].shape == (1,)
    assert as_table({"Z": 0.001}, []) == {}
    np.testing.assert_array_equal(as_table([1.0, 2.0], ["x"])["x"], [1, 2])  # one column may be flat


def test_as_table_missing_values_are_nan() -> None:
    frame = pd.DataFrame(
        {
            "nullable": pd.array([1, None, 3], dtype="Int64"),
            "flag": pd.array([True, None, False], dtype="boolean"),
            "level": pd.Series([0.5, np.nan, 1.0]).astype("category"),
            "mixed": pd.Series([1, None, 2.5], dtype=object),
        }
    )
    table = as_table(frame, list(frame.columns))
    np.testing.assert_array_equal(table["nullable"], [1, np.nan, 3])
    np.testing.assert_array_equal(table["flag"], [1, np.nan, 0])
    np.testing.assert_array_equal(table["level"], [0.5, np.nan, 1])
    np.testing.assert_array_equal(table["mixed"], [1, np.nan, 2.5])
    masked = np.ma.MaskedArray([1, 2, 3], mask=[False, True, False])
    np.testing.assert_array_equal(as_table({"x": masked}, ["x"])["x"], [1, np.nan, 3])


class Quantity:
    unit = "kpc"

    def to_value(self, unit: str) -> None: ...


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones((5, 3)), r"events: expected \[n, 2\] for columns Mass_0, Mass_1; got \[5, 3\]"),
        (np.ones(2), r"expected \[n, 2\] for columns Mass_0, Mass_1; got \[2\]"),
        ([[1.0, 2.0], [3.0]], "rows of different lengths"),
        (None, r"got \[\] \(NoneType\)"),
        ({"Mass0": 1.0, "Mass_1": 1.0}, "events: no column 'Mass_0'; did you mean 'Mass0'"),
        (pd.DataFrame({"Mass_1": [1.0]}), "no column 'Mass_0'; did you mean 'Mass_1'"),
        ({"Mass_0": [1.0, 2.0], "Mass_1": [1.0]}, "one length; got Mass_0 2, Mass_1 1"),
        ({"Mass_0": np.ones((2, 2)), "Mass_1": 1.0}, r"column 'Mass_0' to be 1-D; got shape \[2, 2\]"),
        ({"Mass_0": ["8", "N/A"], "Mass_1": 1.0}, "column 'Mass_0' .* holds 'N/A' in row 1"),
        ({"Mass_0": "heavy", "Mass_1": 1.0}, "column 'Mass_0' .* holds 'heavy' in row 0"),
        ({"Mass_0": ["8", "9"], "Mass_1": 1.0}, "column 'Mass_0' is stored as <U1"),
        (pd.DataFrame({"Mass_0": ["1", "x"], "Mass_1": [1, 2]}), "column 'Mass_0' .* holds 'x' in row 1"),
        (pd.DataFrame({"Mass_0": pd.to_datetime(["2020"]), "Mass_1": [1]}), r"column 'Mass_0' \(datetime64"),
        (pd.DataFrame([[1, 2, 3]], columns=["Mass_0", "Mass_0", "Mass_1"]), "2 columns are named 'Mass_0'"),
        ({"Mass_0": [1j], "Mass_1": 1.0}, "column 'Mass_0' .* holds 1j in row 0"),
        ({"Mass_0": Quantity(), "Mass_1": 1.0}, r"carries the unit kpc; give \.to_value\(unit\)"),
    ],
)
def test_as_table_says_what_is_wrong(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_table(data, NAMES, what="events")


def test_importing_brings_no_pyarrow() -> None:
    script = "import sys, fluvial.data.readers; sys.exit('pyarrow' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
