"""Weighted rows: they enter the loss, the checks and the record, however the table is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo import make_flow, make_mixed

import fluvial
from fluvial import DataError, StudyError
from fluvial.check import effective_rows, equal_rows
from fluvial.data.readers import write_table
from fluvial.record import RunFolder
from fluvial.workflow.check import load_results


def table(rows: int = 5000, seed: int = 0) -> dict[str, np.ndarray]:
    """Return x that is drawn 1.5 times too wide, with the weights that mend it and the exact log-density."""
    rng = np.random.default_rng(seed)
    c = rng.uniform(0.5, 2.0, rows)
    z = 1.5 * rng.normal(size=rows)
    x = c * np.exp(0.3 * z)
    w = 3 * np.exp(-0.5 * z**2 + 0.5 * (z / 1.5) ** 2)
    return {"x": x, "c": c, "w": w, "truth": -0.5 * z**2 - np.log(0.3 * x * np.sqrt(2 * np.pi))}


def study(folder: Path, **data: Any) -> dict[str, Any]:
    return {
        "data": {"source": str(folder / "t.parquet"), "targets": ["x"], "context": ["c"], **data},
        "columns": {"x": {"support": "positive"}},
        "flow": {"architecture": "maf", "steps": 2, "width": 12, "depth": 1},
        "training": {"epochs": 8, "batch_size": 128, "learning_rate": 1e-2},
        "check": {"truth": "truth", "contexts": 400, "draws": 100},
    }


def test_effective_rows() -> None:
    assert effective_rows(np.full(7, 1e-200)) == pytest.approx(7)
    assert effective_rows(np.zeros(3)) == effective_rows(np.empty(0)) == 0
    with pytest.raises(DataError, match=r"none below zero; got 1, the first in row 1: -2"):
        effective_rows(np.array([1.0, -2.0]))


def test_equal_rows_come_in_proportion_and_seldom_twice() -> None:
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(2, 40_000))
    w = np.exp(0.8 * x)  # makes the mean of x 0.8
    rows = equal_rows(w, rng)
    assert x[rows].mean() == pytest.approx(0.8, abs=5 / len(rows) ** 0.5)
    assert z[rows].mean() == pytest.approx(0.0, abs=5 / len(rows) ** 0.5)
    counts = np.bincount(rows)
    assert 1.05 < (counts**2).sum() / counts.sum() < 1.15
    assert len(rows) < effective_rows(w)
    assert equal_rows(np.full(100, 0.3), rng).tolist() == list(range(100))
    with pytest.raises(DataError, match="all 4 are zero"):
        equal_rows(np.zeros(4), rng)


@pytest.mark.parametrize("name", ["maf", "continuous", "mixture", "ensemble"])
def test_a_weight_counts_as_so_many_rows(name: str) -> None:
    flow = make_flow(name, 2, 3)
    x, c = torch.randn(6, 2), torch.randn(6, 3)
    weight = torch.tensor([0.0, 1.0, 2.0, 1.0, 1.0, 1.0])
    if flow.loss_is_nll:
        twice = torch.tensor([1, 2, 2, 3, 4, 5])
        torch.testing.assert_close(flow.loss(x, c, weight=weight), flow.loss(x[twice], c[twice]))
    ones = (
        flow.loss(x, c, weight=w, generator=torch.Generator().manual_seed(1)) for w in (None, torch.ones(6))
    )
    torch.testing.assert_close(*ones)
    generator = torch.Generator().manual_seed(1)
    other = flow.loss(x, c, weight=weight, generator=generator)
    assert not torch.isclose(other, flow.loss(x, c, generator=generator.manual_seed(1)))


@pytest.mark.parametrize("name", ["maf", "integers, continuous"])
def test_weights_of_mixed_flows(name: str) -> None:
    flow = make_mixed(name, 2, 1)
    c = torch.randn(5, 1)
    x = flow(c).sample(generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    losses = []
    for w in (None, torch.ones(5), weight):
        losses.append(float(flow.loss(x, c, weight=w, generator=torch.Generator().manual_seed(2)).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_weights_pass_through_backward_in_pieces() -> None:
    flow = make_flow("maf", 2, 3)
    x, c, w = torch.randn(10, 2), torch.randn(10, 3), torch.rand(10)
    whole = flow.backward(x, c, weight=w)
    gradient = [p.grad.clone() for p in flow.parameters() if p.grad is not None]
    flow.zero_grad()
    flow.train_rows = 3
    torch.testing.assert_close(flow.backward(x, c, weight=w), whole)
    pieces = [p.grad for p in flow.parameters() if p.grad is not None]
    torch.testing.assert_close(pieces, gradient, rtol=1e-4, atol=1e-6)


def test_a_fit_with_weights_finds_the_weighted_density(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_table(tmp_path / "t.parquet", table())
    losses = []
    for data in ({}, {"memory": 1e-6}):  # in memory, and streamed from the packed form
        density = fluvial.fit(study(tmp_path, weight="w", **data), runs=tmp_path / "runs")
        assert density.folder is not None
        run = RunFolder(density.folder)
        record = run.record()
        effective = record["data"]["weight"]["effective_rows"]
        assert effective["train"] < 0.9 * record["data"]["split"]["train"]
        kl = next(r for r in load_results(run) if r.name.startswith("KL"))
        assert abs(kl.statistic) < 0.03
        assert all(r.verdict != "fail" for r in load_results(run))
        assert ("packed" in record["data"]) == bool(data)
        assert "worth so many equal ones" in (run.path / "report.html").read_text()
        losses.append(record["training"]["best_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    # Without the weights the density is that of the rows as they are: far from the truth.
    density = fluvial.fit(study(tmp_path), runs=tmp_path / "runs")
    assert density.folder is not None
    kl = next(r for r in load_results(RunFolder(density.folder)) if r.name.startswith("KL"))
    assert kl.verdict == "fail"


@pytest.mark.parametrize("memory", ["auto", 1e-6])
def test_bad_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    good = table(300)
    cases = [
        (np.where(np.arange(300) == 17, -0.5, good["w"]), r"column 'w' .* found -0.5 in row 17"),
        (np.where(np.arange(300) == 18, np.nan, good["w"]), r"column 'w' .* found nan in row 18"),
        (np.zeros(300), r"all \d+ weights of the train split are zero"),
    ]
    for weights, message in cases:
        write_table(tmp_path / "t.parquet", good | {"w": weights})
        with pytest.raises(DataError, match=message):
            fluvial.fit(study(tmp_path, weight="w", memory=memory), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_weight_is_a_column_of_its_own(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", table(300))
    with pytest.raises(StudyError, match=r"\[data\] weight = 'c' is a target or context column"):
        fluvial.fit(study(tmp_path, weight="c"), runs=tmp_path / "runs")
    with pytest.raises(DataError, match=r"no column 'ww', which \[data\] weight names; did you mean 'w'"):
        fluvial.fit(study(tmp_path, weight="ww"), runs=tmp_path / "runs")
