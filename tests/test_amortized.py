"""Flows whose numbers all come from the context, and the mixture of Gaussians."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fluvial.errors import StudyError
from fluvial.flows import ARCHITECTURES, Gaussianization, MixtureOfGaussians, build_flow
from fluvial.flows.amortized import Amortized, unexpanded
from fluvial.flows.mixture import spread_points
from fluvial.nets import MLP

AMORTIZED = ("diagonal-gaussian", "full-gaussian", "gaussianization", "mixture")


def scattered(architecture: str, targets: int, context: int, **options) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        flow = build_flow(architecture, targets=targets, context=context, **options)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return flow.eval()


@pytest.mark.parametrize(
    ("name", "numbers"), [("diagonal-gaussian", 6), ("full-gaussian", 9), ("gaussianization", 306)]
)
def test_how_many_numbers_steer_three_targets(name: str, numbers: int) -> None:
    flow = build_flow(name, targets=3, context=0)
    assert sum(p.numel() for p in flow.parameters()) == numbers


@pytest.mark.parametrize("name", AMORTIZED)
def test_network_runs_once_per_context_however_many_draws(name: str) -> None:
    flow = scattered(name, 2, 3)
    network = next(m for m in flow.modules() if isinstance(m, MLP))
    rows: list[int] = []
    network.register_forward_hook(lambda _m, inputs, _o: rows.append(inputs[0].shape[:-1].numel()))
    p = flow(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    x = p.sample((200,))
    p.log_prob(x)
    assert rows == [5, 5]


@pytest.mark.parametrize("name", AMORTIZED)
def test_shared_contexts_give_what_repeated_ones_give(name: str) -> None:
    flow = scattered(name, 2, 3)
    c = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(100, 4, 2, generator=torch.Generator().manual_seed(1))
    repeated = c.expand(100, 4, 3).clone(memory_format=torch.contiguous_format)
    torch.testing.assert_close(flow(c).log_prob(x), flow(repeated).log_prob(x), atol=1e-4, rtol=1e-4)
    shared = flow(c).sample((100,), generator=torch.Generator().manual_seed(2))
    alone = flow(repeated).sample((), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(shared, alone, atol=1e-4, rtol=1e-4)


def test_gradients_are_the_same_shared_or_repeated() -> None:
    flow = scattered("gaussianization", 3, 2).double()
    c = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(80, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    for context in (c, c.expand(80, 4, 2).clone(memory_format=torch.contiguous_format)):
        context.requires_grad_()
        total = flow(context).log_prob(x).sum()
        *of_parameters, of_context = torch.autograd.grad(total, [*flow.parameters(), context])
        gradients.append([*of_parameters, of_context.reshape(-1, 4, 2).sum(0)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["gaussianization", "mixture"])
def test_blocks_without_gradients_agree_with_one_pass_with(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = scattered(name, 2, 3)
    p = flow(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(150, 6, 2, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("fluvial.flows.amortized.ROWS", 100)
    with torch.no_grad():
        in_blocks = p.log_prob(x)
    torch.testing.assert_close(in_blocks, p.log_prob(x).detach())


def test_gaussianization_starts_near_the_normal() -> None:
    flow = Gaussianization(3, 2)
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    difference = flow(torch.zeros(2000, 2)).log_prob(x) - flow.base.log_prob(x)
    assert difference.abs().mean() < 0.003
    assert difference.abs().max() < 0.3


@pytest.mark.parametrize("name", ["diagonal-gaussian", "full-gaussian"])
def test_gaussians_are_gaussians(name: str) -> None:
    flow = scattered(name, 3, 2)
    c = torch.tensor([0.3, -1.0])
    x = flow(c).sample((50_000,), generator=torch.Generator().manual_seed(0))
    z, _ = flow.bijection(torch.zeros(3), c)
    correlation = torch.corrcoef(x.T)
    assert abs(float((x[:, 0] - x[:, 0].mean()).pow(4).mean() / x[:, 0].var().square()) - 3) < 0.15
    off = correlation[~torch.eye(3, dtype=torch.bool)].abs().max()
    assert (off > 0.03) == (name == "full-gaussian")
    assert z.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "near"),
    [
        ("gaussianization", {"width": 32}, 0.03),
        ("mixture", {"width": 32}, 0.06),
        ("full-gaussian", {"width": 32}, None),
    ],
)
def test_learns_two_moving_peaks(name: str, options: dict, near: float | None) -> None:
    """x0 sits at ±c with width 0.2, x1 = x0² + noise: no Gaussian reaches it, the others must come near the truth."""
    generator = torch.Generator().manual_seed(0)

    def data(rows: int):
        c = 1 + torch.rand(rows, 1, generator=generator)
        sign = torch.randint(2, (rows, 1), generator=generator) * 2 - 1
        x0 = sign * c + 0.2 * torch.randn(rows, 1, generator=generator)
        x1 = 0.5 * x0.square() + 0.3 * torch.randn(rows, 1, generator=generator)
        normal = torch.distributions.Normal
        both = torch.stack([normal(s * c, 0.2).log_prob(x0) for s in (-1, 1)]).logsumexp(0) - math.log(2)
        truth = (both + normal(0.5 * x0.square(), 0.3).log_prob(x1)).sum(-1)
        return torch.cat((x0, x1), 1), c, truth

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = build_flow(name, targets=2, context=1, **options)
    x, c, _ = data(4096)
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for step in range(300):
        rows = torch.randint(len(x), (256,), generator=generator)
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 300) + 1e-5
        optimizer.zero_grad()
        flow.loss(x[rows], c[rows]).backward()
        optimizer.step()
    x, c, truth = data(4000)
    with torch.no_grad():
        short = float((truth - flow(c).log_prob(x)).mean())
    if near is None:
        assert short > 0.5
    else:
        assert -0.02 < short < near + 0.05


def test_mixture_is_the_sum_of_its_gaussians() -> None:
    flow = scattered("mixture", 2, 3, components=3).double()
    c = torch.randn(1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_weight, numbers = flow.mixture(c)
    from fluvial.core.triangular import triangular_affine

    components = []
    for k in range(3):
        at = numbers[:, k]
        mean, _ = triangular_affine(torch.zeros(2, 1, dtype=torch.float64), at, inverse=True)
        columns, _ = triangular_affine(torch.eye(2, dtype=torch.float64), at, inverse=True)
        components.append(torch.distributions.MultivariateNormal(mean[:, 0], scale_tril=columns - mean))
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.stack(
        [w + n.log_prob(x) for w, n in zip(log_weight[:, 0], components, strict=True)]
    ).logsumexp(0)
    torch.testing.assert_close(flow(c[0]).log_prob(x), expected)
    draws = flow(c[0]).sample((60_000,), generator=torch.Generator().manual_seed(2))
    means = torch.stack([n.mean for n in components])
    mean = (log_weight.exp() * means).sum(0)
    assert (draws.mean(0) - mean).abs().max() < 5 * float(draws.std()) / 60_000**0.5


def test_mixture_gives_draws_the_gradients_of_their_gaussian() -> None:
    flow = scattered("mixture", 2, 3)
    p = flow(torch.zeros(5, 3))
    assert not p.has_rsample
    x, log_prob = p.rsample_and_log_prob((7,), generator=torch.Generator().manual_seed(0))
    assert x.requires_grad
    assert log_prob.requires_grad
    assert not p.sample((7,)).requires_grad
    assert p.expand(torch.Size((2, 5))).sample().shape == (2, 5, 2)
    with pytest.raises(ValueError, match=r"trailing dimension 2 for targets; got shape \(4, 5\)"):
        p.log_prob(torch.zeros(4, 5))


def test_mixture_starts_spread() -> None:
    points = spread_points(200, 3)
    assert points.mean(0).abs().max() < 0.1
    assert (points.std(0) - 1).abs().max() < 0.1
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    p = MixtureOfGaussians(2, 0)(None)
    entropy = math.log(2 * math.pi) + 1
    assert -float(p.log_prob(x).detach().mean()) < entropy + 0.3


def test_unexpanded_keeps_what_differs() -> None:
    c = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(unexpanded(c.expand(4, 5, 2, 3)), c)
    assert torch.equal(unexpanded(c), c)
    assert unexpanded(c[:1]).shape == (3,)
    assert unexpanded(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("name", AMORTIZED)
def test_no_rows_and_no_draws(name: str) -> None:
    flow = scattered(name, 2, 3)
    assert flow(torch.zeros(0, 3)).sample().shape == (0, 2)
    assert flow(torch.zeros(4, 3)).sample((0,)).shape == (0, 4, 2)
    assert flow(torch.zeros(0, 3)).log_prob(torch.zeros(0, 2)).shape == (0,)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gaussianization", {"kernels": 0}),
        ("gaussianization", {"layers": 0}),
        ("mixture", {"components": 0}),
        ("mixture", {"covariance": "banded"}),
    ],
)
def test_impossible_options_are_named(name: str, options: dict) -> None:
    with pytest.raises(StudyError, match=next(iter(options))):
        build_flow(name, targets=2, context=1, **options)


def test_all_are_architectures() -> None:
    assert set(AMORTIZED) <= set(ARCHITECTURES)
    assert isinstance(Gaussianization(2, 1).bijection, Amortized)
