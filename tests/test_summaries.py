"""Summaries of draws against what is known exactly."""

import numpy as np
import pytest

from fluvial.errors import DataError
from fluvial.infer.summaries import density_threshold, summarise


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(3)
    gauss = rng.normal(size=(4, 20_000))
    return np.stack([10 + 2 * gauss, rng.exponential(size=(4, 20_000)), 3 * gauss], axis=-1)


def test_against_numpy(draws):
    found = summarise(draws, probabilities=[0.025, 0.5, 0.9], levels=[0.5])
    np.testing.assert_allclose(found.mean, draws.mean(1))
    np.testing.assert_allclose(found.std, draws.std(1, ddof=1))
    np.testing.assert_allclose(
        found.quantiles, np.moveaxis(np.quantile(draws, [0.025, 0.5, 0.9], axis=1), 0, 1)
    )
    for i in range(4):
        np.testing.assert_allclose(found.covariance[i], np.cov(draws[i].T))
    np.testing.assert_allclose(found.correlation[:, 0, 2], 1.0)
    np.testing.assert_allclose(
        found.central[:, 0], np.moveaxis(np.quantile(draws, [0.25, 0.75], axis=1), 0, 1)
    )


def test_highest_density_is_shortest_and_leans_on_a_bound(draws):
    found = summarise(draws)
    lower, upper = found.highest[:, 0, 0], found.highest[:, 0, 1]
    np.testing.assert_allclose(upper[:, 1], -np.log(1 - 0.68), atol=0.03)  # exponential: [0, −ln(1 − a)]
    assert (lower[:, 1] < 0.01).all()
    np.testing.assert_allclose(upper[:, 0] - lower[:, 0], 2 * 2 * 0.9945, rtol=0.03)
    assert (found.central[:, 0, 1] - found.central[:, 0, 0] >= upper - lower - 1e-12).all()


def test_regions_hold_their_level_on_average_and_too_narrow_ones_do_not():
    rng = np.random.default_rng(0)
    truth = rng.gamma(2.0, size=(3000, 1))
    for scale, wanted in ((1.0, True), (0.6, False)):
        found = summarise(scale * rng.gamma(2.0, size=(3000, 1000, 1)))
        for ends in (found.central, found.highest):
            held = ((ends[:, :, 0] <= truth[:, None]) & (truth[:, None] <= ends[:, :, 1])).mean(axis=(0, 2))
            assert (np.abs(held - [0.68, 0.95]) < 0.025).all() == wanted


def test_shapes_structured_draws_and_one_context(draws):
    table = np.empty((2, 2, 20_000), dtype=[("a", float), ("b", float), ("c", float)])
    for i, name in enumerate("abc"):
        table[name] = draws[..., i].reshape(2, 2, -1)
    found = summarise(table)
    assert found.mean.shape == (2, 2, 3)
    assert found.highest.shape == (2, 2, 2, 2, 3)
    np.testing.assert_array_equal(found.std.reshape(4, 3), summarise(draws).std)
    np.testing.assert_array_equal(summarise(draws[1]).quantiles, summarise(draws).quantiles[1])
    np.testing.assert_allclose(summarise(draws.astype(np.float32)).mean, found.mean.reshape(4, 3), rtol=1e-5)


def test_joint_regions():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(3, 50_000, 2))
    t = density_threshold(-0.5 * (z**2).sum(-1))
    np.testing.assert_allclose(-2 * t, np.broadcast_to(-2 * np.log([0.32, 0.05]), (3, 2)), rtol=0.03)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"draws": np.zeros((5, 30, 1))}, "level 0.95 needs at least 40 draws; got 30"),
        ({"draws": np.zeros((5, 1, 1)), "levels": ()}, "at least 2 draws"),
        ({"draws": np.full((2, 100, 1), np.nan)}, "context 0 is not finite"),
        ({"draws": np.zeros(4)}, "expected draws"),
        ({"draws": np.zeros((2, 100, 1)), "levels": [1.0]}, "between 0 and 1; got 1.0"),
        ({"draws": np.zeros((2, 100, 1)), "probabilities": [-0.1]}, "quantile between 0 and 1"),
    ],
)
def test_what_cannot_be_summarised_is_said(arguments, words):
    with pytest.raises(DataError, match=words):
        summarise(**arguments)
