"""What runs on a node: the command, told of signals, and the job put back into the queue until it is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fluvial.launch.job import AGAIN


@dataclass
class Task:
    """One task of a job, called by submitit in each of its processes."""

    program: list[str]
    environment: dict[str, str]
    workdir: str
    folder: str

    def __call__(self) -> int:
        """Run the command to its end; at 138 or 143 requeue the job, of which the first process takes care."""
        # In a session of its own: a signal to the whole group would reach it twice, or before it can answer.
        child = subprocess.Popen(
            self.program, cwd=self.workdir, env=os.environ | self.environment, start_new_session=True
        )

        def forward(number: int, frame: object) -> None:
            if child.poll() is None:
                child.send_signal(number)

        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, forward)
        code = child.wait()
        code = 128 - code if code < 0 else code  # ended by a signal before it could answer one
        if os.environ.get("SLURM_PROCID", "0") == "0":
            again = code in AGAIN and requeued(os.environ["SLURM_JOB_ID"])
            self._write_down(code, again=again)
        if code:
            sys.exit(code)
        return code

    def _write_down(self, code: int, *, again: bool) -> None:
        env = os.environ
        array = env.get("SLURM_ARRAY_JOB_ID")
        name = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
        path = Path(self.folder) / f"{name}.end.json"
        facts = {
            "code": code,
            "requeued": again,
            "restarts": int(env.get("SLURM_RESTART_COUNT", "0")),
            "at": time.time(),
        }
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        os.replace(temporary, path)


def requeued(job: str) -> bool:
    """Put a running job back into the queue; leave one alone that has been cancelled, or requeued by SLURM itself."""
    state = subprocess.run(
        ["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True, timeout=120
    ).stdout.strip()
    if state != "RUNNING":
        return False
    return subprocess.run(["scontrol", "requeue", job], timeout=120).returncode == 0
