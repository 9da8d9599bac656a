"""The training loop: maximum likelihood (or the flow's own loss), read top to bottom.

It yields an event after every step and every epoch and knows nothing of files, progress bars or signals: whoever
consumes the events saves, draws and stops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fluvial.data.stream import BatchSource
from fluvial.errors import FluvialError
from fluvial.flows.flow import AbstractFlow


class TrainingError(FluvialError):
    """Training cannot go on; the best weights so far are kept."""


@dataclass(frozen=True)
class TrainingOptions:
    """The budget and the optimiser; a study's ``[training]`` says what each means."""

    epochs: int | None = 100
    minutes: float | None = None
    learning_rate: float = 2e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.02
    weight_decay: float = 1e-4
    clip: float = 5.0
    patience: int | None = None


@dataclass(frozen=True)
class StepEvent:
    """One optimiser step: where training stands. The loss is the flow's own: for most −log p, in nats."""

    epoch: int
    rows: int
    loss: float | None
    progress: float
    seconds: float


@dataclass(frozen=True)
class EpochEvent:
    """One epoch: losses are the mean of −log p per row, in nats, over standardised targets.

    For a flow whose own loss is something else, ``train_loss`` is that of the epoch's first rows at its end.
    """

    epoch: int
    seconds: float
    rows: int
    rows_per_second: float
    train_loss: float
    validation_loss: float
    learning_rate: float
    skipped_steps: int
    improved: bool
    best_epoch: int
    best_loss: float
    stopped: str | None


#: Steps in a row without a finite loss and gradient after which training gives up.
MOST_SKIPPED_IN_A_ROW = 50


def train(
    flow: AbstractFlow,
    batches: BatchSource,
    validation: tuple[Tensor, Tensor],
    options: TrainingOptions,
    *,
    seed: int = 0,
    stop: Callable[[], str | None] = lambda: None,
) -> Iterator[StepEvent | EpochEvent]:
    """Train a flow in place; yield events; at the end the flow holds its *best* weights.

    Parameters
    ----------
    flow : AbstractFlow
        Over standardised columns; changed in place.
    batches : BatchSource
        Training rows (targets, context).
    validation : tuple[Tensor, Tensor]
        Targets ``[n, D]`` and context ``[n, C]`` whose mean −log p decides which weights are best.
    options : TrainingOptions
        Budget and optimiser.
    seed : int
        For flows whose loss draws random numbers: the draws of every epoch are fixed by it.
    stop : callable
        Asked after every step; a text ends training there, with that text as the reason.

    Raises
    ------
    TrainingError
        If the loss stays non-finite.
    """
    optimizer = torch.optim.AdamW(
        flow.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    clock = _Clock(options, len(batches))
    best_loss, best_epoch, best_weights = math.inf, 0, _copy(flow)
    rows = skipped = skipped_in_a_row = 0
    epoch = 0
    reason: str | None = None
    while reason is None:
        epoch += 1
        flow.train()
        total, counted, rows_before, began, rate = 0.0, 0, rows, time.perf_counter(), 0.0
        generator = torch.Generator(validation[0].device).manual_seed((seed * 1_000_003 + epoch) % 2**63)
        first = _FirstRows(0 if flow.loss_is_nll else flow.validation_rows or 2000)
        for x, context in batches.epoch(epoch):
            rate = options.learning_rate * clock.factor()
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, finite = _step(flow, optimizer, x, context, options.clip, generator)
            first.add(x, context)
            clock.tick()
            rows += len(x)
            if finite:
                total, counted, skipped_in_a_row = total + loss * len(x), counted + len(x), 0
            else:
                skipped, skipped_in_a_row = skipped + 1, skipped_in_a_row + 1
                if skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
                    flow.load_state_dict(best_weights)
                    raise TrainingError(_diverged(epoch, skipped_in_a_row, rate, x))
            yield StepEvent(epoch, rows, loss if finite else None, clock.progress(), clock.seconds())
            reason = stop() or (clock.ended() if clock.by_time else None)
            if reason is not None:
                break
        pace = (rows - rows_before) / (time.perf_counter() - began)
        train_loss = total / counted if counted else math.nan
        if not flow.loss_is_nll:
            train_loss = mean_loss(flow, *first.rows())
        validation_loss = mean_loss(flow, *validation)
        improved = validation_loss < best_loss
        if improved:
            best_loss, best_epoch, best_weights = validation_loss, epoch, _copy(flow)
        reason = reason or clock.ended()
        if reason is None and options.patience is not None and epoch - best_epoch >= options.patience:
            reason = f"early: no better validation loss for {options.patience} epochs"
        if reason is not None:
            flow.load_state_dict(best_weights)
        yield EpochEvent(
            epoch=epoch,
            seconds=clock.seconds(),
            rows=rows,
            rows_per_second=pace,
            train_loss=train_loss,
            validation_loss=validation_loss,
            learning_rate=rate,
            skipped_steps=skipped,
            improved=improved,
            best_epoch=best_epoch,
            best_loss=best_loss,
            stopped=reason,
        )


def _step(
    flow: AbstractFlow,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    context: Tensor,
    clip: float,
    generator: torch.Generator,
) -> tuple[float, bool]:
    """Take one step down the flow's loss, unless loss or gradient are not finite; return the loss and whether so."""
    optimizer.zero_grad(set_to_none=True)
    loss = flow.backward(x, context, generator=generator)
    norm = torch.nn.utils.clip_grad_norm_(flow.parameters(), clip)
    value = float(loss)
    if not (math.isfinite(value) and math.isfinite(float(norm))):
        return value, False
    optimizer.step()
    return value, True


def mean_loss(flow: AbstractFlow, x: Tensor, context: Tensor, *, chunk: int = 4096) -> float:
    """Return the mean of −log p(x | context) over all rows, in nats; ``inf`` where it is not finite."""
    flow.eval()
    total = 0.0
    with torch.no_grad():
        for a, b in zip(x.split(chunk), context.split(chunk), strict=True):
            total -= float(flow(b).log_prob(a).double().sum())
    mean = total / len(x)
    return mean if math.isfinite(mean) else math.inf


class _FirstRows:
    """The first rows of an epoch, up to a number."""

    def __init__(self, most: int):
        self.most = most
        self.held = 0
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, context: Tensor) -> None:
        left = self.most - self.held
        if left > 0:
            self.parts.append((x[:left], context[:left]))
            self.held += len(self.parts[-1][0])

    def rows(self) -> tuple[Tensor, Tensor]:
        return torch.cat([x for x, _ in self.parts]), torch.cat([c for _, c in self.parts])


class _Clock:
    """How far the budget is spent, in [0, 1]: of epochs, of minutes, or of whichever is further on."""

    def __init__(self, options: TrainingOptions, steps_per_epoch: int):
        self.options = options
        self.steps = 0
        self.step_limit = options.epochs * steps_per_epoch if options.epochs else None
        self.start = time.perf_counter()

    def tick(self) -> None:
        self.steps += 1

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def by_time(self) -> bool:
        return self.options.minutes is not None

    def progress(self) -> float:
        by_steps = self.steps / self.step_limit if self.step_limit else 0.0
        by_time = self.seconds() / (60 * self.options.minutes) if self.options.minutes else 0.0
        return min(max(by_steps, by_time), 1.0)

    def factor(self) -> float:
        """Return the factor on the learning rate: a linear rise, then constant or half a cosine to zero."""
        progress, warmup = self.progress(), self.options.warmup
        if progress < warmup:
            return max(progress / warmup, 0.01)
        if self.options.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-9)))

    def ended(self) -> str | None:
        if self.options.minutes and self.seconds() >= 60 * self.options.minutes:
            return f"budget: {self.options.minutes:g} minutes"
        if self.step_limit and self.steps >= self.step_limit:
            return f"budget: {self.options.epochs} epochs"
        return None


def _copy(flow: AbstractFlow) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in flow.state_dict().items()}


def _diverged(epoch: int, steps: int, rate: float, x: Tensor) -> str:
    extreme = int(x.abs().amax(0).argmax())
    return (
        f"Training stopped in epoch {epoch}: {steps} steps in a row gave no finite loss or gradient, at learning rate "
        f"{rate:.2g}. The best weights so far are kept. Target number {extreme + 1} reaches "
        f"{float(x.abs().max()):.3g} standard deviations; try a smaller [training] learning_rate, or another transform "
        f"for that column."
    )
