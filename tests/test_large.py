"""Tables larger than memory: the same fit, from a packed form on disk; what cannot be fitted leaves nothing."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fluvial
from fluvial import DataError, RunError, cli
from fluvial.data import packed as packed_module
from fluvial.data.cache import cache_folder, entries
from fluvial.data.memory import memory_budget
from fluvial.data.readers import write_table
from fluvial.data.stream import Share, StreamedBatches
from fluvial.data.transforms import ColumnTransforms
from fluvial.record import RunFolder
from fluvial.study import parse_study
from fluvial.workflow import data as workflow
from fluvial.workflow import packing
from fluvial.workflow.data import Rows, data_changed, read_rows, require_unchanged, standardised

ROWS = 6000


def table(rows: int = ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    c, z = rng.choice([0.5, 1.0, 1.7], rows), rng.normal(size=rows)
    x = c * np.exp(0.3 * z)
    return {"x": x, "c": c, "log_density": -0.5 * z**2 - np.log(0.3 * x * np.sqrt(2 * np.pi))}


def study(**data: Any) -> dict[str, Any]:
    return {
        "data": {"source": "table.parquet", "targets": ["x"], "context": ["c"], "seed": 3, **data},
        "columns": {"x": {"support": "positive"}},
        "flow": {"architecture": "maf", "steps": 2, "width": 8, "depth": 1},
        "training": {"epochs": 2, "batch_size": 128, "seed": 5},
        "check": {"contexts": 60, "draws": 50, "truth": "log_density"},
    }


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small table, for which packing begins at nothing, in pieces and samples as small."""
    monkeypatch.setenv("FLUVIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(workflow, "PACK_FROM", 0)
    monkeypatch.setattr(packing, "CHUNK", 700)
    monkeypatch.setattr(packed_module, "CHUNK", 500)
    for module in (workflow, packed_module):
        monkeypatch.setattr(module, "SAMPLE", 1000)
    write_table(tmp_path / "table.parquet", table())
    return tmp_path / "table.parquet"


def read(source: Path, **data: Any) -> Rows:
    return read_rows(parse_study(study(**data)), source)


SMALL = 1e-6  # GB: less than any of these tables


def test_in_memory_from_the_packed_form_all_is_as_from_the_source(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = read(source)
    monkeypatch.setattr(workflow, "PACK_FROM", 10**9)
    direct = read(source)
    assert packed.packed is None and direct.packed is None  # noqa: PT018
    assert "packed" in packed.facts and "packed" not in direct.facts  # noqa: PT018
    for part in ("train", "validation", "test"):
        assert packed.count(part) == direct.count(part) == len(packed.part(part)["x"])
        np.testing.assert_allclose(packed.part(part)["x"], direct.part(part)["x"], rtol=2**-24)
        np.testing.assert_array_equal(packed.part(part)["c"], direct.part(part)["c"])
        np.testing.assert_allclose(packed.truth_part(part), direct.truth_part(part), rtol=2**-24)
    assert {k: packed.facts[k] for k in ("rows_read", "rows_kept", "dropped", "split")} == {
        k: direct.facts[k] for k in ("rows_read", "rows_kept", "dropped", "split")
    }


def test_out_of_core_every_training_row_is_seen_as_the_flow_sees_it(source: Path) -> None:
    whole, rows = read(source), read(source, memory=SMALL)
    assert rows.packed is not None
    assert rows.facts["packed"]["held"] == "on disk"
    assert rows.facts["split"] == whole.facts["split"]
    assert len(rows.part("train")["x"]) == 1000 < rows.count("train")
    assert np.isin(rows.part("test")["x"], whole.part("test")["x"]).all()
    assert rows.range("x") == pytest.approx(whole.range("x"))
    transforms = [
        ColumnTransforms.fit(c, rows.part("train")) for c in (rows.schema.targets, rows.schema.context)
    ]
    batches, logdet = rows.batches(*transforms, 128, 5)
    assert isinstance(batches, StreamedBatches)
    x, c = (torch.cat(part) for part in zip(*batches.epoch(1), strict=True))
    expected_x, expected_c, expected_logdet = standardised(whole.part("train"), whole.schema, *transforms)
    assert x.dtype == c.dtype == torch.float32
    order, expected = x[:, 0].argsort(), expected_x[:, 0].argsort()
    torch.testing.assert_close(x[order], expected_x[expected], rtol=0, atol=2e-6)
    torch.testing.assert_close(c[order], expected_c[expected])
    assert abs(logdet - expected_logdet) < 5 * 0.3 / 1000**0.5  # of the sample: the scatter of log x is 0.6
    half, _ = rows.batches(*transforms, 128, 5, share=Share(1, 2))
    assert [len(x) for x, _ in half.epoch(1)][:2] == [64, 64]


def test_dropped_rows_and_the_split_are_those_of_a_table_in_memory(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = table()
    spoilt["x"][[3, 50, 4000]], spoilt["c"][[50, 99]], spoilt["x"][5999] = np.nan, np.inf, -1.0
    spoilt["log_density"][3] = np.nan
    write_table(source, spoilt)
    packed = read(source, missing="drop", outside="drop")
    monkeypatch.setattr(workflow, "PACK_FROM", 10**9)
    direct = read(source, missing="drop", outside="drop")
    assert packed.facts["dropped"] == direct.facts["dropped"] == {
        "x: missing": 3, "x: outside": 1, "c: missing": 2,
    }  # fmt: skip
    for part in ("train", "validation", "test"):
        np.testing.assert_allclose(packed.part(part)["x"], direct.part(part)["x"], rtol=2**-24)


def test_filters_and_derived_columns_are_packed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"targets": ["y"], "derive": {"y": "x / c"}, "where": "c > 0.6 and y < 2"}
    columns = {"y": {"support": "positive"}}

    def rows() -> Rows:
        return read_rows(parse_study({**study(**given), "columns": columns}), source)

    packed = rows()
    monkeypatch.setattr(workflow, "PACK_FROM", 10**9)
    direct = rows()
    assert packed.facts["split"] == direct.facts["split"]
    assert packed.facts["rows_in_source"] == ROWS > packed.facts["rows_read"] == direct.facts["rows_read"]
    for part in ("train", "validation", "test"):
        np.testing.assert_allclose(packed.part(part)["y"], direct.part(part)["y"], rtol=2**-24)
    monkeypatch.setattr(workflow, "PACK_FROM", 0)
    given["where"] = "c > 10"
    with pytest.raises(DataError, match=r"none of 6000 rows passes the filter\s+c > 10"):
        rows()


@pytest.mark.parametrize("memory", [SMALL, "auto"])
def test_an_atom_that_float32_does_not_hold_is_one_afterwards(source: Path, memory: Any) -> None:
    """A tenth of the rows on 0.1, among numbers without end: packed, they still are on it."""
    rng = np.random.default_rng(1)
    x = np.where(rng.uniform(size=ROWS) < 0.1, 0.1, rng.normal(size=ROWS))
    write_table(source, {**table(), "x": x})
    given = {**study(memory=memory), "columns": {"x": {"atoms": [0.1]}}}
    rows = read_rows(parse_study(given), source)
    assert rows.facts["packed"]["forms"]["x"] == "float64"
    share = np.mean(rows.part("train")["x"] == 0.1)
    assert abs(share - 0.1) < 5 * 0.3 / 1000**0.5
    transforms = [
        ColumnTransforms.fit(c, rows.part("train")) for c in (rows.schema.targets, rows.schema.context)
    ]
    batches, _ = rows.batches(*transforms, 128, 5)
    levels = torch.cat([x for x, _ in batches.epoch(1)])[:, -1]
    counts = levels.unique(return_counts=True)[1]
    assert len(counts) == 2
    assert int(counts.min()) == pytest.approx(0.1 * rows.count("train"), rel=0.2)


@pytest.mark.parametrize(
    ("column", "value", "row", "message"),
    [
        ("x", np.nan, 5999, r"x: 1 values are not finite .*first in row 5999; "),
        ("x", -2.0, 4321, r"x: 1 values lie outside the support \(0, inf\), the first in row 4321: -2; "),
        ("log_density", np.nan, 5998, r"'log_density' .*1 values .*first in row 5998; "),
        ("c", 1.0, slice(None), r"c: every row holds 1, so there is nothing to learn"),
    ],
)
def test_what_is_wrong_is_said_and_leaves_nothing(
    source: Path, column: str, value: float, row: Any, message: str
) -> None:
    spoilt = table()
    spoilt[column][row] = value
    write_table(source, spoilt)
    with pytest.raises(DataError, match=r"table\.parquet.*(?s:.)*" + message):
        read(source)
    assert [p.name for p in cache_folder().iterdir() if not p.name.endswith(".lock")] == []


def test_the_row_of_many_files_is_named_within_its_own(source: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for i in range(3):
        part = table(100, seed=i)
        if i == 1:
            part["x"][42] = np.nan
        write_table(tmp_path / "parts" / f"part-{i}.parquet", part)
    with pytest.raises(DataError, match=r"first in row 42 of .*part-1\.parquet"):
        read(tmp_path / "parts")


def test_a_fit_out_of_core(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same study, its table on disk: a whole run; packed once; as good as in memory."""
    folder = source.parent
    given = study(memory=SMALL, source=str(source))
    density = fluvial.fit(given, runs=folder / "runs")
    assert density.folder is not None
    record = RunFolder.open(density.folder).record()
    assert record["data"]["packed"]["held"] == "on disk"
    assert record["data"]["packed"]["forms"] == {"x": "float32", "c": "codes8", "log_density": "float32"}
    assert record["checks"]["test_rows"] == 1000
    assert record["data"]["split"]["train"] > 3000
    assert record["training"]["rows"] == 2 * record["data"]["split"]["train"]
    assert density.context_range == {"c": (0.5, 1.7)}
    (entry,) = entries()
    made = (entry.folder / "train.rows").stat().st_mtime_ns

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(packing, "pack", refuse)
    again = fluvial.fit(given, runs=folder / "runs", check=False)
    assert (entry.folder / "train.rows").stat().st_mtime_ns == made
    for a, b in zip(density.flow.parameters(), again.flow.parameters(), strict=True):
        assert torch.equal(a, b)
    fluvial.check_run(density.folder)
    memory = fluvial.fit(study(source=str(source)), runs=folder / "runs", check=False)
    rows = table(2000, seed=9)
    assert abs(density.log_prob(rows).mean() - memory.log_prob(rows).mean()) < 0.03


def test_a_source_that_changed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = study(memory=SMALL, source=str(source))
    density = fluvial.fit(given, runs=source.parent / "runs", check=False)
    assert density.folder is not None
    record = RunFolder.open(density.folder).record()["data"]
    write_table(source, table())  # written again, later, with the same content: the same data
    require_unchanged(record, read(source, memory=SMALL), source)
    changed = table()
    changed["x"][17] *= 1.001
    write_table(source, changed)
    rows = read(source, memory=SMALL)
    with pytest.raises(
        DataError, match=r"table\.parquet has changed since the run began: then 6000 rows, .* now"
    ):
        require_unchanged(record, rows, source)
    with pytest.raises(RunError, match=r"table\.parquet has changed since .* was fitted"):
        fluvial.check_run(density.folder)
    monkeypatch.setattr(workflow, "PACK_FROM", 10**9)
    direct = read(source)  # a table in memory is told by its whole content
    assert not data_changed({"fingerprint": direct.facts["fingerprint"]}, direct)


@pytest.mark.parametrize("held", ["in memory", "on disk", "as it is"])
def test_a_run_is_gone_on_with_as_it_began(source: Path, monkeypatch: pytest.MonkeyPatch, held: str) -> None:
    """Whatever memory there is by then: else the order of the batches would be another."""
    if held == "as it is":
        monkeypatch.setattr(workflow, "PACK_FROM", 10**9)
    began = read(source, memory=SMALL if held == "on disk" else "auto")
    assert began.facts.get("packed", {"held": "as it is"})["held"] == held
    monkeypatch.setattr(workflow, "PACK_FROM", 0)
    for memory in (SMALL, "auto"):
        rows = read_rows(parse_study(study(memory=memory)), source, like=began.facts)
        assert rows.facts == began.facts
        assert (rows.packed is None) == (held != "on disk")
        np.testing.assert_array_equal(rows.part("train")["x"], began.part("train")["x"])


def test_a_source_that_changes_while_it_is_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = packing._chunks

    def growing(*arguments: Any) -> Any:
        yield from chunks(*arguments)
        write_table(source, table(ROWS + 1))

    monkeypatch.setattr(packing, "_chunks", growing)
    with pytest.raises(DataError, match=r"table\.parquet changed while it was read; wait"):
        read(source)
    assert entries() == []


def test_what_decides_a_packed_form(source: Path) -> None:
    """Another seed, column or handling is another form; labels, budgets and architectures are not."""
    read(source)
    read(source, memory=SMALL)
    labelled = study()
    labelled["columns"] = {"x": {"support": "positive", "label": "$x$", "unit": "m"}}
    labelled["flow"] = {"architecture": "diagonal-gaussian"}
    read_rows(parse_study(labelled), source)
    assert len(entries()) == 1
    read(source, seed=4)
    read(source, missing="drop")
    assert len(entries()) == 3


def test_too_few_rows_for_a_split(source: Path) -> None:
    write_table(source, table(3))
    with pytest.raises(DataError, match=r"of the 3 sound rows falls to the (validation|test) split"):
        read(source)


def test_memory_budgets() -> None:
    assert memory_budget(2) == 2_000_000_000
    assert 10**7 < memory_budget("auto") < 2**50
    with pytest.raises(fluvial.StudyError, match=r"\[data\] memory"):
        parse_study(study(memory=0.0))
    with pytest.raises(fluvial.StudyError, match=r"\[data\] memory"):
        parse_study(study(memory="lots"))


def test_the_cache_is_shown_and_cleared(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminal(*argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fluvial", "cache", *argv])
        with contextlib.suppress(SystemExit):
            cli.main()
        return capsys.readouterr().out

    assert terminal() == f"0 packed tables, 0.00 GB, in {cache_folder()}\n"
    read(source)
    shown = terminal()
    assert str(source) in shown
    assert "1 packed tables" in shown
    assert "GB freed" in terminal("--clear")
    assert entries() == []


def test_atoms_and_rare_integers_from_disk_are_those_of_the_whole_table(source: Path) -> None:
    """A sample of 1,000 rows holds neither the one count of 9 nor where the numbers off the atom end."""
    rng = np.random.default_rng(4)
    tag = np.where(rng.random(ROWS) < 0.3, -1.0, rng.beta(0.5, 0.5, ROWS))
    count = np.minimum(rng.poisson(2.0, ROWS), 8).astype(float)
    count[4321] = 9.0
    write_table(source, {"tag": tag, "count": count, "c": rng.normal(size=ROWS)})
    described = study(memory=SMALL, targets=["tag", "count"])
    described["columns"] = {"tag": {"atoms": [-1.0]}, "count": {"kind": "integer"}}
    described["check"].pop("truth")
    rows = read_rows(parse_study(described), source)
    assert rows.packed is not None
    tag_column, count_column = rows.schema.targets
    assert count_column.values == tuple(range(10))
    free = tag[tag >= 0]
    assert tag_column.support.contains(free).all()
    seen = rows.table["tag"]
    assert free.min() < seen[seen >= 0].min(), "the sample should lack the smallest number"
    batches, _ = rows.batches(
        *(ColumnTransforms.fit(c, rows.part("train")) for c in (rows.schema.targets, rows.schema.context)),
        128,
        1,
    )
    assert all(torch.isfinite(x).all() for x, _ in batches.epoch(0))
