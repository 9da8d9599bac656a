"""What has become of jobs: of the queue, and of what they left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluvial.launch.slurm import ask
from fluvial.launch.times import clock

#: Columns of the table.
SHOWN = ("id", "name", "state", "ran", "restarts", "note")
#: By the first word of its state, what to say of a job.
_NOTES = {
    "TIMEOUT": "its time was over before it could stop by itself: ask for more --time, or an earlier warning",
    "OUT_OF_MEMORY": "ask for more --mem",
    "CANCELLED": "the same command goes on where it was",
    "NODE_FAIL": "SLURM begins it again",
}


def list_jobs(folder: Path) -> list[dict[str, Any]]:
    """Return a row for every job, or task of an array, that was submitted into a folder; the latest first.

    Raises :class:`~fluvial.errors.RunError` if SLURM is here and does not answer.
    """
    queue = _queue()
    rows = []
    described = [
        json.loads(p.read_bytes()) for p in folder.glob("*.json") if not p.name.endswith(".end.json")
    ]
    for facts in sorted(described, key=lambda f: -f["submitted"]):
        tasks = [f"{facts['id']}_{i}" for i in range(facts["array"])] if facts["array"] else [facts["id"]]
        rows += [_row(facts, task, queue, folder) for task in tasks]
    return rows


def _row(
    facts: Mapping[str, Any], task: str, queue: Mapping[str, Mapping[str, str]], folder: Path
) -> dict[str, Any]:
    end = _end(folder / f"{task}.end.json")
    now = queue.get(task)
    state, note = "ended", ""
    if now is not None:
        state = now["state"].lower()
        note = _NOTES.get(now["state"], "" if now["reason"] in ("None", "") else now["reason"])
    elif end is None:
        note = "nothing was written of its end: killed, or cancelled; see its log"
    if (
        end is not None
        and (now is None or now["state"] in ("COMPLETED", "FAILED", "COMPLETING"))
        and not end["requeued"]
    ):
        state = "finished" if end["code"] == 0 else "failed"
        note = "" if end["code"] == 0 else f"exit code {end['code']}; see {folder / f'{task}_0_log.out'}"
    if facts["run"] and not note:
        note = facts["run"]
    return {
        "id": task,
        "name": facts["name"],
        "state": state,
        "ran": now["ran"] if now else None,
        "limit": clock(facts["seconds"]),
        "restarts": int(now["restarts"]) if now else (end or {}).get("restarts"),
        "run": facts["run"],
        "note": note,
    }


def _end(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_bytes()) if path.exists() else None


def _queue() -> dict[str, dict[str, str]]:
    """Return what SLURM knows of this user's jobs, those that have just ended too, by number."""
    if shutil.which("squeue") is None:
        return {}
    out = {}
    form = "ArrayJobID:|,ArrayTaskID:|,JobID:|,State:|,TimeUsed:|,Reason:|,RestartCnt:"
    for line in ask(
        "squeue", "--me", "--array", "--states", "all", "--noheader", "--Format", form
    ).splitlines():
        array, index, number, state, ran, reason, restarts = (part.strip() for part in line.split("|"))
        name = f"{array}_{index}" if index.isdecimal() else number
        out[name] = {"state": state, "ran": ran, "reason": reason, "restarts": restarts}
    return out
