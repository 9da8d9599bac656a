"""A fit that may be begun any number of times: what a job of a cluster runs, at first and whenever it is requeued."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from fluvial.density import Density
from fluvial.errors import RunError
from fluvial.record import RECORD, STUDY, RunFolder
from fluvial.study import read_study
from fluvial.train import StepEvent
from fluvial.workflow.fit import fit, resume
from fluvial.workflow.signals import Terminated
from fluvial.workflow.use import load

#: Set by a job: the seconds that it may run, and how long before their end it is warned.
WALLTIME, WARNING = "FLUVIAL_WALLTIME", "FLUVIAL_WARNING"


class TooShort(RunError):
    """A job has no time to train; begun again it would fare no better.

    Of the exit codes of several processes ``srun`` returns the largest: this one, not the 138 that asks to be requeued.
    """

    code = 200


def fit_or_resume(
    study: str | Path | None, *, runs: str | Path = "runs", name: str | None = None, **options: Any
) -> Density:
    """Fit a study under a name; if that run is there, go on with it; if it is finished, return its density.

    ``options`` are those of :func:`fluvial.fit` besides.

    Raises
    ------
    RunError
        If there is no name, or the run of that name is of another study.
    TooShort
        If this is a job of a cluster whose time was over as soon as training had begun.
    """
    if study is None or name is None:
        raise RunError("--continue: expected a study and the --name of its run.")
    path = Path(runs) / name
    began, steps, show = time.monotonic(), 0, options.pop("on_event", None)

    def count(event: Any) -> None:
        nonlocal steps
        steps += isinstance(event, StepEvent)
        if show is not None:
            show(event)

    options["on_event"] = count
    try:
        if not (path / RECORD).exists():
            return fit(study, runs=runs, name=name, **options)
        run = RunFolder.open(path)
        if read_study(study)[1] != (run.path / STUDY).read_text(encoding="utf-8"):
            raise RunError(
                f"{path} was begun with another study than {study} is now (see its {STUDY}); choose another --name, or "
                f"go on with its own: fluvial fit --resume {path}"
            )
        if run.record()["status"] == "finished":
            return load(path)
        return resume(path, **options)
    except Terminated as error:
        ran, limit = time.monotonic() - began, float(os.environ.get(WALLTIME, "inf"))
        # A scheduler looks at its limits once a minute, so that its warning may come early by as much.
        timed_out = ran > limit - float(os.environ.get(WARNING, "0")) - 75
        if timed_out and os.environ.get("SLURM_PROCID", "0") == "0" and steps <= 1:  # one is always made
            raise TooShort(
                f"{path}: the job was warned of the end of its {limit / 60:.3g} minutes when training had just begun, so "
                "that it would hardly ever get on; ask for more --time."
            ) from error
        raise
