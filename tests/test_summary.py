"""What stands for a context in checks: its numbers, their titles in plots, and what a sentence calls them."""

from __future__ import annotations

import numpy as np

from fluvial.data.schema import Column, Schema
from fluvial.workflow.summary import names_of_context, summarise

MASS = Column("Mass_0", "target", unit="Msun", label="$M_0$")
AGE = Column("age", "target")
Z = Column("Z", "context", label="$Z$")
FLUX = Column("flux", "context", length=3)


def test_plots_have_labels_and_sentences_have_names() -> None:
    schema = Schema((MASS, AGE), (Z,))
    values, titles = summarise(schema, {"Z": np.array([1.0, 2.0])}, np.zeros((2, 5, 2)))
    assert (values.tolist(), titles) == ([[1.0], [2.0]], ["$Z$"])
    assert names_of_context(schema) == ["Z"]


def test_an_array_is_spoken_of_by_what_is_predicted_from_it() -> None:
    schema = Schema((MASS, AGE), (Z, FLUX))
    draws = np.arange(20.0).reshape(2, 5, 2)
    values, titles = summarise(schema, {"Z": np.ones(2)}, draws)
    assert values.tolist() == [[1.0, 4.0, 5.0], [1.0, 14.0, 15.0]]
    assert titles == ["$Z$", "predicted $M_0$ [Msun]", "age"]
    assert names_of_context(schema) == ["Z", "predicted Mass_0", "age"]
