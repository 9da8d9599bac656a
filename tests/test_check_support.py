"""Support and normalisation."""

from __future__ import annotations

import numpy as np
import pytest

from fluvial.check import normalisation, outside_support
from fluvial.errors import DataError


def test_one_draw_outside_fails_and_none_passes():
    draws = np.random.default_rng(0).random((200, 50, 2)) + 0.1
    bounds = [0.0, 0.0], [np.inf, 2.0]
    assert [r.verdict for r in outside_support(draws, *bounds, ["a", "b"])] == ["pass", "pass"]
    draws[17, 3, 0] = -1e-9
    first, second = outside_support(draws, *bounds, ["a", "b"])
    assert (first.verdict, second.verdict) == ("fail", "pass")
    assert (first.statistic, first.n) == (1e-4, 10_000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_draw_that_is_not_finite_is_outside_even_without_bounds(value: float):
    result = outside_support(np.array([[1.0], [value]]), [-np.inf], [np.inf], ["x"])[0]
    assert (result.statistic, result.verdict) == (0.5, "fail")


def test_the_bounds_themselves_are_outside():
    assert outside_support(np.array([[0.0], [1.0]]), [0], [1], ["x"])[0].statistic == 1.0


def test_no_draws_are_insufficient():
    assert outside_support(np.zeros((0, 3, 1)), [0], [1], ["x"])[0].verdict == "insufficient data"


def test_support_mistakes_are_named():
    with pytest.raises(DataError, match=r"lower: expected shape \[2\], got \[1\]"):
        outside_support(np.zeros((3, 2)), [0], [1, 1], ["a", "b"])
    with pytest.raises(DataError, match="got NaN"):
        outside_support(np.zeros((3, 1)), [np.nan], [1], ["a"])
    with pytest.raises(DataError, match=r"\[\.\.\., D\]"):
        outside_support(np.zeros(3), [0], [1], ["a"])


@pytest.mark.parametrize(
    ("integrals", "errors", "statistic", "verdict"),
    [
        ([1.0, 0.998, 1.001], [1e-4] * 3, 0.002, "pass"),
        ([1.0, 0.97, 1.0], [1e-4] * 3, 0.03, "fail"),
        ([1.0, 1.03, 1.0], [1e-4] * 3, 0.03, "fail"),
        ([1.0, 1.0], [1e-4, 0.02], 0.0, "insufficient data"),
        (
            [1.0, 1.05, 1.015],
            [1e-4, 0.05, 1e-4],
            0.015,
            "fail",
        ),  # not the largest, but the one that is certain
        ([1.0, np.nan], [1e-4, 1e-4], np.inf, "fail"),
    ],
)
def test_normalisation(integrals: list[float], errors: list[float], statistic: float, verdict: str):
    result = normalisation(np.array(integrals), np.array(errors))
    assert result.statistic == pytest.approx(statistic)
    assert (result.verdict, result.n) == (verdict, len(integrals))


def test_normalisation_of_nothing_and_mistakes():
    assert normalisation(np.zeros(0), np.zeros(0)).verdict == "insufficient data"
    with pytest.raises(DataError, match="errors"):
        normalisation(np.ones(2), np.array([0.1, -0.1]))
    with pytest.raises(DataError, match=r"errors: expected shape \[2\], got \[3\]"):
        normalisation(np.ones(2), np.ones(3))
