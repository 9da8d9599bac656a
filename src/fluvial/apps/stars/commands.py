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
