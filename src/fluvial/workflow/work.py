"""One fit in this process: what it is made of, its checks and report, and how its end is written down."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fluvial.density import Density
from fluvial.errors import RunError
from fluvial.loggers import Logger
from fluvial.record import CHECKING, NO_END, REPORT, RunFolder, now
from fluvial.study import Study
from fluvial.train import Group, TrainingOptions
from fluvial.workflow.cells import judge_cells
from fluvial.workflow.check import run_checks
from fluvial.workflow.data import Rows
from fluvial.workflow.report import report_run
from fluvial.workflow.signals import EndedEarly, Terminated, shown
from fluvial.workflow.training import Event


@dataclass(frozen=True)
class Work:
    """One fit in this process; ``run`` is ``None`` in those that do not write."""

    run: RunFolder | None
    record: dict[str, Any]
    density: Density
    rows: Rows
    study: Study
    group: Group
    loggers: list[Logger]

    @property
    def options(self) -> TrainingOptions:
        """The study's options of training, with the budget on record."""
        left_out = {"batch_size", "seed", "start", "checkpoint_minutes", "ensemble", "device"}
        options = self.study.training.model_dump(exclude=left_out)
        return TrainingOptions(**options | {k: self.record["study"]["training"][k] for k in _BUDGETS})


_BUDGETS = ("epochs", "steps", "minutes")


def finish(work: Work, run: RunFolder, tell: Callable[[Event], None]) -> None:
    """Check the trained density, judge its cells, and write the report."""
    record = work.record
    record["status"] = CHECKING
    run.write_record(record)
    tell("checking on the test rows")
    began = time.perf_counter()
    record["checks"] = run_checks(run, work.density, work.rows, work.study, tell)
    record["timings"]["checks"] = time.perf_counter() - began
    judge_cells(run, work.density, work.rows, work.study, record["data"]["source"], tell)
    run.write_record(record)
    tell("writing the report")
    began = time.perf_counter()
    report_run(run.path)
    record["timings"]["report"] = time.perf_counter() - began
    for logger in work.loggers:
        logger.file(run.path / REPORT)


@contextmanager
def recorded(work: Work) -> Iterator[None]:
    """Write how the run ended, whatever happens short of a kill."""
    run, record = work.run, work.record
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, (KeyboardInterrupt, Terminated, EndedEarly))
        record["status"] = "interrupted" if interrupted else "failed"
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, EndedEarly):
            why = str(error)
        elif interrupted:
            why = f"interrupted by {error.signal.name if isinstance(error, Terminated) else shown(signal.SIGINT)}"
        if record["stopped"] == NO_END:
            record["stopped"] = why
        elif record["stopped"] != why:
            record["stopped"] = f"{record['stopped']}; then, in the checks, {why}"
        record["ended"] = now()
        try:
            if run is not None:
                run.write_record(record)
        except RunError as second:  # a full disk, most likely: the first error says more
            error.add_note(str(second))
        for logger in work.loggers:
            logger.end(record["status"])
        raise
    record["ended"] = now()
    if run is not None:
        run.write_record(record)
    for logger in work.loggers:
        logger.end(record["status"])
