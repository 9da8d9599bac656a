"""Where training stands, how much of its budget is spent, and what else ends it: functions of numbers alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fluvial.train.options import TrainingOptions

#: Epochs over which the rate of loss change is measured.
GAIN_EPOCHS = 10


@dataclass
class Place:
    """Where training stands: every number (as opposed to tensor) that decides what the next step does.

    Attributes
    ----------
    epoch : int
        The epoch that is going on, or the last that ended.
    batch : int
        Batches of the stream used in it.
    ended : bool
        Whether that epoch is over, its measurements included.
    merged, batch_rows, rate_now : int, int, float
        How many batches make one step in this epoch, the rows of its largest step, and the last learning rate.
    rate, rate_scale : float
        The highest learning rate (given, or found), and what plateaus and rollbacks have made of it.
    seconds : float
        Time spent in training so far, in this process and in those before.
    stopped : str or None
        Why training is over, if it is: a budget, or one of the rules that end it early.
    history : list
        ``[seconds, validation loss]`` of the last epochs.
    """

    epoch: int = 0
    batch: int = 0
    ended: bool = True
    merged: int = 1
    batch_rows: int = 0
    rate_now: float = 0.0
    steps: int = 0
    rows: int = 0
    loss_total: float = 0.0
    loss_rows: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    rate: float | None = None
    rate_scale: float = 1.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_loss: float = math.inf
    best_metric: float = math.inf
    waiting_from: int = 0
    stopped: str | None = None
    history: list[list[float]] = field(default_factory=list)

    def batches(self, per_epoch: int) -> int:
        """Return the batches used since the start."""
        return self.epoch * per_epoch if self.ended else (self.epoch - 1) * per_epoch + self.batch

    @property
    def whole_epochs(self) -> int:
        """Epochs that have ended."""
        return self.epoch if self.ended else self.epoch - 1

    def to_json(self) -> dict[str, Any]:
        """Return the numbers; infinity, which JSON lacks, as ``None``."""
        return {k: None if v == math.inf else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Place:
        """Inverse of :meth:`to_json`; raises ``KeyError`` if a number is missing."""
        numbers: dict[str, Any] = {f.name: value[f.name] for f in fields(cls)}
        for name in ("best_loss", "best_metric"):
            if numbers[name] is None:
                numbers[name] = math.inf
        return cls(**numbers)


def progress(place: Place, options: TrainingOptions, batches_per_epoch: int) -> float:
    """Return the share of the budget that is spent: of epochs, steps or minutes, whichever is furthest on.

    >>> progress(Place(epoch=3, batch=5, ended=False), TrainingOptions(epochs=10), 10)
    0.25
    """
    shares = [0.0]
    if options.epochs:
        shares.append(place.batches(batches_per_epoch) / (options.epochs * batches_per_epoch))
    if options.steps:
        shares.append(place.steps / options.steps)
    if options.minutes:
        shares.append(place.seconds / (60 * options.minutes))
    return min(max(shares), 1.0)


def spent(place: Place, options: TrainingOptions, batches_per_epoch: int) -> str | None:
    """Return which budget is spent, if one is.

    >>> spent(Place(epoch=10), TrainingOptions(epochs=10), 10)
    'budget: 10 epochs'
    """
    if options.minutes and place.seconds >= 60 * options.minutes:
        return f"budget: {options.minutes:g} minutes"
    if options.steps and place.steps >= options.steps:
        return f"budget: {options.steps} steps"
    if options.epochs and place.batches(batches_per_epoch) >= options.epochs * batches_per_epoch:
        return f"budget: {options.epochs} epochs"
    return None


def early(place: Place, options: TrainingOptions) -> str | None:
    """Return why training should end after this epoch although its budget is not spent, if it should."""
    if options.patience is not None and place.epoch - place.waiting_from >= options.patience:
        what = "validation loss" if options.metric == "loss" else options.metric
        return f"early: no better {what} for {options.patience} epochs"
    if options.least_gain is not None and len(place.history) == GAIN_EPOCHS:
        gain = gain_rate(place.history)
        if gain < options.least_gain:
            return f"early: the loss falls by {gain:.2g} nats a second, less than {options.least_gain:g}"
    return None


def gain_rate(history: list[list[float]]) -> float:
    """Return how fast the validation loss falls, in nats a second: minus the slope of a straight line through the epochs.

    >>> gain_rate([[0.0, 5.0], [10.0, 4.0], [20.0, 3.0]])
    0.1
    """
    times, losses = [t for t, _ in history], [loss for _, loss in history]
    middle_t, middle_loss = math.fsum(times) / len(times), math.fsum(losses) / len(losses)
    spread = math.fsum((t - middle_t) ** 2 for t in times)
    slope = math.fsum((t - middle_t) * (loss - middle_loss) for t, loss in history)
    return -slope / spread if spread > 0 else math.inf
