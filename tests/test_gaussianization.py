"""The mixture-CDF kernel against float64 and scipy, at its extremes, and the linear maps beside it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_ndtr, ndtri_exp
from torch import Tensor

from fluvial.core.gaussianization import (
    IDENTITY_SHARE,
    TABLE_FROM,
    _mills,
    _tail_quantile,
    gaussianize,
    starting_kernels,
)
from fluvial.core.triangular import reflect, rotate, triangular_affine, triangular_parameters


def mixtures(
    kernels: int, columns: int, size: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Return means, log-widths and logits ``[K, C]`` of mixtures with gaps, narrow kernels and light ones."""
    generator = torch.Generator().manual_seed(kernels)
    draw = [torch.randn(kernels, columns, generator=generator, dtype=torch.float64) for _ in range(3)]
    return tuple(t.to(dtype) for t in (2 * size * draw[0], 0.7 * size * draw[1] - 1, size * draw[2]))


def test_mills_ratio_and_quantile_against_scipy() -> None:
    y = np.concatenate((np.linspace(0, 30, 2001), np.logspace(1.5, 6, 50)))
    log_tail = log_ndtr(-y)
    ratio = np.exp(log_tail + 0.5 * y**2 + 0.5 * math.log(2 * math.pi))
    near = y < 30
    np.testing.assert_allclose(_mills(torch.tensor(y[near]).float()).numpy(), ratio[near], rtol=6e-7)
    np.testing.assert_allclose(_mills(torch.tensor(y[near])).numpy(), ratio[near], rtol=1e-12)
    for dtype, error in ((torch.float32, 5e-7), (torch.float64, 1e-13)):
        found, found_ratio = _tail_quantile(torch.tensor(log_tail, dtype=dtype))
        np.testing.assert_allclose(found.numpy(), y, atol=error, rtol=error)
        np.testing.assert_allclose(found_ratio.numpy()[near], ratio[near], rtol=20 * error)


@pytest.mark.parametrize("kernels", [1, 4, 10])
def test_definition_against_scipy(kernels: int) -> None:
    mean, log_scale, logits = (p.numpy()[:, :, None] for p in mixtures(kernels, 3, dtype=torch.float64))
    x = np.linspace(-12, 12, 301)
    weight = np.exp(logits - np.logaddexp.reduce(logits, axis=0))
    t = (x - mean) / np.exp(log_scale)
    lower = np.logaddexp.reduce(np.log(weight) + log_ndtr(t), axis=0)
    upper = np.logaddexp.reduce(np.log(weight) + log_ndtr(-t), axis=0)
    h = np.where(lower < upper, ndtri_exp(np.minimum(lower, -0.5)), -ndtri_exp(np.minimum(upper, -0.5)))
    expected = (1 - IDENTITY_SHARE) * h + IDENTITY_SHARE * x
    parameters = [torch.tensor(p[..., 0]) for p in (mean, log_scale, logits)]
    z, _ = gaussianize(torch.tensor(x).expand(3, -1).contiguous(), *parameters)
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_gradients_against_finite_differences() -> None:
    parameters = [p.requires_grad_() for p in mixtures(4, 5, dtype=torch.float64)]
    x = 3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scale in (1, 10):
        for inverse in (False, True):
            at = (scale * x).requires_grad_()
            assert torch.autograd.gradcheck(
                lambda *a, inverse=inverse: gaussianize(*a, inverse=inverse), (at, *parameters)
            )


@pytest.mark.parametrize("values", [1, 5, TABLE_FROM, 1000])
@pytest.mark.parametrize("size", [0.3, 1.0, 2.0])
def test_float32_against_float64_and_back(values: int, size: float) -> None:
    parameters = mixtures(10, 40, size)
    x = 3 * torch.randn(40, values, generator=torch.Generator().manual_seed(1))
    z, log_slope = gaussianize(x, *parameters)
    exact, _ = gaussianize(x.double(), *(p.double() for p in parameters))
    torch.testing.assert_close(z.double(), exact, atol=2e-5, rtol=2e-5)
    back, back_slope = gaussianize(z, *parameters, inverse=True)
    # an error of a few roundings of z is 1 / slope of it in x; one of 1e-5 in x is allowed besides
    allowed = 1e-5 * (1 + x.abs()) + 4e-6 * (1 + z.abs()) * (-log_slope).exp()
    assert ((back - x).abs() <= allowed).all()
    torch.testing.assert_close(back_slope, -log_slope, atol=1e-2, rtol=1e-2)


def test_table_of_many_values_agrees_with_one_by_one() -> None:
    parameters = mixtures(10, 30, 1.0)
    z = torch.randn(30, 2000, generator=torch.Generator().manual_seed(2))
    z[:, :2] = torch.tensor([40.0, -1e5])  # far beyond every table
    many, slopes = gaussianize(z, *parameters, inverse=True)
    one = torch.cat(
        [gaussianize(part, *parameters, inverse=True)[0] for part in z.split(TABLE_FROM - 1, dim=1)], 1
    )
    allowed = 1e-5 * (1 + one.abs()) + 4e-6 * (1 + z.abs()) * slopes.exp()
    assert ((many - one).abs() <= allowed).all()


@pytest.mark.parametrize("values", [1, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_out_it_is_the_widest_kernel(values: int, dtype: torch.dtype) -> None:
    mean, log_scale, logits = mixtures(6, 8, dtype=dtype)
    x = torch.full((8, values), 1e6, dtype=dtype)
    widest = log_scale.max(0, keepdim=True)
    expected = (1 - IDENTITY_SHARE) * (-widest.values).exp() + IDENTITY_SHARE
    for sign in (1, -1):
        z, log_slope = gaussianize(sign * x, mean, log_scale, logits)
        torch.testing.assert_close(log_slope.exp(), expected.T.expand_as(x), atol=0, rtol=1e-5)
        torch.testing.assert_close(z, sign * x * expected.T, atol=0, rtol=1e-4)
        back, _ = gaussianize(z, mean, log_scale, logits, inverse=True)
        torch.testing.assert_close(back, sign * x, atol=0, rtol=1e-6)


def test_gap_between_kernels_keeps_a_slope() -> None:
    mean, log_scale, logits = torch.tensor([[-8.0], [8.0]]), torch.full((2, 1), -4.0), torch.zeros(2, 1)
    x = torch.linspace(-20, 20, 4001)[None].requires_grad_()
    z, log_slope = gaussianize(x, mean, log_scale, logits)
    assert (z.diff() > 0).all()
    assert log_slope.min() >= math.log(IDENTITY_SHARE) - 1e-5
    assert log_slope[0, 2000] < math.log(IDENTITY_SHARE) + 1e-5  # the negative control: the gap is there
    (gradient,) = torch.autograd.grad(log_slope.sum(), x)
    assert gradient.isfinite().all()
    back, _ = gaussianize(z.detach(), mean, log_scale, logits, inverse=True)
    assert ((back - x).abs() <= 1e-5 * (1 + x.abs()) + 4e-6 * (-log_slope).exp()).all()


def test_draws_follow_the_mixture() -> None:
    parameters = mixtures(5, 1)
    z = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(3))
    weight = parameters[2].softmax(0)
    mean = (weight * parameters[0]).sum()
    variance = (weight * (parameters[0].square() + (2 * parameters[1]).exp())).sum() - mean.square()
    x, _ = gaussianize(z, *parameters, inverse=True)
    assert abs(float(x.mean() - mean)) < 5 * float((variance / z.numel()).sqrt()) + 2 * IDENTITY_SHARE
    assert abs(float(x.var() / variance) - 1) < 0.03


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=30), st.integers(1, 12), st.floats(0, 4))
def test_monotone_and_finite(values: list[float], kernels: int, size: float) -> None:
    x = torch.tensor(sorted(values))[None]
    z, log_slope = gaussianize(x, *mixtures(kernels, 1, size))
    assert z.isfinite().all()
    assert log_slope.isfinite().all()
    assert (z.diff() >= -1e-5 * (1 + z[:, 1:].abs())).all()


@pytest.mark.parametrize("kernels", [1, 2, 6, 10, 30])
def test_starting_kernels_are_nearly_the_normal_and_all_differ(kernels: int) -> None:
    mean, log_scale, logits = starting_kernels(kernels)
    x = torch.linspace(-2, 2, 41)[None]
    z, _ = gaussianize(x, mean[:, None], log_scale[:, None], logits[:, None])
    torch.testing.assert_close(z, x, atol=0.01, rtol=0)
    assert len({(float(m), round(float(w), 6)) for m, w in zip(mean, logits, strict=True)}) == kernels


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_triangular_factor_is_that_of_its_gaussian(dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    parameters = torch.randn(triangular_parameters(dim), generator=generator, dtype=torch.float64)
    mean, _ = triangular_affine(torch.zeros(dim, dtype=torch.float64), parameters, inverse=True)
    columns, _ = triangular_affine(torch.eye(dim, dtype=torch.float64), parameters[:, None], inverse=True)
    factor = columns - mean[:, None]
    assert torch.equal(factor.triu(1), torch.zeros_like(factor))
    assert (factor.diagonal() > 0).all()
    x = torch.randn(dim, 20, generator=generator, dtype=torch.float64)
    z, logdet = triangular_affine(x, parameters[:, None])
    normal = torch.distributions.MultivariateNormal(mean, scale_tril=factor)
    expected = normal.log_prob(x.T)
    found = -0.5 * z.square().sum(0) - 0.5 * dim * math.log(2 * math.pi) + logdet
    torch.testing.assert_close(found, expected)


def test_rotation_is_orthogonal_and_moves_with_its_numbers() -> None:
    for dim in (1, 3, 6):
        raw = torch.randn(
            dim * dim, 1, 1, generator=torch.Generator().manual_seed(9 * dim), dtype=torch.float64
        )
        unit = torch.eye(dim, dtype=torch.float64)
        matrix = rotate(unit[:, None], raw).squeeze(1)
        torch.testing.assert_close(matrix @ matrix.T, unit)
        torch.testing.assert_close(rotate(unit[:, None, :1], raw).squeeze(), matrix[:, 0].squeeze())
        if dim > 1:
            assert not torch.allclose(matrix, rotate(unit[:, None], 0 * raw).squeeze(1), atol=0.1)


def test_rotation_survives_a_vanishing_direction() -> None:
    x = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))
    start = -rotate.__globals__["_spread_directions"](2).float().reshape(4, 1, 1)
    raw = (start / (1 - start.abs() / 10)).requires_grad_()  # squashed, it undoes the start
    z = rotate(x, raw)
    torch.testing.assert_close(z.norm(dim=0), x.norm(dim=0))
    z.sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def test_reflections_undo_in_reverse_order() -> None:
    vectors = torch.randn(3, 3, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    torch.testing.assert_close(reflect(reflect(x, vectors), vectors, inverse=True), x)
    assert not torch.allclose(reflect(reflect(x, vectors), vectors), x)  # the negative control
