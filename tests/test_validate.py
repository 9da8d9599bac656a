"""What a sound table is: every fault is counted, located and said at once."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest

from fluvial.data.schema import Column, Schema, Support
from fluvial.data.validate import Report, validate
from fluvial.errors import DataError

SCHEMA = Schema(
    targets=(
        Column("mass", "target", support=Support(lower=0.0)),
        Column("spin", "target", support=Support(-1, 1)),
    ),
    context=(Column("Z", "context", support=Support(lower=0.0)),),
)


def sound(rows: int = 100) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "mass": rng.lognormal(size=rows),
        "spin": rng.uniform(-0.9, 0.9, rows),
        "Z": rng.choice([0.001, 0.02], rows),
        "name": np.array(["x"] * rows),
    }


def fault(table: dict[str, np.ndarray], schema: Schema = SCHEMA, **options: str) -> str:
    with pytest.raises(DataError) as error:
        validate(table, schema, where="mergers.parquet", **options)  # type: ignore[arg-type]
    assert str(error.value).startswith("mergers.parquet: ")
    return str(error.value)


def test_a_sound_table_passes_uncopied() -> None:
    table = sound()
    out, report = validate(table, SCHEMA, where="mergers.parquet")
    assert list(out) == ["mass", "spin", "Z"]
    assert all(np.shares_memory(out[name], table[name]) for name in out)
    assert report == Report(rows_read=100, rows_kept=100, dropped={})


def test_every_fault_is_said_at_once() -> None:
    table = sound()
    table["mass"][[7, 9]] = np.nan
    table["mass"][11] = np.inf
    table["mass"][[5, 20, 21]] = -3.5
    table["spin"][60] = 1.0
    table["Z"][:] = 0.02
    message = fault(table)
    assert "mass: 3 values are not finite (2 NaN, 1 infinite), the first in row 7" in message
    assert '`missing = "drop"` under [data]' in message
    assert "mass: 3 values lie outside the support (0, inf), the first in row 5: -3.5" in message
    assert '`outside = "drop"` under [data]' in message
    assert "widen `support` under [columns.mass]" in message
    assert "spin: 1 values lie outside the support (-1, 1) (the ends are not part of it)" in message
    assert "Z: every row holds 0.02" in message
    assert "remove it from context under [data]" in message
    assert message.count("\n  - ") == 4


def test_only_what_is_wrong_is_said() -> None:
    table = sound()
    table["spin"][3] = np.nan
    message = fault(table)
    assert message.count("\n  - ") == 1
    assert "mass" not in message
    assert "outside" not in message


def test_dropping() -> None:
    table = sound()
    table["mass"][[7, 9]] = np.nan, -np.inf
    table["spin"][[9, 10]] = 2.0
    out, report = validate(table, SCHEMA, where="m", missing="drop", outside="drop")
    keep = np.setdiff1d(np.arange(100), [7, 9, 10])
    for name in out:
        np.testing.assert_array_equal(out[name], table[name][keep])
    assert report.rows_read == 100
    assert report.rows_kept == 97  # row 9 has two faults
    assert report.dropped == {"mass: missing": 2, "spin: outside": 2}
    assert report.notes == []
    assert json.loads(json.dumps(report.to_json())) == {
        "notes": [],
        "rows_read": 100,
        "rows_kept": 97,
        "dropped": {"mass: missing": 2, "spin: outside": 2},
    }


def test_dropping_one_reason_leaves_the_other_an_error() -> None:
    table = sound()
    table["mass"][7] = np.nan
    table["spin"][9] = -1.5
    assert "outside" in fault(table, missing="drop")
    assert "not finite" not in fault(table, missing="drop")
    assert "not finite" in fault(table, outside="drop")
    assert "lie outside" not in fault(table, outside="drop")


def test_nan_is_missing_not_outside() -> None:
    table = sound()
    table["mass"][4] = -np.inf  # outside (0, inf) too, but said once
    assert "1 values are not finite (0 NaN, 1 infinite)" in fault(table, outside="drop")


def test_constant_target_after_dropping() -> None:
    table = sound()
    table["mass"][:] = 8.0
    table["mass"][0] = -1.0
    assert "mass: every row holds 8" in fault(table, outside="drop")
    assert "remove it from targets" in fault(table, outside="drop")


def test_no_rows() -> None:
    assert "it has no rows" in fault({name: values[:0] for name, values in sound().items()})
    table = sound()
    table["mass"][:50] = np.nan
    table["spin"][50:] = 5.0
    message = fault(table, missing="drop", outside="drop")
    assert "no rows are left after dropping (mass: missing 50, spin: outside 50)" in message


def test_absent_columns_and_lengths() -> None:
    table = sound()
    table["Mass"] = table.pop("mass")
    del table["Z"]
    message = fault(table)
    assert "no column 'mass'; did you mean 'Mass'?" in message
    assert "no column 'Z'" in message
    assert "expected 1-D columns of one length" in fault({**sound(), "Z": np.ones(3)})


def test_a_table_without_context() -> None:
    schema = Schema((Column("mass", "target"),))
    out, report = validate({"mass": np.array([1, 2, 3])}, schema, where="m")
    assert out["mass"].dtype == np.float64
    assert report.rows_kept == 3


def test_angles_of_another_unit_are_found() -> None:
    schema = Schema((Column("phi", "target", period=(-math.pi, math.pi)), Column("x", "target")))
    x, turn = np.linspace(0, 1, 50), np.linspace(0, 1, 50)
    message = fault({"phi": 360 * turn - 180, "x": x}, schema)
    assert "phi: values from -180 to 180 span 57.3 turns of its period [-3.14159, 3.14159]" in message
    assert "(degrees or radians?)" in message
    for start in (-math.pi, 0.0, 1.0):  # one turn, wherever it begins
        out, _ = validate({"phi": start + 2 * math.pi * turn, "x": x}, schema, where="m")
        assert np.abs(out["phi"]).max() <= math.pi
    dropped = {"phi": np.append(turn, np.nan), "x": np.append(x, 0.5)}
    assert validate(dropped, schema, where="m", missing="drop")[1].rows_kept == 50


def test_infinite_supports_hold_the_largest_float() -> None:
    schema = Schema((Column("x", "target", support=Support(-math.inf, math.inf)),))
    x = np.array([-1.7976931348623157e308, 1.7976931348623157e308])
    assert validate({"x": x}, schema, where="m")[1].rows_kept == 2


def test_a_large_table_is_checked_quickly() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=1_000_000)
    dirty = x.copy()
    dirty[123_456] = np.nan
    table = {f"c{i}": dirty if i % 2 else x for i in range(10)}
    schema = Schema(tuple(Column(name, "target") for name in table))
    start = time.process_time()
    _, report = validate(table, schema, where="m", missing="drop")
    assert report.rows_kept == 999_999
    assert time.process_time() - start < 5  # some 0.1 s; a loop over rows would take far longer


def test_a_period_that_begins_elsewhere_is_told() -> None:
    angles = np.linspace(0.5, 359.5, 100)
    schema = Schema((Column("phi", "target", period=(-180.0, 180.0)),))
    out, report = validate({"phi": angles}, schema, where="m")
    assert report.notes == [
        "phi: values run from 0.5 to 359.5; they are brought into its period, and draws lie from -180 to 180"
    ]
    assert out["phi"].min() >= -180
    assert out["phi"].max() < 180
    schema = Schema((Column("phi", "target", period=(0.0, 360.0)),))
    assert validate({"phi": angles}, schema, where="m")[1].notes == []
