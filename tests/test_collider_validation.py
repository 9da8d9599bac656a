"""Fast against full simulation: numbers against simple cases, verdicts that can fail, and the command from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fluvial.apps.collider import simulator
from fluvial.apps.collider.folds import histogram
from fluvial.apps.collider.validation import (
    compare,
    profile,
    rank_correlations,
    roc,
    wasserstein_distances,
)
from fluvial.errors import DataError

TARGETS = ["Jet_ptRatio", "Jet_etaMinusGen", "Jet_btagDeepFlavB", "Jet_puId"]
CONTEXT = ["GenJet_pt", "GenJet_eta", "GenJet_hadronFlavour"]


@pytest.fixture(scope="module")
def jets() -> dict[str, np.ndarray]:
    return simulator.simulate("jets", 20_000, seed=3)


# --------------------------------------------------------------------------------------------------- the numbers


def test_distances_see_a_shift_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    full, same = rng.normal(size=(2, 20_000))
    exact = wasserstein_distances(full, same, sample=4000)
    assert (exact.n, abs(exact.ratio - 1) < 3 * exact.ratio_error + 0.15) == (4000, True)
    shifted = wasserstein_distances(full, same + 0.1, sample=4000)
    assert shifted.fast == pytest.approx(0.1, rel=0.1)
    assert shifted.ratio > 3
    assert wasserstein_distances(np.ones(100), np.ones(100)).ratio == 1
    assert wasserstein_distances(full[:100], same[:100]).n == 20
    with pytest.raises(DataError, match="at least 10 rows"):
        wasserstein_distances(full[:9], same[:9])


def test_rank_correlations_are_those_of_scipy() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    x = rng.normal(size=500)
    y = np.where(rng.random(500) < 0.3, -1.0, np.exp(x + rng.normal(size=500)))  # atoms and a tail
    assert rank_correlations([x], [y])[0, 0] == pytest.approx(spearmanr(x, y).statistic)


def test_profiles_have_the_errors_of_repetitions() -> None:
    rng = np.random.default_rng(2)
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    against = rng.uniform(0, 2.001, 2000)  # hardly any in the last bin
    made = [profile(rng.gamma(3.0, size=2000) * (1 + against), against, edges) for _ in range(200)]
    for quantity in ("mean", "rms"):
        values = np.array([getattr(p, quantity) for p in made])[:, :2]
        stated = np.array([getattr(p, f"{quantity}_error") for p in made])[:, :2]
        np.testing.assert_allclose(stated.mean(0), values.std(0), rtol=0.2)
    assert np.isnan(made[0].mean[2])


def test_rates_and_their_errors() -> None:
    rng = np.random.default_rng(3)
    tpr = np.array([0.5, 0.8])
    made = [roc(rng.normal(1.5, 1, 1000), rng.normal(0, 1, 2000), tpr) for _ in range(300)]
    fpr, error = np.array([m.fpr for m in made]), np.array([m.error for m in made])
    np.testing.assert_allclose(fpr.mean(0), [0.0668, 0.2552], rtol=0.02)  # 1 − Φ(1.5 + Φ⁻¹(1 − t))
    np.testing.assert_allclose(error.mean(0), fpr.std(0), rtol=0.2)
    failed = np.full(100, -1.0)
    np.testing.assert_allclose(roc(failed, failed, tpr).fpr, tpr)  # nothing tells them apart


def test_errors_of_folds_are_those_of_repetitions() -> None:
    """20 folds of each event: errors that take them as independent are far too small, these are right."""
    rng = np.random.default_rng(4)
    edges, contents, errors, naive = np.array([0.0, 1.0]), [], [], []
    for _ in range(300):
        events = np.repeat(np.arange(200), 20)
        values = np.repeat(rng.normal(size=200), 20) + 0.2 * rng.normal(size=4000)
        content, error = histogram(values, edges, events=events, weights=np.full(4000, 1 / 20))
        contents.append(content[0])
        errors.append(error[0])
        naive.append(np.sqrt(content[0] / 20))
    # (the number of events is fixed: contents scatter less than if it were a Poisson number, by 200 p²)
    poisson = np.sqrt(np.var(contents) + 200 * (np.mean(contents) / 200) ** 2)
    assert np.mean(errors) == pytest.approx(poisson, rel=0.1)
    assert np.mean(naive) < 0.3 * poisson
    with pytest.raises(DataError, match="of one length"):
        histogram([1.0], edges, events=[1, 2])
    with pytest.raises(DataError, match="edges that rise"):
        histogram([1.0], [1.0, 1.0], events=[1])


# --------------------------------------------------------------------------------------------------- the verdicts


def verdicts(jets: dict[str, np.ndarray], fast: dict[str, np.ndarray]) -> dict[str, str]:
    results = compare("jets", jets, fast, TARGETS, CONTEXT).results
    return {f"{r.name} of {r.column}": r.verdict for r in results}


def test_the_truth_drawn_anew_passes(jets: dict[str, np.ndarray]) -> None:
    chain = simulator.CHAINS["jets"]
    anew, _ = chain.draw({v.name: jets[v.name] for v in chain.context}, np.random.default_rng(5))
    assert "fail" not in verdicts(jets, anew).values()


def test_what_is_wrong_fails(jets: dict[str, np.ndarray]) -> None:
    chain = simulator.CHAINS["jets"]
    anew, _ = chain.draw({v.name: jets[v.name] for v in chain.context}, np.random.default_rng(5))
    wide = anew | {"Jet_ptRatio": 1 + 1.4 * (anew["Jet_ptRatio"] - 1)}
    assert verdicts(jets, wide)["resolution of Jet_ptRatio"] == "fail"
    high = anew | {"Jet_ptRatio": 1.05 * anew["Jet_ptRatio"]}
    assert verdicts(jets, high)["response of Jet_ptRatio"] == "fail"
    assert verdicts(jets, high)["Wasserstein distance of Jet_ptRatio"] == "fail"
    other = np.random.default_rng(6).permutation(20_000)  # right alone, wrong together
    blind = anew | {"Jet_btagDeepFlavB": anew["Jet_btagDeepFlavB"][other]}
    found = verdicts(jets, blind)
    assert found["Wasserstein distance of Jet_btagDeepFlavB"] == "pass"
    assert found["correlation of None"] == found["b-tag ROC, light of Jet_btagDeepFlavB"] == "fail"


def test_processes_differ_in_context_alone() -> None:
    ttbar, dy = (simulator.simulate("jets", 4000, seed=1, process=p) for p in ("ttbar", "dy"))
    share = [(t["GenJet_hadronFlavour"] == 5).mean() for t in (ttbar, dy)]
    assert share[1] < 0.4 * share[0]
    assert dy["GenJet_pt"].mean() < 0.8 * ttbar["GenJet_pt"].mean()
    np.testing.assert_allclose(simulator.log_density(dy), dy["log_density"], atol=1e-9)
    prompt = [
        simulator.simulate("muons", 4000, seed=1, process=p)["GenPart_statusFlags0"].mean()
        for p in ("ttbar", "dy")
    ]
    assert prompt[1] > 1.5 * prompt[0]
    with pytest.raises(DataError, match="no process 'dyy'"):
        simulator.simulate("jets", 10, process="dyy")


# --------------------------------------------------------------------------------------------------- the command

STUDY = """
[data]
source = "jets.parquet"
targets = {targets}
context = {context}
[columns]
Jet_ptRatio = {{ support = "positive", saturate = {{ above = 3 }} }}
Jet_btagDeepFlavB = {{ support = [0, 1], atoms = [-1] }}
Jet_puId = {{ kind = "integer" }}
GenJet_pt = {{ support = "positive" }}
GenJet_hadronFlavour = {{ kind = "integer" }}
[flow]
architecture = "coupling-spline"
mixing = "permutation"
steps = 2
width = 16
bins = 4
[training]
epochs = 1
"""


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fluvial
    from fluvial import cli

    simulator.write("jets", tmp_path / "jets.parquet", 5000, seed=1)
    simulator.write("jets", tmp_path / "ttbar.parquet", 3000, seed=2)
    simulator.write("jets", tmp_path / "dy.parquet", 3000, seed=2, process="dy")
    text = STUDY.format(targets=TARGETS, context=CONTEXT).replace("'", '"')
    (tmp_path / "jets.toml").write_text(text)
    density = fluvial.fit(tmp_path / "jets.toml", runs=tmp_path / "runs", check=False)
    tables = [str(tmp_path / f"{name}.parquet") for name in ("ttbar", "dy")]

    def run(*more: str) -> tuple[int, str, str]:
        argv = ["fluvial", "collider", "validate", str(density.folder), *more]
        monkeypatch.setattr("sys.argv", argv)
        monkeypatch.setattr("warnings.showwarning", None)  # put back after the test: the command sets it
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    code, out, _ = run(*tables, "-o", str(tmp_path / "out"), "--rows", "2000")
    assert code == 1  # a fit of one short epoch is not the truth
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    names = {r["name"] for r in results}
    assert {"ttbar: forbidden values", "dy: Wasserstein distance", "dy: KL(truth‖fit)"} <= names
    assert all(r["statistic"] == 0 for r in results if r["name"].endswith("forbidden values"))
    assert "ttbar: resolution of Jet_ptRatio" in out
    page = (tmp_path / "out" / "validation.html").read_text()
    assert "dy: 2,000 pairs" in page
    assert page.count("data:image/png") == 10
    assert sorted(p.name for p in (tmp_path / "out").glob("dy-*.png")) == [
        f"dy-{name}.png" for name in ("correlations", "distances", "marginals", "response", "tagging")
    ]
    code, _, err = run(tables[0], tables[0])
    assert (code, "each of a name of its own" in err) == (2, True)
    code, _, err = run(str(tmp_path / "none.parquet"))
    assert code == 2


def test_errors_of_a_roc_where_it_bends() -> None:
    """Pulls about the exact curve have width 1, next to a tail of the signal among the background too."""
    rng = np.random.default_rng(4)
    tpr = np.array([0.6, 0.9, 0.95, 0.98])

    def scores(n: int) -> tuple[np.ndarray, np.ndarray]:
        return np.where(rng.random(n) < 0.03, rng.normal(-2, 0.5, n), rng.normal(3, 1, n)), rng.normal(size=n)

    exact = roc(*scores(2_000_000), tpr).fpr
    found = [roc(*scores(3000), tpr) for _ in range(300)]
    pulls = np.array([(r.fpr - exact) / r.error for r in found])
    assert np.abs(pulls.std(axis=0) - 1).max() < 0.2
    assert np.abs(pulls.mean(axis=0)).max() < 0.35
    ends = roc(*scores(3000), np.array([0.0, 1.0]))
    assert np.isfinite(ends.error).all()
