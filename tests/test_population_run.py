"""``fluvial infer``: from a run and a table of events to draws, a summary and figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import fluvial
from fluvial.cli import app
from fluvial.data.readers import open_table, write_table
from fluvial.errors import FluvialError

STUDY = {
    "data": {"source": "", "targets": ["m"], "context": ["mu"]},
    "columns": {"m": {"unit": "Msun"}},
    "flow": {"architecture": "diagonal-gaussian", "width": 16, "depth": 1},
    "training": {"epochs": 15, "batch_size": 256, "learning_rate": 1e-2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that has learnt m ~ N(mu, 1) for mu in [0, 4], and 40 events of mu = 2, measured within 0.3."""
    folder = tmp_path_factory.mktemp("population")
    rng = np.random.default_rng(0)
    mu = rng.uniform(0, 4, 4000)
    write_table(folder / "table.parquet", {"mu": mu, "m": rng.normal(mu, 1.0)})
    study = STUDY | {"data": STUDY["data"] | {"source": str(folder / "table.parquet")}}
    fluvial.fit(study, runs=folder, name="run", check=False)
    seen = rng.normal(rng.normal(2.0, 1.0, 40), 0.3)
    samples = rng.normal(np.repeat(seen, 50), 0.3)
    write_table(folder / "events.parquet", {"event": np.repeat(np.arange(40.0), 50), "m": samples})
    return folder


def _infer(folder, out, *more, prior="mu=uniform:0.1:3.9"):
    arguments = ["infer", str(folder / "run"), str(folder / "events.parquet"), "-o", str(folder / out)]
    return CliRunner().invoke(app, [*arguments, "--prior", prior, "-n", "500", *more])


def test_infer_leaves_draws_summary_and_figures(folder):
    result = _infer(folder, "all")
    assert result.exit_code == 0, result.output
    assert "mu  2." in result.output or "mu  1." in result.output
    summary = json.loads((folder / "all" / "inference.json").read_text())
    # The posterior is known: normal about the mean of what was measured, with the widths of population and noise.
    seen = open_table(folder / "events.parquet").read(["m"])["m"].mean()
    low, high = summary["parameters"]["mu"]["interval_90"]
    assert summary["parameters"]["mu"]["median"] == pytest.approx(seen, abs=0.1)
    assert high - low == pytest.approx(2 * 1.645 * (1.09 / 40) ** 0.5, rel=0.2)
    assert summary["events"] == {
        "source": str(folder / "events.parquet"),
        "number": 40,
        "samples": 2000,
    }
    draws = open_table(folder / "all" / "posterior.parquet").read(["mu", "rate"])
    assert len(draws["mu"]) == 500
    assert draws["rate"].mean() == pytest.approx(40, rel=0.1)  # all are detected
    for name in ("corner.png", "predictive.png"):
        assert (folder / "all" / name).read_bytes().startswith(b"\x89PNG")
    assert set(summary["predictive_p_values"]["m"]) >= {"mean", "median"}


def test_selection_by_an_expression_and_by_injections(folder):
    result = _infer(folder, "expression", "--detection", "where(m > 1, 1, 0.2)")
    assert result.exit_code == 0, result.output
    rng = np.random.default_rng(1)
    m = rng.uniform(-6, 10, 40_000)
    found = m[rng.random(len(m)) < np.where(m > 1, 1.0, 0.2)]
    write_table(folder / "found.parquet", {"m": found, "log_draw": np.full(len(found), -np.log(16.0))})
    more = ("--injections", str(folder / "found.parquet"), "--drawn", "40000")
    assert _infer(folder, "injections", *more).exit_code == 0
    medians = [
        json.loads((folder / name / "inference.json").read_text())["parameters"]["mu"]["median"]
        for name in ("expression", "injections", "all")
    ]
    assert medians[0] == pytest.approx(medians[1], abs=0.06)
    assert medians[0] < medians[2]  # what is hard to see is more common than it seems


@pytest.mark.parametrize(
    ("out", "more", "prior", "says"),
    [
        ("run", (), "mu=uniform:0.1:3.9", "exists and is not empty"),
        ("x", (), "mu=uniform:-3:3", "trained on"),
        ("x", (), "nu=uniform:0:3", "no context column"),
        ("x", (), "mu", "expected NAME=VALUE"),
        ("x", ("--given", "mu=1"), "mu=uniform:1:3", "both for mu"),
        ("x", ("--given", "mu=a"), "mu=uniform:1:3", "expected NAME=NUMBER"),
        ("x", ("--detection", "q > 1"), "mu=uniform:1:3", "no column 'q'"),
        ("x", ("--injections", "i.parquet"), "mu=uniform:1:3", "--drawn"),
        ("x", ("--sampler", "nut"), "mu=uniform:1:3", "did you mean 'nuts'"),
        ("x", ("--detection", "m * 0"), "mu=uniform:1:3", "None of"),
    ],
)
def test_bad_calls(folder, out, more, prior, says):
    result = _infer(folder, out, *more, prior=prior)
    assert isinstance(result.exception, FluvialError), result.output
    assert says in str(result.exception)
    assert not (folder / "x").exists()


def test_events_without_a_column(folder):
    write_table(folder / "bad.parquet", {"event": np.zeros(3), "M": np.ones(3)})
    arguments = ["infer", str(folder / "run"), str(folder / "bad.parquet"), "-o", str(folder / "x")]
    result = CliRunner().invoke(app, [*arguments, "--prior", "mu=uniform:0.1:3.9"])
    assert isinstance(result.exception, FluvialError)
    assert "'m'" in str(result.exception)
