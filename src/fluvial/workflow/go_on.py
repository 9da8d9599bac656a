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
from fluvial.walltime import TooShort, is_over, limit
from fluvial.workflow.fit import fit, resume
from fluvial.workflow.signals import Terminated
from fluvial.workflow.use import load


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
        first = os.environ.get("SLURM_PROCID", "0") == "0"
        if is_over(began) and first and steps <= 1:  # one is always made
            raise TooShort(
                f"{path}: the job was warned of the end of its {limit() / 60:.3g} minutes when training had just begun, "
                "so that it would hardly ever get on; ask for more --time."
            ) from error
        raise
