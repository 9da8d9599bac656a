"""The errors: a small family with hints."""

from __future__ import annotations

import pytest

from fluvial.errors import DataError, FluvialError, MissingExtraError, RunError, StudyError, nearest


@pytest.mark.parametrize("kind", [DataError, StudyError, RunError, MissingExtraError])
def test_every_error_is_one_of_the_family(kind: type[Exception]) -> None:
    assert issubclass(kind, FluvialError)


def test_errors_of_values_are_value_errors() -> None:
    assert issubclass(DataError, ValueError)
    assert issubclass(StudyError, ValueError)
    assert issubclass(MissingExtraError, ImportError)
    assert not issubclass(RunError, ValueError)


def test_nearest_names_the_closest_word() -> None:
    assert nearest("Mas_0", ["Mass_0", "Mass_1", "Z"]) == "; did you mean 'Mass_0'?"
    assert nearest("mass_0", ["MASS_0", "Z"]) == "; did you mean 'MASS_0'?"


def test_nearest_lists_what_is_known_when_nothing_is_close() -> None:
    assert nearest("colour", ["Mass_0", "Z"]) == "; known: Mass_0, Z"
    assert nearest("colour", []) == ""
    many = nearest("colour", (f"q{i}" for i in range(30)))
    assert many.endswith(", …")
    assert many.count(",") == 20
