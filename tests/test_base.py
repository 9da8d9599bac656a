"""Base densities: exact densities, draws that follow them, finite however far out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fluvial.core import StandardNormal, StudentT, Uniform
from fluvial.flows import MAF, build_flow

Z = torch.tensor([[-3.0, 0.1], [0.0, 40.0], [1e3, -1e6]], dtype=torch.float64)


@pytest.mark.parametrize("degrees", [2.01, 3.0, 5.0, 300.0])
def test_student_t_is_scipys(degrees: float) -> None:
    base = StudentT(2, degrees=degrees).double()
    expected = stats.t(degrees).logpdf(Z.numpy()).sum(-1)
    # the degrees of freedom are kept as a float32 parameter
    np.testing.assert_allclose(base.log_prob(Z).detach().numpy(), expected, rtol=1e-5)


def test_student_t_is_not_a_normal() -> None:
    base = StudentT(1, degrees=3.0)
    far = torch.tensor([[8.0]])
    assert base.log_prob(far).item() > StandardNormal().log_prob(far).item() + 10


@pytest.mark.parametrize("degrees", [2.5, 4.0, 30.0])
def test_student_t_draws_follow_it(degrees: float) -> None:
    base = StudentT(2, degrees=degrees)
    z = base.sample((20_000, 2), generator=torch.Generator().manual_seed(3)).detach().double().numpy()
    for column in z.T:
        assert stats.kstest(column, stats.t(degrees).cdf).pvalue > 0.01
    assert stats.kstest(z[:, 0], stats.t(degrees * 1.5).cdf).pvalue < 0.01 or degrees == 30.0
    assert stats.kstest(z[:, 0], stats.norm.cdf).pvalue < 0.01 or degrees == 30.0
    assert abs(np.corrcoef(np.clip(z.T, -5, 5))[0, 1]) < 0.03


@pytest.mark.parametrize(
    "base", [StandardNormal(), StudentT(3), Uniform(-2, 5)], ids=["normal", "student-t", "uniform"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_fixed_by_the_generator(base, dtype: torch.dtype) -> None:
    first, again, other = (
        base.sample((7, 3), generator=torch.Generator().manual_seed(seed), dtype=dtype) for seed in (1, 1, 2)
    )
    assert first.dtype == dtype
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert base.log_prob(first).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_student_t_is_finite_far_out(dtype: torch.dtype) -> None:
    base = StudentT(1).to(dtype)
    z = torch.tensor(
        [[0.0], [1e6], [-1e6], [1e20], [torch.finfo(dtype).max]], dtype=dtype, requires_grad=True
    )
    log_prob = base.log_prob(z)
    assert log_prob.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(log_prob.sum(), [z, base.raw_degrees]))


def test_degrees_of_freedom_are_learned() -> None:
    z = torch.from_numpy(stats.t(3.0).rvs((20_000, 1), random_state=0)).float()
    base = StudentT(1, degrees=20.0)
    optimizer = torch.optim.Adam(base.parameters(), lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        (-base.log_prob(z).mean()).backward()
        optimizer.step()
    assert float(base.degrees.detach()) == pytest.approx(3.0, abs=0.2)


def test_draws_have_gradients_towards_the_degrees() -> None:
    base = StudentT(1, degrees=5.0).double()
    draw = lambda: base.sample((1000, 1), generator=torch.Generator().manual_seed(0)).abs().mean()  # noqa: E731
    (gradient,) = torch.autograd.grad(draw(), base.raw_degrees)
    with torch.no_grad():
        before = draw()
        base.raw_degrees += 1e-5
        assert float((draw() - before) / 1e-5) == pytest.approx(float(gradient), rel=1e-3)


def test_fixed_degrees_are_no_parameter_but_are_kept() -> None:
    base = StudentT(2, degrees=7.0, learnable=False)
    assert list(base.parameters()) == []
    assert list(base.state_dict()) == ["raw_degrees"]


@pytest.mark.parametrize("degrees", [2.0, -1.0, math.inf, math.nan])
def test_impossible_degrees_are_named(degrees: float) -> None:
    with pytest.raises(ValueError, match="degrees of freedom above 2"):
        StudentT(1, degrees=degrees)


def test_uniform() -> None:
    base = Uniform(-1.0, 3.0)
    z = torch.tensor([[-1.0, 0.0], [0.0, 3.5]])
    torch.testing.assert_close(base.log_prob(z), torch.tensor([-2 * math.log(4), -math.inf]))
    draws = base.sample((10_000, 1), generator=torch.Generator().manual_seed(0))[:, 0]
    assert stats.kstest(draws.numpy(), stats.uniform(-1, 4).cdf).pvalue > 0.01
    with pytest.raises(ValueError, match="low < high"):
        Uniform(2.0, 2.0)


def test_a_flow_of_heavy_tails_gives_them() -> None:
    """With straight tails the flow keeps those of its base: far draws are common with one, unheard of with the other."""
    shares = {}
    for base in ("normal", "student-t"):
        flow = build_flow("maf", targets=1, context=0, steps=1, width=8, base=base)
        draws = flow().sample((100_000,), generator=torch.Generator().manual_seed(0))
        shares[base] = float((draws.abs() > 6).float().mean())
    assert shares["normal"] == 0
    assert shares["student-t"] == pytest.approx(2 * stats.t(5).sf(6), rel=0.2)


def test_unknown_base_is_named() -> None:
    with pytest.raises(ValueError, match="normal, student-t; got 'cauchy'"):
        MAF(2, base="cauchy")  # type: ignore[arg-type]
