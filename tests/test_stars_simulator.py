"""The simulated stars: lines answer to temperature, gravity and metallicity as those of real stars do."""

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from fluvial.apps.stars import kiel
from fluvial.apps.stars.growth import grow, voigt
from fluvial.apps.stars.lines import line_list
from fluvial.apps.stars.simulator import LABELS, simulate, write
from fluvial.apps.stars.spectrum import ARM_PIXELS, ARMS, Stars, spectra, strengths, wavelengths
from fluvial.cli import app
from fluvial.data.readers import open_table
from fluvial.errors import DataError

# Equivalent widths in the spectrum of the Sun [mÅ]: Fe I from Sousa et al. (2008) and Meléndez et al. (2014), others
# from Moore, Minnaert & Houtgast (1966) and Bensby et al. (2003).
SUN = {
    4788.757: 67, 5651.469: 19, 5679.023: 60, 5705.465: 40, 5731.762: 58, 5778.453: 23, 5853.148: 7.5,
    6481.870: 65, 6498.939: 44, 6593.870: 86, 6609.110: 66, 6627.545: 28, 6677.987: 128, 6713.745: 21,
    6516.080: 55, 5682.633: 97, 5711.088: 108, 5690.425: 51, 5772.146: 52, 6696.018: 37, 6717.681: 120,
    5867.562: 24, 5866.451: 47, 6604.601: 36, 5853.668: 64, 6643.629: 95, 5805.213: 41, 4823.524: 146, 7698.964: 155,
}  # fmt: skip


def width(wavelength, t_eff=5777.0, log_g=4.44, fe_h=0.0):
    lines = line_list()
    return strengths(Stars.plain(t_eff, log_g, fe_h)).width[:, lines.nearest(wavelength)].squeeze()


def balmer(t_eff, arm, centre):
    """The equivalent width of Hα or Hβ [Å], from pixels where no other line is, wings included."""
    grid = wavelengths()[arm * ARM_PIXELS : (arm + 1) * ARM_PIXELS]
    flux = spectra(Stars.plain(t_eff, 4.3, -3.0))[0, arm * ARM_PIXELS : (arm + 1) * ARM_PIXELS]
    return float(np.sum((1 - flux)[np.abs(grid - centre) < 35]) * (grid[1] - grid[0]))


def test_equivalent_widths_of_the_sun_are_the_measured_ones():
    ratio = np.array([width(w) * 1000 / measured for w, measured in SUN.items()])
    assert ratio.min() > 1 / 1.5
    assert ratio.max() < 1.5
    assert 0.9 < np.median(ratio) < 1.15


def test_balmer_lines_have_their_width_and_grow_with_temperature():
    assert 3.4 < balmer(5777.0, 2, 6562.8) < 4.6
    assert 3.1 < balmer(5777.0, 0, 4861.3) < 4.3
    widths = [balmer(t, 2, 6562.8) for t in (4500.0, 5500.0, 6500.0, 7200.0)]
    assert widths == sorted(widths)
    assert widths[-1] > 4 * widths[0]


def test_neutral_iron_weakens_with_temperature():
    assert (np.diff(width(5778.453, np.array([4500.0, 5000.0, 5500.0, 6000.0, 6500.0]))) < 0).all()


def test_ionised_lines_are_stronger_in_giants_and_the_ratio_tells_gravity():
    dwarf, giant = width(6516.08, 4900.0, 4.5), width(6516.08, 4900.0, 2.4)
    assert giant > 1.3 * dwarf
    assert giant / width(6481.87, 4900.0, 2.4) > 1.2 * dwarf / width(6481.87, 4900.0, 4.5)


def test_every_metal_line_grows_with_metallicity():
    found = strengths(Stars.plain(5200.0, 4.0, np.array([-2.0, -1.0, 0.0, 0.4]))).width
    assert (np.diff(found, axis=0) > 0).all()


def test_wings_of_strong_lines_are_broader_in_dwarfs():
    lines = line_list()
    found = strengths(Stars.plain(4800.0, np.array([4.6, 2.0]), 0.0)).lorentz[:, lines.nearest(5857.451)]
    assert found[0] > 1.5 * found[1]


def test_curve_of_growth_has_its_three_parts():
    eta = np.array([1e-3, 1e-2, 10.0, 100.0, 1e5, 1e6])
    area, _ = grow(eta, np.full(6, 0.01))
    slope = np.diff(np.log(area)) / np.diff(np.log(eta))
    assert slope[0] == pytest.approx(1.0, abs=0.01)  # linear
    assert slope[2] < 0.3  # saturated
    assert slope[4] == pytest.approx(0.5, abs=0.02)  # damped
    v = np.linspace(-400, 400, 400_001)
    for e, a in ((0.3, 0.02), (30.0, 0.2)):
        depth = e * voigt(a, v)
        assert grow(np.array([e]), np.array([a]))[0][0] == pytest.approx(
            np.trapezoid(depth / (1 + depth), v), rel=0.02
        )


def test_lines_in_a_spectrum_have_the_widths_of_their_strengths():
    grid, lines = wavelengths(), line_list()
    stars = Stars.plain(5000.0, 3.0, 0.0)
    with_line = spectra(stars)[0]
    number = lines.nearest(6643.629)  # lonely
    near = np.abs(grid - lines.wavelength[number]) < 0.9
    measured = np.sum(1 - with_line[near]) * (grid[10_000] - grid[9_999])
    assert measured == pytest.approx(strengths(stars).width[0, number], rel=0.08)


def test_rotation_shift_and_resolution_show():
    grid = wavelengths()
    plain = Stars.plain(5777.0, 4.4, 0.0)
    here = slice(*np.searchsorted(grid, (6642.5, 6645.0)))

    def line(**changes):
        flux = spectra(Stars(**{**plain.__dict__, **{k: np.array([v]) for k, v in changes.items()}}))[0, here]
        return 1 - flux.min(), grid[here][flux.argmin()]

    depth, centre = line()
    assert line(v_sin_i=20.0)[0] < 0.6 * depth
    assert line(resolution=14_000.0)[0] < 0.8 * depth
    assert line(velocity=30.0)[1] - centre == pytest.approx(6643.6 * 30 / 299_792, abs=0.08)


@pytest.fixture(scope="module")
def survey():
    return simulate(300, seed=7)


def test_a_survey_is_like_galah(survey):
    assert survey.flux.shape == (300, 16_384)
    assert survey.flux.dtype == np.float32
    assert np.isfinite(survey.flux).all()
    assert survey.flux.min() >= -0.2
    assert survey.flux.max() <= 1.6
    assert np.quantile(survey.flux, 0.99) < 1.1
    t_eff, log_g, fe_h, snr = survey.labels[:, 4:].T
    assert 3700 < t_eff.min() < t_eff.max() < 7800
    assert 0 < log_g.min() < log_g.max() < 5.5
    assert 40 < np.median(snr) < 60
    assert 0.2 < (log_g < 3.5).mean() < 0.5
    assert -0.3 < np.median(fe_h) < 0.1
    assert (survey.labels[:, :4] > 0).all()


def test_noise_is_what_the_errors_say(survey):
    clean = simulate(300, seed=7, noise=False)
    pull = (survey.flux - clean.flux) / survey.error
    assert abs(float(np.median(pull))) < 0.01
    assert np.diff(np.quantile(pull, [0.159, 0.841]))[0] / 2 == pytest.approx(1.0, abs=0.01)
    assert (survey.flux - clean.flux > 8 * survey.error).sum() > 100  # cosmic rays
    snr = 1 / np.median(survey.error[:, ARM_PIXELS : 2 * ARM_PIXELS], axis=1)
    assert np.corrcoef(snr, survey.labels[:, 7])[0, 1] > 0.99


def test_labels_are_measured_with_correlated_errors(survey):
    error = survey.labels[:, 4:7] - survey.truth
    assert 0.3 < np.corrcoef(error[:, 0], error[:, 1])[0, 1] < 0.9
    assert 30 < error[:, 0].std() < 90


def test_the_same_seed_gives_the_same_stars_whatever_the_number(survey):
    fewer = simulate(130, seed=7)
    np.testing.assert_array_equal(fewer.flux, survey.flux[:130])
    np.testing.assert_array_equal(fewer.labels, survey.labels[:130])
    assert not np.array_equal(simulate(10, seed=8).flux, survey.flux[:10])


def test_gravity_follows_from_mass_temperature_and_luminosity():
    labels = kiel.draw(np.random.default_rng(1), 500)
    expected = 4.438 + np.log10(labels.mass * (labels.t_eff / 5772) ** 4 / labels.l_bol)
    inside = (labels.t_eff > 3900) & (labels.t_eff < 7500)  # where Teff was not held
    np.testing.assert_allclose(labels.log_g[inside], expected[inside], atol=1e-9)


def test_files_are_those_of_galah(tmp_path, survey):
    folder = tmp_path / "new" / "stars"
    write(folder, 130, seed=7, errors=True)
    reader = open_table(folder)
    assert reader.rows() == 130
    assert set(LABELS) <= set(reader.columns())
    assert "wavelength" not in reader.columns()
    np.testing.assert_array_equal(np.load(folder / "spectra.npy"), survey.flux[:130])
    np.testing.assert_array_equal(np.load(folder / "errors.npy"), survey.error[:130])
    np.testing.assert_array_equal(np.load(folder / "labels.npy"), survey.labels[:130])
    np.testing.assert_array_equal(np.load(folder / "_grid" / "truth.npy"), survey.truth[:130])
    grid = np.load(folder / "_grid" / "wavelength.npy")
    assert grid.shape == (16_384,)
    assert all(((low <= grid) & (grid <= high)).sum() == ARM_PIXELS for low, high in ARMS.values())
    assert json.loads((folder / "_grid" / "about.json").read_text())["seed"] == 7
    assert not list(folder.glob("._*"))


def test_a_survey_that_cannot_be_written_leaves_what_was_there(tmp_path):
    (tmp_path / "labels.npy").write_bytes(b"mine")
    with pytest.raises(DataError, match="rows to be at least 1; got 0"):
        write(tmp_path, 0)
    (tmp_path / "spectra.npy").mkdir()
    (tmp_path / "spectra.npy" / "x").touch()
    target = tmp_path / "file"
    target.touch()
    with pytest.raises(DataError, match=re.escape(str(target))):
        write(target, 1)
    assert (tmp_path / "labels.npy").read_bytes() == b"mine"
    with pytest.raises(DataError, match="seed to be a whole number"):
        simulate(1, seed=1.5)


def test_on_the_command_line(tmp_path):
    result = CliRunner().invoke(
        app, ["simulate", "stars", "--rows", "3", "--out", str(tmp_path / "stars"), "--seed", "7"]
    )
    assert result.exit_code == 0, result.output
    assert "3 stars in" in result.output
    more = [
        "stars",
        "simulate",
        "-n",
        "3",
        "-o",
        str(tmp_path / "clean"),
        "--seed",
        "7",
        "--errors",
        "--noiseless",
    ]
    assert CliRunner().invoke(app, more).exit_code == 0
    noisy, clean, error = (
        np.load(tmp_path / name) for name in ("stars/spectra.npy", "clean/spectra.npy", "clean/errors.npy")
    )
    assert np.median(np.abs(noisy - clean) / error) == pytest.approx(0.6745, abs=0.03)
