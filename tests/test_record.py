"""The run folder: it appears whole, is never half-written, and tells the truth about how a fit ended."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

import fluvial
from fluvial.data.readers import write_table
from fluvial.errors import RunError
from fluvial.files import write_atomically
from fluvial.record import RECORD, RunFolder, environment, find_runs
from fluvial.workflow import list_runs


def _fill(run: RunFolder) -> None:
    run.write_record({"status": "unfinished"})


def _full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _left_over(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_create_numbers_runs(tmp_path: Path) -> None:
    paths = [RunFolder.create(tmp_path / "runs", "study", None, _fill).path for _ in range(3)]
    assert [p.name for p in paths] == ["study-1", "study-2", "study-3"]
    assert [run.name for run in find_runs(tmp_path / "runs")] == ["study-1", "study-2", "study-3"]
    assert _left_over(tmp_path / "runs") == []


def test_create_at_once_from_many_threads_never_shares_a_folder(tmp_path: Path) -> None:
    made: list[Path] = []
    threads = [
        threading.Thread(target=lambda: made.append(RunFolder.create(tmp_path, "s", None, _fill).path))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in made) == [f"s-{i}" for i in range(1, 9)]


def test_a_folder_that_cannot_be_filled_leaves_nothing(tmp_path: Path) -> None:
    def fill(run: RunFolder) -> None:
        _fill(run)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RunFolder.create(tmp_path, "s", None, fill)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_name_is_refused_and_kept(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "s", "mine", _fill)
    before = (run.path / RECORD).read_bytes()
    with pytest.raises(RunError, match=r"mine to be new; it exists\. Choose another --name"):
        RunFolder.create(tmp_path, "s", "mine", lambda run: run.write_record({"status": "other"}))
    assert (run.path / RECORD).read_bytes() == before


def test_a_name_taken_meanwhile_is_refused(tmp_path: Path) -> None:
    def fill(run: RunFolder) -> None:
        _fill(run)
        (tmp_path / "mine").mkdir()

    with pytest.raises(RunError, match="to be new"):
        RunFolder.create(tmp_path, "s", "mine", fill)
    assert _left_over(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "/abs", "a\0b"])
def test_a_name_is_one_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="--name: expected the name of one new folder"):
        RunFolder.create(tmp_path / "runs", "s", name, _fill)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_of_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match=r"Could not make a run folder under .*runs: File exists"):
        RunFolder.create(tmp_path / "runs", "s", None, _fill)


def test_open_names_runs_nearby(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "binaries", None, _fill)
    with pytest.raises(RunError, match=r"found nothing; did you mean 'binaries-1'\?$"):
        RunFolder.open(tmp_path / "binares-1")
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match=r"found a folder without record\.json"):
        RunFolder.open(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="found a file"):
        RunFolder.open(tmp_path / "file")
    with pytest.raises(RunError, match=r"Expected a folder of runs at .*none.*'fluvial fit' makes it"):
        find_runs(tmp_path / "none")


@pytest.mark.parametrize("text", ["", '{"status": "fin', "[1]", "\xff"])
def test_damaged_files_are_named(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    for name, read in (("record.json", run.record), ("checks.json", run.checks)):
        (tmp_path / name).write_text(text, encoding="latin-1")
        with pytest.raises(RunError, match=rf"{name} is damaged .*restore it, or fit again"):
            read()


def test_metrics_leave_out_a_line_cut_short(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.metrics() == []
    run.append_metrics({"epoch": 1, "loss": np.float32(0.5)})
    run.append_metrics({"epoch": 2, "loss": float("nan")})
    whole = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": None}]
    assert run.metrics() == whole
    path = tmp_path / "metrics.jsonl"
    text = path.read_text()
    for cut in range(1, 12):
        path.write_text(text + '{"epoch": 3, "loss": 1}\n'[:cut])
        assert run.metrics() == whole
    path.write_text('{"epo\n' + text)
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged"):
        run.metrics()


def test_json_is_strict_and_keeps_values(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    value = {"a": np.int64(3), "b": (1.5, float("inf")), "c": Path("x/y"), "d": None, "e": True, 4: "µ"}
    run.write_json("value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == {"a": 3, "b": [1.5, None], "c": "x/y", "d": None, "e": True, "4": "µ"}


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_disk_full_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    run = RunFolder(tmp_path)
    run.write_record({"status": "first"})
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _full)
        with pytest.raises(RunError, match=r"Could not write .*record\.json: No space left on device"):
            run.write_record({"status": "second"})
    assert run.record() == {"status": "first"}
    assert _left_over(tmp_path) == []


def test_disk_full_while_a_folder_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _full)
        with pytest.raises(RunError, match="No space left"):
            RunFolder.create(tmp_path, "s", None, _fill)
    assert list(tmp_path.iterdir()) == []


def test_metrics_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", _full)
    with pytest.raises(
        RunError, match=r"Could not write .*metrics\.jsonl: No space left.*density saved before"
    ):
        RunFolder(tmp_path).append_metrics({"epoch": 1})


def test_an_interrupted_write_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    write_atomically(tmp_path / "a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "a", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


def test_write_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Could not write .*: No such file or directory"):
        write_atomically(tmp_path / "none" / "a", b"")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"Could not write .*: Not a directory"):
        write_atomically(tmp_path / "file" / "a", b"")


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_environment_names_versions_and_machine() -> None:
    found = environment(3)
    assert found["machine"]["threads"] == 3
    assert found["machine"]["processor"]
    assert {"python", "fluvial", "torch", "numpy"} <= set(found["versions"])
    assert all(found["versions"].values())


# What follows kills real fits. A small program imports fluvial once, and forks for every command it is sent.

LAUNCHER = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)
import pyarrow.parquet, matplotlib.backends.backend_agg
import fluvial.cli, fluvial.progress, fluvial.workflow
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # its first use imports much
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        sys.argv = ["fluvial", *json.loads(line)]
        code = 1
        try:
            fluvial.cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

STUDY = """
[data]
source = "table.parquet"
targets = ["x"]
context = ["c"]
[flow]
architecture = "maf"
steps = 1
width = 8
depth = 1
[training]
epochs = 2
batch_size = 128
[check]
contexts = 60
draws = 50
"""
LONG = STUDY.replace("epochs = 2", "epochs = 100000")
SLOW_CHECKS = STUDY.replace("draws = 50", "draws = 40000").replace("contexts = 60", "contexts = 120")


C, NOISE = np.random.default_rng(0).normal(size=(2, 600))
TABLE = {"x": C + NOISE, "c": C}


def write_study(folder: Path, text: str) -> Path:
    write_table(folder / "table.parquet", TABLE)
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


class Launcher:
    """Starts ``fluvial`` commands and tells how they ended."""

    def __init__(self, log: Path):
        self.log = log
        self._log = log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def _pipe(self, which: IO[str] | None) -> IO[str]:
        assert which is not None
        return which

    def start(self, *argv: str | Path) -> int:
        pipe = self._pipe(self.process.stdin)
        pipe.write(json.dumps([str(a) for a in argv]) + "\n")
        pipe.flush()
        return int(self._pipe(self.process.stdout).readline())

    def exit_code(self) -> int:
        """Wait for the end of the command; its own standard output comes before its exit code."""
        while True:
            line = self._pipe(self.process.stdout).readline()
            if not line or line.strip().lstrip("-").isdigit():
                return int(line)

    def close(self) -> None:
        self._pipe(self.process.stdin).close()
        self.process.wait(timeout=60)
        self._pipe(self.process.stdout).close()
        self._log.close()


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("launcher") / "log")
    yield launcher
    launcher.close()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Look again and again, at most a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.001)


def status_of(folder: Path) -> str:
    return RunFolder.open(folder).record()["status"] if (folder / RECORD).exists() else ""


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("moment", ["folder", 1, 3, 10, "checks"])
def test_a_killed_fit_leaves_a_density_and_a_true_record(
    tmp_path: Path, launcher: Launcher, moment: str | int
) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "runs" / "tiny-1"
    pid = launcher.start(
        "fit", write_study(tmp_path, SLOW_CHECKS if moment == "checks" else LONG), "--runs", runs
    )
    if moment == "folder":
        wait_for(folder.exists, "the run folder")
    elif moment == "checks":
        wait_for(lambda: status_of(folder) == "checking", "the end of training")
    else:
        wait_for(lambda: lines(folder) >= int(moment), f"{moment} epochs")
    os.kill(pid, signal.SIGKILL)
    assert launcher.exit_code() == -signal.SIGKILL
    assert np.isfinite(fluvial.load(folder).log_prob(TABLE)).all()
    record = RunFolder.open(folder).record()
    status = "checking" if moment == "checks" else "unfinished"
    assert record["status"] == status
    assert record["ended"] is None
    if moment == "folder":
        assert "no end was recorded" in record["stopped"]
    assert not (folder / "checks.json").exists()
    assert all(isinstance(m["epoch"], int) for m in RunFolder.open(folder).metrics())
    assert [(r["name"], r["status"]) for r in list_runs(runs)] == [("tiny-1", status)]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
@pytest.mark.parametrize("moment", ["folder", 3])
def test_an_interrupted_fit_keeps_its_best(
    tmp_path: Path, launcher: Launcher, number: signal.Signals, code: int, moment: str | int
) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "runs" / "tiny-1"
    pid = launcher.start("fit", write_study(tmp_path, LONG), "--runs", runs)
    wait_for(folder.exists if moment == "folder" else lambda: lines(folder) >= 3, str(moment))
    os.kill(pid, number)
    assert launcher.exit_code() == code
    record = RunFolder.open(folder).record()
    assert record["status"] == "interrupted"
    assert record["stopped"] == f"interrupted by {'Ctrl-C' if number == signal.SIGINT else number.name}"
    assert record["ended"] is not None
    best = min(m["validation_loss"] for m in RunFolder.open(folder).metrics())
    assert record["training"]["best_loss"] == best
    assert np.isfinite(fluvial.load(folder).log_prob(TABLE)).all()
    made = [(folder / name).exists() for name in ("checks.json", "report.html")]
    assert made == [number == signal.SIGINT] * 2  # who sends SIGTERM wants an end soon
    assert not list(tmp_path.rglob(".*"))
    log = launcher.log.read_text()
    assert "Traceback" not in log
    if number != signal.SIGINT:
        assert f"stopped by {number.name}; go on with: fluvial fit --resume {folder}." in log


def test_ctrl_c_after_training_ends_the_checks(tmp_path: Path, launcher: Launcher) -> None:
    folder = tmp_path / "runs" / "tiny-1"
    pid = launcher.start("fit", write_study(tmp_path, SLOW_CHECKS), "--runs", tmp_path / "runs")
    wait_for(lambda: status_of(folder) == "checking", "the end of training")
    time.sleep(0.3)  # into the checks
    os.kill(pid, signal.SIGINT)
    assert launcher.exit_code() == 130
    record = RunFolder.open(folder).record()
    assert (record["status"], record["stopped"]) == (
        "interrupted",
        "budget: 2 epochs; then, in the checks, interrupted by Ctrl-C",
    )
    assert not (folder / "checks.json").exists()
    assert not list(tmp_path.rglob(".*"))
