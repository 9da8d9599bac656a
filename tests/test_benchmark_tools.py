"""What benchmarks measure with: a classifier test, simulators of sbibm, and the layout of regression sets."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def tool(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def test_the_classifier_test_is_half_for_equal_samples_and_one_for_others(monkeypatch: pytest.MonkeyPatch):
    c2st = tool("c2st", monkeypatch).c2st
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 2))
    assert (
        abs(c2st(x, rng.normal(size=(500, 2))) - 0.5) < 0.06
    )  # ± 0.016 by chance, a little more by its folds
    assert c2st(x, x + np.array([9.0, 0.0])) > 0.99
    shifted = x + np.array([1.0, 0.0])  # the best there is: Φ(1/2) = 0.69
    assert abs(c2st(x, rng.permutation(shifted)) - 0.69) < 0.05
    assert abs(c2st(x, rng.permutation(shifted), folds=2) - 0.69) < 0.07


def test_gradients_of_the_classifier_are_those_of_autodiff(monkeypatch: pytest.MonkeyPatch):
    torch = pytest.importorskip("torch")
    networks = tool("c2st", monkeypatch)._Networks(2, 5)
    x, y = torch.randn(5, 20, 2), (torch.rand(5, 20) > 0.5).float()
    weights = [w.clone().requires_grad_() for w in networks.weights]
    w1, b1, w2, b2, w3, b3 = weights
    logit = ((((x @ w1 + b1).relu() @ w2 + b2).relu()) @ w3 + b3)[:, :, 0]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, y, reduction="none").mean(1)
    loss = loss + 0.5 * 1e-4 / 20 * sum(w.square().sum((1, 2)) for w in (w1, w2, w3))
    loss.sum().backward()
    torch.testing.assert_close(networks.step(x, y), loss.detach())
    for weight, slope in zip(weights, networks.slopes, strict=True):
        torch.testing.assert_close(slope, weight.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["two_moons", "slcp", "gaussian_linear_uniform", "gaussian_mixture"])
def test_simulators_have_their_moments(name: str, monkeypatch: pytest.MonkeyPatch):
    task = tool("sbibm", monkeypatch).TASKS[name]
    rng = np.random.default_rng(0)
    theta = np.tile(task.prior(1, rng), (20_000, 1))
    x = task.simulate(theta, rng)
    at = theta[0]
    if name == "slcp":
        s1, s2, rho = at[2] ** 2, at[3] ** 2, np.tanh(at[4])
        pairs = x.reshape(-1, 2)
        np.testing.assert_allclose(
            np.cov(pairs.T), [[s1**2, rho * s1 * s2], [rho * s1 * s2, s2**2]], rtol=0.05, atol=0.05 * s1 * s2
        )
        np.testing.assert_allclose(pairs.mean(0), at[:2], atol=0.02 * max(s1, s2))
    elif name == "two_moons":
        turned = x - [0.25 - abs(at.sum()) / np.sqrt(2), (at[1] - at[0]) / np.sqrt(2)]
        radius = np.hypot(*turned.T)
        assert abs(radius.mean() - 0.1) < 1e-3
        assert abs(radius.std() - 0.01) < 1e-3
        assert (turned[radius > 0.05, 0] >= 0).all()  # a half moon
    else:
        variance = 0.1 if name == "gaussian_linear_uniform" else (1 + 0.01) / 2
        np.testing.assert_allclose(x.var(0), variance, rtol=0.06)
        np.testing.assert_allclose(x.mean(0), at, atol=0.03)


def test_sets_are_read_in_the_layout_that_they_are_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    uci = tool("uci", monkeypatch)
    folders = {f.name: f for f in uci.write_bundled(tmp_path, splits=2, rows=100)}
    splits = uci.read_splits(folders["bimodal"], None)
    assert [len(s.train[1]) for s in splits] == [90, 90]
    assert splits[0].test[0].shape == (10, 5)
    assert not np.array_equal(splits[0].test[1], splits[1].test[1])
    assert len(uci.read_splits(folders["skewed"] / "data", 1)) == 1
    assert splits[0].truth is not None
    assert splits[0].truth.shape == (10,)
    with pytest.raises(SystemExit, match="not there"):
        uci.read_splits(tmp_path, None)


def test_rows_are_kept_by_all_that_they_depend_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    common = tool("common", monkeypatch)
    made = []

    def make() -> dict[str, float]:
        made.append(0)
        return {"value": np.float64(len(made))}

    path = tmp_path / "rows.jsonl"
    assert common.row_of(path, {"n": 1}) is None
    for n, value in ((1, 1.0), (2, 2.0), (1, 1.0), (2, 2.0)):
        assert common.kept(path, {"n": n}, make)["value"] == value
    assert len(made) == 2
    assert common.kept(None, {"n": 1}, make)["value"] == 3.0
