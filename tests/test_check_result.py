"""The verdict's rule, and results that survive a file."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluvial.check import CheckResult, overall, verdict_for
from fluvial.check.result import worst

FAIL, PASS, UNSURE = "fail", "pass", "insufficient data"


@pytest.mark.parametrize(
    ("statistic", "uncertainty", "expected"),
    [
        (0.0, 0.0, PASS),
        (0.03, 0.0, PASS),  # the threshold itself is allowed
        (0.02, 0.001, PASS),  # certain, twenty standard errors from 0, and too small to matter
        (0.04, 0.001, FAIL),
        (-0.04, 0.001, FAIL),
        (0.04, 0.0101, UNSURE),  # too large, but no more than four standard errors
        (0.04, 0.0099, FAIL),
        (0.01, 0.0151, UNSURE),  # small, but with an error above half the threshold
        (0.01, 0.0149, PASS),
        (0.5, 0.05, FAIL),  # too few rows to pass can be enough to fail
        (math.inf, math.nan, FAIL),
        (math.nan, 0.001, UNSURE),
        (0.0, math.nan, UNSURE),
        (0.0, math.inf, UNSURE),
    ],
)
def test_the_rule(statistic: float, uncertainty: float, expected: str):
    assert verdict_for(statistic, uncertainty, 0.03) == expected


def test_a_statistic_is_judged_by_its_distance_from_exact():
    assert verdict_for(1.02, 0.001, 0.03, exact=1.0) == PASS
    assert verdict_for(0.9, 0.001, 0.03, exact=1.0) == FAIL


def test_the_worst_of_many_needs_more_standard_errors():
    assert verdict_for(0.045, 0.01, 0.03) == FAIL
    assert verdict_for(0.045, 0.01, 0.03, looks=20) == UNSURE  # sqrt(16 + 2 ln 20) = 4.69
    assert verdict_for(0.048, 0.01, 0.03, looks=20) == FAIL


def test_a_threshold_of_zero_allows_nothing():
    assert verdict_for(0.0, 0.0, 0.0) == PASS
    assert verdict_for(1e-9, 0.0, 0.0) == FAIL


@given(
    d=st.floats(0, 1),
    u=st.floats(0, 1),
    threshold=st.floats(1e-6, 1),
    more=st.floats(1, 10),
)
def test_a_larger_deviation_never_mends_and_a_larger_error_never_condemns(
    d: float, u: float, threshold: float, more: float
):
    if verdict_for(d, u, threshold) == FAIL:
        assert verdict_for(more * d, u, threshold) == FAIL
    if verdict_for(d, u, threshold) != FAIL:
        assert verdict_for(d, more * u, threshold) != FAIL
    if verdict_for(d, u, threshold) != PASS:
        assert verdict_for(d, more * u, threshold) != PASS


def result(verdict_statistic: float, uncertainty: float = 0.0) -> CheckResult:
    return CheckResult.judge("PIT", "x", verdict_statistic, uncertainty, 0.03, 10, "…")


@pytest.mark.parametrize(
    ("statistic", "uncertainty"), [(0.1, 0.2), (math.inf, math.nan), (math.nan, math.nan), (-math.inf, 0.0)]
)
def test_results_survive_strict_json(statistic: float, uncertainty: float):
    before = CheckResult.judge("pull width", None, statistic, uncertainty, 0.1, 7, "…", exact=1.0)
    text = json.dumps(before.to_json(), allow_nan=False)
    after = CheckResult.from_json(json.loads(text))
    assert repr(after) == repr(before)  # repr, because NaN differs from itself


def test_a_result_without_exact_is_about_zero():
    old = {**result(0.01).to_json()}
    del old["exact"]
    assert CheckResult.from_json(old).exact == 0.0


def test_overall_and_worst():
    good, small, bad, worse = result(0.01), result(0.01, 0.02), result(0.04), result(0.2)
    assert overall([good, good]) == PASS
    assert overall([good, small]) == UNSURE
    assert overall([good, small, bad]) == FAIL
    assert worst([good, small]) is small
    assert worst([good, worse, small, bad]) is worse
    assert "✗ PIT of x: 0.2" in str(worse)


def test_checks_need_numpy_alone():
    code = (
        "import sys, fluvial.check; "
        "bad = {'torch', 'scipy', 'pyarrow', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
