"""The training loop: maximum likelihood (or the flow's own loss), read top to bottom.

It yields an event after every step and every epoch and knows nothing of files, progress bars or signals: whoever
consumes the events saves, draws and stops. Its state can be had after any event, and a loop that is given it goes on as
if it had never ended, bit for bit on the same kind of machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from fluvial.data.stream import BatchSource
from fluvial.errors import RunError
from fluvial.flows.flow import AbstractFlow
from fluvial.train import finder
from fluvial.train.checkpoint import Checkpoint, named
from fluvial.train.distributed import Group
from fluvial.train.metrics import Conditioning, by_weight, mean_loss
from fluvial.train.optim import (
    Average,
    batches_in_a_step,
    copy_of,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    rate_factor,
)
from fluvial.train.options import EpochEvent, StepEvent, TrainingError, TrainingOptions
from fluvial.train.stopping import GAIN_EPOCHS, Place, early, progress, spent
from fluvial.train.trouble import diagnose, diverged

#: Steps in a row without a finite loss and gradient after which training goes back to where all was well.
MOST_SKIPPED_IN_A_ROW = 20
#: What the learning rate is multiplied by then, and on a plateau.
AFTER_ROLLBACK, AFTER_PLATEAU = 0.3, 0.5


def train(
    flow: AbstractFlow,
    batches: BatchSource,
    validation: tuple[Tensor, Tensor],
    options: TrainingOptions,
    *,
    seed: int = 0,
    stop: Callable[[], str | None] = lambda: None,
) -> Iterator[StepEvent | EpochEvent]:
    """Train a flow in place; yield events; at the end the flow holds its *best* weights. See :class:`Trainer`."""
    yield from Trainer(flow, batches, validation, options, seed=seed, stop=stop).run()


class Trainer:
    """One fit: what it trains, on what, and where it stands.

    Parameters
    ----------
    flow : AbstractFlow
        Over standardised columns; changed in place.
    batches : BatchSource
        Training rows (targets, context).
    validation : tuple[Tensor, Tensor]
        Targets ``[n, D]`` and context ``[n, C]`` that decide which weights are best.
    options : TrainingOptions
        Budget, optimiser, and what else ends training.
    seed : int
        For flows that draw random numbers in training (dropout, losses of their own): it fixes those of every step.
    stop : callable
        Asked after every step; a text ends training there, with that text as the reason.
    group : Group
        The processes that train together; this one alone by default.
    weighted : bool
        Whether the last column of the context, in ``batches`` and ``validation``, is the weight of the row: what it adds
        to the loss is multiplied by it.
    """

    def __init__(
        self,
        flow: AbstractFlow,
        batches: BatchSource,
        validation: tuple[Tensor, Tensor],
        options: TrainingOptions,
        *,
        seed: int = 0,
        stop: Callable[[], str | None] = lambda: None,
        group: Group | None = None,
        weighted: bool = False,
    ):
        self.flow, self.batches, self.validation, self.options = flow, batches, validation, options
        self.weighted = weighted
        self.seed, self.stop, self.group = seed, stop, group or Group()
        self.place = Place()
        self.device = validation[0].device
        self.optimizer = make_optimizer(flow.parameters(), options, finder.FALLBACK)
        self.average = Average(flow, options.ema) if options.ema else None
        self.conditioning = Conditioning(validation[0], *self._parted(validation[1]))
        self.best = copy_of(flow)
        self.compile_seconds: float | None = None  # of the first step, compilation included
        self.search_seconds: float | None = None  # for the learning rate, if it was searched for
        self._generator = torch.Generator(self.device)
        self._held: dict[str, Tensor] | None = None
        self._sound, self._is_sound = self._tensors(), True
        self._since = time.perf_counter()
        self._before = 0.0

    # --- the loop ----------------------------------------------------------------------------------------

    def run(self) -> Iterator[StepEvent | EpochEvent]:
        """Train until the budget is spent, or something else ends it; yield events.

        At the end the flow holds its best weights.

        Raises
        ------
        TrainingError
            If the loss stays non-finite although the learning rate was lowered several times.
        LostProcess
            If another process of the group is gone.
        """
        self._since, self._before = time.perf_counter(), self.place.seconds
        self.group.share(self.flow)
        with self._precision(), self._compiled() if self.options.compile else nullcontext():
            if self.place.rate is None:
                self.place.rate = self._learning_rate()
            # A budget that is spent in mid-epoch leaves that epoch to be measured.
            reason = self.place.stopped or (self._spent() if self.place.ended else None)
            while reason is None:
                event = yield from self._epoch()
                reason = event.stopped
                with self._showing(self.best) if reason or self.average else nullcontext():
                    yield event
        self.flow.load_state_dict(self.best)

    def _epoch(self) -> Generator[StepEvent, None, EpochEvent]:
        """Train one epoch, or the rest of one; measure; return its event."""
        place, began = self.place, time.perf_counter()
        if place.ended:
            place.merged = batches_in_a_step(self.options.batch_growth, self._progress())
            place.epoch, place.batch, place.ended = place.epoch + 1, 0, False
            place.loss_total, place.loss_rows, place.batch_rows = 0.0, 0, 0
        self.flow.train()
        rows, reason = place.rows, self._spent()
        for x, context, used in (
            () if reason else _merged(self.batches, place.epoch, place.batch, place.merged)
        ):
            place.rate_now = self._rate()
            loss, stop = self._step(x, context, place.rate_now, place.steps)
            self._count(loss, x, context, used)
            yield StepEvent(
                place.epoch,
                place.rows,
                loss if math.isfinite(loss) else None,
                self._progress(),
                place.seconds,
                stop,
            )
            reason = stop or self._spent()
            if reason is not None:
                break
        pace = (place.rows - rows) / max(time.perf_counter() - began, 1e-9)
        return self._measure(reason, pace)

    def _step(self, x: Tensor, context: Tensor, rate: float, number: int) -> tuple[float, str | None]:
        """Take one step down the loss, unless loss or gradient are not finite.

        Return the loss, NaN if the step was not taken, and whether one should stop.
        """
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        context, weight = self._parted(context)
        mine = self.group.piece(len(x))
        share = (mine.stop - mine.start) / len(x)
        loss = x.new_zeros(())
        if share:
            with self._randomness(number):
                weights = None if weight is None else weight[mine]
                loss = share * self.flow.backward(
                    x[mine], context[mine], weight=weights, generator=self._generator
                )
        if self.options.compile and self.compile_seconds is None:
            self.compile_seconds = time.perf_counter() - began
        stop = self.stop()
        facts = x.new_tensor([0.0, self._seconds() if self.group.writes else 0.0, float(stop is not None)])
        facts[0] = loss
        parameters = list(self.flow.parameters())
        facts = self.group.total_gradients(parameters, share, facts)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.options.clip)
        value, seconds, stops, size = torch.cat([facts, norm[None]]).tolist()
        self.place.seconds = self._seconds() if self.group.size == 1 else seconds
        if stops and stop is None:
            stop = "interrupted in another process"
        if not (math.isfinite(value) and math.isfinite(size)):
            return math.nan, stop
        self.optimizer.step()
        if self.average and number >= 0:  # not while the learning rate is searched
            self.average.update(number)
        return value, stop

    def _count(self, loss: float, x: Tensor, context: Tensor, used: int) -> None:
        """Write a step down in the place; where too many were not finite, go back to where all was well."""
        place = self.place
        place.batch, place.steps, place.rows = used, place.steps + 1, place.rows + len(x)
        place.batch_rows = max(place.batch_rows, len(x))
        if math.isfinite(loss):
            place.loss_total += loss * len(x)
            place.loss_rows += len(x)
            place.skipped_in_a_row = 0
            return
        place.skipped += 1
        place.skipped_in_a_row += 1
        if place.skipped_in_a_row < MOST_SKIPPED_IN_A_ROW:
            return
        if place.rollbacks >= self.options.rollbacks:
            diagnosis = diagnose(self.flow, x, self._parted(context)[0])
            self.flow.load_state_dict(self.best)
            raise TrainingError(diverged(place, diagnosis), diagnosis)
        self._restore(self._sound)
        place.rollbacks += 1
        place.skipped_in_a_row = 0
        place.rate_scale *= AFTER_ROLLBACK

    def _measure(self, reason: str | None, pace: float) -> EpochEvent:
        """Measure on the validation rows, decide whether these are the best weights and whether to stop; tell."""
        place, options = self.place, self.options
        average = self.average.state_dict() if self.average else None
        with self._showing(average) if average else nullcontext():
            if self.flow.calibrated:
                self.flow.eval()
                with torch.no_grad():
                    x, context = self.validation
                    context, weight = self._parted(context)
                    rows = slice(None) if weight is None else by_weight(weight, len(weight))
                    self.flow.calibrate(x[rows], context[rows])
            train_loss = place.loss_total / place.loss_rows if place.loss_rows else math.nan
            if not self.flow.loss_is_nll:
                train_loss = self._mean_loss(*self._first_rows())
            loss = self._mean_loss(*self.validation)
            conditioning = self._conditioning()
            # Not before: while others are asked for their part, this process may find that they are gone.
            place.ended = place.batch == len(self.batches)
            metric = loss if options.metric == "loss" else conditioning
            improved = metric < place.best_metric
            if improved:
                self.best = copy_of(self.flow)
                place.best_epoch, place.best_loss, place.best_metric = place.epoch, loss, metric
                place.waiting_from = place.epoch
        if math.isfinite(loss):
            place.history = [*place.history, [place.seconds, loss]][-GAIN_EPOCHS:]
        place.stopped = self._spent() or early(place, options)
        reason = reason or place.stopped
        waited = place.epoch - place.waiting_from
        if options.schedule == "plateau" and waited and waited % options.plateau_epochs == 0:
            place.rate_scale *= AFTER_PLATEAU
        self._is_sound = math.isfinite(loss) and not place.skipped_in_a_row
        if self._is_sound:
            self._sound = self._tensors()
        return EpochEvent(
            epoch=place.epoch,
            steps=place.steps,
            seconds=place.seconds,
            rows=place.rows,
            rows_per_second=pace,
            train_loss=train_loss,
            validation_loss=loss,
            conditioning=conditioning,
            learning_rate=place.rate_now,
            batch_rows=place.batch_rows,
            skipped_steps=place.skipped,
            rollbacks=place.rollbacks,
            improved=improved,
            best_epoch=place.best_epoch,
            best_loss=place.best_loss,
            stopped=reason,
        )

    def _mean_loss(self, x: Tensor, context: Tensor) -> float:
        context, weight = self._parted(context)
        return mean_loss(self.flow, x, context, weight=weight, group=self.group)

    def _parted(self, context: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the context and the weights that lie in its last column, if there are any."""
        return (context[:, :-1], context[:, -1]) if self.weighted else (context, None)

    # --- its parts ---------------------------------------------------------------------------------------

    def _progress(self) -> float:
        return progress(self.place, self.options, len(self.batches))

    def _spent(self) -> str | None:
        return spent(self.place, self.options, len(self.batches))

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._since

    def _rate(self) -> float:
        assert self.place.rate is not None
        options = self.options
        factor = rate_factor(options.schedule, self._progress(), warmup=options.warmup, cycles=options.cycles)
        return self.place.rate * self.place.rate_scale * factor

    def _learning_rate(self) -> float:
        """Return the learning rate of the options, or find one: a sweep that leaves flow and optimiser as they were."""
        options = self.options
        if options.learning_rate != "auto":
            return options.learning_rate
        budget = options.epochs * len(self.batches) if options.epochs else math.inf
        most = finder.SHARE * min(budget, options.steps or math.inf)
        steps = int(min(finder.STEPS, most))
        if steps < finder.LEAST_STEPS:
            return finder.FALLBACK
        began = time.perf_counter()
        self.flow.train()
        start, losses, tried, late = self._tensors(), [], finder.rates(steps), False
        for number, (rate, (x, context)) in enumerate(zip(tried, _endless(self.batches), strict=False)):
            loss, stop = self._step(x, context, rate, -1 - number)
            losses.append(loss)
            late = bool(options.minutes) and self.place.seconds > finder.SHARE * 60 * (options.minutes or 0)
            if stop or late or finder.over(losses):
                break
        self._restore(start)
        self.search_seconds = time.perf_counter() - began
        rate = finder.pick(tried, losses)
        # Where time ran out while the loss still fell, the sweep says no more than that the rate may be higher.
        return max(rate, finder.FALLBACK) if late and not finder.over(losses) else rate

    @contextmanager
    def _randomness(self, number: int) -> Iterator[None]:
        """Fix the random numbers of a step: the generator's and torch's own (dropout), which are then as they were."""
        seed = ((self.seed * 1_000_003 + number) * 1009 + self.group.rank) % 2**63
        self._generator.manual_seed(seed)
        cuda = [self.device] if self.device.type == "cuda" else []
        before = [torch.default_generator.get_state(), *map(torch.cuda.get_rng_state, cuda)]
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            torch.default_generator.set_state(before[0])
            if cuda:
                torch.cuda.set_rng_state(before[1], self.device)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Let the flow's conditioners multiply in the precision that is asked for."""
        self.flow.use_bf16(self.options.precision == "bf16")
        try:
            yield
        finally:
            self.flow.use_bf16(False)

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        """Let the flow's loss be compiled for a while."""
        vars(self.flow)["loss"] = torch.compile(self.flow.loss)
        try:
            yield
        finally:
            del vars(self.flow)["loss"]

    def _first_rows(self) -> tuple[Tensor, Tensor]:
        """Return the first training rows of the epoch, as many as are enough for the flow."""
        most, parts, held = self.flow.validation_rows or 2000, [], 0
        for x, context in self.batches.epoch(self.place.epoch):
            parts.append((x[: most - held], context[: most - held]))
            held += len(parts[-1][0])
            if held >= most:
                break
        return torch.cat([x for x, _ in parts]), torch.cat([c for _, c in parts])

    def _conditioning(self) -> float:
        mine = self.conditioning(self.flow) if self.group.writes else 0.0
        return float(self.group.total(torch.tensor([mine], dtype=torch.float64)))

    # --- its state ---------------------------------------------------------------------------------------

    def state(self) -> Checkpoint:
        """Return all that a new trainer of the same study needs to go on from here, to be had after any event."""
        tensors = self._tensors() | named("best", self.best)
        if not (self.place.ended and self._is_sound):  # where a rollback would go, if not here
            tensors |= named("sound", self._sound)
        numbers = {**self.place.to_json(), "seconds": self._seconds()}
        return Checkpoint(tensors, {"place": numbers})

    def load(self, checkpoint: Checkpoint, *, further: bool = False) -> None:
        """Go on from a state; ``further``, if training was over: epochs without improvement are counted from here.

        Raises
        ------
        RunError
            If it is not that of such a flow.
        """
        try:
            self._restore(checkpoint.tensors)
            self.place = Place.from_json(checkpoint.numbers["place"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"The checkpoint is not that of this study's flow and optimiser ({reason}). Was study.toml edited? "
                "Restore it, or fit again."
            ) from error
        self.best = checkpoint.part("best")
        self._sound, self._is_sound = checkpoint.part("sound") or self._tensors(), True
        if further:
            self.place.waiting_from, self.place.stopped = self.place.epoch, None

    def _tensors(self) -> dict[str, Tensor]:
        """Return copies of the weights in training, of their averages, and of what the optimiser remembers."""
        weights = self._held if self._held is not None else copy_of(self.flow)
        tensors = named("flow", weights) | named("optimizer", optimizer_tensors(self.optimizer))
        if self.average:
            tensors |= named("average", {n: w.clone() for n, w in self.average.weights.items()})
        return tensors

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        kept = Checkpoint(tensors, {})
        self.flow.load_state_dict(kept.part("flow"))
        self.optimizer.state.clear()
        load_optimizer(self.optimizer, kept.part("optimizer"))
        if self.average:
            self.average.load(kept.part("average"))

    @contextmanager
    def _showing(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Let the flow hold other weights for a while; :meth:`state` gives those in training all the same."""
        self._held = copy_of(self.flow)
        self.flow.load_state_dict(weights)
        try:
            yield
        finally:
            self.flow.load_state_dict(self._held)
            self._held = None


def _merged(
    batches: BatchSource, epoch: int, start: int, merged: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield an epoch from a batch on, several batches at a time; and how many batches of it have then been used."""
    used, parts = start, []
    for part in batches.epoch(epoch, start):
        used += 1
        parts.append(part)
        if len(parts) == merged or used == len(batches):
            x, context = parts[0] if len(parts) == 1 else (torch.cat(p) for p in zip(*parts, strict=True))
            parts = []
            yield x, context, used


def _endless(batches: BatchSource) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches for ever, of epochs that training does not use: 0, −1, …"""
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch -= 1
