"""Novelty: contexts unlike those of the table are flagged, and others as rarely as promised."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from fluvial import DataError, RunError
from fluvial.novelty import Novelty

ROWS = 3000


def ring(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, rows)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * rng.normal(size=(rows, 2))


def clusters(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 3)) * [1.0, 50.0, 1e-3] + np.where(
        rng.random((rows, 1)) < 0.3, 12.0, 0.0
    ) * [1, 50, 1e-3]


def heavy(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(2.0, (rows, 1))


def many(rows: int, seed: int) -> np.ndarray:
    """Return 60 correlated columns: scored by their Mahalanobis distance."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 60)) @ np.random.default_rng(9).normal(size=(60, 60))


def grid(rows: int, seed: int) -> np.ndarray:
    """Return a grid of 5 × 3 values of which one cell is never made, beside a column of numbers."""
    rng = np.random.default_rng(seed)
    z, alpha = rng.integers(0, 5, rows), rng.integers(0, 3, rows)
    alpha = np.where((z == 4) & (alpha == 2), 0, alpha)
    return np.stack([10.0**-z, 0.5 * 2.0**alpha, rng.normal(size=rows)], 1)


KINDS = {"ring": ring, "clusters": clusters, "heavy": heavy, "many": many, "grid": grid}


@pytest.mark.parametrize("kind", KINDS)
def test_false_alarms_are_as_rare_as_promised(kind: str) -> None:
    make = KINDS[kind]
    novelty = Novelty.fit(make(ROWS, 0), make(ROWS, 1))
    found = novelty(make(8000, 2))
    for rate in (0.01, 0.1):
        flagged = (found.p <= rate).mean()
        # Binomial on both sides: the threshold itself comes from so many rows.
        spread = math.sqrt(rate * (1 - rate) * (1 / ROWS + 1 / 8000))
        assert rate - 4 * spread < flagged < rate + 4 * spread
    assert found.flag.mean() == (found.p <= 0.01).mean()
    assert 0.45 < found.p.mean() < 0.55  # p-values of what is exchangeable are uniform


@pytest.mark.parametrize(
    ("kind", "novel", "usual"),
    [
        ("ring", [[0, 0], [0.5, 0], [3, 0], [1e6, 1e6]], [[1, 0], [0, -1]]),
        ("clusters", [[6, 300, 6e-3], [12, 0, 0], [0, 0, 0.1]], [[0, 0, 0], [12, 600, 12e-3]]),
        ("heavy", [[1e5]], [[0.0], [3.0]]),
        ("many", [[40.0] * 60, [-1e4] + [0.0] * 59], [[0.0] * 60]),
    ],
)
def test_far_contexts_and_holes_are_flagged(kind: str, novel: list, usual: list) -> None:
    novelty = Novelty.fit(KINDS[kind](ROWS, 0), KINDS[kind](ROWS, 1))
    assert novelty(np.array(novel, dtype=float)).flag.all()
    assert not novelty(np.array(usual, dtype=float)).flag.any()


def test_grids_have_cells_and_places_between() -> None:
    novelty = Novelty.fit(grid(ROWS, 0), grid(ROWS, 1))
    assert (novelty.about["grid"], novelty.about["free"]) == ([0, 1], [2])
    cases = {
        "a known cell": ([1e-2, 1.0, 0.0], False, False),
        "the same, through float32": ([float(np.float32(1e-2)), 1.0, 0.0], False, False),
        "between known cells": ([3e-2, 0.7, 0.0], False, True),
        "between along one axis": ([1e-2, 0.7, 0.0], False, True),
        "the cell that was never made": ([1e-4, 2.0, 0.0], True, False),
        "between, beside that cell": ([3e-4, 1.5, 0.0], True, False),
        "beyond the grid": ([1e-6, 1.0, 0.0], True, False),
        "a known cell, a far number": ([1e-2, 1.0, 40.0], True, False),
    }
    for name, (at, flag, between) in cases.items():
        found = novelty(np.array(at))
        assert (bool(found.flag), bool(found.between)) == (flag, between), name


def test_it_is_saved_and_damage_is_told(tmp_path: Path) -> None:
    novelty = Novelty.fit(grid(ROWS, 0), grid(ROWS, 1))
    novelty.save(tmp_path)
    again = Novelty.load(tmp_path)
    assert again is not None
    np.testing.assert_array_equal(again(grid(500, 3)).p, novelty(grid(500, 3)).p)
    assert Novelty.load(tmp_path / "none") is None
    about = json.loads((tmp_path / "novelty.json").read_bytes())
    (tmp_path / "novelty.json").write_text(json.dumps(about | {"format": 9}))
    with pytest.raises(RunError, match="has format 9"):
        Novelty.load(tmp_path)
    (tmp_path / "novelty.json").write_text("{")
    with pytest.raises(RunError, match=r"novelty\.json is damaged"):
        Novelty.load(tmp_path)


def test_too_few_rows_flag_nothing_and_shapes_are_told() -> None:
    few = Novelty.fit(ring(50, 0), ring(50, 1))
    assert not few(np.array([[50.0, 50.0]])).flag  # 50 rows know no 1 % tail
    assert few(np.array([[50.0, 50.0]]), 0.05).flag
    with pytest.raises(DataError, match=r"expected contexts \[\.\.\., 2\]; got \(1, 3\)"):
        few(np.zeros((1, 3)))
    with pytest.raises(DataError, match="of one C > 0"):
        Novelty.fit(ring(50, 0), heavy(50, 0))
    with pytest.raises(DataError, match="a rate of false alarms between 0 and 1; got 2"):
        Novelty.fit(ring(50, 0), ring(50, 1), rate=2)


def test_sample_warns_and_adds_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line, of a fit of the smallest size."""
    import fluvial
    from fluvial.data.readers import open_table, write_table
    from fluvial.workflow import sample_table
    from fluvial.workflow.use import NoveltyWarning

    rng = np.random.default_rng(0)
    c = np.concatenate([rng.uniform(0, 1, 3000), rng.uniform(9, 10, 3000)])
    rng.shuffle(c)
    write_table(tmp_path / "table.parquet", {"x": c + rng.normal(size=6000), "c": c})
    (tmp_path / "s.toml").write_text(
        '[data]\nsource = "table.parquet"\ntargets = ["x"]\ncontext = ["c"]\n'
        '[flow]\narchitecture = "diagonal-gaussian"\nwidth = 4\n[training]\nepochs = 1\n'
        "[check]\ncontexts = 200\ndraws = 50\n"
    )
    density = fluvial.fit(tmp_path / "s.toml", runs=tmp_path)
    assert density.folder is not None
    write_table(tmp_path / "contexts.parquet", {"c": np.array([0.5, 5.0, 9.5])})
    with pytest.warns(
        NoveltyWarning, match=r"1 of 3 contexts are unlike those of the training rows .*false alarms: 1 %"
    ):
        table = sample_table(density, contexts=tmp_path / "contexts.parquet", draws=2, novelty=True)
    assert (table["novelty"] <= 0.01).tolist() == [False, False, True, True, False, False]
    with pytest.warns(NoveltyWarning, match="1 of 1 contexts"):
        sample_table(density, given={"c": 5.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "novelty" not in sample_table(density, given={"c": 0.5})
    from typer.testing import CliRunner

    from fluvial.cli import app

    out = tmp_path / "draws.parquet"
    with pytest.warns(NoveltyWarning):
        result = CliRunner().invoke(
            app, ["sample", str(density.folder), "-g", "c=5", "--novelty", "-o", str(out)]
        )
    assert result.exit_code == 0, result.output
    assert "novelty" in open_table(out).columns()
    assert not (fluvial.load(density.folder).given(c=[0.5, 9.5]).novelty().flag).any()
