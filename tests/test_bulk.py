"""Bulk sampling: the same rows whoever draws them, and nothing lost or drawn twice whatever happens."""

from __future__ import annotations

import json
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import fluvial
from fluvial import DataError, RunError, cli
from fluvial.data.readers import open_table, write_table
from fluvial.data.schema import Column, Support
from fluvial.walltime import TooShort
from fluvial.workflow import sample_shards
from fluvial.workflow.bulk_plan import BLOCK, MANIFEST, column_type, read_plan
from fluvial.workflow.bulk_shard import within
from fluvial.workflow.signals import Terminated

STUDY = """
[data]
source = "table.parquet"
targets = ["x", "y"]
context = ["c", "double"]
derive = { double = "2 * b" }
[columns.x]
support = "positive"
[columns.y]
atoms = [0.1]
[columns.c]
support = [0.0, 10.0]
[flow]
architecture = "maf"
steps = 1
width = 8
depth = 1
[training]
epochs = 1
"""


def table(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    c, b, e = rng.uniform(1, 9, rows), rng.normal(size=rows), rng.normal(size=(2, rows))
    y = np.where(rng.uniform(size=rows) < 0.3, 0.1, 1 + e[1])
    return {"c": c, "b": b, "x": c * np.exp(0.3 * e[0]), "y": y}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run and a table of 9,000 contexts in several row groups."""
    folder = tmp_path_factory.mktemp("bulk")
    write_table(folder / "table.parquet", table(600))
    (folder / "study.toml").write_text(STUDY)
    fluvial.fit(folder / "study.toml", runs=folder, name="run", check=False)
    contexts = {k: v for k, v in table(9000, seed=1).items() if k in ("c", "b")}
    contexts["c"] = np.clip(contexts["c"], 1.1, 8.9)
    contexts["b"] = np.clip(contexts["b"], -2, 2)
    write_table(folder / "contexts.parquet", contexts)
    whole = pq.read_table(folder / "contexts.parquet")
    pq.write_table(whole, folder / "contexts.parquet", row_group_size=2500)
    return folder


@pytest.fixture
def density(made: Path) -> fluvial.Density:
    return fluvial.load(made / "run")


def rows_of(folder: Path) -> dict[str, np.ndarray]:
    read = pq.read_table(folder)  # as anybody else would
    return {name: read.column(name).to_numpy() for name in read.column_names}


def same(a: Path, b: Path) -> bool:
    ours, theirs = rows_of(a), rows_of(b)
    return list(ours) == list(theirs) and all(np.array_equal(ours[k], theirs[k]) for k in ours)


def test_rows_do_not_depend_on_shards_or_parts(made: Path, density: fluvial.Density, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"contexts": made / "contexts.parquet", "draws": 7, "seed": 5}
    one = sample_shards(density, tmp_path / "one", **usual)
    assert (one.rows, one.rows_now, one.shards, one.finished, one.outside) == (63_000, 63_000, 1, 1, {})
    sample_shards(density, tmp_path / "three", **usual, shards=3)
    assert same(tmp_path / "one", tmp_path / "three")
    for i in (1, 0):
        sample_shards(density, tmp_path / "parts", **usual, shards=4, part=(i, 2))
    assert same(tmp_path / "one", tmp_path / "parts")
    sample_shards(density, tmp_path / "other", **{**usual, "seed": 6})
    assert not same(tmp_path / "one", tmp_path / "other")


def test_rows_are_draws_of_the_density_at_their_contexts(
    made: Path, density: fluvial.Density, tmp_path: Path
) -> None:
    sample_shards(density, tmp_path / "out", contexts=made / "contexts.parquet", draws=7, seed=5)
    plan = read_plan(tmp_path / "out")
    assert plan is not None
    contexts = open_table(made / "contexts.parquet").read(["c", "b"])
    block = slice(plan.per_block, 2 * plan.per_block)
    drawn = density.given(c=contexts["c"][block], double=2 * contexts["b"][block]).sample(
        7, seed=plan.block_seed(1)
    )
    rows = {k: v[block.start * 7 : block.stop * 7] for k, v in rows_of(tmp_path / "out").items()}
    assert np.array_equal(rows["x"], drawn["x"].reshape(-1).astype(np.float32))
    assert np.array_equal(rows["y"], drawn["y"].reshape(-1))
    assert np.array_equal(rows["double"], np.repeat(2 * contexts["b"][block], 7).astype(np.float32))
    # The atom 0.1 is none of float32: its column is wider, so that the atom is still the atom.
    assert (rows["x"].dtype, rows["y"].dtype) == (np.float32, np.float64)
    assert 0.05 < np.mean(rows["y"] == 0.1) < 0.6


def test_many_draws_at_one_context(density: fluvial.Density, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"given": {"c": 2.0, "double": 0.5}, "draws": 2 * BLOCK + 100, "seed": 1}
    for shards in (1, 3):
        done = sample_shards(density, tmp_path / f"{shards}", **usual, shards=shards)
        assert done.rows == 2 * BLOCK + 100
    assert same(tmp_path / "1", tmp_path / "3")
    x = rows_of(tmp_path / "1")["x"]
    assert len(np.unique(x)) > 0.9 * len(x)  # no block is another's copy


def test_processes_draw_the_same(made: Path, density: fluvial.Density, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"contexts": made / "contexts.parquet", "draws": 4, "seed": 5, "shards": 2}
    sample_shards(density, tmp_path / "one", **usual)
    seen = []
    sample_shards(density, tmp_path / "two", **usual, processes=2, advance=lambda *at: seen.append(at))
    assert same(tmp_path / "one", tmp_path / "two")
    assert seen[-1] == (36_000, 36_000)


def test_a_shard_deleted_or_damaged_is_made_again(
    made: Path, density: fluvial.Density, tmp_path: Path
) -> None:
    usual: dict[str, Any] = {"contexts": made / "contexts.parquet", "draws": 4, "seed": 5, "shards": 3}
    out = tmp_path / "out"
    sample_shards(density, out, **usual)
    before = json.loads((out / MANIFEST).read_text())
    assert before["complete"]
    kept = (out / "part-00000.parquet").stat().st_mtime_ns
    (out / "part-00001.parquet").unlink()
    content = bytearray((out / "part-00002.parquet").read_bytes())
    content[100] ^= 1
    (out / "part-00002.parquet").write_bytes(content)
    told: list[str] = []
    done = sample_shards(density, out, **usual, tell=told.append)
    assert any("part-00001.parquet has been removed; it is made again" in t for t in told)
    assert any("part-00002.parquet is not as it was written: its checksum differs" in t for t in told)
    assert 0 < done.rows_now < done.rows == 36_000
    after = json.loads((out / MANIFEST).read_text())
    assert [s["sha256"] for s in after["shards"]] == [s["sha256"] for s in before["shards"]]
    assert (out / "part-00000.parquet").stat().st_mtime_ns == kept
    assert (
        sample_shards(density, out, contexts=usual["contexts"], draws=4).rows_now == 0
    )  # shards, seed: its own


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_sampling_goes_on(
    made: Path, density: fluvial.Density, tmp_path: Path, number: int
) -> None:
    usual: dict[str, Any] = {"contexts": made / "contexts.parquet", "draws": 8, "seed": 5, "shards": 4}
    sample_shards(density, tmp_path / "whole", **usual)

    def interrupt(done: int, rows: int) -> None:
        if done > rows / 2:
            signal.raise_signal(number)

    with pytest.raises(Terminated, match="finished shards are kept") as caught:
        sample_shards(density, tmp_path / "out", **usual, advance=interrupt)
    assert caught.value.code == 128 + number
    there = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert not there["complete"]
    assert 0 < len(there["shards"]) < 4
    assert not list((tmp_path / "out").glob(".*.tmp"))
    (tmp_path / "out" / ".part-00003.parquet.00.tmp").touch()  # of a process that had no time to tidy up
    done = sample_shards(density, tmp_path / "out", **usual)
    assert done.finished == 4
    assert done.rows_now < done.rows
    assert same(tmp_path / "whole", tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_a_walltime_too_short_for_one_shard(
    made: Path, density: fluvial.Density, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual: dict[str, Any] = {"contexts": made / "contexts.parquet", "draws": 8, "seed": 5, "shards": 2}

    def warn(done: int, rows: int) -> None:
        if done > enough * rows:
            signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setenv("FLUVIAL_WALLTIME", "60")
    enough = 0.0  # warned after the first block
    with pytest.raises(TooShort, match=r"not one shard was finished in the job's 1 minutes") as caught:
        sample_shards(density, tmp_path / "out", **usual, advance=warn)
    assert caught.value.code == 200
    enough = 0.6  # after a shard: it gets on
    with pytest.raises(Terminated):
        sample_shards(density, tmp_path / "out", **usual, advance=warn)


def test_a_folder_of_other_things_is_refused(made: Path, density: fluvial.Density, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"contexts": made / "contexts.parquet", "draws": 1, "seed": 5}
    sample_shards(density, tmp_path / "out", **usual)
    with pytest.raises(RunError, match=r"draws is 1 there, and 2 now. Choose another --out"):
        sample_shards(density, tmp_path / "out", **{**usual, "draws": 2})
    with pytest.raises(RunError, match=r"seed is 5 there, and 6 now"):
        sample_shards(density, tmp_path / "out", **{**usual, "seed": 6})
    other = tmp_path / "contexts.parquet"
    write_table(other, {"c": np.full(9000, 2.0), "b": np.zeros(9000)})
    with pytest.raises(RunError, match="contexts is "):
        sample_shards(density, tmp_path / "out", **{**usual, "contexts": other})
    with pytest.raises(RunError, match="found a folder of other files"):
        sample_shards(density, made, **usual)
    (tmp_path / "out" / MANIFEST).write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        sample_shards(density, tmp_path / "out", **usual)


def test_an_impossible_context_is_found_before_anything_is_drawn(
    density: fluvial.Density, tmp_path: Path
) -> None:
    contexts = {"c": np.full(5, 2.0), "b": np.zeros(5)}
    contexts["c"][3] = 11.0
    write_table(tmp_path / "bad.parquet", contexts)
    with pytest.raises(DataError, match=r"column c, row 3: 11.0 is missing or outside the support \(0, 10\)"):
        sample_shards(density, tmp_path / "out", contexts=tmp_path / "bad.parquet", seed=1)
    assert not (tmp_path / "out").exists()


def test_contexts_outside_the_range_are_counted_once(density: fluvial.Density, tmp_path: Path) -> None:
    write_table(tmp_path / "far.parquet", {"c": np.array([2.0, 9.9, 9.8]), "b": np.array([0.0, 1.0, 99.0])})
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = sample_shards(
            density, tmp_path / "out", contexts=tmp_path / "far.parquet", seed=1, tell=told.append
        )
    assert done.outside == {"c": 2, "double": 1}
    assert any(t.startswith("c: 2 of 3 contexts are outside the range") for t in told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 0}, "draws of at least 1"),
        ({"shards": 99}, "expected at most 1, one for each block"),
        ({"part": (2, 2)}, "a part i/n"),
        ({"part": (0, 2), "seed": None}, "expected --seed beside it"),
        ({"compression": "gzip"}, "none, lz4, zstd"),
        ({"given": {"c": 1.0}}, "missing: double"),
        ({"given": {"c": 1.0, "double": 0.0, "d": 1.0}}, "'d' is not known"),
        ({"given": {"c": -1.0, "double": 0.0}}, "outside the support"),
    ],
)
def test_bad_input_is_one_message(
    density: fluvial.Density, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    usual = {"given": {"c": 2.0, "double": 0.0}, "draws": 10, "seed": 1}
    with pytest.raises(DataError, match=message):
        sample_shards(density, tmp_path / "out", **{**usual, **change})
    assert not (tmp_path / "out").exists()


def test_the_command_line_draws_into_a_folder(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*more: str) -> tuple[int, str, str]:
        usual = [
            "sample",
            str(made / "run"),
            "--contexts",
            str(made / "contexts.parquet"),
            "-n",
            "4",
            "--seed",
            "5",
        ]
        monkeypatch.setattr("sys.argv", ["fluvial", *usual, *more])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    out = f"{tmp_path}/out/"
    code, text, progress = command("--out", out, "--shards", "2", "--part", "1/2")
    assert code == 0
    assert "rows drawn in" in text
    assert f"1 of 2 shards, {4 * 4096 + 4 * (9000 - 8192):,} rows in {out} (seed 5)" in text
    assert "rows  " in progress
    code, text, _ = command("--out", out, "--shards", "2")
    assert f"2 of 2 shards, 36,000 rows in {out} (seed 5)" in text
    assert open_table(out).rows() == 36_000  # a folder that fluvial takes as a source
    assert command("--out", out, "--part", "2/2")[2].startswith(
        "fluvial: --part: expected i/n with 0 ≤ i < n"
    )
    assert "seed is 5 there, and 6 now" in command("--out", out, "--seed", "6")[2]


def test_contexts_may_be_spectra(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    t = rng.normal(size=300)
    (tmp_path / "stars").mkdir()
    np.save(tmp_path / "stars" / "t.npy", t)
    np.save(tmp_path / "stars" / "flux.npy", (1 + 0.1 * np.outer(t, np.ones(32))).astype(np.float32))
    study = {
        "data": {"source": str(tmp_path / "stars"), "targets": ["t"], "context": ["flux"]},
        "flow": {"architecture": "full-gaussian", "width": 8},
        "encoder": {"features": 4, "width": 4, "patch": 8},
        "training": {"epochs": 1},
    }
    density = fluvial.fit(study, runs=tmp_path, name="run", check=False)
    usual: dict[str, Any] = {"contexts": tmp_path / "stars", "draws": 200, "seed": 1}
    for shards in (1, 3):
        assert sample_shards(density, tmp_path / f"{shards}", **usual, shards=shards).rows == 60_000
    assert same(tmp_path / "1", tmp_path / "3")
    assert list(rows_of(tmp_path / "1")) == ["t"]  # a spectrum is not written again with every draw


def test_rounding_leaves_no_draw_outside_its_support() -> None:
    column = Column("eta", "target", support=Support(0.7, 0.8))
    values = np.array([0.8 - 1e-12, 0.7 + 1e-12, 0.75])
    plain = values.astype(np.float32).astype(float)
    assert not column.contains(plain)[:2].any()  # what rounding alone would do
    inside = within(column, values, np.dtype(np.float32)).astype(float)
    assert column.contains(inside).all()
    assert np.abs(inside - values).max() < 1e-7


def test_types_of_columns() -> None:
    assert column_type(Column("n", "target", kind="integer", values=(0.0, 1.0, 2.0)), wide=False) == "float32"
    assert (
        column_type(Column("n", "target", kind="integer", values=(0.0, 2.0**24 + 1)), wide=False) == "float64"
    )
    assert column_type(Column("x", "target"), wide=True) == "float64"
