"""Jobs to SLURM, through submitit."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import subprocess
import time
from typing import Any

from fluvial.errors import RunError, nearest
from fluvial.extras import optional_module
from fluvial.files import write_atomically
from fluvial.launch.job import Job
from fluvial.launch.script import sbatch_options
from fluvial.launch.task import Task

#: How long a command of SLURM may take to answer, in seconds.
PATIENCE = 60


def submit(job: Job) -> str:
    """Submit a job; return its number.

    Raises
    ------
    RunError
        If there is no SLURM here, it does not answer, has no such partition, or refuses the job.
    MissingExtraError
        If submitit is not installed.
    """
    require_slurm()
    require_partition(job.profile.partition)
    submitit: Any = optional_module("submitit", "cluster")
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--jobs: could not make {job.folder}: {error.strerror or error}.") from error
    executor = submitit.SlurmExecutor(folder=job.folder.resolve(), python=shlex.join(job.launcher))
    options = sbatch_options(job)
    name, nodes, tasks = (options.pop(k) for k in ("job-name", "nodes", "ntasks-per-node"))
    executor.update_parameters(
        job_name=name,
        nodes=nodes,
        ntasks_per_node=tasks,
        setup=[*(f"module load {shlex.quote(m)}" for m in job.profile.modules), *job.profile.setup],
        additional_parameters=options,
        array_parallelism=job.throttle or job.array or 1,
        stderr_to_stdout=True,
    )
    works = [
        Task(
            [*job.launcher, "-m", "fluvial", *job.of_task(i)],
            job.environment,
            str(job.workdir),
            str(job.folder.resolve()),
        )
        for i in range(job.array or 1)
    ]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it is in the error, too
            if job.array:
                with executor.batch():
                    submitted = [executor.submit(work) for work in works]
            else:
                submitted = [executor.submit(works[0])]
    except submitit.core.utils.FailedJobError as error:
        raise RunError(f"SLURM refused the job: {_said(str(error))}") from error
    number = submitted[0].job_id.partition("_")[0]
    facts = {
        "id": number,
        "name": job.name,
        "command": job.command,
        "run": job.run,
        "array": job.array,
        "seconds": job.profile.seconds,
        "submitted": time.time(),
    }
    write_atomically(job.folder / f"{number}.json", (json.dumps(facts, indent=1) + "\n").encode())
    return number


def require_slurm() -> None:
    """Raise :class:`~fluvial.errors.RunError` unless SLURM's commands are here and answer."""
    missing = [
        name for name in ("sbatch", "srun", "squeue", "sinfo", "scontrol") if shutil.which(name) is None
    ]
    if missing:
        raise RunError(
            f"There is no SLURM here: {', '.join(missing)} not found. Submit from a login node of the cluster; or "
            "print the batch script with --script, and submit that there."
        )


def require_partition(name: str | None) -> None:
    """Raise :class:`~fluvial.errors.RunError` unless there is a partition of that name, or none is asked for."""
    known = sorted(set(ask("sinfo", "--noheader", "--format", "%R").split()))
    if name is not None:
        for one in name.split(","):
            if one not in known:
                raise RunError(f"--partition: this cluster has no partition {one!r}{nearest(one, known)}")


def ask(*command: str) -> str:
    """Return what a command of SLURM prints; raise :class:`~fluvial.errors.RunError` if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise RunError(f"SLURM does not answer: {command[0]} took longer than {PATIENCE} s.") from None
    if done.returncode:
        raise RunError(f"SLURM does not answer: {_said(done.stderr)}")
    return done.stdout


def _said(text: str) -> str:
    """Return what SLURM's commands complained of, in one line."""
    lines = [line.strip() for line in text.splitlines() if "error:" in line or "fatal:" in line] or [
        text.strip()
    ]
    return "; ".join(dict.fromkeys(line.partition("error: ")[2] or line for line in lines))[:400]
