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

from fluvial.check._arrays import in_batches
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
from fluvial.check.cells import CellDifferences, cell_differences, cells
from fluvial.check.classifier import classifier_test, local_classifier_test
from fluvial.check.conditional import (
    ContextBin,
    context_slices,
    local_calibration,
    local_coverage,
    representative_contexts,
)
from fluvial.check.divergence import js_divergence, kl_divergence, nll
from fluvial.check.energy import energy_test
from fluvial.check.ensemble import seed_sensitivity
from fluvial.check.extrapolation import extrapolation, neighbour_ratio
from fluvial.check.levels import level_probabilities
from fluvial.check.local import local_regression, predicted_deviation
from fluvial.check.ranks import rank_counts, sbc_ranks, tarp, tarp_curve, tarp_values
from fluvial.check.result import CheckResult, Verdict, overall, verdict_for
from fluvial.check.scores import compare_scores, crps, energy_score
from fluvial.check.support import normalisation, outside_support
from fluvial.check.tails import tail_rates
from fluvial.check.twosample import kolmogorov_smirnov, mmd, sliced_wasserstein, wasserstein
from fluvial.check.weights import effective_rows, equal_rows

__all__ = [
    "CellDifferences",
    "CheckResult",
    "ContextBin",
    "Verdict",
    "cell_differences",
    "cells",
    "central_coverage_curve",
    "classifier_test",
    "compare_scores",
    "context_slices",
    "coverage",
    "coverage_curve",
    "crps",
    "effective_rows",
    "energy_score",
    "energy_test",
    "equal_rows",
    "extrapolation",
    "hpd_values",
    "in_batches",
    "js_divergence",
    "kl_divergence",
    "kolmogorov_smirnov",
    "level_probabilities",
    "local_calibration",
    "local_classifier_test",
    "local_coverage",
    "local_regression",
    "mmd",
    "neighbour_ratio",
    "nll",
    "normalisation",
    "outside_support",
    "overall",
    "pit",
    "pit_values",
    "predicted_deviation",
    "pull_checks",
    "pulls",
    "rank_counts",
    "representative_contexts",
    "sbc_ranks",
    "seed_sensitivity",
    "sliced_wasserstein",
    "tail_rates",
    "tarp",
    "tarp_curve",
    "tarp_values",
    "uniform_distance",
    "verdict_for",
    "wasserstein",
]
