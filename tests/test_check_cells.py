"""Cells of context: a wrong tail in one cell is found, and exact draws are not accused."""

from __future__ import annotations

import numpy as np
import pytest

from fluvial.check import cell_differences, cells
from fluvial.check.result import CheckResult
from fluvial.errors import DataError


def made(tail: float, width: float = 1.0, rows: int = 1000, number: int = 24, seed: int = 0):
    """Return data and draws of cells; in the last one the data have a tail of that share, the draws of 10 %."""
    rng = np.random.default_rng(seed)

    def values(size: int, share: float, scale: float) -> np.ndarray:
        x = np.where(rng.random((size, 2)) < [share, 0.1], 30.0, 10.0)
        return x + scale * 3 * rng.normal(size=(size, 2))

    data = [values(rows, tail if b == number - 1 else 0.1, 1.0) for b in range(number)]
    draws = [values(8000, 0.1, width) for _ in range(number)]
    return cell_differences(data, draws, np.stack([np.arange(number), np.zeros(number)], 1) * 1.0)


def verdicts(*arguments, **options) -> list[str]:
    return [r.verdict for r in cells(made(*arguments, **options), ["M0", "M1"], ["Z", "alpha"])]


def test_the_triplet_and_a_tail_in_one_cell() -> None:
    assert verdicts(0.1) == ["pass", "pass"]
    assert verdicts(0.1, 0.6) == ["fail", "fail"]  # overconfident
    assert verdicts(0.1, 1.7) == ["fail", "fail"]  # underconfident
    result = cells(made(0.2), ["M0", "M1"], ["Z", "alpha"])
    assert [r.verdict for r in result] == ["fail", "pass"]
    assert result[0].statistic == pytest.approx(0.1, abs=0.03)
    assert "around Z = 23, alpha = 0" in result[0].meaning
    assert "P(M0 > " in result[0].meaning


def test_exact_draws_never_fail() -> None:
    for seed in range(12):
        for rows in (500, 1000):
            assert "fail" not in verdicts(0.1, rows=rows, seed=seed)


def test_too_few_rows_say_how_many_would_decide() -> None:
    result = cells(made(0.1, rows=100), ["M0", "M1"], ["Z", "alpha"])[0]
    assert result.verdict == "insufficient data"
    assert result.rows_needed is not None
    assert 150 < result.rows_needed < 3000
    enough = cells(made(0.1, rows=1000), ["M0", "M1"], ["Z", "alpha"])[0]
    assert enough.rows_needed == enough.n
    few = CheckResult.judge("a", None, 0.1, float("nan"), 0.05, 7, "…")
    assert few.rows_needed == 50


def test_discrete_targets_are_compared_exactly() -> None:
    rng = np.random.default_rng(0)
    data, draws = [rng.poisson(1.0, (2000, 1))], [rng.poisson(1.0, (8000, 1))]
    assert cells(cell_differences(data, draws, np.zeros((1, 1))), ["n"], ["c"])[0].verdict == "pass"
    draws = [rng.poisson(1.5, (8000, 1))]
    assert cells(cell_differences(data, draws, np.zeros((1, 1))), ["n"], ["c"])[0].verdict == "fail"


def test_shapes_are_told() -> None:
    with pytest.raises(DataError, match="for each of B > 0 cells; got 0, 0, 0"):
        cell_differences([], [], np.zeros((0, 1)))
    with pytest.raises(DataError, match="cell 0 has 0 and 3"):
        cell_differences([np.zeros((0, 1))], [np.zeros((3, 1))], np.zeros((1, 1)))
    with pytest.raises(DataError, match="expected 1 names"):
        cells(cell_differences([np.zeros((9, 1))], [np.zeros((9, 1))], np.zeros((1, 1))), ["a", "b"], ["c"])


def test_an_atom_at_the_upper_end_is_compared_by_its_share() -> None:
    rng = np.random.default_rng(0)

    def piled(share: float, rows: int) -> np.ndarray:
        return np.where(rng.random((rows, 1)) < share, 1.0, rng.random((rows, 1)))

    same = cell_differences([piled(0.55, 500)], [piled(0.55, 4000)], np.zeros((1, 1)))
    assert 0 < same.observed[0, 0] < 1
    less = cell_differences([piled(0.55, 500)], [piled(0.4, 4000)], np.zeros((1, 1)))
    assert less.difference[0, 0] > 0.1
