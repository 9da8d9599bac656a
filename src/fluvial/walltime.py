"""The time of a job of a cluster: what tells "warned of its end, having got on" from "it would never get on"."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping

from fluvial.errors import RunError

#: Set by a job: the seconds that it may run, and how long before their end it is warned by SIGUSR1.
WALLTIME, WARNING = "FLUVIAL_WALLTIME", "FLUVIAL_WARNING"
#: A scheduler looks at its limits once a minute, so that a warning may come early by as much; and a program has to start.
SLACK = 75


class TooShort(RunError):
    """A job's time is over and nothing has come of it; begun again it would fare no better.

    Of the exit codes of several processes ``srun`` returns the largest: this one, not the 138 that asks to be requeued.
    """

    code = 200


def limit(environ: Mapping[str, str] = os.environ) -> float:
    """Return the seconds that this job may run; infinity if it is none."""
    return float(environ.get(WALLTIME, "inf"))


def is_over(began: float) -> bool:
    """Return whether a job that began at ``time.monotonic() == began`` may have been warned of the end of its time."""
    return time.monotonic() - began > limit() - float(os.environ.get(WARNING, "0")) - SLACK


def answer_early() -> None:
    """In a job, answer a warning that comes before there is anything to save, and so before anybody else answers it."""
    if WALLTIME not in os.environ or not hasattr(signal, "SIGUSR1"):
        return
    began = time.monotonic()

    def answer(number: int, frame: object) -> None:
        if is_over(began):
            sys.stderr.write(
                f"fluvial: the job was warned of the end of its {limit() / 60:.3g} minutes before it had begun; ask for "
                "more --time.\n"
            )
            os._exit(TooShort.code)
        os._exit(128 + number)  # preempted: it begins again

    signal.signal(signal.SIGUSR1, answer)
