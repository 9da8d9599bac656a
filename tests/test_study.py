"""The study file: strict, and each mistake named with its key and the way to mend it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fluvial.errors import StudyError
from fluvial.flows import ARCHITECTURES, build_flow
from fluvial.study import Study, parse_study, read_study

BASE: dict[str, Any] = {"data": {"source": "a.parquet", "targets": ["x", "y"], "context": ["c"]}}
STUDIES = Path(__file__).parent.parent / "studies"


def with_changes(**changes: Any) -> dict[str, Any]:
    values = copy.deepcopy(BASE)
    for section, content in changes.items():
        if section in values and isinstance(content, dict):
            values[section].update(content)
        else:
            values[section] = content
    return values


def study(**changes: Any) -> Study:
    return parse_study(with_changes(**changes), where="s.toml")


def test_defaults() -> None:
    found = study()
    assert found.architecture == "autoregressive-spline"
    assert found.data.split.model_dump() == {
        "train": 0.6,
        "validation": 0.2,
        "test": 0.2,
        "calibration": 0.0,
    }
    assert found.training.epoch_limit == 100
    assert study(training={"minutes": 5}).training.epoch_limit is None
    assert study(training={"minutes": 5, "epochs": 7}).training.epoch_limit == 7
    assert study(data={"targets": list("abdefgh")}).architecture == "coupling-spline"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_flow_options_are_those_of_the_architecture(architecture: str) -> None:
    options = study(flow={"architecture": architecture, "width": 17}).flow_options
    assert options["width"] == 17
    build_flow(architecture, targets=2, context=1, **options)
    assert "architecture" not in options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainng": {}}, r"\[trainng\] is not a known key; did you mean 'training'\?"),
        ({"data": {"sorce": "x"}}, r"\[data\] sorce is not a known key; did you mean 'source'\?"),
        (
            {"data": {"split": {"trian": 1.0}}},
            r"\[data\] split.trian is not a known key; did you mean 'train'\?",
        ),
        ({"columns": {"x": {"unti": "K"}}}, r"\[columns.x\] unti is not a known key; did you mean 'unit'\?"),
        (
            {"columns": {"X": {}}},
            r"\[columns.X\] is neither a target nor a context column; did you mean 'x'\?",
        ),
        ({"flow": {"stps": 2}}, r"\[flow\] stps is not a known key; did you mean 'steps'\?"),
        ({"flow": {"architecure": "maf"}}, r"\[flow\] architecure .*; did you mean 'architecture'\?"),
        (
            {"flow": {"architecture": "maff"}},
            r"\[flow\] architecture 'maff' is not known; did you mean 'maf'\?",
        ),
        ({"flow": {"architecture": "maf", "bins": 8}}, r"\[flow\] bins is not a known key; known: .*steps"),
        ({"training": {"epoch": 3}}, r"\[training\] epoch is not a known key; did you mean 'epochs'\?"),
        ({"check": {"draw": 100}}, r"\[check\] draw is not a known key; did you mean 'draws'\?"),
    ],
)
def test_an_unknown_key_names_the_nearest(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=rf"^s\.toml: {message}"):
        study(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": 3}, r"\[data\]: expected a table of keys; found 3"),
        ({"flow": 3}, r"\[flow\]: expected a table of keys; found 3"),
        ({"columns": {"x": 3}}, r"\[columns.x\]: expected a table of keys; found 3"),
        ({"data": {"source": 3}}, r"\[data\] source: expected a path or a list of paths; found 3"),
        ({"data": {"targets": "x"}}, r"\[data\] targets: input should be a valid list; found 'x'"),
        ({"data": {"targets": []}}, r"\[data\] targets: list should have at least 1 item"),
        ({"data": {"context": ["x"]}}, r"\[data\]: every column once.* found twice: x"),
        ({"data": {"missing": "dorp"}}, r"\[data\] missing: input should be 'error' or 'drop'; found 'dorp'"),
        ({"data": {"seed": -1}}, r"\[data\] seed: .*greater than or equal to 0; found -1"),
        (
            {"data": {"split": {"train": 0.5}}},
            r"\[data\] split: train \+ validation \+ test \+ calibration must be 1; found 0.9",
        ),
        ({"training": {"epochs": "3"}}, r"\[training\] epochs: input should be a valid integer; found '3'"),
        ({"training": {"epochs": True}}, r"\[training\] epochs: input should be a valid integer; found True"),
        ({"training": {"epochs": 3.0}}, r"\[training\] epochs: input should be a valid integer; found 3.0"),
        (
            {"training": {"minutes": math.inf}},
            r"\[training\] minutes: input should be a finite number; found inf",
        ),
        ({"training": {"learning_rate": 0}}, r"\[training\] learning_rate: .*greater than 0; found 0"),
        ({"training": {"warmup": 1.5}}, r"\[training\] warmup: .*less than or equal to 1; found 1.5"),
        (
            {"training": {"schedule": "cos"}},
            r"\[training\] schedule: .*'cosine', 'constant', .*; found 'cos'",
        ),
        ({"training": {"seed": 2**64}}, r"\[training\] seed: input should be less than"),
        ({"check": {"draws": 3}}, r"\[check\] draws: .*greater than or equal to 50; found 3"),
        ({"check": {"truth": "c"}}, r"\[check\] truth = 'c' is a target or context column"),
        (
            {"columns": {"x": {"support": "postive"}}},
            r"\[columns.x\] support: expected 'positive', 'real' or",
        ),
        ({"columns": {"x": {"support": [1, 0]}}}, r"\[columns.x\]: support: expected lower < upper"),
        ({"columns": {"x": {"support": [0, math.nan]}}}, r"\[columns.x\]: support: expected lower < upper"),
        (
            {"columns": {"x": {"support": [0, 1, 2]}}},
            r"\[columns.x\] support: expected .*; found \[0, 1, 2\]",
        ),
        ({"columns": {"x": {"transform": "lgo"}}}, r"\[columns.x\] transform 'lgo' .*did you mean 'log'\?"),
        ({"columns": {"x": {"support": [0, 1], "transform": "log"}}}, r"\[columns.x\] .*bounded on one side"),
        (
            {"columns": {"x": {"support": "positive", "transform": "asinh"}}},
            r"\[columns.x\] .*use log or softplus",
        ),
        (
            {"columns": {"x": {"support": "positive", "transform": "logit"}}},
            r"\[columns.x\] .*needs support = \[a, b\]",
        ),
        ({"flow": {"architecture": 5}}, r"\[flow\] architecture 5 is not known"),
        ({"flow": {"steps": 0}}, r"\[flow\] autoregressive-spline: Expected steps of at least 1; got 0"),
        ({"flow": {"bound": 0}}, r"\[flow\] autoregressive-spline: Expected bound of more than 0; got 0"),
        ({"flow": {"bound": -1.0}}, r"\[flow\] autoregressive-spline: Expected bound of more than 0; got -1"),
        ({"flow": {"steps": "2"}}, r"\[flow\] steps: input should be a valid integer; found '2'"),
        ({"flow": {"mixing": "rev"}}, r"\[flow\] mixing: .*'reverse'.*; found 'rev'"),
        ({"flow": {"activation": "relo"}}, r"\[flow\] .*relu.*; got 'relo'"),
    ],
)
def test_an_impossible_value_names_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=rf"^s\.toml: {message}"):
        study(**changes)


def test_one_message_names_all_mistakes() -> None:
    with pytest.raises(StudyError) as caught:
        study(training={"epoch": 3, "clip": -1.0}, check={"draw": 3})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("s.toml: [") for line in lines)


def test_a_missing_section_or_key_is_named() -> None:
    with pytest.raises(StudyError, match=r"^study: \[data\] is missing$"):
        parse_study({})
    with pytest.raises(StudyError, match=r"\[data\] targets is missing"):
        parse_study({"data": {"source": "x"}})


@pytest.mark.parametrize("text", ["positive", "[0.0, inf]", "[0, inf]", "[0, +inf]"])
def test_toml_with_infinite_bounds(tmp_path: Path, text: str) -> None:
    text = f'"{text}"' if text == "positive" else text
    path = tmp_path / "s.toml"
    content = f'[data]\nsource = "a.csv"\ntargets = ["x"]\n[columns.x]\nsupport = {text}\n'
    path.write_text(content)
    found, as_read = read_study(path)
    assert as_read == content
    (column,) = found.schema_.targets
    assert (column.support.lower, column.support.upper) == (0.0, math.inf)


def test_schema_holds_order_units_and_supports() -> None:
    columns = {
        "x": {"unit": "Msun", "support": "positive", "label": "$x$"},
        "y": {"support": "real", "transform": "asinh"},
        "c": {"transform": "log"},
    }
    schema = study(columns=columns).schema_
    assert schema.target_names == ["x", "y"]
    assert schema.context_names == ["c"]
    assert [str(c.support) for c in schema.columns] == [
        "(0, inf)",
        "(-inf, inf)",
        "(0, inf)",
    ]  # log means positive
    assert [c.role for c in schema.columns] == ["target", "target", "context"]
    assert schema.targets[0].title == "$x$ [Msun]"


def test_from_python_tuples_will_do() -> None:
    found = study(data={"targets": ("x", "y")}, columns={"x": {"support": (0, 1)}})
    assert found.data.targets == ["x", "y"]
    assert found.schema_.targets[0].support.upper == 1


def test_parsing_leaves_random_numbers_and_values_alone() -> None:
    values = with_changes(flow={"width": 9})
    before = copy.deepcopy(values)
    state = torch.random.get_rng_state()
    parse_study(values)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert values == before


def test_files_that_are_not_studies(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"found no such file; there is no \.toml file in that folder$"):
        read_study(tmp_path / "none" / "a.toml")
    (tmp_path / "binaries.toml").write_text("x = [")
    with pytest.raises(StudyError, match=r"did you mean 'binaries.toml'\?$"):
        read_study(tmp_path / "binares.toml")
    with pytest.raises(StudyError, match=r"binaries\.toml is not valid TOML: .*"):
        read_study(tmp_path / "binaries.toml")
    with pytest.raises(StudyError, match="Could not read the study"):
        read_study(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'label = "\xe9"')
    with pytest.raises(StudyError, match=r"Could not read the study .*latin\.toml: .*utf-8"):
        read_study(tmp_path / "latin.toml")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda p: p.name)
def test_the_studies_that_come_along_are_valid(path: Path) -> None:
    read_study(path)
