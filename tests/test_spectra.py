"""A study whose context is a spectrum, from files to draws: read, fitted, resumed, asked, refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import fluvial
from fluvial import DataError, ExtrapolationWarning, StudyError
from fluvial.data.arrays import ArrayBatches, Arrays, Noise, StoredArray
from fluvial.density import Density
from fluvial.flows import EncodedFlow
from fluvial.record import RunFolder
from fluvial.study import parse_study
from fluvial.train import CHECKPOINT, Checkpoint
from fluvial.workflow import check_run, log_prob_table, sample_table
from fluvial.workflow.data import read_rows
from fluvial.workflow.signals import Terminated

PIXELS, ROWS = 96, 500

STUDY: dict[str, Any] = {
    "data": {
        "source": "stars",
        "targets": ["t_eff", "fe_h"],
        "context": ["spectra", "SNR"],
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        "seed": 2,
    },
    "columns": {"t_eff": {"unit": "K"}, "spectra": {"transform": "log-clip"}, "SNR": {"transform": "log"}},
    "flow": {"architecture": "full-gaussian", "width": 16},
    "encoder": {"features": 8, "width": 8, "patch": 8},
    "training": {"epochs": 2, "learning_rate": 0.01, "seed": 1},
    "check": {"contexts": 60, "draws": 50},
}


def stars(rows: int = ROWS, pixels: int = PIXELS, noisy: bool = True) -> dict[str, np.ndarray]:
    """Return spectra whose lines deepen with metallicity and weaken with temperature, and their errors and labels."""
    rng = np.random.default_rng(0)
    t, m = rng.normal(5500, 500, rows), rng.normal(-0.2, 0.3, rows)
    snr = rng.uniform(20, 100, rows)
    x = np.arange(pixels)
    flux = np.ones((rows, pixels))
    for centre, slope in ((20, 0.8), (45, -0.5), (70, 0.2)):
        depth = 0.5 / (1 + np.exp(-(m / 0.3 - slope * (t - 5500) / 500)))
        flux -= depth[:, None] * np.exp(-0.5 * ((x - centre) / 3) ** 2)
    errors = np.repeat(1 / snr[:, None], pixels, 1)
    noise = errors * rng.normal(size=flux.shape) if noisy else 0.0
    labels = np.zeros((rows, 8))
    labels[:, 4], labels[:, 6], labels[:, 7] = t, m, snr
    return {
        "spectra": (flux + noise).astype(np.float32),
        "error": errors.astype(np.float32),
        "labels": labels,
        "wavelength": np.linspace(4718, 7890, pixels),
    }


def write(folder: Path, **changes: np.ndarray) -> Path:
    (folder / "stars").mkdir()
    for name, values in (stars() | changes).items():
        np.save(folder / "stars" / f"{name}.npy", values)
    return folder / "stars"


def study(folder: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """Return the study, some keys of its sections changed, with its source in a folder."""
    out = {section: dict(values) for section, values in STUDY.items()}
    out["data"]["source"] = str(folder / "stars")
    for section, values in changes.items():
        out[section] = values if section == "columns" else {**out[section], **values}
    return out


def rows_of(folder: Path, **changes: dict[str, Any]):
    parsed = parse_study(study(folder, **changes))
    return read_rows(parsed, str(folder / "stars"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Density]:
    folder = tmp_path_factory.mktemp("spectra")
    write(folder)
    density = fluvial.fit(study(folder, training={"epochs": 25}), runs=folder / "runs", check=False)
    assert density.folder is not None
    return density.folder, density


def test_a_fit_learns_from_the_spectrum(run: tuple[Path, Density]) -> None:
    folder, density = run
    assert isinstance(density.flow, EncodedFlow)
    metrics = RunFolder.open(folder).metrics()
    assert metrics[-1]["validation_loss"] < metrics[0]["validation_loss"] - 1
    rows = rows_of(folder.parent.parent)
    test = rows.part("test")
    predicted = density.given(test).sample(200, seed=1)["fe_h"].mean(-1)
    assert np.corrcoef(predicted, test["fe_h"])[0, 1] > 0.8
    other = {
        **test,
        "spectra": np.roll(test["spectra"], 1, axis=0),
    }  # a spectrum of another star says nothing
    assert (
        abs(np.corrcoef(density.given(other).sample(200, seed=1)["fe_h"].mean(-1), test["fe_h"])[0, 1]) < 0.5
    )


@pytest.mark.parametrize("architecture", ["spectrum", "components"])
def test_an_ensemble_is_read_as_it_was_saved(tmp_path: Path, architecture: str) -> None:
    write(tmp_path)
    said = study(tmp_path, training={"ensemble": 2}) | {"encoder": {"architecture": architecture}}
    density = fluvial.fit(said, runs=tmp_path / "runs", check=False)
    assert density.folder is not None
    test = rows_of(tmp_path).part("test")
    np.testing.assert_allclose(fluvial.load(density.folder).log_prob(test), density.log_prob(test), rtol=1e-5)


def test_components_come_from_the_training_rows(tmp_path: Path) -> None:
    write(tmp_path)
    said = study(tmp_path, training={"epochs": 25}) | {
        "encoder": {"architecture": "components", "components": 6}
    }
    density = fluvial.fit(said, runs=tmp_path / "runs", check=False)
    assert isinstance(density.flow, EncodedFlow)
    assert density.flow.encoders[0].offset.abs().max() > 0  # type: ignore[union-attr, operator]  # fitted
    test = rows_of(tmp_path).part("test")
    predicted = density.given(test).sample(200, seed=1)["fe_h"].mean(-1)
    assert np.corrcoef(predicted, test["fe_h"])[0, 1] > 0.8


def test_record_checks_and_report(tmp_path: Path) -> None:
    write(tmp_path)
    alone = {"targets": ["fe_h"], "context": ["spectra"]}
    density = fluvial.fit(study(tmp_path, data=alone, columns={}), runs=tmp_path / "runs")
    folder = density.folder
    assert folder is not None
    record = RunFolder.open(folder).record()
    assert record["study"]["encoder"] == density.encoder
    assert record["study"]["encoder"]["architecture"] == "spectrum"
    assert record["transforms"]["spectra"].endswith("in all 96 pixels")
    about = record["data"]["arrays"]["spectra"]
    assert (about["held"], about["length"], about["masked"]) == ("memory-mapped", PIXELS, 0)
    assert about["type"] == "float32"
    results = {r.name: r for r in check_run(folder)}
    assert "PIT across context" in results
    assert results["normalisation"].verdict == "pass"
    with np.load(folder / "checks.npz") as arrays:
        titles = arrays["panel0_titles"].tolist()
    assert titles == ["predicted fe_h"]
    flux = stars(4)["spectra"]
    assert np.array_equal(
        density.given(flux).sample(2, seed=1), density.given(spectra=flux).sample(2, seed=1)
    )
    page = (folder / "report.html").read_text()
    assert "full-gaussian" in page
    assert "Transform of spectra" in page


def test_a_loaded_density_is_the_same(run: tuple[Path, Density]) -> None:
    folder, density = run
    transforms = RunFolder.open(folder).record()["transforms"]
    assert transforms["spectra"].startswith("log(max(x, 0.2)), each of 96 pixels")
    again = fluvial.load(folder)
    table = stars(20)
    asked = {"spectra": table["spectra"], "SNR": table["labels"][:, 7]}
    draws = density.given(asked).sample(5, seed=3)
    assert np.array_equal(again.given(asked).sample(5, seed=3), draws)
    assert again.array_range == density.array_range
    assert '"format": 3' in (folder / "density.json").read_text()
    assert "spectrum encoder" in repr(again)


def test_spectra_of_any_table(run: tuple[Path, Density]) -> None:
    _, density = run
    table = stars(6)
    flux, snr = table["spectra"], table["labels"][:, 7]
    expected = density.given(spectra=flux, SNR=snr).sample(3, seed=1)
    structured = np.zeros(6, dtype=[("SNR", "f8"), ("spectra", "f4", (PIXELS,))])
    structured["SNR"], structured["spectra"] = snr, flux
    lists = pa.array(list(flux), pa.list_(pa.float32(), PIXELS))
    for one in (
        structured,
        pa.table({"SNR": snr, "spectra": lists}),
        pa.table({"SNR": snr, "spectra": lists}).to_pandas(),
        {"SNR": list(snr), "spectra": [list(row) for row in flux.astype(float)]},
    ):
        assert np.array_equal(density.given(one).sample(3, seed=1), expected)
    shaped = density.given(spectra=flux.reshape(2, 3, -1), SNR=snr.reshape(2, 3))
    assert shaped.shape == (2, 3)
    assert np.allclose(shaped.sample(3, seed=1)["fe_h"].reshape(6, 3), expected["fe_h"], atol=1e-5)
    one = density.given(spectra=flux[0], SNR=[30.0, 50.0, 90.0])  # shapes broadcast
    assert one.log_prob({"t_eff": 5500.0, "fe_h": 0.0}).shape == (3,)
    assert density.given(spectra=flux[0], SNR=50.0).shape == ()
    assert density.given(spectra=flux[:0], SNR=50.0).sample(3).shape == (0, 3)


def test_the_density_of_draws_is_log_prob(run: tuple[Path, Density]) -> None:
    _, density = run
    table = stars(4)
    p = density.given(spectra=table["spectra"], SNR=table["labels"][:, 7])
    draws, log_prob = p.sample_and_log_prob(50, seed=1)
    again = density.given(spectra=table["spectra"][:, None], SNR=table["labels"][:, 7, None]).log_prob(draws)
    np.testing.assert_allclose(again, log_prob, atol=1e-4)


def _flux(change: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    flux = stars(5)["spectra"].copy()
    return {"spectra": change(flux), "SNR": 50.0}


def _nan(flux: np.ndarray) -> np.ndarray:
    flux[3, 10:14] = np.nan
    return flux


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (_flux(lambda f: f[:, :90]), "spectra has 90 numbers; the density's grid has 96. Resample it to the density's"),
        (_flux(lambda f: 1.0), "spectra is one number; expected an array of 96"),
        (_flux(_nan), "row 3 has 4 of 96 numbers not finite"),
        (_flux(lambda f: f.astype(str)), "spectra is not numeric"),
        (_flux(lambda f: [row[: 90 + i] for i, row in enumerate(f)]), "arrays of one length, 96"),
        ({"spectra": stars(5)["spectra"]}, "'SNR' is missing"),
        ({"SNR": 50.0}, "'spectra' is missing"),
        ({"spectra": stars(5)["spectra"], "SNR": [10.0, 20.0]}, "shapes that broadcast"),
        ({"spectra": stars(5)["spectra"], "SNR": 0.0}, "SNR = 0 is outside the support"),
    ],
)  # fmt: skip
def test_what_no_density_can_be_asked(
    run: tuple[Path, Density], context: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run[1].given(context)


def test_strange_spectra_are_a_guess_and_say_so(run: tuple[Path, Density]) -> None:
    _, density = run
    flux, snr = stars(5)["spectra"], 50.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density.given(spectra=flux, SNR=snr)
    for strange in (5000 * flux, -flux, np.zeros_like(flux)):
        with pytest.warns(ExtrapolationWarning, match="spectra: 5 of 5 arrays are unlike those of the table"):
            p = density.given(spectra=strange, SNR=snr)
        assert all(np.isfinite(p.sample(20, seed=1)[name]).all() for name in ("t_eff", "fe_h"))


def test_tables_of_draws_and_of_log_prob(run: tuple[Path, Density]) -> None:
    folder, density = run
    source = folder.parent.parent / "stars"
    drawn = sample_table(density, contexts=source, draws=3, seed=1)
    assert list(drawn) == ["row", "SNR", "t_eff", "fe_h"]
    assert drawn["row"].tolist()[:4] == [0, 0, 0, 1]
    assert len(drawn["t_eff"]) == 3 * ROWS
    table = log_prob_table(density, source)
    assert list(table) == ["t_eff", "fe_h", "SNR", "log_prob"]
    assert np.isfinite(table["log_prob"]).all()
    with pytest.raises(DataError, match="spectra is an array; give a table"):
        sample_table(density, given={"SNR": 50.0})


# --- training goes on bit for bit, dropout and noise included ---------------------------------------------------

NOISY = {"spectra": {"transform": "log-clip", "noise": "error", "jitter": 0.002}}


def test_resumed_in_mid_epoch_is_bit_identical(tmp_path: Path) -> None:
    write(tmp_path, spectra=stars(noisy=False)["spectra"])
    changes = {"columns": NOISY, "training": {"epochs": 3, "checkpoint_minutes": 0.0}}
    whole = fluvial.fit(study(tmp_path, **changes), runs=tmp_path / "runs", name="whole", check=False)
    steps = 0

    def strike(event: Any) -> None:
        nonlocal steps
        steps += type(event).__name__ == "StepEvent"
        if steps == 7:
            steps += 1
            raise Terminated("struck")

    with pytest.raises(Terminated):
        fluvial.fit(
            study(tmp_path, **changes), runs=tmp_path / "runs", name="struck", check=False, on_event=strike
        )
    resumed = fluvial.resume(tmp_path / "runs" / "struck", check=False)
    ours, theirs = resumed.flow.state_dict(), whole.flow.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    checkpoints = [Checkpoint.load(tmp_path / "runs" / n / CHECKPOINT).tensors for n in ("whole", "struck")]
    assert all(torch.equal(checkpoints[1][name], value) for name, value in checkpoints[0].items())


# --- reading ------------------------------------------------------------------------------------------------------


def test_spectra_stay_where_they_lie(tmp_path: Path) -> None:
    write(tmp_path, spectra=stars()["spectra"].astype(np.float16))
    rows = rows_of(tmp_path)
    assert rows.arrays is not None
    stored = rows.arrays.stored["spectra"]
    assert isinstance(stored.values, np.memmap)
    assert stored.values.dtype == np.float16
    assert set(rows.table) == {"t_eff", "fe_h", "SNR"}
    part = rows.part("test")
    assert part["spectra"].dtype == np.float32
    assert part["spectra"].shape == (rows.count("test"), PIXELS)


def test_a_filter_keeps_spectra_and_labels_together(tmp_path: Path) -> None:
    table = stars()
    table["spectra"][:, 0] = table["labels"][:, 7] / 100  # a mark
    write(tmp_path, spectra=table["spectra"])
    rows = rows_of(tmp_path, data={"where": "SNR > 60"})
    assert 0.3 * ROWS < len(rows.table["SNR"]) < 0.7 * ROWS
    for name in ("train", "validation", "test"):
        part = rows.part(name)
        np.testing.assert_allclose(part["spectra"][:, 0], part["SNR"] / 100, rtol=1e-5)


def _lost(pixels: slice = slice(30, 40)) -> np.ndarray:
    flux = stars()["spectra"]
    flux[17, pixels], flux[200, 3] = np.nan, np.inf
    return flux


def test_missing_pixels_are_an_error_or_dropped_or_masked(tmp_path: Path) -> None:
    write(tmp_path, spectra=_lost())
    with pytest.raises(
        DataError, match=r"spectra: 11 numbers in 2 rows are not finite, the first in row 17 .*\(10 of 96\)"
    ):
        rows_of(tmp_path)
    rows = rows_of(tmp_path, data={"missing": "drop"})
    assert rows.facts["rows_kept"] == ROWS - 2
    assert rows.facts["dropped"] == {"spectra: arrays": 2}
    masked = {"spectra": {"missing": "mask"}}
    rows = rows_of(tmp_path, columns=masked)
    assert rows.facts["rows_kept"] == ROWS
    assert rows.facts["arrays"]["spectra"]["masked"] == 11
    assert rows.facts["notes"][-1] == "spectra: 11 missing numbers in 2 rows stand at their mean"
    density = fluvial.fit(
        study(tmp_path, columns=masked, training={"epochs": 1}), runs=tmp_path / "runs", check=False
    )
    flux = stars(3)["spectra"]
    flux[1, 5:9] = np.nan
    p = density.given(spectra=flux, SNR=50.0)
    assert np.isfinite(p.log_prob({"t_eff": 5500.0, "fe_h": 0.0})).all()
    flux[1] = np.nan
    with pytest.raises(DataError, match="row 1 has no finite number"):
        density.given(spectra=flux, SNR=50.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"columns": {"spectra": {"transform": "logit"}}},
            "transform 'logit': of an array column, expected one of",
        ),
        ({"columns": {"SNR": {"transform": "log-clip"}}}, "SNR] transform is for array columns"),
        ({"columns": {"SNR": {"missing": "mask"}}}, "SNR] missing is for array columns"),
        ({"columns": {"SNR": {"noise": 0.1}}}, "SNR] noise is for array columns"),
        ({"columns": {"t_eff": {"transform": "log-clip"}}}, "transform 'log-clip' is for array columns"),
        ({"columns": {"spectra": {"atoms": [0.0]}}}, "expected no atoms"),
        ({"encoder": {"architecture": "spectrom"}}, "did you mean 'spectrum'"),
        ({"encoder": {"ranks": 3}}, r"\[encoder\] ranks is not a known key; did you mean 'rank'"),
        ({"data": {"context": ["SNR"]}, "columns": {}}, "nothing to encode"),
    ],
)
def test_studies_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path)
    out = study(tmp_path)
    for section, values in changes.items():
        out[section] = values if section in ("columns", "encoder") else {**out[section], **values}
    with pytest.raises(StudyError, match=message):
        read_rows(parse_study(out), str(tmp_path / "stars"))


@pytest.mark.parametrize(
    ("section", "spectra", "message"),
    [
        ({"support": "positive"}, -stars()["spectra"], "48000 numbers in 500 rows lie outside the support"),
        ({}, np.ones((ROWS, PIXELS), np.float32), "every number is 1, so there is nothing to learn"),
        ({"noise": "t_eff_error"}, None, "t_eff_error"),
        ({"noise": "fe_h"}, None, "expected standard deviations from 0"),
    ],
)
def test_tables_that_cannot_be(
    tmp_path: Path, section: dict[str, Any], spectra: np.ndarray | None, message: str
) -> None:
    write(tmp_path, **({} if spectra is None else {"spectra": spectra}))
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path, columns={"spectra": section})


def test_spectra_too_large_for_memory_say_what_to_do(tmp_path: Path) -> None:
    table = stars()
    (tmp_path / "stars").mkdir()
    np.savez(tmp_path / "stars" / "all.npz", spectra=table["spectra"], t_eff=table["labels"][:, 4],
             fe_h=table["labels"][:, 6], SNR=table["labels"][:, 7])  # fmt: skip
    rows = rows_of(tmp_path)
    assert rows.facts["arrays"]["spectra"]["held"] == "in memory"
    with pytest.raises(
        DataError, match=r"spectra take 0\.00 GB for 500 rows, more than the .* Save them as plain npy"
    ):
        rows_of(tmp_path, data={"memory": 1e-5})


# --- noise and batches --------------------------------------------------------------------------------------------


def arrays(**noise: Noise) -> Arrays:
    flux = np.arange(60, dtype=np.float32).reshape(6, 10)
    return Arrays({"flux": StoredArray(flux), "other": StoredArray(np.zeros((6, 20), np.float64))}, noise, {})


def test_noise_is_a_function_of_seed_epoch_and_row() -> None:
    clean, noisy = arrays(), arrays(flux=Noise(0.5, 7))
    rows = np.array([4, 1])
    one = noisy.take(rows, epoch=3)["flux"]
    assert np.array_equal(one[::-1], noisy.take(rows[::-1], epoch=3)["flux"])
    assert not np.array_equal(one, noisy.take(rows, epoch=4)["flux"])
    assert np.array_equal(noisy.take(rows)["flux"], noisy.take(rows)["flux"])
    assert np.array_equal(noisy.take(rows)["other"], clean.take(rows)["other"])
    sample = np.concatenate(
        [noisy.take(rows, epoch=e)["flux"] - clean.take(rows)["flux"] for e in range(500)]
    )
    assert abs(sample.mean()) < 0.02
    assert sample.std() == pytest.approx(0.5, rel=0.03)
    assert abs(np.corrcoef(sample[0::2].ravel(), sample[1::2].ravel())[0, 1]) < 0.05


def test_sizes_of_noise_by_row_and_by_pixel() -> None:
    rows = np.array([2, 5])
    by_row = arrays(flux=Noise(np.array([0, 0, 1.0, 0, 0, 2.0]), 7)).take(rows, epoch=1)["flux"]
    pixels = np.zeros((6, 10), np.float32)
    pixels[5, 3] = 1.0
    by_pixel = arrays(flux=Noise(StoredArray(pixels), 7)).take(rows, epoch=1)["flux"]
    clean = arrays().take(rows)["flux"]
    unit = arrays(flux=Noise(1.0, 7)).take(rows, epoch=1)["flux"] - clean
    np.testing.assert_allclose(by_row - clean, unit * [[1], [2]], atol=1e-5)
    changed = by_pixel != clean
    assert changed.sum() == 1
    assert changed[1, 3]


def test_jitter_is_for_training_alone() -> None:
    jittered = Arrays(arrays().stored, {}, {"flux": Noise(1.0, 3)})
    rows = np.arange(6)
    assert np.array_equal(jittered.take(rows)["flux"], arrays().take(rows)["flux"])
    assert not np.array_equal(jittered.take(rows, epoch=1)["flux"], arrays().take(rows)["flux"])


def test_batches_hold_every_row_once_and_begin_anywhere() -> None:
    rows = np.array([0, 2, 3, 5])
    x, scalars = torch.arange(4.0)[:, None], torch.full((4, 1), 9.0)
    batches = ArrayBatches(x, scalars, arrays(flux=Noise(0.1, 7)), rows, batch_size=3, seed=1)
    assert (len(batches), batches.rows) == (2, 4)
    whole = list(batches.epoch(1))
    assert sorted(torch.cat([a for a, _ in whole])[:, 0].tolist()) == [0, 1, 2, 3]
    for a, c in whole:
        assert c.shape == (len(a), 31)
        assert (c[:, 0] == 9).all()
        np.testing.assert_allclose(c[:, 1], 10 * rows[a[:, 0].int().numpy()], atol=0.6)
    later = list(batches.epoch(1, start=1))
    assert all(torch.equal(p, q) for p, q in zip(later[0], whole[1], strict=True))


def test_validation_rows_have_noise_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, spectra=stars(noisy=False)["spectra"])
    clean = rows_of(tmp_path, columns={})
    noisy = rows_of(tmp_path, columns={"spectra": {"noise": "error"}})
    away = (noisy.part("validation")["spectra"] - clean.part("validation")["spectra"]) * noisy.part(
        "validation"
    )["SNR"][:, None]
    assert away.std() == pytest.approx(1, rel=0.03)
    assert abs(away.mean()) < 0.03
    assert math.isclose(noisy.facts["arrays"]["spectra"]["range"][1], 1.0, abs_tol=0.01)


def test_errors_are_a_second_channel_and_other_grids_have_an_encoder_of_their_own(tmp_path: Path) -> None:
    curve = np.random.default_rng(3).normal(size=(ROWS, 40)).astype(np.float32)
    write(tmp_path, curve=curve)
    context = ["SNR", "error", "spectra", "curve"]
    changes = {"data": {"context": context, "targets": ["fe_h"]}, "training": {"epochs": 1}}
    density = fluvial.fit(study(tmp_path, columns={}, **changes), runs=tmp_path / "runs", check=False)
    assert isinstance(density.flow, EncodedFlow)
    assert [(e.channels, e.length) for e in density.flow.encoders] == [(2, PIXELS), (1, 40)]
    table = stars(4)
    asked = {"SNR": 50.0, "spectra": table["spectra"], "error": table["error"], "curve": curve[:4]}
    p = density.given(asked).sample(3, seed=1)
    assert p.shape == (4, 3)
    moved = density.given({**asked, "curve": -curve[:4]}).sample(3, seed=1)
    assert not np.array_equal(p["fe_h"], moved["fe_h"])
    assert np.array_equal(fluvial.load(tmp_path / "runs" / "run-1").given(asked).sample(3, seed=1), p)


@pytest.mark.parametrize("averaging", [{}, {"ema": 0.9}])
def test_point_regression_has_honest_errors(tmp_path: Path, averaging: dict[str, Any]) -> None:
    """The covariance is that of validation residuals of the weights that are kept: pulls of other rows have width one."""
    write(tmp_path)
    changes = {"flow": {"architecture": "point"}, "training": {"epochs": 12, **averaging}}
    density = fluvial.fit(study(tmp_path, **changes), runs=tmp_path / "runs", check=False)
    test = rows_of(tmp_path).part("test")
    draws = density.given(test).sample(300, seed=1)
    pulls = (test["fe_h"] - draws["fe_h"].mean(-1)) / draws["fe_h"].std(-1)
    assert 0.7 < pulls.std() < 1.4  # of 100 rows
    assert draws["fe_h"].std(-1).mean() < 0.9 * test["fe_h"].std()
    assert np.ptp(draws["fe_h"].std(-1)) < 0.3 * draws["fe_h"].std(-1).mean()  # the same for every spectrum
    loaded = fluvial.load(tmp_path / "runs" / "run-1")
    np.testing.assert_array_equal(loaded.log_prob(test), density.log_prob(test))
    metrics = RunFolder.open(tmp_path / "runs" / "run-1").metrics()
    assert metrics[-1]["validation_loss"] < metrics[0]["validation_loss"]
