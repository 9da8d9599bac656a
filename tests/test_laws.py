"""The laws that every bijection and every flow of the zoo obeys."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from zoo import (
    BIJECTIONS,
    FLOWS,
    NEAR_START,
    NO_BIJECTION,
    SOLVER,
    Entry,
    inputs,
    make_bijection,
    make_flow,
    new_flow,
)

DTYPES = [torch.float32, torch.float64]
CASES = [(name, dim) for name, entry in BIJECTIONS.items() for dim in entry.dims]
FLOW_CASES = [(name, targets, context) for name in FLOWS for targets in (1, 2, 5) for context in (0, 3)]

bijections = pytest.mark.parametrize(("name", "dim"), CASES, ids=[f"{n}-{d}" for n, d in CASES])
flows = pytest.mark.parametrize(("name", "targets", "context"), FLOW_CASES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def tolerance(dtype: torch.dtype, solver: float = 0.0) -> float:
    return max(2e-4 if dtype == torch.float32 else 1e-9, solver)


@bijections
@dtypes
def test_round_trip(name: str, dim: int, dtype: torch.dtype) -> None:
    bijection = make_bijection(name, dim, dtype)
    x, context = inputs(BIJECTIONS[name], dim, 200, dtype)
    z, logdet = bijection(x, context)
    back, inverse_logdet = bijection.inverse(z, context)
    torch.testing.assert_close(bijection.inverse_value(z, context), back, rtol=0, atol=0)
    assert z.dtype == back.dtype == logdet.dtype == dtype
    assert z.shape == x.shape
    assert logdet.shape == x.shape[:-1]
    # What rounding of z leaves open in x is its spacing over the slope.
    near = tolerance(dtype, BIJECTIONS[name].solver)
    torch.testing.assert_close(bijection(back, context)[0], z, atol=near, rtol=near)
    torch.testing.assert_close(back, x, atol=10 * near, rtol=10 * near)
    torch.testing.assert_close(inverse_logdet, -logdet, atol=50 * near, rtol=50 * near)


@bijections
def test_logdet_is_that_of_the_jacobian(name: str, dim: int) -> None:
    bijection = make_bijection(name, dim, torch.float64)
    x, context = inputs(BIJECTIONS[name], dim, 12, torch.float64)
    for call in (bijection, bijection.inverse):
        start = x if call is bijection else bijection(x, context)[0].detach()
        _, logdet = call(start, context)
        for i in range(len(start)):
            at = None if context is None else context[i]
            jacobian = torch.autograd.functional.jacobian(
                lambda v, at=at, call=call: call(v, at)[0], start[i]
            )
            expected = torch.linalg.slogdet(jacobian).logabsdet
            torch.testing.assert_close(logdet[i], expected, atol=1e-7, rtol=1e-7)


def far_out(entry: Entry, dim: int, dtype: torch.dtype) -> Tensor:
    """Return rows up to ±1e6 and right at the edges of the domain and of the splines' boxes."""
    low, high = entry.domain
    info = torch.finfo(dtype)
    values = [0.0, 1.0, -1.0, 5.0, -5.0, 2.0, -2.0, 30.0, -30.0, 1e3, -1e3, 1e6, -1e6, 1e-6, -1e-6]
    for edge, sign in ((low, 1), (high, -1)):
        if math.isfinite(edge):
            step = max(abs(edge) * info.eps * 4, info.tiny * 4)
            values += [edge + sign * step, edge + sign * 1e-3, edge + sign * 1e6]
    inside = torch.tensor([v for v in values if low < v < high], dtype=dtype)
    inside = inside[(inside > low) & (inside < high)]
    generator = torch.Generator().manual_seed(1)
    mixed = inside[torch.randint(len(inside), (300, dim), generator=generator)]
    return torch.cat((inside[:, None].expand(-1, dim), mixed))


@bijections
@dtypes
def test_values_and_gradients_are_finite_however_far_out(name: str, dim: int, dtype: torch.dtype) -> None:
    entry = BIJECTIONS[name]
    bijection = make_bijection(name, dim, dtype)
    backwards = Entry(entry.make, domain=entry.image, context=entry.context)
    for call, rows in (
        (bijection, far_out(entry, dim, dtype)),
        (bijection.inverse, far_out(backwards, dim, dtype)),
    ):
        rows = rows.clone().requires_grad_()
        context = (
            torch.ones(len(rows), entry.context, dtype=dtype, requires_grad=True) if entry.context else None
        )
        value, logdet = call(rows, context)
        assert value.isfinite().all()
        assert logdet.isfinite().all()
        for output in (value, logdet):
            wanted = [t for t in (rows, context, *bijection.parameters()) if t is not None]
            grads = (
                torch.autograd.grad(output.sum(), wanted, retain_graph=True, allow_unused=True)
                if output.requires_grad
                else []
            )
            assert all(g is None or g.isfinite().all() for g in grads)


@pytest.mark.parametrize(("name", "dim"), [c for c in CASES if c[0] != "inverse of asinh"])
def test_inverse_never_leaves_the_domain(name: str, dim: int) -> None:
    entry = BIJECTIONS[name]
    low, high = entry.domain
    backwards = Entry(entry.make, domain=entry.image, context=entry.context)
    for dtype in DTYPES:
        z = far_out(backwards, dim, dtype)
        context = torch.zeros(len(z), entry.context, dtype=dtype) if entry.context else None
        x = make_bijection(name, dim, dtype).inverse(z, context)[0]
        if name == "columnwise":
            x, low = x[:, ::2], -1.0  # its other columns are unbounded
        assert ((x > low) & (x < high)).all()


@bijections
def test_batch_shape_does_not_matter(name: str, dim: int) -> None:
    bijection = make_bijection(name, dim, torch.float64)
    x, context = inputs(BIJECTIONS[name], dim, 24, torch.float64)
    z, logdet = bijection(x, context)
    shaped = None if context is None else context.reshape(2, 3, 4, -1)
    z2, logdet2 = bijection(x.reshape(2, 3, 4, dim), shaped)
    torch.testing.assert_close(z2.reshape(24, dim), z)
    torch.testing.assert_close(logdet2.reshape(24), logdet)
    one = None if context is None else context[0]
    torch.testing.assert_close(bijection(x[0], one)[0], z[0])


@flows
@dtypes
def test_density_of_draws_is_log_prob(name: str, targets: int, context: int, dtype: torch.dtype) -> None:
    flow = make_flow(name, targets, context, dtype)
    c = torch.randn(6, context, dtype=dtype, generator=torch.Generator().manual_seed(0)) if context else None
    p = flow(c)
    x, log_prob = p.rsample_and_log_prob((50,), generator=torch.Generator().manual_seed(1))
    assert x.shape == (50, *p.batch_shape, targets)
    near = max(50 * tolerance(dtype), SOLVER.get(name, 0.0))
    torch.testing.assert_close(p.log_prob(x), log_prob, atol=near, rtol=near)
    again = p.sample((50,), generator=torch.Generator().manual_seed(1))
    # Without gradients batch norm is part of the kernel: other roundings.
    torch.testing.assert_close(again, x.detach(), atol=max(1e-7, tolerance(dtype)), rtol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("targets", [1, 2])
def test_density_integrates_to_one(name: str, targets: int) -> None:
    flow = make_flow(name, targets, 3, torch.float64, size=0.15)  # smooth enough for the quadrature
    z = torch.linspace(-9.5, 9.5, 20_000 if targets == 1 else 600, dtype=torch.float64)
    axes = torch.sinh(z / 2.5)  # fine in the middle, ±22 at the ends
    grid = torch.stack(torch.meshgrid(*[axes] * targets, indexing="ij"), -1)
    for seed in range(3):
        c = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            p = flow(c).log_prob(grid).exp()
        for _ in range(targets):
            p = torch.trapezoid(p, axes, dim=-1)
        assert abs(float(p) - 1) < 5e-3


@pytest.mark.parametrize("targets", [1, 2, 5])
@pytest.mark.parametrize("name", [name for name in FLOWS if name not in NO_BIJECTION])
def test_every_output_sees_the_context(name: str, targets: int) -> None:
    context = 3
    flow = make_flow(name, targets, context, torch.float64)
    c = torch.zeros(context, dtype=torch.float64, requires_grad=True)
    x = torch.full((targets,), 0.3, dtype=torch.float64)
    z, _ = flow.bijection(x, c)
    back, _ = flow.bijection.inverse(x, c)
    for output in (z, back):
        for i in range(targets):
            (gradient,) = torch.autograd.grad(output[i], c, retain_graph=True)
            assert (gradient.abs() > 1e-9).all(), f"coordinate {i} is blind to the context"


@flows
@dtypes
def test_flow_is_finite_far_out(name: str, targets: int, context: int, dtype: torch.dtype) -> None:
    flow = make_flow(name, targets, context, dtype)
    x = far_out(Entry(lambda dim: None), targets, dtype).requires_grad_()  # type: ignore[arg-type, return-value]
    c = torch.full((len(x), context), 1e6, dtype=dtype) if context else None
    for at in (c, None if c is None else -c, None if c is None else c * 0):
        log_prob = flow(at).log_prob(x)
        assert log_prob.isfinite().all()
        grads = torch.autograd.grad(log_prob.sum(), [x, *flow.parameters()], allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in grads)


@pytest.mark.parametrize(
    ("name", "targets", "context"), [case for case in FLOW_CASES if case[0] not in NO_BIJECTION]
)
def test_starts_at_the_identity(name: str, targets: int, context: int) -> None:
    flow = new_flow(name, targets, context).eval()
    x = torch.randn(20, targets, generator=torch.Generator().manual_seed(0))
    c = torch.randn(20, context, generator=torch.Generator().manual_seed(1)) if context else None
    torch.testing.assert_close(
        flow(c).log_prob(x), flow.base.log_prob(x), atol=NEAR_START.get(name, 1e-5), rtol=1e-5
    )


@pytest.mark.parametrize("name", FLOWS)
def test_state_round_trip(name: str) -> None:
    flow = make_flow(name, 2, 3)
    other = new_flow(name, 2, 3).eval()
    other.load_state_dict(flow.state_dict())
    x, c = torch.randn(5, 2), torch.randn(5, 3)
    assert torch.equal(flow(c).log_prob(x), other(c).log_prob(x))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.floats(-8, 8),
    st.integers(1, 40),
    st.booleans(),
)
def test_spline_is_monotone_and_finite(values: list[float], size: float, bins: int, inverse: bool) -> None:
    from fluvial.core import rational_quadratic

    x = torch.tensor(sorted(values))
    parameters = size * torch.randn(3 * bins + 1, generator=torch.Generator().manual_seed(bins))
    y, log_slope = rational_quadratic(x, parameters.expand(len(x), -1), inverse=inverse)
    assert y.isfinite().all()
    assert log_slope.isfinite().all()
    assert (y.diff() >= -1e-5 * (1 + y[1:].abs())).all()


def test_spline_gradients_against_finite_differences() -> None:
    from fluvial.core import rational_quadratic

    generator = torch.Generator().manual_seed(3)
    x = (4 * torch.randn(60, dtype=torch.float64, generator=generator)).requires_grad_()
    parameters = (1.5 * torch.randn(60, 19, dtype=torch.float64, generator=generator)).requires_grad_()
    for inverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, p, inverse=inverse: rational_quadratic(x, p, inverse=inverse), (x, parameters)
        )


def test_context_of_the_wrong_size_is_named() -> None:
    flow = make_flow("maf", 2, 3)
    with pytest.raises(ValueError, match=r"trailing dimension 3; got shape \(4, 2\)"):
        flow(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"trailing dimension 2 for targets; got shape \(4, 5\)"):
        flow(torch.zeros(4, 3)).log_prob(torch.zeros(4, 5))
