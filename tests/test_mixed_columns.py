"""Mixed, integer and periodic columns: from the study to draws and checks, with nothing smeared on the way."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluvial
from fluvial.check import level_probabilities, outside_support
from fluvial.data.choice import choose_for_rows
from fluvial.data.discrete import hints, resolve
from fluvial.data.readers import write_table
from fluvial.data.schema import Column, Schema, Support
from fluvial.data.transforms import ColumnTransforms, layout_of
from fluvial.data.validate import validate
from fluvial.density import Density
from fluvial.errors import DataError, StudyError
from fluvial.flows.mixed import build_mixed_flow
from fluvial.study import parse_study

PI = math.pi
TAGGER = Column("tagger", "target", support=Support(0.0, 1.0), atoms=(-1.0,))
RATIO = Column("ratio", "target", support=Support(0.0, 7.0), atoms=(0.0, 7.0), saturate=Support(upper=7.0))
JETS = Column("jets", "target", kind="integer", values=(0.0, 1.0, 2.0, 5.0))
PHI = Column("phi", "target", period=(-PI, PI))
MASS = Column("mass", "target", unit="GeV", support=Support(0.0))


def as_context(column: Column) -> Column:
    return Column(**{**vars(column), "role": "context"})


def rows(number: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return columns of every kind; the chance of the tagger's atom is that of c."""
    rng = np.random.default_rng(seed)
    c = rng.random(number)
    phi = np.mod(3 + 0.4 * rng.normal(size=number) + PI, 2 * PI) - PI
    return {
        "c": c,
        "tagger": np.where(rng.random(number) < c, -1.0, rng.beta(2, 3, number)),
        "ratio": np.where(rng.random(number) < 0.2, 0.0, np.minimum(rng.lognormal(1, 1, number), 7.0)),
        "jets": rng.choice([0.0, 1.0, 2.0, 5.0], number, p=[0.1, 0.4, 0.3, 0.2]),
        "phi": phi,
        "mass": np.exp(rng.normal(size=number)),
    }


# The column


def test_levels_are_met_through_float32() -> None:
    column = Column("x", "target", atoms=(-0.1, 0.0, 1e6))
    stored = np.float32([-0.1, 0.0, 1e6, 1e-30, 0.1, -0.1001, np.nan, np.inf]).astype(np.float64)
    assert column.level(stored).tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    assert column.canonical(stored)[:3].tolist() == [-0.1, 0.0, 1e6]
    assert column.canonical(stored)[3] == stored[3]


def test_where_columns_can_be() -> None:
    assert RATIO.canonical(np.array([8.0, 7.0, 1e9, -1.0])).tolist() == [7.0, 7.0, 7.0, -1.0]
    assert RATIO.contains(np.array([8.0, 0.0, 3.0, -1.0, np.inf])).tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert TAGGER.contains(np.array([-1.0, -0.999, 0.0, 0.5, 1.0])).tolist() == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert JETS.contains(np.array([0.0, 3.0, 5.0, 0.5])).tolist() == [True, False, True, False]
    assert PHI.contains(np.array([100.0, np.nan])).tolist() == [True, False]
    np.testing.assert_allclose(PHI.canonical(np.array([PI, 4.0, -3.0])), [-PI, 4 - 2 * PI, -3.0])
    plain = np.array([1.0])
    assert MASS.canonical(plain) is plain


def test_schema_survives_json_and_plain_columns_say_nothing_new() -> None:
    schema = Schema((TAGGER, RATIO, JETS, PHI, MASS), (as_context(PHI),))
    assert Schema.from_json(json.loads(json.dumps(schema.to_json(), allow_nan=False))) == schema
    assert set(schema.to_json()["targets"][4]) == {"name", "unit", "support", "transform", "label"}


# What a table tells


def test_integers_and_bounds_are_found() -> None:
    table = {
        "n": np.array([3.0, 1.0, 1.0, 2.0]),
        "t": np.array([-1.0, 0.2, 0.8, 1.2]),
        "z": np.array([0.0, 1e-6, 1.0, 2.0]),
        "free": np.array([-3.0, 0.0, 1.0, 0.5]),
    }
    schema = Schema(
        (
            Column("n", "target", kind="integer"),
            Column("t", "target", atoms=(-1.0,)),
            Column("z", "target", atoms=(0.0,)),
            Column("free", "target", atoms=(0.0,)),
        )
    )
    found, notes = resolve(schema, table, where="t.parquet")
    n, t, z, free = found.targets
    assert n.values == (1.0, 2.0, 3.0)
    assert t.support == Support(0.2 - 1e-3, math.inf)
    assert z.support == Support(0.0, math.inf)  # the values come up to the atom
    assert free.support == Support()  # an atom amid the values bounds nothing
    assert "n: the whole numbers 1, 2, 3 occur" in notes
    assert any(note.startswith("t: 25 % of the rows on the atom -1") for note in notes)


def test_what_is_no_integer_and_no_mixed_column() -> None:
    schema = Schema((Column("n", "target", kind="integer"),))
    with pytest.raises(
        DataError, match=r"t: integer column n takes 300 values, 0 to 299; expected at most 256"
    ):
        resolve(schema, {"n": np.arange(300.0)}, where="t")
    with pytest.raises(DataError, match=r"every row of column tagger is on one of its atoms \(-1\)"):
        resolve(Schema((TAGGER,)), {"tagger": np.full(3, -1.0)}, where="t")


def test_values_off_the_levels_are_faults() -> None:
    table = {"tagger": np.array([-1.0, 0.5, -0.5, 0.2]), "jets": np.array([0.0, 3.0, 5.0, 5.0])}
    with pytest.raises(DataError) as caught:
        validate(table, Schema((TAGGER, JETS)), where="t")
    assert "tagger: 1 values are not among (0, 1) and the atom -1, the first in row 2: -0.5" in str(
        caught.value
    )
    assert "jets: 1 values are not among the whole numbers 0, 1, 2, 5, the first in row 1: 3" in str(
        caught.value
    )
    kept, report = validate(table, Schema((TAGGER, JETS)), where="t", outside="drop")
    assert report.dropped == {"tagger: outside": 1, "jets: outside": 1}
    assert kept["tagger"].tolist() == [-1.0, 0.2]
    turned, _ = validate({"phi": np.array([4.0, 0.0])}, Schema((PHI,)), where="t")
    np.testing.assert_allclose(turned["phi"], [4 - 2 * PI, 0.0])


def test_hints() -> None:
    column, rng = Column("x", "target"), np.random.default_rng(0)
    smooth = rng.normal(size=5000)
    assert hints(column, smooth) == []
    assert "only 7 whole numbers" in hints(column, rng.integers(0, 7, 5000).astype(float))[0]
    assert "set atoms = [0.0]" in hints(column, np.where(smooth > 1, 0.0, smooth))[0]
    assert hints(column, np.round(smooth, 2)) == []  # a grid, not atoms
    assert hints(column, rng.choice([0.5, 0.7], 5000)) == []


# Transforms


def test_targets_are_coded_and_come_back() -> None:
    columns, table = (TAGGER, MASS, JETS, PHI, RATIO), rows(500)
    transforms = ColumnTransforms.fit(columns, table)
    assert transforms.layout == layout_of(columns)
    assert transforms.layout.holder == (0, None, None, 2)
    assert transforms.layout.levels == (2, 4, 3)
    assert transforms.layout.angles == (False, False, True, False)
    x = np.stack([table[c.name] for c in columns], -1)
    coded, logdet = transforms.forward(x)
    assert coded.shape == (500, 7)
    assert np.isfinite(coded).all()
    assert np.isfinite(logdet).all()
    back = transforms.inverse(coded)
    np.testing.assert_allclose(back, x, rtol=1e-9, atol=1e-9)
    for i in (0, 2, 4):  # levels come back exactly
        level = columns[i].level(x[:, i]) >= 0
        assert (back[level, i] == x[level, i]).all()
    assert (coded[x[:, 0] == -1, 0] == 0).all()
    alone = ColumnTransforms.fit([MASS], table)
    without = x.copy()
    without[:, 0], without[:, 4] = -1.0, 0.0
    turn = transforms.forward(without)[1] - alone.forward(without[:, 1:2])[1]
    np.testing.assert_allclose(turn, 0.0, atol=1e-12)  # atoms have no slope, and one turn here is 2π
    again = ColumnTransforms.from_json(json.loads(json.dumps(transforms.to_json())))
    assert np.array_equal(again.forward(x)[0], coded)
    assert again.describe() == transforms.describe()


def test_contexts_become_features() -> None:
    columns = tuple(as_context(c) for c in (TAGGER, JETS, PHI))
    table = rows(300)
    transforms = ColumnTransforms.fit(columns, table)
    assert transforms.layout.width == layout_of(columns).width == 1 + 2 + 1 + 4
    x = np.array([[-1.0, 5.0, 0.3], [0.4, 0.0, 0.3 + 2 * PI]])
    coded, _ = transforms.forward(x)
    np.testing.assert_allclose(coded[:, 1:3], np.full((2, 2), [math.cos(0.3), math.sin(0.3)]))
    assert coded[0, [0, 3, 4, 5, 6, 7]].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert coded[1, 3:].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    many = Column("n", "context", kind="integer", values=tuple(range(100)))
    assert ColumnTransforms.fit([many], {"n": np.arange(100.0)}).layout.width == 1


@pytest.mark.parametrize("name", ["arctan", "quantile", "log1p", "log then quantile"])
def test_further_transforms(name: str) -> None:
    values = np.random.default_rng(1).standard_t(2, 4000)
    support = Support()
    if name == "log1p":
        values, support = np.expm1(0.5 * np.clip(values, -9, 9)), Support(-1.0)
    if name == "log then quantile":
        values, support, name = np.exp(values / 2), Support(0.0), "quantile"
    column = Column("x", "target", transform=name, support=support, scale=0.5 if name == "arctan" else None)
    transforms = ColumnTransforms.fit([column], {"x": values})
    z, _ = transforms.forward(values[:, None])
    assert abs(z.mean()) < 1e-9
    assert abs(z.std() - 1) < 1e-9
    np.testing.assert_allclose(transforms.inverse(z)[:, 0], values, rtol=1e-8, atol=1e-10)
    inner = np.sort(values)[100:-100:50]
    h = 1e-6 * (1 + np.abs(inner))
    up, down = (transforms.forward((inner + s * h)[:, None])[0][:, 0] for s in (1, -1))
    # A spline's second derivative jumps at its knots: a difference across one is off by little.
    slopes = np.log((up - down) / (2 * h))
    np.testing.assert_allclose(transforms.forward(inner[:, None])[1], slopes, atol=1e-4)
    far = transforms.inverse(np.array([[-1e30], [1e30], [-40.0], [40.0]]))
    assert np.isfinite(far).all()
    assert support.contains(far).all()


def test_quantiles_make_any_column_normal() -> None:
    values = np.concatenate([np.random.default_rng(2).normal(m, 0.1, 5000) for m in (-3.0, 0.0, 8.0)])
    z = ColumnTransforms.fit([Column("x", "target", transform="quantile")], {"x": values}).forward(
        values[:, None]
    )[0]
    assert abs((z**4).mean() - 3) < 0.5
    with pytest.raises(DataError, match="its quantiles coincide"):
        ColumnTransforms.fit([Column("x", "target", transform="quantile")], {"x": np.r_[np.zeros(5000), 1.0]})


def test_the_rule_sees_heavy_tails() -> None:
    rng = np.random.default_rng(0)
    column = Column("x", "target")
    assert choose_for_rows(column, rng.normal(size=5000)) == ("standardise", "")
    name, why = choose_for_rows(column, rng.standard_cauchy(5000))
    assert name == "asinh"
    assert "tails" in why
    assert choose_for_rows(Column("x", "target", transform="standardise"), rng.standard_cauchy(5000))[1] == ""


# The density


def make(targets: tuple[Column, ...], context: tuple[Column, ...] = (), noise: float = 0.4) -> Density:
    import torch

    table = rows(1000)
    coded = ColumnTransforms.fit(targets, table), ColumnTransforms.fit(context, table)
    options: dict[str, Any] = {"steps": 2, "width": 16, "bins": 6}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = build_mixed_flow(
            "autoregressive-spline", **coded[0].layout.arguments, context=coded[1].layout.width, **options
        )
        for p in flow.parameters():
            p.data += noise * torch.randn(p.shape) / max(p.shape[-1], 1) ** 0.5
    architecture = "autoregressive-spline"
    return Density(flow, Schema(targets, context), *coded, architecture=architecture, options=options)


def test_draws_are_on_levels_or_inside() -> None:
    columns = (TAGGER, JETS, RATIO, PHI)
    density = make(columns, (Column("c", "context"), as_context(PHI)))
    draws, log_prob = density.given(c=[0.1, 0.9], phi=1.0).sample_and_log_prob(4000, seed=0)
    for column in columns:
        values = draws[column.name]
        assert column.contains(values).all()
        assert (column.canonical(values) == values).all()
        for level in column.levels:
            assert 0 < (values == level).mean() < 1
    again = density.given(c=[[0.1], [0.9]], phi=1.0).log_prob(draws)
    np.testing.assert_allclose(again, log_prob, atol=2e-3)
    turned = density.given(c=[[0.1], [0.9]], phi=1.0 + 2 * PI).log_prob(draws)
    np.testing.assert_allclose(turned, again, atol=1e-4)
    beyond = draws.copy()
    beyond["phi"] += 2 * PI
    beyond["ratio"] = np.where(draws["ratio"] == 7, 1e4, draws["ratio"])
    np.testing.assert_allclose(density.given(c=[[0.1], [0.9]], phi=1.0).log_prob(beyond), again, atol=1e-4)


def test_probability_is_one_over_atoms_and_the_rest() -> None:
    density = make((TAGGER, JETS))
    x = np.linspace(0, 1, 4001)[1:-1]
    total = 0.0
    for jets in JETS.values:
        p = np.exp(density.given().log_prob({"tagger": x, "jets": jets}))
        total += float(np.trapezoid(p, x) + np.exp(density.given().log_prob({"tagger": -1.0, "jets": jets})))
    assert abs(total - 1) < 3e-3
    events = {"tagger": [-0.5, 0.5, -1.0, 0.5], "jets": [0.0, 3.0, 2.5, 5.0]}
    assert np.isneginf(density.given().log_prob(events)).tolist() == [True, True, True, False]


def test_the_reference_measure_is_said() -> None:
    density = make((MASS, TAGGER, JETS))
    expected = (
        "Lebesgue measure of mass × counting measure at tagger = -1 plus Lebesgue measure elsewhere × "
        "counting measure of jets"
    )
    assert density.reference_measure == expected
    assert repr(density).endswith(f"log_prob against {expected}")
    assert "against" not in repr(make((MASS,)))


def test_save_and_load(tmp_path: Path) -> None:
    density = make((TAGGER, JETS, RATIO, PHI), (as_context(JETS),))
    density.save(tmp_path)
    description = json.loads((tmp_path / "density.json").read_text())
    assert description["format"] == 2
    assert description["reference_measure"] == density.reference_measure
    again = Density.load(tmp_path)
    assert again.schema == density.schema
    assert np.array_equal(again.log_prob(rows(50)), density.log_prob(rows(50)))
    make((MASS,)).save(tmp_path)
    assert json.loads((tmp_path / "density.json").read_text())["format"] == 1  # as before there were others
    with pytest.raises(DataError, match=r"jets = 3 is not among the whole numbers 0, 1, 2, 5"):
        density.given(jets=[1.0, 3.0])


def test_an_integer_context_of_many_values_takes_any_whole_number() -> None:
    hits = Column("hits", "context", kind="integer", values=tuple(float(n) for n in range(50) if n != 30))
    assert hits.counts
    assert hits.contains(np.array([30.0, 120.0, 2.5])).tolist() == [True, True, False]
    assert not replace(hits, role="target").contains(np.array([30.0])).any()


# The study


def study(**columns: Any) -> Any:
    flow = columns.pop("flow", {})
    return parse_study(
        {
            "data": {"source": "a.parquet", "targets": ["x", "y"], "context": ["c"]},
            "columns": columns,
            "flow": flow,
        }
    )


def test_a_study_declares_columns() -> None:
    found = study(
        x={"atoms": [-1], "saturate": {"above": 7.0}, "support": "positive", "transform": "logit"},
        y={"kind": "integer", "support": [0, 3]},
        c={"period": "pi"},
    ).schema_
    x, y = found.targets
    assert x.atoms == (-1.0, 7.0)
    assert (x.support, x.saturate) == (Support(0.0, 7.0), Support(upper=7.0))
    assert y.values == (0.0, 1.0, 2.0, 3.0)
    assert found.context[0].period == (-PI, PI)
    assert study(c={"period": [-3.14159, 3.14159]}).schema_.context[0].period == (-PI, PI)
    assert study(c={"period": [0, 360]}).schema_.context[0].period == (0, 360)
    column = study(x={"transform": {"arctan": 0.5}}).schema_.targets[0]
    assert (column.transform, column.scale) == ("arctan", 0.5)


def test_mixing_follows_the_columns() -> None:
    coupling = {"architecture": "coupling-spline"}
    assert study(flow=coupling).flow_options["mixing"] == "lu"
    assert study(flow=coupling, y={"kind": "integer"}).flow_options["mixing"] == "lu"
    assert study(flow=coupling, x={"atoms": [0]}).flow_options["mixing"] == "permutation"
    assert study(flow=coupling, x={"period": "pi"}).flow_options["mixing"] == "permutation"
    with pytest.raises(
        StudyError, match=r'study: \[flow\] coupling-spline: mixed targets .* mixing = "lu" does'
    ):
        study(flow={**coupling, "mixing": "lu"}, x={"atoms": [0]})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"x": {"kind": "integer", "atoms": [1]}},
            r"\[columns.x\]:? expected one of atoms or saturate, kind",
        ),
        ({"x": {"values": [1, 2]}}, r"\[columns.x\]:? values: expected kind = \"integer\" beside it"),
        ({"x": {"kind": "integer", "values": [0.5, 1]}}, "values: expected whole numbers"),
        ({"x": {"kind": "integer", "values": [1]}}, "values: expected 2 to 256"),
        ({"x": {"kind": "integer", "support": [0, 1e9]}}, "values: expected 2 to 256 of an integer column"),
        ({"x": {"kind": "integer", "support": "positive"}}, "the first and the last whole number"),
        ({"x": {"kind": "integer", "transform": "log"}}, "an integer column has none"),
        ({"x": {"period": [3, 1]}}, r"period: expected lower < upper; found \[3(\.0)?, 1(\.0)?\]"),
        ({"x": {"period": "tau"}}, r'period: expected \[lower, upper\] or "pi"'),
        ({"x": {"period": "pi", "support": [0, 1]}}, "support: a periodic column has none"),
        (
            {"x": {"saturate": {"abov": 7}}},
            r"\[columns.x\] saturate.abov is not a known key; did you mean 'above'",
        ),
        ({"x": {"saturate": {"above": 1, "below": 2}}}, "below < above"),
        ({"x": {"atoms": [9], "saturate": {"above": 7}}}, "where the column does not saturate"),
        ({"x": {"support": [8, 9], "saturate": {"above": 7}}}, "nothing of the support"),
        ({"x": {"transform": {"arctn": 1}}}, r"transform: expected a name, \{arctan = width\} or"),
        (
            {"x": {"kind": "integer"}, "y": {"kind": "integer"}, "flow": {"steps": 3}},
            r"\[flow\]: every target is an integer column, so no flow is left to choose",
        ),
        (
            {"x": {"period": "pi"}, "flow": {"architecture": "maf"}},
            r"maf: periodic targets need .*autoregressive-spline or coupling-spline",
        ),
    ],
)
def test_what_cannot_be_declared(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study(**columns)


# Checks


def drawn(rng: np.random.Generator, c: np.ndarray, factor: float, draws: int) -> np.ndarray:
    """Return draws that are on the atom with ``factor`` times the true chance c / 2."""
    at = rng.random((len(c), draws)) < 0.5 * factor * c
    return np.where(at, -1.0, rng.random((len(c), draws)))


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (0.7, "fail"), (1.4, "fail")])
def test_level_probabilities_of_exact_low_and_high(factor: float, verdict: str) -> None:
    rng = np.random.default_rng(3)
    c = rng.random((4000, 1))
    truth = drawn(rng, c, 1.0, 1)[:, 0]
    result = level_probabilities(truth, drawn(rng, c, factor, 100), c, "tagger", [-1.0])
    assert result.verdict == verdict
    assert (result.name, result.column) == ("level probability", "tagger")


def test_level_probabilities_across_context() -> None:
    """Right on average, wrong everywhere: a density blind to its context fails."""
    rng = np.random.default_rng(4)
    c = rng.random((4000, 1))
    truth = drawn(rng, c, 1.0, 1)[:, 0]
    blind = drawn(rng, np.full_like(c, 0.5), 1.0, 100)
    assert level_probabilities(truth, blind, c, "tagger", [-1.0]).verdict == "fail"
    assert level_probabilities(truth, blind, c[:, :0], "tagger", [-1.0]).verdict == "pass"
    few = level_probabilities(truth[:30], blind[:30], c[:30], "tagger", [-1.0])
    assert few.verdict == "insufficient data"
    with pytest.raises(DataError, match="expected the atoms or integers"):
        level_probabilities(truth, blind, c, "tagger", [])


def test_one_draw_between_an_atom_and_its_neighbours_fails() -> None:
    draws = np.array([[-1.0, 2.0], [0.5, 5.0], [0.2, 0.0]])
    bounds = np.array([0.0, math.inf]), np.array([1.0, -math.inf])
    levels = [[-1.0], [0.0, 2.0, 5.0]]
    assert [r.verdict for r in outside_support(draws, *bounds, ["tagger", "jets"], levels)] == ["pass"] * 2
    draws[0] = -0.5, 3.0
    assert [r.verdict for r in outside_support(draws, *bounds, ["tagger", "jets"], levels)] == ["fail"] * 2


# All of it


def test_a_fit_of_every_kind_of_column(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", rows(2500))
    told: list[str] = []
    density = fluvial.fit(
        {
            "data": {
                "source": str(tmp_path / "t.parquet"), "targets": ["tagger", "jets", "phi"], "context": ["c", "ratio"],
            },
            "columns": {
                "tagger": {"atoms": [-1.0]},
                "jets": {"kind": "integer"},
                "phi": {"period": "pi"},
                "ratio": {"support": "positive", "atoms": [0.0], "saturate": {"above": 7.0}},
            },
            "flow": {"architecture": "coupling-spline", "width": 24, "bins": 8, "steps": 2, "depth": 1},
            "training": {"epochs": 8, "batch_size": 64, "learning_rate": 0.01},
            "check": {"contexts": 500, "draws": 50},
        },
        runs=tmp_path / "runs",
        on_event=lambda event: told.append(event) if isinstance(event, str) else None,
    )  # fmt: skip
    assert any("of the rows on the atom -1, the rest in (" in line for line in told)
    assert "jets: the whole numbers 0, 1, 2, 5 occur" in told
    assert density.folder is not None
    results = {(r.name, r.column): r for r in fluvial.check_run(density.folder)}
    for name in density.schema.target_names:
        assert results["outside support", name].statistic == 0
    for name in ("tagger", "jets"):
        assert results["level probability", name].verdict != "fail"
        assert results["PIT", name].verdict != "fail"
        assert results["pull width", name].verdict != "fail"
    assert results["coverage", None].verdict != "fail"
    low, high = (
        (density.given(c=c, ratio=0.0).sample(2000, seed=0)["tagger"] == -1).mean() for c in (0.1, 0.9)
    )
    assert low < 0.25  # the truth is c
    assert high > 0.75
    phi = density.given(c=0.5, ratio=12.0).sample(2000, seed=0)["phi"]
    assert (np.abs(np.mod(phi - 3 + PI, 2 * PI) - PI) < 1.2).mean() > 0.95  # both sides of the seam
    assert (phi > 2.5).any()
    assert (phi < -2.5).any()
    assert (density.folder / "report.html").exists()


def test_the_integral_counts_levels(tmp_path: Path) -> None:
    from fluvial.workflow.quadrature import integrate

    density = make((TAGGER, JETS), (Column("c", "context"),))
    value, error = integrate(density, {"c": 0.3})
    assert abs(value - 1) < 5e-3
    assert error < 5e-3
    assert abs(integrate(make((PHI,)), {})[0] - 1) < 5e-3
    assert integrate(make((JETS,)), {})[0] == pytest.approx(1, abs=1e-5)


def test_a_table_larger_than_memory_tells_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels and bounds are those of all rows, also of those that the samples lack, and rows stay on their levels."""
    from fluvial.data import packed as packed_module
    from fluvial.workflow import data as workflow
    from fluvial.workflow import packing
    from fluvial.workflow.data import read_rows

    monkeypatch.setenv("FLUVIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "CHUNK", 700)
    monkeypatch.setattr(packed_module, "CHUNK", 500)
    for module in (workflow, packed_module):
        monkeypatch.setattr(module, "SAMPLE", 300)
    table = rows(6000)
    table["jets"][[17, 4000]] = 9.0  # rare
    table["tagger"][5000] = 1e-5  # far below all others
    table["tagger"][table["tagger"] == -1] = -0.1  # no number of float32
    write_table(tmp_path / "t.parquet", table)
    values = {
        "data": {"source": "t.parquet", "targets": ["tagger", "jets"], "context": ["c", "ratio"]},
        "columns": {
            "tagger": {"atoms": [-0.1]},
            "jets": {"kind": "integer"},
            "ratio": {"support": "positive", "atoms": [0.0], "saturate": {"above": 7.0}},
        },
    }
    whole = read_rows(parse_study(values), tmp_path / "t.parquet")
    values["data"]["memory"] = 1e-6
    large = read_rows(parse_study(values), tmp_path / "t.parquet")
    assert large.packed is not None
    assert len(large.table["jets"]) == 900
    found, told = large.schema.targets, whole.schema.targets
    assert found[1].values == told[1].values == (0.0, 1.0, 2.0, 5.0, 9.0)
    assert found[0].support.lower == pytest.approx(told[0].support.lower, abs=1e-9)
    targets, context = (
        ColumnTransforms.fit(c, large.table) for c in (large.schema.targets, large.schema.context)
    )
    batches, _ = large.batches(targets, context, 256, 0)
    x = np.concatenate([x.numpy() for x, _ in batches.epoch(1)])
    assert np.isfinite(x).all()
    train = whole.part("train")
    assert (x[:, 1] == 1).sum() == (train["tagger"] == -0.1).sum()
    assert (x[:, 2] == 4).sum() == (train["jets"] == 9).sum()
