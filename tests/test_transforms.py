"""Column transforms: exact Jacobians, draws that cannot leave the support, and no context at all."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fluvial.data.choice import TRANSFORMS, choose_transform, implied_support
from fluvial.data.schema import Column, Support
from fluvial.data.transforms import ColumnTransforms
from fluvial.errors import DataError, StudyError

INF = math.inf
NORMAL = np.random.default_rng(0).normal(size=800)

#: A column of each kind, and rows of it.
KINDS: dict[str, tuple[Column, np.ndarray]] = {
    "standardise": (Column("x", "target"), 3 + 2 * NORMAL),
    "standardise, tiny unit": (Column("x", "target"), 1e-25 * NORMAL),
    "standardise, far from 0": (Column("x", "target"), 1e9 + NORMAL),
    "log": (Column("x", "target", support=Support(lower=0.0)), np.exp(NORMAL)),
    "log, far bound": (Column("x", "target", support=Support(lower=1e6)), 1e6 + 1e-3 * np.exp(NORMAL)),
    "log, from above": (Column("x", "target", support=Support(upper=5.0)), 5 - np.exp(NORMAL)),
    "softplus": (
        Column("x", "target", support=Support(lower=0.0), transform="softplus"),
        np.abs(4 + NORMAL) + 1e-3,
    ),
    "softplus, from above": (
        Column("x", "target", support=Support(upper=-2.0), transform="softplus"),
        -2 - np.exp(NORMAL),
    ),
    "logit": (Column("x", "target", support=Support(-1.0, 3.0)), -1 + 4 / (1 + np.exp(-NORMAL))),
    "logit, narrow": (
        Column("x", "target", support=Support(1e6, 1e6 + 1e-6)),
        1e6 + 1e-6 * (0.5 + 0.3 * np.tanh(NORMAL)),
    ),
    "asinh": (Column("x", "target", transform="asinh"), 10 + NORMAL**5),
    "asinh, mostly one value": (Column("x", "target", transform="asinh"), np.where(NORMAL > 2, NORMAL, 0.0)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def fitted(kind: str) -> tuple[Column, np.ndarray, ColumnTransforms]:
    column, values = KINDS[kind]
    return column, values, ColumnTransforms.fit([column], {"x": values})


@kinds
def test_rows_are_standardised_and_come_back(kind: str) -> None:
    _, values, transforms = fitted(kind)
    z, _ = transforms.forward(values[:, None])
    assert abs(z.mean()) < 1e-6
    assert abs(z.std() - 1) < 1e-6
    spread = values.std()
    np.testing.assert_allclose(transforms.inverse(z)[:, 0], values, atol=1e-6 * spread, rtol=1e-12)


@pytest.mark.parametrize("kind", [k for k in KINDS if "far" not in k and "narrow" not in k])
def test_logdet_is_the_derivative(kind: str) -> None:
    _, values, transforms = fitted(kind)
    x = np.quantile(values, [0.05, 0.3, 0.5, 0.9, 0.99])
    step = 1e-5 * (np.quantile(values, 0.6) - np.quantile(values, 0.4) or values.std())
    above, _ = transforms.forward((x + step)[:, None])
    below, _ = transforms.forward((x - step)[:, None])
    _, logdet = transforms.forward(x[:, None])
    slope = np.abs(above - below)[:, 0] / (2 * step)
    np.testing.assert_allclose(logdet, np.log(slope), atol=1e-5)


@kinds
@pytest.mark.filterwarnings("error")
def test_no_latent_leaves_the_support(kind: str) -> None:
    column, _, transforms = fitted(kind)
    far = np.finfo(np.float32).max
    z = np.array([-far, -1e30, -1e6, -1e3, -90.0, -40.0, -8.0, 0.0, 8.0, 40.0, 90.0, 1e3, 1e6, 1e30, far])
    x = transforms.inverse(z[:, None])[:, 0]
    assert np.isfinite(x).all()
    assert column.support.contains(x).all()
    assert (np.diff(x) >= 0).all() if "above" not in kind else (np.diff(x) <= 0).all()


@kinds
def test_transforms_survive_json(kind: str) -> None:
    import json

    _, values, transforms = fitted(kind)
    again = ColumnTransforms.from_json(json.loads(json.dumps(transforms.to_json(), allow_nan=False)))
    for a, b in zip(transforms.forward(values[:, None]), again.forward(values[:, None]), strict=True):
        assert np.array_equal(a, b)
    assert again.describe() == transforms.describe()
    assert again.describe()["x"]


def test_several_columns_at_once_add_their_logdets() -> None:
    columns = [Column("a", "target", support=Support(lower=0.0)), Column("b", "target")]
    table = {"a": np.exp(NORMAL), "b": NORMAL * 3}
    both = ColumnTransforms.fit(columns, table)
    x = np.stack([table["a"], table["b"]], -1).reshape(40, 20, 2)
    z, logdet = both.forward(x)
    assert z.shape == x.shape
    assert logdet.shape == x.shape[:-1]
    parts = [ColumnTransforms.fit([c], table).forward(x[..., i : i + 1])[1] for i, c in enumerate(columns)]
    np.testing.assert_allclose(logdet, parts[0] + parts[1], rtol=1e-12)


def test_no_columns_at_all() -> None:
    none = ColumnTransforms.fit([], {})
    z, logdet = none.forward(np.empty((7, 0)))
    assert z.shape == (7, 0)
    assert np.array_equal(logdet, np.zeros(7))
    assert none.inverse(np.empty((3, 0))).shape == (3, 0)
    assert ColumnTransforms.from_json(none.to_json()).names == []


@pytest.mark.parametrize(
    "values",
    [
        np.where(NORMAL > 0, 1e9, np.nextafter(1e9, INF)),  # rounding, not physics
        1e200 * NORMAL,  # its square overflows
        1e-200 * NORMAL,  # its square underflows
    ],
    ids=["rounding", "huge", "tiny"],
)
def test_a_spread_beyond_float64_is_refused(values: np.ndarray) -> None:
    with pytest.raises(
        DataError, match=r"Column x runs from .* to .* cannot be standardised in float64.*unit"
    ):
        ColumnTransforms.fit([Column("x", "target")], {"x": values})


@pytest.mark.parametrize(
    ("transform", "support", "chosen"),
    [
        (None, Support(), "standardise"),
        (None, Support(lower=0.0), "log"),
        (None, Support(upper=0.0), "log"),
        (None, Support(0.0, 1.0), "logit"),
        ("softplus", Support(lower=0.0), "softplus"),
        ("asinh", Support(), "asinh"),
    ],
)
def test_choice_follows_the_support(transform: str | None, support: Support, chosen: str) -> None:
    assert choose_transform(Column("x", "target", support=support, transform=transform)) == chosen


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    "support", [Support(), Support(lower=0.0), Support(upper=1.0), Support(0.0, 1.0)], ids=str
)
def test_a_target_transform_that_could_leave_the_support_is_refused(transform: str, support: Support) -> None:
    bounds = math.isfinite(support.lower) + math.isfinite(support.upper)
    needs = {"standardise": 0, "asinh": 0, "arctan": 0, "log": 1, "softplus": 1, "logit": 2}.get(transform)
    if transform == "quantile":  # fits any: it comes after log or logit
        needs = bounds
    column = Column("x", "target", support=support, transform=transform)
    if bounds == needs:
        assert choose_transform(column) == transform
    else:
        with pytest.raises(StudyError, match=r"\[columns\.x\] transform"):
            choose_transform(column)


def test_a_context_may_be_standardised_whatever_its_support() -> None:
    column = Column("c", "context", support=Support(lower=0.0), transform="standardise")
    assert choose_transform(column) == "standardise"


def test_implied_support() -> None:
    assert str(implied_support("logit", None)) == "(0, 1)"
    assert str(implied_support("softplus", None)) == "(0, inf)"
    assert str(implied_support(None, None)) == "(-inf, inf)"
    assert implied_support("log", Support(2.0)) == Support(2.0)
