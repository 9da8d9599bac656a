"""From a command line to a job that may be begun any number of times: checked, named and prepared before it waits in a queue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from fluvial.errors import RunError
from fluvial.launch.job import TASK, TASKS, Job
from fluvial.launch.profile import Profile


def prepared(
    command: Sequence[str], profile: Profile, *, array: int | None, throttle: int | None, folder: Path
) -> Job:
    """Return the job of a command of fluvial.

    A fit gets a name for its run, a search its journal, a bulk sampling its manifest: what is wrong with a study or with
    contexts is found now.

    Raises
    ------
    RunError
        If the command cannot be a job, or has no parts for an array.
    StudyError, DataError
        What the command itself would raise at its beginning.
    """
    verb, args = command[0], list(command[1:])
    prepare = {"fit": _fit, "tune": _tune, "sample": _sample}.get(verb, _other)
    if array and prepare not in (_tune, _sample):
        raise RunError(f"--array: expected tune, or sample into a folder; {verb} has no parts to share.")
    if throttle and not array:
        raise RunError("--throttle: expected --array beside it.")
    if profile.nodes * profile.tasks_per_node > 1 and prepare is not _fit:
        raise RunError(
            f"--nodes, --tasks: several processes train one fit together; {verb} is shared by --array, or by --processes or "
            "--workers on one node."
        )
    words, what, run = prepare(verb, args, array, folder)
    return Job(words, f"fluvial-{verb}-{what}"[:60].rstrip("-"), profile, folder, array, throttle, run)


def _parsed(verb: str, args: list[str]) -> dict[str, Any]:
    """Return the options of a verb as its own command reads them; what it does not know is an error of usage now."""
    from fluvial.cli import app

    group: Any = typer.main.get_command(app)
    with group.commands[verb].make_context(f"fluvial {verb}", list(args)) as context:
        return dict(context.params)


def _fit(verb: str, args: list[str], array: int | None, folder: Path) -> tuple[list[str], str, str | None]:
    from fluvial.record import RunFolder, check_new
    from fluvial.study import read_study

    options = _parsed(verb, args)
    if options["resume"] is not None:
        RunFolder.open(options["resume"])
        return [verb, *args], Path(options["resume"]).name, str(options["resume"])
    if options["study"] is None:
        raise RunError("submit fit: expected a study, or --resume with a run folder.")
    read_study(options["study"])
    name, runs = options["name"], Path(options["runs"])
    if name is None:
        name = _free(Path(options["study"]).stem, runs, folder)
        args = [*args, "--name", name]
    elif not options["go_on"]:
        check_new(runs, name)
    if not options["go_on"]:
        args = [*args, "--continue"]
    return [verb, *args], name, str(runs / name)


def _free(stem: str, runs: Path, folder: Path) -> str:
    """Return the first name that neither a run nor a job that waits has."""
    taken = {p.name for p in runs.glob("*")} if runs.is_dir() else set()
    for path in folder.glob("*.json"):
        run = json.loads(path.read_bytes()).get("run")
        if run is not None and Path(run).parent == runs:
            taken.add(Path(run).name)
    number = 1
    while f"{stem}-{number}" in taken:
        number += 1
    return f"{stem}-{number}"


def _tune(verb: str, args: list[str], array: int | None, folder: Path) -> tuple[list[str], str, str | None]:
    from fluvial.tune import open_journal, read_search

    options = _parsed(verb, args)
    search = read_search(options["study"], options["runs"], options["name"])
    open_journal(search)
    return [verb, *args, *(["--worker", TASK] if array else [])], search.stem, str(search.folder)


def _sample(verb: str, args: list[str], array: int | None, folder: Path) -> tuple[list[str], str, str | None]:
    from fluvial.at_scale import is_folder, read_given
    from fluvial.workflow import load
    from fluvial.workflow.bulk import prepare_shards

    options = _parsed(verb, args)
    out = options["out"]
    bulk = is_folder(out) or options["shards"] is not None
    if array and not bulk:
        raise RunError("--array: expected sample into a folder, as in --out draws/.")
    if bulk:
        prepare_shards(
            load(options["run"]),
            out,
            contexts=options["contexts"],
            given=read_given(options["given"]),
            draws=options["draws"],
            seed=options["seed"],
            shards=options["shards"],
            tasks=max(array or 1, options["processes"]),
            compression=options["compression"],
            wide=options["wide"],
        )
    return [verb, *args, *(["--part", f"{TASK}/{TASKS}"] if array else [])], Path(out).name, None


def _other(verb: str, args: list[str], array: int | None, folder: Path) -> tuple[list[str], str, str | None]:
    from fluvial.cli import app
    from fluvial.errors import nearest

    group: Any = typer.main.get_command(app)
    if verb not in group.commands or verb in ("submit", "jobs", "explore"):
        known = [name for name in group.commands if name not in ("submit", "jobs", "explore")]
        raise RunError(f"submit: {verb!r} is not a verb that a cluster can run{nearest(verb, known)}")
    return [verb, *args], args[0] if args else "", None
