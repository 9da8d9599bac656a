"""A job: a command of fluvial, what it asks of a cluster, and where it leaves its traces."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fluvial.launch.profile import Profile
from fluvial.walltime import WALLTIME, WARNING

#: In a command, the number of a task in its array, and how many there are.
TASK, TASKS = "{task}", "{tasks}"
#: Exit codes of a command that was told to stop and is to be begun again: 128 + SIGUSR1, 128 + SIGTERM.
AGAIN = (138, 143)


@dataclass(frozen=True)
class Job:
    """One job, or an array of them.

    Attributes
    ----------
    command : list of str
        What comes after ``fluvial``; given again, it goes on where it was. ``{task}`` and ``{tasks}`` in it stand for a
        task's number in its array, from 0, and their number.
    name : str
        What the queue shows.
    profile : Profile
        What it asks for.
    folder : Path
        Where logs and descriptions go.
    array, throttle : int or None
        How many tasks, and how many of them at a time.
    run : str or None
        The run folder that comes of it.
    """

    command: list[str]
    name: str
    profile: Profile
    folder: Path
    array: int | None = None
    throttle: int | None = None
    run: str | None = None
    workdir: Path = field(default_factory=Path.cwd)

    def of_task(self, task: int) -> list[str]:
        """Return the command of one task of the array."""
        numbers = {TASK: str(task), TASKS: str(self.array or 1)}
        out = []
        for word in self.command:
            for mark, number in numbers.items():
                word = word.replace(mark, number)
            out.append(word)
        return out

    @property
    def launcher(self) -> list[str]:
        """What starts fluvial on a node: Python, in a container if the profile names one."""
        profile = self.profile
        inside = (
            ["apptainer", "exec", *(["--nv"] if profile.gpus else []), profile.container]
            if profile.container
            else []
        )
        return [*inside, profile.python or ("python3" if profile.container else sys.executable)]

    @property
    def environment(self) -> dict[str, str]:
        """What is set for the command."""
        seconds, warning = self.profile.seconds, self.profile.warning_seconds
        out = {WALLTIME: str(seconds), WARNING: str(warning)}
        if self.profile.cpus is not None:
            out["OMP_NUM_THREADS"] = str(self.profile.cpus)
        return out

    def shell(self, task: str) -> str:
        """Return the command as a line of shell, with the shell's words for the task's number and their number."""
        words = []
        for word in self.command:
            quoted = shlex.quote(word)
            if TASK in word or TASKS in word:  # the variable must stay outside of single quotes
                quoted = f'"{word.replace(TASK, task).replace(TASKS, str(self.array or 1))}"'
            words.append(quoted)
        return " ".join([shlex.join(self.launcher), "-m fluvial", *words])
