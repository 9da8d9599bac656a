"""Calibration across context, and the parts of context that it looks at."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fluvial.check import ContextBin, context_slices, local_calibration, pit, representative_contexts
from fluvial.errors import DataError


def grid(rows: int = 60_000, seed: int = 0) -> np.ndarray:
    """Return 15 × 4 contexts of unequal population, as from a grid of simulations."""
    rng = np.random.default_rng(seed)
    share = np.exp(-0.25 * np.arange(15))
    Z = np.geomspace(1e-4, 0.03, 15)[rng.choice(15, rows, p=share / share.sum())]
    return np.stack([Z, rng.choice([0.5, 1.0, 3.0, 5.0], rows)], axis=1)


# --- representative contexts ------------------------------------------------------------------------------


def test_on_a_grid_bins_are_whole_cells_spread_to_the_corners():
    context = grid()
    bins = representative_contexts(context, k=6, min_rows=200)
    assert len(bins) == 6
    for b in bins:
        np.testing.assert_array_equal(b.rows, np.flatnonzero((context == b.value).all(axis=1)))
        assert len(b.rows) >= 200
    values = {tuple(b.value) for b in bins}
    populated = sorted({z for z in set(context[:, 0]) if (context[:, 0] == z).sum() > 1200})
    for corner in ((populated[0], 0.5), (populated[0], 5.0)):
        assert corner in values
    assert max(b.value[0] for b in bins) >= populated[-2]
    assert sorted(values) == [tuple(b.value) for b in bins]


def test_starved_cells_are_left_out():
    context = np.repeat([[1.0], [2.0], [3.0]], [1000, 5, 500], axis=0)
    assert [b.value[0] for b in representative_contexts(context, k=6, min_rows=100)] == [1.0, 3.0]


def test_a_continuous_context_gives_balls_around_spread_centres():
    rng = np.random.default_rng(0)
    context = np.stack([10 ** rng.uniform(-4, -1, 20_000), rng.normal(size=20_000)], axis=1)
    bins = representative_contexts(context, k=6, min_rows=300)
    assert [len(b.rows) for b in bins] == [300] * 6
    ranks = stats.rankdata(context, axis=0) / len(context)
    centres = []
    for b in bins:
        assert (context == b.value).all(axis=1).any()  # a context that occurs
        spread = ranks[b.rows].max(axis=0) - ranks[b.rows].min(axis=0)
        assert (spread < 0.3).all()  # local: 300 rows of 20,000 are a square of side 0.12, or a quarter disk
        centres.append(ranks[b.rows].mean(axis=0))
    apart = np.linalg.norm(np.array(centres)[:, None] - np.array(centres), axis=2) + np.eye(6)
    assert apart.min() > 0.3


def test_a_grid_with_one_continuous_column_is_continuous():
    context = np.column_stack([grid(5000), np.random.default_rng(0).normal(size=5000)])
    assert [len(b.rows) for b in representative_contexts(context, k=4, min_rows=150)] == [150] * 4


@pytest.mark.parametrize("make", [grid, lambda: np.random.default_rng(0).normal(size=(5000, 3))])
def test_bins_are_the_same_every_time(make):
    first, second = (representative_contexts(make(), k=5, min_rows=100) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.value, b.value)
        np.testing.assert_array_equal(a.rows, b.rows)


def test_without_context_there_is_one_bin_of_all_rows():
    for bins in (representative_contexts(np.zeros((7, 0))), context_slices(np.zeros((7, 0)))):
        assert len(bins) == 1
        assert bins[0].value.shape == (0,)
        np.testing.assert_array_equal(bins[0].rows, np.arange(7))


def test_few_rows_give_one_bin_of_all():
    bins = representative_contexts(np.random.default_rng(0).normal(size=(30, 2)), k=6, min_rows=100)
    assert [len(b.rows) for b in bins] == [30]


def test_a_constant_context_is_one_cell():
    bins = representative_contexts(np.full((1000, 2), 3.0), k=6, min_rows=100)
    assert [(b.value.tolist(), len(b.rows)) for b in bins] == [([3.0, 3.0], 1000)]
    assert len(context_slices(np.full((1000, 2), 3.0))) == 1


# --- slices -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=200), st.integers(1, 6), st.integers(1, 60))
def test_slices_part_the_rows_keep_ties_together_and_are_not_too_small(
    column: list[int], slices: int, min_rows: int
):
    context = np.array(column, dtype=float)[:, None]
    bins = context_slices(context, slices, min_rows)
    rows = np.concatenate([b.rows for b in bins])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(column)))
    assert len(bins) <= slices
    if len(bins) > 1:
        assert min(len(b.rows) for b in bins) >= min_rows
    ends = [(context[b.rows].min(), context[b.rows].max()) for b in bins]
    assert all(before[1] < after[0] for before, after in pairwise(ends))


def test_slices_cut_each_column_that_varies():
    rng = np.random.default_rng(0)
    context = np.column_stack([rng.normal(size=4000), np.ones(4000), rng.normal(size=4000)])
    bins = context_slices(context, slices=4, min_rows=400)
    assert [len(b.rows) for b in bins] == [1000] * 8


# --- local calibration ------------------------------------------------------------------------------------


def test_exact_passes_and_a_density_blind_to_context_fails():
    # x given c is N(c, 0.6), c is N(0, 0.8): N(0, 1) is right on average and ignores c.
    for seed in range(20):
        rng = np.random.default_rng(seed)
        c = 0.8 * rng.normal(size=(4000, 1))
        x = c + 0.6 * rng.normal(size=(4000, 1))
        exact, blind = stats.norm.cdf((x - c) / 0.6), stats.norm.cdf(x)
        assert pit(blind, ["x"])[0].verdict == "pass"
        assert local_calibration(exact, c, ["x"])[0].verdict == "pass"
        assert local_calibration(blind, c, ["x"])[0].verdict == "fail"


def test_widths_wrong_in_opposite_senses_are_found_where_they_are():
    rng = np.random.default_rng(0)
    c = rng.uniform(-1, 1, size=(8000, 2))
    z = rng.normal(size=(8000, 2))
    z[:, 1] *= np.where(c[:, 0] > 0.5, 2.0, 1.0) * np.where(c[:, 0] < -0.5, 0.5, 1.0)
    good, bad = local_calibration(stats.norm.cdf(z), c, ["a", "b"])
    assert (good.verdict, bad.verdict) == ("pass", "fail")
    assert (good.column, bad.column, bad.n) == ("a", "b", 2000)
    assert "worst of 8, around context (" in bad.meaning


def test_given_bins_are_used():
    rng = np.random.default_rng(0)
    context, u = grid(seed=1), rng.random((60_000, 1))
    broken = context[:, 0] == context[:, 0].min()
    u[broken] = u[broken] ** 2
    bins = representative_contexts(context, k=6, min_rows=400)
    result = local_calibration(u, context, ["x"], bins)[0]
    assert result.verdict == "fail"
    assert result.n in {len(b.rows) for b in bins}
    elsewhere = [b for b in bins if b.value[0] != context[:, 0].min()]
    assert local_calibration(u, context, ["x"], elsewhere)[0].verdict == "pass"


def test_exact_densities_do_not_fail_however_many_parts_are_looked_at():
    rng = np.random.default_rng(0)
    u, context = rng.random((500, 300)), rng.normal(size=(500, 10))
    bins = context_slices(context, slices=10, min_rows=50)
    assert len(bins) == 100
    found = [r.verdict for r in local_calibration(u, context, [""] * 300, bins)]
    assert found.count("fail") == 0  # 30,000 looks
    assert found.count("pass") == 0  # and 50 rows a part are too few to pass


def test_mistakes_are_named():
    u, context = np.full((5, 1), 0.5), np.zeros((5, 1))
    with pytest.raises(DataError, match=r"context: expected shape \[5, C\], got \[4, 1\]"):
        local_calibration(u, context[:4], ["x"])
    with pytest.raises(DataError, match="rows from 0 to 4, got 3 to 7"):
        local_calibration(u, context, ["x"], [ContextBin(np.zeros(1), np.array([3, 7]))])
    with pytest.raises(DataError, match="at least one part"):
        local_calibration(u, context, ["x"], [])
    with pytest.raises(DataError, match="pit: expected numbers between 0 and 1"):
        local_calibration(u + 1, context, ["x"])
    with pytest.raises(DataError, match="context: expected finite"):
        representative_contexts(context * np.nan)
    with pytest.raises(DataError, match="at least one row"):
        representative_contexts(np.zeros((0, 2)))
    with pytest.raises(DataError, match="k: expected at least 1"):
        representative_contexts(context, k=0)
    with pytest.raises(DataError, match="min_rows"):
        context_slices(context, min_rows=0)
    with pytest.raises(DataError, match="slices"):
        context_slices(context, slices=0)
