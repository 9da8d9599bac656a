"""``fit``: from a study to a run folder with a trained, checked density and its report."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch

from fluvial.data.readers import absolute_source, source_beside
from fluvial.data.transforms import ColumnTransforms
from fluvial.density import Density
from fluvial.errors import FluvialError, RunError, StudyError
from fluvial.flows.mixed import build_mixed_flow
from fluvial.record import FORMAT, NO_END, STUDY, UNFINISHED, RunFolder, check_new, environment, now
from fluvial.study import Study, parse_study, read_study
from fluvial.train import EpochEvent, StepEvent, TrainingOptions, train
from fluvial.workflow.check import run_checks
from fluvial.workflow.data import Rows, read_rows, standardised, thinned
from fluvial.workflow.report import report_run

Event = StepEvent | EpochEvent | str


def fit(
    study: str | Path | Mapping[str, Any],
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    check: bool = True,
    on_event: Callable[[Event], None] | None = None,
) -> Density:
    """Train a density as a study says; leave a run folder; return the best density.

    Parameters
    ----------
    study
        The path of a study file, or its content as nested dictionaries. A relative ``source`` is looked for
        beside the study file (or in the working directory).
    runs
        The folder that holds the run folders.
    name
        The run folder's name; by default the study's with the first free number, such as ``binaries-1``.
    check
        Whether to check the density on the test rows and write the report.
    on_event
        Called with every training event, and with a text when the next stage begins.

    Returns
    -------
    Density
        The best density; ``density.folder`` is the run folder. Interrupted by Ctrl-C it is the best so far.

    Raises
    ------
    StudyError, DataError, RunError
        Before training: nothing is left half-written.
    TrainingError
        If training cannot go on; the run folder keeps the best density so far.
    """
    tell = on_event or (lambda event: None)
    parsed, text, folder, stem = _read(study)
    check_new(Path(runs), name)
    began = time.perf_counter()
    source = source_beside(parsed.data.source, folder)
    tell(f"reading {source}")
    rows = read_rows(parsed, source)
    _refuse_arrays(rows)
    for note in rows.facts["notes"]:
        tell(note)
    part = rows.part("train")
    targets = ColumnTransforms.fit(rows.schema.targets, part)
    context = ColumnTransforms.fit(rows.schema.context, part)
    for column, line in _described(targets, context).items():
        if "[chosen" in line:
            tell(f"transform of {column}: {line}")
    options = parsed.flow_options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(parsed.training.seed)
        flow = build_mixed_flow(
            parsed.architecture, **targets.layout.arguments, context=context.layout.width, **options
        )
    density = Density(
        flow,
        rows.schema,
        targets,
        context,
        architecture=parsed.architecture,
        options=options,
        context_range={c.name: rows.range(c.name) for c in rows.schema.context if c.period is None},
    )
    record = _record(parsed, text, source, rows, density, seconds=time.perf_counter() - began)

    def fill(new: RunFolder) -> None:
        (new.path / STUDY).write_text(text, encoding="utf-8")
        new.write_record({**record, "name": name})
        density.save(new.path)

    with _signals() as stop:  # before the folder is made: a signal may come as soon as it is seen
        run = RunFolder.create(Path(runs), stem, name, fill)
        density.folder = run.path
        record["name"] = run.name
        with _recorded(run, record):
            tell(f"run folder {run.path}")
            _train(run, record, density, rows, parsed, stop, tell)
            stop.training_is_over()
            if check and stop.signal == signal.SIGINT:
                tell("training stopped by Ctrl-C; checking the best so far (Ctrl-C again to leave now)")
            if check and stop.signal != signal.SIGTERM:
                _finish(run, record, density, rows, parsed, tell)
            record["status"] = "interrupted" if stop.signal else "finished"
    if stop.signal == signal.SIGTERM:
        raise Terminated(f"{run.path}: stopped by SIGTERM; the best density so far is kept there.")
    return density


class Terminated(FluvialError):
    """The process was asked to end by SIGTERM; the best density so far is kept."""


def _read(study: str | Path | Mapping[str, Any]) -> tuple[Study, str, Path, str]:
    """Return the study, its text, the folder that its source is relative to, and a stem for the run's name."""
    if isinstance(study, Mapping):
        parsed = parse_study(study)
        return parsed, tomli_w.dumps(dict(study)), Path(), "run"
    parsed, text = read_study(study)
    return parsed, text, Path(study).parent, Path(study).stem


def _refuse_arrays(rows: Rows) -> None:
    for column in rows.schema.context:
        if column.length is not None:
            raise StudyError(
                f"[data] context: {column.name} is an array of {column.length} numbers a row, which no architecture "
                f'takes yet; expected numbers: name its elements, as in "{column.name}[0:{column.length}]".'
            )


def _record(
    study: Study, text: str, source: str | list[str], rows: Rows, density: Density, *, seconds: float
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": None,
        "status": UNFINISHED,
        "stopped": NO_END,
        "process": os.getpid(),
        "started": now(),
        "ended": None,
        "architecture": density.architecture,
        "weights": sum(p.numel() for p in density.flow.parameters()),
        "study": _resolved(study, rows, density),
        "study_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "data": {"source": absolute_source(source), **rows.facts},
        "transforms": _described(density.target_transforms, density.context_transforms),
        "seeds": {"split": study.data.seed, "training": study.training.seed, "check": study.check.seed},
        "timings": {"reading": seconds},
        "training": {},
        "checks": {},
        **environment(torch.get_num_threads()),
    }


def _described(*transforms: ColumnTransforms) -> dict[str, str]:
    """Return one line for each column, with the reason where the study left its transform open."""
    lines = {}
    for one in transforms:
        for name, text in one.describe().items():
            why = one.reasons.get(name)
            lines[name] = f"{text} [chosen: {why}]" if why else text
    return lines


def _resolved(study: Study, rows: Rows, density: Density) -> dict[str, Any]:
    """Return every option of the study with its value, those left out included."""
    training = study.training
    resolved = {
        "batch_size": training.batch_rows(rows.count("train")),
        "epochs": training.epoch_limit,
    }
    return {
        **study.model_dump(),
        "flow": {"architecture": density.architecture, **density.options},
        "training": {**training.model_dump(), **resolved},
    }


def _train(
    run: RunFolder,
    record: dict[str, Any],
    density: Density,
    rows: Rows,
    study: Study,
    stop: _Stop,
    tell: Callable[[Event], None],
) -> None:
    """Train; save the density whenever it improves, and the metrics every epoch."""
    transforms = density.target_transforms, density.context_transforms
    validation = thinned(rows.part("validation"), density.flow.validation_rows)
    validation_x, validation_c, validation_logdet = standardised(validation, rows.schema, *transforms)
    section = study.training
    size = section.batch_rows(rows.count("train"))
    batches, train_logdet = rows.batches(*transforms, size, section.seed)
    options = TrainingOptions(
        epochs=section.epoch_limit,
        **section.model_dump(exclude={"epochs", "batch_size", "seed"}),
    )
    for event in train(
        density.flow, batches, (validation_x, validation_c), options, stop=stop, seed=section.seed
    ):
        if isinstance(event, EpochEvent):
            event = _in_units(event, train_logdet, validation_logdet)
            if event.improved:
                density.save_weights(run.path, epoch=event.epoch, validation_loss=event.validation_loss)
            run.append_metrics(vars(event))
            record["training"] = _summary(event)
            record["timings"]["training"] = event.seconds
            if event.stopped:
                record["stopped"] = event.stopped
            run.write_record(record)
        tell(event)
    density.flow.eval()


def _in_units(event: EpochEvent, train_logdet: float, validation_logdet: float) -> EpochEvent:
    """Return the event with its losses in nats per unit of the targets: comparable whatever the transforms."""
    return EpochEvent(
        **{
            **vars(event),
            "train_loss": event.train_loss - train_logdet,
            "validation_loss": event.validation_loss - validation_logdet,
            "best_loss": event.best_loss - validation_logdet,
        }
    )


def _summary(event: EpochEvent) -> dict[str, Any]:
    return {
        "epochs": event.epoch,
        "best_epoch": event.best_epoch,
        "best_loss": event.best_loss,
        "final_loss": event.validation_loss,
        "final_train_loss": event.train_loss,
        "rows": event.rows,
        "rows_per_second": event.rows / event.seconds,
        "skipped_steps": event.skipped_steps,
    }


def _finish(
    run: RunFolder,
    record: dict[str, Any],
    density: Density,
    rows: Rows,
    study: Study,
    tell: Callable[[Event], None],
) -> None:
    run.write_record(record)
    tell("checking on the test rows")
    began = time.perf_counter()
    record["checks"] = run_checks(run, density, rows, study)
    record["timings"]["checks"] = time.perf_counter() - began
    run.write_record(record)
    tell("writing the report")
    began = time.perf_counter()
    report_run(run.path)
    record["timings"]["report"] = time.perf_counter() - began


@dataclass
class _Stop:
    """Set by a signal; training asks it after every step."""

    signal: signal.Signals | None = None
    training: bool = True

    def __call__(self) -> str | None:
        if self.signal is None:
            return None
        cause = "Ctrl-C" if self.signal == signal.SIGINT else self.signal.name
        return f"interrupted by {cause}"

    def training_is_over(self) -> None:
        """From now on nothing asks: a signal ends what is going on at once."""
        self.training = False

    def handle(self, number: int, frame: object) -> None:
        again = self.signal is not None
        self.signal = signal.Signals(number)
        if self.training and not (again and number == signal.SIGINT):
            return
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated("stopped by SIGTERM")


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Let the first Ctrl-C or SIGTERM end training at the next step; after training, either ends the program."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _recorded(run: RunFolder, record: dict[str, Any]) -> Iterator[None]:
    """Write how the run ended, whatever happens short of a kill."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, (KeyboardInterrupt, Terminated))
        record["status"] = "interrupted" if interrupted else "failed"
        why = f"{type(error).__name__}: {error}"
        if interrupted:
            why = "interrupted by " + ("SIGTERM" if isinstance(error, Terminated) else "Ctrl-C")
        trained = record["stopped"] != NO_END
        record["stopped"] = f"{record['stopped']}; then, in the checks, {why}" if trained else why
        record["ended"] = now()
        try:
            run.write_record(record)
        except RunError as second:  # a full disk, most likely: the first error says more
            error.add_note(str(second))
        raise
    record["ended"] = now()
    run.write_record(record)
