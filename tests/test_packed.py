"""The packed form: exact where it says so, whole or absent, the same however it was read."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluvial.data import packed as module
from fluvial.data.cache import ABOUT, address, cache_folder, clear, entries, identify, made_once
from fluvial.data.packed import PARTS, Packed, Piece, open_packed, pack
from fluvial.data.schema import Support
from fluvial.data.split import split_of
from fluvial.errors import DataError

SHARES = (0.6, 0.2, 0.2)


def columns(rows: int = 5000, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "flag": rng.integers(0, 2, rows).astype(float),
        "grid": rng.choice([0.0001, 0.0003, 0.02], rows),  # none is a float32 number
        "many": rng.integers(-400, 400, rows) / 7,
        "single": rng.normal(size=rows).astype(np.float32).astype(float),
        "double": rng.normal(size=rows),
        "time": 1.7e9 + rng.uniform(0, 10, rows),
        "edge": 1 - 10 ** rng.uniform(-12, 0, rows),
    }


SUPPORTS = {"edge": Support(0.0, 1.0)}


def in_pieces(table: dict[str, np.ndarray], size: int = 700) -> Callable[[], Iterator[Piece]]:
    def pieces() -> Iterator[Piece]:
        rows = len(next(iter(table.values())))
        for i in range(0, rows, size):
            part = slice(i, i + size)
            yield {n: v[part] for n, v in table.items()}, np.arange(rows)[part]

    return pieces


def which(rows: np.ndarray) -> np.ndarray:
    return split_of(rows, SHARES, seed=1)


def packed_in(folder: Path, table: dict[str, np.ndarray], size: int = 700) -> Packed:
    folder.mkdir()
    return pack(folder, table, in_pieces(table, size), which, supports=SUPPORTS)


def test_each_column_takes_the_smallest_form_that_serves(tmp_path: Path) -> None:
    table = columns()
    packed = packed_in(tmp_path / "a", table)
    assert packed.layout.forms == {
        "flag": "codes8", "grid": "codes8", "many": "codes16", "single": "float32",
        "double": "float32", "time": "float64", "edge": "float64",
    }  # fmt: skip
    assert packed.layout.dtype.itemsize == 32  # 28 bytes, aligned for float64
    of = which(np.arange(5000))
    rounding = {c["name"]: c["rounding"] for c in packed.about["columns"]}
    for number, part in enumerate(PARTS[:3]):
        found = packed.table(part)
        for name, values in table.items():
            expected = values[of == number]
            if name == "double":
                worst = np.abs(found[name] / expected - 1).max()
                assert 0 < worst <= rounding[name] * (1 + 1e-6) < 2**-23
            else:
                np.testing.assert_array_equal(found[name], expected)
            assert packed.range(name, part) == (expected.min(), expected.max())
    assert rounding["single"] == rounding["time"] == rounding["grid"] == 0
    assert packed.range("double") == (table["double"].min(), table["double"].max())


def test_float32_would_not_have_served() -> None:
    """The negative control: what the forms guard against happens to these very columns."""
    table = columns()
    assert (table["edge"].astype(np.float32) == 1).any()  # outside the support (0, 1)
    assert np.unique(table["time"].astype(np.float32)).size < 3


def test_atoms_are_kept_exactly(tmp_path: Path) -> None:
    """The tenths of a continuous column that sit on 0.1 do so afterwards; without a word they would not."""
    rng = np.random.default_rng(0)
    table = {"x": np.where(rng.uniform(size=3000) < 0.1, 0.1, rng.normal(size=3000))}
    for atoms, form in (([0.1], "float64"), ([0.5, -1.0], "float32"), ([], "float32")):
        folder = tmp_path / str(len(atoms))
        folder.mkdir()
        packed = pack(folder, table, in_pieces(table), which, supports={}, atoms={"x": atoms})
        assert packed.layout.forms == {"x": form}
        assert (packed.table("train")["x"] == 0.1).any() == (form == "float64")


def test_landmarks_are_what_a_sample_may_lack(tmp_path: Path) -> None:
    table = columns()
    packed = packed_in(tmp_path / "a", table)
    np.testing.assert_array_equal(packed.landmarks("grid"), [0.0001, 0.0003, 0.02])
    np.testing.assert_array_equal(packed.landmarks("many"), np.unique(table["many"]))
    np.testing.assert_array_equal(packed.landmarks("double"), [table["double"].min(), table["double"].max()])


def test_what_is_packed_does_not_hang_on_how_it_was_read(tmp_path: Path) -> None:
    table = columns()
    digests = {packed_in(tmp_path / str(n), table, n).about["sha256"] for n in (1, 700, 5000)}
    assert len(digests) == 1
    table["single"][4321] += 1
    assert packed_in(tmp_path / "other", table).about["sha256"] not in digests


def test_a_form_that_turns_out_too_small_is_widened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows mislead about every column: one more pass, and all is as if they had not."""
    monkeypatch.setattr(module, "CHUNK", 1000)
    rng = np.random.default_rng(0)
    late = np.arange(4000) > 3500
    table = {
        "codes8": np.where(late, rng.integers(0, 1000, 4000), 1.0),
        "codes16": np.where(late, rng.integers(0, 350, 4000), rng.integers(0, 230, 4000)) / 3,
        "overflow": np.where(late, rng.integers(0, 1000, 4000), rng.integers(0, 230, 4000)) / 3,
        "float32": np.where(late, rng.normal(size=4000), rng.integers(0, 3, 4000)),
        "float64": np.where(late, 1e300, rng.normal(size=4000)),
        "edge": np.where(late, 2 - 1e-12 * rng.uniform(size=4000), 0.5),
    }
    monkeypatch.setattr("fluvial.data.forms._MOST_CODES", {"codes8": 256, "codes16": 400})
    passes = 0

    def pieces() -> Iterator[Piece]:
        nonlocal passes
        passes += 1
        yield from in_pieces(table)()

    (tmp_path / "a").mkdir()
    packed = pack(tmp_path / "a", table, pieces, which, supports={"edge": Support(0.0, 2.0)})
    assert passes == 2
    assert packed.layout.forms["float64"] == "float64"
    of = which(np.arange(4000))
    assert packed.layout.forms == {
        "codes8": "codes16", "codes16": "codes16", "overflow": "float32",
        "float32": "float32", "float64": "float64", "edge": "float64",
    }  # fmt: skip
    for name, values in table.items():
        exact = name not in ("overflow", "float32")
        np.testing.assert_allclose(packed.table("train")[name], values[of == 0], rtol=0 if exact else 1e-7)


def test_a_sample_is_uniform_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 400)
    monkeypatch.setattr(module, "CHUNK", 512)
    packed = packed_in(tmp_path / "a", {"row": np.arange(10_000.0)})
    rows = packed.sample("train")["row"]
    assert len(rows) == len(np.unique(rows)) == 400
    assert (np.diff(rows) > 0).all()
    assert np.isin(rows, packed.table("train")["row"]).all()
    # Uniform over the file: the largest distance of the distribution functions, of 400 rows (99.9 %: 1.95).
    assert np.abs(rows / 10_000 - np.arange(400) / 400).max() * 400**0.5 < 1.95
    assert packed.sample("test")["row"].size == 400
    monkeypatch.setattr(module, "SAMPLE", 10**6)
    whole = packed_in(tmp_path / "b", {"row": np.arange(10_000.0)})
    np.testing.assert_array_equal(whole.sample("train")["row"], whole.table("train")["row"])


def test_float32_rows_are_plain_rows(tmp_path: Path) -> None:
    table = {name: np.random.default_rng(i).normal(size=300) for i, name in enumerate("abc")}
    packed = packed_in(tmp_path / "a", table)
    assert packed.layout.is_float32
    raw = np.fromfile(packed.path("train"), "<f4").reshape(-1, 3)
    expected = np.stack([v.astype(np.float32) for v in table.values()], 1)[which(np.arange(300)) == 0]
    np.testing.assert_array_equal(raw, expected)


@pytest.mark.parametrize("spoil", ["shorten", "forget", "garble", "version"])
def test_what_is_damaged_counts_as_absent(tmp_path: Path, spoil: str) -> None:
    packed = packed_in(tmp_path / "a", columns(500))
    about = tmp_path / "a" / ABOUT
    if spoil == "shorten":
        path = packed.path("train")
        path.write_bytes(path.read_bytes()[:-1])
    elif spoil == "forget":
        about.unlink()
    elif spoil == "garble":
        about.write_text(about.read_text()[:100])
    else:
        about.write_text(json.dumps(json.loads(about.read_text()) | {"format": 99}))
    assert open_packed(tmp_path / "a") is None


# ------------------------------------------------------------------------------------------ cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLUVIAL_CACHE", str(tmp_path / "cache"))
    return cache_folder()


def complete(folder: Path) -> bool:
    return open_packed(folder) is not None


def make(table: dict[str, np.ndarray]) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        description = {"sources": [{"path": "a.csv"}]}
        pack(folder, table, in_pieces(table), which, supports={}, about=lambda: {"description": description})

    return fill


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUVIAL_CACHE", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/fluvial")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "fluvial"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "fluvial"


def test_made_once_listed_and_cleared(cache: Path) -> None:
    made = 0

    def count(folder: Path) -> None:
        nonlocal made
        made += 1
        make(columns(500))(folder)

    assert entries() == [] and clear() == 0  # noqa: PT018
    for _ in range(2):
        made_once(cache / "one", complete, count)
    assert made == 1
    (cache / "mine.txt").write_text("not fluvial's")
    (cache / ".two.0123.tmp").mkdir()
    (cache / ".two.0123.tmp" / "train.rows").write_bytes(b"left by a killed process")
    (entry,) = entries()
    assert (entry.folder.name, entry.rows, entry.sources) == ("one", 500, ["a.csv"])
    assert clear() == entry.bytes + 24
    assert [p.name for p in cache.iterdir()] == ["mine.txt"]
    assert entries() == []


def test_what_is_damaged_or_left_by_a_killed_process_is_made_again(cache: Path) -> None:
    made_once(cache / "one", complete, make(columns(500)))
    (cache / "one" / "train.rows").write_bytes(b"")
    (cache / ".one.0123.tmp").mkdir()
    made_once(cache / "one", complete, make(columns(500)))
    assert complete(cache / "one")
    assert sorted(p.name for p in cache.iterdir()) == [".one.lock", "one"]


def test_identify_tells_files_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    content = np.random.default_rng(0).bytes(3_000_000)
    path.write_bytes(content)
    os.utime(path, (1, 1))
    before = identify([path])
    assert identify([path]) == before
    for at in (0, 2_999_999):  # size and time of change agree: a piece of the content does not
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        os.utime(path, (1, 1))
        assert identify([path]) != before
        assert address({"s": identify([path])}) != address({"s": before})
    path.write_bytes(content)
    assert identify([path])[0]["modified_ns"] != before[0]["modified_ns"]
    with pytest.raises(DataError, match=r"nothing\.bin cannot be read: No such file"):
        identify([tmp_path / "nothing.bin"])


@pytest.mark.parametrize("full_at", [0, 1, 3, 9])
def test_a_full_disk_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch, full_at: int) -> None:
    """Some flush to disk fails: of a part, of a sample, of the description."""
    monkeypatch.setattr(module, "SAMPLE", 50)
    sync, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    if full_at == 9:  # all files are written; the folder cannot take its name
        monkeypatch.setattr(Path, "rename", lambda *_: full(0))
        count = 9
    else:
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"Could not pack .*: No space left on device\. .*FLUVIAL_CACHE"):
        made_once(cache / "one", complete, make(columns(500)))
    assert [p.name for p in cache.iterdir()] == [".one.lock"]


def _limited(cache: Path, results: multiprocessing.Queue[str]) -> None:
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing on then fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        made_once(cache / "one", complete, make(columns(50_000)))
    except DataError as error:
        results.put(str(error))


def test_a_disk_that_is_really_full(cache: Path) -> None:
    """A process that may not write more than 100 kB a file."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_limited, args=(cache, results))
    process.start()
    assert "Could not pack the data" in results.get(timeout=60)
    process.join(60)
    assert [p.name for p in cache.iterdir()] == [".one.lock"]
    made_once(cache / "one", complete, make(columns(50_000)))  # and with room it works
    assert complete(cache / "one")


def _race(cache: Path, locks: bool, together: Any, results: multiprocessing.Queue[tuple[int, str]]) -> None:
    if not locks:
        import fcntl

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        fcntl.flock = refuse
    made = 0

    def count(folder: Path) -> None:
        nonlocal made
        made += 1
        if not locks:
            together.wait(60)  # both are at it at once
        make(columns(20_000))(folder)

    together.wait(60)
    made_once(cache / "one", complete, count)
    found = open_packed(cache / "one")
    results.put((made, "" if found is None else found.about["sha256"]))


@pytest.mark.parametrize("locks", [True, False])
def test_two_processes_at_once(cache: Path, locks: bool) -> None:
    context = multiprocessing.get_context("spawn")
    results, together = context.Queue(), context.Barrier(2)
    processes = [context.Process(target=_race, args=(cache, locks, together, results)) for _ in range(2)]
    for process in processes:
        process.start()
    made, digests = zip(*(results.get(timeout=60) for _ in processes), strict=True)
    for process in processes:
        process.join(60)
    assert sum(made) == (1 if locks else 2)
    assert len(set(digests)) == 1 and digests[0]  # noqa: PT018
    assert sorted(p.name for p in cache.iterdir()) == [".one.lock", "one"]
