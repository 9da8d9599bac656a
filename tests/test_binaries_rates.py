"""Formation rates: a smooth log-rate with an error that is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fluvial import DataError, RunError
from fluvial.apps.binaries import simulator
from fluvial.apps.binaries.rates import Cells, Rates, count_cells, fit_rates

Z, ALPHA = np.meshgrid(simulator.METALLICITIES, simulator.ALPHAS, indexing="ij")
CONTEXT = np.stack([Z.ravel(), ALPHA.ravel()], -1)


def cells(counts: np.ndarray, simulated: float = 1.0) -> Cells:
    n = counts.astype(float)
    return Cells(["Z", "alpha"], CONTEXT, n, n, np.full(len(n), simulated))


def test_pulls_are_normal_whatever_the_rate() -> None:
    pulls = []
    for seed in range(6):
        truth = simulator.cell_probabilities().ravel() * (2000 if seed % 2 else 50_000)
        rates = fit_rates(cells(np.random.default_rng(seed).poisson(truth)))
        mean, deviation = rates.log_rate(Z=Z.ravel(), alpha=ALPHA.ravel())
        pulls.append((mean - np.log(truth)) / deviation)
    pulls = np.array(pulls)
    assert abs(pulls.mean()) < 0.25
    assert 0.75 < pulls.std() < 1.3


def test_a_cell_that_was_left_out_is_predicted() -> None:
    rng = np.random.default_rng(5)
    truth = simulator.cell_probabilities().ravel() * 50_000
    counts = rng.poisson(truth)
    rows = np.repeat(np.arange(60), counts)
    out = CONTEXT[[22, 40]]
    keep = ~np.isin(rows, [22, 40])
    made = count_cells({"Z": CONTEXT[rows[keep], 0], "alpha": CONTEXT[rows[keep], 1]}, leave_out=out)
    assert len(made.counts) == 58
    rates = fit_rates(made)
    expected, error = rates.expected(Z=out[:, 0], alpha=out[:, 1])
    assert (np.abs(expected - truth[[22, 40]]) < 4 * error).all()
    assert (error < 0.2 * expected).all()


def test_exposure_and_weights() -> None:
    counts = np.random.default_rng(1).poisson(simulator.cell_probabilities().ravel() * 20_000)
    one, many = fit_rates(cells(counts)), fit_rates(cells(counts, simulated=1e6))
    at = {"Z": 0.0015, "alpha": 2.0}
    np.testing.assert_allclose(one.expected(**at)[0], many.expected(1e6, **at)[0], rtol=1e-3)
    # Every merger with the weight 3: three times as many, with the same relative error.
    n = counts.astype(float)
    weighted = fit_rates(Cells(["Z", "alpha"], CONTEXT, 3 * n, 9 * n, np.ones(60)))
    np.testing.assert_allclose(weighted.expected(**at)[0], 3 * one.expected(**at)[0], rtol=1e-3)
    np.testing.assert_allclose(weighted.log_rate(**at)[1], one.log_rate(**at)[1], rtol=1e-2)


def test_scatter_between_cells_is_noticed() -> None:
    rng = np.random.default_rng(2)
    truth = simulator.cell_probabilities().ravel() * 200_000
    smooth, rough = (fit_rates(cells(rng.poisson(truth * np.exp(s * rng.normal(size=60))))) for s in (0, 0.3))
    assert smooth.sigma < 0.06
    assert rough.sigma > 0.15
    assert rough.log_rate(Z=0.0015, alpha=2.0)[1] > 3 * smooth.log_rate(Z=0.0015, alpha=2.0)[1]


def test_saved_and_read_again(tmp_path: Path) -> None:
    rates = fit_rates(cells(np.random.default_rng(0).poisson(3.0, 60)))
    rates.save(tmp_path / "rates.json")
    again = Rates.load(tmp_path)
    at = {"Z": [0.0005, 0.2], "alpha": 0.7}
    np.testing.assert_array_equal(rates.expected(**at), again.expected(**at))
    assert again.outside(**at).tolist() == [False, True]
    with pytest.raises(RunError, match=r"found none\. Make them with: fluvial binaries rates"):
        Rates.load(tmp_path / "no.json")
    (tmp_path / "rates.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        Rates.load(tmp_path)


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="no rate to fit"):
        fit_rates(cells(np.zeros(60)))
    with pytest.raises(DataError, match="more than one value in every context column; alpha has one"):
        fit_rates(count_cells({"Z": [1.0, 2.0], "alpha": [1.0, 1.0]}))
    with pytest.raises(DataError, match="at most 5,000 cells"):
        count_cells({"Z": np.arange(100.0), "alpha": np.arange(100.0)})
    rates = fit_rates(cells(np.full(60, 4)))
    with pytest.raises(DataError, match=r"Expected context columns Z, alpha; got Z"):
        rates.log_rate(Z=0.1)
    with pytest.raises(DataError, match="Z: expected values above 0"):
        rates.log_rate(Z=-0.1, alpha=1.0)
