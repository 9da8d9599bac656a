"""``recalibrate``: a run whose density is mended by a map in its latent space, beside the one it was made from."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.check import CheckResult
from fluvial.density import Density
from fluvial.errors import RunError
from fluvial.flows.recalibrated import LatentMap, RecalibratedFlow, latent_maps, recalibrated
from fluvial.record import METRICS, STUDY, RunFolder, now
from fluvial.study import Study
from fluvial.train.recalibrate import LatentFit, fit_latent_map
from fluvial.workflow.card import write_card
from fluvial.workflow.check import compute_checks, run_checks
from fluvial.workflow.data import Rows, thinned
from fluvial.workflow.report import report_run
from fluvial.workflow.rows import read_run
from fluvial.workflow.trust import Tell


def recalibrate(
    run: str | Path, out: str | Path | None = None, *, on_event: Tell | None = None
) -> tuple[Density, LatentFit]:
    """Recalibrate the density of a run; leave a new run folder with its checks and report.

    A monotone map of each latent coordinate (one for all members of an ensemble) is fitted by maximum likelihood to rows
    that training did not learn from: the
    calibration split of the study, or where it has none the validation split, by which training may have been stopped.
    Every second row is used; the others are left for conformal regions and the threshold of novelty. The original is not
    changed.

    Parameters
    ----------
    run
        The run folder.
    out
        The new one; by default beside it, its name with ``-recalibrated``.
    on_event
        Called with a text now and then.

    Returns
    -------
    tuple[Density, LatentFit]
        The density, whose ``folder`` is the new run, and what was fitted. Where nothing is to be mended, the original
        density, and no folder is made.

    Raises
    ------
    RunError
        If there is no such run, its data have changed, it is recalibrated already, or its flow has no latent space.
    """
    tell = on_event or (lambda text: None)
    folder = RunFolder.open(run)
    record, study, rows = read_run(folder)
    target = (
        Path(out) if out is not None else folder.path.with_name(f"{folder.path.resolve().name}-recalibrated")
    )
    if target.exists():
        raise RunError(f"Expected {target} to be new; it exists. Choose another --out, or remove it.")
    original = Density.load(folder.path)
    original.folder = folder.path
    if original.recalibration is not None:
        raise RunError(
            f"{folder.path} is recalibrated already; recalibrate the run that it was made from, "
            f"{original.recalibration['of']}."
        )
    began = time.perf_counter()
    split = "calibration" if rows.count("calibration") else "validation"
    part = rows.take(thinned(getattr(rows.split, split)[::2], original.flow.validation_rows))
    tell(f"recalibrating on {len(next(iter(part.values()))):,} {split} rows")
    fit = _fit(folder.path, part, study.check.seed)
    if fit.options is None:
        return original, fit
    density = _mended(folder.path, fit)
    about = {
        "map": fit.options,
        "of": folder.name,
        "split": split,
        "also_stopped_training": split == "validation",
        "rows": fit.rows,
        "data_sha256": record["data"]["fingerprint"]["sha256"],
        "made": now(),
        "held_out_gain": fit.gain,
        "held_out_gain_error": fit.gain_error,
    }
    density.recalibration = about
    tell("before and after on the test rows")
    before, after = (_on_test(one, rows, study, tell) for one in (original, density))
    density.recalibration = {**about, "test": _compared(before, after)}
    timings = {**record["timings"], "recalibration": time.perf_counter() - began}

    def fill(new: RunFolder) -> None:
        for name in (STUDY, METRICS):
            if (folder.path / name).exists():
                shutil.copyfile(folder.path / name, new.path / name)
        weights = sum(p.numel() for p in density.flow.parameters())
        new.write_record(
            {
                **record,
                "name": target.name,
                "checks": {},
                "timings": timings,
                "weights": weights,
                "recalibrated": about,
            }
        )
        density.save(new.path)

    new = RunFolder.create(target.parent, target.name, target.name, fill)
    density.folder = new.path
    _check(new, density, rows, study, tell)
    return density, fit


def _check(run: RunFolder, density: Density, rows: Rows, study: Study, tell: Tell) -> None:
    """Check the new run, write its report and its card."""
    tell("checking on the test rows")
    record = run.record()
    began = time.perf_counter()
    record["checks"] = run_checks(run, density, rows, study, tell)
    record["timings"]["checks"] = time.perf_counter() - began
    run.write_record(record)
    write_card(run)
    tell("writing the report")
    report_run(run.path)


def _fit(folder: Path, part: dict[str, np.ndarray], seed: int) -> LatentFit:
    """Fit the map to the latents of rows: they are caught on their way through a map that changes nothing."""
    density = Density.load(folder)
    try:
        density.flow, probe = recalibrated(density.flow, bins=0)
    except ValueError as error:
        raise RunError(
            f"{folder} cannot be recalibrated: {error}. Its conformal regions hold as often as they say all the same: "
            "see fluvial.conformal_regions."
        ) from error
    density.flow.requires_grad_(False)
    probes = latent_maps(density.flow)
    caught: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in probes]
    hooks = [p.register_forward_pre_hook(partial(_catch, at)) for p, at in zip(probes, caught, strict=True)]
    given = density.given(part if density.schema.context else None, outside="allow")
    log_prob = torch.from_numpy(given.log_prob_members(part)).mT
    for hook in hooks:
        hook.remove()
    z = torch.stack([torch.cat([latent for latent, _ in at]) for at in caught], 1)
    seen = [[context for _, context in at if context is not None] for at in caught]
    context = torch.stack([torch.cat(of_member) for of_member in seen], 1) if seen[0] else None
    bases = [module.base for module in density.flow.modules() if isinstance(module, RecalibratedFlow)]

    def make(options: dict[str, Any]) -> LatentMap:
        held: dict[str, Any] = {"present": probe.index.tolist(), "angles": probe.turning.tolist()}
        return LatentMap(z.shape[-1], 0 if context is None else context.shape[-1], **options, **held)

    def base(latents: Tensor) -> Tensor:
        parts = [one.log_density(latents[:, k]) for k, one in enumerate(bases)]
        return torch.stack(parts, 1)

    if len(probes) == 1:  # no mixture: what the bijection itself adds is the same before and after
        alone = None if context is None else context[:, 0]
        return fit_latent_map(make, z[:, 0], alone, bases[0].log_density, seed=seed)
    members = (log_prob - base(z).sum(-1)).to(z.dtype)
    return fit_latent_map(make, z, context, base, members=members, seed=seed)


def _catch(at: list[tuple[Tensor, Tensor | None]], module: torch.nn.Module, inputs: Any) -> None:
    at.append((inputs[0], inputs[1]))


def _mended(folder: Path, fit: LatentFit) -> Density:
    """Return the density with the fitted map in it."""
    assert fit.options is not None
    density = Density.load(folder)
    flow, _ = recalibrated(density.flow, **fit.options)
    for latent_map in latent_maps(flow):
        latent_map.load_state_dict(fit.state)
    density.flow = flow.eval()
    return density


def _on_test(
    density: Density, rows: Rows, study: Study, tell: Tell
) -> tuple[list[CheckResult], dict[str, np.ndarray]]:
    return compute_checks(density, rows.part("test"), None, study, tell)


def _compared(
    before: tuple[list[CheckResult], dict[str, np.ndarray]],
    after: tuple[list[CheckResult], dict[str, np.ndarray]],
) -> dict[str, Any]:
    """Return what recalibration changed on test rows, as it stands in ``density.json``."""
    gain = after[1]["log_prob"] - before[1]["log_prob"]
    gain = gain[np.isfinite(gain)]
    out: dict[str, Any] = {
        "rows": len(gain),
        "gain": float(gain.mean()),
        "gain_error": float(gain.std(ddof=1) / len(gain) ** 0.5),
        "levels": [float(v) for v in before[1]["levels"]],
    }
    for when, (results, arrays) in (("before", before), ("after", after)):
        finite = arrays["log_prob"][np.isfinite(arrays["log_prob"])]
        coverage = next(r for r in results if r.name == "coverage")
        out |= {
            f"nll_{when}": float(-finite.mean()),
            f"coverage_{when}": coverage.statistic,
            "coverage_error": coverage.uncertainty,
            f"curve_{when}": [float(v) for v in arrays["coverage"]],
            f"curve_error_{when}": [float(v) for v in arrays["coverage_error"]],
        }
    return out
