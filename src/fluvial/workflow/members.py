"""Where the members of an ensemble are in its run folder."""

from __future__ import annotations

import tomllib

import tomli_w

from fluvial.record import RECORD, RunFolder

MEMBERS = "members"


def is_ensemble(run: RunFolder) -> bool:
    """Say whether a run is one of an ensemble."""
    return run.record()["study"]["training"].get("ensemble", 1) > 1


def member_runs(run: RunFolder) -> list[RunFolder]:
    """Return the runs of the members of an ensemble that have begun; none of any other run."""
    paths = sorted((run.path / MEMBERS).glob(f"[0-9]*/{RECORD}"), key=lambda p: int(p.parent.name))
    return [RunFolder(path.parent) for path in paths]


def ensemble_text(text: str, number: int) -> str:
    """Return the text of a study with so many members; it is written anew only where it said otherwise."""
    values = tomllib.loads(text)
    training = dict(values.get("training", {}))
    if training.get("ensemble", 1) == number:
        return text
    return tomli_w.dumps(values | {"training": training | {"ensemble": number}})
