"""The verbs of ``fluvial collider``. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fluvial.apps.collider.extract import FileResult
    from fluvial.apps.collider.generate import Generated

app = typer.Typer(
    name="collider",
    help="Jets and muons: NanoAOD in, NanoAOD out.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _collider() -> None:
    """Jets and muons: NanoAOD in, NanoAOD out."""


@app.command()
def extract(
    files: Annotated[list[str], typer.Argument(help="NanoAOD files.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet table to write.")],
    object_name: Annotated[str, typer.Option("--object", help="What to pair: jet or muon.")] = "jet",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table that is there.")] = False,
) -> None:
    """Write matched pairs of generator-level and reconstructed objects. The same command takes up where it stopped."""
    from fluvial.apps.collider.extract import extract

    done = 0

    def show(result: FileResult) -> None:
        nonlocal done
        done += 1
        sys.stderr.write(f"{done}/{len(files)}  {_line(result, object_name)}\n")

    result = extract(files, object_name, out, overwrite=overwrite, on_file=show)
    used = next(f for f in result.files if f.status != "failed")
    if used.missing:
        sys.stderr.write(f"left out, not in this production: {', '.join(used.missing)}\n")
    sys.stdout.write(f"{result.pairs:,} pairs of {len(result.files) - len(result.failed)} files in {out}\n")
    if result.failed:
        sys.stdout.write(
            f"{len(result.failed)} of {len(result.files)} files could not be used (see above). Mend them and run the "
            "same command with --overwrite: the others will not be read again.\n"
        )
        raise typer.Exit(1)


@app.command()
def generate(
    files: Annotated[
        list[str], typer.Argument(help="NanoAOD files with a generator level.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="ROOT file to write; of many files, a folder.")],
    jets: Annotated[Path | None, typer.Option(help="A run folder: the density of jets.")] = None,
    muons: Annotated[Path | None, typer.Option(help="A run folder: the density of muons.")] = None,
    oversample: Annotated[int, typer.Option(min=1, help="Copies of every event, objects drawn anew.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same objects.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Draw anew what is there.")] = False,
) -> None:
    """Draw reconstructed jets and muons for generator-level events; write NanoAOD."""
    from fluvial.apps.collider.generate import generate
    from fluvial.workflow import load

    with _Bar(len(files)) as bar:
        results = generate(
            files,
            out,
            jets=load(jets) if jets is not None else None,
            muons=load(muons) if muons is not None else None,
            oversample=oversample,
            seed=seed,
            overwrite=overwrite,
            on_file=bar.file,
            on_piece=bar.piece,
        )
    written = [r for r in results if r.status == "written"]
    objects, seconds = sum(r.objects for r in written), sum(r.seconds for r in written)
    rate = f", {objects / seconds:,.0f} a second" if seconds and objects else ""
    sys.stdout.write(f"{objects:,} objects{rate} in {out}\n")
    if failed := sum(r.status == "failed" for r in results):
        sys.stdout.write(f"{failed} of {len(files)} files could not be used (see above).\n")
        raise typer.Exit(1)


@app.command()
def validate(
    run: Annotated[
        Path, typer.Argument(help="A run folder: a density of jets or muons.", show_default=False)
    ],
    pairs: Annotated[
        list[str],
        typer.Argument(help="Tables of pairs it has not seen, one a process.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder.", show_default="RUN/validation")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=400, help="Of each table, at most.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same draws.")] = 0,
) -> None:
    """Compare fast with full simulation: distances, correlations, response, b-tagging. Exit code 1 if a check fails."""
    from fluvial.apps.collider.validate import validate
    from fluvial.report.console import result_lines
    from fluvial.workflow import load

    result = validate(load(run), pairs, out or run / "validation", rows=rows, seed=seed)
    lines = result_lines(result.results, "More pairs, and a larger --rows, would mend that.")
    sys.stdout.write("\n".join([*lines, str(result.page)]) + "\n")
    if any(r.verdict == "fail" for r in result.results):
        raise typer.Exit(1)


class _Bar:
    """On a terminal a bar with objects a second; everywhere a line a file."""

    def __init__(self, files: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.files, self.done = files, 0
        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
        )
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task("", total=1.0, facts="")

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def piece(self, so_far: Generated, events: int) -> None:
        facts = f"{so_far.objects:,} objects, {so_far.objects / max(so_far.seconds, 1e-9):,.0f} a second"
        where = f"{self.done + 1}/{self.files}  {Path(so_far.path).name}"
        self.progress.update(
            self.task, description=where, completed=so_far.events / max(events, 1), facts=facts
        )

    def file(self, result: Generated) -> None:
        self.done += 1
        self.progress.console.print(f"{self.done}/{self.files}  {_drawn_line(result)}")


def _drawn_line(result: Generated) -> str:
    if result.status == "failed":
        return f"failed: {result.problem}"
    if result.status == "kept":
        return f"{result.path}: {result.out} is there"
    beyond = "".join(
        f"\n    {name}: {number:,} generator-level objects beyond what the density has been trained on, a guess there"
        for name, number in sorted(result.outside.items())
    )
    return (
        f"{result.path}: {result.objects:,} objects of {result.events:,} events; read {result.read_seconds:.1f} s, "
        f"drawn {result.draw_seconds:.1f} s, written {result.write_seconds:.1f} s{beyond}"
    )


def _line(result: FileResult, object_name: str) -> str:
    if result.status == "failed":
        return f"failed: {result.problem}"
    more = f", {result.unusable:,} unusable" if result.unusable else ""
    kept = ", done before" if result.status == "kept" else ""
    return (
        f"{result.path}: {result.pairs:,} pairs of {result.objects:,} {object_name}s in {result.events:,} "
        f"events{more}{kept}"
    )
