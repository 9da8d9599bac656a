"""Conformal regions: over many repetitions, coverage is what finite samples promise, whatever the density."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import fluvial
from fluvial import DataError, RunError
from fluvial.data.schema import Column, Schema, Support
from fluvial.data.transforms import ColumnTransforms
from fluvial.density import Density
from fluvial.flows import build_flow
from fluvial.infer.conformal import ConformalRegions, conformal_threshold


@pytest.mark.parametrize(("n", "level"), [(9, 0.9), (19, 0.9), (50, 0.68), (200, 0.95)])
def test_coverage_is_between_the_level_and_one_over_n_more(n: int, level: float) -> None:
    rng = np.random.default_rng(n)
    repetitions = 40_000
    scores = rng.exponential(size=(repetitions, n + 1))
    inside = [row[-1] <= conformal_threshold(row[:-1], level) for row in scores[:4000]]
    # (all repetitions at once give the sharper figure: the k-th smallest of n)
    k = math.ceil((n + 1) * level - 1e-9)
    threshold = np.sort(scores[:, :-1], axis=1)[:, k - 1]
    coverage = float((scores[:, -1] <= threshold).mean())
    spread = 4 * math.sqrt(level * (1 - level) / repetitions)
    assert level - spread < coverage < level + 1 / (n + 1) + spread
    assert abs(np.mean(inside) - coverage) < 4 * math.sqrt(level * (1 - level) / 4000) + spread


def test_too_few_rows_give_everything() -> None:
    assert conformal_threshold(np.arange(8), 0.9) == math.inf
    assert conformal_threshold([], 0.5) == math.inf
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(DataError, match="level between 0 and 1"):
            conformal_threshold([1.0], wrong)
    with pytest.raises(DataError, match="without NaN"):
        conformal_threshold([1.0, math.nan], 0.5)


def wrong_density() -> Density:
    """Return a density of x > 0 given c that is untrained: a log-normal that ignores its context."""
    schema = Schema(
        (Column("x", "target", "m", Support(0.0)), Column("y", "target", "s")), (Column("c", "context"),)
    )
    rng = np.random.default_rng(0)
    table = {"x": np.exp(rng.normal(size=500)), "y": rng.normal(size=500), "c": rng.normal(size=500)}
    targets, context = (ColumnTransforms.fit(c, table) for c in (schema.targets, schema.context))
    flow = build_flow("diagonal-gaussian", targets=2, context=1, width=4)
    options = {"width": 4}
    return Density(flow, schema, targets, context, architecture="diagonal-gaussian", options=options)


def rows(n: int, seed: int) -> dict[str, np.ndarray]:
    """Return rows unlike what that density says: wider, and moved by the context."""
    rng = np.random.default_rng(seed)
    c = rng.normal(size=n)
    return {"x": np.exp(c + 1.5 * rng.normal(size=n)), "y": c + 2 * rng.standard_t(3, n), "c": c}


def test_regions_of_a_wrong_density_hold_the_truth_all_the_same(tmp_path: Path) -> None:
    density = wrong_density()
    regions = ConformalRegions.fit(density, rows(1000, 1), split="calibration")
    fresh = rows(4000, 2)
    at = regions.at(fresh)
    for level in (0.5, 0.9):
        allowed = 4 * math.sqrt(level * (1 - level) * (1 / 1000 + 1 / 4000))
        assert at.contains(fresh, level).mean() == pytest.approx(level, abs=allowed)
        for name, inside in at.covers(fresh, level, seed=0).items():
            assert inside.mean() == pytest.approx(level, abs=allowed), name
    # The negative control: the density's own regions do not.
    _, log_prob = density.given(c=0.0).sample_and_log_prob(4000, seed=0)
    assert (density.log_prob(fresh) >= np.quantile(log_prob, 0.1)).mean() < 0.8
    density.save(tmp_path)
    regions.save(tmp_path)
    again = fluvial.conformal_regions(tmp_path)
    assert again.about["split"] == "calibration"
    assert (again.at(c=0.3).contains({"x": [1.0, 99.0], "y": [0.0, 0.0]}, 0.5)).tolist() == [True, False]
    assert again.threshold(0.9) == regions.threshold(0.9)
    (tmp_path / "conformal.safetensors").unlink()
    with pytest.raises(RunError, match=r"conformal\.safetensors; found none\. Make it with: fluvial check"):
        fluvial.conformal_regions(tmp_path)


def test_area_and_intervals_against_a_normal() -> None:
    """A standard normal's 90 % region is the interval ±1.645: its length and its ends."""
    schema = Schema((Column("x", "target"),))
    affine = [{"kind": "affine", "shift": 0.0, "scale": 1.0}]
    density = Density(
        build_flow("diagonal-gaussian", targets=1, context=0, width=4),
        schema,
        ColumnTransforms(["x"], [affine]),
        ColumnTransforms([], []),
        architecture="diagonal-gaussian",
        options={"width": 4},
    )
    regions = ConformalRegions.fit(density, {"x": np.random.default_rng(0).normal(size=20_000)})
    area, error = regions.at().area(0.9, seed=1)
    assert area == pytest.approx(2 * 1.645, abs=4 * error + 0.05)
    assert error < 0.1
    low, high = regions.at().intervals(0.9, seed=2)["x"]
    assert (low, high) == (pytest.approx(-1.645, abs=0.3), pytest.approx(1.645, abs=0.3))
    assert high - low == pytest.approx(2 * 1.645, abs=0.3)
    few = ConformalRegions.fit(density, {"x": np.arange(5.0)})
    assert few.at().contains({"x": [1e9]}, 0.99).all()
    assert few.at().area(0.99)[0] == math.inf
    assert few.at().intervals(0.99)["x"].tolist() == [-math.inf, math.inf]
