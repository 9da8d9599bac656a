"""Splits and batches are pure functions of a seed, and stay what they are as a file grows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.data.stream import Batches, _splitmix64, split_rows
from fluvial.errors import DataError, StudyError

FRACTIONS = (0.6, 0.2, 0.2)
SETS = ("train", "validation", "test")


def test_splitmix64_is_the_published_one() -> None:
    """The first outputs of the reference implementation (Vigna, splitmix64.c) for the state 1234567."""
    gamma = 0x9E3779B97F4A7C15
    state = np.array([(1234567 + i * gamma) % 2**64 for i in range(1, 6)], dtype=np.uint64)
    assert _splitmix64(state).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_the_split_never_changes() -> None:
    """A change here would move rows of every user between training and test."""
    split = split_rows(20, FRACTIONS, seed=1)
    assert split.train.tolist() == [1, 2, 4, 5, 6, 7, 8, 10, 11, 13, 14, 15, 16, 17, 18, 19]
    assert split.validation.tolist() == [0]
    assert split.test.tolist() == [3, 9, 12]


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(-(2**70), 2**70), st.integers(50, 2000), st.integers(1, 2000))
def test_growth_moves_no_row(seed: int, rows: int, more: int) -> None:
    before, after = split_rows(rows, FRACTIONS, seed), split_rows(rows + more, FRACTIONS, seed)
    for name in SETS:
        grown = getattr(after, name)
        np.testing.assert_array_equal(getattr(before, name), grown[grown < rows])


def test_each_row_is_in_one_set_sorted() -> None:
    split = split_rows(10_000, FRACTIONS, seed=3)
    parts = [split.train, split.validation, split.test]
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(10_000))


def test_sizes_follow_the_fractions() -> None:
    rows = 200_000
    for seed in range(5):
        split = split_rows(rows, (0.7, 0.1, 0.2), seed)
        for name, share in zip(SETS, (0.7, 0.1, 0.2), strict=True):
            spread = (rows * share * (1 - share)) ** 0.5
            assert abs(getattr(split, name).size - rows * share) < 4 * spread


def test_seeds_and_neighbouring_rows_are_independent() -> None:
    """Over seeds and over lags the memberships are uncorrelated; the same seed is the negative control."""
    rows = 100_000
    member = np.zeros((4, rows))
    for seed in range(4):
        member[seed, split_rows(rows, (0.5, 0.5, 0.0), seed).train] = 1
    centred = (member - 0.5) * 2
    correlation = centred @ centred.T / rows
    off = correlation[~np.eye(4, dtype=bool)]
    assert np.abs(off).max() < 4 / rows**0.5
    assert np.diag(correlation).min() == 1
    for lag in (1, 2, 3, 1000):
        assert abs((centred[0, :-lag] * centred[0, lag:]).mean()) < 4 / rows**0.5
    # Nor is one seed's stream another's, moved by a few rows.
    for lag in range(1, 50):
        assert np.abs((centred[1:, :-lag] * centred[0, lag:]).mean(axis=1)).max() < 5 / rows**0.5


def test_a_set_of_fraction_zero_is_empty() -> None:
    split = split_rows(5000, {"train": 0.9, "validation": 0.1}, seed=1)
    assert split.test.size == 0
    assert split.train.size + split.validation.size == 5000
    assert split_rows(5000, (0.0, 0.3, 0.7), seed=1).train.size == 0
    assert (
        split_rows(5000, (1 - 5e-7, 0.0, 0.0), seed=1).train.size == 5000
    )  # within tolerance: no row is lost


def test_mapping_and_tuple_agree() -> None:
    one = split_rows(1000, {"test": 0.2, "train": 0.6, "validation": 0.2}, seed=4)
    two = split_rows(1000, FRACTIONS, seed=4)
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in SETS)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.6, 0.2, 0.1), "sum to 1; got a sum of 0.9"),
        ((1.2, -0.2, 0.0), "expected validation to be a fraction from 0 to 1; got -0.2"),
        ((float("nan"), 0.5, 0.5), "expected train to be a fraction"),
        ((0.5, 0.5), "expected three fractions"),
        ({"train": 0.8, "valid": 0.2}, "unknown key 'valid'; did you mean 'validation'"),
    ],
)
def test_wrong_fractions(fractions: tuple[float, float, float], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        split_rows(100, fractions, seed=1)


def test_an_empty_set_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"none of 3 rows fall to .*validation.* with train = 0\.98, .*give more rows"
    ):
        split_rows(3, (0.98, 0.01, 0.01), seed=1)
    with pytest.raises(DataError, match="none of 0 rows"):
        split_rows(0, FRACTIONS, seed=1)


# --------------------------------------------------------------------------------------- batches


def numbered(rows: int, context: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    row = torch.arange(rows, dtype=torch.float32)
    return torch.stack([row, -row, row + 0.5], 1), row[:, None].expand(rows, context) * 10


def order(batches: Batches, k: int) -> list[float]:
    return torch.cat([x[:, 0] for x, _ in batches.epoch(k)]).tolist()


@pytest.mark.parametrize(("rows", "size"), [(103, 10), (100, 10), (1, 10), (7, 1), (5, 5)])
def test_every_row_once(rows: int, size: int) -> None:
    batches = Batches(*numbered(rows), batch_size=size, seed=1)
    seen = list(batches.epoch(0))
    assert len(seen) == len(batches) == -(-rows // size)
    assert batches.rows == rows
    assert [len(x) for x, _ in seen[:-1]] == [size] * (len(seen) - 1)
    x = torch.cat([x for x, _ in seen])
    c = torch.cat([c for _, c in seen])
    assert x.dtype == c.dtype == torch.float32
    assert x[:, 0].sort().values.tolist() == list(range(rows))
    assert torch.equal(x[:, 1], -x[:, 0])  # targets and context of one row stay together
    assert torch.equal(c, x[:, :1].expand(-1, 2) * 10)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first, again = (Batches(*numbered(100), batch_size=8, seed=5) for _ in range(2))
    list(first.epoch(0))  # what was drawn before does not matter
    torch.rand(3)  # nor does torch's global state
    assert order(first, 3) == order(again, 3)
    assert order(first, 3) == order(Batches(*numbered(100), batch_size=17, seed=5), 3)


def test_epochs_and_seeds_differ() -> None:
    orders = [order(Batches(*numbered(100), batch_size=8, seed=s), k) for s in range(4) for k in range(4)]
    assert len({tuple(o) for o in orders}) == 16  # (0, 1) is not (1, 0)
    assert list(range(100)) not in orders


def test_the_order_is_uniform() -> None:
    """Over epochs a row's mean place is the middle; an unshuffled order is the negative control."""
    batches = Batches(*numbered(20), batch_size=20, seed=2)
    places = np.array([np.argsort(order(batches, k)) for k in range(400)])
    limit = 4 * (20**2 / 12 / 400) ** 0.5
    assert np.abs(places.mean(axis=0) - 9.5).max() < limit
    assert abs(np.arange(20)[0] - 9.5) > limit


def test_without_context() -> None:
    batches = Batches(torch.arange(6.0)[:, None], torch.empty(6, 0), batch_size=4, seed=1)
    assert [(tuple(x.shape), tuple(c.shape)) for x, c in batches.epoch(0)] == [
        ((4, 1), (4, 0)),
        ((2, 1), (2, 0)),
    ]


def test_a_batch_is_the_callers_own() -> None:
    targets, context = numbered(10)
    batches = Batches(targets, context, batch_size=10, seed=1)
    for x, c in batches.epoch(0):
        x.zero_()
        c.zero_()
    assert sorted(order(batches, 0)) == list(range(10))
    assert targets.sum() != 0


def test_batches_refuse() -> None:
    x, c = numbered(10)
    with pytest.raises(DataError, match=r"same n; got \[10, 3\] and \[9, 2\]"):
        Batches(x, c[:9], 4, 1)
    with pytest.raises(DataError, match=r"got \[10\] and \[10, 2\]"):
        Batches(x[:, 0], c, 4, 1)
    with pytest.raises(DataError, match="at least one row"):
        Batches(x[:0], c[:0], 4, 1)
    with pytest.raises(DataError, match=r"one type on one device; got torch\.float64"):
        Batches(x.double(), c, 4, 1)
    with pytest.raises(StudyError, match="batch_size: expected a whole number from 1; got 0"):
        Batches(x, c, 0, 1)
