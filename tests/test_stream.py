"""Splits and batches are pure functions of a seed, and stay what they are as a file grows."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.data.split import split_rows, splitmix64
from fluvial.data.stream import Batches, BatchSource, Share, StreamedBatches
from fluvial.errors import DataError, StudyError

FRACTIONS = (0.6, 0.2, 0.2)
SETS = ("train", "validation", "test")


def testsplitmix64_is_the_published_one() -> None:
    """The first outputs of the reference implementation (Vigna, splitmix64.c) for the state 1234567."""
    gamma = 0x9E3779B97F4A7C15
    state = np.array([(1234567 + i * gamma) % 2**64 for i in range(1, 6)], dtype=np.uint64)
    assert splitmix64(state).tolist() == [
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
        ((0.5, 0.5), "expected three or four fractions"),
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


# ------------------------------------------------------------------------------ batches from a file


def streamed(path: Path, rows: int, *, block: int = 4, window: int = 64, **options: Any) -> StreamedBatches:
    """Return batches of a file whose rows are their own numbers, in blocks and windows of so many rows."""
    if not path.exists():
        np.arange(rows, dtype="<f4").repeat(2).tofile(path)

    def prepare(records: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.from_numpy(records.view("<f4"))
        return values[:, :1], values[:, 1:]

    options = {"batch_size": 10, "seed": 1, **options}
    return StreamedBatches(path, rows, 8, prepare, block_bytes=8 * block, window_bytes=8 * window, **options)


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (1000, {}),
        (1003, {"batch_size": 7}),
        (1, {}),
        (63, {"batch_size": 100}),
        (65, {"batch_size": 65}),
        (500, {"batch_size": 499, "block": 1, "window": 1}),
        (500, {"block": 1000}),
    ],
)
def test_every_row_of_a_file_once(tmp_path: Path, rows: int, options: dict[str, int]) -> None:
    batches = streamed(tmp_path / "rows", rows, **options)
    seen = list(batches.epoch(0))
    size = options.get("batch_size", 10)
    assert len(seen) == len(batches) == -(-rows // size)
    assert [len(x) for x, _ in seen] == [size] * (rows // size) + ([rows % size] if rows % size else [])
    x, c = (torch.cat(part) for part in zip(*seen, strict=True))
    assert batches.rows == rows
    assert torch.equal(x, c)
    assert x[:, 0].sort().values.tolist() == list(range(rows))


def test_epochs_of_a_file_differ_and_repeat(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    orders = [order(streamed(path, 1000, seed=s), k) for s in range(3) for k in range(3)]
    assert len({tuple(o) for o in orders}) == 9
    again = streamed(path, 1000, seed=1)
    next(iter(again.epoch(0)))  # an epoch that is left early matters to no other
    assert order(again, 2) == order(again, 2) == orders[5]
    assert order(streamed(path, 1000, batch_size=33), 2) == orders[5]  # nor does the size of the batches


@pytest.mark.parametrize("rows", [1000, 1009])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_an_epoch_can_be_taken_up_anywhere(tmp_path: Path, kind: str, rows: int) -> None:
    def make() -> BatchSource:
        if kind == "file":
            return streamed(tmp_path / "rows", rows)
        return Batches(*numbered(rows), batch_size=10, seed=1)

    whole = [x.tolist() for x, _ in make().epoch(3)]
    for start in (0, 1, 5, 6, 7, 50, 99, len(whole) - 1, len(whole)):
        assert [x.tolist() for x, _ in make().epoch(3, start)] == whole[start:]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_one_order_on_any_number_of_processes(tmp_path: Path, kind: str, world: int) -> None:
    """The pieces of every batch, put together, are the batch of one process: from the middle on, too."""

    def make(rank: int, world: int) -> BatchSource:
        share = Share(rank, world)
        if kind == "file":
            return streamed(tmp_path / "rows", 1001, share=share)
        return Batches(*numbered(1001), batch_size=10, seed=1, share=share)

    alone = [x[:, 0].tolist() for x, _ in make(0, 1).epoch(2)]
    for start in (0, 8, len(alone) - 1):
        shares = [list(make(rank, world).epoch(2, start)) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        together = [torch.cat([x[:, 0] for x, _ in pieces]).tolist() for pieces in zip(*shares, strict=True)]
        assert together == alone[start:]
        assert len({x.shape[1] for share in shares for x, _ in share}) == 1  # the empty ones too
    assert make(0, world).rows == 1001
    assert len(make(0, world)) == len(alone)


def test_a_share_is_one_of_several() -> None:
    with pytest.raises(DataError, match="expected a rank from 0 to 1 of 2; got 2"):
        Share(2, 2)


def excess(batches: Iterable[tuple[torch.Tensor, torch.Tensor]], rows: int, size: int) -> float:
    """Return the variance of batch means of a sorted column, over that of a perfect shuffle."""
    means = np.array([float(x[:, 0].mean()) for x, _ in batches if len(x) == size])
    return means.var() / (rows**2 / 12 / size)


def test_a_shuffle_in_two_levels_is_as_good_as_it_says(tmp_path: Path) -> None:
    r"""On a file sorted by a column, batch means vary by 1/b + 1/m, with m blocks a window, rather than 1/b.

    The negative controls fail the same test: the order of the file, blocks permuted but not their rows, and a
    shuffle within a window of neighbouring blocks.
    """
    rows, size, blocks = 65_536, 64, 256
    path = tmp_path / "rows"
    limit = (
        1 + size / blocks + 5 * (2 * size / rows) ** 0.5
    )  # the value expected, and five standard deviations
    found = streamed(path, rows, block=16, window=16 * blocks, batch_size=size)
    assert excess(found.epoch(0), rows, size) < limit < 1.5
    perfect = streamed(path, rows, block=16, window=rows, batch_size=size)
    assert excess(perfect.epoch(0), rows, size) < 1 + 5 * (2 * size / rows) ** 0.5

    ordered = torch.arange(rows, dtype=torch.float32)[:, None]
    generator = torch.Generator().manual_seed(1)
    permuted = ordered.reshape(-1, 16)[torch.randperm(rows // 16, generator=generator)].reshape(-1, 1)
    window = ordered.reshape(-1, 16 * blocks)
    near = window.gather(1, torch.rand(window.shape, generator=generator).argsort(1)).reshape(-1, 1)
    for bad, at_least in ((ordered, 50), (permuted, 10), (near, 50)):
        assert excess([(x, x) for x in bad.split(size)], rows, size) > at_least > limit


def test_a_window_has_rows_from_all_over_a_sorted_file(tmp_path: Path) -> None:
    """Few blocks a window, each from a stretch of its own: batches of a sorted file are as good as of a perfect shuffle.

    The negative control draws as many blocks from the whole file, as if their stretches did not matter.
    """
    rows, size, block, blocks = 65_536, 64, 64, 32
    found = streamed(tmp_path / "rows", rows, block=block, window=block * blocks, batch_size=size)
    limit = 1 + 1 / blocks + 5 * (2 * size / rows) ** 0.5
    assert max(excess(found.epoch(k), rows, size) for k in range(3)) < limit < 1.3

    generator = torch.Generator().manual_seed(1)
    ordered = torch.arange(rows, dtype=torch.float32).reshape(-1, block)
    anywhere = ordered[torch.randperm(len(ordered), generator=generator)].reshape(-1, block * blocks)
    shuffled = anywhere.gather(1, torch.rand(anywhere.shape, generator=generator).argsort(1)).reshape(-1, 1)
    assert excess([(x, x) for x in shuffled.split(size)], rows, size) > 1.5 > limit


def test_neighbours_in_a_file_do_not_stay_together(tmp_path: Path) -> None:
    """How often a row is followed by its neighbour: once in an epoch by chance, always in a block-ordered stream."""
    rows = 20_000
    after = np.diff(order(streamed(tmp_path / "rows", rows, block=16, window=4096), 0))
    assert (np.abs(after) == 1).sum() < 40  # 2 × rows / window expected: 10
    assert (np.abs(np.diff(np.arange(rows))) == 1).sum() > 40


def test_the_order_of_a_file_is_uniform(tmp_path: Path) -> None:
    """Over epochs a row's mean place is the middle, and a pair's rows are in either order equally often."""
    batches = streamed(tmp_path / "rows", 40, block=2, window=8)
    places = np.array([np.argsort(order(batches, k)) for k in range(400)])
    assert np.abs(places.mean(axis=0) - 19.5).max() < 4 * (40**2 / 12 / 400) ** 0.5
    assert abs((places[:, 0] < places[:, 1]).mean() - 0.5) < 4 * 0.5 / 20


def test_a_file_that_is_not_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    batches = streamed(path, 1000)
    with pytest.raises(DataError, match="expected 999 records of 8 bytes; found 8000 bytes"):
        streamed(path, 999)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="has become shorter while it was read"):
        list(batches.epoch(0))
    path.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(batches.epoch(0))
    with pytest.raises(DataError, match="at least one row"):
        streamed(path, 0)


def test_an_error_while_preparing_is_raised_where_batches_are_taken(tmp_path: Path) -> None:
    np.zeros(100, "u1").tofile(tmp_path / "rows")

    def prepare(records: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        raise ArithmeticError("of the user's")

    with pytest.raises(ArithmeticError, match="of the user's"):
        list(StreamedBatches(tmp_path / "rows", 100, 1, prepare, 10, 1).epoch(0))


def test_threads_end_with_the_epoch(tmp_path: Path) -> None:
    def readers() -> int:
        return sum(thread.name.startswith("fluvial-read") for thread in threading.enumerate())

    epoch = streamed(tmp_path / "rows", 1000).epoch(0)
    next(epoch)
    assert readers() > 0
    epoch.close()  # as a loop does that is left early
    assert readers() == 0
