"""The verb ``fluvial infer``. Heavy imports wait until it is used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fluvial.words import read_given


def infer(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    events: Annotated[
        str,
        typer.Argument(
            help="A table of posterior samples: columns event, the targets, log_prior.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder for draws, summary and figures.")],
    prior: Annotated[
        list[str],
        typer.Option(
            "--prior", "-p", help="NAME=uniform:LOW:HIGH, loguniform:LOW:HIGH or normal:MEAN:WIDTH:LOW:HIGH."
        ),
    ],
    given: Annotated[
        list[str] | None, typer.Option("--given", "-g", help="A context value that is known: NAME=NUMBER.")
    ] = None,
    detection: Annotated[
        str | None,
        typer.Option(
            help='Detection probability: an expression of the targets, such as "(Mass_0 / 60) ** 2".'
        ),
    ] = None,
    injections: Annotated[
        str | None, typer.Option(help="Or a table of found injections: the targets and log_draw.")
    ] = None,
    drawn: Annotated[int | None, typer.Option(min=1, help="How many injections were drawn in all.")] = None,
    sampler: Annotated[str, typer.Option(help="auto, table, emcee, nautilus or nuts.")] = "auto",
    draws: Annotated[int, typer.Option("--draws", "-n", min=1, help="Posterior draws.")] = 4000,
    samples: Annotated[int, typer.Option(min=1, help="Samples of each event that are used, at most.")] = 500,
    least_effective: Annotated[
        float, typer.Option(min=0, help="Effective samples that every event must have.")
    ] = 10.0,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Allow priors beyond the contexts of the training table.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same draws.")] = 0,
) -> None:
    """Infer the context of a population from events: hierarchical Bayesian inference with a trained density."""
    from fluvial.workflow.population import Selection, infer_population

    posterior = infer_population(
        run,
        events,
        out,
        priors=_pairs("--prior", prior),
        fixed=read_given(given),
        selection=Selection(detection, injections, drawn) if detection or injections else None,
        sampler=sampler,
        draws=draws,
        samples=samples,
        least_effective=least_effective,
        outside="allow" if extrapolate else "refuse",
        seed=seed,
        tell=_tell,
    )
    summary = posterior.to_json()
    width = max(map(len, posterior.names))
    for name, value in summary["parameters"].items():
        low, high = value["interval_90"]
        sys.stdout.write(f"{name:{width}}  {value['median']:.4g}  90 %: {low:.4g} to {high:.4g}\n")
    if summary["log_evidence"] is not None:
        sys.stdout.write(
            f"log evidence {summary['log_evidence']:.2f} ± {summary['log_evidence_error']:.2f}\n"
        )
    carlo = summary["monte_carlo"]
    sys.stdout.write(
        f"Monte-Carlo variance of log L {carlo['mean_variance']:.2g}; at least "
        f"{carlo['least_effective_samples']:.0f} effective samples an event\n"
    )
    for note in posterior.notes:
        sys.stderr.write(f"fluvial: warning: {note}\n")
    sys.stdout.write(
        f"{len(posterior.samples):,} draws, inference.json, corner.png, predictive.png in {out}\n"
    )


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    from fluvial.errors import DataError

    out: dict[str, str] = {}
    for text in texts:
        name, equals, value = (word.strip() for word in text.partition("="))
        if not equals or not value:
            raise DataError(f"{option}: expected NAME=VALUE; found {text!r}.")
        if name in out:
            raise DataError(f"{option}: expected {name} once; found it twice.")
        out[name] = value
    return out
