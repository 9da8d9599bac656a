"""Expressions over columns: what they mean, what they refuse and how they say it, and views of tables through them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluvial.data.expressions import parse_expression, quoted, substituted
from fluvial.data.readers import memory_table, open_table
from fluvial.data.select import View, in_source_columns, parse_derived
from fluvial.errors import DataError, StudyError

NAN = np.nan
TABLE = {
    "m": np.array([1.0, 10.0, 100.0, NAN, -5.0]),
    "z": np.array([0.001, 0.02, 0.001, 0.02, 0.3], np.float32),
    "k": np.array([0, 1, 2, 3, -4], np.int8),
    "jets/pt": np.array([5.0, 20.0, 30.0, 40.0, 50.0]),
    "data[3]": np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m < 100", [1, 1, 0, 0, 1]),
        ("m != 10", [1, 0, 1, 1, 1]),  # a missing value differs from every number
        ("not m > 10", [1, 1, 0, 1, 1]),
        ("0 < m <= 10", [1, 1, 0, 0, 0]),
        ("m > 0 and z < 0.01 or k == -4", [1, 0, 1, 0, 1]),
        ("z == 0.001", [1, 0, 1, 0, 0]),  # float32 of 0.001 is not the float64
        ("z in [0.001, 0.3]", [1, 0, 1, 0, 1]),
        ("z not in (0.001, 0.3)", [0, 1, 0, 1, 0]),
        ("k in [300, -4]", [0, 0, 0, 0, 1]),
        ("k > 300 or 1e300 > z > -1e300", [1, 1, 1, 1, 1]),
        ("isfinite(log(m)) and isfinite(m)", [1, 1, 1, 0, 0]),
        ("`jets/pt` > 20 and data[3] < 5", [0, 0, 1, 1, 0]),
        ("1 < 2 and m > 0", [1, 1, 1, 0, 0]),
        ("m / m == 1", [1, 1, 1, 0, 1]),
        ("abs(m) >= maximum(k, 5)", [0, 1, 1, 0, 1]),
    ],
)
def test_a_condition(text: str, expected: list[int]) -> None:
    expression = parse_expression(text, kind="condition")
    found = expression(TABLE)
    assert found.dtype == bool
    assert found.tolist() == [bool(x) for x in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m + 2 * k ** 2 - 1", [0, 11, 107, NAN, 26]),
        ("-m ** 2 / 2", [-0.5, -50, -5000, NAN, -12.5]),
        ("where(m > 5, k, -1)", [-1, 1, 2, -1, -1]),
        ("k / k", [NAN, 1, 1, 1, 1]),
        ("1 / k", [np.inf, 1, 1 / 2, 1 / 3, -1 / 4]),
        ("arctan2(k, 1)", np.arctan2([0, 1, 2, 3, -4], 1)),
        ("log10(m) + exp(0 * k)", [1, 2, 3, NAN, NAN]),
        ("sqrt(minimum(k, 1))", [0, 1, 1, 1, NAN]),
        ("k * k * k * k * k * k * k * k", [0, 1, 256, 6561, 65536]),  # no int8
    ],
)
def test_a_number(text: str, expected: list[float]) -> None:
    found = parse_expression(text, kind="number")(TABLE)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("m < 100 & z > 0", "write 'and' instead of '&'", "100 & z"),
        ("m < 100 && z > 0", "write 'and' and 'or'", None),
        ("m = 3", "write '==' to compare", "="),
        ("m <", "this does not parse", None),
        ("", "found an empty text", None),
        ("m", "expected a condition, such as x < 100 .*; found a number", "m"),
        ("m and z > 1", "expected a condition", "m"),
        ("(m > 1) * 2 > 1", "expected a number", "m > 1"),
        ("z > 1 and name == 'BSE'", "only numbers and columns", "'BSE'"),
        ("lg(m) > 1", "no function 'lg'; did you mean 'log'", "lg"),
        ("log(m, z) > 1", "log takes 1 argument", "log(m, z)"),
        ("where(m, 1, 2) > 1", "expected a condition", "m"),
        ("m.pt > 1", "a name with a dot stands in backquotes", "m.pt"),
        ("m in z", "expected a list of numbers", "z"),
        ("m in [z]", "expected a number", "z"),
        ("m is 1", "write '=='", "m is 1"),
        ("1 < 2", "names a column", "1 < 2"),
        ("1e999 < m", "beyond float64", "1e999"),
        ("m if z else k", r"write where\(condition, a, b\)", "m if z else k"),
        ("ééé + lg(m) > 0", "no function", "lg"),  # carets stand by characters, not bytes
        ("`jets/pt` > lg(m)", "no function", "lg"),
        ("[x for x in m]", "no part of an expression", None),
        ("(lambda: 1)() > m", "no function", None),
        ("m.__class__ > 1", "backquotes", None),
        ("().__class__.__bases__[0] > m", "", None),
        ("m := 3", "", None),
        ("m + " * 3000 + "m > 1", "", None),
        ("(" * 400 + "m" + ")" * 400 + " > 1", "", None),
        ("m > " + "9" * 5000, "", None),
    ],
)
def test_what_is_refused_is_pointed_at(text: str, message: str, place: str | None) -> None:
    with pytest.raises(StudyError, match=rf"^\[data\] where: .*{message}") as error:
        parse_expression(text, "[data] where", "condition")
    assert len(str(error.value)) < 500
    if place is not None:
        _, line, carets = str(error.value).splitlines()
        start = carets.index("^")
        assert line[start : start + carets.count("^")] == place


def test_powers_of_numbers_end() -> None:
    assert parse_expression("9 ** 9 ** 9 ** 9 > m")(TABLE).tolist() == [True, True, True, False, True]


def test_an_unknown_column_is_pointed_at() -> None:
    expression = parse_expression("Z > 0.1 and mas_0 < 3", "[data] where")
    with pytest.raises(DataError) as error:
        expression.require(["Z", "Mass_0"], "a.h5")
    message, line, carets = str(error.value).splitlines()
    assert message == "[data] where: a.h5 has no column 'mas_0'; did you mean 'Mass_0'?"
    assert line[carets.index("^") :][: carets.count("^")] == "mas_0"
    parse_expression("data[3] + `jets/pt`").require(["data", "jets/pt"], "a.h5")


@given(st.floats(-10, 10), st.floats(-10, 10), st.integers(0, 5))
def test_bounds_hold_where_the_condition_does(a: float, b: float, seed: int) -> None:
    x, y = np.random.default_rng(seed).uniform(-10, 10, (2, 50))
    for text in (
        f"x > {a!r} and y <= {b!r}",
        f"{a!r} < x < {b!r} and {b!r} >= y",
        f"x in [{a!r}, {b!r}] and y == {b!r}",
        f"x > {a!r} or y < {b!r}",
        f"not x > {a!r} and (y > {b!r} and log(x) < 1)",
        f"x > y > {a!r}",
    ):
        condition = parse_expression(text, kind="condition")
        table = {"x": np.append(x, [a, b]), "y": np.append(y, [b, a])}
        kept = condition(table)
        for name, (low, high) in condition.bounds().items():
            assert ((table[name][kept] >= low) & (table[name][kept] <= high)).all()
    assert parse_expression("x > 1 or y < 3").bounds() == {}
    assert parse_expression("x > 1 and not y < 3").bounds() == {"x": (1, np.inf)}


def test_substitution_keeps_the_meaning() -> None:
    definitions = {"r": parse_expression("m + k"), "s": parse_expression("`jets/pt` - data[3]")}
    expression = parse_expression("r ** 2 / s + where(r > 0, s, -r)")
    whole = substituted(expression, definitions)
    assert set(whole.columns) == {"m", "k", "jets/pt", "data[3]"}
    table = TABLE | {name: definition(TABLE) for name, definition in definitions.items()}
    np.testing.assert_array_equal(whole(TABLE), expression(table))
    assert [quoted(n) for n in ("in", "a b", "x[3:4]")] == ["`in`", "`a b`", "`x[3:4]`"]


def test_derived_columns_of_derived_ones() -> None:
    derive = {"c": "a + b", "a": "x * 2", "b": "a - y"}
    assert in_source_columns(parse_derived(derive))["c"] == "x * 2 + (x * 2 - y)"
    with pytest.raises(StudyError, match="defined by each other"):
        parse_derived(derive | {"a": "c"})
    with pytest.raises(StudyError, match=r"\[data\.derive\] a: expected a number"):
        parse_derived({"a": "(x > 3) + 1"})


# ------------------------------------------------------------------------------------------ views


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = np.arange(10_000)
    table = {"i": rows, "x": np.sin(rows), "y": np.cos(rows).astype(np.float32), "big": rows + 2**53}
    pq.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=1000)
    return tmp_path / "t.parquet"


def test_a_view_keeps_rows_and_their_numbers(source: Path) -> None:
    view = View(open_table(source), "2500 <= i < 7500 and r > 0", {"r": "x / y"})
    i = np.arange(10_000)
    x, y = np.sin(i), np.cos(i).astype(np.float32).astype(float)
    kept = (i >= 2500) & (i < 7500) & (x / y > 0)
    table, numbers = view.read(["y", "r"])
    np.testing.assert_array_equal(numbers, i[kept])
    np.testing.assert_array_equal(table["y"], y[kept])
    np.testing.assert_array_equal(table["r"], (x / y)[kept])
    assert table["y"].dtype == table["r"].dtype == np.float64
    chunks = list(view.chunks(["r", "y"], 700))
    assert max(len(rows) for rows, _ in chunks) <= 700
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in chunks]), numbers)
    np.testing.assert_array_equal(np.concatenate([chunk["y"] for _, chunk in chunks]), table["y"])
    assert chunks[0][1]["y"].dtype == np.float32
    assert view.source_rows() == 10_000
    assert view.columns()["r"] == "= x / y"
    whole, every = View(open_table(source)).read(["x"])
    assert whole["x"].size == every.size == 10_000


def test_groups_that_cannot_match_are_not_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_table(source)
    asked = []
    chunks = reader.chunks
    monkeypatch.setattr(reader, "chunks", lambda *a: asked.append(a[2:]) or chunks(*a))
    _, numbers = View(reader, "i in [2500, 2600, 9100]").read(["i"])
    assert numbers.tolist() == [2500, 2600, 9100]
    assert asked == [(2000, 10_000)]
    asked.clear()
    with pytest.raises(DataError, match=r"none of 10000 rows passes the filter\n    i < -1"):
        View(reader, "i < -1").read(["i"])
    assert asked == []


def test_a_view_refuses(source: Path) -> None:
    reader = open_table(source)
    with pytest.raises(DataError, match=r"\[data\] where: .*t\.parquet has no column 'j'"):
        View(reader, "j > 3")
    with pytest.raises(DataError, match=r"\[data\.derive\] x: .* has a column of that name"):
        View(reader, derive={"x": "y * 2"})
    with pytest.raises(DataError, match="column 'big' holds integers beyond"):
        View(reader, "i > 5000").read(["big"])
    spectra = memory_table({"flux": np.zeros((3, 5)), "t": np.arange(3.0)})
    with pytest.raises(DataError, match=r"flux is an array of 5 numbers a row; name one, as in flux\[0\]"):
        View(spectra, "flux > 3")
    table, numbers = View(spectra, "flux[4] == 0 and t > 0").read(["flux"])
    assert table["flux"].shape == (2, 5)
    assert numbers.tolist() == [1, 2]
    assert re.fullmatch("row 1", View(spectra).place(1))


def test_any_words_give_columns_or_a_study_error() -> None:
    """Random words of Python: nothing but a StudyError, and what parses is evaluated and written again alike."""
    words = (
        "m z `jets/pt` data[3] 3 1e5 + - * / ** < == != and or not in [1,2] ( ) log where , isfinite abs(m)"
    )
    words += " 'a' lambda : := # é ` % is None j 1j await"
    rng = np.random.default_rng(0)
    parsed = 0
    for _ in range(4000):
        text = " ".join(rng.choice(words.split(), rng.integers(1, 8)))
        try:
            expression = parse_expression(text)
        except StudyError:
            continue
        expression.bounds()
        if set(expression.columns) <= set(TABLE):
            parsed += 1
            found = expression(TABLE)
            assert found.shape == (5,)
            np.testing.assert_array_equal(substituted(expression, {})(TABLE), found)
    assert parsed > 50
