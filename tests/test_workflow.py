"""From study to run folder: what a fit leaves, what it refuses, and what a full disk cannot break."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fluvial
from fluvial import DataError, RunError, StudyError
from fluvial.data.readers import write_table
from fluvial.density import Density
from fluvial.record import RunFolder
from fluvial.workflow import list_runs

STUDY = """# a study with a comment, that is kept
[data]
source = "table.parquet"
targets = ["x"]
context = ["c"]
seed = 3

[columns.x]
unit = "Msun"
support = "positive"

[flow]
architecture = "maf"
steps = 2
width = 8
depth = 1

[training]
epochs = 2
batch_size = 128
seed = 5

[check]
contexts = 60
draws = 50
seed = 7
truth = "log_density"
"""


def table(rows: int = 600, seed: int = 0) -> dict[str, np.ndarray]:
    """Return x, log-normal about c, with its exact log-density."""
    rng = np.random.default_rng(seed)
    c = rng.uniform(0.5, 2.0, rows)
    z = rng.normal(size=rows)
    x = c * np.exp(0.3 * z)
    return {"x": x, "c": c, "log_density": -0.5 * z**2 - np.log(0.3 * x * np.sqrt(2 * np.pi))}


def write(folder: Path, text: str = STUDY, **changes: np.ndarray) -> Path:
    """Write a table and its study into a folder; return the study's path."""
    write_table(folder / "table.parquet", table() | changes)
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def left_over(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(".*"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Density]:
    folder = tmp_path_factory.mktemp("fit")
    density = fluvial.fit(write(folder), runs=folder / "runs")
    assert density.folder is not None
    return density.folder, density


def test_the_run_folder_holds_all(run: tuple[Path, Density]) -> None:
    folder, _ = run
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "card.json", "checkpoint.safetensors", "checks.json", "checks.npz", "conformal.safetensors",
        "density.json", "metrics.jsonl", "novelty.json", "novelty.safetensors", "record.json", "report.html",
        "study.toml", "weights.safetensors",
    ]  # fmt: skip
    assert folder.name == "tiny-1"
    assert (folder / "study.toml").read_text() == STUDY
    assert left_over(folder.parent) == []


def test_the_record_says_everything(run: tuple[Path, Density]) -> None:
    folder, density = run
    record = RunFolder.open(folder).record()
    assert record["status"] == "finished"
    assert record["stopped"] == "budget: 2 epochs"
    assert record["started"] <= record["ended"]
    assert record["name"] == "tiny-1"
    assert record["study"]["flow"].items() >= density.options.items()  # every option, the defaults too
    assert record["study"]["training"]["clip"] == 5.0
    assert record["study"]["columns"]["x"]["support"] == [0.0, None]
    assert record["seeds"] == {"split": 3, "training": 5, "check": 7}
    assert record["weights"] == sum(p.numel() for p in density.flow.parameters())
    assert record["versions"]["torch"] == torch.__version__
    assert record["data"]["rows_read"] == record["data"]["rows_kept"] == 600
    assert sum(record["data"]["split"].values()) == 600
    assert record["data"]["fingerprint"]["rows"] == 600
    assert len(record["data"]["fingerprint"]["sha256"]) == len(record["study_sha256"]) == 64
    assert set(record["timings"]) == {"reading", "training", "checks", "report"}
    assert all(seconds >= 0 for seconds in record["timings"].values())
    assert record["checks"]["verdict"] in ("pass", "fail", "insufficient data")
    assert set(record["transforms"]) == {"x", "c"}


def test_record_and_metrics_are_what_their_schema_says(run: tuple[Path, Density]) -> None:
    from pydantic import ValidationError

    from fluvial.record_model import Metrics, Record

    folder = RunFolder.open(run[0])
    Record.model_validate(folder.record())
    for line in folder.metrics():
        Metrics.model_validate(line)
    with pytest.raises(ValidationError, match="extra"):
        Record.model_validate(folder.record() | {"extra": 1})


def test_metrics_and_record_agree(run: tuple[Path, Density]) -> None:
    folder, _ = run
    metrics = RunFolder.open(folder).metrics()
    training = RunFolder.open(folder).record()["training"]
    assert [m["epoch"] for m in metrics] == [1, 2]
    losses = [m["validation_loss"] for m in metrics]
    assert training["best_loss"] == min(losses)
    assert training["final_loss"] == losses[-1]
    assert training["best_epoch"] == 1 + losses.index(min(losses))
    assert metrics[-1]["stopped"] == "budget: 2 epochs"


def test_the_saved_density_is_the_returned_one(run: tuple[Path, Density]) -> None:
    folder, density = run
    again = fluvial.load(folder)
    assert again.folder == folder
    assert np.array_equal(again.log_prob(table()), density.log_prob(table()))


def test_losses_are_in_units(run: tuple[Path, Density]) -> None:
    """The best loss on record is the mean of −log p per solar mass over the validation rows."""
    from fluvial.study import read_study
    from fluvial.workflow.data import read_rows

    folder, density = run
    rows = read_rows(read_study(folder / "study.toml")[0], folder.parent.parent / "table.parquet")
    mean = -density.log_prob(rows.part("validation")).mean()
    record = RunFolder.open(folder).record()
    assert abs(record["training"]["best_loss"] - mean) < 1e-5
    test_nll = -density.log_prob(rows.part("test")).mean()
    assert abs(record["checks"]["test_nll"] - test_nll) < 1e-9
    assert np.array_equal(rows.truth_part("test"), rows_truth(rows))


def rows_truth(rows: Any) -> np.ndarray:
    """Return the exact log-density of the test rows, computed from their x and c alone."""
    part = rows.part("test")
    every = table()
    order = dict(zip(every["x"], every["log_density"], strict=True))
    return np.array([order[x] for x in part["x"]])


def test_checks_and_report_can_be_made_again(run: tuple[Path, Density]) -> None:
    folder, _ = run
    before = json.loads((folder / "checks.json").read_bytes())["results"]
    names = [r.name for r in fluvial.check_run(folder)]
    assert any(n.startswith("KL") for n in names)
    assert json.loads((folder / "checks.json").read_bytes())["results"] == before  # the same seeds
    assert fluvial.report_run(folder).read_text().lstrip().lower().startswith("<!doctype html>")


def test_data_that_changed_are_not_checked_against(tmp_path: Path) -> None:
    density = fluvial.fit(write(tmp_path), runs=tmp_path / "runs", check=False)
    assert density.folder is not None
    with pytest.raises(RunError, match="has not been checked; run 'fluvial check"):
        fluvial.report_run(density.folder)
    write(tmp_path, x=table()["x"] * 2)
    with pytest.raises(RunError, match=r"table\.parquet has changed since .* was fitted"):
        fluvial.check_run(density.folder)


def test_seeds_decide_the_weights(tmp_path: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        study = write(tmp_path, STUDY.replace("seed = 5", f"seed = {seed}"))
        density = fluvial.fit(study, runs=tmp_path / "runs", check=False)
        torch.randn(3)  # what others draw between two fits is none of their business
        return torch.cat([p.detach().flatten() for p in density.flow.parameters()])

    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))
    assert [r["name"] for r in list_runs(tmp_path / "runs")] == [f"tiny-{i}" for i in range(1, 5)]


def test_without_context(tmp_path: Path) -> None:
    text = STUDY.replace('targets = ["x"]', 'targets = ["x", "c"]').replace('context = ["c"]', "")
    text = text.replace('truth = "log_density"', "")
    density = fluvial.fit(write(tmp_path, text), runs=tmp_path / "runs")
    assert density.folder is not None
    assert (density.folder / "report.html").exists()
    assert density.given().sample(5, seed=0).shape == (5,)


def test_a_study_from_python(tmp_path: Path) -> None:
    write(tmp_path)
    study = {
        "data": {"source": str(tmp_path / "table.parquet"), "targets": ["x"], "context": ["c"]},
        "flow": {"architecture": "maf", "steps": 1, "width": 8, "depth": 1},
        "training": {"epochs": 1},
    }
    density = fluvial.fit(study, runs=tmp_path / "runs", check=False)
    assert density.folder == tmp_path / "runs" / "run-1"
    from fluvial.study import parse_study, read_study

    assert read_study(tmp_path / "runs" / "run-1" / "study.toml")[0] == parse_study(study)


def test_dropped_rows_are_recorded_and_move_no_others(tmp_path: Path) -> None:
    from fluvial.study import read_study
    from fluvial.workflow.data import read_rows

    text = STUDY.replace("seed = 3", 'seed = 3\nmissing = "drop"\noutside = "drop"')
    study = write(tmp_path, text)
    whole = read_rows(read_study(study)[0], tmp_path / "table.parquet")
    x, c, truth = table()["x"], table()["c"], table()["log_density"]
    x[[3, 50]], c[[50, 99]], x[200], truth[3] = (
        np.nan,
        np.inf,
        -1.0,
        np.nan,
    )  # a truth that is not used may be anything
    write(tmp_path, text, x=x, c=c, log_density=truth)
    rows = read_rows(read_study(study)[0], tmp_path / "table.parquet")
    assert rows.facts["dropped"] == {"x: missing": 2, "x: outside": 1, "c: missing": 2}
    assert rows.facts["rows_kept"] == 596
    for part in ("train", "validation", "test"):
        kept = np.isin(whole.part(part)["x"], x[np.isfinite(c)])
        assert np.array_equal(rows.part(part)["x"], whole.part(part)["x"][kept])
        assert np.array_equal(rows.truth_part(part), whole.truth_part(part)[kept])
    density = fluvial.fit(study, runs=tmp_path / "runs", check=False)
    assert density.folder is not None
    assert RunFolder.open(density.folder).record()["data"]["dropped"] == rows.facts["dropped"]


def _changed(**columns: Callable[[np.ndarray], Any]) -> dict[str, np.ndarray]:
    out = table()
    for name, change in columns.items():
        change(out[name])
    return {name: out[name] for name in columns}


def _put(value: float, *rows: int) -> Callable[[np.ndarray], Any]:
    return lambda a: a.__setitem__(list(rows), value)


@pytest.mark.parametrize(
    ("replace", "columns", "error", "message"),
    [
        (
            ('"table.', '"tabel.'),
            {},
            DataError,
            r"tabel\.parquet does not exist; did you mean 'table\.parquet'",
        ),
        (('["c"]', '["C"]'), {}, DataError, r"table\.parquet: no column 'C'; did you mean 'c'\?"),
        (("log_density", "log_densty"), {}, DataError, r"'log_densty', which \[check\] truth names; did you"),
        (("steps", "stps"), {}, StudyError, r"tiny\.toml: \[flow\] stps is not a known key; did you mean"),
        (
            None,
            {"x": _put(np.nan, 4, 9)},
            DataError,
            r"x: 2 values are not finite .*row 4.*`missing = \"drop\"`",
        ),
        (None, {"c": _put(-np.inf, 8)}, DataError, r"c: 1 values are not finite \(0 NaN, 1 infinite\)"),
        (None, {"x": _put(-1.0, 7)}, DataError, r"x: 1 values lie outside the support \(0, inf\).*row 7: -1"),
        (None, {"x": _put(0.0, 7)}, DataError, r"the ends are not part of it"),
        (None, {"c": lambda a: a.fill(2.0)}, DataError, r"c: every row holds 2, so there is nothing to"),
        (None, {"log_density": _put(np.nan, 11)}, DataError, r"'log_density' .*1 values .*first in row 11"),
    ],
)
def test_what_cannot_be_fitted_says_why_and_leaves_nothing(
    tmp_path: Path,
    replace: tuple[str, str] | None,
    columns: dict[str, Callable[[np.ndarray], Any]],
    error: type[Exception],
    message: str,
) -> None:
    text = STUDY.replace(*replace) if replace else STUDY
    study = write(tmp_path, text, **_changed(**columns))
    with pytest.raises(error, match=message):
        fluvial.fit(study, runs=tmp_path / "runs")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["table.parquet", "tiny.toml"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed_before_the_table_is_read(tmp_path: Path) -> None:
    study = tmp_path / "tiny.toml"  # and no table beside it
    study.write_text(STUDY.replace("[training]", '[training]\ndevice = "cuda"'), encoding="utf-8")
    with pytest.raises(RunError, match=r'device = "cuda": expected an NVIDIA GPU; .*set device = "cpu"'):
        fluvial.fit(study, runs=tmp_path / "runs")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.toml"]


def test_damaged_and_textual_tables(tmp_path: Path) -> None:
    study = write(tmp_path)
    path = tmp_path / "table.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"table\.parquet looks truncated"):
        fluvial.fit(study, runs=tmp_path / "runs")
    (tmp_path / "table.csv").write_text("x,c,log_density\n1,2,3\n2,warm,3\n")
    study.write_text(STUDY.replace("table.parquet", "table.csv"))
    with pytest.raises(DataError, match=r"table\.csv: column 'c' .* holds 'warm' in row 1"):
        fluvial.fit(study, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def _of_rows(tmp_path: Path, rows: int, **changes: np.ndarray) -> Path:
    study = write(tmp_path)
    columns = {name: values[:rows] for name, values in table().items()}
    write_table(tmp_path / "table.parquet", columns | changes)
    return study


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_too_few_rows(tmp_path: Path, rows: int) -> None:
    with pytest.raises(DataError, match=r"table\.parquet: ") as caught:
        fluvial.fit(_of_rows(tmp_path, rows), runs=tmp_path / "runs")
    assert "(row)" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_column_constant_in_the_train_split_alone(tmp_path: Path) -> None:
    from fluvial.data.stream import split_rows

    c = np.ones(30)
    c[split_rows(30, (0.6, 0.2, 0.2), seed=3).test] = 2.0
    study = _of_rows(tmp_path, 30, c=c)
    with pytest.raises(
        DataError, match=r"table\.parquet: column c is constant \(1\) in the \d+ rows of the train"
    ):
        fluvial.fit(study, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_split_emptied_by_dropping(tmp_path: Path) -> None:
    from fluvial.data.stream import split_rows

    x = table()["x"][:30].copy()
    x[split_rows(30, (0.6, 0.2, 0.2), seed=3).validation] = np.nan
    study = _of_rows(tmp_path, 30, x=x)
    study.write_text(STUDY.replace("seed = 3", 'seed = 3\nmissing = "drop"'))
    with pytest.raises(DataError, match=r"none of the .* sound rows falls to the validation split"):
        fluvial.fit(study, runs=tmp_path / "runs")


def test_a_name_that_is_taken_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    study = write(tmp_path)
    fluvial.fit(study, runs=tmp_path / "runs", name="mine", check=False)
    (tmp_path / "table.parquet").unlink()
    with pytest.raises(RunError, match=r"mine to be new; it exists\. Choose another --name"):
        fluvial.fit(study, runs=tmp_path / "runs", name="mine")


@pytest.mark.parametrize("allowed", [3, 7])
def test_a_full_disk_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """The disk is full after some writes: 3 fill the folder, then every epoch writes weights and record."""
    replace, count = os.replace, 0

    def full(*paths: Any) -> None:
        nonlocal count
        count += 1
        if count > allowed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*paths)

    study = write(tmp_path, STUDY.replace("epochs = 2", "epochs = 50"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(RunError, match=r"Could not write .*: No space left on device"):
            fluvial.fit(study, runs=tmp_path / "runs")
    folder = tmp_path / "runs" / "tiny-1"
    assert np.isfinite(fluvial.load(folder).log_prob(table())).all()
    assert RunFolder.open(folder).record()["status"] == "unfinished"
    assert left_over(tmp_path) == []
