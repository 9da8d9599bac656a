"""The training loop: it learns, keeps its best weights, ends when told, and gives up with words."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fluvial.data.stream import Batches
from fluvial.flows import MAF
from fluvial.train import EpochEvent, StepEvent, TrainingOptions, train
from fluvial.train.loop import MOST_SKIPPED_IN_A_ROW, TrainingError, mean_loss


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return x = 1.5 c + 0.5 ε and c: the entropy of x given c is ½ log(2πe/4)."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(n, 1, generator=generator)
    return 1.5 * c + 0.5 * torch.randn(n, 1, generator=generator), c


ENTROPY = 0.5 * math.log(2 * math.pi * math.e * 0.25)
TRAIN, VALIDATION = rows(1500, 1), rows(1000, 2)


def flow(seed: int = 0) -> MAF:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MAF(1, 1, steps=1, width=16, depth=1)


def run(model: MAF, *, stop=lambda: None, batch_size: int = 100, seed: int = 0, table=TRAIN, **options):
    batches = Batches(*table, batch_size=batch_size, seed=seed)
    return list(train(model, batches, VALIDATION, TrainingOptions(**options), stop=stop))


def epochs(events: list[StepEvent | EpochEvent]) -> list[EpochEvent]:
    return [e for e in events if isinstance(e, EpochEvent)]


def test_it_learns_a_known_density() -> None:
    model = flow()
    before = mean_loss(model, *VALIDATION)
    last = epochs(run(model, epochs=12, learning_rate=1e-2))[-1]
    after = mean_loss(model, *VALIDATION)
    assert before > ENTROPY + 0.5
    assert abs(after - ENTROPY) < 0.06  # the standard error of the mean over 1000 rows is 0.02
    assert last.stopped == "budget: 12 epochs"


def test_events_count_steps_rows_and_epochs() -> None:
    events = run(flow(), epochs=3)
    steps = [e for e in events if isinstance(e, StepEvent)]
    assert len(steps) == 3 * 15
    assert steps[-1].rows == 4500
    assert [e.epoch for e in epochs(events)] == [1, 2, 3]
    progress = [s.progress for s in steps]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert [e.stopped for e in epochs(events)] == [None, None, "budget: 3 epochs"]


def test_the_best_weights_are_what_is_left() -> None:
    model = flow()
    found = epochs(run(model, epochs=8, learning_rate=1.5, schedule="constant"))
    best = min(found, key=lambda e: e.validation_loss)
    last = found[-1]
    assert (
        last.validation_loss > best.validation_loss
    )  # such a learning rate does harm; else this shows nothing
    assert (last.best_epoch, last.best_loss) == (best.epoch, best.validation_loss)
    assert mean_loss(model, *VALIDATION) == best.validation_loss
    assert [e.improved for e in found] == [
        e.validation_loss == min(f.validation_loss for f in found[: i + 1]) for i, e in enumerate(found)
    ]


def test_the_same_seeds_give_the_same_weights() -> None:
    def weights(init: int, order: int) -> Tensor:
        model = flow(init)
        run(model, epochs=2, seed=order)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(0, 0), weights(0, 0))
    assert not torch.equal(weights(0, 0), weights(0, 1))
    assert not torch.equal(weights(0, 0), weights(1, 0))


def test_patience_ends_training() -> None:
    found = epochs(run(flow(), epochs=500, learning_rate=3e-2, patience=3))
    last = found[-1]
    assert last.epoch < 500
    assert last.epoch - last.best_epoch == 3
    assert last.stopped == "early: no better validation loss for 3 epochs"


def test_minutes_end_training_within_an_epoch() -> None:
    events = run(flow(), epochs=None, minutes=1e-9)
    assert len(events) == 2
    assert epochs(events)[0].stopped == "budget: 1e-09 minutes"


def test_whichever_budget_ends_first() -> None:
    assert epochs(run(flow(), epochs=1, minutes=100.0))[-1].stopped == "budget: 1 epochs"
    assert epochs(run(flow(), epochs=10**6, minutes=1e-3))[-1].stopped == "budget: 0.001 minutes"


def test_a_stop_is_obeyed_at_the_next_step() -> None:
    count = itertools.count(1)
    events = run(flow(), epochs=50, stop=lambda: "told to" if next(count) == 20 else None)
    assert sum(isinstance(e, StepEvent) for e in events) == 20
    assert epochs(events)[-1].stopped == "told to"
    assert epochs(events)[-1].epoch == 2


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_schedule(schedule: str) -> None:
    found = epochs(run(flow(), epochs=20, learning_rate=1e-3, schedule=schedule, warmup=0.1))
    rates = [e.learning_rate for e in found]
    assert rates[0] < 1e-3  # it rises first
    assert max(rates) <= 1e-3
    if schedule == "cosine":
        assert rates[-1] < 0.01 * max(rates)
        assert rates[3:] == sorted(rates[3:], reverse=True)
    else:
        assert rates[3:] == [1e-3] * 17


def test_a_row_that_is_not_finite_skips_its_step_and_no_other() -> None:
    x, c = TRAIN[0].clone(), TRAIN[1]
    x[7] = math.nan
    found = epochs(run(flow(), epochs=3, table=(x, c)))
    assert [e.skipped_steps for e in found] == [1, 2, 3]
    assert all(math.isfinite(e.train_loss) and math.isfinite(e.validation_loss) for e in found)


def test_it_gives_up_with_words_and_finite_weights() -> None:
    model = flow()
    x = torch.full_like(TRAIN[0], math.nan)
    with pytest.raises(
        TrainingError, match=rf"epoch 1: {MOST_SKIPPED_IN_A_ROW} steps in a row.*learning_rate"
    ):
        run(model, epochs=5, batch_size=10, table=(x, TRAIN[1]))
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_loss_that_is_not_finite_is_infinite() -> None:
    x = VALIDATION[0].clone()
    x[3] = math.nan
    assert mean_loss(flow(), x, VALIDATION[1]) == math.inf
