"""The command line: thin verbs over :mod:`fluvial.workflow`. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fluvial import at_scale
from fluvial.apps.binaries.commands import app as binaries_app
from fluvial.apps.collider.commands import app as collider_app
from fluvial.apps.stars.commands import app as stars_app
from fluvial.cli_infer import infer
from fluvial.cli_init import init
from fluvial.walltime import answer_early
from fluvial.words import is_folder, read_given

if TYPE_CHECKING:
    from fluvial.check import CheckResult
    from fluvial.record import RunFolder

app = typer.Typer(
    name="fluvial",
    help="Learn conditional densities p(target | context) with normalizing flows, and trust them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: Parts of the list of verbs.
EVERYDAY, TRUST, SCALE, SCIENCES = "Verbs", "Trust", "At scale", "Sciences"

Run = Annotated[Path, typer.Argument(help="A run folder, such as runs/binaries-1.", show_default=False)]
Runs = Annotated[Path, typer.Option("--runs", help="The folder that holds the run folders.")]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=2**63 - 1,
        metavar="INTEGER",
        help="The same seed gives the same draws.",
        show_default="fresh",
    ),
]


app.command("init", rich_help_panel=EVERYDAY)(init)


@app.command(rich_help_panel=EVERYDAY)
def fit(
    study: Annotated[
        Path | None, typer.Argument(help="A study file (TOML); none with --resume.", show_default=False)
    ] = None,
    runs: Runs = Path("runs"),
    name: Annotated[
        str | None, typer.Option(help="Name of the new run folder.", show_default="STUDY-N")
    ] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Train only; no checks, no report.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run folder, from its last checkpoint.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="With --resume: train until so many epochs in all.")
    ] = None,
    ensemble: Annotated[
        int | None,
        typer.Option(min=1, help="Train so many members, saved as one density.", show_default="the study's"),
    ] = None,
    log: Annotated[
        list[str] | None, typer.Option(help="Report to tensorboard or mlflow too; may be repeated.")
    ] = None,
    go_on: Annotated[
        bool,
        typer.Option("--continue", help="Go on with the run of this --name if it is there; else begin it."),
    ] = False,
) -> None:
    """Train a density, check it, write the report. Ctrl-C stops early and keeps the best so far."""
    import fluvial.workflow as workflow
    from fluvial.progress import FitProgress
    from fluvial.record import RunFolder
    from fluvial.workflow.check import load_results

    if (study is None) == (resume is None) or (resume is not None and name is not None):
        raise typer.BadParameter(
            "expected either a study, or --resume with a run folder, which has its name already"
        )
    if epochs is not None and resume is None:
        raise typer.BadParameter(
            "--epochs goes with --resume; of a new fit the study says it, under [training]"
        )
    if ensemble is not None and (resume is not None or go_on):
        raise typer.BadParameter("--ensemble goes with a new fit; with --continue, say it under [training]")
    with FitProgress() as progress:
        common: dict[str, Any] = {"check": not no_check, "on_event": progress.show, "loggers": log or ()}
        if resume is not None:
            density = workflow.resume(resume, epochs=epochs, **common)
        elif go_on:
            density = workflow.fit_or_resume(study, runs=runs, name=name, **common)
        else:
            assert study is not None
            density = workflow.fit(study, runs=runs, name=name, ensemble=ensemble, **common)
    if density.folder is None:  # one of several processes, and not the one that writes
        return
    folder = RunFolder.open(density.folder)
    results = load_results(folder)
    if results:
        _show_results(results, folder)
    _out(f"run     {folder.path}")
    if results:
        _out(f"report  {(folder.path / 'report.html').resolve()}")
    if folder.record()["status"] == "interrupted":
        _out(f"resume  fluvial fit --resume {folder.path}")
        raise typer.Exit(130)


@app.command(rich_help_panel=TRUST)
def check(run: Run) -> None:
    """Check a run's density on its test rows again; print the verdicts. Exit code 1 if a check fails."""
    from fluvial.check import overall
    from fluvial.record import RunFolder
    from fluvial.workflow import check_run

    results = check_run(run, on_event=_err)
    _show_results(results, RunFolder.open(run))
    if overall(results) == "fail":
        raise typer.Exit(1)


@app.command(rich_help_panel=TRUST)
def recalibrate(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The new run folder.", show_default="RUN-recalibrated")
    ] = None,
) -> None:
    """Mend a density's calibration on rows it was not trained on; leave a new run beside the old one."""
    from fluvial.record import RunFolder
    from fluvial.report.page import measured
    from fluvial.workflow import recalibrate as mend
    from fluvial.workflow.check import load_results

    density, fit = mend(run, out, on_event=_err)
    if fit.options is None or density.recalibration is None or density.folder is None:
        _out(
            f"nothing to mend: no map of its latent space gains on {fit.rows:,} held-out rows; no run was made. What a "
            "check still finds is then not a matter of widths: more training, or a larger flow, may help."
        )
        return
    test = density.recalibration["test"]
    folder = RunFolder.open(density.folder)
    _show_results(load_results(folder), folder)
    _out(
        f"log p     +{measured(test['gain'], test['gain_error'])} nats per row on {test['rows']:,} test rows".replace(
            "+−", "−"
        )
    )
    _out(
        f"coverage  largest error {test['coverage_before']:.4f} before, {test['coverage_after']:.4f} after "
        f"(± {test['coverage_error']:.4f})"
    )
    _out(f"run       {density.folder}")
    _out(f"report    {(density.folder / 'report.html').resolve()}")


@app.command(rich_help_panel=TRUST)
def card(run: Run) -> None:
    """Write card.json and README.md of a run again, from its record and checks; print the path."""
    from fluvial.workflow import write_card

    _out(str(write_card(run).resolve()))


@app.command(rich_help_panel=EVERYDAY)
def sample(
    run: Run,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", help="Where to write: .parquet, .csv or .npy; or a folder, as in draws/."
        ),
    ],
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--given", "-g", help="A context value, such as Z=0.001; once a column, or Z=0.001,alpha=1."
        ),
    ] = None,
    contexts: Annotated[Path | None, typer.Option(help="A table of contexts, one a row.")] = None,
    draws: Annotated[
        int,
        typer.Option("--draws", "-n", help="Draws at each context: rows written are contexts times draws."),
    ] = 1,
    seed: Seed = None,
    novelty: Annotated[
        bool,
        typer.Option(
            "--novelty", help="Add a column: how probable a context as unlike the training rows is."
        ),
    ] = False,
    shards: at_scale.Shards = None,
    processes: at_scale.Processes = 1,
    part: at_scale.Part = None,
    compression: at_scale.Compression = "zstd",
    wide: at_scale.Wide = False,
) -> None:
    """Draw targets at given contexts; write context and target columns. Into a folder: any number of rows, resumable."""
    from fluvial.data.readers import write_table
    from fluvial.workflow import load, sample_table

    if is_folder(out) or shards is not None or processes != 1 or part is not None:
        if novelty:
            raise typer.BadParameter(
                "--novelty goes with one file of draws; for a folder, score the contexts themselves"
            )
        at_scale.sample(
            run, out, given=read_given(given), contexts=contexts, draws=draws, seed=seed, shards=shards,
            processes=processes, part=part, compression=compression, wide=wide,
        )  # fmt: skip
        return
    density, values = load(run), read_given(given)
    table = sample_table(density, given=values, contexts=contexts, draws=draws, seed=seed, novelty=novelty)
    write_table(out, table)
    rows = len(next(iter(table.values())))
    _out(f"{rows:,} rows of {', '.join(table)} in {out}")


@app.command("log-prob", rich_help_panel=EVERYDAY)
def log_prob(
    run: Run,
    table: Annotated[
        Path, typer.Argument(help="A table with target and context columns.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write: .parquet, .csv or .npy.")
    ] = None,
) -> None:
    """Evaluate ln p(target | context) for every row; p is per product of the targets' units."""
    import numpy as np

    from fluvial.data.readers import write_table
    from fluvial.workflow import load, log_prob_table

    columns = log_prob_table(load(run), table)
    values = columns["log_prob"]
    inside = values[np.isfinite(values)]
    _out(f"{len(values):,} rows; {len(values) - len(inside):,} outside the support (log-density −inf)")
    if len(inside):
        error = inside.std() / max(len(inside), 1) ** 0.5
        _out(f"mean log p = {inside.mean():.5f} ± {error:.5f} nats per row (inside the support)")
    if out is not None:
        write_table(out, columns)
        _out(f"written to {out}")


@app.command(rich_help_panel=EVERYDAY)
def report(
    run: Run,
    form: Annotated[
        str, typer.Option("--format", "-f", help="html; md, with its figures in a folder; or pdf.")
    ] = "html",
) -> None:
    """Write the report of a run again, from its record and checks; print its path."""
    from fluvial.workflow import report_run

    _out(str(report_run(run, form, on_event=_err).resolve()))  # type: ignore[arg-type]


@app.command(rich_help_panel=EVERYDAY)
def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the run folders.")] = Path("runs"),
    where: Annotated[
        str | None,
        typer.Option("--where", "-w", help="""An expression: 'architecture == "maf" and best_loss < 5.1'."""),
    ] = None,
    sort: Annotated[str | None, typer.Option("--sort", "-s", help="A column to sort by.")] = None,
    descending: Annotated[bool, typer.Option("--descending", "-d", help="Largest first.")] = False,
    columns: Annotated[
        str | None,
        typer.Option("--columns", "-c", help="Columns to show, comma-separated; 'all' lists them."),
    ] = None,
    form: Annotated[str, typer.Option("--format", "-f", help="text, markdown or latex.")] = "text",
    results: Annotated[
        bool, typer.Option("--results", help="Loss, rate and runtime; the best of each is marked.")
    ] = False,
    best: Annotated[
        bool,
        typer.Option(
            "--best", help="Print the path of the run with the lowest loss, or the first by --sort."
        ),
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two run folders: what differs in their studies, and what came of it."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="With --compare: a PNG file for their loss curves.")
    ] = None,
) -> None:
    """Show all runs as a table; or the best of them; or compare two."""
    from fluvial.errors import RunError, nearest
    from fluvial.runs_table import RESULTS, SHOWN, formatted
    from fluvial.workflow import compare_runs, list_runs

    if compare is not None:
        rows = compare_runs(*compare, figure=figure)
        _out(formatted(rows, list(rows[0]), form))
        return
    by = sort or ("best_loss" if best or results else None)
    rows = list_runs(folder, where=where, sort=by, descending=descending)
    if best:
        if not rows or rows[0].get(by or "") is None:
            raise RunError(f"No run in {folder} has a value of {by}{' and fits --where' if where else ''}.")
        _out(str(folder / rows[0]["name"]))
        return
    known = sorted({name for row in rows for name in row})
    if columns == "all":
        _out(", ".join(known))
        return
    usual = RESULTS if results else SHOWN
    chosen: list[str] = [c.strip() for c in columns.split(",")] if columns else list(usual)
    for name in chosen:
        if rows and name not in known:
            raise RunError(f"--columns: no column {name!r}{nearest(name, known)}")
    _out(formatted(rows, chosen, form, mark=results))


@app.command(rich_help_panel=SCALE)
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of them.")] = False,
) -> None:
    """Show the packed forms of large tables, from which fits start at once; or remove them."""
    from fluvial.data import cache
    from fluvial.report.console import table_lines

    folder = cache.cache_folder()
    if clear:
        _out(f"{cache.clear() / 1e9:.2f} GB freed in {folder}")
        return
    entries = cache.entries()
    rows = []
    for entry in entries:
        more = f" and {len(entry.sources) - 3} more" if len(entry.sources) > 3 else ""
        sources = ", ".join(entry.sources[:3]) + more
        rows.append([entry.folder.name, entry.made, f"{entry.rows:,}", f"{entry.bytes / 1e9:.2f}", sources])
    if rows:
        _out("\n".join(table_lines(rows, ["entry", "made", "rows", "GB", "sources"])))
    _out(f"{len(rows)} packed tables, {sum(e.bytes for e in entries) / 1e9:.2f} GB, in {folder}")


@app.command(rich_help_panel=EVERYDAY)
def simulate(
    application: Annotated[
        str, typer.Argument(help="What to simulate: binaries, jets, muons or stars.", show_default=False)
    ],
    rows: Annotated[int, typer.Option("--rows", "-n", help="Rows to simulate.")] = 100_000,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Parquet file to write; of stars, a folder.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same file.")] = 0,
    process: Annotated[str, typer.Option(help="Of jets and muons, their spectrum: ttbar or dy.")] = "ttbar",
) -> None:
    """Simulate a population whose density is known exactly."""
    from fluvial.errors import StudyError, nearest

    if application == "stars":
        from fluvial.apps.stars.commands import write_survey

        write_survey(out or Path("stars"), rows, seed=seed)
        return
    path = out or Path(f"{application}.parquet")
    if application == "binaries":
        from fluvial.apps.binaries import simulator as binaries

        binaries.write(path, rows, seed=seed)
    elif application in ("jets", "muons"):
        from fluvial.apps.collider import simulator as collider

        collider.write(application, path, rows, seed=seed, process=process)
    else:
        raise StudyError(
            f"No simulator for {application!r}{nearest(application, ('binaries', 'jets', 'muons', 'stars'))}"
        )
    what = "mergers" if application == "binaries" else application
    _out(f"{rows:,} {what} in {path} ({path.stat().st_size / 1e6:.1f} MB)")


app.command("infer", rich_help_panel=EVERYDAY)(infer)
at_scale.add_to(app, SCALE)
for science in (binaries_app, collider_app, stars_app):
    app.add_typer(science, rich_help_panel=SCIENCES)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from fluvial import __version__

        _out(f"fluvial {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; an error that a user can mend is one message on standard error, exit code 2."""
    from fluvial.errors import FluvialError

    warnings.showwarning = _show_warning
    answer_early()
    # OpenMP's threads spin while they wait; where others want the cores too, spinning costs ten times what it saves. This
    # process alone, and only if the user has not said otherwise; read when torch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app(prog_name="fluvial")
    except FluvialError as error:
        sys.stderr.write(f"fluvial: {error}\n")
        for note in getattr(error, "__notes__", ()):
            sys.stderr.write(f"fluvial: {note}\n")
        sys.exit(getattr(error, "code", 2))  # 143 of a fit that SIGTERM has ended, 138 of SIGUSR1
    except KeyboardInterrupt:
        sys.stderr.write("fluvial: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (such as head) has gone; that is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        # No rights, a full disk: the system's own words name the file.
        sys.stderr.write(f"fluvial: {error}\n")
        sys.exit(2)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"fluvial: warning: {message}\n")


def _out(text: str) -> None:
    sys.stdout.write(text + "\n")


def _err(text: str) -> None:
    sys.stderr.write(text + "\n")


def _show_results(results: list[CheckResult], run: RunFolder) -> None:
    from fluvial.report.console import of_run

    _out("\n".join(of_run(results, run)))
