"""``fit`` and ``resume``: from a study to a run folder with a trained, checked density and its report."""

from __future__ import annotations

import os
import signal
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from fluvial.data.readers import source_beside
from fluvial.density import Density
from fluvial.errors import RunError
from fluvial.infer.conformal import CONFORMAL_FILE
from fluvial.loggers import Logger, make_loggers
from fluvial.novelty import ARRAYS_FILE, NOVELTY_FILE
from fluvial.record import (
    ARRAYS,
    CHECKS,
    NO_END,
    REPORT,
    STUDY,
    UNFINISHED,
    RunFolder,
    check_new,
    environment,
    now,
)
from fluvial.runs_table import flat_options
from fluvial.study import parse_study, read_study
from fluvial.train import CHECKPOINT, Checkpoint, Group, process_group, training_device
from fluvial.train.stopping import Place
from fluvial.workflow.begin import described, new_density, new_record, read_given
from fluvial.workflow.card import write_card
from fluvial.workflow.data import read_rows, require_unchanged
from fluvial.workflow.members import ensemble_text, is_ensemble
from fluvial.workflow.signals import Stop, Terminated, signals
from fluvial.workflow.training import Event, Keeper, find_start, start_from, train_density
from fluvial.workflow.work import Work, finish, recorded


def fit(
    study: str | Path | Mapping[str, Any],
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    check: bool = True,
    ensemble: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    loggers: Sequence[str | Logger] = (),
) -> Density:
    """Train a density as a study says; leave a run folder; return the best density.

    Started by ``torchrun`` or ``srun`` as several processes, they train it together; the first writes.

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
    ensemble
        Members of an ensemble, in place of what the study says under ``[training]``.
    on_event
        Called with every training event, and with a text when the next stage begins.
    loggers
        Where to report besides: ``"tensorboard"``, ``"mlflow"``, or a :class:`fluvial.loggers.Logger`.

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
    Terminated
        On SIGTERM or SIGUSR1; :func:`resume` goes on.
    """
    parsed, text, folder, stem = read_given(study)
    if ensemble is not None:
        text = ensemble_text(text, ensemble)
        parsed = parse_study(tomllib.loads(text))
    training_device(parsed.training.device)  # before a large table is read
    if parsed.training.ensemble > 1:
        from fluvial.workflow.ensemble import fit_ensemble  # which is made of this module

        kept = {"runs": Path(runs), "name": name, "check": check, "loggers": loggers}
        return fit_ensemble(parsed, text, folder, stem, tell=on_event or (lambda event: None), **kept)
    with process_group() as group, signals() as stop:  # a signal may come as soon as the folder is seen
        tell = _teller(on_event, group)
        reporting = make_loggers(loggers) if group.writes else []
        if group.writes:
            check_new(Path(runs), name)
        began = time.perf_counter()
        source = source_beside(parsed.data.source, folder)
        tell(f"reading {source}")
        rows = read_rows(parsed, source)
        for note in rows.facts["notes"]:
            tell(note)
        density = new_density(parsed, rows)
        for column, line in described(density).items():
            if "[chosen" in line:
                tell(f"transform of {column}: {line}")
        if parsed.training.start:
            tell(start_from(density, find_start(parsed.training.start, folder, Path(runs))))
        record = new_record(parsed, text, source, rows, density, seconds=time.perf_counter() - began)

        def fill(new: RunFolder) -> None:
            (new.path / STUDY).write_text(text, encoding="utf-8")
            new.write_record({**record, "name": name})
            density.save(new.path)

        run = RunFolder.create(Path(runs), stem, name, fill) if group.writes else None
        if run is not None:
            density.folder = run.path
            record["name"] = run.name
            tell(f"run folder {run.path}")
        work = Work(run, record, density, rows, parsed, group, reporting)
        with run.locked() if run else nullcontext():
            _carry_out(work, None, stop, tell, check=check)
    return density


def resume(
    run: str | Path,
    *,
    epochs: int | None = None,
    check: bool = True,
    on_event: Callable[[Event], None] | None = None,
    loggers: Sequence[str | Logger] = (),
) -> Density:
    """Go on with a run from its last checkpoint, as if it had never ended; return the best density.

    On the same kind of machine, with a budget of epochs or steps, the weights are bit for bit those of a fit that was
    never interrupted. A run that was killed before its first checkpoint begins again; one that had only its checks to do
    does those.

    Parameters
    ----------
    run
        The run folder.
    epochs
        Train until so many epochs in all, whatever the study's budget was: this is how a finished run is continued.
    check, on_event, loggers
        As in :func:`fit`.

    Raises
    ------
    RunError
        If there is no such run, it is finished and ``epochs`` does not ask for more, another process is training it,
        or a file of it is damaged.
    DataError
        If its data have changed since it began.
    """
    folder = RunFolder.open(run)
    if is_ensemble(folder):
        from fluvial.workflow.ensemble import resume_ensemble

        tell = on_event or (lambda event: None)
        return resume_ensemble(folder, epochs=epochs, check=check, tell=tell, loggers=loggers)
    with process_group() as group, signals() as stop, folder.locked() if group.writes else nullcontext():
        tell = _teller(on_event, group)
        record = folder.record()
        study, _ = read_study(folder.path / STUDY)
        training_device(study.training.device, group.rank)  # before anything of the run is touched
        path = folder.path / CHECKPOINT
        checkpoint = Checkpoint.load(path) if path.exists() else None
        _extend(folder, record, checkpoint, epochs)
        reporting = make_loggers(loggers) if group.writes else []
        source = record["data"]["source"]
        tell(f"reading {source}")
        rows = read_rows(study, source, like=record["data"])
        require_unchanged(record["data"], rows, source)
        if checkpoint is None:
            density = new_density(study, rows)
            if study.training.start:
                tell(start_from(density, find_start(study.training.start, Path(), folder.path.parent)))
        else:
            density = Density.load(folder.path)
        density.folder = folder.path if group.writes else None
        done = Place.from_json(checkpoint.numbers["place"]).whole_epochs if checkpoint else 0
        if group.writes:
            _reopen(folder, record, density, checkpoint, done)
        tell(f"run folder {folder.path}, going on after {done} epochs")
        work = Work(folder if group.writes else None, record, density, rows, study, group, reporting)
        _carry_out(work, checkpoint, stop, tell, check=check, further=epochs is not None)
    return density


def _carry_out(
    work: Work,
    checkpoint: Checkpoint | None,
    stop: Stop,
    tell: Callable[[Event], None],
    *,
    check: bool,
    further: bool = False,
) -> None:
    """Train, check, report; write down how it ended."""
    run, record = work.run, work.record
    with recorded(work):
        for logger in work.loggers:
            assert run is not None
            logger.begin(run.path, flat_options(record["study"]))
        keeper = None
        if run is not None:
            minutes = work.study.training.checkpoint_minutes
            keeper = Keeper(run, record, work.density, minutes, work.loggers)
        interrupted = train_density(
            work.density,
            work.rows,
            work.study,
            work.options,
            keeper=keeper,
            group=work.group,
            stop=stop,
            tell=tell,
            checkpoint=checkpoint,
            further=further,
        )
        stop.training_is_over()
        if interrupted and stop.signal is None:  # another process had the signal
            raise Terminated(interrupted)
        if stop.signal not in (None, signal.SIGINT):
            raise Terminated(_ended_by(stop.signal, run), stop.signal)
        if check and run is not None:
            if stop.signal == signal.SIGINT:
                tell("training stopped by Ctrl-C; checking the best so far (Ctrl-C again to leave now)")
            finish(work, run, tell)
        record["status"] = "interrupted" if stop.signal else "finished"
    if run is not None:
        write_card(run)  # when the record has its end


def _ended_by(number: signal.Signals | None, run: RunFolder | None) -> str:
    assert number is not None
    if run is None:
        return f"stopped by {number.name}."
    return (
        f"{run.path}: stopped by {number.name}; go on with: fluvial fit --resume {run.path}. "
        "Till then the best density so far is kept there."
    )


def _teller(on_event: Callable[[Event], None] | None, group: Group) -> Callable[[Event], None]:
    """Return what is told of events: one process speaks."""
    if on_event is None or not group.writes:
        return lambda event: None
    return on_event


def _extend(
    run: RunFolder, record: dict[str, Any], checkpoint: Checkpoint | None, epochs: int | None
) -> None:
    """Put a new budget on record; raise if there is nothing to go on with."""
    if record.get("recalibrated"):
        raise RunError(
            f"{run.path} is the recalibrated form of {record['recalibrated']['of']}; go on with that, and recalibrate "
            "again."
        )
    budget = record["study"]["training"]
    place = Place.from_json(checkpoint.numbers["place"]) if checkpoint else Place()
    if epochs is not None:
        if epochs <= place.whole_epochs:
            raise RunError(
                f"--epochs: expected more than the {place.whole_epochs} epochs that {run.path} has; found {epochs}."
            )
        budget.update({"epochs": epochs, "steps": None, "minutes": None})
    elif record["status"] == "finished":
        raise RunError(
            f"{run.path} is finished ({record['stopped']}). To go on, say until how many epochs with --epochs."
        )


def _reopen(
    run: RunFolder, record: dict[str, Any], density: Density, checkpoint: Checkpoint | None, done: int
) -> None:
    """Put the run folder back to where its checkpoint was: metrics, best weights, record."""
    run.keep_metrics(done)
    # What was found about the weights that the run had is not true of those to come.
    run.remove(CHECKS, ARRAYS, REPORT, CONFORMAL_FILE, NOVELTY_FILE, ARRAYS_FILE)
    record["checks"], density.novelty = {}, None
    if checkpoint is None:
        density.save(run.path)
    else:
        density.flow.load_state_dict(checkpoint.part("best"))
        density.save_weights(run.path, epoch=checkpoint.numbers["place"]["best_epoch"])
    again = {"at": now(), "after_epochs": done, "process": os.getpid()}
    record["resumed"] = [*record.get("resumed", []), again | environment(torch.get_num_threads())]
    record.update(status=UNFINISHED, stopped=NO_END, ended=None, process=os.getpid())
    run.write_record(record)
