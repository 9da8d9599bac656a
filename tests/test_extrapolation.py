"""A density says when it is asked about contexts that it has never seen."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import fluvial
from fluvial.data.readers import write_table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extrapolation")
    rng = np.random.default_rng(0)
    c = rng.uniform(0.5, 2.0, 400)
    write_table(folder / "table.parquet", {"x": c + rng.normal(size=400), "c": c})
    study = {
        "data": {"source": str(folder / "table.parquet"), "targets": ["x"], "context": ["c"]},
        "flow": {"architecture": "diagonal-gaussian", "width": 8},
        "training": {"epochs": 1},
    }
    density = fluvial.fit(study, runs=folder / "runs", check=False)
    assert density.folder is not None
    return density.folder


def test_outside_the_table_warns(run: Path) -> None:
    density = fluvial.load(run)
    low, high = density.context_range["c"]
    assert 0.5 <= low < high <= 2.0
    with pytest.warns(
        fluvial.ExtrapolationWarning,
        match=r"c = 7 is outside the range of the table, 0\.5\d* to 1\.99\d* \(1 of 2",
    ):
        density.given(c=[1.0, 7.0]).sample(3)


def test_inside_is_silent(run: Path) -> None:
    density = fluvial.load(run)
    low, high = density.context_range["c"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density.given(c=np.float32([low, 1.0, high])).sample(3)


def test_the_command_line_says_so_in_one_line(run: Path, tmp_path: Path) -> None:
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            "from fluvial.cli import main; main()",
            "sample",
            str(run),
            "--given",
            "c=9",
            "-n",
            "2",
            "--out",
            str(tmp_path / "draws.csv"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stderr.startswith("fluvial: warning: c = 9 is outside the range of the table")
    assert out.stderr.count("\n") == 1
