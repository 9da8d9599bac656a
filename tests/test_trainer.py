"""What training survives: its state goes on bit for bit, bad steps are skipped, rolled back, and in the end explained."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fluvial.data.stream import Batches
from fluvial.errors import RunError
from fluvial.flows import MAF, AbstractFlow, ContinuousFlow, CouplingSpline, DiagonalGaussian
from fluvial.train import (
    Checkpoint,
    EpochEvent,
    LostProcess,
    StepEvent,
    Trainer,
    TrainingError,
    TrainingOptions,
    finder,
)
from fluvial.train.loop import AFTER_PLATEAU, AFTER_ROLLBACK, MOST_SKIPPED_IN_A_ROW
from fluvial.train.metrics import Conditioning, binned_distance, mean_loss
from fluvial.train.optim import Average, batches_in_a_step, rate_factor
from fluvial.train.stopping import Place, early, gain_rate, progress, spent


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(n, 2, generator=generator)
    return 1.5 * c + 0.5 * torch.randn(n, 2, generator=generator), c


TRAIN, VALIDATION = rows(600, 1), rows(300, 2)


def coupling() -> AbstractFlow:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CouplingSpline(2, 2, steps=2, width=8, depth=1, dropout=0.2, norm="batch")


def continuous() -> AbstractFlow:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ContinuousFlow(2, 2, width=8, depth=1)


def gaussian() -> AbstractFlow:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiagonalGaussian(2, 2, width=8, depth=1)


def trainer(
    flow: AbstractFlow, table=TRAIN, *, batch: int = 64, stop=lambda: None, **options: Any
) -> Trainer:
    few = slice(0, 50) if isinstance(flow, ContinuousFlow) else slice(None)
    validation = VALIDATION[0][few], VALIDATION[1][few]
    defaults = {"epochs": 3, "learning_rate": 3e-3}
    return Trainer(
        flow, Batches(*table, batch, 0), validation, TrainingOptions(**defaults | options), seed=7, stop=stop
    )


def weights(flow: AbstractFlow) -> Tensor:
    return torch.cat([t.flatten().double() for t in flow.state_dict().values()])


def told(events: list[StepEvent | EpochEvent]) -> list[tuple[Any, ...]]:
    """Return what events say, but for times."""
    return [tuple(v for k, v in vars(e).items() if k not in ("seconds", "rows_per_second")) for e in events]


RECIPES: dict[str, tuple[Callable[[], AbstractFlow], dict[str, Any]]] = {
    "dropout, batch norm": (coupling, {}),
    "average": (coupling, {"ema": 0.9}),
    "growth": (coupling, {"batch_growth": 4, "epochs": 4}),
    "plateau": (gaussian, {"schedule": "plateau", "plateau_epochs": 1, "learning_rate": 0.5, "epochs": 5}),
    "steps, Adam": (gaussian, {"epochs": None, "steps": 25, "optimizer": "adam", "schedule": "one-cycle"}),
    "random loss": (continuous, {}),
    "found rate": (gaussian, {"learning_rate": "auto", "epochs": 100}),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_goes_on_bit_for_bit_from_any_event(recipe: str, tmp_path: Path) -> None:
    make, options = RECIPES[recipe]
    whole = trainer(make(), **options)
    events, states = [], {}
    for number, event in enumerate(whole.run()):
        events.append(event)
        torch.rand(3)  # what others draw meanwhile is none of its business
        if number in (0, 4, 9, 10, 11) or (isinstance(event, StepEvent) and event.progress == 1.0):
            states[number] = whole.state()
        if number > 40:
            break
    end = weights(whole.flow) if len(events) <= 40 else None  # a long fit need not be run to its end
    for number, state in states.items():
        state.save(tmp_path / "state")
        again = trainer(make(), **options)
        again.load(Checkpoint.load(tmp_path / "state"))
        running = again.run()
        found = list(itertools.islice(running, len(events) - number - 1))
        assert told(found) == told(events[number + 1 :])
        if end is not None:
            assert list(running) == []
            assert torch.equal(weights(again.flow), end)


def test_a_finished_fit_goes_on_to_a_larger_budget() -> None:
    short = trainer(coupling(), epochs=2)
    *_, last = short.run()
    assert isinstance(last, EpochEvent)
    assert last.stopped == "budget: 2 epochs"
    state = short.state()
    long = trainer(coupling(), epochs=4)
    long.load(state, further=True)
    epochs = [e.epoch for e in long.run() if isinstance(e, EpochEvent)]
    assert epochs == [3, 4]
    again = trainer(coupling(), epochs=2)
    again.load(state)
    assert list(again.run()) == []


def test_the_state_at_the_end_is_of_the_last_weights_not_the_best() -> None:
    fit = trainer(gaussian(), epochs=7, learning_rate=1.0, schedule="constant")
    state = None
    for event in fit.run():
        if isinstance(event, EpochEvent):
            state = fit.state()
            if event.stopped:
                assert event.best_epoch < event.epoch  # else this shows nothing
    assert state is not None
    best, last = state.part("best"), state.part("flow")
    assert any(not torch.equal(best[k], last[k]) for k in best)
    assert all(torch.equal(best[k], v) for k, v in fit.flow.state_dict().items())


def test_a_state_of_another_flow_is_refused() -> None:
    state = trainer(coupling()).state()
    with pytest.raises(RunError, match=r"not that of this study's flow and optimiser .*study\.toml"):
        trainer(gaussian()).load(state)
    with pytest.raises(RunError, match="not that of"):
        trainer(coupling()).load(Checkpoint(state.tensors, {"place": {}}))


@pytest.mark.parametrize("content", [b"", b"nonsense" * 10])
def test_a_damaged_checkpoint_says_so(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RunError, match="found none"):
        Checkpoint.load(tmp_path / "c")
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(RunError, match=r"c is damaged .*remove it and resume"):
        Checkpoint.load(tmp_path / "c")
    trainer(gaussian()).state().save(tmp_path / "c")
    whole = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(whole[:-10])
    with pytest.raises(RunError, match="c is damaged"):
        Checkpoint.load(tmp_path / "c")


# --- steps that are not finite ---------------------------------------------------------------------------


class Fragile(DiagonalGaussian):
    """A flow whose loss is NaN from some step on, for as many steps as asked."""

    def __init__(self, bad: range):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__(2, 2, width=8, depth=1)
        self.bad, self.calls = bad, 0

    def loss(self, x: Tensor, context: Tensor | None = None, **_: Any) -> Tensor:
        self.calls += 1
        loss = super().loss(x, context)
        return loss * math.nan if self.calls in self.bad else loss


def test_bad_steps_change_nothing_but_the_count() -> None:
    last = [e for e in trainer(Fragile(range(3, 6))).run() if isinstance(e, EpochEvent)][-1]
    assert (last.skipped_steps, last.rollbacks, last.stopped) == (3, 0, "budget: 3 epochs")


def test_persistent_ones_roll_back_to_sound_weights_at_a_lower_rate() -> None:
    bad = range(15, 15 + MOST_SKIPPED_IN_A_ROW)
    fit = trainer(Fragile(bad), epochs=6, schedule="constant", warmup=0.0)
    sound, rates = None, []
    for event in fit.run():
        if isinstance(event, EpochEvent):
            rates.append(event.learning_rate)
            if event.epoch == 1:
                sound = weights(fit.flow)
        elif fit.place.rollbacks == 1 and fit.place.steps == bad[-1]:
            assert torch.equal(weights(fit.flow), sound)
            break
    rest = [e for e in fit.run() if isinstance(e, EpochEvent)]
    assert rest[-1].rollbacks == 1
    assert rates[0] == 3e-3
    assert rest[-1].learning_rate == pytest.approx(3e-3 * AFTER_ROLLBACK)
    assert math.isfinite(rest[-1].validation_loss)


def test_after_some_rollbacks_it_stops_and_names_rows_and_column() -> None:
    x, c = TRAIN[0].clone(), TRAIN[1].clone()
    x[:, 1] = torch.where(torch.arange(600) % 2 == 0, math.inf, x[:, 1])  # in every batch
    fit = trainer(gaussian(), (x, c), epochs=100, rollbacks=2)
    with pytest.raises(
        TrainingError, match=r"after 2 rollbacks .*target number 2 reaches NaN or infinity"
    ) as caught:
        list(fit.run())
    found = caught.value.diagnosis
    assert found is not None
    assert (found.role, found.column) == ("target", 1)
    assert (found.x[:, 1] == math.inf).all()
    assert len(found.x) == len(found.context) <= 5
    assert fit.place.steps == 3 * MOST_SKIPPED_IN_A_ROW
    assert all(p.isfinite().all() for p in fit.flow.parameters())


def test_a_context_may_be_to_blame() -> None:
    c = TRAIN[1].clone()
    c[::5, 0] = math.nan
    fit = trainer(MAF(2, 2, steps=1, width=8, depth=1), (TRAIN[0], c), rollbacks=0, epochs=100)
    with pytest.raises(TrainingError, match="context number 1 reaches NaN or infinity") as caught:
        list(fit.run())
    assert caught.value.diagnosis is not None
    assert caught.value.diagnosis.role == "context"


# --- schedules, averages, budgets ------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "constant", "cosine-restarts", "one-cycle", "plateau"])
def test_schedules_stay_within_bounds(schedule: Any) -> None:
    factors = [rate_factor(schedule, t / 1000, warmup=0.05) for t in range(1001)]
    assert all(0 <= f <= 1 for f in factors)
    assert max(factors) > 0.999
    assert factors[0] < 0.05
    falls = schedule not in ("constant", "plateau")
    assert (factors[-1] < 1e-3) == falls
    tops = sum(a < 0.999 <= b for a, b in itertools.pairwise(factors))
    assert tops == (4 if schedule == "cosine-restarts" else 1)


def test_a_plateau_halves_the_rate() -> None:
    fit = trainer(gaussian(), epochs=12, schedule="plateau", plateau_epochs=2, learning_rate=0.5, warmup=0.0)
    found = [e for e in fit.run() if isinstance(e, EpochEvent)]
    waited = [e.epoch - e.best_epoch for e in found]
    halvings = sum(w > 0 and w % 2 == 0 for w in waited)
    assert halvings > 0
    assert fit.place.rate_scale == AFTER_PLATEAU**halvings


def test_batches_grow() -> None:
    found = [
        e for e in trainer(gaussian(), epochs=4, batch_growth=4, batch=60).run() if isinstance(e, EpochEvent)
    ]
    assert [e.batch_rows for e in found] == [60, 60, 120, 240]
    assert [e.steps for e in found] == [10, 20, 25, 28]
    assert [e.rows for e in found] == [600, 1200, 1800, 2400]
    assert [batches_in_a_step(1, t) for t in (0.0, 1.0)] == [1, 1]


def test_an_average_is_what_it_says() -> None:
    flow = gaussian()
    average = Average(flow, 0.9)
    p = next(flow.parameters())
    want = p.detach().clone()
    for step in range(20):
        with torch.no_grad():
            p.add_(1.0)
        average.update(step)
        want = want + (1 - min(0.9, (1 + step) / (10 + step))) * (p.detach() - want)
    name = next(iter(average.weights))
    assert torch.allclose(average.weights[name], want)
    assert set(average.state_dict()) == set(flow.state_dict())


def test_an_average_smooths_what_a_large_rate_does() -> None:
    options = {"epochs": 8, "learning_rate": 0.1, "schedule": "constant"}
    losses = [
        [
            e.validation_loss
            for e in trainer(gaussian(), ema=ema, **options).run()
            if isinstance(e, EpochEvent)
        ]
        for ema in (None, 0.95)
    ]
    plain, smooth = (torch.tensor(v[3:]) for v in losses)
    assert smooth.std() < 0.5 * plain.std()
    assert smooth.mean() < plain.mean()


def test_budgets() -> None:
    options = TrainingOptions(epochs=10, steps=50, minutes=1.0)
    assert progress(Place(epoch=2, batch=3, ended=False, steps=8, seconds=3), options, 5) == 0.16
    assert progress(Place(epoch=2, steps=10, seconds=30), options, 5) == 0.5
    assert spent(Place(epoch=2, steps=10, seconds=60), options, 5) == "budget: 1 minutes"
    assert spent(Place(epoch=10, batch=4, ended=False, steps=49), options, 5) is None
    assert spent(Place(epoch=10, steps=50), options, 5) == "budget: 50 steps"
    assert spent(Place(epoch=10, batch=5, ended=False, steps=5), options, 5) == "budget: 10 epochs"


def test_steps_end_training_in_mid_epoch() -> None:
    events = list(trainer(gaussian(), epochs=None, steps=13).run())
    assert sum(isinstance(e, StepEvent) for e in events) == 13
    assert events[-1].stopped == "budget: 13 steps"  # type: ignore[union-attr]


def test_too_slow_a_gain_ends_training() -> None:
    fast, slow = ([[float(i), -r * i] for i in range(10)] for r in (0.1, 0.001))
    options = TrainingOptions(least_gain=0.01)
    assert gain_rate(fast) == pytest.approx(0.1)
    assert early(Place(epoch=10, history=fast), options) is None
    assert early(Place(epoch=9, history=slow[:9]), options) is None
    stopped = early(Place(epoch=10, history=slow), options)
    assert stopped == "early: the loss falls by 0.001 nats a second, less than 0.01"


# --- the learning rate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.99])
def test_a_rate_is_found_and_leaves_no_trace(ema: float | None) -> None:
    fit = trainer(gaussian(), epochs=200, learning_rate="auto", ema=ema)
    before = weights(fit.flow)
    rate = fit._learning_rate()
    assert torch.equal(weights(fit.flow), before)
    assert fit.optimizer.state_dict()["state"] == {}
    assert finder.LEAST <= rate <= finder.MOST
    assert rate != finder.FALLBACK
    assert rate == trainer(gaussian(), epochs=200, learning_rate="auto")._learning_rate()


def test_too_small_a_budget_has_the_fallback() -> None:
    fit = trainer(gaussian(), epochs=2, learning_rate="auto")
    next(iter(fit.run()))
    assert fit.place.rate == finder.FALLBACK


def test_a_wilder_loss_gets_a_lower_rate() -> None:
    tried = finder.rates(100)
    tame, wild = (
        [max(-math.log10(r / best), 3 * math.log10(r / best)) for r in tried] for best in (5e-3, 3e-4)
    )
    assert 3e-3 < finder.pick(tried, tame) <= finder.MOST
    assert 2e-4 < finder.pick(tried, wild) < 1e-3
    assert finder.pick(tried, [math.nan] * 100) == finder.FALLBACK


# --- what is measured ------------------------------------------------------------------------------------


def test_conditioning_sees_what_the_loss_of_all_contexts_hides() -> None:
    x, c = rows(4000, 5)
    u = torch.special.ndtr((x - 1.5 * c) / 0.5)
    floor = 0.31 / math.sqrt(800)
    assert abs(binned_distance(u, c) - floor) < 0.4 * floor
    marginal = torch.special.ndtr(
        x / math.sqrt(1.5**2 + 0.25)
    )  # uniform over all contexts, and blind to them
    assert binned_distance(marginal, torch.zeros(4000, 0)) < 2 * floor
    assert binned_distance(marginal, c) > 0.1
    narrow = torch.special.ndtr((x - 1.5 * c) / 1.0)
    assert binned_distance(narrow, c) > 0.08


def test_conditioning_falls_as_a_flow_learns() -> None:
    flow = MAF(2, 2, steps=1, width=16, depth=1)
    fit = trainer(flow, rows(2000, 8), epochs=12, learning_rate=1e-2)
    found = [e.conditioning for e in fit.run() if isinstance(e, EpochEvent)]
    assert found[-1] < 0.5 * found[0]
    assert all(0 < v < 0.5 for v in found)


def test_conditioning_by_draws_agrees_with_that_by_latents() -> None:
    flow = MAF(1, 1, steps=1, width=8, depth=1)
    x, c = rows(4000, 5)
    measure = Conditioning(x[:, :1], c[:, :1])
    by_latent = measure(flow)

    class Drawn(AbstractFlow):
        def forward(self, context: Tensor | None = None) -> Any:
            return flow(context)

    assert abs(measure(Drawn(targets=1, context=1)) - by_latent) < 0.06
    assert by_latent > 0.15


def test_conditioning_can_decide_what_is_best() -> None:
    fit = trainer(
        gaussian(), epochs=8, learning_rate=0.3, schedule="constant", metric="conditioning", patience=3
    )
    found = [e for e in fit.run() if isinstance(e, EpochEvent)]
    best = min(found, key=lambda e: e.conditioning)
    assert found[-1].best_epoch == best.epoch
    assert found[-1].best_loss == best.validation_loss
    assert mean_loss(fit.flow, *VALIDATION) == best.validation_loss


def test_what_ended_early_stays_ended_until_asked_to_go_further() -> None:
    fit = trainer(gaussian(), epochs=60, learning_rate=0.5, schedule="constant", patience=2)
    *_, last = fit.run()
    assert isinstance(last, EpochEvent)
    assert (last.stopped or "").startswith("early")
    again = trainer(gaussian(), epochs=60, learning_rate=0.5, schedule="constant", patience=2)
    again.load(fit.state())
    assert list(again.run()) == []
    assert torch.equal(weights(again.flow), weights(fit.flow))
    again.load(fit.state(), further=True)
    assert len([e for e in again.run() if isinstance(e, EpochEvent)]) >= 2


def test_compilation_is_asked_for_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compiled(function: Any) -> Any:
        asked.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    fit = trainer(gaussian(), compile=True)
    plain = trainer(gaussian())
    assert told(list(fit.run())) == told(list(plain.run()))
    assert asked == [fit.flow.loss]
    assert fit.compile_seconds is not None
    assert fit.compile_seconds > 0
    assert plain.compile_seconds is None
    assert "loss" not in vars(fit.flow)


def test_a_state_taken_where_another_process_was_lost_still_measures_the_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = [e for e in trainer(gaussian()).run() if isinstance(e, EpochEvent)]
    fit = trainer(gaussian())

    def lost(*_: Any, **__: Any) -> float:
        raise LostProcess("gone")

    with monkeypatch.context() as patch:
        patch.setattr("fluvial.train.loop.mean_loss", lost)
        with pytest.raises(LostProcess):
            list(fit.run())
    again = trainer(gaussian())
    again.load(fit.state())
    assert told([e for e in again.run() if isinstance(e, EpochEvent)]) == told(list(whole))


def test_bf16_trains_to_the_same_density_and_leaves_it_in_float32() -> None:
    generator = torch.Generator().manual_seed(3)
    c = torch.randn(4000, 1, generator=generator)
    x = torch.cat((c, -c), 1) + 0.5 * torch.randn(4000, 2, generator=generator)
    losses = {}
    for precision in ("float32", "bf16"):
        torch.manual_seed(1)
        flow = MAF(targets=2, context=1, steps=2, width=16)
        options = TrainingOptions(epochs=3, learning_rate=5e-3, precision=precision)
        batches = Batches(x[:3000], c[:3000], 250, 1)
        events = list(Trainer(flow, batches, (x[3000:], c[3000:]), options, seed=2).run())
        losses[precision] = events[-1].best_loss
        assert all(p.dtype == torch.float32 for p in flow.parameters())
        assert not any(getattr(m, "bf16", False) for m in flow.modules())
    assert losses["bf16"] != losses["float32"], "bf16 changed nothing"
    assert losses["bf16"] == pytest.approx(losses["float32"], abs=0.02)
