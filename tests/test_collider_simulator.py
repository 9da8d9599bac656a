"""The simulators of jets and muons: their densities are exact, their draws follow them, their tables are as declared."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

import fluvial
from fluvial.apps.collider import conditionals, simulator
from fluvial.apps.collider.chain import Chain, Variable
from fluvial.apps.collider.conditionals import Conditional
from fluvial.apps.collider.simulator import (
    CHAINS,
    log_densities,
    log_density,
    simulate,
    variables,
    write,
)
from fluvial.errors import DataError

STEPS = [(objects, name) for objects, chain in CHAINS.items() for name, _ in chain.steps]
ROWS = (3, 11)  # rows of the small table at whose contexts conditionals are looked at


@functools.cache
def table(objects: str, rows: int = 50_000) -> dict[str, np.ndarray]:
    return simulate(objects, rows, seed=5)  # type: ignore[arg-type]


def conditional(objects: str, name: str, row: int) -> Conditional:
    """The conditional of a target at the context and the earlier targets of one row; it broadcasts over values."""
    chain = CHAINS[objects]
    known = {k: v[row : row + 1].astype(np.float64) for k, v in table(objects).items()}
    known.update(chain.features(known))
    return dict(chain.steps)[name](known)


def variable(objects: str, name: str) -> Variable:
    return next(v for v in CHAINS[objects].targets if v.name == name)


def grid(v: Variable) -> tuple[np.ndarray, np.ndarray]:
    """Values through all of the continuous support, and the weights of the trapezoidal rule for them."""
    n = 16_001
    if v.lower > -math.inf and v.upper < math.inf and v.upper < 2:  # between two bounds, peaks at both
        t = np.linspace(-34, 34, n)
        x = v.lower + (v.upper - v.lower) / (1 + np.exp(-t))
        slope = (x - v.lower) * (v.upper - v.lower) / (1 + np.exp(t)) / (v.upper - v.lower)
        inside = x < v.upper
        return x[inside], (slope * (t[1] - t[0]))[inside]
    if v.lower > -math.inf:  # above a bound; perhaps saturated
        top = math.log(v.upper - v.lower) if v.upper < math.inf else 25.0
        t = np.linspace(-30, top, n)
        weights = np.exp(t) * (t[1] - t[0])
        weights[-1] *= 0.5 if v.upper < math.inf else 1.0
        x = v.lower + np.exp(t)
        x[-1] = min(x[-1], np.nextafter(v.upper, -math.inf))
        return x, weights
    t = np.linspace(-25, 25, n)
    return 1e-4 * np.sinh(t), 1e-4 * np.cosh(t) * (t[1] - t[0])


def probabilities(objects: str, name: str, row: int) -> tuple[np.ndarray, np.ndarray, dict[float, float]]:
    """The grid, the probability at each of its points, and that of each atom or integer."""
    v, p = variable(objects, name), conditional(objects, name, row)
    whole = v.atoms or tuple(np.arange(v.lower, v.upper + 1) if v.kind == "integer" else ())
    atoms = {float(a): float(np.exp(p.log_prob(np.array([float(a)])))[0]) for a in whole}
    if v.kind == "integer":
        return np.empty(0), np.empty(0), atoms
    x, weights = grid(v)
    return x, np.exp(p.log_prob(x)) * weights, atoms


# ------------------------------------------------------------------------------------------------ the density


@pytest.mark.parametrize(("objects", "name"), STEPS)
def test_conditionals_are_normalised(objects: str, name: str) -> None:
    for row in ROWS:
        _, p, atoms = probabilities(objects, name, row)
        assert p.sum() + sum(atoms.values()) == pytest.approx(1.0, abs=2e-6)


@pytest.mark.parametrize(("objects", "name"), STEPS)
def test_values_that_cannot_be_have_no_density(objects: str, name: str) -> None:
    v = variable(objects, name)
    beyond = np.array(
        [v.lower - 0.07, v.upper + 0.07, math.inf, -math.inf, 0.5 if v.kind == "integer" else 1e9]
    )
    impossible = beyond[~v.allows(beyond)]
    with np.errstate(all="ignore"):
        assert (conditional(objects, name, 0).log_prob(impossible) == -math.inf).all()
    if v.lower > -math.inf and v.lower not in v.atoms:
        assert not v.allows(np.array([v.lower - 0.07])).any()


def chi_square(objects: str, name: str, drawn: np.ndarray, row: int) -> float:
    """The p-value of draws against bins of about equal probability, one more for each atom."""
    x, p, atoms = probabilities(objects, name, row)
    expected, seen = list(atoms.values()), [float((drawn == a).sum()) for a in atoms]
    if x.size:
        cumulative = np.cumsum(p)
        cuts = np.searchsorted(cumulative, np.linspace(0, cumulative[-1], 21)[1:-1])
        edges = 0.5 * (x[cuts] + x[cuts + 1])
        rest = drawn[~np.isin(drawn, list(atoms))]
        seen += np.bincount(np.searchsorted(edges, rest), minlength=20).tolist()
        expected += np.diff(cumulative[cuts], prepend=0.0, append=cumulative[-1]).tolist()
    want, got = np.array(expected) * len(drawn), np.array(seen)
    rich = want > 5
    want, got = np.append(want[rich], want[~rich].sum()), np.append(got[rich], got[~rich].sum())
    if want[-1] < 5:
        want, got = want[:-1], got[:-1]
    if len(want) < 2:
        return 1.0
    return float(stats.chisquare(got, want * got.sum() / want.sum()).pvalue)


@pytest.mark.parametrize(("objects", "name"), STEPS)
def test_draws_follow_the_conditional(objects: str, name: str) -> None:
    n = 8_000
    for row in ROWS:
        p = conditional(objects, name, row)
        # Parameters are of one row: repeat them by drawing that often with as many random numbers.
        drawn = np.asarray(p.draw(np.random.default_rng(row), n))
        assert drawn.shape == (n,)
        assert variable(objects, name).allows(drawn).all()
        assert chi_square(objects, name, drawn, row) > 1e-4


@pytest.mark.parametrize(
    ("objects", "name"),
    [
        *(("jets", f"Jet_{k}") for k in ("ptRatio", "btagDeepFlavB", "nConstituents", "qgl", "area", "muEF")),
        *(("muons", f"Muon_{k}") for k in ("ptErr", "dxy", "pfRelIso03_chg", "jetRelIso")),
    ],
)
def test_the_test_of_draws_can_fail(objects: str, name: str) -> None:
    """Draws at one context against the density at others: the same test must see the difference."""
    drawn = np.asarray(conditional(objects, name, 0).draw(np.random.default_rng(1), 10_000))
    assert min(chi_square(objects, name, drawn, row) for row in (*ROWS, 24, 40)) < 1e-6


@pytest.mark.parametrize("objects", list(CHAINS))
def test_log_density_is_the_sum_of_its_columns(objects: str) -> None:
    rows = table(objects)
    each = log_densities(rows)
    assert list(each) == [v.name for v in CHAINS[objects].targets]
    np.testing.assert_allclose(sum(each.values()), rows["log_density"], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(log_density(rows), np.sum(list(each.values()), axis=0))
    assert np.isfinite(rows["log_density"]).all()


@pytest.mark.parametrize("objects", list(CHAINS))
def test_log_density_knows_the_context_and_the_other_targets(objects: str) -> None:
    rows = dict(table(objects))
    truth = log_density(rows).mean()
    chain = CHAINS[objects]
    shuffled = {v.name: np.roll(rows[v.name], 1) for v in chain.context}
    with np.errstate(divide="ignore"):
        assert truth - np.median(log_density({**rows, **shuffled})) > 2
    for name, _ in chain.steps[4:]:
        other = log_density({**rows, name: np.roll(rows[name], 1)})
        assert not np.allclose(other, log_density(rows)), name


def test_a_mean_over_draws_of_a_ratio_of_densities_is_one() -> None:
    """The whole chain at once: E_p[q/p] = 1 for the density q at slightly other contexts."""
    rows = dict(table("jets"))
    near = {**rows, "GenJet_pt": rows["GenJet_pt"] * np.float32(1.03)}
    ratio = np.exp(log_density(near) - rows["log_density"])
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(ratio.size)
    assert ratio.std() / math.sqrt(ratio.size) < 0.01
    assert ratio[rows["Jet_nConstituents"] > 25].mean() > 1.02  # of a part of the draws it is not


# -------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize(("objects", "context", "targets"), [("jets", 14, 17), ("muons", 30, 22)])
def test_tables_hold_what_is_declared(objects: str, context: int, targets: int) -> None:
    rows, chain = table(objects), CHAINS[objects]
    assert (len(chain.context), len(chain.targets)) == (context, targets)
    assert list(rows) == [v.name for v in variables(objects)]  # type: ignore[arg-type]
    for v in (*chain.context, *chain.targets):
        assert rows[v.name].dtype == (np.int32 if v.kind == "integer" else np.float32), v.name
        assert v.allows(rows[v.name]).all(), v.name
        assert len(np.unique(rows[v.name])) > 1, v.name
        for atom in v.atoms:
            assert (rows[v.name] == atom).any(), (v.name, atom)
    # The control: a value off the atoms is found out.
    assert not variable("jets", "Jet_qgl").allows(np.array([-0.1, 0.0, 1.0])).any()


def test_jets_are_like_those_of_a_detector() -> None:
    rows = table("jets")
    pt, ratio = rows["GenJet_pt"], rows["Jet_ptRatio"]
    widths = [
        np.ptp(np.quantile(ratio[(pt > a) & (pt < 1.5 * a)], [0.16, 0.84])) / 2 for a in (12, 30, 70, 150)
    ]
    assert (np.diff(widths) < 0).all()
    assert widths[0] > 2 * widths[-1]
    # Tails: far more beyond four widths than a normal density's 6e-5.
    hard = (pt > 60) & (pt < 70)
    pull = (ratio[hard] - np.median(ratio[hard])) / (np.ptp(np.quantile(ratio[hard], [0.16, 0.84])) / 2)
    assert (np.abs(pull) > 4).mean() > 1e-3
    b, light = rows["GenJet_hadronFlavour"] == 5, rows["GenJet_hadronFlavour"] == 0
    score = rows["Jet_btagDeepFlavB"]
    assert (score[b] > 0.9).mean() > 0.4
    assert (score[light] < 0.05).mean() > 0.4
    assert (score[b] > 0.5).mean() > 0.6 > 0.1 > (score[light] > 0.5).mean()
    failed = rows["Jet_btagDeepB"] == -1
    np.testing.assert_array_equal(failed, rows["Jet_btagCSVV2"] == -1)
    assert (
        failed[np.abs(rows["GenJet_eta"]) > 3].mean() > 5 * failed[np.abs(rows["GenJet_eta"]) < 2].mean() > 0
    )
    assert (rows["Jet_btagDeepFlavB"] + rows["Jet_btagDeepFlavC"]).max() <= 1.0
    correlated = np.corrcoef(np.log(ratio), np.log(rows["Jet_massRatio"]))[0, 1]
    assert 0.4 < correlated < 0.95
    found = (rows["ClosestMuon_dr"] < 0.4) == (rows["ClosestMuon_pt"] > 0)
    assert found.all()
    assert (rows["ClosestMuon_dr"] <= rows["SecondClosestMuon_dr"]).all()


def test_muons_are_like_those_of_a_detector() -> None:
    rows = table("muons")
    prompt = rows["GenPart_statusFlags0"] == 1
    isolated = rows["Muon_pfRelIso03_chg"] == 0
    assert isolated[prompt].mean() > 0.5 > 0.3 > isolated[~prompt].mean()
    assert np.median(rows["Muon_sip3d"][~prompt]) > 1.5 * np.median(rows["Muon_sip3d"][prompt])
    assert np.corrcoef(np.log(rows["Muon_ip3d"]), np.log(rows["Muon_sip3d"]))[0, 1] > 0.6
    width = np.ptp(np.quantile(rows["Muon_ptRatio"], [0.16, 0.84])) / 2
    assert 0.005 < width < 0.03
    assert (rows["Muon_dz"] > 0).mean() == pytest.approx(0.5, abs=0.01)
    assert rows["Muon_pfRelIso04_all"].max() < 2000


def test_tables_repeat_and_grow() -> None:
    small, large = simulate("jets", 100, seed=3), simulate("jets", 40_000, seed=3)  # of several blocks
    other = simulate("jets", 100, seed=4)
    for name, values in small.items():
        np.testing.assert_array_equal(values, large[name][:100])
    assert len(large["Jet_area"]) == 40_000
    assert not np.array_equal(small["Jet_area"], other["Jet_area"])
    assert not np.array_equal(large["Jet_area"][:16_384], large["Jet_area"][16_384 : 2 * 16_384])


def test_impossible_targets_have_no_density() -> None:
    rows = {k: v[:4].astype(np.float64) for k, v in table("jets").items()}
    rows["Jet_ptRatio"][0] = -1.0
    rows["Jet_qgl"][1] = -0.1
    rows["Jet_jetId"][2] = 3
    total = log_density(rows)
    assert (total[:3] == -math.inf).all()
    assert np.isfinite(total[3])
    each = log_densities(rows)
    assert each["Jet_qgl"][1] == -math.inf < each["Jet_ptRatio"][1]


# ------------------------------------------------------------------------------------------- the conditionals


def test_count_is_exact_however_far_from_its_centre() -> None:
    p = conditionals.Count(np.array([500.0]), 1.0, 1, 150)  # nearly all of the density is cut off
    k = np.arange(1, 151.0)
    log_p = p.log_prob(k)
    assert np.isfinite(log_p).all()
    assert np.exp(log_p).sum() == pytest.approx(1)
    assert log_p[-1] - log_p[-2] == pytest.approx(1, abs=1e-9)  # a logistic tail falls by e a unit
    assert (p.draw(np.random.default_rng(0), 100) > 130).all()


def test_saturation_keeps_what_is_beyond() -> None:
    inner = conditionals.Exp(conditionals.Johnson(np.array([0.5]), 0.4, tail=1.3, skew=-0.2))
    p = conditionals.Saturated(inner, 2.0)
    drawn = p.draw(np.random.default_rng(2), 200_000)
    share = math.exp(p.log_prob(np.array([2.0]))[0])
    assert (drawn == 2.0).mean() == pytest.approx(share, abs=4 * math.sqrt(share / 200_000))
    assert p.log_prob(np.array([2.1]))[0] == -math.inf


# --------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("objects", list(CHAINS))
def test_file_round_trip(tmp_path: Path, objects: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "_GROUP", 1)  # more than one row group, of few rows
    path = tmp_path / "objects.parquet"
    write(objects, path, 20_000, seed=7)  # type: ignore[arg-type]
    file = pq.ParquetFile(path)
    assert file.metadata.num_row_groups == 2
    for name, column in simulate(objects, 20_000, seed=7).items():  # type: ignore[arg-type]
        read = file.read([name]).column(0).to_numpy()
        assert read.dtype == column.dtype
        np.testing.assert_array_equal(read, column)
    metadata = {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}
    assert metadata["simulator"] == f"fluvial.apps.collider {objects}"
    assert metadata["version"] == fluvial.__version__
    assert metadata["seed"] == "7"
    assert "invented" in metadata["note"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jets.parquet"
    write("jets", path, 10)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(DataError, match=r"could not write .*jets\.parquet.*No space left"):
        write("jets", path, 20)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------------- the errors


@pytest.mark.parametrize(
    ("objects", "rows", "seed", "message"),
    [
        ("jet", 10, 0, "no simulator of 'jet'; did you mean 'jets'"),
        ("jets", 0, 0, "expected rows to be at least 1; got 0"),
        ("muons", 10, -1, "expected seed to be at least 0"),
        ("muons", 1.5, 0, "expected rows to be a whole number"),
    ],
)
def test_bad_requests(tmp_path: Path, objects: str, rows: int, seed: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        simulate(objects, rows, seed)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        write(objects, tmp_path / "a.parquet", rows, seed)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in \.parquet; got .*jets\.csv"):
        write("jets", tmp_path / "jets.csv", 10)
    with pytest.raises(DataError, match=r"no folder .*nowhere.* create it first"):
        write("jets", tmp_path / "nowhere" / "jets.parquet", 10)


def test_bad_tables() -> None:
    rows = {k: v[:5].astype(np.float64) for k, v in table("jets").items()}
    with pytest.raises(DataError, match="expected a table of simulated jets"):
        log_density({"x": np.zeros(3)})
    with pytest.raises(DataError, match="expected a column 'Jet_qgl'; found none"):
        log_density({k: v for k, v in rows.items() if k != "Jet_qgl"})
    with pytest.raises(DataError, match="of one length"):
        log_density({**rows, "Jet_qgl": np.zeros(4)})
    with pytest.raises(DataError, match="found NaN in row 0"):
        log_density({**rows, "Jet_qgl": np.full(5, math.nan)})
    with pytest.raises(DataError, match="expected numbers in column 'Jet_qgl'"):
        log_density({**rows, "Jet_qgl": np.array(["a"] * 5)})
    with pytest.raises(
        DataError, match=r"'GenJet_pt', row 2: -1 is no value of it \(expected between 0 and inf\)"
    ):
        log_density({**rows, "GenJet_pt": np.array([30, 30, -1, 30, 30.0])})
    with pytest.raises(
        DataError, match=r"'GenJet_hadronFlavour', row 0: 3 is no value of it \(expected one of 0, 4, 5"
    ):
        log_density({**rows, "GenJet_hadronFlavour": np.full(5, 3)})


def test_a_chain_is_a_value() -> None:
    chain = CHAINS["jets"]
    assert isinstance(chain, Chain)
    assert {name for name, _ in chain.steps} == {v.name for v in chain.targets}


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fluvial import cli

    monkeypatch.setattr(
        "sys.argv", ["fluvial", "simulate", "muons", "-n", "20", "-o", str(tmp_path / "m.parquet")]
    )
    monkeypatch.setattr("warnings.showwarning", None)  # put back after the test: the command sets it
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "20 muons in" in capsys.readouterr().out
    assert pq.read_metadata(tmp_path / "m.parquet").num_rows == 20
