"""Runs that go on: after signals, kills, lost processes, to more epochs, from other runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fluvial
from fluvial import DataError, RunError
from fluvial.data.readers import write_table
from fluvial.record import RunFolder
from fluvial.train import CHECKPOINT, EpochEvent, StepEvent, TrainingError
from fluvial.train.distributed import Group, rendezvous
from fluvial.workflow.signals import Terminated

ROOT = Path(__file__).parent.parent
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
epochs = 4
batch_size = 64
[check]
contexts = 60
draws = 50
"""


def write(folder: Path, text: str = STUDY, seed: int = 0) -> Path:
    c, noise = np.random.default_rng(seed).normal(size=(2, 600))
    write_table(folder / "table.parquet", {"x": c + noise, "c": c})
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = (load_file(p / "weights.safetensors") for p in (a, b))
    return all(torch.equal(ours[k], theirs[k]) for k in ours)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(m["epoch"], m["validation_loss"]) for m in RunFolder.open(run).metrics()]


def signal_at(step: int, number: int) -> Any:
    """Return a listener that sends this process a signal after so many steps."""
    count = 0

    def listen(event: Any) -> None:
        nonlocal count
        count += isinstance(event, StepEvent)
        if isinstance(event, StepEvent) and count == step:
            signal.raise_signal(number)

    return listen


@pytest.mark.parametrize("step", [1, 5, 7, 12])  # it ends a step later, here once with the last of an epoch
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_an_interrupted_fit_ends_as_an_untouched_one(tmp_path: Path, step: int, number: int) -> None:
    study, runs = write(tmp_path), tmp_path / "runs"
    fluvial.fit(study, runs=runs, name="whole", check=False)
    listen = signal_at(step, number)
    if number == signal.SIGINT:
        fluvial.fit(study, runs=runs, name="cut", check=False, on_event=listen)
    else:
        with pytest.raises(Terminated, match=r"--resume .*cut") as caught:
            fluvial.fit(study, runs=runs, name="cut", check=False, on_event=listen)
        assert caught.value.code == 128 + number
    cut = runs / "cut"
    assert RunFolder.open(cut).record()["status"] == "interrupted"
    assert not same_weights(runs / "whole", cut)
    density = fluvial.resume(cut, check=False)
    assert same_weights(runs / "whole", cut)
    assert losses(cut) == losses(runs / "whole")
    record, whole = RunFolder.open(cut).record(), RunFolder.open(runs / "whole").record()
    assert (record["status"], record["stopped"]) == ("finished", "budget: 4 epochs")
    assert record["training"]["best_loss"] == whole["training"]["best_loss"]
    assert [r["after_epochs"] for r in record["resumed"]] == [step // 6]
    assert torch.equal(next(density.flow.parameters()), next(fluvial.load(cut).flow.parameters()))


def test_a_fit_from_disk_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUVIAL_CACHE", str(tmp_path / "cache"))
    text = STUDY.replace('context = ["c"]', 'context = ["c"]\nmemory = 1e-6')
    study, runs = write(tmp_path, text), tmp_path / "runs"
    fluvial.fit(study, runs=runs, name="whole", check=False)
    assert RunFolder.open(runs / "whole").record()["data"]["packed"]["held"] == "on disk"
    with pytest.raises(Terminated):
        fluvial.fit(study, runs=runs, name="cut", check=False, on_event=signal_at(7, signal.SIGTERM))
    fluvial.resume(runs / "cut", check=False)
    assert same_weights(runs / "whole", runs / "cut")
    assert losses(runs / "cut") == losses(runs / "whole")


def test_killed_before_a_checkpoint_it_begins_again(tmp_path: Path) -> None:
    study, runs = write(tmp_path), tmp_path / "runs"
    for name in ("whole", "cut"):
        fluvial.fit(study, runs=runs, name=name, check=False)
    (runs / "cut" / CHECKPOINT).unlink()
    record = RunFolder.open(runs / "cut").record()
    RunFolder(runs / "cut").write_record(record | {"status": "unfinished"})
    fluvial.resume(runs / "cut", check=False)
    assert same_weights(runs / "whole", runs / "cut")
    assert losses(runs / "cut") == losses(runs / "whole")


def test_killed_in_the_checks_it_only_checks(tmp_path: Path) -> None:
    density = fluvial.fit(write(tmp_path), runs=tmp_path / "runs", check=False)
    run = density.folder
    assert run is not None
    RunFolder(run).write_record(RunFolder(run).record() | {"status": "checking"})
    events: list[Any] = []
    fluvial.resume(run, on_event=events.append)
    assert not [e for e in events if not isinstance(e, str)]
    assert (run / "report.html").exists()
    record = RunFolder(run).record()
    assert (record["status"], record["stopped"]) == ("finished", "budget: 4 epochs")


def test_what_was_found_about_other_weights_does_not_stay(tmp_path: Path) -> None:
    run = fluvial.fit(write(tmp_path), runs=tmp_path / "runs").folder
    assert run is not None
    derived = {"checks.json", "checks.npz", "report.html", "conformal.safetensors"}
    assert derived <= {p.name for p in run.iterdir()}
    fluvial.resume(run, epochs=6, check=False)
    assert not derived & {p.name for p in run.iterdir()}
    assert RunFolder.open(run).record()["checks"] == {}
    assert json.loads((run / "card.json").read_text())["checks"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_costs_a_run_nothing(tmp_path: Path) -> None:
    run = fluvial.fit(write(tmp_path), runs=tmp_path / "runs").folder
    assert run is not None
    study = run / "study.toml"
    study.write_text(study.read_text().replace("[training]", '[training]\ndevice = "cuda"'))
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    with pytest.raises(RunError, match="expected an NVIDIA GPU"):
        fluvial.resume(run, epochs=6)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_a_finished_run_goes_on_to_more_epochs(tmp_path: Path) -> None:
    density = fluvial.fit(write(tmp_path), runs=tmp_path / "runs", check=False)
    run = density.folder
    assert run is not None
    with pytest.raises(RunError, match=r"is finished \(budget: 4 epochs\).*--epochs"):
        fluvial.resume(run)
    with pytest.raises(RunError, match=r"--epochs: expected more than the 4 epochs .* found 3"):
        fluvial.resume(run, epochs=3)
    before = losses(run)
    with pytest.raises(
        Terminated
    ):  # the new budget is on record: what is cut short again need not be told it
        fluvial.resume(run, epochs=7, check=False, on_event=signal_at(8, signal.SIGTERM))
    fluvial.resume(run, check=False)
    assert losses(run)[:4] == before
    assert [e for e, _ in losses(run)] == [1, 2, 3, 4, 5, 6, 7]
    record = RunFolder.open(run).record()
    assert (record["stopped"], record["study"]["training"]["epochs"]) == ("budget: 7 epochs", 7)


def test_what_cannot_be_resumed_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="found nothing"):
        fluvial.resume(tmp_path / "none")
    study = write(tmp_path)
    with pytest.raises(Terminated):
        fluvial.fit(study, runs=tmp_path / "runs", name="cut", on_event=signal_at(7, signal.SIGTERM))
    run = tmp_path / "runs" / "cut"
    with RunFolder(run).locked(), pytest.raises(RunError, match="Another process is training in"):
        fluvial.resume(run)
    content = (run / CHECKPOINT).read_bytes()
    (run / CHECKPOINT).write_bytes(content[:-5])
    with pytest.raises(RunError, match=rf"{CHECKPOINT} is damaged"):
        fluvial.resume(run)
    (run / CHECKPOINT).write_bytes(content)
    write(tmp_path, seed=1)
    with pytest.raises(DataError, match=r"table\.parquet has changed since .* began"):
        fluvial.resume(run)
    assert RunFolder(run).record()["status"] == "interrupted"


def test_a_column_that_breaks_training_is_named_with_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fluvial.flows import MAF

    study = write(tmp_path, STUDY.replace("epochs = 4", "epochs = 100\nrollbacks = 1"))
    c, noise = np.random.default_rng(0).normal(size=(2, 600))
    x = np.where(np.arange(600) % 20 == 0, 15 + c, c + noise)
    write_table(tmp_path / "table.parquet", {"x": x, "c": c})
    plain = MAF.loss

    def loss(self: MAF, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return plain(self, x, *args, **options) * torch.where(x.max() > 1.0, torch.nan, 1.0)

    monkeypatch.setattr(MAF, "loss", loss)
    with pytest.raises(TrainingError, match=r"Column x \(row \d+: [\d.]+, counted from 0") as caught:
        fluvial.fit(study, runs=tmp_path / "runs", check=False)
    words = str(caught.value).split("row ")[-1].replace(":", "").split()
    assert x[int(words[0])] == pytest.approx(float(words[1].rstrip(",")), rel=1e-4)
    record = RunFolder.open(tmp_path / "runs" / "study-1").record()
    assert record["status"] == "failed"
    assert "Column x (row" in record["stopped"]


# --- starting from another run ---------------------------------------------------------------------------


def first_loss(study: Path, runs: Path, name: str) -> float:
    found: list[float] = []

    def listen(event: Any) -> None:
        if isinstance(event, StepEvent) and event.loss is not None:
            found.append(event.loss)

    fluvial.fit(study, runs=runs, name=name, check=False, on_event=listen)
    return found[0]


GAUSSIAN = STUDY.replace('"maf"\nsteps = 1', '"full-gaussian"').replace(
    "epochs = 4", "epochs = 30\nlearning_rate = 0.01"
)


@pytest.mark.parametrize("architecture", ["full-gaussian", "gaussianization"])
def test_a_start_from_a_gaussian(tmp_path: Path, architecture: str) -> None:
    runs = tmp_path / "runs"
    fluvial.fit(write(tmp_path, GAUSSIAN), runs=runs, name="gauss", check=False)
    text = GAUSSIAN.replace("full-gaussian", architecture).replace("epochs = 30", "epochs = 1")
    cold = first_loss(write(tmp_path, text), runs, "cold")
    warm = first_loss(write(tmp_path, text.replace("[check]", 'start = "gauss"\n[check]')), runs, "warm")
    assert warm < cold - 0.1


def test_a_start_that_cannot_be_says_so(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    fluvial.fit(write(tmp_path, GAUSSIAN), runs=runs, name="gauss", check=False)
    begun = GAUSSIAN.replace("[check]", 'start = "gauss"\n[check]')
    for text, message in (
        (STUDY.replace("[check]", 'start = "gauss"\n[check]'), "no weights of .*gauss.* fit this flow"),
        (STUDY.replace("[check]", 'start = "guass"\n[check]'), "expected a run at .*guass; found none"),
        (
            begun.replace('["x"]', '["c"]').replace('= ["c"]\n[f', '= ["x"]\n[f'),
            "expected the columns of this study",
        ),
    ):
        with pytest.raises(RunError, match=message):
            fluvial.fit(write(tmp_path, text), runs=runs, check=False)
    assert sorted(p.name for p in runs.iterdir()) == ["gauss"]


# --- several processes -----------------------------------------------------------------------------------


LAUNCHER = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)
import fluvial.cli, fluvial.progress, fluvial.workflow
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # its first use imports much
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        file = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1), os.dup2(file, 2)
        os.environ.update(order["environ"])
        sys.argv = ["fluvial", *order["argv"]]
        code = 1
        try:
            fluvial.cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
"""


class Launcher:
    """Starts pairs of fits that train together, from one process that has imported all."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def pair(self, *argv: str) -> list[int]:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        where = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "GLOO_SOCKET_IFNAME": "lo",
        }
        orders = [
            {"argv": ["fit", *argv, "--no-check"], "log": f"log{r}", "environ": where | {"RANK": str(r)}}
            for r in (0, 1)
        ]
        return [self._ask(order) for order in orders]

    def wait(self, pid: int) -> int:
        return self._ask({"wait": pid})

    def _ask(self, order: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def logs(self) -> str:
        return "\n".join((self.folder / f"log{rank}").read_text() for rank in (0, 1))

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.close()


@pytest.mark.slow
def test_two_processes_are_as_good_as_one_and_survive_a_kill(tmp_path: Path, launcher: Launcher) -> None:
    # Pieces of a batch are not equal, and the last batch is small.
    text = STUDY.replace("batch_size = 64", "batch_size = 101\nlearning_rate = 3e-3\nema = 0.9")
    study, runs = write(tmp_path, text), tmp_path / "runs"
    one = fluvial.fit(study, runs=runs, name="one", check=False)
    pair = launcher.pair("study.toml", "--name", "two")
    assert [launcher.wait(p) for p in pair] == [0, 0], launcher.logs()
    a, b = losses(runs / "one"), losses(runs / "two")
    assert [e for e, _ in a] == [e for e, _ in b] == [1, 2, 3, 4]
    assert np.allclose([v for _, v in a], [v for _, v in b], atol=2e-5)
    two = fluvial.load(runs / "two")
    for mine, theirs in zip(one.flow.parameters(), two.flow.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)
    assert RunFolder.open(runs / "two").record()["training"]["processes"] == 2
    assert sorted(p.name for p in runs.iterdir()) == ["one", "two"]  # one writer

    # The second process is killed: the first stops with a clear error, and both can go on.
    study.write_text(text.replace("epochs = 4", "epochs = 100000"))
    pair = launcher.pair("study.toml", "--name", "cut")
    end = time.monotonic() + 60
    while not (runs / "cut" / "metrics.jsonl").exists():
        assert time.monotonic() < end, launcher.logs()
        time.sleep(0.05)
    os.kill(pair[1], signal.SIGKILL)
    assert [launcher.wait(p) for p in pair] == [2, -signal.SIGKILL]
    assert "Process 1 of 2: another process of this fit is gone" in launcher.logs()
    assert "--resume" in launcher.logs()
    record = RunFolder.open(runs / "cut").record()
    assert record["status"] == "failed"
    done = len(losses(runs / "cut"))
    pair = launcher.pair("--resume", "runs/cut", "--epochs", str(done + 2))
    assert [launcher.wait(p) for p in pair] == [0, 0], launcher.logs()
    assert [e for e, _ in losses(runs / "cut")] == list(range(1, done + 3))


def test_pieces_cover_every_row_once() -> None:
    for rows in range(12):
        for size in (1, 2, 3, 5):
            pieces = [Group(r, size).piece(rows) for r in range(size)]
            assert [i for p in pieces for i in range(rows)[p]] == list(range(rows))


def test_a_rendezvous_that_is_not_said_is_asked_for() -> None:
    with pytest.raises(
        RunError, match=r"2 processes train together, but MASTER_ADDR and MASTER_PORT is not set"
    ):
        rendezvous({"RANK": "0", "WORLD_SIZE": "2"})
    batch_script = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}
    assert rendezvous(batch_script)[1] == 1  # srun has not started it: nobody else will come


# --- the script that kills -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fit_killed_at_random_is_the_same(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "kills.py", "--kills", "3", "--epochs", "5"],
        capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


def test_events_tell_of_epochs() -> None:
    assert {"conditioning", "rollbacks", "batch_rows", "steps"} <= set(EpochEvent.__dataclass_fields__)
