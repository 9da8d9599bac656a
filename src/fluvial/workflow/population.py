"""``infer_population``: from a run and measured events to the posterior of the hyperparameters, with figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fluvial.data.expressions import parse_expression
from fluvial.data.readers import open_table, write_table
from fluvial.errors import DataError, RunError
from fluvial.files import write_atomically
from fluvial.infer.events import EVENT, LOG_PRIOR, Events, Injections
from fluvial.infer.population import PopulationLikelihood
from fluvial.infer.posterior import PopulationPosterior, sample_posterior
from fluvial.infer.predictive import predictive
from fluvial.infer.priors import LogUniform, parse_prior
from fluvial.record import now
from fluvial.report import population as figures
from fluvial.report import style
from fluvial.workflow.use import load

POSTERIOR, SUMMARY = "posterior.parquet", "inference.json"


@dataclass(frozen=True)
class Selection:
    """What a survey detects: an expression of the targets, or a table of found injections and how many were drawn."""

    expression: str | None = None
    injections: str | None = None
    drawn: int | None = None

    def read(self, names: list[str]) -> Callable[[dict[str, np.ndarray]], np.ndarray] | Injections | None:
        """Return what :class:`~fluvial.infer.population.PopulationLikelihood` takes; ``None`` if all is detected."""
        if self.expression is not None and self.injections is not None:
            raise DataError("Expected a detection probability or injections, not both.")
        if self.injections is not None:
            if self.drawn is None:
                raise DataError(
                    f"{self.injections}: how many injections were drawn, found or not, must be said (--drawn)."
                )
            return Injections.from_table(
                open_table(self.injections).read([*names, "log_draw"]),
                names,
                self.drawn,
                where=self.injections,
            )
        if self.expression is None:
            return None
        parsed = parse_expression(self.expression, "detection")
        parsed.require(names, "the density")
        return lambda table: np.clip(np.broadcast_to(parsed(table), table[names[0]].shape), 0.0, 1.0)


def infer_population(
    run: str | Path,
    events: str | Path,
    out: str | Path,
    *,
    priors: Mapping[str, str],
    fixed: Mapping[str, float] | None = None,
    selection: Selection | None = None,
    sampler: str = "auto",
    draws: int = 4000,
    samples: int = 500,
    least_effective: float = 10.0,
    outside: str = "refuse",
    seed: int = 0,
    truth: Mapping[str, float] | None = None,
    tell: Callable[[str], None] | None = None,
) -> PopulationPosterior:
    """Infer hyperparameters from a table of events' posterior samples; write draws, a summary and figures.

    Parameters
    ----------
    run
        The run whose density is the population's.
    events
        A table with a row a sample: ``event``, the targets, and ``log_prior`` unless the sampling prior was flat.
    out
        A new folder for ``posterior.parquet``, ``inference.json``, ``corner.png`` and ``predictive.png``.
    priors
        For every hyperparameter a text such as ``loguniform:1e-4:0.02`` (see
        :func:`fluvial.infer.priors.parse_prior`).
    fixed
        Context columns whose value is known.
    selection
        What the survey detects; all, if left out.
    samples
        Samples of each event that are used, at most.
    truth
        True hyperparameters of a simulation, marked in the figure.

    Raises
    ------
    DataError, RunError, MissingExtraError
        Before anything is written.
    """
    tell = tell or (lambda line: None)
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} exists and is not empty; give another folder, or remove it.")
    density = load(run)
    names = density.schema.target_names
    read = _read_events(events, names).thinned(samples, seed)
    tell(f"{len(read)} events, {read.counts().min()} to {read.counts().max()} samples each")
    parsed = {name: parse_prior(text) for name, text in priors.items()}
    likelihood = PopulationLikelihood(
        density,
        read,
        parsed,
        fixed=fixed,
        detection=(selection or Selection()).read(names),
        least_effective=least_effective,
        injections=max(4_000, 50 * len(read)),
        outside=outside,
        seed=seed,
    )
    if likelihood.injections is not None:
        tell(f"{len(likelihood.injections.found):,} injections found of {likelihood.injections.drawn:,}")
    posterior = sample_posterior(likelihood, sampler=sampler, draws=draws, seed=seed, tell=tell)
    check = predictive(likelihood, posterior, seed=seed)
    columns = {c.name: c for c in density.schema.context}
    corner = figures.posterior_corner(
        posterior.samples,
        [columns[n] for n in posterior.names],
        None if truth is None else [truth[n] for n in posterior.names],
        [isinstance(p, LogUniform) for p in parsed.values()],
    )
    bands = figures.predictive_bands(
        check.observed, check.predicted, density.schema.targets, check.p_values()
    )
    folder.mkdir(parents=True, exist_ok=True)
    table = {n: posterior.samples[:, i] for i, n in enumerate(posterior.names)}
    write_table(folder / POSTERIOR, table | {"rate": posterior.rate})
    write_atomically(folder / "corner.png", style.png(corner))
    write_atomically(folder / "predictive.png", style.png(bands))
    summary = {
        "made": now(),
        "run": str(density.folder),
        "events": {"source": str(events), "number": len(read), "samples": len(read.samples)},
        "priors": dict(priors),
        "fixed": dict(fixed or {}),
        "selection": None if selection is None else vars(selection),
        "seed": seed,
        **posterior.to_json(),
        "predictive_p_values": check.p_values(),
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / SUMMARY, text.encode())
    return posterior


def _read_events(path: str | Path, names: list[str]) -> Events:
    reader = open_table(path)
    wanted = [EVENT, *names, *([LOG_PRIOR] if LOG_PRIOR in reader.columns() else [])]
    return Events.from_table(reader.read(wanted), names, where=str(path))
