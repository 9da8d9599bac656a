"""Rows gathered by the kernel and by numpy are the same; memory that is used again is never pulled from under a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fluvial.core import native
from fluvial.data.gather import AffineGather, Pool, Window, permutation, read_windows
from fluvial.data.stream import StreamedBatches


@pytest.fixture(params=["kernel", "numpy"])
def way(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no compiled kernels here")


def windows_of(content: np.ndarray, itemsize: int, rng: np.random.Generator) -> list[Window]:
    """Three windows of a few stretches each, of 1 to 40 records."""
    made = []
    for seed in (3, 4, 2**64 - 1):
        firsts = rng.integers(0, content.size // itemsize - 40, 5) * itemsize
        made.append(Window(firsts, firsts + rng.integers(1, 40, 5) * itemsize, seed))
    return made


def expected_rows(content: np.ndarray, itemsize: int, windows: list[Window]) -> np.ndarray:
    """What the windows hold, each in its order, by slicing."""
    parts = []
    for w in windows:
        stretches = [content[a:b] for a, b in zip(w.firsts, w.lasts, strict=True)]
        records = np.concatenate(stretches).reshape(-1, itemsize)
        parts.append(records[permutation(w.seed, len(records))])
    return np.concatenate(parts)


@pytest.mark.parametrize("itemsize", [1, 4, 12, 124, 400])
@pytest.mark.parametrize("some", [False, True])
def test_windows_of_a_file(way, tmp_path, itemsize, some):
    rng = np.random.default_rng(itemsize)
    content = rng.integers(0, 255, 1000 * itemsize, dtype=np.uint8)
    content.tofile(tmp_path / "file")
    windows = windows_of(content, itemsize, rng)
    expected = expected_rows(content, itemsize, windows)
    keep = rng.random(len(expected)) < 0.3 if some else None
    with (tmp_path / "file").open("rb", buffering=0) as file:
        (rows,) = read_windows(file, windows, itemsize, Pool(), keep)
        assert np.array_equal(rows, expected if keep is None else expected[keep])
        last = windows[-1]
        beyond = Window(last.firsts, np.append(last.lasts[:-1], content.size + itemsize), 0)
        with pytest.raises(EOFError):
            read_windows(file, [windows[0], beyond], itemsize, Pool())
    with (tmp_path / "file").open("wb", buffering=0) as file, pytest.raises(OSError, match=r"[Bb]ad file"):
        read_windows(file, windows, itemsize, Pool())


@pytest.mark.parametrize(("targets", "context"), [(1, 0), (2, 3), (17, 14)])
@pytest.mark.parametrize("some", [False, True])
def test_affine_windows_of_a_file(way, tmp_path, targets, context, some):
    rng = np.random.default_rng(1)
    columns = targets + context
    values = rng.standard_normal(
        (1000, columns + 1), dtype=np.float32
    )  # and one column that is not asked for
    values[rng.integers(0, 1000, 50), 0] = np.inf
    values.tofile(tmp_path / "file")
    content, itemsize = values.view(np.uint8).reshape(-1), 4 * (columns + 1)
    windows = windows_of(content, itemsize, rng)
    rows = expected_rows(content, itemsize, windows).view(np.float32)
    keep = rng.random(len(rows)) < 0.3 if some else None
    shift, scale = rng.normal(size=columns), rng.uniform(0.1, 10, columns)
    affine = AffineGather(shift, scale, (targets, context))
    with (tmp_path / "file").open("rb", buffering=0) as file:
        x, c = read_windows(file, windows, itemsize, Pool(), keep, affine)
    expected = ((rows[:, :columns].astype(np.float64) - shift) / scale).astype(np.float32)
    expected = expected if keep is None else expected[keep]
    assert np.array_equal(x, expected[:, :targets])
    assert np.array_equal(c, expected[:, targets:])


def test_permutation_is_one_and_uniform():
    n, times = 5, 24_000
    orders = np.stack([permutation(seed * 7919, n) for seed in range(times)])
    assert (np.sort(orders, 1) == np.arange(n)).all()
    counts = np.array([(orders == number).sum(0) for number in range(n)])  # of every number at every place
    assert (np.abs(counts - times / n) < 5 * np.sqrt(times / n * (1 - 1 / n))).all()
    places = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(places) == 120
    assert abs(places - times / 120).max() < 5 * np.sqrt(times / 120)


def test_pool_gives_a_block_again_only_when_nothing_refers_to_it():
    pool = Pool()
    array = pool.empty((100, 4), np.float32)
    at = array.ctypes.data
    view = torch.from_numpy(array)[10:, 1:]
    del array
    other = pool.empty((100, 4), np.float32)
    assert other.ctypes.data != at
    del view
    assert pool.empty((99, 4), np.float32).ctypes.data == at


def test_batches_that_are_kept_do_not_change(tmp_path):
    values = np.arange(60_000 * 2, dtype=np.float32).reshape(-1, 2)
    values.tofile(tmp_path / "rows")

    def prepare(records: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.from_numpy(records.view(np.float32))
        return both[:, :1], both[:, 1:]

    affine = AffineGather(np.zeros(2), np.ones(2), (1, 1))
    for how in (prepare, affine):
        batches = StreamedBatches(
            tmp_path / "rows", 60_000, 8, how, 100, 1, window_bytes=2**16, block_bytes=2**10
        )
        kept = [torch.cat(pair, 1) for pair in batches.epoch(0)]
        held = list(batches.epoch(0))  # views of the pool's memory, all alive at once
        assert all(torch.equal(a, torch.cat(b, 1)) for a, b in zip(kept, held, strict=True))
        assert len(torch.cat(kept)[:, 0].unique()) == 60_000
