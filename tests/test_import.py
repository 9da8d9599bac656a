"""What an import brings along: the package is light until a verb needs weight."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fluvial

HEAVY = ("torch", "pyarrow", "matplotlib", "pydantic", "pandas", "scipy")


def _modules_after(code: str) -> set[str]:
    """Run code in a fresh interpreter; return the names of the modules that it left."""
    code += "\nimport sys; sys.stderr.write('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stderr.split())


def test_import_is_light() -> None:
    modules = _modules_after("import fluvial; fluvial.__version__; dir(fluvial)")
    assert "fluvial" in modules
    assert not modules & set(HEAVY)


def test_help_is_light() -> None:
    modules = _modules_after(
        "import sys; from fluvial.cli import main\nsys.argv = ['fluvial', 'fit', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert "typer" in modules
    assert not modules & (set(HEAVY) - {"pydantic"})  # some versions of typer bring pydantic themselves


def test_the_tests_above_can_fail() -> None:
    assert "pyarrow" in _modules_after("import fluvial, pyarrow")


@pytest.mark.parametrize("name", fluvial.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(fluvial, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        fluvial.fitt  # noqa: B018
