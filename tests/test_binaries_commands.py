"""``fluvial binaries``: rates, maps, held-out cells and masks, from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fluvial
from fluvial import cli
from fluvial.apps.binaries import simulator
from fluvial.apps.binaries.maps import LEVELS, likelihood_maps
from fluvial.apps.binaries.rates import Rates
from fluvial.record import RunFolder

STUDY = """
[data]
source = "mergers.parquet"
targets = ["Mass_0", "Mass_1"]
context = ["Z", "alpha"]
where = "Mass_0 < 100 and alpha != 5"
holdout = [{ Z = 0.001, alpha = 1.0 }]
[columns.Mass_0]
support = "positive"
unit = "Msun"
[columns.Mass_1]
support = "positive"
unit = "Msun"
[columns.Z]
transform = "log"
[flow]
architecture = "full-gaussian"
width = 16
[training]
epochs = 2
[check]
contexts = 60
draws = 50
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("binaries")
    simulator.write(folder / "mergers.parquet", 6000, seed=1)
    (folder / "s.toml").write_text(STUDY)
    fluvial.fit(folder / "s.toml", runs=folder / "runs", check=False)
    return folder


@pytest.fixture
def run(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(made)

    def call(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fluvial", "binaries", *argv])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return code, *capsys.readouterr()

    return call


def test_masks_over_dictionary_encoded_grids(made: Path) -> None:
    group = pq.ParquetFile(made / "mergers.parquet").metadata.row_group(0)
    encodings = {group.column(i).path_in_schema: group.column(i).encodings for i in range(5)}
    assert "RLE_DICTIONARY" in encodings["alpha"]
    table = pq.read_table(made / "mergers.parquet")
    alpha, mass, metallicity = (np.asarray(table[n]) for n in ("alpha", "Mass_0", "Z"))
    kept = (mass < 100) & (alpha != 5) & ~((metallicity == 0.001) & (alpha == 1))
    record = RunFolder(made / "runs" / "s-1").record()
    assert record["data"]["rows_kept"] == kept.sum()
    assert fluvial.load(made / "runs" / "s-1").context_range["alpha"] == (0.5, 3.0)


def test_rates(run: Run, made: Path) -> None:
    code, out, err = run("rates", "runs/s-1", "--simulated", "1000", "--at", "Z=0.0015,alpha=2")
    assert (code, err) == (0, "")
    assert "mergers in 44 cells of Z, alpha" in out  # 15 × 3, but the one that is held out
    assert "held out, Z = 0.001, alpha = 1: found" in out
    rates = Rates.load(made / "runs" / "s-1")
    expected, error = rates.expected(1000, Z=0.0015, alpha=2.0)
    truth = 6000 * float(simulator.cell_probabilities()[5:7, 1:3].mean())
    assert abs(expected - truth) < 0.25 * truth
    assert 0 < error < 0.2 * expected
    assert (made / "runs" / "s-1" / "rates.png").read_bytes()[:4] == b"\x89PNG"
    assert "a guess" in run("rates", "runs/s-1", "--at", "Z=0.5,alpha=2")[1]


def test_maps_are_densities(made: Path) -> None:
    density = fluvial.load(made / "runs" / "s-1")
    maps = likelihood_maps(density, {"Z": 0.001}, slices=3, points=120)
    assert [round(c["alpha"], 3) for c in maps.contexts] == [0.5, 1.225, 3.0]
    area = np.gradient(maps.y)[:, None] * np.gradient(maps.x)
    assert (maps.density * area).sum((1, 2)) == pytest.approx(np.ones(3), abs=0.02)
    draws = density.given(Z=0.001, alpha=0.5).sample(4000, seed=3)
    p = np.exp(density.given(Z=0.001, alpha=0.5).log_prob(draws))
    for level, threshold in zip(LEVELS, maps.thresholds[0], strict=True):
        assert (p > threshold).mean() == pytest.approx(level, abs=0.04)


def test_maps_as_figure_and_animation(run: Run, made: Path) -> None:
    assert run("maps", "runs/s-1", "--Z", "0.001", "--out", "m.png", "--slices", "2") == (
        0,
        "2 maps in m.png\n",
        "",
    )
    assert run("maps", "runs/s-1", "--at", "alpha=1", "--out", "m.gif", "--slices", "3")[0] == 0
    with Image.open(made / "m.gif") as film:
        assert film.n_frames == 4  # there and back
    assert not list(made.glob(".m.half*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--Z", "0.1"), r"Z = 0.1 is outside the range of the table, 0.0001 to 0.03"),
        ((), "free: Z, alpha. Give one with --at Z=VALUE"),
        (("--at", "Y=1"), "Expected context columns Z, alpha; got 'Y'"),
        (("--at", "Z"), "--at: expected NAME=NUMBER"),
    ],
)
def test_maps_refuse(run: Run, made: Path, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = run("maps", "runs/s-1", "--out", "bad.png", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (made / "bad.png").exists()


def test_a_guess_is_marked(made: Path) -> None:
    density = fluvial.load(made / "runs" / "s-1")
    maps = likelihood_maps(density, {"Z": 0.1, "alpha": 1.0}, points=20, outside="allow")
    assert maps.outside == [True]


def test_held_out_cells(run: Run, made: Path) -> None:
    code, out, err = run("holdout", "runs/s-1")
    assert err == ""
    assert out.startswith("Z = 0.001, alpha = 1: ")
    cells = json.loads((made / "runs" / "s-1" / "cells.json").read_text())
    assert code == (1 if cells["held_out"][0]["verdict"] == "fail" else 0)
    assert len(cells["trained"]) in (43, 44)  # in the poorest there may be no merger at all


def test_more_targets_and_context_by_the_study_alone(made: Path) -> None:
    """Chirp mass and mass ratio given Z, alpha and a third hyperparameter: a study, and no Python."""
    table = simulator.simulate(1500, seed=2)
    m0, m1 = table["Mass_0"], table["Mass_1"]
    kick = np.random.default_rng(0).choice([45.0, 265.0], 1500)
    from fluvial.data.readers import write_table

    write_table(
        made / "more.parquet", {n: table[n] for n in ("Mass_0", "Mass_1", "Z", "alpha")} | {"kick": kick}
    )
    study = {
        "data": {
            "source": str(made / "more.parquet"),
            "targets": ["chirp", "q", "Mass_0"],
            "context": ["Z", "alpha", "kick"],
            "derive": {
                "chirp": "(Mass_0 * Mass_1) ** 0.6 / (Mass_0 + Mass_1) ** 0.2",
                "q": "minimum(Mass_0, Mass_1) / maximum(Mass_0, Mass_1)",
            },
        },
        "columns": {"chirp": {"support": "positive"}, "q": {"support": [0, 1]}},
        "flow": {"architecture": "full-gaussian", "width": 8},
        "training": {"epochs": 1},
    }
    density = fluvial.fit(study, runs=made / "more", check=False)
    p = density.given(Z=0.001, alpha=1.0, kick=100.0)
    draws = p.sample(50, seed=0)
    assert draws.dtype.names == ("chirp", "q", "Mass_0")
    assert (draws["q"] < 1).all()
    events = {"Mass_0": m0[:4], "Mass_1": m1[:4]}  # what they derive from will do
    assert np.isfinite(p.log_prob(events)).all()
