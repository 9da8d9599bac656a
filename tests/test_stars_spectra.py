"""Spectra from files, onto a grid, to a continuum of one."""

import warnings

import numpy as np
import pytest
from typer.testing import CliRunner

from fluvial.apps.stars.grids import at_rest, normalise, resample, to_air
from fluvial.apps.stars.observed import load_miles, load_spectra, prepare
from fluvial.cli import app
from fluvial.data.readers import open_table
from fluvial.errors import DataError


def line(grid, centre=5050.0, sigma=0.5, depth=0.6):
    return 1 - depth * np.exp(-0.5 * ((grid - centre) / sigma) ** 2)


@pytest.mark.parametrize("step", [0.37, 0.05])  # coarser than the old grid, and finer
def test_resampling_keeps_the_flux(step):
    old, new = np.arange(5000, 5100, 0.1), np.arange(5010, 5090, step)
    flux = np.stack([line(old), line(old, 5030.0, 1.0)])
    out, _ = resample(old, flux, to=new)
    np.testing.assert_allclose((1 - out).sum(1) * step, (1 - flux).sum(1) * 0.1, rtol=1e-6)
    np.testing.assert_allclose(resample(old, np.full(len(old), 2.5), to=new)[0], 2.5)


def test_linear_resampling_does_not_broaden():
    old, new = np.arange(5000, 5100, 0.1), np.arange(5010, 5090, 0.03)
    np.testing.assert_allclose(resample(old, line(old), to=new, method="linear")[0], line(new), atol=4e-3)


def test_errors_fall_as_pixels_are_joined():
    old, new = np.arange(5000, 5100, 0.1), np.arange(5010, 5090, 0.4)
    rng = np.random.default_rng(0)
    noisy = 1 + 0.02 * rng.normal(size=(2000, len(old)))
    out, error = resample(old, noisy, to=new, error=np.full(noisy.shape, 0.02))
    assert error is not None
    np.testing.assert_allclose(error, 0.01, rtol=1e-6)
    np.testing.assert_allclose(out.std(axis=0)[3:-3], 0.01, rtol=0.12)
    _, same = resample(old, noisy[0], to=np.arange(5010, 5090, 0.02), error=np.full(len(old), 0.02))
    np.testing.assert_allclose(same, 0.02, rtol=1e-6)


def test_masked_pixels_and_what_is_outside_become_nan():
    old, new = np.arange(5000, 5100, 0.1), np.arange(4990, 5110, 0.5)
    flux = np.ones(len(old))
    flux[300:360] = np.nan
    out, _ = resample(old, flux, to=new)
    inside = (new > 5000.3) & (new < 5099.7)
    hole = (new > 5030.0) & (new < 5035.9)
    assert np.isnan(out[hole]).all()
    assert np.isnan(out[~((new > 4999.6) & (new < 5100.2))]).all()
    np.testing.assert_allclose(out[inside & ~((new > 5029.5) & (new < 5036.4))], 1.0)
    arms = np.concatenate([np.arange(4700, 4800, 0.1), np.arange(5600, 5700, 0.1)])
    across, _ = resample(arms, np.ones(len(arms)), to=np.arange(4750, 5650, 1.0))
    assert np.isnan(across[100:800]).all()  # nothing is known between arms


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"to": np.arange(400.0, 800.0)}, r"do not reach .* same unit"),
        ({"to": np.arange(5090.0, 5000.0, -1)}, "increase"),
        ({"to": np.arange(5000.0, 5090.0), "method": "cubic"}, "'conserve' or 'linear'; got 'cubic'"),
        ({"to": np.arange(5000.0, 5090.0), "error": np.ones(3)}, "errors of the shape of flux"),
        ({"to": np.arange(5000.0, 5090.0), "flux": np.ones(7)}, r"expected flux \[1000\]"),
    ],
)
def test_what_cannot_be_resampled_is_said(arguments, words):
    old = np.arange(5000, 5100, 0.1)
    with pytest.raises(DataError, match=words):
        resample(old, **{"flux": np.ones(len(old)), **arguments})


def test_pseudo_continuum():
    grid = np.arange(4800.0, 5300.0, 0.2)
    shape = 3e-13 * (1 + 0.4 * (grid - 5000) / 500 + 0.3 * ((grid - 5000) / 300) ** 2)
    flux = np.stack([shape * line(grid, 5050, 2.0), 7 * shape * line(grid, 4900, 4.0)])
    flat, continuum = normalise(grid, flux)
    truth = np.stack([line(grid, 5050, 2.0), line(grid, 4900, 4.0)])
    np.testing.assert_allclose(flat, truth, atol=0.03)
    np.testing.assert_allclose(flat * continuum, flux)
    flux[0, 100:120] = np.nan
    assert np.isnan(normalise(grid, flux)[0]).sum() == 20
    assert np.isnan(normalise(grid, -flux)[0][1]).all()  # no continuum that could be divided by


def test_air_and_rest():
    np.testing.assert_allclose(to_air([4862.69, 6564.61]), [4861.33, 6562.80], atol=0.01)
    np.testing.assert_allclose(at_rest(6562.8 * (1 + 100 / 299_792.458), 100.0), 6562.8)


@pytest.fixture
def library(tmp_path):
    """The layout of MILES, made up."""
    rng = np.random.default_rng(0)
    grid = np.linspace(4000, 5000, 500)
    flux = (0.3 + rng.random((6, 1))) * line(grid, 4500, 5.0)[None] * (grid / 4500)[None]
    path = tmp_path / "stars.npz"
    labels = {
        "teff": np.array([5000, np.nan, 6000, 4500, 7000, 5500.0]),
        "logg": np.full(6, 4.0),
        "feh": np.zeros(6),
    }
    np.savez(
        path,
        wavelength=grid,
        flux=flux.astype(np.float32),
        name=np.array([f"HD{i}" for i in range(6)]),
        **labels,
    )
    return path


def test_miles(library):
    found = load_miles(library)
    assert len(found) == 6
    assert set(found.labels) == {"t_eff", "log_g", "fe_h"}
    assert found.names[2] == "HD2"
    assert np.isnan(found.labels["t_eff"][1])  # missing labels stay missing
    np.testing.assert_allclose(found.flux.max(axis=1), 1.0, atol=0.05)
    np.testing.assert_allclose(found.flux.min(axis=1), 0.4, atol=0.05)


def test_an_npz_that_is_no_library_is_said(tmp_path):
    np.savez(tmp_path / "a.npz", flux=np.ones((3, 10)), wavelength=np.arange(10.0))
    with pytest.raises(DataError, match="missing: teff, logg, feh"):
        load_miles(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", counts=np.ones((3, 10)))
    with pytest.raises(DataError, match="named flux or spectra; found counts"):
        load_spectra(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", flux=np.ones((3, 10)), error=np.ones((3, 9)))
    with pytest.raises(DataError, match="errors of the shape of the flux"):
        load_spectra(tmp_path / "c.npz")
    with pytest.raises(DataError, match=r"did you mean 'a\.npz'"):
        load_spectra(tmp_path / "aa.npz")


def test_prepare_brings_files_onto_one_grid(library, tmp_path):
    grid = np.linspace(4100, 4900, 300)
    np.save(tmp_path / "grid.npy", grid)
    out = tmp_path / "prepared"
    arguments = [
        "stars",
        "prepare",
        str(library),
        str(library),
        "--grid",
        str(tmp_path / "grid.npy"),
        "--normalise",
    ]
    result = CliRunner().invoke(app, [*arguments, "--window", "150", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "12 spectra of 300 pixels" in result.output
    reader = open_table(out)
    assert reader.rows() == 12
    assert reader.length("spectra") == 300
    assert {"teff", "logg", "feh"} <= set(reader.columns())
    spectra = np.load(out / "spectra.npy")
    np.testing.assert_allclose(spectra[0].min(), 0.4, atol=0.05)
    np.testing.assert_array_equal(np.load(out / "_grid" / "wavelength.npy"), grid)
    assert load_spectra(out).wavelength is not None
    again = ["stars", "prepare", str(library), "--grid", str(out), "--out", str(tmp_path / "again")]
    assert CliRunner().invoke(app, again).exit_code == 0  # the grid of other spectra
    np.testing.assert_array_equal(np.load(tmp_path / "again" / "_grid" / "wavelength.npy"), grid)


def test_prepare_fills_and_needs_wavelengths(tmp_path):
    (tmp_path / "own").mkdir()
    np.save(tmp_path / "own" / "spectra.npy", np.ones((2, 50), np.float32))
    with pytest.raises(DataError, match="does not say its wavelengths"):
        prepare([tmp_path / "own"], tmp_path / "out", normalised=True)
    np.savez(tmp_path / "a.npz", flux=np.ones((2, 50)), wavelength=np.linspace(5000, 5010, 50))
    facts = prepare([tmp_path / "a.npz"], tmp_path / "out", grid=np.linspace(5000, 5020, 100), fill=1.0)
    assert facts["masked"] > 80
    assert (np.load(tmp_path / "out" / "spectra.npy") == 1.0).all()


def test_fits_with_errors_and_masks(tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    grid = np.linspace(5000, 5100, 200)
    flux, ivar, mask = line(grid), np.full(200, 2500.0), np.zeros(200, dtype=np.int32)
    ivar[7], mask[11] = 0.0, 4
    columns = [
        fits.Column("loglam", "D", array=np.log10(grid)),
        fits.Column("flux", "E", array=flux),
        fits.Column("ivar", "E", array=ivar),
        fits.Column("and_mask", "J", array=mask),
    ]
    hdu = fits.BinTableHDU.from_columns(columns)
    hdu.writeto(tmp_path / "sdss.fits")
    found = load_spectra(tmp_path / "sdss.fits")
    assert found.wavelength is not None
    assert found.error is not None
    np.testing.assert_allclose(found.wavelength, grid)
    assert np.flatnonzero(np.isnan(found.flux[0])).tolist() == [7, 11]
    np.testing.assert_allclose(found.error[0, 20], 0.02, rtol=1e-5)

    image = fits.PrimaryHDU(np.stack([flux, flux]).astype(np.float32))
    image.header.update({"CRVAL1": 5000.0, "CDELT1": 100 / 199, "CRPIX1": 1.0})
    error = fits.ImageHDU(np.full((2, 200), 0.01), name="ERROR")
    fits.HDUList([image, error]).writeto(tmp_path / "image.fits")
    found = load_spectra(tmp_path / "image.fits")
    assert found.wavelength is not None
    assert found.error is not None
    np.testing.assert_allclose(found.wavelength, grid)
    np.testing.assert_allclose(found.flux[1], flux, rtol=1e-6)
    np.testing.assert_allclose(found.error, 0.01, rtol=1e-6)
    (tmp_path / "no.fits").write_bytes(b"no FITS at all")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="not a FITS file"):
            load_spectra(tmp_path / "no.fits")
