"""The verbs of ``fluvial binaries``. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fluvial.words import read_given

app = typer.Typer(
    name="binaries",
    help="Populations of binary black holes: tables, held-out cells, rates, likelihood maps.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Run = Annotated[Path, typer.Argument(help="A run folder, such as runs/binaries-1.", show_default=False)]


@app.callback()
def _binaries() -> None:
    """Populations of binary black holes: tables, held-out cells, rates, likelihood maps."""


@app.command()
def extract(
    files: Annotated[list[Path], typer.Argument(help="HDF5 files of COSMIC.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Table to write: .parquet, .csv or .npy.")],
    set_to: Annotated[
        list[str] | None, typer.Option("--set", help="A column that is the same everywhere: alpha=1.")
    ] = None,
    from_path: Annotated[
        str | None,
        typer.Option(
            help="A regular expression with named groups: 'Z(?P<Z>[0-9.]+)_alpha(?P<alpha>[0-9.]+)'."
        ),
    ] = None,
) -> None:
    """Write the bound binary black holes of COSMIC's output as one table."""
    from fluvial.apps.binaries.cosmic import extract

    table = extract(files, out, set_to=read_given(set_to, "--set"), from_path=from_path)
    merging = int(table["merges"].sum())
    sys.stdout.write(
        f"{len(table['Z']):,} binary black holes ({merging:,} merge) of {len(files)} files in {out}\n"
        f"columns: {', '.join(table)}\n"
    )


@app.command()
def holdout(run: Run) -> None:
    """Judge a run's density at the contexts that its study holds out, again. Exit code 1 if a cell fails."""
    from fluvial.workflow.cells import check_cells, describe

    cells = check_cells(run)
    for cell in cells:
        sys.stdout.write(f"{cell.title}: {describe(cell)}\n")
    sys.stdout.write(f"written to {run / 'cells.json'}; 'fluvial report {run}' shows it\n")
    if any(c.verdict == "fail" for c in cells):
        raise typer.Exit(1)


@app.command()
def rates(
    run: Run,
    simulated: Annotated[
        float, typer.Option(min=0, help="Binaries simulated in every cell; 1: rates are mergers a cell.")
    ] = 1.0,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--at", "--given", "-g", help="Also say what is expected at a context: 'Z=0.0015,alpha=2'."
        ),
    ] = None,
) -> None:
    """Fit the number of mergers as a smooth function of context; write rates.json and rates.png into the run folder."""
    from fluvial.apps.binaries.run_rates import rates_of_run
    from fluvial.report.page import measured

    made = rates_of_run(run, simulated=simulated)
    fitted = made.rates
    total = fitted.cells.counts.sum()
    sys.stdout.write(
        f"{total:,.0f} mergers in {len(fitted.cells.counts)} cells of {', '.join(fitted.names)}; scatter about "
        f"the smooth rate beyond Poisson: {100 * fitted.sigma:.0f} %\n"
    )
    for cell, found, expected, error in made.held:
        at = ", ".join(f"{n} = {v:g}" for n, v in zip(fitted.names, cell, strict=True))
        sys.stdout.write(f"held out, {at}: found {found:g}, expected {measured(expected, error)}\n")
    for text in given or []:
        at = read_given([text], "--at")
        expected, error = fitted.expected(simulated, **at)
        guess = "; outside the range of the cells, a guess" if fitted.outside(**at).any() else ""
        sys.stdout.write(f"{text}: expected {measured(float(expected), float(error))}{guess}\n")
    sys.stdout.write(f"written to {made.path} and {made.figure}\n")


@app.command()
def maps(
    run: Run,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A figure (.png, .pdf, .svg) or animation (.gif, .mp4).")
    ],
    at: Annotated[
        list[str] | None,
        typer.Option("--at", "--given", "-g", help="A context value, such as alpha=1; may be repeated."),
    ] = None,
    metallicity: Annotated[float | None, typer.Option("--Z", help="The same as --at Z=VALUE.")] = None,
    slices: Annotated[
        int | None,
        typer.Option(min=1, max=400, help="Contexts along the free column.", show_default="6, or 40"),
    ] = None,
    outside: Annotated[
        bool,
        typer.Option("--outside", help="Allow contexts outside the range of the table; they are marked."),
    ] = False,
) -> None:
    """Draw likelihood maps over the plane of two targets: slices along the context column that is left free."""
    from fluvial.apps.binaries.maps import ANIMATIONS, likelihood_maps, write_maps
    from fluvial.workflow import load

    fixed = read_given(at, "--at") | ({"Z": metallicity} if metallicity is not None else {})
    moving = out.suffix.lower() in ANIMATIONS
    number = slices or (40 if moving else 6)
    density = load(run)
    made = likelihood_maps(
        density, fixed, slices=number, points=140 if moving else 200, outside="allow" if outside else "raise"
    )
    write_maps(made, density, out)
    sys.stdout.write(f"{len(made.contexts)} maps in {out}\n")
