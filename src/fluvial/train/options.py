"""What training is told, and what it tells: options, events and errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fluvial.errors import FluvialError

Precision = Literal["float32", "bf16"]
Schedule = Literal["cosine", "constant", "cosine-restarts", "one-cycle", "plateau"]
Metric = Literal["loss", "conditioning"]


class TrainingError(FluvialError):
    """Training cannot go on; the best weights so far are kept.

    Attributes
    ----------
    diagnosis : Diagnosis or None
        The rows and the columns that are to blame, as far as they can be told.
    """

    def __init__(self, message: str, diagnosis: Diagnosis | None = None):
        super().__init__(message)
        self.diagnosis = diagnosis


@dataclass(frozen=True)
class Diagnosis:
    """What was wrong with a batch that gave no finite loss or gradient.

    Attributes
    ----------
    role, column : str, int
        ``target`` or ``context``, and the number from 0 of the column that is furthest out in the rows below.
    x, context : Tensor
        Standardised targets ``[k, D]`` and context ``[k, C]`` of the rows to blame: those that are not finite, or whose
        log-density is not, or failing both the one that lies furthest out.
    """

    role: Literal["target", "context"]
    column: int
    x: Tensor
    context: Tensor


@dataclass(frozen=True)
class TrainingOptions:
    """The budget, the optimiser and what ends training; a study's ``[training]`` says what each means."""

    epochs: int | None = 100
    steps: int | None = None
    minutes: float | None = None
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float | Literal["auto"] = 2e-3
    schedule: Schedule = "cosine"
    warmup: float = 0.02
    cycles: int = 4
    plateau_epochs: int = 5
    weight_decay: float = 1e-4
    clip: float = 5.0
    ema: float | None = None
    batch_growth: int = 1
    metric: Metric = "loss"
    patience: int | None = None
    least_gain: float | None = None
    rollbacks: int = 3
    precision: Precision = "float32"
    compile: bool = False


@dataclass(frozen=True)
class StepEvent:
    """One optimiser step: where training stands. The loss is the flow's own: for most −log p, in nats.

    ``interrupted`` says who asked training to end here; from what :meth:`Trainer.state` gives now, before the epoch that
    was cut short is validated, training goes on as if nothing had happened.
    """

    epoch: int
    rows: int
    loss: float | None
    progress: float
    seconds: float
    interrupted: str | None = None


@dataclass(frozen=True)
class EpochEvent:
    """One epoch: losses are the mean of −log p per row, in nats, over standardised targets.

    For a flow whose own loss is something else, ``train_loss`` is that of the epoch's first rows at its end.
    ``conditioning`` is explained in :mod:`fluvial.train.metrics`; the options' ``metric`` says which decides.
    """

    epoch: int
    steps: int
    seconds: float
    rows: int
    rows_per_second: float
    train_loss: float
    validation_loss: float
    conditioning: float
    learning_rate: float
    batch_rows: int
    skipped_steps: int
    rollbacks: int
    improved: bool
    best_epoch: int
    best_loss: float
    stopped: str | None
