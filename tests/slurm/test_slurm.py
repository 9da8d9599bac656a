"""On a real SLURM of two nodes, started here: ``make test-slurm``. All jobs are begun first, and looked at then.

What they wait for is time (a limit of two minutes, a grace, a requeue), so they wait together.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import fluvial
from fluvial import RunError
from fluvial.cli import app
from fluvial.data.readers import write_table
from fluvial.launch.jobs import list_jobs
from fluvial.record import RunFolder

sys.path.insert(0, str(Path(__file__).parent))
from cluster import Cluster, reason_without

REASON = reason_without()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(400),
]

STUDY = """
[data]
source = "table.parquet"
targets = ["x", "y"]
context = ["c"]
[flow]
architecture = "maf"
width = 32
[training]
epochs = 25
batch_size = 128
learning_rate = 1e-3
"""
TIMED = STUDY.replace("epochs = 25", "minutes = 1.6")
SEARCH = (
    STUDY
    + """
[tune]
sampler = "grid"
epochs = 1
[tune.space]
"flow.width" = [4, 6, 8, 10, 12, 14]
"flow.activation" = ["relu", "tanh"]
"""
)
PROFILES = """
[one]
time = 10
cpus = 1
options = { nodelist = "n1" }
[two]
time = 10
cpus = 1
options = { nodelist = "n2" }
[both]
time = 10
cpus = 1
nodes = 2
"""
SAMPLE = ["sample", "run", "--contexts", "contexts.parquet", "-n", "40", "--seed", "3", "--shards", "8"]


def submit(*argv: str) -> str:
    """Run ``fluvial submit``; return the number of the job."""
    before = {p.name for p in Path("jobs").glob("*.json")} if Path("jobs").exists() else set()
    app(["submit", *argv], standalone_mode=False)
    (new,) = {p.name for p in Path("jobs").glob("*.json") if ".end." not in p.name} - before
    return new.removesuffix(".json")


def sbatch(*argv: str) -> str:
    done = subprocess.run(["sbatch", *argv], capture_output=True, text=True, check=True)
    found = re.search(r"job (\d+)", done.stdout)
    assert found is not None
    return found[1]


def queue(job: str, form: str = "%T") -> list[str]:
    done = subprocess.run(
        ["squeue", "-h", "-r", "-t", "all", "-j", job, "-o", form], capture_output=True, text=True
    )
    return done.stdout.split()


def wait_for(what: Callable[[], Any], seconds: float, about: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.1)
    logs = "\n".join(f"{p}:\n{p.read_text()[-2000:]}" for p in sorted(Path("jobs").glob("*.out")))
    raise AssertionError(f"{about}: not within {seconds:g} s\n{logs}")


def hurry(job: str) -> None:
    """Begin a requeued job at once: SLURM would wait for half a minute."""
    wait_for(lambda: queue(job) == ["PENDING"], 60, "requeued")
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


def ended(job: str, seconds: float = 240) -> None:
    over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}
    wait_for(lambda: set(queue(job)) <= over, seconds, f"job {job} over, {queue(job)}")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a cluster and the jobs of all tests; return their numbers."""
    folder = tmp_path_factory.mktemp("slurm")
    cluster, before = Cluster(folder / "cluster"), (os.environ.copy(), Path.cwd())
    os.environ.update(cluster.environment)
    os.environ["PYTHONPATH"] = str(Path(fluvial.__file__).parents[1])
    os.environ.update(OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1")  # the nodes' names are known to nobody
    (folder / "work").mkdir()
    os.chdir(folder / "work")
    try:
        cluster.start()
        write_files()
        yield begin()
    finally:
        cluster.stop()
        os.chdir(before[1])
        os.environ.clear()
        os.environ.update(before[0])


def write_files() -> None:
    rng = np.random.default_rng(0)
    c, e = rng.uniform(1, 9, 12_000), rng.normal(size=(2, 12_000))
    write_table("table.parquet", {"c": c, "x": c + e[0], "y": c * e[1]})
    write_table("contexts.parquet", {"c": rng.uniform(2, 8, 20_000)})
    for name, text in (("study", STUDY), ("timed", TIMED), ("search", SEARCH), ("cluster", PROFILES)):
        Path(f"{name}.toml").write_text(text)
    fluvial.fit(STUDY_SHORT, runs=".", name="run", check=False)


STUDY_SHORT: dict[str, Any] = {
    "data": {"source": "table.parquet", "targets": ["x", "y"], "context": ["c"]},
    "flow": {"architecture": "maf", "width": 32},
    "training": {"epochs": 1, "learning_rate": 1e-3},
}


def begin() -> dict[str, str]:
    """Begin all jobs; preempt one of them as soon as it has trained an epoch."""
    out = {"preempted": submit("-p", "one", "fit", "study.toml", "--no-check", "--name", "preempted")}
    timed = (
        "-p",
        "two",
        "--time",
        "90s",
        "--warning",
        "30s",
        "fit",
        "timed.toml",
        "--no-check",
        "--name",
        "timed",
    )
    done = subprocess.run(
        [sys.executable, "-m", "fluvial", "submit", "--script", *timed],
        capture_output=True,
        text=True,
        check=True,
    )
    Path("timed.sh").write_text(done.stdout)  # as somebody who reads before they submit
    out["timed"] = sbatch("timed.sh")
    out["search"] = submit("-p", "two", "--array", "8", "tune", "search.toml")
    metrics = Path("runs/preempted/metrics.jsonl")
    wait_for(lambda: metrics.exists() and metrics.stat().st_size, 90, "an epoch of the fit")
    out["urgent"] = sbatch("-p", "urgent", "-w", "n1", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    hurry(out["preempted"])
    ended(out["urgent"])
    out["two"] = submit("-p", "both", "fit", "study.toml", "--no-check", "--name", "two")
    out["sample"] = submit("-p", "one", "--array", "4", *SAMPLE, "--out", "many/")
    out["killed"] = wait_for(lambda: kill_one("1/4"), 90, "a task that draws")
    return out


def kill_one(part: str) -> str:
    """Kill the process that draws a part, in the middle of a shard."""
    if not list(Path("many").glob(".part-0000[15]*.tmp")):
        return ""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "sample" in words and part in words and "fluvial" in words:
            os.kill(int(path.parent.name), signal.SIGKILL)
            return path.parent.name
    return ""


def same_weights(a: str, b: str) -> bool:
    ours, theirs = (load_file(Path("runs") / n / "weights.safetensors") for n in (a, b))
    return all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture(scope="module")
def whole(jobs: dict[str, str]) -> str:
    """Return the name of a run that nothing has interrupted."""
    fluvial.fit("study.toml", name="whole", check=False)
    return "whole"


def test_a_preempted_fit_is_requeued_and_ends_as_an_untouched_one(jobs: dict[str, str], whole: str) -> None:
    ended(jobs["preempted"])
    assert queue(jobs["preempted"]) == ["COMPLETED"]
    record = RunFolder.open("runs/preempted").record()
    assert record["status"] == "finished"
    assert len(record["resumed"]) == 1
    assert same_weights("preempted", whole)
    (row,) = [r for r in list_jobs(Path("jobs")) if r["id"] == jobs["preempted"]]
    assert (row["state"], row["restarts"], row["run"]) == ("finished", 1, "runs/preempted")


def test_two_nodes_train_one_fit(jobs: dict[str, str], whole: str) -> None:
    ended(jobs["two"])
    assert queue(jobs["two"]) == ["COMPLETED"]
    record = RunFolder.open("runs/two").record()
    assert record["training"]["processes"] == 2
    alone = RunFolder.open(f"runs/{whole}").record()
    assert record["training"]["steps"] == alone["training"]["steps"]
    assert record["training"]["best_loss"] == pytest.approx(alone["training"]["best_loss"], abs=2e-3)


def test_eight_workers_share_a_journal(jobs: dict[str, str]) -> None:
    ended(jobs["search"])
    assert queue(jobs["search"]) == ["COMPLETED"] * 8
    backend = optuna.storages.journal.JournalFileBackend("runs/search-tune/journal.log")
    study = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 12
    assert len({str(t.params) for t in study.trials}) == 12
    assert len({t.user_attrs["worker"]["job"] for t in study.trials}) > 1
    assert Path("runs/search-tune/best.toml").exists()


def test_a_killed_task_of_a_bulk_sampling_is_made_up_for(jobs: dict[str, str]) -> None:
    ended(jobs["sample"])
    assert sorted(queue(jobs["sample"])) == ["COMPLETED"] * 3 + ["FAILED"]
    missing = {f"part-{i:05}.parquet" for i in range(8)} - {p.name for p in Path("many").glob("part-*")}
    assert missing
    assert missing <= {"part-00001.parquet", "part-00005.parquet"}
    failed = [r for r in list_jobs(Path("jobs")) if r["id"] == f"{jobs['sample']}_1"]
    assert [(r["state"], "exit code 137" in r["note"]) for r in failed] == [("failed", True)]
    again = submit("-p", "one", "--array", "4", *SAMPLE, "--out", "many/")
    alone = fluvial.sample_shards(fluvial.load("run"), "alone", contexts="contexts.parquet", draws=40, seed=3)
    ended(again)
    assert queue(again) == ["COMPLETED"] * 4
    ours, theirs = pq.read_table("many"), pq.read_table("alone")
    assert ours.num_rows == alone.rows == 800_000
    assert ours.equals(theirs)


def test_a_partition_that_is_not_there(jobs: dict[str, str]) -> None:
    with pytest.raises(RunError, match="no partition 'mian'; did you mean 'main'"):
        submit("--time", "10", "--partition", "mian", "fit", "study.toml")


def test_a_job_that_is_cancelled_stays_cancelled(jobs: dict[str, str]) -> None:
    job = submit("-p", "one", "fit", "study.toml", "--no-check", "--name", "cancelled")
    metrics = Path("runs/cancelled/metrics.jsonl")
    wait_for(lambda: metrics.exists() and metrics.stat().st_size, 90, "an epoch of the fit")
    subprocess.run(["scancel", job], check=True)
    ended(job)
    time.sleep(2)
    assert queue(job) == ["CANCELLED"]
    assert RunFolder.open("runs/cancelled").record()["status"] == "interrupted"


def test_a_fit_over_its_time_limit_goes_on_by_itself(jobs: dict[str, str]) -> None:
    def resting() -> bool:
        state = queue(jobs["timed"])
        if state == ["PENDING"]:
            hurry(jobs["timed"])
        return state == ["COMPLETED"]

    wait_for(resting, 240, "the timed fit over")
    record = RunFolder.open("runs/timed").record()
    assert record["status"] == "finished"
    assert len(record["resumed"]) >= 1
    assert record["timings"]["training"] >= 96
    log = next(Path("jobs").glob(f"{jobs['timed']}.out")).read_text()
    assert "stopped by SIGUSR1" in log
