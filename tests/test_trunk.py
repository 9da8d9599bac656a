"""A trunk: every architecture takes it, every target sees the context through it, and it runs once per context."""

import pytest
import torch
from zoo import scatter

from fluvial.errors import StudyError
from fluvial.flows import ARCHITECTURES, build_flow
from fluvial.flows.build import architecture_options

SMALL = {"continuous": {"solver_steps": 2}}


def trunked(architecture, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        flow = build_flow(
            architecture, targets=3, context=2, trunk=8, width=16, **SMALL.get(architecture, {}), **options
        )
        return scatter(flow).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_a_trunk(architecture):
    flow = trunked(architecture)
    context = torch.tensor([[0.3, -1.0], [0.3, 1.0]])
    p = flow(context)
    assert (p.batch_shape, p.event_shape) == ((2,), (3,))
    x = p.sample((500,), generator=torch.Generator().manual_seed(1))
    assert x.shape == (500, 2, 3)
    assert torch.isfinite(p.log_prob(x)).all()
    at_each = p.log_prob(x[:, :1])
    assert not torch.allclose(at_each[:, 0], at_each[:, 1], atol=1e-4)
    flow.train()
    flow.backward(x[:, 0], context[:1].expand(500, 2), generator=torch.Generator().manual_seed(2))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in flow.trunk.parameters())
    assert "trunk" in architecture_options(architecture)


def test_a_trunk_runs_once_per_context():
    flow = trunked("coupling-spline")
    rows = []
    flow.trunk.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    flow(torch.zeros(5, 2)).sample((1000,))
    assert rows == [5]


@pytest.mark.parametrize(
    ("context", "trunk", "message"), [(0, 8, "Expected context columns"), (2, -1, "Expected trunk to be 0")]
)
def test_a_trunk_that_cannot_be_is_refused(context, trunk, message):
    with pytest.raises(StudyError, match=message):
        build_flow("maf", targets=2, context=context, trunk=trunk)
