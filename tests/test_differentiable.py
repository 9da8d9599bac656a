"""log p of tensors, in physical units: values as log_prob has them, gradients against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from zoo import scatter

from fluvial import DataError
from fluvial.data.schema import Column, Schema, Support
from fluvial.data.transforms import ColumnTransforms
from fluvial.density import Density
from fluvial.flows.mixed import build_mixed_flow

TABLE = {
    "mass": np.geomspace(3, 60, 200),
    "ratio": np.linspace(0.05, 0.95, 200),
    "phi": np.linspace(-math.pi, math.pi * 0.99, 200),
    "Z": np.geomspace(1e-4, 3e-2, 200),
    "turn": np.linspace(0, 359, 200),
}
TARGETS = (
    Column("mass", "target", support=Support(0.0)),
    Column("ratio", "target", support=Support(0.0, 1.0)),
)
PHI = Column("phi", "target", period=(-math.pi, math.pi))
CONTEXT = (
    Column("Z", "context", support=Support(0.0), transform="log"),
    Column("turn", "context", period=(0.0, 360.0)),
)


def make(targets: tuple[Column, ...] = TARGETS, members: int = 1, **columns: Column) -> Density:
    """Return a density whose weights have moved away from their start."""
    schema = Schema(targets, CONTEXT)
    parts = [ColumnTransforms.fit(c, TABLE) for c in (schema.targets, schema.context)]
    options = {"steps": 2, "width": 16, "bins": 6}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = build_mixed_flow(
            "autoregressive-spline",
            **parts[0].layout.arguments,
            context=parts[1].layout.width,
            members=members,
            **options,
        )
    scatter(flow)
    return Density(flow, schema, *parts, architecture="autoregressive-spline", options=options)  # type: ignore[arg-type]


X = torch.tensor([[8.0, 0.3], [31.0, 0.8], [-1.0, 0.5], [5.0, 0.02]], dtype=torch.float64)
C = torch.tensor([[1e-3, 10.0]], dtype=torch.float64)


@pytest.mark.parametrize("members", [1, 3])
def test_values_are_those_of_log_prob(members: int) -> None:
    density = make(members=members)
    expected = density.given(Z=1e-3, turn=10.0).log_prob(X.numpy())
    for dtype in (torch.float32, torch.float64):
        found = density.log_prob_tensor(X.to(dtype), C.to(dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(found.detach(), expected, atol=2e-4)
    assert expected[2] == -np.inf
    events, contexts = X[:2, None], torch.cat([C, 2 * C, 3 * C])
    assert density.log_prob_tensor(events, contexts).shape == (2, 3)


@pytest.mark.parametrize("members", [1, 2])
def test_gradients_are_those_of_finite_differences(members: int) -> None:
    density = make(members=members)
    x, c = X[[0, 1, 3]].clone().requires_grad_(), C.expand(3, -1).clone().requires_grad_()
    density.log_prob_tensor(x, c).sum().backward()
    for values, gradient in ((x, x.grad), (c, c.grad)):
        assert gradient is not None
        for i in range(2):
            step = torch.zeros_like(values)
            step[:, i] = 1e-6 * values[:, i].detach()
            up, down = (
                density.log_prob_tensor(x + s * step, c)
                if values is x
                else density.log_prob_tensor(x, c + s * step)
                for s in (1, -1)
            )
            slope = (up - down).detach() / (2 * step[:, i])
            torch.testing.assert_close(gradient[:, i], slope, rtol=1e-5, atol=1e-7)


def test_outside_the_support_there_is_no_gradient() -> None:
    x = X.clone().requires_grad_()
    make().log_prob_tensor(x, C)[[0, 2]].sum().backward()
    assert x.grad is not None
    assert x.grad[2].tolist() == [0.0, 0.0]
    assert x.grad.isfinite().all()


def test_angles_have_gradients_too() -> None:
    density = make((*TARGETS, PHI))
    x = torch.tensor([[8.0, 0.3, 1.0]], dtype=torch.float64, requires_grad=True)
    found = density.log_prob_tensor(x, C)
    # The levels' part of a mixed flow is in no type of its own: values in float32 are compared.
    np.testing.assert_allclose(
        found.detach(), density.given(Z=1e-3, turn=10.0).log_prob(x.detach().numpy()), atol=2e-4
    )
    found.sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


def test_mistakes_are_named() -> None:
    density = make()
    with pytest.raises(DataError, match="x: expected a float32 or float64 tensor; got ndarray"):
        density.log_prob_tensor(X.numpy(), C)  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match=r"context: expected a tensor \[..., 2\] for columns Z, turn; got shape \(4, 0\)"
    ):
        density.log_prob_tensor(X)
    with pytest.raises(DataError, match=r"context: Z = -0.001 is outside the support"):
        density.log_prob_tensor(X, -C)
    with pytest.raises(DataError, match="batch shapes that broadcast"):
        density.log_prob_tensor(X, C.expand(3, 2))
    spike = Column("ratio", "target", support=Support(0.0, 1.0), atoms=(0.5,))
    with pytest.raises(DataError, match="Column ratio has atoms or whole numbers"):
        make((TARGETS[0], spike)).log_prob_tensor(X, C)
