"""The density in physical units: against scipy, normalised, inside its support, and whole on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy import stats

from fluvial.data.schema import Column, Schema, Support
from fluvial.data.transforms import ColumnTransforms
from fluvial.density import Density
from fluvial.errors import DataError, RunError, StudyError
from fluvial.flows import build_flow

NORMAL = np.random.default_rng(0).normal(size=(2, 1000))
POSITIVE, REAL = Support(lower=0.0), Support()

#: A target of each transform, and rows of it.
TARGETS: dict[str, tuple[Column, np.ndarray]] = {
    "standardise": (Column("x", "target", unit="K"), 5000 + 300 * NORMAL[0]),
    "log": (Column("x", "target", unit="Msun", support=POSITIVE), 20 * np.exp(0.5 * NORMAL[0])),
    "softplus": (
        Column("x", "target", support=POSITIVE, transform="softplus"),
        np.abs(3 + NORMAL[0]) + 1e-2,
    ),
    "logit": (Column("x", "target", support=Support(-1.0, 1.0)), np.tanh(0.7 * NORMAL[0])),
    "asinh": (Column("x", "target", transform="asinh"), NORMAL[0] ** 3),
}
CONTEXT = (Column("c", "context"), Column("Z", "context", support=POSITIVE))
TABLE = {"c": NORMAL[1], "Z": 0.01 * np.exp(NORMAL[1])}


def make(
    kinds: list[str], context: tuple[Column, ...] = CONTEXT, *, noise: float = 0.3, architecture: str = "maf"
) -> Density:
    """Return a density whose weights are off their start by ``noise``; at 0 its flow is the identity."""
    named = [(f"x{i}", *TARGETS[kind]) for i, kind in enumerate(kinds)]
    targets = tuple(Column(**{**vars(column), "name": name}) for name, column, _ in named)
    table = TABLE | {name: np.roll(values, i) for i, (name, _, values) in enumerate(named)}
    options: dict[str, Any] = {"steps": 2, "width": 8, "depth": 1}
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = build_flow(architecture, targets=len(targets), context=len(context), **options)
    with torch.no_grad():
        for p in flow.parameters() if noise else ():
            p += noise * torch.randn(p.shape, generator=generator)
    return Density(
        flow,
        Schema(targets, context),
        ColumnTransforms.fit(targets, table),
        ColumnTransforms.fit(context, table),
        architecture=architecture,
        options=options,
    )


def exact(kind: str, density: Density, x: np.ndarray) -> np.ndarray:
    """Return log p of x in units where u(x) is standard normal, by scipy or by hand."""
    *first, last = density.target_transforms.steps[0]
    shift, scale = last["shift"], last["scale"]
    if kind == "standardise":
        return stats.norm(shift, scale).logpdf(x)
    if kind == "log":
        return stats.lognorm(s=scale, scale=math.exp(shift)).logpdf(x)
    if kind == "logit":  # on (−1, 1): x = 2 expit(y) − 1, dy/dx = 2 / (1 − x²)
        return stats.norm(shift, scale).logpdf(2 * np.arctanh(x)) + np.log(2 / (1 - x**2))
    if kind == "softplus":
        w = first[0]["width"]
        return stats.norm(shift, scale).logpdf(w * np.log(np.expm1(x / w))) - np.log(-np.expm1(-x / w))
    m, w = first[0]["shift"], first[1]["width"]
    t = (x - m) / w
    return stats.norm(shift, scale).logpdf(w * np.arcsinh(t)) - 0.5 * np.log1p(t**2)


@pytest.mark.parametrize("kind", TARGETS)
def test_log_prob_in_units_against_a_hand_computation(kind: str) -> None:
    density = make([kind], (), noise=0)
    x = TARGETS[kind][1][:200]
    np.testing.assert_allclose(density.given().log_prob({"x0": x}), exact(kind, density, x), atol=2e-5)


@pytest.mark.parametrize("kind", TARGETS)
def test_draws_follow_their_distribution(kind: str) -> None:
    density = make([kind], (), noise=0)
    draws, log_prob = density.given().sample_and_log_prob(4000, seed=1)
    np.testing.assert_allclose(log_prob, exact(kind, density, draws["x0"]), atol=2e-5)
    z, _ = density.target_transforms.forward(draws["x0"][:, None])
    assert stats.kstest(z[:, 0], "norm").pvalue > 0.01
    assert stats.kstest(z[:, 0] + 0.1, "norm").pvalue < 0.01  # the test can fail


def test_log_prob_is_the_flow_and_the_jacobian_of_the_transforms() -> None:
    density = make(["log", "asinh", "logit"])
    table = TABLE | {f"x{i}": np.roll(TARGETS[k][1], i) for i, k in enumerate(["log", "asinh", "logit"])}
    x = np.stack([table[f"x{i}"] for i in range(3)], -1)
    z, logdet = density.target_transforms.forward(x)
    c, _ = density.context_transforms.forward(np.stack([table["c"], table["Z"]], -1))
    to32 = lambda a: torch.from_numpy(a.astype(np.float32))  # noqa: E731
    with torch.no_grad():
        flow = density.flow(to32(c)).log_prob(to32(z)).numpy()
    np.testing.assert_allclose(density.log_prob(table), flow + logdet, atol=1e-5)
    assert np.median(np.abs(logdet)) > 0.1  # so that a Jacobian left out would show


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("second", [None, "log", "asinh"])
def test_density_in_units_integrates_to_one(kind: str, second: str | None) -> None:
    kinds = [kind] if second is None else [kind, second]
    density = make(kinds)
    size = len(kinds)
    z = 2.5 * np.sinh(np.linspace(-3, 3, 1201 if size == 1 else 301))
    nodes = density.target_transforms.inverse(np.stack([z] * size, -1))
    axes = [np.unique(nodes[:, i]) for i in range(size)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    p = np.exp(density.given(c=0.4, Z=0.02).log_prob(grid))
    for axis in reversed(axes):
        p = np.trapezoid(p, axis, axis=-1)
    assert abs(float(p) - 1) < 5e-3


def test_contexts_and_events_broadcast() -> None:
    density = make(["log", "standardise"])
    c, events = (
        np.linspace(-1, 1, 5),
        {"x0": np.array([5.0, 10.0, 30.0]), "x1": np.array([5e3, 5.1e3, 4.9e3])},
    )
    grid = density.given(c=c[:, None], Z=0.01).log_prob(events)
    assert grid.shape == (5, 3)
    for i in range(5):
        one = density.given(c=c[i], Z=0.01).log_prob(events)
        np.testing.assert_allclose(grid[i], one, atol=1e-5)
    assert len(np.unique(grid)) == 15
    paired = density.given(c=c[:3], Z=np.full(3, 0.01)).log_prob(events)
    np.testing.assert_allclose(paired, np.diag(grid[:3]), atol=1e-5)
    assert density.given(c=0.1, Z=0.01).log_prob({"x0": 5.0, "x1": 5e3}).shape == ()
    assert density.given(c=c[:, None], Z=[0.01, 0.02]).sample(7, seed=0).shape == (5, 2, 7)


def test_many_kinds_of_table_give_the_same() -> None:
    density = make(["log", "standardise"])
    columns = {"x0": [5.0, 10.0], "x1": [5e3, 4e3], "c": [0.1, 0.2], "Z": [0.01, 0.02], "other": [1.0, 2.0]}
    arrays = {name: np.array(values) for name, values in columns.items()}
    frame = pd.DataFrame(columns)
    expected = density.log_prob(arrays)
    tables = [columns, frame, frame.to_records(index=False), pa.table(columns), frame.astype(np.float32)]
    for table in tables:
        np.testing.assert_allclose(density.log_prob(table), expected, rtol=1e-5)
    matrix = density.given(frame[["c", "Z"]].to_numpy()).log_prob(frame[["x0", "x1"]].to_numpy())
    np.testing.assert_allclose(matrix, expected)


def test_outside_the_support_the_density_is_zero() -> None:
    density = make(["log", "logit"])
    p = density.given(c=0.0, Z=0.01)
    events = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [np.inf, 0.0], [1.0, -np.inf], [5.0, 0.5]])
    assert np.isneginf(p.log_prob(events)).tolist() == [True, True, True, True, True, False]
    with pytest.raises(DataError, match=r"events: column x0 holds NaN; expected numbers \[Msun\]"):
        p.log_prob([np.nan, 0.0] * np.ones((3, 2)))


@pytest.mark.parametrize("kind", TARGETS)
def test_draws_stay_inside_however_wild_the_flow(kind: str) -> None:
    density = make([kind], noise=0)
    with torch.no_grad():
        for name, p in density.flow.named_parameters():
            if name.endswith("bias"):
                p += 1e4
    support = density.schema.targets[0].support
    for c in (-1e30, 0.0, 1e30):
        x = density.given(c=c, Z=1e300).sample(500, seed=0)["x0"]
        assert np.isfinite(x).all()
        assert support.contains(x).all()


def test_seeds() -> None:
    p = make(["log", "standardise"]).given(c=[0.1, 0.2], Z=0.01)
    assert np.array_equal(p.sample(50, seed=3), p.sample(50, seed=3))
    assert not np.array_equal(p.sample(50, seed=3), p.sample(50, seed=4))
    assert not np.array_equal(p.sample(50), p.sample(50))
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    p.sample(10)
    assert torch.equal(torch.random.get_rng_state(), state)
    draws, log_prob = p.sample_and_log_prob(50, seed=3)
    assert np.array_equal(draws, p.sample(50, seed=3))
    events = np.stack([draws["x0"], draws["x1"]], -1)
    again = make(["log", "standardise"]).given(c=[[0.1], [0.2]], Z=0.01).log_prob(events)
    np.testing.assert_allclose(log_prob, again, atol=1e-3)


@pytest.mark.parametrize("architecture", ["maf", "autoregressive-spline", "coupling-spline"])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("context", [(), CONTEXT], ids=["unconditional", "conditional"])
def test_save_and_load_bit_for_bit(
    tmp_path: Path, architecture: str, size: int, context: tuple[Column, ...]
) -> None:
    density = make(["log", "asinh"][:size], context, architecture=architecture)
    density.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["density.json", "weights.safetensors"]
    again = Density.load(tmp_path)
    assert again.schema == density.schema
    assert repr(again) == repr(density)
    table = TABLE | {"x0": TARGETS["log"][1], "x1": TARGETS["asinh"][1]}
    assert np.array_equal(again.log_prob(table), density.log_prob(table))
    at = {"c": 0.3, "Z": 0.02} if context else {}
    assert np.array_equal(again.given(**at).sample(20, seed=0), density.given(**at).sample(20, seed=0))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    again.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "context: expected columns c, Z; 'c' is missing"),
        ({"c": 1.0}, "'Z' is missing"),
        ({"c": 1.0, "z": 1.0}, r"Expected context columns c, Z; got 'z'; did you mean 'Z'\?"),
        ({"c": 1.0, "Z": -0.5}, r"context: Z = -0.5 is outside the support \(0, inf\)"),
        (
            {"c": [1.0, np.nan, 2.0], "Z": 1.0},
            r"context: c = nan is missing; expected a number \(1 of 3 values\)",
        ),
        ({"c": "cold", "Z": 1.0}, "context: column c is not numeric"),
        ({"c": [1.0, 2.0], "Z": [1.0, 2.0, 3.0]}, r"broadcast; got c \(2,\), Z \(3,\)"),
    ],
)
def test_given_says_what_is_wrong(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(["log"]).given(**given)


def test_calls_that_cannot_be() -> None:
    density = make(["log", "standardise"])
    p = density.given(c=0.0, Z=1.0)
    with pytest.raises(DataError, match="a table or columns by name, not both"):
        density.given({"c": 0.0, "Z": 1.0}, c=0.0)
    with pytest.raises(
        DataError, match=r"expected an array \[\.\.\., 2\] for columns x0, x1; got shape \(3, 3\)"
    ):
        p.log_prob(np.ones((3, 3)))
    with pytest.raises(DataError, match=r"events: expected columns x0, x1; 'x1' is missing"):
        p.log_prob({"x0": 1.0})
    with pytest.raises(DataError, match="draws of at least 1; got 0"):
        p.sample(0)
    with pytest.raises(DataError, match=r"draws to be a whole number; got 2\.5"):
        p.sample(2.5)  # type: ignore[arg-type]
    for seed in (-1, 2**70, 0.5):
        with pytest.raises(DataError, match="Expected seed"):
            p.sample(2, seed=seed)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"got events \(3,\) and contexts \(2,\).*give contexts as \[N, 1\]"):
        density.given(c=[0.0, 1.0], Z=1.0).log_prob({"x0": [1.0, 2.0, 3.0], "x1": 5e3})
    with pytest.raises(DataError, match="Expected no context; got 'c'"):
        make(["log"], ()).given(c=1.0)


@pytest.mark.parametrize("context", [(), CONTEXT], ids=["unconditional", "conditional"])
def test_nothing_in_nothing_out(context: tuple[Column, ...]) -> None:
    p = make(["log", "standardise"], context).given(**({"c": 0.0, "Z": 1.0} if context else {}))
    assert p.log_prob(np.empty((0, 2))).shape == (0,)
    if context:
        none = make(["log"], context).given(c=np.empty(0), Z=1.0)
        assert none.sample(3, seed=0).shape == (0, 3)


def _damage(folder: Path, *keys: Any, value: Any = None) -> None:
    path = folder / "density.json"
    description = json.loads(path.read_text())
    inner = description
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(description))


def test_a_damaged_density_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    density = make(["log"])
    density.save(tmp_path)
    description, weights = tmp_path / "density.json", tmp_path / "weights.safetensors"
    text, content = description.read_bytes(), weights.read_bytes()
    for cut in (0, 3, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:cut])
        with pytest.raises(RunError, match=r"weights\.safetensors is damaged or truncated"):
            Density.load(tmp_path)
    weights.unlink()
    with pytest.raises(RunError, match=r"Expected weights at .*found none"):
        Density.load(tmp_path)
    weights.write_bytes(content)
    for cut in (0, 10, len(text) - 5):
        description.write_bytes(text[:cut])
        with pytest.raises(RunError, match=r"density\.json is damaged"):
            Density.load(tmp_path)
    description.unlink()
    with pytest.raises(RunError, match=r"found no density\.json"):
        Density.load(tmp_path)


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    make(["log"]).save(tmp_path)
    _damage(tmp_path, "options", "width", value=9)
    with pytest.raises(
        RunError, match=r"weights\.safetensors does not belong to the density\.json beside it"
    ):
        Density.load(tmp_path)


def test_a_newer_format_says_to_update(tmp_path: Path) -> None:
    make(["log"]).save(tmp_path)
    _damage(tmp_path, "format", value=99)
    with pytest.raises(RunError, match=r"has format 99; .* reads up to 3\. Update fluvial"):
        Density.load(tmp_path)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    make(["log"]).save(tmp_path)
    _damage(tmp_path, "architecture", value="mafia")
    with pytest.raises((RunError, StudyError), match="'mafia' is not known"):
        Density.load(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("format",), "one"),
        (("options",), None),
        (("schema",), None),
        (("schema", "targets", 0, "support"), None),
        (("transforms", "targets", "x0", 0, "kind"), "cube"),
        (("transforms", "targets", "x0", 1, "scale"), "wide"),
    ],
    ids=str,
)
def test_a_description_of_wrong_content_names_the_file(
    tmp_path: Path, keys: tuple[Any, ...], value: Any
) -> None:
    make(["log"]).save(tmp_path)
    _damage(tmp_path, *keys, value=value)
    with pytest.raises(RunError, match=r"density\.json is damaged"):
        Density.load(tmp_path)
