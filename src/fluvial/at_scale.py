"""Verbs at scale: sampling into shards, ``tune``, ``submit``, ``jobs``. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fluvial.words import read_part

Shards = Annotated[
    int | None,
    typer.Option(
        min=1, help="Files to write, into a folder.", show_default="as many as needed, 16.8 million rows each"
    ),
]
Processes = Annotated[int, typer.Option(min=1, help="Processes that share the shards.")]
Part = Annotated[
    str | None, typer.Option(help="i/n: make shards i, i + n, … only, as one of n tasks.", show_default=False)
]
Compression = Annotated[str, typer.Option(help="Of the shards: none, lz4 or zstd.")]
Wide = Annotated[bool, typer.Option("--float64", help="Write the shards in float64, not float32.")]


def sample(run: Path, out: str, *, contexts: Path | None, part: str | None, **options: Any) -> None:
    """Draw into a folder of shards; say what came of it."""
    from fluvial.workflow import load, sample_shards

    density = load(run)
    pace = Pace("rows")
    drawn = sample_shards(
        density, out, contexts=contexts, part=read_part(part), tell=_err, advance=pace.show, **options
    )
    pace.end()
    rate = f", {drawn.rows_now / drawn.seconds:,.0f} rows/s" if drawn.rows_now else ""
    _out(f"{drawn.rows_now:,} rows drawn in {_clock(drawn.seconds)}{rate}")
    _out(f"{drawn.finished} of {drawn.shards} shards, {drawn.rows:,} rows in {out} (seed {drawn.seed})")


class Pace:
    """Shows how far work has come: on a terminal a line that changes, in a log one every half minute or tenth."""

    def __init__(self, what: str):
        self.what, self.live = what, sys.stderr.isatty()
        self.began = self.shown = time.monotonic()
        self.fraction, self.open = 0.0, False

    def show(self, done: int, total: int) -> None:
        """Show that so much of all has been done."""
        now, fraction = time.monotonic(), done / max(total, 1)
        due = now - self.shown >= (0.5 if self.live else 30) or (
            not self.live and fraction >= self.fraction + 0.1
        )
        if not due and done < total:
            return
        seconds = max(now - self.began, 1e-9)
        left = seconds * (1 - fraction) / max(fraction, 1e-9)
        text = f"{done:,} of {total:,} {self.what}  {done / seconds:,.0f}/s  {_clock(left)} left"
        sys.stderr.write(f"\r{text}\x1b[K" if self.live else text + "\n")
        sys.stderr.flush()
        self.shown, self.fraction, self.open = now, fraction, self.live

    def end(self) -> None:
        """Leave the line."""
        if self.open:
            sys.stderr.write("\n")


def _clock(seconds: float) -> str:
    from fluvial.launch.times import clock

    return clock(seconds)


def _out(text: str) -> None:
    sys.stdout.write(text + "\n")


def _err(text: str) -> None:
    sys.stderr.write(text + "\n")


def tune(
    study: Annotated[Path, typer.Argument(help="A study file with a section tune.", show_default=False)],
    runs: Annotated[Path, typer.Option("--runs", help="The folder that holds the run folders.")] = Path(
        "runs"
    ),
    name: Annotated[
        str | None, typer.Option(help="Name of the search's folder.", show_default="STUDY-tune")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the trials on this machine.")] = 1,
    worker: Annotated[
        int, typer.Option(min=0, help="The number of this worker, where several begin at once.")
    ] = 0,
    report: Annotated[
        bool, typer.Option("--report", help="No more trials: the table and the figures of what there is.")
    ] = False,
    form: Annotated[str, typer.Option("--format", "-f", help="text, markdown or latex.")] = "text",
) -> None:
    """Search options that a study names in its section tune. Given again, or on other machines, it goes on."""
    from fluvial.runs_table import formatted
    from fluvial.tune import columns_of, open_journal, read_search, write_results
    from fluvial.tune import tune as run

    search = read_search(study, runs, name)
    if report:
        rows = write_results(search, open_journal(search))
    else:
        rows = run(study, runs=runs, name=name, workers=workers, worker=worker, tell=_err)
    _out(formatted(rows, columns_of(search), form, mark=True))
    if (search.folder / "best.toml").exists():
        _out(f"best    {rows[0]['run']}")
        _out(f"study   {search.folder / 'best.toml'}")


def submit(
    context: typer.Context,
    command: Annotated[
        list[str],
        typer.Argument(
            help="The verb and what follows it, as in: fit study.toml --name a", show_default=False
        ),
    ],
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="A profile, from a TOML file.")
    ] = None,
    profiles: Annotated[
        Path | None,
        typer.Option(help="That file.", show_default="cluster.toml, or ~/.config/fluvial/cluster.toml"),
    ] = None,
    partition: Annotated[str | None, typer.Option()] = None,
    account: Annotated[str | None, typer.Option()] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[
        str | None,
        typer.Option("--time", "-t", help="How long it may run at a time: 90 (minutes), 2:00:00, 1.5h."),
    ] = None,
    mem: Annotated[str | None, typer.Option(help="A node, such as 16G.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores of a process.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="A node.")] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="A fit on several is trained by all together.")
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Processes a node.", show_default="one, or one a GPU")
    ] = None,
    warning: Annotated[
        str | None, typer.Option(help="How long before its end a job saves where it is.", show_default="2m")
    ] = None,
    array: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Tasks that share it: of tune, or of sample into a folder."),
    ] = None,
    throttle: Annotated[int | None, typer.Option(min=1, help="Of an array, how many run at a time.")] = None,
    jobs: Annotated[Path, typer.Option("--jobs", help="The folder for logs and descriptions.")] = Path(
        "jobs"
    ),
    script: Annotated[
        bool, typer.Option("--script", help="Print the batch script of SLURM; submit nothing.")
    ] = False,
    htcondor: Annotated[
        bool, typer.Option("--htcondor", help="Print the submit description of HTCondor; submit nothing.")
    ] = False,
) -> None:
    """Run a command on a cluster, as often as it takes: at its time limit, or preempted, it saves and is requeued."""
    from fluvial.launch import script as scripts
    from fluvial.launch.profile import read_profile
    from fluvial.launch.slurm import require_partition, require_slurm
    from fluvial.launch.slurm import submit as send
    from fluvial.submission import prepared

    changes = {
        "partition": partition, "account": account, "qos": qos, "time": limit, "mem": mem, "cpus": cpus, "gpus": gpus,
        "nodes": nodes, "tasks": tasks, "warning": warning,
    }  # fmt: skip
    asked = read_profile(profile, profiles, changes)
    assert asked.seconds  # raises if the time is of no use
    if not (script or htcondor):  # before anything is written
        require_slurm()
        require_partition(asked.partition)
    verbs: Any = context.find_root().command
    job = prepared(command, verbs.commands, asked, array=array, throttle=throttle, folder=jobs)
    if script or htcondor:
        jobs.mkdir(parents=True, exist_ok=True)
        _out((scripts.condor_description if htcondor else scripts.sbatch_script)(job).rstrip("\n"))
        return
    number = send(job)
    many = f", {array} tasks" if array else ""
    _out(f"job     {number}{many} ({job.name})")
    if job.run:
        _out(f"run     {job.run}")
    log = f"{number}_*_log.out" if array else f"{number}_0_log.out"
    _out(f"log     {jobs / log}")
    _out("state   fluvial jobs" + ("" if str(jobs) == "jobs" else f" --jobs {jobs}"))


def jobs(
    folder: Annotated[Path, typer.Option("--jobs", help="The folder of fluvial submit --jobs.")] = Path(
        "jobs"
    ),
    form: Annotated[str, typer.Option("--format", "-f", help="text, markdown or latex.")] = "text",
) -> None:
    """Show what has become of the jobs that were submitted."""
    from fluvial.errors import RunError
    from fluvial.launch.jobs import SHOWN, list_jobs
    from fluvial.runs_table import formatted

    if not folder.is_dir():
        raise RunError(f"--jobs: expected a folder at {folder}; found none. 'fluvial submit' makes it.")
    _out(formatted(list_jobs(folder), SHOWN, form))


def add_to(app: typer.Typer, panel: str) -> None:
    """Add the verbs of this module to the command line, in a panel of its help."""
    app.command(rich_help_panel=panel)(tune)
    # What follows the verb is the verb's own.
    own = {"allow_interspersed_args": False, "ignore_unknown_options": False}
    app.command(rich_help_panel=panel, context_settings=own)(submit)
    app.command(rich_help_panel=panel)(jobs)
