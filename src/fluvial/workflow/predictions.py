"""What a report shows of a density whose context is an array: it is used as a prediction, so it is drawn as one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fluvial.data.schema import Schema
from fluvial.density import Density
from fluvial.report import page
from fluvial.report.predictions import corner, fitted_pulls, predicted

#: Draws behind the posterior of one row, and most targets that are drawn.
DRAWS, TARGETS = 5000, 8


def prediction_arrays(
    density: Density, chosen: Mapping[str, np.ndarray], truth: np.ndarray, draws: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Return what :func:`prediction_section` draws: ``truth [N, D]`` and ``draws [N, S, D]`` at the rows ``chosen``."""
    schema = density.schema
    if not schema.arrays or not density.plain or truth.shape[1] > TARGETS:
        return {}
    spread = truth.std(axis=0)
    away = np.abs(truth - np.median(truth, axis=0)) / np.where(spread > 0, spread, 1.0)
    typical = int(away.max(axis=1).argmin())
    given = density.given({name: chosen[name][typical] for name in schema.context_names})
    drawn = given.sample(DRAWS, seed=seed)
    return {
        "predicted_truth": truth,
        "predicted_mean": draws.mean(axis=1),
        "predicted_std": draws.std(axis=1, ddof=1),
        "posterior": np.stack([drawn[name] for name in schema.target_names], axis=-1),
        "posterior_truth": truth[typical],
    }


def prediction_section(schema: Schema, arrays: Mapping[str, np.ndarray]) -> list[page.Section]:
    """Return the section of a report, or nothing where there are no such arrays."""
    if "predicted_mean" not in arrays:
        return []
    truth, mean, std = (arrays[f"predicted_{what}"] for what in ("truth", "mean", "std"))
    columns = schema.targets
    figures = [
        page.FigureItem(
            predicted(truth, mean, std, columns),
            "Predicted mean against the true value of test rows. Beneath, what is left: the line is its median, the band "
            "holds 68 %, dots are the mean predicted error, which should be as wide as the band.",
        ),
        page.FigureItem(
            fitted_pulls(arrays["pulls"], columns),
            "Distance of the truth from the predicted mean in predicted errors, and the normal fitted to it.",
        ),
        page.FigureItem(
            corner({"": arrays["posterior"]}, columns, arrays["posterior_truth"]),
            "The density at one test row in the middle of the table: regions of 68 and 95 %; dashed, its true values.",
        ),
    ]
    return [page.Section("Predictions", figures)]
