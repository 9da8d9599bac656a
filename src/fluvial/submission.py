"""From a command line to a job that may be begun any number of times, checked and prepared before it waits in a queue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluvial.errors import RunError, nearest
from fluvial.launch.job import TASK, TASKS, Job
from fluvial.launch.profile import Profile
from fluvial.words import is_folder, read_given


def prepared(
    command: Sequence[str],
    verbs: Mapping[str, Any],
    profile: Profile,
    *,
    array: int | None,
    throttle: int | None,
    folder: Path,
) -> Job:
    """Return the job of a command of fluvial; ``verbs`` are the commands of its command line, by name.

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
    possible = [name for name in verbs if name not in _HERE]
    if verb not in possible:
        raise RunError(f"submit: {verb!r} is not a verb that a cluster can run{nearest(verb, possible)}")
    prepare = {"fit": _fit, "tune": _tune, "sample": _sample}.get(verb, _other)
    if array and prepare not in (_tune, _sample):
        raise RunError(f"--array: expected tune, or sample into a folder; {verb} has no parts to share.")
    if throttle and not array:
        raise RunError("--throttle: expected --array beside it.")
    if profile.nodes * profile.tasks_per_node > 1 and prepare is not _fit:
        raise RunError(
            f"--nodes, --tasks: several processes train one fit together; {verb} is shared by --array, or by "
            "--processes or --workers on one node."
        )
    options = _parsed(verb, args, verbs[verb])
    words, what, run = prepare(args, options, array, folder)
    return Job(
        [verb, *words], f"fluvial-{verb}-{what}"[:60].rstrip("-"), profile, folder, array, throttle, run
    )


#: Verbs for whoever sits in front of them.
_HERE = ("submit", "jobs", "explore")


def _parsed(verb: str, args: list[str], command: Any) -> dict[str, Any]:
    """Return the options of a verb as its own command reads them; what it does not know is an error of usage now."""
    if hasattr(command, "commands"):  # of collider, the verb is one further on
        return {}
    with command.make_context(f"fluvial {verb}", list(args)) as context:
        return dict(context.params)


def _fit(
    args: list[str], options: Mapping[str, Any], array: int | None, folder: Path
) -> tuple[list[str], str, str | None]:
    from fluvial.record import RunFolder, check_new
    from fluvial.study import read_study

    if options["resume"] is not None:
        RunFolder.open(options["resume"])
        return args, Path(options["resume"]).name, str(options["resume"])
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
    return args, name, str(runs / name)


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


def _tune(
    args: list[str], options: Mapping[str, Any], array: int | None, folder: Path
) -> tuple[list[str], str, str | None]:
    from fluvial.tune import open_journal, read_search

    search = read_search(options["study"], options["runs"], options["name"])
    open_journal(search)
    return [*args, *(["--worker", TASK] if array else [])], search.stem, str(search.folder)


def _sample(
    args: list[str], options: Mapping[str, Any], array: int | None, folder: Path
) -> tuple[list[str], str, str | None]:
    from fluvial.workflow import load
    from fluvial.workflow.bulk import prepare_shards

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
    return [*args, *(["--part", f"{TASK}/{TASKS}"] if array else [])], Path(out).name, None


def _other(
    args: list[str], options: Mapping[str, Any], array: int | None, folder: Path
) -> tuple[list[str], str, str | None]:
    return args, next((Path(word).stem for word in args if not word.startswith("-")), ""), None
