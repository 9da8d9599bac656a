"""An unfolded autoregressive network gives what its passes give, and a draw costs one pass of it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from zoo import scatter

from fluvial.flows import build_flow


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"residual": True, "gate": True, "batch_norm": True},
        {"residual": True, "activation": "relu"},
        {"width": 8, "depth": 1},
        {"dropout": 0.2, "activation": "tanh"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("targets", "context"), [(1, 0), (1, 2), (2, 2), (11, 3), (11, 0)])
@pytest.mark.parametrize("architecture", ["maf", "autoregressive-spline"])
def test_unfolding_is_the_inverse(architecture, targets, context, options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(targets)
        flow = build_flow(architecture, targets=targets, context=context, **({"width": 24} | options))
    bijection = scatter(flow, 0.2).double().eval().bijection
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(4, 7, targets, generator=generator, dtype=torch.float64)
    c = torch.randn(4, 7, context, generator=generator, dtype=torch.float64) if context else None
    with torch.no_grad():
        x, logdet = bijection.inverse(z, c)
        back, other = bijection.forward(x, c)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(logdet, -other)
    slow, slow_logdet = bijection.inverse(z, c)  # with gradients: a pass for every coordinate
    torch.testing.assert_close(x, slow.detach())
    torch.testing.assert_close(logdet, slow_logdet.detach())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"residual": True, "gate": True},
        {"residual": True, "depth": 2},
        {"residual": True, "batch_norm": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(("targets", "context"), [(1, 0), (1, 2), (2, 2), (3, 2), (11, 3), (11, 0)])
@pytest.mark.parametrize("architecture", ["maf", "autoregressive-spline"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_context_for_all_draws_is_the_same(architecture, targets, context, options, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(targets)
        flow = build_flow(
            architecture, targets=targets, context=context, **({"width": 24, "gain": 2.0} | options)
        )
    bijection = scatter(flow, 0.2).to(dtype).eval().bijection
    generator = torch.Generator().manual_seed(6)
    z = torch.randn(5, 9, targets, generator=generator, dtype=dtype)
    c = torch.randn(1, context, generator=generator, dtype=dtype).expand(5, 9, -1) if context else None
    with torch.no_grad():
        x, logdet = bijection.inverse(z, c)
        one, _ = bijection.inverse(z[:1, :1], None if c is None else c[:1, :1])
    slow, slow_logdet = bijection.inverse(z, None if c is None else c.clone())
    close = (
        {} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    )  # float32 rows go through the kernel
    torch.testing.assert_close(x, slow.detach(), **close)
    torch.testing.assert_close(logdet, slow_logdet.detach(), **close)
    torch.testing.assert_close(one, slow.detach()[:1, :1], **close)


def test_a_draw_costs_about_one_pass():
    flow = build_flow(
        "maf", targets=16, context=4, steps=1, width=64
    ).double()  # no kernels: their work is not counted
    flops = {}
    with torch.no_grad():
        for name, act in {
            "pass": lambda c: flow(c).log_prob(torch.zeros(100, 16).double()),
            "draw": lambda c: flow(c).sample(),
        }.items():
            with FlopCounterMode(display=False) as counter:
                act(torch.zeros(100, 4).double())
            flops[name] = counter.get_total_flops()
    assert flops["draw"] < 1.1 * flops["pass"]


@pytest.mark.parametrize("options", [{}, {"residual": True, "gate": True}])
@pytest.mark.parametrize("architecture", ["maf", "autoregressive-spline"])
@pytest.mark.parametrize("targets", [1, 2, 3])
def test_few_coordinates_by_the_kernel(targets, architecture, options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(targets)
        flow = build_flow(architecture, targets=targets, context=2, width=24, **options)
    flow = scatter(flow, 0.2).eval()
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(70, targets, generator=generator)
    c = torch.randn(70, 2, generator=generator)
    with torch.no_grad():
        x, logdet = flow.bijection.inverse(z, c)
        exact, exact_logdet = flow.double().bijection.inverse(z.double(), c.double())
    torch.testing.assert_close(x.double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logdet.double(), exact_logdet, rtol=1e-3, atol=1e-3)
