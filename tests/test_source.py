"""Studies over many files, filters and derived columns: from the [data] section to the rows of each split."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import fluvial
from fluvial.cli import main
from fluvial.conditional import ExtrapolationWarning
from fluvial.data.readers import open_table, write_table
from fluvial.errors import DataError, StudyError
from fluvial.study import parse_study
from fluvial.workflow.check import check_run
from fluvial.workflow.data import read_rows
from fluvial.workflow.use import log_prob_table, sample_table

TINY: dict[str, Any] = {
    "flow": {"architecture": "maf", "steps": 1, "width": 4, "depth": 1},
    "training": {"epochs": 1, "batch_size": 64},
    "check": {"contexts": 50, "draws": 50},
}


def jets(path: Path, rows: int, seed: int) -> np.ndarray:
    """Write FlashSim's layout, a 2-D dataset ``data``; return it."""
    data = np.random.default_rng(seed).normal(size=(rows, 6)).astype(np.float32)
    data[:, 0] = np.exp(data[:, 0])
    with h5py.File(path, "w") as file:
        file["data"] = data
    return data


def section(**data: Any) -> dict[str, Any]:
    return {"data": data, **TINY}


def test_flashsim_layout_over_many_files(tmp_path: Path) -> None:
    data = np.concatenate([jets(tmp_path / f"jets_{i}.h5", 150, i) for i in range(4)])
    source = str(tmp_path / "jets_*.h5")
    study = parse_study(section(source=source, context=["data[0:2]"], targets=["data[2:6]"]))
    rows = read_rows(study, study.data.source)
    assert rows.schema.target_names == ["data[2]", "data[3]", "data[4]", "data[5]"]
    np.testing.assert_array_equal(rows.table["data[4]"], data[:, 4])
    names = ["gen_pt", "gen_eta", "pt", "eta", "tag", "area"]
    named = section(
        source=source,
        context=["gen_pt"],
        targets=["ratio", "tag"],
        names={"data": names},
        derive={"ratio": "pt / gen_pt"},
        where="abs(eta) < 1.5 and gen_pt > 0.5",
    )
    study = parse_study(named)
    rows = read_rows(study, study.data.source)
    kept = (np.abs(data[:, 3]) < 1.5) & (data[:, 0] > 0.5)
    assert rows.facts["rows_in_source"] == 600
    assert rows.facts["rows_read"] == rows.facts["rows_kept"] == kept.sum()
    np.testing.assert_array_equal(rows.table["ratio"], data[kept, 2].astype(float) / data[kept, 0])
    assert [c.expression for c in rows.schema.columns] == ["data[2] / data[0]", "data[4]", "data[0]"]


def test_a_filter_moves_no_row_to_another_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    write_table(tmp_path / "t.parquet", {"i": np.arange(2000), "x": rng.normal(size=2000)})
    plain = section(source=str(tmp_path / "t.parquet"), targets=["x"], context=["i"])
    filtered = section(**plain["data"], where="x > -0.5")
    whole, some = (read_rows(s, s.data.source) for s in map(parse_study, (plain, filtered)))
    for part in ("train", "validation", "test"):
        before, after = whole.part(part), some.part(part)
        np.testing.assert_array_equal(after["i"], before["i"][before["x"] > -0.5])
        assert 0 < len(after["i"]) < len(before["i"])


def test_fit_check_sample_and_log_prob_with_a_derived_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    for i in range(2):
        a, b = rng.uniform(1, 2, (2, 300))
        write_table(tmp_path / f"part-{i}.parquet", {"a": a, "b": b, "x": a / b + rng.normal(size=300)})
    study = section(
        source=["part-0.parquet", "part-1.parquet"],
        targets=["x"],
        context=["ratio"],
        derive={"ratio": "a / b"},
        where="b > 1.1",
    )
    density = fluvial.fit(study)
    assert density.folder is not None
    record = json.loads((density.folder / "record.json").read_text())
    facts = record["data"]
    assert facts["source"] == [str(tmp_path / f"part-{i}.parquet") for i in range(2)]
    assert len(facts["fingerprint"]["files"]) == 2
    assert facts["rows_read"] < facts["rows_in_source"] == 600
    assert "b &gt; 1.1" in (density.folder / "report.html").read_text()
    assert check_run(density.folder)

    loaded = fluvial.load(density.folder)
    source, given = tmp_path / "part-0.parquet", tmp_path / "given.csv"
    raw = open_table(source).read(["a", "b", "x"])
    write_table(given, {"ratio": raw["a"] / raw["b"], "x": raw["x"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)  # rows that the filter left out
        computed, direct = log_prob_table(loaded, source), log_prob_table(loaded, given)
        drawn = sample_table(loaded, contexts=source, seed=1)
        in_memory = loaded.log_prob(raw)
    np.testing.assert_allclose(computed["log_prob"], direct["log_prob"], rtol=1e-6)
    np.testing.assert_allclose(computed["log_prob"], in_memory, rtol=1e-6)
    np.testing.assert_allclose(drawn["ratio"], raw["a"] / raw["b"])
    write_table(given, {"a": raw["a"], "x": raw["x"]})
    with pytest.raises(DataError, match=r"given\.csv has no column 'b'"):
        log_prob_table(loaded, given)


def test_sources_are_beside_the_study(tmp_path: Path) -> None:
    folder = tmp_path / "set[1]"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for i in range(2):
        write_table(folder / f"p{i}.parquet", {"x": rng.normal(size=200), "c": rng.normal(size=200)})
    text = '[data]\nsource = "p*.parquet"\ntargets = ["x"]\ncontext = ["c"]\nwhere = "c < 1"\n'
    text += '[flow]\narchitecture = "maf"\nsteps = 1\nwidth = 4\ndepth = 1\n[training]\nepochs = 1\n'
    (folder / "s.toml").write_text(text)
    density = fluvial.fit(folder / "s.toml", runs=tmp_path / "runs", check=False)
    assert density.folder is not None
    assert json.loads((density.folder / "record.json").read_text())["data"]["rows_in_source"] == 400


def test_a_nan_is_found_in_its_file_and_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for i in range(5):
        with h5py.File(tmp_path / f"part-{i}.h5", "w") as file:
            data = rng.normal(size=(1_000_000, 2)).astype(np.float32)
            if i == 4:
                data[-1, 1] = np.nan
            file["data"] = data
    study = parse_study(section(source=str(tmp_path / "part-*.h5"), targets=["data[0]"], context=["data[1]"]))
    with pytest.raises(
        DataError, match=r"1 values are not finite .*, the first in row 999999 of \S*part-4\.h5;"
    ):
        read_rows(study, study.data.source)


def test_arrays_are_context_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    path = tmp_path / "stars.npz"
    flux = rng.normal(size=(300, 7)).astype(np.float32)
    np.savez(path, flux=flux, teff=rng.normal(size=300))
    values = section(source=str(path), targets=["teff"], context=["flux"])
    study = parse_study(values)
    rows = read_rows(study, study.data.source)
    assert rows.schema.context[0].length == 7
    assert rows.part("test")["flux"].dtype == np.float32
    assert rows.part("test")["flux"].shape == (len(rows.split.test), 7)
    assert type(rows.schema).from_json(rows.schema.to_json()) == rows.schema
    with pytest.raises(DataError, match="target flux is an array of 7 numbers a row"):
        read_rows(parse_study(section(source=str(path), targets=["flux"], context=["teff"])), path)
    flux[17, 3], flux[40, 2:4] = np.nan, np.inf
    np.savez(path, flux=flux, teff=rng.normal(size=300))
    with pytest.raises(
        DataError, match=r"flux: 3 numbers in 2 rows are not finite, the first in row 17 \(1 of 7\)"
    ):
        read_rows(study, path)
    dropping = parse_study(section(source=str(path), targets=["teff"], context=["flux"], missing="drop"))
    assert read_rows(dropping, path).facts["dropped"] == {"flux: arrays": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": "x > 1 & c < 2"}, r"^s: \[data\] where: write 'and' instead of '&'\n    x > 1 & c < 2\n"),
        ({"where": "x"}, r"\[data\] where: expected a condition"),
        ({"derive": {"r": "x >"}}, r"\[data\.derive\] r: this does not parse"),
        ({"derive": {"r": "q", "q": "r"}}, r"\[data\.derive\]: .*defined by each other"),
        ({"names": {"data[0:2]": ["a"]}}, r"\[data\]: names: data\[0:2\] has 2 columns; found 1 names"),
        ({"names": {"data": ["a"], "more": ["a"]}}, r"found 'a' twice"),
        ({"targets": ["data[4:4]"]}, r"\[data\] targets: expected a range of columns \[a:b\]"),
        ({"source": []}, r"\[data\] source: expected a path or a list of paths; found \[\]"),
    ],
)
def test_a_data_section_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study(section(**{"source": "a.h5", "targets": ["x"], "context": ["c"], **changes}), where="s")


def test_the_command_line_shows_the_caret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "t.csv", {"Mass_0": np.arange(9.0), "Z": np.arange(9.0)})
    study = '[data]\nsource = "t.csv"\ntargets = ["Mass_0"]\ncontext = ["Z"]\nwhere = "Mass0 < 100 and Z > 0.001"\n'
    (tmp_path / "s.toml").write_text(study)
    monkeypatch.setattr(
        "sys.argv", ["fluvial", "fit", str(tmp_path / "s.toml"), "--runs", str(tmp_path / "runs")]
    )
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().err
    assert (
        "has no column 'Mass0'; did you mean 'Mass_0'?\n    Mass0 < 100 and Z > 0.001\n    ^^^^^\n" in shown
    )
