"""Splines on the circle: periodic without a seam."""

from __future__ import annotations

import math

import pytest
import torch
from zoo import scatter

from fluvial.core import Chain, CircularSpline, Uniform, circular_spline, rational_quadratic
from fluvial.core.circular import circular_spline_parameters, wrap


def _parameters(rows: int, bins: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, circular_spline_parameters(bins), dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("inverse", [False, True])
def test_whole_turns_do_not_matter(inverse: bool) -> None:
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    parameters = _parameters(1).expand(50, -1)
    z, log_slope = circular_spline(x, parameters, inverse=inverse)
    for turns in (-3, 1, 100):
        again, again_slope = circular_spline(x + 2 * math.pi * turns, parameters, inverse=inverse)
        torch.testing.assert_close(again, z, atol=1e-10, rtol=0)
        torch.testing.assert_close(again_slope, log_slope, atol=1e-9, rtol=0)


def test_round_trip_modulo_whole_turns() -> None:
    x = torch.linspace(-20, 20, 500, dtype=torch.float64)
    parameters = _parameters(500)
    z, log_slope = circular_spline(x, parameters)
    assert ((z >= -math.pi) & (z < math.pi)).all()
    back, inverse_slope = circular_spline(z, parameters, inverse=True)
    torch.testing.assert_close(wrap(back - x), torch.zeros_like(x), atol=1e-9, rtol=0)
    torch.testing.assert_close(inverse_slope, -log_slope, atol=1e-8, rtol=0)


def test_the_map_goes_round_once() -> None:
    """Unwrapped, the map rises by one turn over one turn: every angle is reached exactly once."""
    x = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    z, _ = circular_spline(x, _parameters(1).expand(len(x), -1))
    steps = wrap(z.diff())
    assert (steps > 0).all()
    assert float(steps.sum()) == pytest.approx(2 * math.pi, abs=1e-9)


def _seam(log_slope_at) -> tuple[float, float]:
    """Return how much log-density, and its slope, differ between the two sides of ±π."""
    eps = 1e-5
    x = torch.tensor([-math.pi, -math.pi + eps, math.pi - eps, math.pi - 1e-12], dtype=torch.float64)
    left, left_in, right_in, right = log_slope_at(x).tolist()
    return abs(left - right), abs((left_in - left) / eps - (right - right_in) / eps)


def test_density_has_no_seam() -> None:
    parameters = _parameters(1)
    jump, kink = _seam(lambda x: circular_spline(x, parameters.expand(len(x), -1))[1])
    assert jump < 1e-6
    assert kink < 1e-2


def test_a_spline_on_the_line_has_a_seam() -> None:
    """The control: the same test finds the seam of a spline that is not periodic."""
    parameters = torch.zeros(1, 7, dtype=torch.float64)
    parameters[0, -1] = 0.5  # the slope at the upper end alone
    jump, _ = _seam(lambda x: rational_quadratic(x, parameters.expand(len(x), -1), bound=math.pi)[1])
    assert jump > 0.1


def test_density_over_angles_integrates_to_one() -> None:
    bijection = scatter(Chain([CircularSpline(1, bins=5), CircularSpline(1, bins=8)]).double(), 1.0)
    base = Uniform(-math.pi, math.pi)
    x = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        z, logdet = bijection(x)
        p = (base.log_prob(z) + logdet).exp()
    assert float(torch.trapezoid(p, x[:, 0])) == pytest.approx(1, abs=1e-4)
    assert float(p.max() / p.min()) > 3  # it is not the uniform density that is integrated


def test_gradients_against_finite_differences() -> None:
    x = torch.linspace(-9, 9, 20, dtype=torch.float64).requires_grad_()
    parameters = _parameters(20).requires_grad_()
    for inverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda a, p, inverse=inverse: circular_spline(a, p, inverse=inverse), (x, parameters)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrap_stays_in_its_interval(dtype: torch.dtype) -> None:
    near = torch.tensor([math.pi, -math.pi, 3 * math.pi, 0.0, 1e6, -1e6], dtype=dtype)
    x = torch.cat(
        (near, near * (1 + torch.finfo(dtype).eps), near * (1 - torch.finfo(dtype).eps))
    ).requires_grad_()
    y = wrap(x)
    assert ((y >= -math.pi) & (y < math.pi)).all()
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope == 1).all()
