"""Extraction of matched pairs from NanoAOD, against loops over the same events, and with every kind of bad file."""

from __future__ import annotations

import math
import os
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
from nanoaod_like import Event, make_events, write_events

from fluvial.apps.collider import extract as extract_module
from fluvial.apps.collider import jets, muons
from fluvial.apps.collider.extract import FileResult, extract
from fluvial.apps.collider.names import JET, MUON, OBJECTS, choose
from fluvial.apps.collider.nanoaod import EventFile, open_events
from fluvial.errors import DataError

EVENTS = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    folder = tmp_path_factory.mktemp("nanoaod")
    events = write_events(folder / "v9.root", make_events(EVENTS, seed=1))
    write_events(folder / "v9-ntuple.root", events, rntuple=True)
    write_events(folder / "v15.root", make_events(EVENTS, seed=2, production="v15"), "v15")
    write_events(folder / "empty.root", [])
    write_events(folder / "no-generator.root", make_events(5), drop=("Gen",))
    return folder, events


def table(path: Path) -> dict[str, np.ndarray]:
    return {name: column.to_numpy() for name, column in zip(*_named(path), strict=True)}


def _named(path: Path) -> tuple[list[str], list]:
    read = pq.read_table(path)
    return read.column_names, read.columns


def distance(a: dict, b: dict) -> tuple[float, float, float]:
    deta = float(np.float32(a["eta"])) - float(np.float32(b["eta"]))
    dphi = float(np.float32(a["phi"])) - float(np.float32(b["phi"]))
    dphi = math.remainder(dphi, 2 * math.pi)
    return math.hypot(deta, dphi), deta, dphi


def jet_pairs(events: list[Event]) -> list[tuple[Event, dict, dict]]:
    """The independent count: a plain loop."""
    return [
        (event, jet, event["GenJet"][jet["genJetIdx"]])
        for event in events
        for jet in event["Jet"]
        if 0 <= jet["genJetIdx"] < len(event["GenJet"])
    ]


def muon_pairs(events: list[Event]) -> list[tuple[Event, dict, dict]]:
    return [
        (event, muon, event["GenPart"][muon["genPartIdx"]])
        for event in events
        for muon in event["Muon"]
        if muon["genPartIdx"] >= 0
    ]


# -------------------------------------------------------------------------------------------------- the pairs


@pytest.mark.parametrize("name", ["v9.root", "v9-ntuple.root"])
def test_jets_against_a_loop(made: tuple[Path, list[Event]], tmp_path: Path, name: str) -> None:
    folder, events = made
    result = extract([folder / name], "jet", tmp_path / "pairs.parquet")
    pairs, rows = jet_pairs(events), table(tmp_path / "pairs.parquet")
    assert result.pairs == len(pairs) == len(rows["Jet_ptRatio"]) > 300
    assert result.files[0].objects == sum(len(e["Jet"]) for e in events) > len(pairs)
    close = {0: 0, 1: 0, 2: 0}
    for i, (event, jet, gen) in enumerate(pairs):
        assert rows["event"][i] == event["event"]
        assert rows["Jet_ptRatio"][i] == pytest.approx(jet["pt"] / gen["pt"], rel=1e-6)
        assert rows["Jet_massRatio"][i] == pytest.approx(jet["mass"] / gen["mass"], rel=1e-6)
        _, deta, dphi = distance(jet, gen)
        assert rows["Jet_etaMinusGen"][i] == pytest.approx(deta, abs=1e-7)
        assert rows["Jet_phiMinusGen"][i] == pytest.approx(dphi, abs=1e-6)
        for quantity in ("eta", "phi", "pt", "mass", "partonFlavour", "hadronFlavour"):
            assert rows[f"GenJet_{quantity}"][i] == pytest.approx(gen[quantity], rel=1e-6)
        for branch in ("area", "btagDeepB", "puId", "qgl", "nConstituents"):
            assert rows[f"Jet_{branch}"][i] == pytest.approx(jet[branch], rel=1e-6)
        near = [
            (*distance(gen, p), p)
            for p in event["GenPart"]
            if abs(p["pdgId"]) == 13 and p["statusFlags"] & 8192
        ]
        near = sorted((n for n in near if n[0] < 0.4), key=lambda n: n[0])
        close[min(len(near), 2)] += 1
        for rank, prefix in enumerate(("ClosestMuon", "SecondClosestMuon")):
            found = [rows[f"{prefix}_{q}"][i] for q in ("dr", "pt", "deta", "dphi")]
            expected = (0.5, 0.0, 0.5, 0.5)
            if rank < len(near):
                dr, deta, dphi, muon = near[rank]
                expected = (dr, muon["pt"], deta, dphi)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert min(close.values()) > 20  # jets with no muon, one, and more: all are tested


@pytest.mark.parametrize("name", ["v9.root", "v9-ntuple.root"])
def test_muons_against_a_loop(made: tuple[Path, list[Event]], tmp_path: Path, name: str) -> None:
    folder, events = made
    result = extract([folder / name], "muon", tmp_path / "pairs.parquet")
    pairs, rows = muon_pairs(events), table(tmp_path / "pairs.parquet")
    assert result.pairs == len(pairs) == len(rows["Muon_ptRatio"]) > 100
    close = {True: 0, False: 0}
    for i, (event, muon, gen) in enumerate(pairs):
        assert rows["GenMuon_charge"][i] == (-1 if gen["pdgId"] == 13 else 1)
        flags = sum(int(rows[f"GenPart_statusFlags{bit}"][i]) << bit for bit in range(15))
        assert flags == gen["statusFlags"] & 0x7FFF
        assert rows["Muon_ptRatio"][i] == pytest.approx(muon["pt"] / gen["pt"], rel=1e-6)
        assert rows["Muon_isGlobal"][i] == muon["isGlobal"]
        assert rows["Muon_sip3d"][i] == pytest.approx(muon["sip3d"], rel=1e-6)
        assert rows["Pileup_nPU"][i] == event["Pileup_nPU"]
        near = sorted(((*distance(gen, j), j) for j in event["GenJet"]), key=lambda n: n[0])
        found = [rows[f"ClosestJet_{q}"][i] for q in ("dr", "deta", "dphi", "pt", "mass")]
        expected = (0.5, 0.5, 0.5, 0.0, 0.0)
        if near and near[0][0] < 0.4:
            dr, deta, dphi, jet = near[0]
            expected = (dr, deta, dphi, jet["pt"], jet["mass"])
        close[expected[0] < 0.4] += 1
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert min(close.values()) > 10


@pytest.mark.parametrize("name", list(OBJECTS))
def test_columns_are_those_of_the_simulator(
    made: tuple[Path, list[Event]], tmp_path: Path, name: str
) -> None:
    """A study reads simulated and extracted tables alike."""
    extract([made[0] / "v9.root"], name, tmp_path / "pairs.parquet")
    rows = table(tmp_path / "pairs.parquet")
    module = {"jet": jets, "muon": muons}[name]
    context = [v.name for v in module.CONTEXT]
    assert list(rows)[3 : 3 + len(context)] == context
    assert {c[0] for c in OBJECTS[name].targets} == {v.name for v in module.TARGETS}
    assert [c[0] for c in OBJECTS[name].targets] == [v.name for v in module.TARGETS]
    for v in module.CONTEXT:
        assert rows[v.name].dtype == (np.int32 if v.kind == "integer" else np.float32) or "Pileup" in v.name
    sentinels = [v for v in module.CONTEXT if v.kind == "mixed"]
    for v in sentinels:
        assert v.allows(rows[v.name]).all(), v.name


def test_pieces_of_a_file_make_the_same_table(
    made: tuple[Path, list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract([made[0] / "v9.root"], "jet", tmp_path / "one.parquet")
    read = EventFile.read
    monkeypatch.setattr(EventFile, "read", lambda self, names: read(self, names, step=7))
    extract([made[0] / "v9.root"], "jet", tmp_path / "many.parquet")
    one, many = table(tmp_path / "one.parquet"), table(tmp_path / "many.parquet")
    for name, values in one.items():
        np.testing.assert_array_equal(values, many[name])


# -------------------------------------------------------------------------------------------- the productions


def test_successors_stand_in(made: tuple[Path, list[Event]], tmp_path: Path) -> None:
    result = extract([made[0] / "v15.root"], "jet", tmp_path / "pairs.parquet")
    (file,) = result.files
    assert {"Jet_btagPNetB", "Jet_btagUParTAK4B", "Jet_btagPNetQvG", "Jet_PNetRegPtRawCorr"} <= set(
        file.columns
    )
    assert file.missing == ("Jet_btagCMVA", "Jet_jetId")
    assert "Jet_puIdDisc" in table(tmp_path / "pairs.parquet")


@pytest.mark.parametrize("wanted", [JET, MUON], ids=["jet", "muon"])
def test_no_branch_stands_for_two_targets(wanted) -> None:
    names = [name for alternatives in wanted.targets for name in alternatives]
    assert len(names) == len(set(names))
    found, missing = choose(wanted, set())
    assert not found
    assert len(missing) == len(wanted.targets)


def test_relations_invert() -> None:
    rng = np.random.default_rng(0)
    generated, target = rng.uniform(-3, 3, 1000), rng.uniform(-3, 3, 1000)
    for relation in (*JET.relations, *MUON.relations):
        back = relation.of(relation.inverse(target, generated), generated)
        np.testing.assert_allclose(back, target, rtol=1e-9)


# -------------------------------------------------------------------------------------- many files, bad files


def test_many_files_and_resuming(made: tuple[Path, list[Event]], tmp_path: Path) -> None:
    files = []
    for i in range(4):
        write_events(tmp_path / f"{i}.root", make_events(40, seed=10 + i))
        files.append(tmp_path / f"{i}.root")
    expected = sum(len(jet_pairs(make_events(40, seed=10 + i))) for i in range(4))
    (tmp_path / "2.root").write_bytes((tmp_path / "2.root").read_bytes()[:3000])
    seen: list[FileResult] = []
    result = extract(files, "jet", tmp_path / "pairs.parquet", on_file=seen.append)
    assert [f.status for f in result.files] == ["read", "read", "failed", "read"]
    assert tuple(seen) == result.files
    assert "2.root: could not be read" in result.failed[0].problem
    assert len(table(tmp_path / "pairs.parquet")["event"]) == result.pairs < expected
    # The file is mended: the same command reads it, and it alone.
    write_events(tmp_path / "2.root", make_events(40, seed=12))
    with pytest.raises(DataError, match="exists; choose another output, or --overwrite"):
        extract(files, "jet", tmp_path / "pairs.parquet")
    result = extract(files, "jet", tmp_path / "pairs.parquet", overwrite=True)
    assert [f.status for f in result.files] == ["kept", "kept", "read", "kept"]
    assert result.pairs == len(table(tmp_path / "pairs.parquet")["event"]) == expected
    assert not (tmp_path / "pairs.parquet.parts").exists()
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_extraction_takes_up_where_it_stopped(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.root" for i in range(3)]
    for i, file in enumerate(files):
        write_events(file, make_events(20, seed=i))

    def stop(result: FileResult) -> None:
        if result.path.endswith("1.root"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(files, "jet", tmp_path / "pairs.parquet", on_file=stop)
    assert not (tmp_path / "pairs.parquet").exists()
    os.utime(files[0], (1, 1))  # changed since: read again
    result = extract(files, "jet", tmp_path / "pairs.parquet")
    assert [f.status for f in result.files] == ["read", "kept", "read"]
    whole = extract(files, "jet", tmp_path / "again.parquet")
    assert whole.pairs == result.pairs
    np.testing.assert_array_equal(
        table(tmp_path / "pairs.parquet")["Jet_ptRatio"], table(tmp_path / "again.parquet")["Jet_ptRatio"]
    )


def test_another_object_does_not_take_up_the_parts(tmp_path: Path) -> None:
    write_events(tmp_path / "a.root", make_events(20))
    (tmp_path / "bad.root").write_bytes(b"root")
    files = [tmp_path / "a.root", tmp_path / "bad.root"]
    extract(files, "jet", tmp_path / "pairs.parquet")
    result = extract(files, "muon", tmp_path / "pairs.parquet", overwrite=True)
    assert [f.status for f in result.files] == ["read", "failed"]


def test_empty_tree(made: tuple[Path, list[Event]], tmp_path: Path) -> None:
    result = extract([made[0] / "empty.root", made[0] / "v9.root"], "jet", tmp_path / "pairs.parquet")
    assert [f.pairs for f in result.files] == [0, len(jet_pairs(made[1]))]
    assert [f.events for f in result.files] == [0, EVENTS]


def test_productions_do_not_mix(made: tuple[Path, list[Event]], tmp_path: Path) -> None:
    result = extract([made[0] / "v9.root", made[0] / "v15.root"], "jet", tmp_path / "pairs.parquet")
    assert [f.status for f in result.files] == ["read", "failed"]
    assert "differ in Jet_PNetRegPtRawCorr" in result.failed[0].problem


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-generator.root", r"no branch GenJet_eta, .*the generator level is needed: is this simulation\?"),
        ("nowhere.root", "nowhere.root: no such file"),
        ("text.root", "text.root: could not be read"),
        ("other.root", r"other.root: expected Events, a tree or RNTuple of events; found Runs"),
        ("lengths.root", r"lengths.root, event 3: expected as many values of \w+ as of \w+, \d; found \d"),
    ],
)
def test_a_file_that_cannot_be_used(
    made: tuple[Path, list[Event]], tmp_path: Path, name: str, message: str
) -> None:
    import uproot

    (tmp_path / "text.root").write_text("no ROOT file at all")
    with uproot.recreate(tmp_path / "other.root") as file:
        file.mktree("Runs", {"run": "uint32"})
    events = make_events(6)
    counts = np.array([len(e["Jet"]) for e in events])
    counts[3] += 1
    write_events(
        tmp_path / "lengths.root", events, Jet_muEF=ak.unflatten(np.zeros(counts.sum(), np.float32), counts)
    )
    path = made[0] / name if (made[0] / name).exists() else tmp_path / name
    with pytest.raises(DataError, match=f"no file could be used:\n.*{message}"):
        extract([path], "jet", tmp_path / "pairs.parquet")
    assert not list(tmp_path.glob("pairs*"))


def test_pairs_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    events = make_events(50, seed=4)
    pairs = jet_pairs(events)
    pairs[0][2]["mass"] = math.nan
    pairs[-1][1]["area"] = math.nan
    write_events(tmp_path / "a.root", events)
    (file,) = extract([tmp_path / "a.root"], "jet", tmp_path / "pairs.parquet").files
    assert (file.pairs, file.unusable) == (len(pairs) - 2, 2)
    assert np.isfinite(table(tmp_path / "pairs.parquet")["Jet_massRatio"]).all()


def test_objects_in_one_place_and_at_the_edge_of_nearness_stay_inside_their_support(tmp_path: Path) -> None:
    """ΔR is 0.4 in float32 for some pairs that are nearer in float64: no density of jets could take it."""
    eta = np.random.default_rng(0).uniform(0.1, 0.39, 20_000).astype(np.float32)
    phi = np.sqrt(0.16 - eta.astype(np.float64) ** 2).astype(np.float32)
    dr = np.hypot(eta.astype(np.float64), phi.astype(np.float64))
    edge = int(np.flatnonzero((dr < 0.4) & (dr.astype(np.float32) == np.float32(0.4)))[0])
    events = [e for e in make_events(60, seed=5) if jet_pairs([e])][:2]
    for event, at in zip(events, ((float(eta[edge]), float(phi[edge])), (0.0, 0.0)), strict=True):
        _, _, jet = jet_pairs([event])[0]
        jet.update(eta=0.0, phi=0.0)
        event["GenPart"][0].update(eta=at[0], phi=at[1], pdgId=13, statusFlags=1 << 13)
        for other in event["GenPart"][1:]:
            other["pdgId"] = 22
    write_events(tmp_path / "a.root", events)
    extract([tmp_path / "a.root"], "jet", tmp_path / "pairs.parquet")
    made = table(tmp_path / "pairs.parquet")
    here = made["GenJet_eta"] == 0
    assert made["ClosestMuon_dr"][here].tolist() == [np.float32(0.5), np.float32(1e-6)]


def test_massless_jets_have_a_mass_that_is_positive(tmp_path: Path) -> None:
    events = make_events(50, seed=4)
    pairs = jet_pairs(events)
    pairs[0][2]["mass"], pairs[-1][2]["mass"] = 0.0, -2.6e-7
    write_events(tmp_path / "a.root", events)
    extract([tmp_path / "a.root"], "jet", tmp_path / "pairs.parquet")
    found = table(tmp_path / "pairs.parquet")
    assert (found["GenJet_mass"] == np.float32(1e-4)).sum() == 2
    assert (found["Jet_massRatio"] > 0).all()


def test_bad_requests(made: tuple[Path, list[Event]], tmp_path: Path) -> None:
    file = made[0] / "v9.root"
    for files, name, out, message in [
        ([], "jet", "a.parquet", "expected NanoAOD files; got none"),
        ([file, file], "jet", "a.parquet", "given twice: .*v9.root"),
        ([file], "jets", "a.parquet", "no object 'jets'; did you mean 'jet'"),
        ([file], "jet", "a.root", r"ends in \.parquet"),
        ([file], "jet", "none/a.parquet", "no folder .*none"),
    ]:
        with pytest.raises(DataError, match=message):
            extract(files, name, tmp_path / out)
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_this_library_is_not_blamed_on_the_file(
    made: tuple[Path, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), open_events(made[0] / "v9.root"):
        1 / 0  # noqa: B018


def test_parts_of_another_layout_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_events(tmp_path / "a.root", make_events(5))
    (tmp_path / "bad.root").write_bytes(b"")
    files = [tmp_path / "a.root", tmp_path / "bad.root"]
    extract(files, "jet", tmp_path / "pairs.parquet")
    monkeypatch.setattr(extract_module, "LAYOUT", 99)
    assert extract(files, "jet", tmp_path / "pairs.parquet", overwrite=True).files[0].status == "read"
    (part,) = (tmp_path / "pairs.parquet.parts").glob("a-*.parquet")
    part.write_bytes(b"damaged")
    assert extract(files, "jet", tmp_path / "pairs.parquet", overwrite=True).files[0].status == "read"


def test_command_line(
    made: tuple[Path, list[Event]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fluvial import cli

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["fluvial", "collider", *argv])
        monkeypatch.setattr("warnings.showwarning", None)  # put back after the test: the command sets it
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code, *capsys.readouterr())  # type: ignore[return-value]

    out = str(tmp_path / "pairs.parquet")
    code, text, progress = run("extract", str(made[0] / "v9.root"), "--object", "muon", "-o", out)
    assert not code
    assert text == f"{len(muon_pairs(made[1])):,} pairs of 1 files in {out}\n"
    assert "1/1" in progress
    code, _, message = run("extract", str(made[0] / "v9.root"), "-o", out)
    assert code == 2
    assert message == f"fluvial: {out} exists; choose another output, or --overwrite\n"
    code, text, _ = run("extract", str(made[0] / "v9.root"), "nowhere.root", "-o", out, "--overwrite")
    assert code == 1
    assert "1 of 2 files could not be used" in text


@pytest.mark.skipif(
    "FLUVIAL_NANOAOD" not in os.environ, reason="FLUVIAL_NANOAOD names no folder of NanoAOD files"
)
def test_real_files_against_an_independent_count(tmp_path: Path) -> None:
    import uproot

    for path in sorted(Path(os.environ["FLUVIAL_NANOAOD"]).glob("*.root")):
        with uproot.open(path) as file:
            arrays = file["Events"].arrays(["Jet_genJetIdx", "GenJet_pt", "Muon_genPartIdx", "GenPart_pdgId"])
        n_jets = n_muons = 0
        for event in arrays.tolist():
            n_jets += sum(0 <= i < len(event["GenJet_pt"]) for i in event["Jet_genJetIdx"])
            n_muons += sum(i >= 0 and abs(event["GenPart_pdgId"][i]) == 13 for i in event["Muon_genPartIdx"])
        for name, expected in (("jet", n_jets), ("muon", n_muons)):
            (result,) = extract([path], name, tmp_path / f"{path.stem}-{name}.parquet").files
            assert result.pairs + result.unusable == expected
