"""``fluvial init``: what columns look like, and a study that fits as it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

import fluvial
from fluvial import cli
from fluvial.data.readers import write_table
from fluvial.errors import DataError
from fluvial.workflow.first_study import describe_column, first_study


def columns(rows: int = 2000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    energy = 10 ** rng.uniform(0, 3, rows)
    return {
        "energy": energy,
        "angle": rng.uniform(-np.pi, np.pi, rows),
        "azimuth": rng.uniform(0, 360, rows),
        "cosine": rng.uniform(-1, 1, rows),
        "hits": rng.poisson(6.0, rows).astype(np.float64),
        "deposit": np.where(rng.random(rows) < 0.3, 0.0, energy * rng.exponential(0.2, rows)),
        "share": rng.beta(2, 1, rows),
        "time": np.where(rng.random(rows) < 0.02, np.nan, rng.normal(size=rows)),
        "Z": rng.choice([0.0001, 0.001, 0.01], rows),
    }


@pytest.mark.parametrize(
    ("name", "target", "lines"),
    [
        ("energy", True, {"support": '"positive"'}),
        ("energy", False, {"transform": '"log"'}),
        ("angle", True, {"period": '"pi"'}),
        ("angle", False, {"period": '"pi"'}),
        ("azimuth", True, {"period": "[0, 360]"}),
        ("cosine", True, {"support": "[-1, 1]"}),
        ("cosine", False, {}),
        ("hits", True, {"kind": '"integer"'}),
        ("deposit", True, {"support": '"positive"', "atoms": "[0]"}),
        ("share", True, {"support": "[0, 1]"}),
        ("time", True, {}),
        ("Z", False, {"transform": '"log"'}),
    ],
)
def test_what_a_column_looks_like(name: str, target: bool, lines: dict[str, str]) -> None:
    found = describe_column(name, columns()[name], target=target)
    assert found.lines == lines
    assert found.missing == (int(np.isnan(columns()[name]).sum()))


def test_an_angle_from_zero_that_is_no_turn_is_not_taken_for_powers() -> None:
    assert describe_column("theta", np.random.default_rng(0).uniform(0, 3, 2000), target=False).lines == {}


def test_its_study_fits_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "table.parquet", columns())
    monkeypatch.chdir(tmp_path)
    argv = [
        "fluvial",
        "init",
        "table.parquet",
        "-t",
        "deposit,hits,angle",
        "-c",
        "energy,time",
        "-o",
        "a/study.toml",
    ]
    (tmp_path / "a").mkdir()
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "fluvial fit a/study.toml" in capsys.readouterr().out
    study = tomllib.loads((tmp_path / "a" / "study.toml").read_text())
    assert study["data"]["source"] == "../table.parquet"
    assert study["data"]["missing"] == "drop"
    study["data"]["source"] = str(tmp_path / "table.parquet")
    density = fluvial.fit(study | {"training": {"epochs": 1}}, runs=tmp_path / "runs", check=False)
    draws = density.given(energy=10.0, time=0.0).sample(500, seed=0)
    assert (draws["deposit"] >= 0).all()
    assert (draws["hits"] == draws["hits"].round()).all()
    assert (np.abs(draws["angle"]) <= np.pi).all()


def test_without_targets_the_columns_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "table.parquet", columns() | {"name": np.array(["a"] * 2000)})
    monkeypatch.setattr("sys.argv", ["fluvial", "init", str(tmp_path / "table.parquet")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    out = capsys.readouterr().out
    assert "30 % are exactly 0" in out
    assert "text: of use once it is numbers" in out
    assert "whole numbers" in out


def test_mistakes_are_named(tmp_path: Path) -> None:
    table = columns() | {"flat": np.ones(2000)}
    write_table(tmp_path / "table.parquet", table)
    source = str(tmp_path / "table.parquet")
    with pytest.raises(DataError, match=r"no column 'enrgy'.*energy"):
        first_study(source, ["enrgy"], [])
    with pytest.raises(DataError, match="flat is the same in every row"):
        first_study(source, ["flat"], ["Z"])
