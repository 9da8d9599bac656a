"""Recalibration: a density that claims too much is mended, one that does not is left, and all stays a density."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import fluvial
from fluvial import RunError
from fluvial.check import CheckResult
from fluvial.core import StandardNormal
from fluvial.data.readers import write_table
from fluvial.data.split import split_rows
from fluvial.density import Density
from fluvial.flows import LatentMap, RecalibratedFlow, build_flow, build_mixed_flow, recalibrated
from fluvial.train.recalibrate import fit_latent_map
from fluvial.workflow.recalibrate import recalibrate

SPLIT = {"train": 0.4, "validation": 0.1, "test": 0.25, "calibration": 0.25}
STUDY = """
[data]
source = "table.parquet"
targets = ["x"]
context = ["c"]
seed = 3
split = { train = 0.4, validation = 0.1, test = 0.25, calibration = 0.25 }

[columns.x]
support = "positive"

[flow]
architecture = "diagonal-gaussian"
width = 8

[training]
epochs = 12
batch_size = 256

[check]
contexts = 3000
draws = 99
"""


def spread(rows: int, *, c: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Return latents of a density that is overconfident by 1.6, of heavy tails, with a bias."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 1.6 * torch.randn(rows, 2, generator=generator)


def fitted(z: torch.Tensor, context: torch.Tensor | None = None):
    columns = 0 if context is None else context.shape[-1]
    return fit_latent_map(
        lambda options: LatentMap(2, columns, **options), z, context, StandardNormal().log_density
    )


def test_an_overconfident_latent_is_mended() -> None:
    fit = fitted(spread(2000))
    assert fit.options is not None
    latent_map = LatentMap(2, **fit.options)
    latent_map.load_state_dict(fit.state)
    with torch.no_grad():
        z, _ = latent_map(spread(5000, seed=1))
    assert abs(float(z.mean())) < 0.05
    assert abs(float(z.std()) - 1) < 0.04
    # log of the normal that is true, less log of the one that was claimed: KL = (s² + m² − 1)/2 − log s a coordinate
    expected = 2 * ((1.6**2 + 0.3**2 - 1) / 2 - math.log(1.6))
    assert fit.gain == pytest.approx(expected, abs=5 * fit.gain_error + 0.02)


def test_what_is_exact_is_left_alone() -> None:
    for seed in range(4):
        assert fitted(torch.randn(1500, 2, generator=torch.Generator().manual_seed(seed))).options is None


def test_a_skewed_latent_gets_a_spline_and_one_that_hangs_on_context_is_steered() -> None:
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    skewed = fitted(torch.where(z > 0, 1.8 * z, 0.6 * z))
    assert skewed.options == {"bins": 8, "steered": False}
    c = torch.linspace(-1.5, 1.5, 4000)[:, None]
    steered = fitted(z * torch.exp(0.5 * c), c)
    assert steered.options == {"bins": 8, "steered": True}
    assert steered.gain > 0.1


@pytest.mark.parametrize(
    "flow",
    [
        build_flow("maf", targets=2, context=3, trunk=8, width=8),
        build_flow("continuous", targets=2, context=3, width=8, solver_steps=3),
        build_flow("gaussianization", targets=2, context=3, width=8, kernels=3),
        build_mixed_flow("maf", numbers=2, levels=[2], holder=[0, None], angles=[False, False], context=3, width=8),
        build_mixed_flow(
            "autoregressive-spline", numbers=2, levels=[], holder=[None, None], angles=[False, True], context=3, width=8,
        ),
    ],
    ids=["trunk", "continuous", "gaussianization", "atoms", "angle"],
)  # fmt: skip
def test_every_flow_with_a_latent_can_have_a_map(flow) -> None:
    flow = flow.eval()
    c = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    x = flow(c).sample((40,), generator=torch.Generator().manual_seed(1))
    before = flow(c).log_prob(x)
    flow, latent_map = recalibrated(flow, bins=4, steered=True)
    flow = flow.eval()
    torch.testing.assert_close(flow(c).log_prob(x), before, atol=1e-5, rtol=1e-5)  # the identity at first
    with torch.no_grad():
        for parameter in latent_map.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    y, log_prob = flow(c).rsample_and_log_prob((40,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(flow(c).log_prob(y), log_prob, atol=1e-2, rtol=1e-2)
    assert not torch.allclose(y, x, atol=1e-2)
    torch.testing.assert_close(flow(c).sample((40,), generator=torch.Generator().manual_seed(1)), y.detach())


def test_absent_numbers_and_angles_are_left_alone() -> None:
    latent_map = LatentMap(3, 2, bins=4, present=[-1, 0, -1], angles=[False, False, True]).requires_grad_(
        False
    )
    latent_map.log_scale.fill_(0.5)
    z = torch.ones(2, 3)
    out, logdet = latent_map(z, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert (out != z).tolist() == [[True, True, False], [True, False, False]]
    torch.testing.assert_close(logdet, torch.tensor([1.0, 0.5]), atol=0.02, rtol=0)
    back, _ = latent_map.inverse(out, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(back, z)


@pytest.mark.parametrize("name", ["mixture", "zuko:NSF"])
def test_flows_without_a_latent_say_so(name: str) -> None:
    with pytest.raises(ValueError, match="has no latent space"):
        recalibrated(build_flow(name, targets=2, context=1))
    once, _ = recalibrated(build_flow("maf", targets=2, context=1))
    with pytest.raises(ValueError, match="recalibrated already"):
        recalibrated(once)


def overconfident(folder: Path, study: str = STUDY, rows: int = 12_000) -> Path:
    """Write a table whose training rows scatter less than the others about the same curve, and its study."""
    rng = np.random.default_rng(0)
    c = rng.uniform(-1, 1, rows)
    noise = np.ones(rows)
    noise[split_rows(rows, SPLIT, seed=3).train] = 0.6
    write_table(
        folder / "table.parquet", {"x": np.exp(0.5 * c + 0.4 * noise * rng.normal(size=rows)), "c": c}
    )
    path = folder / "narrow.toml"
    path.write_text(study)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("recalibrate")
    density = fluvial.fit(overconfident(folder), runs=folder / "runs")
    assert density.folder is not None
    mended, fit = recalibrate(density.folder)
    assert fit.options is not None
    assert mended.folder is not None
    return density.folder, mended.folder


def results(folder: Path) -> dict[str, CheckResult]:
    return {
        r["name"]: CheckResult.from_json(r)
        for r in json.loads((folder / "checks.json").read_bytes())["results"]
    }


def test_an_overconfident_run_is_mended(runs: tuple[Path, Path]) -> None:
    before, after = (results(folder) for folder in runs)
    assert before["coverage"].verdict == before["pull width"].verdict == "fail"
    assert after["coverage"].statistic < 3 * after["coverage"].uncertainty
    assert after["pull width"].deviation < 4 * after["pull width"].uncertainty
    assert after["normalisation"].verdict == "pass"
    test = json.loads((runs[1] / "density.json").read_bytes())["recalibration"]["test"]
    assert test["gain"] > 10 * test["gain_error"] > 0
    assert test["nll_after"] == pytest.approx(test["nll_before"] - test["gain"], abs=1e-6)
    # The truth's own log-density is the limit: what is left is less than a hundredth of what was gained.
    x = np.exp(0.5 * 0.3 + 0.4 * np.random.default_rng(1).normal(size=20_000))
    truth = -0.5 * ((np.log(x) - 0.15) / 0.4) ** 2 - np.log(0.4 * x * math.sqrt(2 * math.pi))
    left = (truth - fluvial.load(runs[1]).given(c=0.3).log_prob({"x": x})).mean()
    assert left < 0.02


def test_the_artefact_says_so(runs: tuple[Path, Path]) -> None:
    density = fluvial.load(runs[1])
    assert "recalibrated on 1," in repr(density)
    assert "calibration rows" in repr(density)
    about = density.recalibration
    assert about is not None
    assert (about["split"], about["also_stopped_training"], about["of"]) == (
        "calibration",
        False,
        runs[0].name,
    )
    assert len(about["data_sha256"]) == 64
    assert json.loads((runs[1] / "density.json").read_bytes())["format"] == 3
    assert "recalibrated" not in repr(fluvial.load(runs[0]))
    assert "**recalibrated**" in (runs[1] / "README.md").read_text()
    assert (
        json.loads((runs[1] / "card.json").read_bytes())["density"]["recalibration"]["rows"] == about["rows"]
    )
    page = (runs[1] / "report.html").read_text()
    assert "Recalibration" in page
    from fluvial.record_model import Record

    Record.model_validate(json.loads((runs[1] / "record.json").read_bytes()))


def test_it_is_still_a_density_and_saves(runs: tuple[Path, Path], tmp_path: Path) -> None:
    density = fluvial.load(runs[1])
    flow = density.flow
    assert isinstance(flow, RecalibratedFlow)
    p = density.given(c=-0.5)
    t = np.exp(np.linspace(-6, 5, 20_001))
    assert np.trapezoid(np.exp(p.log_prob({"x": t})), t) == pytest.approx(1, abs=1e-3)
    draws, log_prob = p.sample_and_log_prob(500, seed=0)
    np.testing.assert_allclose(p.log_prob(draws), log_prob, atol=1e-3)
    density.save(tmp_path)
    np.testing.assert_array_equal(Density.load(tmp_path).given(c=-0.5).log_prob(draws), p.log_prob(draws))


def test_the_original_is_untouched_and_neither_twice_nor_over_another(runs: tuple[Path, Path]) -> None:
    with pytest.raises(RunError, match=r"is recalibrated already; .* it was made from, narrow-1"):
        recalibrate(runs[1], runs[1].parent / "twice")
    with pytest.raises(RunError, match=r"narrow-1-recalibrated to be new; it exists\. Choose another --out"):
        recalibrate(runs[0])
    with pytest.raises(RunError, match="is the recalibrated form of narrow-1"):
        fluvial.resume(runs[1], epochs=20)


def test_a_mixture_is_refused_and_an_exact_run_needs_nothing(tmp_path: Path) -> None:
    mixture = STUDY.replace('"diagonal-gaussian"', '"mixture"').replace("epochs = 12", "epochs = 1")
    density = fluvial.fit(overconfident(tmp_path, mixture, 1500), runs=tmp_path / "runs", check=False)
    assert density.folder is not None
    with pytest.raises(RunError, match=r"cannot be recalibrated: a MixtureOfGaussians has no latent space"):
        recalibrate(density.folder)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [density.folder.name]


def test_an_ensemble_is_mended_as_the_mixture_that_it_is(tmp_path: Path) -> None:
    study = STUDY.replace("epochs = 12", "epochs = 6\nensemble = 2").replace("3000", "2000")
    density = fluvial.fit(overconfident(tmp_path, study), runs=tmp_path / "runs")
    assert density.folder is not None
    mended, fit = recalibrate(density.folder)
    assert mended.folder is not None
    assert len(mended.members) == 2
    before, after = (results(folder) for folder in (density.folder, mended.folder))
    assert before["coverage"].verdict == "fail"
    assert after["coverage"].statistic < 3 * after["coverage"].uncertainty
    assert after["pull width"].deviation < 4 * after["pull width"].uncertainty
    assert mended.recalibration is not None
    assert mended.recalibration["test"]["gain"] > 5 * mended.recalibration["test"]["gain_error"]
    assert fit.gain == pytest.approx(mended.recalibration["test"]["gain"], abs=4 * fit.gain_error)
    again = fluvial.load(mended.folder)
    t = np.exp(np.linspace(-6, 5, 20_001))
    p = again.given(c=0.4)
    assert np.trapezoid(np.exp(p.log_prob({"x": t})), t) == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(p.log_prob({"x": t}), mended.given(c=0.4).log_prob({"x": t}))
    assert p.log_prob_spread({"x": t[::1000]}).shape == (21,)
    assert "recalibrated on" in repr(again)
    assert (mended.folder / "report.html").exists()


def test_a_mixture_is_fitted_as_one() -> None:
    # Two members, 0.6 off to either side, that claim a width of 0.5: what is wanted of both together has variance 1.
    x = torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(0))
    z = (x - torch.tensor([-0.6, 0.6])[None, :, None]) / 0.5
    normal = StandardNormal().log_density

    def width(z: torch.Tensor, **more: torch.Tensor) -> float:
        fit = fit_latent_map(lambda options: LatentMap(1, **options), z, None, normal, **more)
        assert fit.options is not None
        latent_map = LatentMap(1, **fit.options)
        latent_map.load_state_dict(fit.state)
        with torch.no_grad():
            drawn = latent_map.inverse(torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1)))[0]
        return float(0.5 * drawn.std())

    assert width(z, members=torch.zeros(4000, 2)) == pytest.approx(0.8, abs=0.04)
    assert width(z[:, 0]) == pytest.approx(1.0, abs=0.04)  # a member by itself becomes as wide as all
