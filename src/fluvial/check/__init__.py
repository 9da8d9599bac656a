"""Checks: arrays in, results with uncertainty and verdict out.

Every check is a plain function of numpy arrays that returns :class:`CheckResult` values: a statistic, its
standard error, a threshold of practical size, and a verdict by the rule in :mod:`fluvial.check.result`. A
check knows nothing of flows: what it judges may come from anywhere.

>>> import numpy as np
>>> rng = np.random.default_rng(1)
>>> truth, draws = rng.normal(size=(5000, 1)), 0.8 * rng.normal(size=(5000, 200, 1))  # overconfident
>>> for result in [*pit(pit_values(truth, draws, rng), ["x"]), *pull_checks(truth, draws, ["x"])]:
...     print(result.name, result.verdict)
PIT fail
pull mean pass
pull width fail
"""

from fluvial.check.calibration import (
    central_coverage_curve,
    coverage,
    coverage_curve,
    hpd_values,
    pit,
    pit_values,
    pull_checks,
    pulls,
    uniform_distance,
)
from fluvial.check.conditional import ContextBin, context_slices, local_calibration, representative_contexts
from fluvial.check.divergence import kl_divergence, nll
from fluvial.check.energy import energy_test
from fluvial.check.levels import level_probabilities
from fluvial.check.result import CheckResult, Verdict, overall, verdict_for
from fluvial.check.support import normalisation, outside_support
from fluvial.check.weights import effective_rows, equal_rows

__all__ = [
    "CheckResult",
    "ContextBin",
    "Verdict",
    "central_coverage_curve",
    "context_slices",
    "coverage",
    "coverage_curve",
    "effective_rows",
    "energy_test",
    "equal_rows",
    "hpd_values",
    "kl_divergence",
    "level_probabilities",
    "local_calibration",
    "nll",
    "normalisation",
    "outside_support",
    "overall",
    "pit",
    "pit_values",
    "pull_checks",
    "pulls",
    "representative_contexts",
    "uniform_distance",
    "verdict_for",
]
