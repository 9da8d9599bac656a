"""Held-out contexts: left out of the fit, judged after it, and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluvial
from fluvial import RunError, StudyError
from fluvial.check import energy_test
from fluvial.data.readers import write_table
from fluvial.record import RunFolder
from fluvial.study import parse_study
from fluvial.workflow.cells import check_cells, load_cells

GRID = (0.1, 0.2, 0.4, 0.8)


def table(shift: float = 0.0, rows: int = 4000) -> dict[str, np.ndarray]:
    """Return x, normal about log c; in the cell 0.4 it is moved by ``shift``, which no interpolation can know."""
    rng = np.random.default_rng(0)
    c = rng.choice(GRID, rows)
    c[:12] = 1.6  # a starved cell
    mean = np.log(c) + shift * (c == 0.4)
    x = rng.normal(mean, 0.3)
    truth = -0.5 * ((x - mean) / 0.3) ** 2 - np.log(0.3 * np.sqrt(2 * np.pi))
    return {"x": x, "c": c, "truth": truth, "m": rng.random(rows)}


def study(folder: Path, *, truth: bool = True, **data: Any) -> dict[str, Any]:
    return {
        "data": {"source": str(folder / "t.parquet"), "targets": ["x"], "context": ["c"], **data},
        "columns": {"c": {"transform": "log", "support": "positive"}},
        "flow": {"architecture": "maf", "steps": 1, "width": 12, "depth": 1},
        "training": {"epochs": 40, "batch_size": 128, "learning_rate": 1e-2},
        "check": {"contexts": 300, "draws": 60} | ({"truth": "truth"} if truth else {}),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("holdout")
    write_table(folder / "t.parquet", table())
    density = fluvial.fit(
        study(folder, holdout=[{"c": 0.4}, {"c": 1.6}], where="m < 0.9"), runs=folder / "runs"
    )
    assert density.folder is not None
    return density.folder


def test_what_is_held_out_is_in_no_split(run: Path) -> None:
    record = RunFolder(run).record()
    values = table()
    kept = (values["m"] < 0.9) & ~np.isin(values["c"], (0.4, 1.6))
    assert sum(record["data"]["split"].values()) == kept.sum()
    assert record["study"]["data"]["holdout"] == "(c == 0.4) or (c == 1.6)"
    assert fluvial.load(run).context_range["c"] == (0.1, 0.8)


def test_interpolation_is_judged(run: Path) -> None:
    trained, held = load_cells(RunFolder(run))
    assert [c.context["c"] for c in trained] == [0.1, 0.2, 0.8]
    assert all(c.verdict == "pass" and abs(c.kl) < 0.05 and c.compared > 100 for c in trained)
    there, starved = held
    values = table()
    kept = values["m"] < 0.9
    assert there.context == {"c": 0.4}
    assert there.rows == there.compared == ((values["c"] == 0.4) & kept).sum()
    assert abs(there.kl) < 0.04
    assert there.verdict == "pass"
    assert abs(there.own_loss) < 0.05
    assert there.chance > 0.01
    assert starved.verdict == "insufficient data"
    assert starved.rows == ((values["c"] == 1.6) & kept).sum()
    assert np.isfinite(starved.nll_error)
    assert np.isnan(starved.own_loss)


def test_the_report_has_both(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "Held-out contexts" in page
    assert "Cell by cell" in page
    assert "insufficient data" in page
    assert "(c == 0.4) or (c == 1.6)" in page


def test_a_cell_that_differs_fails_with_or_without_the_truth(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", table(shift=0.5))
    for truth in (True, False):
        density = fluvial.fit(
            study(tmp_path, holdout="c > 0.3 and c < 0.5", truth=truth), runs=tmp_path / "runs", check=False
        )
        assert density.folder is not None
        (cell,) = check_cells(density.folder)
        assert cell.verdict == "fail"
        assert cell.own_loss > 0.3
        assert cell.chance < 0.01
        assert np.isfinite(cell.kl) == truth


def test_judging_again_gives_the_same(run: Path) -> None:
    before = json.loads((run / "cells.json").read_text())
    check_cells(run)
    after = json.loads((run / "cells.json").read_text())
    assert after["held_out"] == before["held_out"]
    assert after["trained"] == before["trained"]


def test_mistakes_are_named(tmp_path: Path, run: Path) -> None:
    write_table(tmp_path / "t.parquet", table())
    with pytest.raises(
        StudyError, match=r"\[data\] holdout: no row of .*t\.parquet is held out by '\(c == 0\.3\)'"
    ):
        fluvial.fit(study(tmp_path, holdout=[{"c": 0.3}]), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    for wrong in ([], [{}], [{"c": "a"}], 3):
        with pytest.raises(StudyError, match=r"\[data\] holdout: expected contexts such as"):
            parse_study(study(tmp_path, holdout=wrong))
    plain = fluvial.fit(study(tmp_path), runs=tmp_path / "runs", check=False)
    assert plain.folder is not None
    with pytest.raises(RunError, match="its study holds nothing out"):
        check_cells(plain.folder)


def test_the_energy_test() -> None:
    rng = np.random.default_rng(2)
    chances = [
        energy_test(rng.normal(size=(80, 2)), rng.normal(size=(60, 2)), rng, permutations=99)[1]
        for _ in range(60)
    ]
    assert 0.35 < np.mean(chances) < 0.65  # uniform if nothing differs
    x = rng.normal(size=(400, 2))
    y = np.stack([x[:, 0], rng.permutation(x[:, 1])], 1)
    tied = np.stack([x[:, 0], x[:, 0] + 0.1 * x[:, 1]], 1)
    assert energy_test(tied, np.stack([y[:, 0], rng.permutation(tied[:, 1])], 1), rng)[1] < 0.01
