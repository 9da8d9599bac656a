"""Ensembles: members in turn, one density; and contexts outside the range of the table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from zoo import make_flow

import fluvial
from fluvial import DataError, RunError, StudyError
from fluvial.data.readers import write_table
from fluvial.flows import MAF, EnsembleFlow
from fluvial.record import RunFolder
from fluvial.record_model import Record
from fluvial.workflow import list_runs
from fluvial.workflow.members import member_runs

STUDY = """# kept as it is
[data]
source = "t.parquet"
targets = ["x", "y"]
context = ["c"]
[flow]
architecture = "maf"
steps = 1
width = 8
depth = 1
[training]
epochs = 2
batch_size = 64
learning_rate = 1e-2
ensemble = 3
seed = 5
[check]
contexts = 60
draws = 50
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    rng = np.random.default_rng(0)
    c = rng.uniform(1, 2, 500)
    write_table(folder / "t.parquet", {"x": c + rng.normal(size=500), "y": rng.normal(size=500), "c": c})
    (folder / "s.toml").write_text(STUDY)
    fluvial.fit(folder / "s.toml", runs=folder / "runs")
    return folder


def test_the_mixture_is_the_mean_of_its_members() -> None:
    flow = make_flow("ensemble", 2, 3)
    assert isinstance(flow, EnsembleFlow)
    x, c = torch.randn(4, 5, 2), torch.randn(5, 3)
    each = torch.stack([member(c).log_prob(x) for member in flow.members])
    torch.testing.assert_close(flow(c).log_prob(x), each.exp().mean(0).log())
    torch.testing.assert_close(flow(c).members_log_prob(x), each)


@pytest.mark.parametrize("context", [None, torch.zeros(1), torch.zeros(3, 1)])
def test_draws_come_from_every_member_alike(context: torch.Tensor | None) -> None:
    members = []
    for place in (-20.0, 0.0, 20.0):  # members that cannot be mistaken for one another
        member = MAF(targets=1, context=0 if context is None else 1, steps=1)
        with torch.no_grad():
            member.bijection.bijections[0].conditioner.last.bias[1] = place  # type: ignore[union-attr]
        members.append(member)
    flow = EnsembleFlow(members)
    x, log_prob = flow(context).rsample_and_log_prob((3000,), generator=torch.Generator().manual_seed(0))
    shape = (3000,) if context is None or context.ndim == 1 else (3000, 3)
    assert x.shape == (*shape, 1)
    torch.testing.assert_close(log_prob, flow(context).log_prob(x))
    shares = [(x.round() / 20).round().eq(k).double().mean() for k in (-1, 0, 1)]
    assert all(abs(share - 1 / 3) < 0.03 for share in shares)
    again = flow(context).sample((3000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, x)


def test_members_must_fit_together() -> None:
    with pytest.raises(ValueError, match="one number of targets"):
        EnsembleFlow([MAF(targets=1), MAF(targets=2)])


def test_the_run_of_an_ensemble(made: Path) -> None:
    run = RunFolder(made / "runs" / "s-1")
    record = run.record()
    TypeAdapter(Record).validate_python(record)
    assert (run.path / "study.toml").read_text() == STUDY
    assert record["status"] == "finished"
    assert [m["seed"] for m in record["ensemble"]] == [5, 6, 7]
    assert record["training"]["epochs"] == 2
    assert record["checks"]["made"] > 5
    assert (run.path / "report.html").exists()
    assert [r["name"] for r in list_runs(made / "runs")] == ["s-1"]
    description = json.loads((run.path / "density.json").read_text())
    assert (description["format"], description["ensemble"]) == (3, 3)
    losses = [m["best_loss"] for m in record["ensemble"]]
    assert record["training"]["best_loss"] <= np.mean(losses) + 1e-6  # by convexity


def test_the_density_of_an_ensemble(made: Path) -> None:
    density = fluvial.load(made / "runs" / "s-1")
    assert "ensemble of 3 maf" in repr(density)
    assert len(density.members) == 3
    events = {"x": [1.0, 2.0, 9.0], "y": [0.0, 0.5, 9.0]}
    p = density.given(c=1.5)
    each = p.log_prob_members(events)
    alone = [m.given(c=1.5).log_prob(events) for m in density.members]
    np.testing.assert_allclose(each, alone)
    one = fluvial.load(made / "runs" / "s-1" / "members" / "1").given(c=1.5).log_prob(events)
    np.testing.assert_allclose(each[1], one, rtol=1e-6)
    np.testing.assert_allclose(p.log_prob(events), np.log(np.exp(each).mean(0)), rtol=1e-5)
    spread = p.log_prob_spread(events)
    np.testing.assert_allclose(spread, each.std(0, ddof=1))
    assert spread[2] > spread[0]  # far from all rows members differ
    assert np.isnan(density.members[0].given(c=1.5).log_prob_spread(events)).all()
    draws, log_prob = p.sample_and_log_prob(200, seed=1)
    np.testing.assert_allclose(p.log_prob(draws), log_prob, rtol=1e-4, atol=1e-4)


def test_a_killed_ensemble_goes_on_with_the_member_it_was_at(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(made / "runs" / "s-1", path)
    before = fluvial.load(path)
    # As a kill during the second member's training leaves it: the third is not there, no end is on record.
    shutil.rmtree(path / "members" / "2")
    for folder in (path, path / "members" / "1"):
        record = RunFolder(folder).record() | {"status": "unfinished"}
        RunFolder(folder).write_record(record)
    first = (path / "members" / "0" / "weights.safetensors").stat().st_mtime_ns
    after = fluvial.resume(path, check=False)
    assert (path / "members" / "0" / "weights.safetensors").stat().st_mtime_ns == first
    assert [m.record()["status"] for m in member_runs(RunFolder(path))] == ["finished"] * 3
    events = np.array([[1.0, 0.0], [2.0, 1.0]])
    np.testing.assert_array_equal(after.given(c=1.2).log_prob(events), before.given(c=1.2).log_prob(events))
    with pytest.raises(RunError, match="is finished"):
        fluvial.resume(path)


def test_members_from_the_call(made: Path, tmp_path: Path) -> None:
    density = fluvial.fit(made / "s.toml", runs=tmp_path, ensemble=2, check=False)
    assert len(density.members) == 2
    assert density.folder is not None
    assert "ensemble = 2" in (density.folder / "study.toml").read_text()
    single = fluvial.fit(made / "s.toml", runs=tmp_path, ensemble=1, check=False)
    assert not (tmp_path / "s-2" / "members").exists()
    assert len(single.members) == 1


def test_several_processes_are_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StudyError, match="expected one process"):
        fluvial.fit(made / "s.toml", runs=tmp_path / "runs")


def test_outside_the_range(made: Path) -> None:
    density = fluvial.load(made / "runs" / "s-1")
    with pytest.raises(DataError, match=r"c = 5 is outside the range .* outside=\"allow\""):
        density.given(c=[1.5, 5.0], outside="raise")
    with pytest.warns(fluvial.ExtrapolationWarning, match="c = 5 is outside"):
        assert density.given(c=[1.5, 5.0]).outside.tolist() == [False, True]
    assert density.given(c=[1.5, 5.0], outside="allow").outside.tolist() == [False, True]
    assert not density.given(c=1.5, outside="raise").outside
    with pytest.raises(DataError, match="expected one of warn, raise, allow"):
        density.given(c=1.5, outside="maybe")  # type: ignore[arg-type]
