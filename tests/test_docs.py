"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _reference():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_study_reference_is_up_to_date() -> None:
    reference = _reference()
    mend = "run: python docs/make_reference.py"
    assert (ROOT / "docs" / "study.md").read_text(encoding="utf-8") == reference.page(), mend
    assert json.loads((ROOT / "docs" / "study.schema.json").read_text()) == reference.schema(), mend


def test_record_reference_is_up_to_date() -> None:
    reference = _reference()
    mend = "run: python docs/make_reference.py"
    assert (ROOT / "docs" / "record.md").read_text(encoding="utf-8") == reference.record_page(), mend
    assert json.loads((ROOT / "docs" / "record.schema.json").read_text()) == reference.record_schema(), mend


@pytest.mark.parametrize("page", ["study.md", "record.md"])
def test_every_key_has_a_meaning(page: str) -> None:
    rows = [r for r in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines() if r.startswith("| `")]
    assert len(rows) > 50
    assert not [row for row in rows if row.removesuffix(" |").endswith("| ")]


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda p: p.name)
def test_every_study_that_ships_reads(path: Path) -> None:
    from fluvial.study import read_study

    study, text = read_study(path)
    assert tomllib.loads(text)["data"]["targets"] == study.data.targets


def test_version_is_said_once() -> None:
    import fluvial

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == fluvial.__version__
