"""The continuous flow: its regression, its solver, its density, and that it learns."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from zoo import scatter

import fluvial
from fluvial.data.readers import write_table
from fluvial.data.stream import Batches
from fluvial.flows import MAF, ContinuousFlow
from fluvial.flows.continuous import Velocity
from fluvial.train import EpochEvent, TrainingOptions, train
from fluvial.train.loop import mean_loss


def two_peaks(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x in two peaks at ±1 whose weights the context decides, and the exact log-density."""
    generator = torch.Generator().manual_seed(seed)
    c = 2 * torch.rand(n, 1, generator=generator) - 1
    right = torch.rand(n, 1, generator=generator) < (1 + c) / 2
    x = torch.where(right, 1.0, -1.0) + 0.3 * torch.randn(n, 1, generator=generator)
    peaks = [((1 + s * c) / 2).log() - 0.5 * ((x - s) / 0.3).square() for s in (1.0, -1.0)]
    truth = torch.logaddexp(*peaks) - math.log(0.3 * math.sqrt(2 * math.pi))
    return x, c, truth[:, 0]


def moved(targets: int = 2, context: int = 3, **options) -> ContinuousFlow:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = ContinuousFlow(targets, context, **{"width": 16, "depth": 2, **options})
    return scatter(flow).double()  # type: ignore[return-value]


def rows(flow: ContinuousFlow, n: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (n, flow.targets), (n, flow.context)
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shape)  # type: ignore[return-value]


def test_it_learns_two_peaks_and_is_checked_by_the_exact_density() -> None:
    x, c, _ = two_peaks(4000, 0)
    x_new, c_new, truth = two_peaks(2000, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = ContinuousFlow(1, 1, width=48, depth=3, solver_steps=8)
    before = mean_loss(flow, x_new, c_new)
    options = TrainingOptions(epochs=12, learning_rate=1e-2)
    events = list(train(flow, Batches(x, c, 128, 0), (x_new, c_new), options))
    last = [e for e in events if isinstance(e, EpochEvent)][-1]
    entropy = float(-truth.mean())
    assert before > entropy + 0.4
    assert last.best_loss == pytest.approx(entropy, abs=0.06)
    # what training reports is −log p in nats, not the regression's loss, which stays far above it
    assert last.train_loss == pytest.approx(entropy, abs=0.1)
    assert float(flow.loss(x, c).detach()) > entropy + 0.1
    draws = flow(torch.tensor([[0.8], [-0.8]])).sample((4000,), generator=torch.Generator().manual_seed(0))
    right = (draws[..., 0] > 0).float().mean(0)  # 0.9 and 0.1 where the density is exact
    assert right[0] > 0.75
    assert right[1] < 0.25


def test_loss_is_the_regression() -> None:
    flow = ContinuousFlow(3, 0, width=8, depth=1)
    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    # v = 0 at the start: what is missed is x − z, of variance 2
    assert float(flow.loss(x, generator=torch.Generator().manual_seed(1)).detach()) == pytest.approx(
        2, rel=0.02
    )
    with torch.no_grad():
        flow.bijection.velocity.last.bias += 1.0
    assert float(flow.loss(x, generator=torch.Generator().manual_seed(1)).detach()) == pytest.approx(
        3, rel=0.02
    )


def test_loss_is_fixed_by_the_generator() -> None:
    flow = moved()
    first, again, other = (
        float(flow.loss(*rows(flow), generator=torch.Generator().manual_seed(seed)).detach())
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_loss_of_a_likelihood_flow_is_its_likelihood() -> None:
    x, c, _ = two_peaks(100, 0)
    flow = MAF(1, 1, steps=1, width=8)
    assert flow.loss_is_nll
    torch.testing.assert_close(flow.loss(x, c), -flow(c).log_prob(x).mean())


def test_directions_undo_each_other_to_fourth_order() -> None:
    flow = moved()
    x, c = rows(flow)
    errors = []
    for steps in (4, 8, 16):
        flow.bijection.solver_steps = steps
        with torch.no_grad():
            z, logdet = flow.bijection(x, c)
            back, inverse_logdet = flow.bijection.inverse(z, c)
        errors.append((float((back - x).abs().max()), float((logdet + inverse_logdet).abs().max())))
    for coarse, fine in itertools.pairwise(errors):
        for a, b in zip(coarse, fine, strict=True):
            assert a / b > 10, errors  # halving the steps divides the error by about 16
    assert errors[-1][0] < 1e-6


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["silu", "elu", "tanh"])
def test_jacobian_of_the_velocity(activation: str, residual: bool) -> None:
    velocity = Velocity(3, 2, width=8, depth=2, residual=residual, activation=activation)
    velocity = scatter(velocity).double()
    x = 3 * torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steer = velocity.steer(torch.ones(4, 2, dtype=torch.float64))
    time = torch.full((1,), 0.3, dtype=torch.float64)
    value, jacobian = velocity.with_jacobian(x, time, steer)
    torch.testing.assert_close(value, velocity(x, time, steer))
    whole = torch.autograd.functional.jacobian(lambda x: velocity(x, time, steer), x)
    torch.testing.assert_close(jacobian, torch.stack([whole[i, :, i] for i in range(4)]))


def test_coarse_steps_still_give_a_density() -> None:
    """The determinant is that of the map in use, so two steps integrate to one as well as two hundred."""
    flow = moved(1, 3, solver_steps=2)
    x = torch.linspace(-25, 25, 5_001, dtype=torch.float64)[:, None]
    c = torch.ones(3, dtype=torch.float64)
    with torch.no_grad():
        p = flow(c).log_prob(x).exp()
        assert float(torch.trapezoid(p, x[:, 0])) == pytest.approx(1, abs=1e-6)
        # the control: it is a coarse solution of its equation
        flow.bijection.solver_steps = 64
        assert float((p - flow(c).log_prob(x).exp()).abs().max()) > 1e-4


def test_draws_are_those_of_the_inverse() -> None:
    flow = moved()
    _, c = rows(flow)
    with_density, _ = flow(c).rsample_and_log_prob((3,), generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        flow(c).sample((3,), generator=torch.Generator().manual_seed(5)), with_density.detach()
    )
    assert not flow(c).sample((3,)).requires_grad
    assert flow(c).rsample((3,)).requires_grad
    assert flow(c[0]).expand((4,)).sample((2,)).shape == (2, 4, 2)


def test_rows_in_chunks_are_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = moved()
    x, c = rows(flow)
    whole = flow(c).log_prob(x)
    monkeypatch.setattr("fluvial.flows.continuous.CHUNK", 21)
    torch.testing.assert_close(flow(c).log_prob(x), whole)
    assert flow(c[:0]).log_prob(x[:0]).shape == (0,)


def test_float32_is_enough() -> None:
    flow = moved()
    x, c = rows(flow)
    exact = flow(c).log_prob(x)
    single = flow.float()(c.float()).log_prob(x.float())
    torch.testing.assert_close(single.double(), exact, atol=1e-4, rtol=1e-5)


def test_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="one of silu, elu, tanh; got 'relu'"):
        ContinuousFlow(2, activation="relu")
    with pytest.raises(ValueError, match="solver_steps of at least 1; got 0"):
        ContinuousFlow(2, solver_steps=0)


def test_a_study_fits_one(tmp_path) -> None:
    x, c, _ = two_peaks(500, 0)
    columns = {"x": np.exp(x[:, 0].double().numpy()), "c": c[:, 0].double().numpy()}
    write_table(tmp_path / "table.parquet", columns)
    study = {
        "data": {"source": str(tmp_path / "table.parquet"), "targets": ["x"], "context": ["c"]},
        "columns": {"x": {"support": "positive"}},
        "flow": {"architecture": "continuous", "width": 16, "depth": 1, "solver_steps": 4},
        "training": {"epochs": 2},
    }
    density = fluvial.fit(study, runs=tmp_path / "runs", check=False)
    again = fluvial.load(density.folder)
    events = {"x": np.array([0.5, 2.0])}
    np.testing.assert_array_equal(again.given(c=0.5).log_prob(events), density.given(c=0.5).log_prob(events))
    assert (again.given(c=0.5).sample(100, seed=1)["x"] > 0).all()
