"""Search over studies: every trial is a run folder, trials are chosen by Optuna, workers share a journal.

runs/STUDY-tune/
  journal.log          the trials, as optuna-dashboard reads them
  trial-0000/ …        run folders like any other
  trials.txt .tex      the table: loss, how fast it fell, runtime
  importance.png, parallel.png
  best.toml            the study with the best options, for ``fluvial fit``
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch

from fluvial.data.readers import absolute_source, source_beside
from fluvial.errors import RunError, StudyError
from fluvial.files import write_atomically
from fluvial.record import RECORD, RunFolder
from fluvial.runs_table import formatted, result_row
from fluvial.study import Study, parse_study, read_study
from fluvial.study_tuning import TuneSection
from fluvial.train import EpochEvent, TrainingError
from fluvial.tune_journal import POINTS, Journal, finished_loss
from fluvial.workflow import fit, resume
from fluvial.workflow.signals import EndedEarly, Terminated, handled, signals
from fluvial.workflow.training import find_start

#: What is shown of a trial beside its options.
SHOWN = ("best_loss", "gain_per_minute", "minutes", "epochs", "rows_per_second", "weights", "state")


@dataclass(frozen=True)
class Search:
    """A study to search, and where its trials go."""

    study: Study
    values: Mapping[str, Any]
    folder: Path
    stem: str

    @property
    def section(self) -> TuneSection:
        """The study's ``[tune]``."""
        assert self.study.tune is not None
        return self.study.tune

    def with_options(self, options: Mapping[str, Any], *, budget: bool = True) -> dict[str, Any]:
        """Return the study with options put in, without ``[tune]``; with a trial's budget, or else the study's own."""
        values: dict[str, Any] = copy.deepcopy({k: v for k, v in self.values.items() if k != "tune"})
        for name, value in options.items():
            section, _, key = name.partition(".")
            values.setdefault(section, {})[key] = value
        if budget and (self.section.epochs or self.section.minutes):
            training = values.setdefault("training", {})
            for key in ("epochs", "steps", "minutes"):
                training.pop(key, None)
            training |= (
                {"epochs": self.section.epochs} if self.section.epochs else {"minutes": self.section.minutes}
            )
        return values


def read_search(study: str | Path, runs: str | Path = "runs", name: str | None = None) -> Search:
    """Read a study with ``[tune]``; see that every option that it may try is possible.

    Raises
    ------
    StudyError
        If there is no ``[tune]``, or an option or one of its values cannot be; before anything is fitted.
    """
    parsed, text = read_study(study)
    if parsed.tune is None:
        raise StudyError(
            f'{study} has no [tune]; expected one that says what to search, such as [tune.space] "flow.steps" = '
            "{low = 2, high = 8}"
        )
    path, folder = Path(study), Path(runs) / (name or f"{Path(study).stem}-tune")
    values = tomllib.loads(text)
    values["data"]["source"] = absolute_source(source_beside(parsed.data.source, path.parent))
    if parsed.training.start:
        values["training"]["start"] = str(
            find_start(parsed.training.start, path.parent, Path(runs)).resolve()
        )
    search = Search(parsed, values, folder, path.stem)
    corners = parsed.tune.corners()
    for architecture in corners.get("flow.architecture", [None]):
        first = {} if architecture is None else {"flow.architecture": architecture}
        for option, choices in corners.items():
            for value in choices if option != "flow.architecture" else [architecture]:
                where = f"{study}: [tune.space] {option} = {value!r}"
                parse_study(search.with_options({**first, option: value}), where=where)
    return search


def open_journal(search: Search, worker: int = 0) -> Journal:
    """Open the journal of a search; begin it if it is not there.

    Raises
    ------
    RunError
        If it holds another search, or its file system has no locks that work.
    MissingExtraError
        If Optuna is not installed.
    """
    try:
        search.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Could not make {search.folder}: {error.strerror or error}.") from error
    section = search.section
    journal = Journal(search.folder, search.stem, section, worker)
    budget = {"epochs": section.epochs, "minutes": section.minutes}
    space = {name: v if isinstance(v, list) else v.model_dump() for name, v in section.space.items()}
    facts = {"space": space, "sampler": section.sampler, "budget": budget, "study": search.with_options({})}
    journal.require_same(facts)
    return journal


def tune(
    study: str | Path,
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    workers: int = 1,
    worker: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Make the trials of a study's ``[tune]`` that are not made yet; return a row for each, the best first.

    Any number of processes on any number of machines may do so at once, over one folder.

    Parameters
    ----------
    study
        A study file with a section ``[tune]``.
    runs, name
        The folder of the search is ``runs/name``, by default ``runs/STUDY-tune``.
    workers
        Processes to share the trials on this machine, its cores divided among them.
    worker
        A number that tells this process from others that begin at the same moment.
    tell
        Called with a line as a trial begins and ends.

    Raises
    ------
    StudyError, DataError, RunError
        As :func:`fluvial.fit`.
    Terminated
        On SIGTERM or SIGUSR1; the same call goes on, in the trial that was interrupted.
    """
    search = read_search(study, runs, name)
    journal = open_journal(search, worker)
    with signals() as stop:
        stop.training_is_over()
        if workers > 1:
            _together(study, Path(runs), search.folder.name, workers)
        else:
            _work(search, journal, tell)
    return write_results(search, journal)


def _work(search: Search, journal: Journal, tell: Callable[[str], None]) -> None:
    while (trial := journal.claim()) is not None:
        shown = ", ".join(
            f"{short} {_text(trial.params[name])}" for name, short in short_names(search).items()
        )
        tell(f"trial {trial.number} of {search.section.number}: {shown}")
        try:
            loss = _make(search, journal, trial)
        except (KeyboardInterrupt, Terminated):
            journal.release(trial)
            raise
        except EndedEarly as error:
            journal.study.tell(trial.number, state=journal.optuna.trial.TrialState.PRUNED)
            tell(f"trial {trial.number}: {error}")
        except TrainingError as error:
            journal.study.tell(trial.number, state=journal.optuna.trial.TrialState.FAIL)
            tell(f"trial {trial.number} failed: {error}")
        except BaseException:
            journal.release(trial)
            raise
        else:
            journal.study.tell(trial.number, loss)
            tell(f"trial {trial.number}: {loss:.4f} nats; best so far {journal.study.best_value:.4f}, "
                 f"trial {journal.study.best_trial.number}")  # fmt: skip


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _make(search: Search, journal: Journal, trial: Any) -> float:
    """Fit a trial, or go on with it; return its best validation loss."""
    section, path = search.section, search.folder / trial.user_attrs["run"]
    known = journal.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    last = max(known, default=-1)
    pruning = section.pruner != "none"

    def watch(event: Any) -> None:
        nonlocal last
        if not (pruning and isinstance(event, EpochEvent)) or event.stopped:
            return
        step = int(POINTS * event.seconds / (60 * section.minutes)) if section.minutes else event.epoch
        if step > last:
            last = step
            trial.report(event.best_loss, step)
            if trial.should_prune():
                raise EndedEarly(f"pruned after {event.epoch} epochs, at {event.best_loss:.4f} nats")

    loss = finished_loss(path)
    if loss is None:
        if (path / RECORD).exists():
            resume(path, check=section.check, on_event=watch)
        else:
            study = search.with_options(trial.params)
            fit(study, runs=search.folder, name=path.name, check=section.check, on_event=watch)
        record = RunFolder.open(path).record()
        if record["status"] == "interrupted":
            raise KeyboardInterrupt
        loss = record["training"].get("best_loss")
    if loss is None:
        raise TrainingError("it reached no finite validation loss")
    return loss


def _together(study: str | Path, runs: Path, name: str, workers: int) -> None:
    """Run workers as processes of their own; pass signals on to them."""
    threads = max(1, torch.get_num_threads() // workers)
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [
        sys.executable,
        "-m",
        "fluvial",
        "tune",
        str(study),
        "--runs",
        str(runs),
        "--name",
        name,
        "--worker",
    ]
    children = [
        subprocess.Popen([*command, str(i)], env=os.environ | environment, start_new_session=True)
        for i in range(workers)
    ]
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in handled()}
    try:
        codes = [child.wait() for child in children]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        if received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(
            f"stopped by {signal.Signals(received[0]).name}; the same command goes on.", received[0]
        )
    if bad := [code for code in codes if code]:
        raise RunError(
            f"{len(bad)} of {workers} workers ended with exit code {bad[0]}; see what they said above. Trials that are "
            "made stay made: the same command goes on."
        )


def short_names(search: Search) -> dict[str, str]:
    """Return what to call each option in a table: without its section, where that is clear."""
    last = [name.partition(".")[2] for name in search.section.space]
    return {
        name: s if last.count(s) == 1 else name for name, s in zip(search.section.space, last, strict=True)
    }


def rows_of(search: Search, journal: Journal) -> list[dict[str, Any]]:
    """Return a row for each trial: its options, what was reached, how fast the loss fell, how long it took."""
    shorts = short_names(search)
    rows = []
    for trial in journal.study.get_trials(deepcopy=False):
        path = search.folder / trial.user_attrs.get("run", "")
        of_run = result_row(RunFolder(path)) if (path / RECORD).exists() else {}
        options = {short: trial.params.get(name) for name, short in shorts.items()}
        row = {
            "trial": trial.number,
            **options,
            **{name: of_run.get(name) for name in SHOWN if name != "state"},
        }
        rows.append({**row, "state": trial.state.name.lower(), "run": str(path)})
    return sorted(
        rows, key=lambda r: (r["state"] != "complete", r["best_loss"] is None, r["best_loss"] or 0.0)
    )


def columns_of(search: Search) -> list[str]:
    """Return the columns of the table of trials."""
    return ["trial", *short_names(search).values(), *SHOWN]


def write_results(search: Search, journal: Journal) -> list[dict[str, Any]]:
    """Write the table, the figures and the best study of what has been tried so far; return the rows."""
    from fluvial.report.style import png
    from fluvial.report.tuning import importance_bars, parallel_coordinates

    rows, columns, folder = rows_of(search, journal), columns_of(search), search.folder
    for name, form in (("trials.txt", "text"), ("trials.tex", "latex")):
        write_atomically(folder / name, (formatted(rows, columns, form, mark=True) + "\n").encode())
    done = [r for r in rows if r["state"] == "complete"]
    if not done:
        return rows
    write_atomically(folder / "best.toml", _best_text(search, journal, done[0]).encode())
    shorts = short_names(search)
    if importances := journal.importances():
        bars = {shorts[name]: value for name, value in importances.items()}
        write_atomically(folder / "importance.png", png(importance_bars(bars, len(done))))
    if len(done) > 1:
        log = [s for n, s in shorts.items() if getattr(search.section.space[n], "log", False)]
        even = [s for n, s in shorts.items() if isinstance(search.section.space[n], list)]
        options = {s: [r[s] for r in done] for s in shorts.values()}
        losses = [r["best_loss"] for r in done]
        write_atomically(folder / "parallel.png", png(parallel_coordinates(options, losses, log, even)))
    return rows


def _best_text(search: Search, journal: Journal, row: Mapping[str, Any]) -> str:
    best = next(t for t in journal.study.get_trials(deepcopy=False) if t.number == row["trial"])
    head = (
        f"# {search.stem}.toml with the best options of {len(journal.study.get_trials(deepcopy=False))} trials: trial "
        f"{best.number}, validation −log p {best.value:.4f} nats per row.\n"
        "# The training budget is that of the study, not of the trials.\n\n"
    )
    return head + tomli_w.dumps(search.with_options(best.params, budget=False))
