"""Flows of zuko in fluvial, and flows of fluvial in sbi."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import fluvial
from fluvial.data.readers import write_table
from fluvial.errors import MissingExtraError, StudyError
from fluvial.flows import build_flow, sbi_estimator
from fluvial.study import parse_study

ZUKO = ["MAF", "NSF", "NAF", "UNAF", "SOSPF", "BPF", "GF", "NICE", "RealNVP", "GMM", "CNF"]


@pytest.fixture
def zuko():
    return pytest.importorskip("zuko")


@pytest.mark.parametrize("name", ZUKO)
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.usefixtures("zuko")
def test_a_zuko_flow_by_name(name: str, context: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = build_flow(f"zuko:{name}", targets=2, context=context).eval()
    assert (flow.targets, flow.context) == (2, context)
    c = torch.randn(5, context, generator=torch.Generator().manual_seed(0)) if context else None
    p = flow(c)
    batch = (5,) if context else ()
    assert p.batch_shape == batch
    assert p.event_shape == (2,)
    state = torch.random.get_rng_state()
    x = p.sample((4,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), state), "the global random numbers have moved"
    assert x.shape == (4, *batch, 2)
    assert not x.requires_grad
    y, log_prob = p.rsample_and_log_prob((4,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(y.detach(), x)
    # the median: zuko inverts some flows by bisection in a box, and misses the farthest draws
    assert float((p.log_prob(x) - log_prob).detach().abs().median()) < 5e-3
    other = p.sample((4,), generator=torch.Generator().manual_seed(2))
    assert not torch.equal(other, x)
    flow.train()
    flow.loss(torch.randn(5, 2), c if context else torch.zeros(5, 0)).backward()
    assert any(p.grad is not None for p in flow.parameters())


@pytest.mark.usefixtures("zuko")
def test_wrong_context_is_named() -> None:
    with pytest.raises(ValueError, match=r"trailing dimension 3; got shape \(4, 2\)"):
        build_flow("zuko:NSF", targets=2, context=3)(torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ({"architecture": "zuko:NFS"}, "zuko has no flow 'NFS'; did you mean 'NSF'?"),
        ({"architecture": "zuko:NSF", "bin": 4}, r"\[flow\] bin is not a known key; did you mean 'bins'\?"),
        ({"architecture": "zuko:NSF", "bins": "many"}, r"\[flow\] bins"),
        ({"architecture": "zuko:NSF", "activation": "sine"}, "activation to be one of relu"),
        ({"architecture": "zukko:NSF"}, "'zukko:NSF' is not known; did you mean 'zuko:NSF'?"),
    ],
)
@pytest.mark.usefixtures("zuko")
def test_mistakes_in_a_study_are_named(flow: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message.replace("?", r"\?").replace(r"\\?", r"\?")):
        parse_study({"data": {"source": "a.parquet", "targets": ["x"]}, "flow": flow})


@pytest.mark.usefixtures("zuko")
def test_options_reach_zuko() -> None:
    flow = build_flow(
        "zuko:NSF", targets=2, context=1, bins=5, transforms=2, hidden_features=[7], activation="elu"
    )
    assert len(flow.flow.transform.transforms) == 2
    assert {p.shape[0] for n, p in flow.named_parameters() if n.endswith("0.bias")} == {7}
    assert "ELU" in repr(flow)


@pytest.mark.parametrize(
    "flow",
    [
        {"architecture": "zuko:NSF", "bins": 4, "transforms": 1, "hidden_features": [8]},
        {"architecture": "zuko:GMM", "components": 3, "hidden_features": [8], "activation": "tanh"},
    ],
    ids=["NSF", "GMM"],
)
@pytest.mark.usefixtures("zuko")
def test_a_study_fits_a_zuko_flow(flow: dict, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    c = rng.uniform(0.5, 2.0, 500)
    write_table(tmp_path / "table.parquet", {"x": c * np.exp(0.3 * rng.normal(size=500)), "c": c})
    study = {
        "data": {"source": str(tmp_path / "table.parquet"), "targets": ["x"], "context": ["c"]},
        "columns": {"x": {"support": "positive"}},
        "flow": flow,
        "training": {"epochs": 2},
    }
    density = fluvial.fit(study, runs=tmp_path / "runs", check=False)
    again = fluvial.load(density.folder)
    p, q = density.given(c=1.0), again.given(c=1.0)
    np.testing.assert_array_equal(p.sample(50, seed=3), q.sample(50, seed=3))
    draws, log_prob = q.sample_and_log_prob(50, seed=3)
    assert (draws["x"] > 0).all()
    np.testing.assert_allclose(p.log_prob(draws), log_prob, atol=1e-3)


@pytest.mark.parametrize(
    ("use", "extra"),
    [
        (lambda: build_flow("zuko:NSF", targets=2, context=0), "zuko"),
        (lambda: sbi_estimator()(torch.randn(5, 2), torch.randn(5, 2)), "sbi"),
    ],
    ids=["zuko", "sbi"],
)
def test_a_missing_library_is_named(use, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(importlib, "import_module", absent)
    monkeypatch.delitem(vars(sys.modules["fluvial.flows.sbi"]), "SbiEstimator", raising=False)
    with pytest.raises(MissingExtraError, match=rf"pip install 'fluvial\[{extra}\]'"):
        use()


@pytest.mark.filterwarnings("default")  # sbi's own
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("autoregressive-spline", {"bins": 8, "width": 32, "steps": 1}),
        ("continuous", {"width": 32, "depth": 2}),
    ],
)
def test_sbi_trains_a_posterior_with_our_flow(
    architecture: str, options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """theta ~ N(0, 1)², x = 100 + 10 (theta + ε / 2): the posterior is N(0.8 (x − 100) / 10, 0.2)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inference = pytest.importorskip("sbi.inference")
    monkeypatch.chdir(tmp_path)  # sbi writes its logs where it stands
    torch.manual_seed(0)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((2000,))
    x = 100 + 10 * (theta + 0.5 * torch.randn(2000, 2))
    npe = inference.NPE(
        prior=prior, density_estimator=sbi_estimator(architecture, **options), show_progress_bars=False
    )
    epochs = 40 if architecture == "continuous" else 15
    estimator = npe.append_simulations(theta, x).train(
        max_num_epochs=epochs, training_batch_size=100, learning_rate=3e-3
    )
    posterior = npe.build_posterior(estimator)
    observed = torch.tensor([[105.0, 90.0]])
    draws = posterior.sample((2000,), x=observed, show_progress_bars=False)
    torch.testing.assert_close(draws.mean(0), torch.tensor([0.4, -0.8]), atol=0.1, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.full((2,), 0.2**0.5), atol=0.08, rtol=0)
    exact = torch.distributions.Normal(torch.tensor([0.4, -0.8]), 0.2**0.5).log_prob(draws).sum(-1)
    ours = posterior.log_prob(draws, x=observed)
    assert abs(float((ours - exact).mean())) < 0.2
    one = draws[None, :1]
    for again in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        torch.testing.assert_close(again.log_prob(one, observed), estimator.log_prob(one, observed))
    pair = estimator.sample_and_log_prob(torch.Size((3,)), observed)
    torch.testing.assert_close(estimator.log_prob(pair[0], observed), pair[1], atol=1e-3, rtol=1e-3)
