"""The verbs of ``fluvial stars``. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="stars",
    help="Stars: labels from spectra, with errors that can be trusted.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _stars() -> None:
    """Stars: labels from spectra, with errors that can be trusted."""


@app.command()
def simulate(
    rows: Annotated[int, typer.Option("--rows", "-n", help="Stars to simulate.")] = 8914,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("stars"),
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    errors: Annotated[
        bool, typer.Option("--errors", help="Write errors.npy too, as large as the spectra.")
    ] = False,
    noiseless: Annotated[bool, typer.Option("--noiseless", help="The same spectra before noise.")] = False,
) -> None:
    """Simulate a survey like GALAH: spectra.npy and labels.npy as GALAH published them."""
    write_survey(out, rows, seed=seed, errors=errors, noise=not noiseless)


def write_survey(folder: Path, rows: int, *, seed: int, errors: bool = False, noise: bool = True) -> None:
    """Simulate into a folder, with a line now and then on standard error; say what was written."""
    from fluvial.apps.stars.simulator import write

    begin = time.monotonic()
    shown = begin

    def show(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > 5:
            shown = now
            sys.stderr.write(f"{done:,} of {rows:,} stars, {done / (now - begin):,.0f} a second\n")

    write(folder, rows, seed, errors=errors, noise=noise, progress=show)
    seconds = time.monotonic() - begin
    size = sum(p.stat().st_size for p in folder.glob("*.npy")) / 1e6
    sys.stdout.write(f"{rows:,} stars in {folder} ({size:,.0f} MB), {rows / seconds:,.0f} a second\n")


@app.command()
def prepare(
    sources: Annotated[
        list[Path], typer.Argument(help="Folders of npy files, npz or FITS files.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")],
    grid: Annotated[
        Path | None,
        typer.Option(help="Wavelengths [Å] to resample to: an npy file, such as _grid/wavelength.npy."),
    ] = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Divide by a pseudo-continuum.")] = False,
    window: Annotated[float, typer.Option(min=1.0, help="Width [Å] of the windows it is made in.")] = 60.0,
    velocity: Annotated[float, typer.Option(help="Radial velocity [km/s] to take out.")] = 0.0,
    vacuum: Annotated[
        bool, typer.Option("--vacuum", help="The wavelengths of the files are in vacuum.")
    ] = False,
    fill: Annotated[
        float | None, typer.Option(help="What stands in pixels without data.", show_default="NaN")
    ] = None,
) -> None:
    """Bring spectra of many files onto one grid: spectra.npy, errors.npy and labels, ready for a study or a catalogue."""
    import numpy as np

    from fluvial.apps.stars.observed import prepare
    from fluvial.errors import DataError

    try:
        wavelengths = None if grid is None else np.load(grid, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"--grid: {grid} is no npy file of wavelengths ({error})") from error
    facts = prepare(
        list(sources),
        out,
        grid=wavelengths,
        normalised=normalise,
        window=window,
        velocity=velocity,
        vacuum=vacuum,
        fill=fill,
    )
    share = facts["masked"] / max(facts["rows"] * facts["pixels"], 1)
    sys.stdout.write(
        f"{facts['rows']:,} spectra of {facts['pixels']:,} pixels in {out}, {100 * share:.2g} % of pixels without data; "
        f"columns: {', '.join(facts['columns'])}\n"
    )


@app.command()
def catalogue(
    run: Annotated[
        Path, typer.Argument(help="A run folder: the density of labels given spectra.", show_default=False)
    ],
    spectra: Annotated[str, typer.Argument(help="Spectra: a folder, a file, a glob.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Catalogue to write: .parquet or .fits.")],
    draws: Annotated[int, typer.Option("--draws", "-n", min=40, help="Draws for each star.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same catalogue.")] = 0,
    joint: Annotated[bool, typer.Option("--joint", help="Add the joint 68 and 95 % regions.")] = False,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", "-k", help="A column to carry over; may be repeated.")
    ] = None,
) -> None:
    """Write labels, errors, regions and flags of every star."""
    from fluvial.apps.stars.catalogue import catalogue
    from fluvial.workflow import load

    shown = time.monotonic()
    begin = shown

    def show(done: int, rows: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > 5:
            shown = now
            sys.stderr.write(f"{done:,} of {rows:,} spectra, {done / (now - begin):,.0f} a second\n")

    done = catalogue(
        load(run), spectra, out, draws=draws, seed=seed, joint=joint, keep=keep or (), progress=show
    )
    sys.stdout.write(
        f"{done.rows:,} stars in {out}, {done.rows / max(done.seconds, 1e-9):,.0f} spectra a second\n"
    )
    for name, count in done.flags.items():
        if count:
            sys.stdout.write(f"{count:8,}  {name.replace('_', ' ')}\n")
    for note in done.notes:
        sys.stderr.write(f"note: {note}\n")
