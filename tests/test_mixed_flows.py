"""Flows over numbers and levels obey the laws too: probabilities of levels and densities of numbers add up to one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from zoo import MIXED, SOLVER, make_mixed

from fluvial.errors import StudyError
from fluvial.flows.mixed import Levels, MixedFlow, build_mixed_flow

LEVELS = list(itertools.product(range(2), range(3)))
names = pytest.mark.parametrize("name", MIXED)
contexts_ = pytest.mark.parametrize("context", [0, 3])


def near(name: str, dtype: torch.dtype) -> float:
    return max(1e-2 if dtype == torch.float32 else 1e-7, SOLVER.get(name.removeprefix("integers, "), 0.0))


def contexts(rows: int, context: int, dtype: torch.dtype = torch.float64) -> Tensor | None:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, context, dtype=dtype, generator=generator) if context else None


def absent(flow: MixedFlow, x: Tensor) -> Tensor:
    """Return which numbers of coded x are absent: the first where level 0 is not 0, the third by level 1."""
    level = x[..., flow.numbers :]
    by = [level[..., 0] > 0, torch.zeros_like(level[..., 0], dtype=torch.bool), level[..., 1] > 0]
    return torch.stack(by[: flow.numbers], -1)


@names
@pytest.mark.parametrize(("numbers", "context"), [(1, 0), (2, 3), (3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_density_of_draws_is_log_prob(name: str, numbers: int, context: int, dtype: torch.dtype) -> None:
    flow = make_mixed(name, numbers, context, dtype)
    p = flow(contexts(6, context, dtype))
    x, log_prob = p.rsample_and_log_prob((50,), generator=torch.Generator().manual_seed(1))
    assert x.shape == (50, *p.batch_shape, numbers + 2)
    assert x.dtype == dtype
    torch.testing.assert_close(p.log_prob(x), log_prob, atol=near(name, dtype), rtol=near(name, dtype))
    again = p.sample((50,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again, x.detach())


@names
@pytest.mark.parametrize(("numbers", "context"), [(1, 3), (2, 0)])
def test_levels_and_numbers_add_up_to_one(name: str, numbers: int, context: int) -> None:
    flow = make_mixed(name, numbers, context, torch.float64, size=0.15)
    assert isinstance(flow, MixedFlow)
    held = "integers" not in name
    axes = torch.sinh(torch.linspace(-9.5, 9.5, 3000 if numbers == 1 else 200, dtype=torch.float64) / 2.5)
    turn = torch.linspace(-math.pi, math.pi, len(axes), dtype=torch.float64)
    c = contexts(1, context)
    total = 0.0
    for level in LEVELS:
        free = [i for i in range(numbers) if not (held and i == 0 and level[0] > 0)]
        nodes = [turn if "angle" in name and i == 1 else axes for i in free]
        grid = torch.stack(torch.meshgrid(*nodes, indexing="ij"), -1) if free else torch.zeros(0)
        shape = grid.shape[:-1] if free else ()
        x = torch.zeros(*shape, numbers + 2, dtype=torch.float64)
        for k, i in enumerate(free):
            x[..., i] = grid[..., k]
        x[..., numbers:] = torch.tensor(level, dtype=torch.float64)
        with torch.no_grad():
            p = flow(None if c is None else c[0]).log_prob(x).exp()
        for axis in reversed(nodes):
            p = torch.trapezoid(p, axis, dim=-1)
        total += float(p)
    assert abs(total - 1) < 5e-3


@names
@contexts_
def test_an_absent_number_is_no_variable(name: str, context: int) -> None:
    """Draws hold 0 in its place, and nothing that stands there changes the density, or those of others."""
    if "integers" in name:
        pytest.skip("its numbers are always present")
    flow = make_mixed(name, 3, context, torch.float64)
    assert isinstance(flow, MixedFlow)
    p = flow(contexts(6, context))
    x = p.sample((200,), generator=torch.Generator().manual_seed(1))
    away = absent(flow, x)
    assert 0.1 < away.double().mean() < 0.6
    assert (x[..., :3][away] == 0).all()
    assert (x[..., :3][~away] != 0).all()
    other = x.clone()
    other[..., :3] = torch.where(away, 7.0, x[..., :3])
    assert torch.equal(p.log_prob(other), p.log_prob(x))
    shifted = x.clone()
    shifted[..., :3] = torch.where(away, x[..., :3], x[..., :3] + 0.3)
    assert (p.log_prob(shifted) != p.log_prob(x)).float().mean() > 0.8


@names
def test_other_levels_have_no_probability(name: str) -> None:
    p = make_mixed(name, 1, 3)(torch.zeros(3))
    levels = torch.tensor([[0.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.5, 1.0], [1.0, 2.0]])
    log_prob = p.log_prob(torch.cat((torch.zeros(5, 1), levels), -1))
    assert log_prob.isfinite().tolist() == [True, False, False, False, True]
    assert not log_prob.isnan().any()


@names
def test_a_loss_with_finite_gradients_for_every_weight(name: str) -> None:
    flow = make_mixed(name, 3, 3)
    c = contexts(64, 3, torch.float32)
    x = flow(c).sample((), generator=torch.Generator().manual_seed(2))
    for scale in (1.0, 1e6):
        far = torch.cat((x[..., :3] * scale, x[..., 3:]), -1)
        if "angle" in name:
            far = x
        flow.zero_grad()
        loss = flow.loss(far, c, generator=torch.Generator().manual_seed(0))
        loss.backward()
        assert loss.isfinite()
        grads = [p.grad for p in flow.parameters() if p.grad is not None]
        assert len(grads) > 4
        assert all(g.isfinite().all() for g in grads)
        assert sum(float(g.abs().sum()) > 0 for g in grads) > 0.5 * len(grads)


@names
def test_state_round_trip_and_batches(name: str) -> None:
    flow, other = make_mixed(name, 2, 3), make_mixed(name, 2, 3, size=0.1)
    other.load_state_dict(flow.state_dict())
    c = contexts(12, 3, torch.float32)
    assert c is not None
    x = flow(c).sample((), generator=torch.Generator().manual_seed(2))
    assert torch.equal(flow(c).log_prob(x), other(c).log_prob(x))
    shaped = flow(c.reshape(3, 4, 3)).log_prob(x.reshape(3, 4, 4)).reshape(12)
    torch.testing.assert_close(shaped, flow(c).log_prob(x))
    one = flow(c[0]).log_prob(x[0])
    torch.testing.assert_close(one, flow(c).log_prob(x)[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"trailing dimension 4 for targets; got shape \(3, 2\)"):
        flow(c).log_prob(torch.zeros(3, 2))


@pytest.mark.parametrize("name", ["autoregressive-spline, angle", "coupling-spline, angle"])
def test_the_seam_of_an_angle_is_a_place_like_any_other(name: str) -> None:
    flow = make_mixed(name, 3, 3, torch.float64)
    p = flow(torch.zeros(3, dtype=torch.float64))
    x = torch.tensor([[0.4, math.pi, -0.3, 0.0, 0.0]] * 3, dtype=torch.float64)
    x[1, 1], x[2, 1] = -math.pi, 3 * math.pi
    a, b, c = p.log_prob(x).tolist()
    assert a == pytest.approx(b, abs=1e-9)
    assert a == pytest.approx(c, abs=1e-9)
    draws = p.sample((500,), generator=torch.Generator().manual_seed(0))[:, 1]
    assert (draws.abs() <= math.pi).all()


def test_draws_of_levels_have_their_probabilities() -> None:
    flow = make_mixed("maf", 1, 3, torch.float64, size=0.8)
    assert isinstance(flow, MixedFlow)
    c = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    expected = flow.levels.log_prob(levels, c.expand(6, 3)).exp().detach()
    assert float(expected.sum()) == pytest.approx(1)
    assert float(expected.std()) > 0.05  # so that the test can fail
    drawn = flow(c).sample((20_000,), generator=torch.Generator().manual_seed(3))[:, 1:]
    counts = [(drawn == level).all(-1).sum().item() for level in levels]
    assert stats.chisquare(counts, 20_000 * expected.numpy()).pvalue > 0.01
    assert stats.chisquare(counts, [20_000 / 6] * 6).pvalue < 1e-6


def test_later_levels_see_the_earlier_ones_and_not_the_reverse() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        levels = Levels([200, 200], 1, width=32)
        for p in levels.parameters():
            torch.nn.init.normal_(p, std=0.3)
    c = torch.zeros(200, 1)
    first = torch.arange(200.0)
    both = torch.stack((first, torch.zeros(200)), -1)
    rest = levels.log_prob(both, c) - Levels.log_prob(_first(levels), both[:, :1], c)
    assert rest.unique().numel() > 150  # every one of the 200 earlier values has a say


def _first(levels: Levels) -> Levels:
    out = Levels(levels.sizes[:1], 1, width=32)
    out.networks[0] = levels.networks[0]
    return out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "coupling-spline"}, r'mixing = "lu" does not\. Expected mixing = "permutation"'),
        ({"architecture": "maf", "norm": "act"}, 'norm does not.*norm = "none"'),
        ({"architecture": "gaussianization"}, "acts on each coordinate alone: maf"),
        ({"architecture": "continuous"}, "acts on each coordinate alone: maf"),
        ({"architecture": "mixture"}, "acts on each coordinate alone: maf"),
        ({"architecture": "maf", "angles": [True, False]}, "periodic targets need .*: autoregressive-spline"),
        ({"architecture": "full-gaussian", "angles": [True, False]}, "periodic targets need"),
        ({"architecture": "mfa"}, "is not known; did you mean 'maf'"),
    ],
)
def test_what_cannot_hold_coordinates_says_so(options: dict, message: str) -> None:
    with pytest.raises(StudyError, match=rf"^\[flow\] .*{message}"):
        build_mixed_flow(numbers=2, levels=[2], holder=[0, None], context=1, **options)


def test_a_trunk_serves_levels_and_numbers() -> None:
    flow = build_mixed_flow("maf", numbers=1, levels=[2], holder=[0], context=3, trunk=8, steps=2, width=16)
    c = contexts(5, 3, torch.float32)
    x = flow(c).sample((4,), generator=torch.Generator().manual_seed(0))
    assert x.shape == (4, 5, 2)
    flow.loss(x[0], c).backward()
    assert flow(c).log_prob(x).isfinite().all()
    with pytest.raises(StudyError, match="Expected context columns with a trunk"):
        build_mixed_flow("maf", numbers=1, levels=[2], holder=[0], context=0, trunk=8)


def test_integers_alone() -> None:
    flow = build_mixed_flow("maf", numbers=0, levels=[4], holder=[], context=0)
    p = flow()
    assert p.sample((7,)).shape == (7, 1)
    assert p.log_prob(torch.tensor([[1.0]])).item() == pytest.approx(-math.log(4))
