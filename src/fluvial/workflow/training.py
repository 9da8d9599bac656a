"""Training as part of a run: rows to batches, events to files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fluvial.density import DENSITY_FILE, Density
from fluvial.errors import RunError
from fluvial.flows import graphed
from fluvial.flows.amortized import Amortized
from fluvial.loggers import Logger
from fluvial.record import RunFolder
from fluvial.study import Study
from fluvial.train import (
    CHECKPOINT,
    Checkpoint,
    EpochEvent,
    Group,
    LostProcess,
    StepEvent,
    Trainer,
    TrainingError,
    TrainingOptions,
    training_device,
)
from fluvial.train.options import Diagnosis
from fluvial.workflow.data import Rows, standardised, thinned
from fluvial.workflow.weights import with_weight

Event = StepEvent | EpochEvent | str

#: Writing checkpoints at the ends of epochs takes at most this share of the time.
CHECKPOINT_SHARE = 0.02


class Keeper:
    """Writes what a fit leaves as it goes: metrics, the best density, the record, checkpoints.

    A checkpoint is written when the last is ``minutes`` old, when training is interrupted, at its end, and at the end of
    an epoch unless that would take more than a fiftieth of the time.
    """

    def __init__(
        self,
        run: RunFolder,
        record: dict[str, Any],
        density: Density,
        minutes: float,
        loggers: Sequence[Logger],
    ):
        self.run, self.record, self.density = run, record, density
        self.seconds, self.loggers = 60 * minutes, loggers
        self.saved, self.cost = time.perf_counter(), 0.0

    def step(self, event: StepEvent, trainer: Trainer) -> None:
        """Keep what a step asks for: a checkpoint, if one is due or training ends here."""
        if event.interrupted or self._age() >= self.seconds:
            self.checkpoint(trainer)

    def epoch(self, event: EpochEvent, trainer: Trainer, *, interrupted: bool) -> None:
        """Keep an epoch; its losses are in nats per unit of the targets."""
        if event.improved:
            self.density.save_weights(self.run.path, epoch=event.epoch, validation_loss=event.validation_loss)
        self.run.append_metrics(vars(event))
        self.record["training"] = summary(event, trainer)
        self.record["timings"]["training"] = event.seconds
        if event.stopped:
            self.record["stopped"] = event.stopped
        self.run.write_record(self.record)
        for logger in self.loggers:
            logger.metrics(vars(event), event.epoch)
        # Interrupted, the checkpoint of the last step stands: it knows nothing of this epoch's early end.
        due = event.stopped or self._age() >= min(self.seconds, self.cost / CHECKPOINT_SHARE)
        if due and not interrupted:
            self.checkpoint(trainer)

    def checkpoint(self, trainer: Trainer) -> None:
        """Write a checkpoint now."""
        began = time.perf_counter()
        trainer.state().save(self.run.path / CHECKPOINT)
        self.saved = time.perf_counter()
        self.cost = self.saved - began

    def _age(self) -> float:
        return time.perf_counter() - self.saved


def train_density(
    density: Density,
    rows: Rows,
    study: Study,
    options: TrainingOptions,
    *,
    keeper: Keeper | None,
    group: Group,
    stop: Callable[[], str | None],
    tell: Callable[[Event], None],
    checkpoint: Checkpoint | None = None,
    further: bool = False,
) -> str | None:
    """Train a density, from a checkpoint if there is one; return what interrupted it, if anything did.

    Raises
    ------
    TrainingError
        If training cannot go on, with the column and the rows to blame as the table has them.
    LostProcess
        If another process is gone; a checkpoint has been written.
    """
    device = training_device(study.training.device, group.rank)
    trainer, logdets = _trainer(density, rows, study, options, device, group=group, stop=stop)
    if checkpoint is not None:
        trainer.load(checkpoint, further=further)
    interrupted = None
    try:
        for number, event in enumerate(trainer.run()):
            if number == 0:
                _tell_of_the_start(trainer, tell, found=checkpoint is None)
            if isinstance(event, StepEvent):
                interrupted = event.interrupted
                if keeper:
                    keeper.step(event, trainer)
            else:
                event = in_units(event, *logdets)
                if keeper:
                    keeper.epoch(event, trainer, interrupted=interrupted is not None)
            tell(event)
    except LostProcess:
        if keeper:  # between steps the weights are whole: nothing that was trained need be lost
            keeper.checkpoint(trainer)
        raise
    except TrainingError as error:
        if error.diagnosis is None:
            raise
        raise TrainingError(f"{error} {blame(error.diagnosis, density, rows)}", error.diagnosis) from error
    finally:
        density.flow.to("cpu")
        graphed.forget(density.flow)
    density.flow.eval()
    if keeper and interrupted is None and trainer.place.stopped:
        keeper.record["stopped"] = trainer.place.stopped  # also where nothing was left to train
    return interrupted


def _trainer(
    density: Density,
    rows: Rows,
    study: Study,
    options: TrainingOptions,
    device: torch.device,
    *,
    group: Group,
    stop: Callable[[], str | None],
) -> tuple[Trainer, tuple[float, float]]:
    """Return what trains a density, there, and the mean logdets of the transforms: of training and validation rows."""
    transforms = density.target_transforms, density.context_transforms
    measured = thinned(rows.split.validation, density.flow.validation_rows)
    validation, weight = rows.take(measured), None if rows.weight is None else rows.weight[measured]
    validation_x, validation_c, validation_logdet = standardised(validation, rows.schema, *transforms, weight)
    section = study.training
    size = section.batch_rows(rows.count("train"))
    batches, train_logdet = rows.batches(*transforms, size, section.seed, device=device)
    density.flow.to(device)
    trainer = Trainer(
        density.flow,
        batches,
        (validation_x.to(device), with_weight(validation_c, weight).to(device)),
        options,
        seed=section.seed,
        stop=stop,
        group=group,
        weighted=weight is not None,
    )
    return trainer, (train_logdet, validation_logdet)


def _tell_of_the_start(trainer: Trainer, tell: Callable[[Event], None], *, found: bool) -> None:
    if trainer.options.learning_rate == "auto" and found:
        seconds = trainer.search_seconds
        how = "the budget is too small for a search" if seconds is None else f"found in {seconds:.1f} s"
        tell(f"learning rate {trainer.place.rate:.2g}: {how}")
    if trainer.compile_seconds is not None:
        tell(f"compiled; the first step took {trainer.compile_seconds:.1f} s")
    if trainer.device.type == "cuda":
        tell(f"on {torch.cuda.get_device_name(trainer.device)}")
    elif torch.cuda.is_available():
        tell('there is a GPU that training could use: [training] device = "cuda"')
    if trainer.group.size > 1:
        tell(f"{trainer.group.size} processes of {torch.get_num_threads()} threads")


def in_units(event: EpochEvent, train_logdet: float, validation_logdet: float) -> EpochEvent:
    """Return the event with its losses in nats per unit of the targets: comparable whatever the transforms."""
    return replace(
        event,
        train_loss=event.train_loss - train_logdet,
        validation_loss=event.validation_loss - validation_logdet,
        best_loss=event.best_loss - validation_logdet,
    )


def summary(event: EpochEvent, trainer: Trainer) -> dict[str, Any]:
    """Return what a record says of training after an epoch."""
    return {
        "epochs": event.epoch,
        "steps": event.steps,
        "best_epoch": event.best_epoch,
        "best_loss": event.best_loss,
        "final_loss": event.validation_loss,
        "final_train_loss": event.train_loss,
        "conditioning": event.conditioning,
        "learning_rate": trainer.place.rate,
        "rows": event.rows,
        "rows_per_second": event.rows / event.seconds,
        "skipped_steps": event.skipped_steps,
        "rollbacks": event.rollbacks,
        "processes": trainer.group.size,
        "compile_seconds": trainer.compile_seconds,
    }


def blame(found: Diagnosis, density: Density, rows: Rows) -> str:
    """Return which column and which rows of the table a diagnosis is about, with their values in units."""
    transforms = density.target_transforms, density.context_transforms
    x, context, _ = standardised(rows.scalars("train"), rows.schema.without_arrays, *transforms)
    bad = torch.cat([found.x, found.context[:, : context.shape[1]]], 1).cpu()
    role = transforms[0] if found.role == "target" else transforms[1]
    if found.role == "context" and found.column >= context.shape[1]:
        return f"Column {_array_of(found.column - context.shape[1], density)}."
    name = role.coded_names[found.column]
    every = torch.cat([x, context], 1)
    numbers: list[int] = []
    for row in bad:
        same = ((every == row) | (every.isnan() & row.isnan())).all(1).nonzero()[:, 0]
        numbers += [int(rows.split.train[int(i)]) for i in same[:1]]
    listed = ", ".join(f"row {n}: {rows.table[name][n]:g}" for n in numbers)
    return f"Column {name}{f' ({listed}, counted from 0 in the rows that are used)' if listed else ''}."


def _array_of(number: int, density: Density) -> str:
    """Return the array column, and the place in it, of a number of all arrays side by side."""
    for column in density.schema.arrays:
        assert column.length is not None
        if number < column.length:
            return f"{column.name}[{number}]"
        number -= column.length
    raise AssertionError("no array has so many numbers")


def find_start(start: str, *folders: Path) -> Path:
    """Return the first folder of that name with a density, in one of some folders.

    Raises :class:`~fluvial.errors.RunError` if there is none.
    """
    for folder in folders:
        if (folder / start / DENSITY_FILE).is_file():
            return folder / start
    looked = " or ".join(dict.fromkeys(str(f / start) for f in folders))
    raise RunError(f"[training] start: expected a run at {looked}; found none.")


def start_from(density: Density, path: Path) -> str:
    """Take the weights of another run whose names and shapes agree; return one line that says how many.

    Between amortised flows (Gaussians and Gaussianization) the numbers of the first maps are taken too: a Gaussianization
    started from a full Gaussian is that Gaussian at first.

    Raises
    ------
    RunError
        If none agrees, or the columns differ.
    """
    other = Density.load(path)
    theirs, ours = other.schema, density.schema
    if (theirs.target_names, theirs.context_names) != (ours.target_names, ours.context_names):
        raise RunError(
            f"[training] start: {path} is of {other!r}; expected the columns of this study, "
            f"p({', '.join(ours.target_names)} | {', '.join(ours.context_names)})."
        )
    own, taken = density.flow.state_dict(), 0
    both = (getattr(f, "bijection", None) for f in (density.flow, other.flow))
    leading = all(isinstance(b, Amortized) for b in both)
    for name, tensor in other.flow.state_dict().items():
        mine = own.get(name)
        if mine is None or mine.dim() != tensor.dim():
            continue
        if mine.shape == tensor.shape:
            mine.copy_(tensor)
        elif leading and mine.dim() and len(tensor) < len(mine) and mine.shape[1:] == tensor.shape[1:]:
            mine[: len(tensor)].copy_(tensor)
        else:
            continue
        taken += 1
    if not taken:
        raise RunError(f"[training] start: no weights of {path} ({other.architecture}) fit this flow.")
    note = (
        ""
        if other.target_transforms.steps == density.target_transforms.steps
        else ("; its columns were standardised otherwise, so the starting density is not quite that one")
    )
    return f"starting from {path}: {taken} of {len(own)} tensors taken{note}"
