"""Loggers: four methods, called in order by the process that writes; other libraries where they are installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluvial
from fluvial.data.readers import write_table
from fluvial.errors import MissingExtraError, StudyError
from fluvial.loggers import LOGGERS, Logger, make_loggers

STUDY: dict[str, Any] = {
    "flow": {"architecture": "diagonal-gaussian", "width": 4, "depth": 1},
    "training": {"epochs": 2},
    "check": {"contexts": 60, "draws": 50},
}


class Notes:
    def __init__(self, broken: bool = False) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.broken = broken

    def begin(self, run: Path, options: Mapping[str, Any]) -> None:
        self.told.append(("begin", run.name, options["training.epochs"], options["flow.architecture"]))

    def metrics(self, values: Mapping[str, Any], epoch: int) -> None:
        self.told.append(("metrics", epoch, sorted(values)[0], values["validation_loss"] > 0))
        if self.broken:
            raise RuntimeError("no connection")

    def file(self, path: Path) -> None:
        self.told.append(("file", path.name, path.exists()))

    def end(self, status: str) -> None:
        self.told.append(("end", status))


def study(folder: Path) -> dict[str, Any]:
    c, noise = np.random.default_rng(0).normal(size=(2, 400))
    write_table(folder / "t.parquet", {"x": c + noise, "c": c})
    return {"data": {"source": str(folder / "t.parquet"), "targets": ["x"], "context": ["c"]}, **STUDY}


def test_a_logger_is_told_in_order(tmp_path: Path) -> None:
    notes = Notes()
    assert isinstance(notes, Logger)
    fluvial.fit(study(tmp_path), runs=tmp_path, loggers=[notes])
    assert notes.told == [
        ("begin", "run-1", 2, "diagonal-gaussian"),
        ("metrics", 1, "batch_rows", True),
        ("metrics", 2, "batch_rows", True),
        ("file", "report.html", True),
        ("end", "finished"),
    ]


def test_a_logger_that_fails_is_told_that_the_fit_failed(tmp_path: Path) -> None:
    notes = Notes(broken=True)
    with pytest.raises(RuntimeError, match="no connection"):
        fluvial.fit(study(tmp_path), runs=tmp_path, loggers=[notes])
    assert notes.told[-1] == ("end", "failed")


def test_unknown_names_and_missing_extras_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match="--log 'mlfow' is not known; did you mean 'mlflow'"):
        make_loggers(["mlfow"])

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("importlib.import_module", missing)
    for name in LOGGERS:
        with pytest.raises(MissingExtraError, match=rf"pip install 'fluvial\[{name}\]'"):
            make_loggers([name])


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    density = fluvial.fit(study(tmp_path), runs=tmp_path, check=False, loggers=["tensorboard"])
    assert density.folder is not None
    events = EventAccumulator(str(density.folder / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("validation_loss")] == [1, 2]


@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    fluvial.fit(study(tmp_path), runs=tmp_path, check=False, loggers=["mlflow"])
    client = mlflow.tracking.MlflowClient()
    experiment = client.get_experiment_by_name("fluvial")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["training.epochs"] == "2"
    assert len(client.get_metric_history(run.info.run_id, "validation_loss")) == 2
    assert run.info.status == "FINISHED"
