"""From a small density of made-up spectra: catalogue, flags, figures, comparison."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import fluvial
from fluvial.apps.stars.attribution import attribute
from fluvial.apps.stars.catalogue import Flag, catalogue
from fluvial.apps.stars.evaluate import evaluate
from fluvial.apps.stars.figures import compare, figures, information, load_run
from fluvial.cli import app
from fluvial.errors import DataError, RunError
from fluvial.workflow.predictions import prediction_arrays, prediction_section

PIXELS = 96
GRID = np.linspace(6520.0, 6600.0, PIXELS)


def spectra(rng, n):
    """Two lines, near 6540 and 6580 Å: the first answers to a, the second to b; and noise."""
    a, b = rng.normal(size=n), rng.normal(size=n)
    lines = [np.exp(-0.5 * ((GRID - centre) / 3) ** 2) for centre in (6540.0, 6580.0)]
    depth = np.stack([0.4 + 0.1 * a, 0.3 + 0.08 * b])
    flux = 1 - depth[0][:, None] * lines[0] - depth[1][:, None] * lines[1]
    flux += 0.01 * rng.normal(size=flux.shape)
    return (
        flux.astype(np.float32),
        5500 + 500 * (a + 0.1 * rng.normal(size=n)),
        4 + 0.5 * (b + 0.2 * rng.normal(size=n)),
    )


def write(folder, flux, t_eff, log_g):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_grid").mkdir(exist_ok=True)
    np.save(folder / "spectra.npy", flux)
    np.save(folder / "t_eff.npy", t_eff)
    np.save(folder / "log_g.npy", log_g)
    np.save(folder / "SNR.npy", np.full(len(flux), 100.0))
    np.save(folder / "_grid" / "wavelength.npy", GRID)


STUDY = """
[data]
source = "data"
targets = ["t_eff", "log_g"]
context = ["spectra"]
seed = 2
[columns.t_eff]
unit = "K"
[columns.spectra]
transform = "standardise-pixels"
missing = "{missing}"
[encoder]
architecture = "spectrum"
features = 8
dropout = 0.0
[flow]
architecture = "{head}"
width = 24
depth = 1
[training]
epochs = 25
batch_size = 64
learning_rate = 3e-3
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stars")
    write(folder / "data", *spectra(np.random.default_rng(0), 900))
    for name, head, missing in (("plain", "full-gaussian", "error"), ("masked", "diagonal-gaussian", "mask")):
        study = folder / f"{name}.toml"
        study.write_text(STUDY.format(head=head, missing=missing))
        fluvial.fit(study, runs=folder / "runs", name=name, check=False)
    return folder / "runs"


@pytest.fixture
def stars(tmp_path):
    """Twelve stars, most of them with something wrong."""
    flux, t_eff, log_g = spectra(np.random.default_rng(5), 12)
    flux[1, 3:5] = np.nan
    flux[2] = np.nan
    flux[3] = 1.0
    flux[4, :10] = -0.3
    flux[5] += 3.0
    flux[6, :20] = np.nan
    write(tmp_path / "new", flux, t_eff, log_g)
    snr = np.full(12, 80.0)
    snr[7], snr[8] = 0.0, np.nan
    np.save(tmp_path / "new" / "SNR.npy", snr)
    return tmp_path / "new"


def flags_of(table):
    return [Flag(f) for f in table["flags"].to_pylist()]


def test_catalogue_says_what_is_wrong(runs, stars, tmp_path):
    out = tmp_path / "cat.parquet"
    result = CliRunner().invoke(
        app,
        ["stars", "catalogue", str(runs / "plain"), str(stars), "-o", str(out), "-n", "200", "-k", "t_eff"],
    )
    assert result.exit_code == 0, result.output
    assert "12 stars in" in result.output
    table = pq.read_table(out)
    flags = flags_of(table)
    mean = np.array(table["t_eff_mean"])
    assert flags[1] == Flag.MISSING_PIXELS  # two pixels of 96: interpolated
    assert flags[2] == Flag.MISSING_PIXELS | Flag.NO_SUMMARY
    assert flags[3] == Flag.NO_SUMMARY  # constant flux
    assert Flag.NEGATIVE_FLUX in flags[4]
    assert Flag.NOVEL in flags[5]
    assert flags[6] == Flag.MISSING_PIXELS | Flag.NO_SUMMARY  # too many, for a density without a mask
    assert flags[7] == flags[8] == Flag.NO_SIGNAL
    assert flags[0] == flags[9] == flags[10] == Flag(0)
    assert np.flatnonzero(np.isnan(mean)).tolist() == [2, 3, 6]
    good = [0, 1, 9, 10, 11]
    assert np.abs(mean - np.array(table["t_eff"]))[good].max() < 350
    assert table.schema.field("t_eff_std").metadata == {b"unit": b"K"}
    assert b"16 novel" in table.schema.metadata[b"flags"]
    assert np.array(table["row"]).tolist() == list(range(12))


def test_a_mask_is_taken_as_unknown(runs, stars, tmp_path):
    catalogue(fluvial.load(runs / "masked"), stars, tmp_path / "cat.parquet", draws=200)
    flags = flags_of(pq.read_table(tmp_path / "cat.parquet"))
    assert flags[6] & ~Flag.EDGE == Flag.MISSING_PIXELS
    assert Flag.NO_SUMMARY in flags[2]


def test_numbers_are_those_of_the_draws_whatever_the_chunks(runs, stars, tmp_path, monkeypatch):
    density = fluvial.load(runs / "plain")
    catalogue(density, stars, tmp_path / "a.parquet", draws=400, seed=3, joint=True)
    table = pq.read_table(tmp_path / "a.parquet")
    flux = np.load(stars / "spectra.npy")
    p = density.given(spectra=flux[9])
    z = p.sample(20_000, seed=1)
    for name in ("t_eff", "log_g"):
        std = table[f"{name}_std"][9].as_py()
        assert abs(table[f"{name}_mean"][9].as_py() - z[name].mean()) < 0.25 * std
        assert std == pytest.approx(z[name].std(), rel=0.12)
        assert (
            table[f"{name}_q16"][9].as_py()
            < table[f"{name}_q50"][9].as_py()
            < table[f"{name}_q84"][9].as_py()
        )
        assert table[f"{name}_lo95"][9].as_py() < table[f"{name}_lo68"][9].as_py()
    assert table["log_p95"][9].as_py() < table["log_p68"][9].as_py()
    monkeypatch.setattr("fluvial.apps.stars.catalogue.CHUNK", 5)
    catalogue(density, stars, tmp_path / "b.parquet", draws=400, seed=3, joint=True)
    again = pq.read_table(tmp_path / "b.parquet")
    assert again.num_rows == 12
    np.testing.assert_array_equal(again["flags"], table["flags"])
    mean, other = np.array(table["t_eff_mean"]), np.array(again["t_eff_mean"])
    assert (
        np.nanmax(np.abs(mean - other) / np.array(table["t_eff_std"])) < 0.4
    )  # other draws, the same posterior


def test_fits_and_libraries(runs, stars, tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    density = fluvial.load(runs / "plain")
    np.savez(
        tmp_path / "library.npz",
        flux=np.load(stars / "spectra.npy"),
        wavelength=GRID,
        name=np.array([f"HD{i}" for i in range(12)]),
    )
    catalogue(density, tmp_path / "library.npz", tmp_path / "cat.fits", draws=100)
    with fits.open(tmp_path / "cat.fits") as file:
        data = file["STARS"].data
        assert list(data["name"][:2]) == ["HD0", "HD1"]
        assert file["STARS"].columns["t_eff_mean"].unit == "K"
        assert np.isnan(data["t_eff_mean"][2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("grid", r"has 90 pixels; the density was fitted to 96. Resample .* fluvial stars prepare"),
        ("column", "missing: spectra|named flux or spectra"),
        ("suffix", r"ends in \.parquet or \.fits"),
        ("folder", "no folder"),
        ("keep", "colour"),
    ],
)
def test_what_cannot_be_catalogued_is_said(runs, stars, tmp_path, change, words):
    out, keep = tmp_path / "cat.parquet", []
    if change == "grid":
        np.save(stars / "spectra.npy", np.load(stars / "spectra.npy")[:, :90])
    if change == "column":
        (stars / "spectra.npy").rename(stars / "counts.npy")
    if change == "suffix":
        out = tmp_path / "cat.csv"
    if change == "folder":
        out = tmp_path / "none" / "cat.parquet"
    if change == "keep":
        keep = ["colour"]
    with pytest.raises(DataError, match=words):
        catalogue(fluvial.load(runs / "plain"), stars, out, draws=100, keep=keep)
    assert not out.exists()


def test_attribution_finds_the_lines(runs):
    run = load_run(runs / "plain", most=60)
    found = attribute(run.density, run.table)
    first, second = np.abs(GRID - 6540) < 6, np.abs(GRID - 6580) < 6
    share = found.information / found.information.sum(axis=1, keepdims=True)
    assert share[0, first].sum() > 0.5 > 3 * share[0, second].sum()
    assert share[1, second].sum() > 0.5 > 3 * share[1, first].sum()
    assert found.response[0, first].mean() < 0  # deeper with t_eff
    figure = information(found, run.density.schema.targets, run.wavelength)
    words = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert "Hα" in words
    with pytest.raises(DataError, match="expected wavelengths"):
        information(found, run.density.schema.targets, GRID[:-1])


def test_evaluation_is_honest(runs):
    run = load_run(runs / "plain")
    found = evaluate(run.density, run.table, draws=200)
    assert (found.r_squared > 0.9).all()
    assert (np.abs(found.pull_width[0] - 1) < 0.3).all()
    assert found.nll[0] == pytest.approx(-run.density.log_prob(run.table).mean(), rel=1e-5)
    # too narrow by two: pulls and coverage tell
    narrow = evaluate(
        run.density,
        {**run.table, "t_eff": found.mean[:, 0] + 2 * (found.truth[:, 0] - found.mean[:, 0])},
        draws=200,
    )
    assert narrow.pull_width[0][0] > 1.6
    assert narrow.coverage(0.68)[0][0] < 0.55


def test_figures_and_comparison(runs, tmp_path):
    loaded = [load_run(runs / name) for name in ("plain", "masked")]
    _, paths = figures(loaded[0], tmp_path / "figures", draws=60, star=1)
    assert {p.name for p in paths} >= {
        "predicted.png",
        "pulls.png",
        "corner.png",
        "information.png",
        "figures.html",
    }
    assert all(p.stat().st_size > 5000 for p in paths)
    found = compare(loaded, tmp_path / "compared", draws=60)
    assert list(found) == ["full-gaussian", "diagonal-gaussian"]
    assert (tmp_path / "compared" / "scores.png").stat().st_size > 5000
    with pytest.raises(DataError, match="--star: expected a test star from 0 to"):
        figures(loaded[0], tmp_path / "figures", draws=60, star=10_000)


def test_compare_on_the_command_line(runs, tmp_path):
    arguments = [
        "stars",
        "compare",
        str(runs / "plain"),
        str(runs / "masked"),
        "-o",
        str(tmp_path / "out"),
        "-n",
        "60",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"full-gaussian +−log p", result.output)
    assert "diagonal-gaussian" in result.output
    assert "R² 0.9" in result.output


def test_runs_on_other_stars_are_not_compared(runs):
    a, b = load_run(runs / "plain"), load_run(runs / "plain", most=20)
    with pytest.raises(RunError, match="not the same test stars"):
        compare([a, b], runs.parent / "out", draws=60)


def test_the_report_shows_predictions(runs):
    run = load_run(runs / "plain", most=60)
    names = run.density.schema.target_names
    truth = np.stack([run.table[name] for name in names], axis=-1)
    drawn = run.density.given(spectra=run.table["spectra"]).sample(50, seed=0)
    draws = np.stack([drawn[name] for name in names], axis=-1)
    arrays = prediction_arrays(run.density, run.table, truth, draws, seed=0)
    np.testing.assert_allclose(arrays["predicted_mean"], draws.mean(axis=1))
    assert arrays["posterior"].shape == (5000, 2)
    (section,) = prediction_section(
        run.density.schema, arrays | {"pulls": np.random.default_rng(0).normal(size=(60, 2))}
    )
    assert len(section.figures) == 3
    assert prediction_section(run.density.schema, {}) == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("label", r"t_eff.*missing|t_eff.*finite|t_eff.*NaN"),
        ("pixel", r"spectra.*(missing|finite|NaN)"),
        ("constant", r"spectra.*(nothing to learn|every number)"),
    ],
)
def test_a_faulty_training_table_is_said(tmp_path, fault, words):
    flux, t_eff, log_g = spectra(np.random.default_rng(1), 60)
    if fault == "label":
        t_eff[[3, 7]] = np.nan
    if fault == "pixel":
        flux[5, 10:12] = np.nan
    if fault == "constant":
        flux[:] = 1.0
    write(tmp_path / "data", flux, t_eff, log_g)
    study = tmp_path / "s.toml"
    study.write_text(STUDY.format(head="full-gaussian", missing="error"))
    with pytest.raises(DataError) as caught:
        fluvial.fit(study, runs=tmp_path / "runs", check=False)
    assert re.search(words, str(caught.value), re.DOTALL)
    if fault == "label":  # dropped where the study says so
        study.write_text(
            study.read_text()
            .replace("seed = 2", 'seed = 2\nmissing = "drop"')
            .replace("epochs = 25", "epochs = 1")
        )
        density = fluvial.fit(study, runs=tmp_path / "runs", check=False)
        assert density.schema.target_names == ["t_eff", "log_g"]
