"""The spline's kernel in C gives what PyTorch's operations give, and is left out where it cannot serve."""

import pytest
import torch
from splines import problem, run

from fluvial.core import native
from fluvial.core.spline import _KernelSpline, _Spline, rational_quadratic, spline_parameters

needs_kernels = pytest.mark.skipif(
    native.library() is None, reason="no kernels: fluvial was installed without a C compiler"
)


def by_kernel(*arguments):
    return _KernelSpline.apply(*arguments, native)


@needs_kernels
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("bins", [1, 2, 7, 8, 9, 16, 31, 128])
def test_the_kernel_agrees_with_double_precision(bins, inverse):
    x, parameters, grads = problem(bins)
    native_, plain = (run(s, x, parameters, grads, inverse) for s in (by_kernel, _Spline.apply))
    exact = run(_Spline.apply, x.double(), parameters.double(), [g.double() for g in grads], inverse)
    for ours, theirs, truth in zip(native_, plain, exact, strict=True):
        ours, theirs = ((t.double() - truth).abs() / (1 + truth.abs()) for t in (ours, theirs))
        # As near to the truth as the same operations one by one in float32, here and in the tail of the errors.
        for quantile in (0.5, 0.99):
            assert (
                ours.flatten()[:100_000].quantile(quantile)
                <= 3 * theirs.flatten()[:100_000].quantile(quantile) + 1e-6
            )


@needs_kernels
def test_far_out_and_not_a_number():
    x = torch.tensor([1e6, -1e6, 3e38, float("nan"), 0.0, 5.0, -5.0])
    _, parameters, _ = problem(8, rows=len(x), size=3.0)
    parameters[4] = float("nan")
    for inverse in (False, True):
        y, log_slope = by_kernel(x, parameters, 5.0, inverse)
        other, other_slope = _Spline.apply(x, parameters, 5.0, inverse)
        torch.testing.assert_close(y, other, equal_nan=True, rtol=1e-4, atol=1e-4)
        # Where the last bin is narrow, the rounding of its start moves the slope at its end.
        torch.testing.assert_close(log_slope[:3], other_slope[:3], rtol=1e-3, atol=1e-3)
        assert y.isnan().tolist() == [False, False, False, True, True, False, False]


@needs_kernels
@pytest.mark.parametrize("rows", [2, 33, 3000])
@pytest.mark.parametrize("bins", [1, 7, 16, 32])
def test_one_set_of_parameters_for_all_rows_gives_what_a_copy_for_each_gives(bins, rows):
    x, parameters, _ = problem(bins, rows)
    for inverse in (False, True):
        shared = by_kernel(x, parameters[:1].expand(rows, -1), 5.0, inverse)
        copied = by_kernel(x, parameters[:1].expand(rows, -1).contiguous(), 5.0, inverse)
        other = by_kernel(x, parameters, 5.0, inverse)
        for a, b, c in zip(shared, copied, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
            assert not torch.equal(a, c)


@needs_kernels
def test_threads_change_nothing():
    x, parameters, grads = problem(16, rows=20_000)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(by_kernel, x, parameters, grads, False))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_what_the_kernel_serves():
    x, parameters, _ = problem(8, rows=5)
    assert native.serves_spline(x, parameters) == (native.library() is not None)
    assert not native.serves_spline(x.double(), parameters.double())
    assert not native.serves_spline(x.to("meta"), parameters.to("meta"))
    many = torch.zeros(5, spline_parameters(600))
    assert not native.serves_spline(x, many)
    assert rational_quadratic(x, many)[0].shape == x.shape


def test_kernels_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("FLUVIAL_KERNELS", "0")
    assert native.library.__wrapped__() is None


def test_a_library_that_cannot_be_loaded_counts_as_none(monkeypatch, tmp_path):
    broken = tmp_path / "kernels.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "LIBRARY", broken)
    assert native.library.__wrapped__() is None
