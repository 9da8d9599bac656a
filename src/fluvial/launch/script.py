"""Jobs as files for people who read before they submit: a batch script of SLURM, a submit description of HTCondor."""

from __future__ import annotations

import shlex

from fluvial.launch.job import AGAIN, Job
from fluvial.launch.times import slurm_time


def sbatch_options(job: Job) -> dict[str, str | int | bool]:
    """Return the options of ``sbatch`` for a job, but for those of its array and its logs."""
    profile = job.profile
    out: dict[str, str | int | bool | None] = {
        "job-name": job.name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "nodes": profile.nodes,
        "ntasks-per-node": profile.tasks_per_node,
        "cpus-per-task": profile.cpus,
        "gpus-per-node": profile.gpus or None,
        "mem": profile.mem,
        "time": slurm_time(profile.seconds),
        "requeue": True,
        "signal": f"USR1@{profile.warning_seconds}",
    }
    return {k: v for k, v in {**out, **profile.options}.items() if v is not None and v is not False}


def sbatch_script(job: Job) -> str:
    """Return a batch script that does, by itself, all that ``fluvial submit`` would."""
    options = sbatch_options(job)
    log = "%A_%a.out" if job.array else "%j.out"
    if job.array:
        options["array"] = f"0-{job.array - 1}" + (f"%{job.throttle}" if job.throttle else "")
    options |= {"output": str(job.folder / log), "open-mode": "append"}
    head = [
        f"#SBATCH --{k}" if v is True else f"#SBATCH --{k}={shlex.quote(str(v))}" for k, v in options.items()
    ]
    exports = " ".join(f"{k}={shlex.quote(v)}" for k, v in job.environment.items())
    return "\n".join(
        [
            "#!/bin/bash",
            *head,
            "",
            *(f"module load {shlex.quote(m)}" for m in job.profile.modules),
            *job.profile.setup,
            f"cd {shlex.quote(str(job.workdir))}",
            f"export {exports}",
            "",
            "# At the time limit (USR1) and at preemption (TERM) the command saves where it is and ends with 138 or 143;",
            "# this shell outlives it, and puts the job back into the queue, unless somebody has cancelled it.",
            "trap : TERM USR1",
            f"srun {job.shell('$SLURM_ARRAY_TASK_ID')}",
            "code=$?",
            f"case $code in {'|'.join(map(str, AGAIN))})",
            '  [ "$(squeue --noheader --jobs $SLURM_JOB_ID --format %T)" = RUNNING ] &&',
            "    scontrol requeue $SLURM_JOB_ID ;;",
            "esac",
            "exit $code",
            "",
        ]
    )


def condor_description(job: Job) -> str:
    """Return a submit description of HTCondor, for a pool whose machines share the file system.

    A job that is evicted gets SIGUSR1 and time to save where it is; it stays in the queue until its command is done.
    """
    profile = job.profile
    program, *words = [*job.launcher, "-m", "fluvial", *job.command]
    marks = {"{task}": "$(Process)", "{tasks}": str(job.array or 1)}
    arguments = " ".join(_condor_word(word, marks) for word in words)
    environment = " ".join(f"{k}={v}" for k, v in job.environment.items())
    again = " && ".join(f"(ExitCode =!= {code})" for code in AGAIN)
    asked = {
        "request_cpus": profile.cpus or 1,
        "request_memory": profile.mem,
        "request_gpus": profile.gpus or None,
        "container_image": profile.container,
        "accounting_group": profile.account,
        "max_materialize": job.throttle,
    }
    stem = job.folder / f"{job.name}.$(Cluster).$(Process)"
    lines = [
        "universe = vanilla",
        f"executable = {program}",
        f'arguments = "{arguments}"',
        f'environment = "{environment}"',
        "getenv = True",
        f"initialdir = {job.workdir}",
        "should_transfer_files = NO",
        f"output = {stem}.out",
        f"error = {stem}.err",
        f"log = {job.folder / job.name}.$(Cluster).log",
        *(f"{key} = {value}" for key, value in asked.items() if value is not None),
        "# Evicted, or at the limit of its time: SIGUSR1, then time to save where it is.",
        "kill_sig = SIGUSR1",
        f"job_max_vacate_time = {profile.warning_seconds}",
        f"allowed_job_duration = {profile.seconds}",
        "# Ended because it was told to: it stays in the queue, and the same command goes on.",
        f"on_exit_remove = (ExitBySignal == False) && {again}",
        f"queue {job.array or 1}",
        "",
    ]
    return "\n".join(lines)


def _condor_word(word: str, marks: dict[str, str]) -> str:
    """Return a word as the new syntax of arguments has it: single quotes around blanks, quotes doubled."""
    word = word.replace('"', '""').replace("'", "''")
    for mark, value in marks.items():
        word = word.replace(mark, value)
    return f"'{word}'" if any(c.isspace() for c in word) or "''" in word or not word else word
