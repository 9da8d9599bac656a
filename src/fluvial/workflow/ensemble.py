"""Ensembles: members that differ in their seed, trained one after the other, and saved as one density.

Every member is a run of its own under ``members/`` in the run folder, so a fit that was killed goes on with the member
that it was at, and those that were finished are kept.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.data.readers import absolute_source, source_beside
from fluvial.density import Density
from fluvial.errors import RunError, StudyError
from fluvial.flows.ensemble import EnsembleFlow
from fluvial.loggers import Logger, make_loggers
from fluvial.record import NO_END, RECORD, STUDY, UNFINISHED, RunFolder, check_new
from fluvial.runs_table import flat_options
from fluvial.study import Study, read_study
from fluvial.train import Group
from fluvial.workflow.begin import new_density, new_record
from fluvial.workflow.data import Rows, read_rows, require_unchanged
from fluvial.workflow.fit import fit, resume
from fluvial.workflow.members import MEMBERS, member_runs
from fluvial.workflow.training import Event, find_start
from fluvial.workflow.work import Work, finish, recorded

Tell = Callable[[Event], None]


def fit_ensemble(
    study: Study,
    text: str,
    folder: Path,
    stem: str,
    *,
    runs: Path,
    name: str | None,
    check: bool,
    tell: Tell,
    loggers: Sequence[str | Logger],
) -> Density:
    """Train the members of an ensemble, as :func:`fluvial.fit` trains one density; return them as one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise StudyError(
            "[training] ensemble: expected one process, which trains the members in turn; found several. Leave torchrun "
            "out, or fit the members as studies of their own."
        )
    check_new(runs, name)
    source = source_beside(study.data.source, folder)
    tell(f"reading {source}")
    rows = read_rows(study, source)
    density = new_density(study, rows)
    record = new_record(study, text, source, rows, density, seconds=0.0)
    record["weights"] *= study.training.ensemble
    start = study.training.start
    if start:
        start = str(find_start(start, folder, runs).resolve())

    def fill(new: RunFolder) -> None:
        (new.path / STUDY).write_text(text, encoding="utf-8")
        new.write_record({**record, "name": name})

    run = RunFolder.create(runs, stem, name, fill)
    record["name"] = run.name
    run.write_record(record)
    tell(f"run folder {run.path}")
    with run.locked():
        return _carry_out(
            run, record, study, rows, source, start, check=check, tell=tell, loggers=make_loggers(loggers)
        )


def resume_ensemble(
    run: RunFolder, *, epochs: int | None, check: bool, tell: Tell, loggers: Sequence[str | Logger]
) -> Density:
    """Go on with an ensemble: finished members are kept, unless ``epochs`` asks them for more."""
    record, (study, _) = run.record(), read_study(run.path / STUDY)
    if record["status"] == "finished" and epochs is None:
        raise RunError(f"{run.path} is finished. To go on, say until how many epochs with --epochs.")
    source = record["data"]["source"]
    tell(f"reading {source}")
    rows = read_rows(study, source, like=record["data"])
    require_unchanged(record["data"], rows, source)
    record.update(status=UNFINISHED, stopped=NO_END, ended=None, process=os.getpid())
    start = study.training.start
    if start:
        start = str(find_start(start, Path(), run.path.parent).resolve())
    with run.locked():
        return _carry_out(
            run,
            record,
            study,
            rows,
            source,
            start,
            check=check,
            tell=tell,
            loggers=make_loggers(loggers),
            epochs=epochs,
        )


def _carry_out(
    run: RunFolder,
    record: dict[str, Any],
    study: Study,
    rows: Rows,
    source: str | list[str],
    start: str | None,
    *,
    check: bool,
    tell: Tell,
    loggers: list[Logger],
    epochs: int | None = None,
) -> Density:
    work = Work(
        run, record, new_density(study, rows), rows, study, Group(), loggers
    )  # its density is a stand-in till the members are there
    with recorded(work):
        for logger in loggers:
            logger.begin(run.path, flat_options(record["study"]))
        members: list[Density] = []
        density = work.density
        interrupted = False
        for number in range(study.training.ensemble):
            tell(f"member {number + 1} of {study.training.ensemble}")
            member = _member(run, number, study, source, start, epochs, tell)
            members.append(member)
            density = _together(members)
            density.folder = run.path
            density.save(run.path)
            assert member.folder is not None
            interrupted = RunFolder(Path(member.folder)).record()["status"] == "interrupted"
            record["ensemble"] = [_summary(m) for m in member_runs(run)]
            record["training"] = _training(run, density, rows)
            record["timings"]["training"] = sum(m["seconds"] for m in record["ensemble"])
            run.write_record(record)
            if interrupted:
                break
        record["stopped"] = f"{len(members)} of {study.training.ensemble} members trained"
        work = Work(run, record, density, rows, study, Group(), loggers)
        if check and not interrupted:
            finish(work, run, tell)
        record["status"] = "interrupted" if interrupted else "finished"
    return density


def _member(
    run: RunFolder,
    number: int,
    study: Study,
    source: str | list[str],
    start: str | None,
    epochs: int | None,
    tell: Tell,
) -> Density:
    """Return a member: trained, gone on with, or as it was finished before."""
    path = run.path / MEMBERS / str(number)
    quiet = {"check": False, "on_event": tell}
    if not (path / RECORD).exists():
        return fit(
            _member_study(run, number, study, source, start), runs=path.parent, name=path.name, **quiet
        )
    done = RunFolder(path).record()
    more = epochs is not None and done["training"].get("epochs", 0) < epochs
    if done["status"] == "finished" and not more:
        density = Density.load(path)
        density.folder = path
        return density
    return resume(path, epochs=epochs if more else None, **quiet)


def _member_study(
    run: RunFolder, number: int, study: Study, source: str | list[str], start: str | None
) -> Mapping[str, Any]:
    """Return the study of a member: that of the ensemble, with a seed of its own."""
    values = tomllib.loads((run.path / STUDY).read_text(encoding="utf-8"))
    training = dict(values.get("training", {})) | {"ensemble": 1, "seed": study.training.seed + number}
    if start:
        training["start"] = start
    data = dict(values["data"]) | {"source": absolute_source(source)}
    return values | {"data": data, "training": training}


def _together(members: Sequence[Density]) -> Density:
    """Return members as one density.

    Raises :class:`~fluvial.errors.RunError` if their columns are standardised differently: a file was changed.
    """
    first = members[0]
    if len(members) == 1:
        return copy(first)
    for member in members[1:]:
        if (member.target_transforms.to_json(), member.context_transforms.to_json()) != (
            first.target_transforms.to_json(),
            first.context_transforms.to_json(),
        ):
            raise RunError(
                f"{member.folder} and {first.folder} have different column transforms, so they are no members of one "
                "ensemble; were their files edited? Remove the member's folder and resume."
            )
    return Density(
        EnsembleFlow([m.flow for m in members]),
        first.schema,
        first.target_transforms,
        first.context_transforms,
        architecture=first.architecture,
        options=first.options,
        context_range=first.context_range,
    )


def _summary(member: RunFolder) -> dict[str, Any]:
    """Return what the record of an ensemble says of a member."""
    record = member.record()
    return {
        "name": member.name,
        "seed": record["seeds"]["training"],
        "status": record["status"],
        "epochs": record["training"].get("epochs", 0),
        "best_loss": record["training"].get("best_loss"),
        "seconds": record["timings"].get("training", 0.0),
    }


def _training(run: RunFolder, density: Density, rows: Rows) -> dict[str, Any]:
    """Return what a record says of training: sums, means and, as the best loss, the validation loss of the mixture."""
    each = [m.record()["training"] for m in member_runs(run)]
    table, weight = rows.part("validation"), rows.weight_part("validation")
    loss = -float(np.average(density.log_prob(table), weights=weight))

    def mean(key: str) -> float | None:
        known = [e[key] for e in each if e[key] is not None]
        return float(np.mean(known)) if known else None

    return {
        "epochs": max(e["epochs"] for e in each),
        "steps": sum(e["steps"] for e in each),
        "best_epoch": max(e["best_epoch"] for e in each),
        "best_loss": loss,
        "final_loss": loss,
        "final_train_loss": mean("final_train_loss"),
        "conditioning": mean("conditioning"),
        "learning_rate": mean("learning_rate"),
        "rows": sum(e["rows"] for e in each),
        "rows_per_second": mean("rows_per_second"),
        "skipped_steps": sum(e["skipped_steps"] for e in each),
        "rollbacks": sum(e["rollbacks"] for e in each),
        "processes": 1,
        "compile_seconds": None,
    }
