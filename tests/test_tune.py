"""Searches: every trial a run, no trial twice, none lost; and a journal that Optuna's own tools read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

import fluvial
from fluvial import RunError, StudyError
from fluvial.data.readers import write_table
from fluvial.record import RunFolder
from fluvial.study import read_study
from fluvial.train import StepEvent
from fluvial.tune import open_journal, read_search, tune
from fluvial.tune_journal import last_written, working_lock
from fluvial.workflow.signals import Terminated

STUDY = """
[data]
source = "table.parquet"
targets = ["x"]
context = ["c"]
[flow]
architecture = "maf"
steps = 1
depth = 1
[training]
epochs = 7
batch_size = 64
learning_rate = 1e-2
[check]
contexts = 60
draws = 50
[tune]
trials = 3
epochs = 1
sampler = "random"
[tune.space]
"flow.width" = {low = 4, high = 16}
"training.learning_rate" = {low = 1e-4, high = 1e-2, log = true}
"""
GRID = (
    STUDY[: STUDY.index("[tune]")]
    + """
[tune]
sampler = "grid"
epochs = 1
[tune.space]
"flow.width" = {low = 4, high = 8, step = 4}
"flow.activation" = ["relu", "tanh"]
"""
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    c, noise = np.random.default_rng(0).normal(size=(2, 400))
    write_table(tmp_path / "table.parquet", {"x": c + noise, "c": c})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path


def write(text: str = STUDY) -> Path:
    path = Path("study.toml")
    path.write_text(text)
    return path


def opened(folder: Path = Path("runs/study-tune")) -> optuna.Study:
    """Open a journal as optuna-dashboard does: with the defaults, knowing nothing of fluvial."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
    return optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(backend))


def test_a_search_leaves_runs_a_table_and_the_best_study(here: Path) -> None:
    rows = tune(write())
    assert [r["state"] for r in rows] == ["complete"] * 3
    assert rows[0]["best_loss"] == min(r["best_loss"] for r in rows)
    folder = Path("runs/study-tune")
    for row in rows:
        record = RunFolder.open(row["run"]).record()
        assert record["study"]["flow"]["width"] == row["width"]
        assert record["study"]["training"]["epochs"] == 1  # the trial's budget, not the study's
        assert record["study"]["tune"] is None
    best, _ = read_study(folder / "best.toml")
    assert (best.flow["width"], best.training.epochs) == (rows[0]["width"], 7)
    fluvial.fit(folder / "best.toml", name="best", check=False)  # its source is found from anywhere
    assert (folder / "parallel.png").read_bytes().startswith(b"\x89PNG")
    text, latex = (folder / "trials.txt").read_text(), (folder / "trials.tex").read_text()
    assert text.splitlines()[0].split()[:4] == ["trial", "width", "learning_rate", "best_loss"]
    assert latex.startswith(r"\begin{tabular}")
    study = opened()
    assert study.best_trial.number == rows[0]["trial"]
    assert study.best_value == pytest.approx(rows[0]["best_loss"])
    before = [(t.number, t.params) for t in study.trials]
    assert [(r["trial"]) for r in tune(write())] == [r["trial"] for r in rows]  # nothing is left to do
    tune(write(STUDY.replace("trials = 3", "trials = 4")))  # but more may be asked for
    after = [(t.number, t.params) for t in opened().trials]
    assert after[:3] == before
    assert len(after) == 4
    assert len({t[1]["flow.width"] * 100 + t[1]["training.learning_rate"] for t in after}) == 4


def test_the_same_seed_searches_the_same_way(here: Path) -> None:
    a, b = (tune(write(), name=name) for name in ("a", "b"))
    assert [(r["width"], r["best_loss"]) for r in a] == [(r["width"], r["best_loss"]) for r in b]
    c = tune(write(STUDY.replace("trials = 3", "trials = 3\nseed = 1")), name="c")
    assert [r["width"] for r in a] != [r["width"] for r in c]


def test_a_grid_takes_every_combination_once(here: Path) -> None:
    rows = tune(write(GRID))
    found = sorted((r["width"], r["activation"]) for r in rows)
    assert found == [(4, "relu"), (4, "tanh"), (8, "relu"), (8, "tanh")]


def test_workers_share_a_search(here: Path) -> None:
    write(GRID)
    command = [sys.executable, "-m", "fluvial", "tune", "study.toml", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    trials = opened().trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 4
    assert len({str(t.params) for t in trials}) == 4
    assert len({t.user_attrs["worker"]["pid"] for t in trials} - {os.getpid()}) >= 1
    assert f"study   {Path('runs/study-tune/best.toml')}" in done.stdout


def test_workers_together_make_as_many_trials_as_asked(here: Path) -> None:
    search = read_search(write())
    journals = [open_journal(search, worker) for worker in range(3)]
    claimed = [journal.claim() for journal in journals * 2]
    assert [t.number for t in claimed if t is not None] == [0, 1, 2]
    assert len({str(t.params) for t in claimed if t is not None}) == 3


def test_median_pruning_ends_what_is_hopeless(here: Path) -> None:
    text = STUDY.replace("trials = 3", 'trials = 6\npruner = "median"').replace("epochs = 1", "epochs = 4")
    hopeless = '"training.learning_rate" = [1e-2, 1e-7]\n'
    text = text[: text.index('"flow.width"')] + hopeless + '"flow.width" = [8, 9, 10]\n'
    text = text.replace('"random"', '"grid"')
    rows = tune(write(text))
    pruned = [r for r in rows if r["state"] == "pruned"]
    assert pruned
    assert {r["learning_rate"] for r in pruned} == {1e-7}
    record = RunFolder.open(pruned[0]["run"]).record()
    assert (record["status"], record["stopped"].startswith("pruned after")) == ("interrupted", True)
    assert fluvial.load(pruned[0]["run"]).architecture == "maf"


def stopping(after: int) -> Any:
    """Return a function in place of fluvial.fit that sends SIGTERM after so many steps."""
    from fluvial import tune as module

    real, count = module.fit, 0

    def fit(*args: Any, on_event: Any, **more: Any) -> Any:
        def listen(event: Any) -> None:
            nonlocal count
            count += isinstance(event, StepEvent)
            if isinstance(event, StepEvent) and count == after:
                signal.raise_signal(signal.SIGTERM)
            on_event(event)

        return real(*args, on_event=listen, **more)

    return fit


def test_an_interrupted_trial_is_gone_on_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tune(write(), name="whole")
    with monkeypatch.context() as patch:
        patch.setattr("fluvial.tune.fit", stopping(6))  # in the second trial
        with pytest.raises(Terminated):
            tune(write(), name="parts")
    rows = tune(write(), name="parts")
    kept = ("trial", "width", "best_loss")
    assert [[r[k] for k in kept] for r in rows] == [[r[k] for k in kept] for r in whole]
    assert sum(bool(RunFolder.open(r["run"]).record()["resumed"]) for r in rows) == 1


def test_the_trial_of_a_dead_worker_is_taken_up_and_that_of_a_live_one_left(here: Path) -> None:
    search = read_search(write())
    journal = open_journal(search)
    dead, live = journal.claim(), journal.claim()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead.set_user_attr("worker", {**dead.user_attrs["worker"], "pid": child.pid})
    claimed = [open_journal(search).claim() for _ in range(3)]
    assert [t.number for t in claimed if t is not None] == [dead.number, 2]
    assert live.number not in [t.number for t in claimed if t is not None]
    # A job that SLURM has begun again takes up what it had; another job does not.
    live.set_user_attr("worker", {**live.user_attrs["worker"], "job": "7", "restarts": 0})
    for job, restarts, number in (("8", "3", None), ("7", "0", None), ("7", "1", live.number)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_JOB_ID", job)
            patch.setenv("SLURM_RESTART_COUNT", restarts)
            again = open_journal(search).claim()
            assert (again.number if again else None) == number


def test_another_search_in_the_same_folder_is_refused(here: Path) -> None:
    search = read_search(write())
    open_journal(search)
    for old, new, what in (
        ("high = 16", "high = 17", "space"),
        ("epochs = 1\n", "epochs = 2\n", "budget"),
        ("depth = 1", "depth = 2", "study"),
        ('"random"', '"tpe"', "sampler"),
    ):
        with pytest.raises(RunError, match=f"holds a search with another {what}.*Choose another --name"):
            open_journal(read_search(write(STUDY.replace(old, new))))


@pytest.mark.parametrize(("old", "new", "message"), [
    ('"flow.width"', '"flow.widht"', r"\[flow\] widht is not a known key; did you mean 'width'"),
    ('"flow.width"', '"data.seed"', "or \"training.OPTION\"; found 'data.seed'"),
    ("low = 4, high = 16", "low = 0, high = 16", "flow.width = 0: .*width of at least 1"),
    ("low = 4, high = 16", "low = 4, high = 4", "expected low < high"),
    ("{low = 4, high = 16}", "[4]", "a list of two values or more"),
    ("{low = 4, high = 16}", "3", "a list of values, or a range"),
    ('"training.learning_rate"', '"training.epochs"', "training.epochs is the budget"),
    ('"random"', '"grid"', 'of a grid expected "points" or "step"'),
    ("epochs = 1\n", "epochs = 1\nminutes = 1.0\n", "expected epochs or minutes, not both"),
    ("trials = 3", "trails = 3", "trails is not a known key; did you mean 'trials'"),
])  # fmt: skip
def test_a_search_that_cannot_be_is_refused_before_any_fit(
    here: Path, old: str, new: str, message: str
) -> None:
    assert old in STUDY
    with pytest.raises(StudyError, match=message):
        tune(write(STUDY.replace(old, new)))
    assert not Path("runs").exists()


def test_a_study_without_tune_is_refused(here: Path) -> None:
    with pytest.raises(StudyError, match=r"has no \[tune\]"):
        tune(write(STUDY[: STUDY.index("[tune]")]))


def test_files_that_vanish_in_a_trial_of_another_worker(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    journal = open_journal(read_search(write()))
    trial = journal.claim()
    folder = journal.folder / trial.user_attrs["run"]
    folder.mkdir()
    assert last_written(folder) is None
    (folder / "gone").symlink_to("nowhere")  # listed, and not there when it is looked at
    assert last_written(folder) is None
    (folder / "record.json").write_text("{}")
    assert last_written(folder) == (folder / "record.json").stat().st_mtime
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    other = open_journal(read_search(write())).claim()
    assert other.number == trial.number + 1


def test_a_lock_left_by_a_killed_worker_is_broken(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluvial.tune_journal.HOLDING", 3)
    journal = open_journal(read_search(write()))
    with journal._claiming():
        assert list(journal.folder.glob("claims.lock"))
    assert not list(journal.folder.glob("claims.lock"))
    journal._claims.acquire()
    assert open_journal(read_search(write())).claim().number == 0


def test_locks_that_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert working_lock(tmp_path) == "symlink"

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)  # as on FAT
    assert working_lock(tmp_path) == "open"
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *mode: real(path, flags & ~os.O_EXCL, *mode))
    with pytest.raises(
        RunError, match=r"is on a file system without locks that work .*Choose a folder on another"
    ):
        working_lock(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_journal_on_a_file_system_without_locks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "symlink", lambda *_: None)  # it says yes to everybody
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *mode: real(path, flags & ~os.O_EXCL, *mode))
    with pytest.raises(RunError, match=r"without locks that work .*a second process is not kept out"):
        tune(write())


def test_minutes_are_the_same_for_all(here: Path) -> None:
    text = STUDY.replace("epochs = 1\n", "minutes = 0.005\n").replace("trials = 3", "trials = 2")
    rows = tune(write(text))
    records = [RunFolder.open(r["run"]).record() for r in rows]
    assert [(r["study"]["training"]["minutes"], r["study"]["training"]["epochs"]) for r in records] == [
        (0.005, None)
    ] * 2
    assert tomllib.loads(Path("runs/study-tune/best.toml").read_text())["training"]["epochs"] == 7
