"""Rows gathered by the kernel and by numpy are the same; memory that is used again is never pulled from under a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fluvial.core import native
from fluvial.data.gather import AffineGather, Pool, gather, read_stretches
from fluvial.data.stream import StreamedBatches


@pytest.fixture(params=["kernel", "numpy"])
def way(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no compiled kernels here")


@pytest.mark.parametrize("columns", [1, 3, 31, 100])
@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
def test_gather(way, rows, columns):
    rng = np.random.default_rng(0)
    records = rng.standard_normal((max(rows, 1), columns), dtype=np.float32).view(np.uint8)
    order = rng.integers(0, len(records), rows).astype(np.int32)
    out = np.empty((rows, records.shape[1]), dtype=np.uint8)
    gather(records, order, out)
    assert (out == records[order]).all()


@pytest.mark.parametrize(("targets", "context"), [(1, 0), (2, 3), (17, 14)])
def test_affine_gather(way, targets, context):
    rng = np.random.default_rng(1)
    columns = targets + context
    values = rng.standard_normal((500, columns + 1), dtype=np.float32)  # and one column that is not asked for
    values[3, 0] = np.inf
    shift, scale = rng.normal(size=columns), rng.uniform(0.1, 10, columns)
    order = rng.permutation(500).astype(np.int32)
    x, c = AffineGather(shift, scale, (targets, context))(values.view(np.uint8), order)
    expected = ((values[:, :columns].astype(np.float64) - shift) / scale).astype(np.float32)[order]
    assert torch.equal(x, torch.from_numpy(expected[:, :targets].copy()))
    assert torch.equal(c, torch.from_numpy(expected[:, targets:].copy()))
    whole, _ = AffineGather(shift, scale, (targets, context))(values.view(np.uint8))
    assert torch.equal(whole[order.astype(np.int64)], x)


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


def test_stretches_of_a_file(way, tmp_path):
    content = np.random.default_rng(2).integers(0, 255, 10_000, dtype=np.uint8)
    content.tofile(tmp_path / "file")
    firsts, lasts = np.array([0, 500, 9_990]), np.array([10, 2_500, 10_000])
    out = np.empty(2020, dtype=np.uint8)
    with (tmp_path / "file").open("rb", buffering=0) as file:
        assert read_stretches(file, firsts, lasts, out) == 2020
        assert (out == np.concatenate([content[a:b] for a, b in zip(firsts, lasts, strict=True)])).all()
        assert (
            read_stretches(file, firsts, lasts + 50, np.empty(2170, dtype=np.uint8)) == 2120
        )  # the file ends
    with (tmp_path / "file").open("wb", buffering=0) as file, pytest.raises(OSError, match=r"[Bb]ad file"):
        read_stretches(file, firsts, lasts, out)
