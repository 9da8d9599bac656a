"""The verbs of ``fluvial stars``. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fluvial.apps.stars.evaluate import Evaluation

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
        typer.Option(help="What to resample to: an npy file of wavelengths [Å], or spectra that have them."),
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

    from fluvial.apps.stars.observed import load_spectra, prepare
    from fluvial.errors import DataError

    wavelengths = None
    if grid is not None:
        wavelengths = (
            np.load(grid, allow_pickle=False) if grid.suffix == ".npy" else load_spectra(grid).wavelength
        )
        if wavelengths is None:
            raise DataError(f"--grid: {grid} does not say its wavelengths")
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


Wavelength = Annotated[
    Path | None,
    typer.Option(help="Wavelengths [Å] of the pixels: an npy file.", show_default="_grid/ of the data"),
]
Star = Annotated[
    int | None,
    typer.Option(min=0, help="Which test star's posterior is drawn.", show_default="a typical one"),
]


@app.command()
def figures(
    run: Annotated[Path, typer.Argument(help="A run folder on spectra.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write into.", show_default="RUN/figures")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", "-n", min=40, help="Draws for each star.")] = 1000,
    star: Star = None,
    wavelength: Wavelength = None,
    most: Annotated[
        int | None, typer.Option(min=20, help="Test stars to look at.", show_default="all")
    ] = None,
) -> None:
    """Draw predictions, pulls, coverage, one posterior, and the wavelengths that carry the information."""
    from fluvial.apps.stars.figures import figures, load_run

    folder = out or run / "figures"
    loaded = load_run(run, most=most, wavelength=wavelength)
    found, paths = figures(loaded, folder, draws=draws, star=star)
    _scores({loaded.name: found}, loaded.density.schema.target_names)
    sys.stdout.write(f"{len(paths) - 1} figures and {paths[-1]}\n")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders on the same stars.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("compared"),
    draws: Annotated[int, typer.Option("--draws", "-n", min=40, help="Draws for each star.")] = 1000,
    star: Star = None,
    most: Annotated[
        int | None, typer.Option(min=20, help="Test stars to look at.", show_default="all")
    ] = None,
) -> None:
    """Set runs side by side on the same test stars: scores, and one star's posterior in all of them."""
    from fluvial.apps.stars.figures import compare, load_run

    loaded = [load_run(run, most=most) for run in runs]
    found = compare(loaded, out, draws=draws, star=star)
    _scores(found, loaded[0].density.schema.target_names)
    sys.stdout.write(f"{out / 'scores.png'}, {out / 'corner.png'}\n")


def _scores(found: dict[str, Evaluation], names: list[str]) -> None:
    """Print what test stars say of densities."""
    width = max(map(len, found))
    for who, one in found.items():
        nll, error = one.nll
        joint = ", ".join(f"{100 * one.joint_coverage(a)[0]:.1f} %" for a in (0.68, 0.95))
        sys.stdout.write(f"{who:{width}}  −log p {nll:.4f} ± {error:.4f} nats; ")
        sys.stdout.write(f"joint 68 and 95 % regions hold {joint} of {len(one.truth):,} stars\n")
        for j, name in enumerate(names):
            mean, wide, steep = (
                tuple(v[j] for v in pair) for pair in (one.pull_mean, one.pull_width, one.slope)
            )
            held = ", ".join(f"{100 * one.coverage(a)[0][j]:.1f} %" for a in (0.68, 0.95))
            pull = f"pull {mean[0]:+.3f} ± {mean[1]:.3f}, width {wide[0]:.3f} ± {wide[1]:.3f}"
            line = f"{'':{width}}  {name:8}  R² {one.r_squared[j]:.4f}  rms {one.rms[j]:<8.4g}  {pull}  "
            line += f"coverage {held}  slope {steep[0]:+.4f}"
            sys.stdout.write(line.replace("-", "−") + "\n")
