"""Jobs of a cluster, where there is none: programs that stand in for SLURM's say what they were asked.

What a real SLURM makes of it is in ``tests/slurm``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fluvial
from fluvial import RunError, cli
from fluvial.data.readers import write_table
from fluvial.launch.job import Job
from fluvial.launch.profile import Profile, read_profile
from fluvial.launch.script import condor_description, sbatch_script
from fluvial.launch.task import Task
from fluvial.train import StepEvent
from fluvial.walltime import TooShort
from fluvial.workflow import fit_or_resume
from fluvial.workflow.signals import Terminated

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
epochs = 3
batch_size = 64
[tune]
trials = 2
epochs = 1
[tune.space]
"flow.width" = [4, 8]
"""
PROFILES = """
[default]
time = "1:00:00"
[gpu]
partition = "main"
time = "2h"
gpus = 2
cpus = 4
mem = "16G"
account = "stars"
modules = ["cuda/12.4"]
setup = ["source 'my venv'/bin/activate"]
options = { reservation = "r1" }
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a table, a study and profiles."""
    c, noise = np.random.default_rng(0).normal(size=(2, 600))
    write_table(tmp_path / "table.parquet", {"x": c + noise, "c": c})
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "cluster.toml").write_text(PROFILES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [n for n in os.environ if n.startswith("SLURM")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def stand_ins(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put programs named like SLURM's first in the path; return the file in which they write what they were asked."""
    folder, asked = here / "bin", here / "asked"
    folder.mkdir()
    says = {
        "sbatch": 'echo "Submitted batch job 7"; cp "$1" ' + str(here / "submitted.sh"),
        "sinfo": "echo main; echo urgent",
        "squeue": "cat " + str(here / "state"),
        "scontrol": "true",
        "srun": '"$@"',
    }
    for name, line in says.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {asked}\n{line}\n')
        path.chmod(0o755)
    (here / "state").write_text("RUNNING\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return asked


class Command:
    """Runs ``fluvial`` within this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["fluvial", *argv])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *self.capsys.readouterr()

    def refuses(self, *argv: str) -> str:
        code, out, err = self(*argv)
        assert (code, out) == (2, ""), (out, err)
        assert err.count("fluvial: ") == 1
        return err


@pytest.fixture
def command(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_a_profile_becomes_a_script(command: Command) -> None:
    code, script, _ = command(
        "submit", "--script", "-p", "gpu", "--nodes", "2", "fit", "study.toml", "--no-check"
    )
    assert code == 0
    for line in (
        "#SBATCH --partition=main", "#SBATCH --account=stars", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=2",
        "#SBATCH --gpus-per-node=2", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=16G", "#SBATCH --time=0-02:00:00",
        "#SBATCH --signal=USR1@120", "#SBATCH --requeue", "#SBATCH --reservation=r1", "module load cuda/12.4",
        "source 'my venv'/bin/activate",
        f"srun {sys.executable} -m fluvial fit study.toml --no-check --name study-1 --continue",
    ):  # fmt: skip
        assert line in script.splitlines()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_an_array_of_a_script_names_its_tasks(command: Command) -> None:
    _, script, _ = command("submit", "--script", "--array", "8", "--throttle", "3", "tune", "study.toml")
    assert "#SBATCH --array=0-7%3" in script
    assert 'tune study.toml --worker "$SLURM_ARRAY_TASK_ID"' in script
    assert "%A_%a.out" in script
    assert Path("runs/study-tune/journal.log").exists()  # begun here, where what is wrong can be said at once


@pytest.mark.parametrize(("state", "code", "again"), [
    ("RUNNING", 138, True), ("RUNNING", 143, True), ("RUNNING", 0, False), ("RUNNING", 2, False),
    ("COMPLETING", 143, False),  # cancelled by its owner
])  # fmt: skip
def test_the_script_requeues_what_is_not_done(
    stand_ins: Path, here: Path, state: str, code: int, again: bool
) -> None:
    profile = Profile(time=60, python="exit-with")
    (here / "bin" / "exit-with").write_text(f"#!/bin/sh\nexit {code}\n")
    (here / "bin" / "exit-with").chmod(0o755)
    (here / "state").write_text(state + "\n")
    script = sbatch_script(Job(["fit", "study.toml"], "name", profile, here / "jobs"))
    done = subprocess.run(
        ["bash"], input=script, text=True, env=os.environ | {"SLURM_JOB_ID": "7"}, timeout=60
    )
    assert done.returncode == code
    assert ("scontrol requeue 7" in stand_ins.read_text().splitlines()) == again


def test_htcondor_keeps_a_job_until_it_is_done(here: Path) -> None:
    profile = Profile(time="2h", cpus=4, mem="16G", gpus=1, container="image.sif")
    job = Job(
        ["tune", "my study.toml", "--worker", "{task}"], "search", profile, here / "jobs", array=3, throttle=2
    )
    lines = condor_description(job).splitlines()
    assert "on_exit_remove = (ExitBySignal == False) && (ExitCode =!= 138) && (ExitCode =!= 143)" in lines
    expected = (
        "arguments = \"exec --nv image.sif python3 -m fluvial tune 'my study.toml' --worker $(Process)\""
    )
    assert expected in lines or "executable = python3" in lines
    for line in (
        "request_gpus = 1",
        "request_cpus = 4",
        "kill_sig = SIGUSR1",
        "max_materialize = 2",
        "queue 3",
    ):
        assert line in lines


def test_submit_sends_a_job_and_jobs_shows_it(stand_ins: Path, here: Path, command: Command) -> None:
    code, out, err = command("submit", "-p", "gpu", "--time", "30", "fit", "study.toml")
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == ["job     7 (fluvial-fit-study-1)", "run     runs/study-1"]
    script = (here / "submitted.sh").read_text()
    for line in (
        "#SBATCH --signal=USR1@120",
        "#SBATCH --time=0-00:30:00",
        "#SBATCH --requeue",
        "module load cuda/12.4",
    ):
        assert line in script.splitlines()
    (here / "state").write_text("7|N/A|7|RUNNING|0:12|None|1\n")
    _, out, _ = command("jobs")
    assert out.splitlines()[-1].split() == [
        "7",
        "fluvial-fit-study-1",
        "running",
        "0:12",
        "1",
        "runs/study-1",
    ]
    (here / "state").write_text("7|N/A|7|TIMEOUT|0:12|TimeLimit|1\n")
    assert "ask for more --time" in command("jobs")[1]
    (here / "state").write_text("")
    (here / "jobs" / "7.end.json").write_text(json.dumps({"code": 2, "requeued": False, "restarts": 1}))
    assert "exit code 2; see jobs/7_0_log.out" in command("jobs")[1]
    # The name of a job that waits is taken.
    assert "study-2" in command("submit", "fit", "study.toml")[1]


@pytest.mark.parametrize(("argv", "message"), [
    (["--partition", "mian", "fit", "study.toml"], "no partition 'mian'; did you mean 'main'?"),
    (["--time", "1", "fit", "study.toml"], "60 s leave no time for one checkpoint"),
    (["--time", "soon", "fit", "study.toml"], "--time: expected a time such as"),
    (["fit", "stduy.toml"], "did you mean 'study.toml'?"),
    (["-p", "gqu", "fit", "study.toml"], "no profile 'gqu'; did you mean 'gpu'?"),
    (["--array", "2", "fit", "study.toml"], "fit has no parts to share"),
    (["--throttle", "2", "fit", "study.toml"], "--throttle: expected --array"),
    (["--nodes", "2", "tune", "study.toml"], "several processes train one fit together"),
    (["ftit", "study.toml"], "did you mean 'fit'?"),
    (["submit", "fit", "study.toml"], "'submit' is not a verb that a cluster can run"),
    (["--profiles", "other.toml", "fit", "study.toml"], "expected a file at other.toml"),
])  # fmt: skip
def test_what_cannot_be_submitted_is_one_message(
    stand_ins: Path, command: Command, argv: list[str], message: str
) -> None:
    assert message in command.refuses("submit", *argv)
    assert "sbatch" not in (stand_ins.read_text() if stand_ins.exists() else "")


def test_without_slurm_it_says_so(command: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    message = command.refuses("submit", "fit", "study.toml")
    assert "There is no SLURM here: sbatch, srun, squeue, sinfo, scontrol not found" in message
    assert "--script" in message
    assert not Path("jobs").exists()


def test_a_refused_job_and_a_silent_slurm(stand_ins: Path, here: Path, command: Command) -> None:
    (here / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: Invalid account' >&2\nexit 1\n")
    assert "SLURM refused the job: Invalid account" in command.refuses("submit", "fit", "study.toml")
    (here / "bin" / "sinfo").write_text(
        "#!/bin/sh\necho 'sinfo: error: Unable to contact slurm' >&2\nexit 1\n"
    )
    assert "SLURM does not answer: Unable to contact" in command.refuses("submit", "fit", "study.toml")


@pytest.mark.parametrize(("text", "message"), [
    ("[a]\npartitoin = 'x'\n", "partitoin is not a known key; did you mean 'partition'?"),
    ("[a]\ngpus = -1\n", "gpus: input should be greater than or equal to 0; found -1"),
    ("partition = 'x'\n", "found the key 'partition' outside of any"),
    ("[a\n", "could not be read as TOML"),
])  # fmt: skip
def test_a_profile_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cluster.toml").write_text(text)
    with pytest.raises(RunError, match=message.replace("?", r"\?")):
        read_profile("a", tmp_path / "cluster.toml", {})


def test_a_profile_and_what_the_command_line_changes(here: Path) -> None:
    profile = read_profile("gpu", None, {"gpus": 1, "time": None})
    assert (profile.gpus, profile.seconds, profile.tasks_per_node) == (1, 7200, 1)
    assert read_profile(None, None, {}).seconds == 3600


SLEEPER = (
    "import signal, sys, time\n"
    "for n in (signal.SIGTERM, signal.SIGUSR1): signal.signal(n, lambda number, frame: sys.exit(128 + number))\n"
    "print('up', flush=True)\ntime.sleep(30)"
)


@pytest.mark.parametrize(("state", "again"), [("RUNNING", True), ("COMPLETING", False)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_task_passes_signals_on_and_requeues(
    stand_ins: Path, here: Path, number: int, state: str, again: bool
) -> None:
    (here / "state").write_text(state + "\n")
    task = Task([sys.executable, "-c", SLEEPER], {}, str(here), str(here))
    code = (
        "import sys; from fluvial.launch.task import Task\n"
        f"Task({task.program!r}, {{}}, {task.workdir!r}, {task.folder!r})()"
    )
    environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
    end = json.loads((here / "7.end.json").read_text())
    assert (end["code"], end["requeued"], end["restarts"]) == (128 + number, again, 2)
    assert ("scontrol requeue 7" in stand_ins.read_text()) == again


def stop_at(step: int, number: int = signal.SIGUSR1) -> Any:
    """Return a listener that sends this process a signal after so many steps."""
    count = 0

    def listen(event: Any) -> None:
        nonlocal count
        count += isinstance(event, StepEvent)
        if isinstance(event, StepEvent) and count == step:
            signal.raise_signal(number)

    return listen


def test_the_same_command_begins_goes_on_and_ends(here: Path) -> None:
    fluvial.fit("study.toml", name="whole", check=False)
    usual: dict[str, Any] = {"name": "parts", "check": False}
    for step in (4, 5):
        with pytest.raises(Terminated):
            fit_or_resume("study.toml", **usual, on_event=stop_at(step))
    fit_or_resume("study.toml", **usual)
    ours, theirs = (load_file(here / "runs" / n / "weights.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    before = (here / "runs" / "parts" / "record.json").read_bytes()
    assert fit_or_resume("study.toml", **usual).folder == Path("runs/parts")
    assert (here / "runs" / "parts" / "record.json").read_bytes() == before
    (here / "study.toml").write_text(STUDY.replace("width = 8", "width = 9"))
    with pytest.raises(RunError, match="was begun with another study than"):
        fit_or_resume("study.toml", **usual)
    with pytest.raises(RunError, match="expected a study and the --name"):
        fit_or_resume("study.toml")


def test_a_walltime_too_short_for_one_checkpoint(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUVIAL_WALLTIME", "60")
    monkeypatch.setenv("FLUVIAL_WARNING", "30")

    def at_once(event: Any) -> None:
        if event == "reading table.parquet":
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(
        TooShort, match=r"1 minutes when training had just begun.*ask for more --time"
    ) as caught:
        fit_or_resume("study.toml", name="a", check=False, on_event=at_once)
    assert caught.value.code == 200  # and not 138, which would be begun again for ever
    with pytest.raises(Terminated):  # that got on
        fit_or_resume("study.toml", name="b", check=False, on_event=stop_at(6))
    monkeypatch.setenv("FLUVIAL_WALLTIME", "3600")
    with pytest.raises(Terminated):  # preempted long before its end: it may fare better next time
        fit_or_resume("study.toml", name="c", check=False, on_event=at_once)


@pytest.mark.parametrize(("minutes", "code"), [(60, 200), (6000, 138)])
def test_a_warning_before_anything_has_begun(minutes: int, code: int) -> None:
    lines = "import signal; from fluvial.walltime import answer_early; answer_early(); "
    lines += "signal.raise_signal(signal.SIGUSR1)"
    environment = os.environ | {"FLUVIAL_WALLTIME": str(minutes), "FLUVIAL_WARNING": "30"}
    done = subprocess.run(
        [sys.executable, "-c", lines], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert ("ask for more --time" in done.stderr) == (code == 200)


def test_launch_brings_no_torch() -> None:
    code = "import fluvial.launch.slurm, fluvial.launch.jobs, fluvial.launch.script, sys; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
