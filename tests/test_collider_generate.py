"""Events drawn for a generator level and written as NanoAOD: the right objects, in the right events, once a fold."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import awkward as ak
import nanoaod_like
import numpy as np
import pytest
import uproot
from nanoaod_like import Event, make_events, write_events

import fluvial
from fluvial.apps.collider import generate as generate_module
from fluvial.apps.collider.extract import extract
from fluvial.apps.collider.generate import context_names, generate
from fluvial.apps.collider.names import JET, MUON
from fluvial.density import Density
from fluvial.errors import DataError

STUDY = """
[data]
source = "{name}.parquet"
targets = {targets}
context = {context}
[columns.{ratio}]
support = "positive"
[flow]
architecture = "diagonal-gaussian"
[training]
epochs = 1
batch_size = 256
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event], dict[str, Density]]:
    folder = tmp_path_factory.mktemp("generate")
    events = write_events(folder / "gen.root", make_events(400, seed=1))
    densities = {}
    for name, prefix, generated in (("jet", "Jet", "GenJet"), ("muon", "Muon", "GenMuon")):
        extract([folder / "gen.root"], name, folder / f"{name}.parquet")
        quantities = ["ptRatio", "etaMinusGen", "phiMinusGen"] + (["area"] if name == "jet" else ["dxy"])
        targets = [f"{prefix}_{q}" for q in quantities]
        context = [f"{generated}_{q}" for q in ("pt", "eta")]
        text = STUDY.format(name=name, targets=targets, context=context, ratio=targets[0]).replace("'", '"')
        (folder / f"{name}.toml").write_text(text)
        densities[f"{name}s"] = fluvial.fit(folder / f"{name}.toml", runs=folder / "runs", check=False)
    return folder, events, densities


def read(path: Path) -> Any:
    with uproot.open(path) as file:
        return file["Events"].arrays()


def test_every_generator_object_gives_one(
    made: tuple[Path, list[Event], dict[str, Density]], tmp_path: Path
) -> None:
    folder, events, densities = made
    (result,) = generate([folder / "gen.root"], tmp_path / "out.root", **densities)
    out = read(tmp_path / "out.root")
    muons = [
        [i for i, p in enumerate(e["GenPart"]) if abs(p["pdgId"]) == 13 and p["status"] == 1] for e in events
    ]
    assert len(out) == result.events == len(events)  # those with nothing in them too
    assert ak.num(out.Jet_pt).tolist() == [len(e["GenJet"]) for e in events]
    assert ak.num(out.Muon_pt).tolist() == [len(m) for m in muons]
    assert result.objects == ak.sum(ak.num(out.Jet_pt)) + ak.sum(ak.num(out.Muon_pt))
    assert [sorted(i) for i in out.Muon_genPartIdx.tolist()] == muons
    assert [sorted(i) for i in out.Jet_genJetIdx.tolist()] == [list(range(len(e["GenJet"]))) for e in events]
    assert out.event.tolist() == [e["event"] for e in events]
    np.testing.assert_allclose(out.genWeight, [e["genWeight"] for e in events])
    assert ak.num(out.GenJet_pt).tolist() == [len(e["GenJet"]) for e in events]
    np.testing.assert_allclose(
        ak.flatten(out.GenJet_pt), [j["pt"] for e in events for j in e["GenJet"]], rtol=1e-6
    )
    assert ak.sum(ak.num(out.Jet_pt) == 0) > 10
    assert out.Jet_genJetIdx.type.content.content.primitive == "int32"
    # Relations are undone, each with its own partner: a jet is near the jet it comes from, however events are sorted.
    for name, index, partner in (
        ("Jet", out.Jet_genJetIdx, "GenJet"),
        ("Muon", out.Muon_genPartIdx, "GenPart"),
    ):
        ratio = out[f"{name}_pt"] / out[f"{partner}_pt"][index]
        assert 0.9 < np.median(ak.to_numpy(ak.flatten(ratio))) < 1.1
        turned = np.abs(ak.to_numpy(ak.flatten(out[f"{name}_phi"] - out[f"{partner}_phi"][index])))
        assert (np.minimum(turned, 2 * np.pi - turned) < 0.3).mean() > 0.98
        assert ak.all(np.abs(out[f"{name}_phi"]) <= np.float32(np.pi))
        assert ak.all(out[f"{name}_pt"][:, 1:] <= out[f"{name}_pt"][:, :-1])
    assert ak.all(out.Jet_hadronFlavour == out.GenJet_hadronFlavour[out.Jet_genJetIdx])
    assert ak.all(out.Muon_pdgId == out.GenPart_pdgId[out.Muon_genPartIdx])
    assert ak.all(out.Muon_charge == -np.sign(out.Muon_pdgId))
    assert not list(tmp_path.glob(".*"))


def test_branches_are_laid_out_as_root_reads_them(
    made: tuple[Path, list[Event], dict[str, Density]], tmp_path: Path
) -> None:
    """A counter for each collection, and flat leaf lists that name it; run sums are carried over."""
    folder, _, densities = made
    sums = {
        "run": np.array([1], dtype=np.uint32),
        "genEventSumw": np.array([12.5]),
        "genEventCount": np.array([400]),
    }
    (tmp_path / "gen.root").write_bytes((folder / "gen.root").read_bytes())
    with uproot.update(tmp_path / "gen.root") as file:
        file["Runs"] = sums
    generate([tmp_path / "gen.root"], tmp_path / "out.root", **densities)
    with uproot.open(tmp_path / "out.root") as file:
        tree = file["Events"]
        for collection, name in (("Jet", "Jet_pt"), ("Muon", "Muon_charge"), ("GenPart", "GenPart_pdgId")):
            (leaf,) = tree[name].member("fLeaves")
            assert leaf.member("fLeafCount").member("fName") == f"n{collection}"
            counts = tree[f"n{collection}"].array(library="np")
            assert counts.tolist() == ak.num(tree[name].array()).tolist()
        assert tree["Jet_pt"].typename == "float[]"
        assert tree["event"].typename == "uint64_t"
        assert {k: file["Runs"][k].array(library="np").tolist() for k in sums} == {
            k: v.tolist() for k, v in sums.items()
        }


def test_coffea_opens_it(made: tuple[Path, list[Event], dict[str, Density]], tmp_path: Path) -> None:
    nanoevents = pytest.importorskip("coffea.nanoevents", reason="coffea is not installed")
    folder, events, densities = made
    generate([folder / "gen.root"], tmp_path / "out.root", **densities)
    source = {str(tmp_path / "out.root"): "Events"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of coffea's own
        made_of = nanoevents.NanoEventsFactory.from_root(
            source, schemaclass=nanoevents.NanoAODSchema, mode="eager"
        )
        found = made_of.events()
    assert len(found) == len(events)
    assert ak.all(found.Jet.matched_gen.pt == found.GenJet[found.Jet.genJetIdx].pt)


def test_one_bad_file_among_good_ones(
    made: tuple[Path, list[Event], dict[str, Density]], tmp_path: Path
) -> None:
    """A file whose branches disagree, one of no simulation and one cut short are told; the rest is done."""
    from typer.testing import CliRunner

    from fluvial.apps.collider.commands import app

    _, _, densities = made
    write_events(tmp_path / "good.root", make_events(10, seed=1))
    write_events(tmp_path / "data.root", make_events(10, seed=2), drop=("Gen",))
    events = make_events(10, seed=3)
    short = ak.unflatten(np.ones(10, dtype=np.float32), np.ones(10, dtype=np.int64))
    with uproot.recreate(tmp_path / "lengths.root") as file:
        file.mkrntuple("Events", nanoaod_like.columns(events) | {"GenJet_eta": short})
    write_events(tmp_path / "short.root", make_events(200, seed=4))
    whole = (tmp_path / "short.root").read_bytes()
    (tmp_path / "short.root").write_bytes(whole[: len(whole) // 2])
    files = [str(tmp_path / f"{name}.root") for name in ("data", "lengths", "short", "good")]
    run = CliRunner().invoke(
        app, ["generate", *files, "--jets", str(densities["jets"].folder), "-o", str(tmp_path / "out")]
    )
    assert run.exit_code == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.root"]
    for said in (
        "1/4  failed: ",
        "the generator level is needed",
        "expected as many values of GenJet_",
        "3/4  failed: ",
        "could not be read",
        "4/4  ",
    ):
        assert said in run.stderr
    assert "3 of 4 files could not be used (see above)." in run.stdout


def test_what_is_written_can_be_extracted(
    made: tuple[Path, list[Event], dict[str, Density]], tmp_path: Path
) -> None:
    """NanoAOD out is NanoAOD in: pairs of the output are the draws."""
    folder, _, densities = made
    generate([folder / "gen.root"], tmp_path / "out.root", jets=densities["jets"])
    with uproot.open(tmp_path / "out.root") as file, uproot.recreate(tmp_path / "again.root") as again:
        arrays = {k: file["Events"][k].array() for k in file["Events"].keys() if not k.startswith("n")}  # noqa: SIM118
        arrays["Jet_mass"] = arrays["Jet_pt"] * 0.1  # no density of the mass here
        again.mktree("Events", {k: ak.type(v).content for k, v in arrays.items()})
        again["Events"].extend(arrays)
    out = read(tmp_path / "out.root")
    result = extract([tmp_path / "again.root"], "jet", tmp_path / "pairs.parquet")
    assert result.pairs == ak.sum(ak.num(out.Jet_pt))


def test_oversampling(made: tuple[Path, list[Event], dict[str, Density]], tmp_path: Path) -> None:
    folder, events, densities = made
    generate([folder / "gen.root"], tmp_path / "out.root", **densities, oversample=3)
    out = read(tmp_path / "out.root")
    assert len(out) == 3 * len(events)
    np.testing.assert_array_equal(out.event, np.repeat([e["event"] for e in events], 3))
    np.testing.assert_array_equal(out.fold, np.tile([0, 1, 2], len(events)))
    assert set(out.folds.tolist()) == {3}
    np.testing.assert_array_equal(out.genEventIndex, np.repeat(np.arange(len(events)), 3))
    assert ak.sum(out.genWeight) == pytest.approx(sum(e["genWeight"] for e in events), abs=1e-3)
    np.testing.assert_allclose(np.abs(out.genWeight), 1 / 3, rtol=1e-6)
    first, second = out[out.fold == 0], out[out.fold == 1]
    assert ak.all(first.GenJet_pt == second.GenJet_pt)
    assert ak.all(ak.num(first.Jet_pt) == ak.num(second.Jet_pt))
    assert not ak.any(ak.sort(first.Jet_area) == ak.sort(second.Jet_area))


def test_an_event_has_its_objects_in_whatever_company(
    made: tuple[Path, list[Event], dict[str, Density]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same objects, bit for bit: read in other pieces, in reverse order, in a file of some of the events."""
    folder, events, densities = made
    write_events(tmp_path / "some.root", events[::-3])
    outs = []
    for name, source, piece, read_events, seed, folds in (
        ("a", folder / "gen.root", 128, 320, 0, 1),
        ("b", folder / "gen.root", 77, 192, 0, 1),
        ("c", tmp_path / "some.root", 1000, 1000, 0, 2),
        ("d", folder / "gen.root", 128, 1024, 1, 1),
    ):
        monkeypatch.setattr(generate_module, "_PIECE", piece)
        monkeypatch.setattr(generate_module, "_READ", read_events)
        generate([source], tmp_path / f"{name}.root", **densities, seed=seed, oversample=folds)
        outs.append(read(tmp_path / f"{name}.root"))
    a, b, c, d = outs
    drawn = [f for f in a.fields if f.startswith(("Jet_", "Muon_"))]
    assert "Jet_pt" in drawn
    for name in drawn:
        assert ak.all(a[name] == b[name])
        assert ak.all(a[name][::-3] == c[name][c.fold == 0])
    for other in (c[c.fold == 1], d[::-3]):
        assert not ak.any(a.Jet_area[::-3] == other.Jet_area)
    assert len(np.unique(ak.to_numpy(ak.flatten(a.Jet_area)))) == ak.sum(ak.num(a.Jet_area))


def test_many_files_and_resuming(made: tuple[Path, list[Event], dict[str, Density]], tmp_path: Path) -> None:
    _, _, densities = made
    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.root")
        write_events(files[-1], make_events(20, seed=i), rntuple=i == 0)
    write_events(tmp_path / "empty.root", [])
    (tmp_path / "2.root").write_bytes((tmp_path / "2.root").read_bytes()[:2000])
    files.append(tmp_path / "empty.root")
    results = generate(files, tmp_path / "out", **densities)
    assert [r.status for r in results] == ["written", "written", "failed", "written"]
    assert "2.root: could not be read" in results[2].problem
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.root", "1.root", "empty.root"]
    with uproot.open(tmp_path / "out" / "empty.root") as file:
        assert file["Events"].num_entries == 0
    write_events(tmp_path / "2.root", make_events(20, seed=2))
    results = generate(files, tmp_path / "out", **densities)
    assert [r.status for r in results] == ["kept", "kept", "written", "kept"]
    # What another request made, or something else, is neither kept nor lost.
    (tmp_path / "out" / "1.root").write_text("mine")
    results = generate(files, tmp_path / "out", jets=densities["jets"], seed=1)
    assert [r.status for r in results] == ["failed"] * 4
    assert "exists and was made with another seed, densities" in results[0].problem
    assert "exists and was not made by this command" in results[1].problem
    assert (tmp_path / "out" / "1.root").read_text() == "mine"
    results = generate(files, tmp_path / "out", jets=densities["jets"], seed=1, overwrite=True)
    assert [r.status for r in results] == ["written"] * 4


def test_contexts_beyond_the_training_range_are_counted(
    made: tuple[Path, list[Event], dict[str, Density]], tmp_path: Path
) -> None:
    _, _, densities = made
    events = make_events(50, seed=8)
    hard = [jet for event in events for jet in event["GenJet"]][::10]
    for jet in hard:
        jet["pt"] = 5000.0
    write_events(tmp_path / "gen.root", events)
    (result,) = generate([tmp_path / "gen.root"], tmp_path / "a.root", jets=densities["jets"])
    assert result.outside["GenJet_pt"] == len(hard) > 5
    beyond_eta = result.outside.get("GenJet_eta", 0)
    low, high = densities["jets"].context_range["GenJet_eta"]
    assert beyond_eta == sum(not low <= np.float32(j["eta"]) <= high for e in events for j in e["GenJet"])
    write_events(tmp_path / "gen.root", [])
    (result,) = generate([tmp_path / "gen.root"], tmp_path / "b.root", jets=densities["jets"])
    assert result.outside == {}


def test_context_names_are_those_of_extraction() -> None:
    assert len(context_names(JET)) == 14
    assert len(context_names(MUON)) == 30


def test_bad_requests(made: tuple[Path, list[Event], dict[str, Density]], tmp_path: Path) -> None:
    folder, _, densities = made
    gen, out = folder / "gen.root", tmp_path / "out.root"
    (tmp_path / "there.root").write_text("")
    write_events(tmp_path / "data.root", make_events(3), drop=("Gen",))
    jets, muons = densities["jets"], densities["muons"]
    cases: list[tuple[list[Path], Path, dict[str, Any], str]] = [
        ([], out, {"jets": jets}, "expected NanoAOD files; got none"),
        ([gen], out, {}, "expected a density of jets, of muons, or both; got none"),
        ([gen], out, {"jets": muons}, "context column 'GenMuon_pt' of the jet density is none"),
        ([gen], out, {"jets": jets, "oversample": 0}, "oversample to be at least 1"),
        ([gen], tmp_path / "out.parquet", {"jets": jets}, r"ends in \.root"),
        ([gen], tmp_path / "none" / "out.root", {"jets": jets}, "no folder"),
        ([gen], tmp_path / "there.root", {"jets": jets}, "exists; choose another output, or --overwrite"),
        ([gen], gen, {"jets": jets, "overwrite": True}, "written over itself"),
        ([gen, tmp_path / "gen.root"], tmp_path / "o", {"jets": jets}, "different names"),
        ([tmp_path / "data.root"], out, {"jets": jets}, "the generator level is needed"),
        ([tmp_path / "nowhere.root"], out, {"jets": jets}, "no such file"),
    ]
    for files, target, options, message in cases:
        with pytest.raises(DataError, match=message):
            generate(files, target, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.root", "there.root"]


def test_command_line(
    made: tuple[Path, list[Event], dict[str, Density]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fluvial import cli

    folder, events, densities = made
    argv = [
        "generate",
        str(folder / "gen.root"),
        "--jets",
        str(densities["jets"].folder),
        "-o",
        str(tmp_path / "o.root"),
    ]
    monkeypatch.setattr("sys.argv", ["fluvial", "collider", *argv])
    monkeypatch.setattr("warnings.showwarning", None)  # put back after the test: the command sets it
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    out, err = capsys.readouterr()
    assert f"{sum(len(e['GenJet']) for e in events):,} objects, " in out
    assert "drawn" in err
