"""What every benchmark shares: where it ran, with which versions, and how its numbers are written down.

A result is a row: ``{"work": …, "op": …, "who": "fluvial" or a peer, "value": …, "unit": …}``, with further
keys where needed. :func:`write_json` writes rows with the machine, the versions and the date, and
:func:`markdown_table` shows them.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine(threads: int | None = None) -> dict[str, Any]:
    """Return the facts of this machine that bear on a time: processor, cores, memory, threads used, load.

    ``cores`` are those that this process may run on. ``load`` is the mean number of busy processes in the
    last minute: call this before the work begins, to see whether the machine was quiet. ``memory_GiB`` and
    ``load`` are ``None`` where the system does not tell.
    """
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "threads": threads,
        "memory_GiB": _memory(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of Python and of each package, by its name on the registry.

    >>> versions(["no-such-package"])["no-such-package"]
    'not installed'
    """
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def today() -> str:
    """Return the date, as in 2025-01-31."""
    return time.strftime("%Y-%m-%d")


def write_json(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    **more: Any,
) -> None:
    """Write rows with their machine, versions and date; ``more`` are further keys, such as ``curves``.

    Numbers that are not finite are written as ``null``, since JSON knows none.
    """
    content = {"date": today(), "machine": machine, "versions": versions, "rows": rows, **more}
    text = json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def kept(path: Path | None, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a key from a file with one JSON a line, or make it and add it there.

    So a long work goes on where it was stopped, and its parts may be made apart. Without a path, a row is just made.
    """
    if path is None:
        return make()
    if (known := row_of(path, key)) is not None:
        return known
    row = make()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": _plain(key), "row": _plain(row)}, ensure_ascii=False) + "\n")
    return row


def row_of(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the row of a key from a file of :func:`kept`, if it is there."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            known = json.loads(line)
            if known["key"] == key:
                return known["row"]
    return None


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; the first row's keys are the head, and numbers stand on the right.

    A float is shown with four significant digits, a missing or ``None`` value as a dash.

    >>> print(markdown_table([{"who": "fluvial", "seconds": 1.23456}]))
    | who | seconds |
    |---|---:|
    | fluvial | 1.235 |
    """
    if not rows:
        return ""
    head = list(rows[0])
    numeric = {k: all(isinstance(r.get(k), (int, float, type(None))) for r in rows) for k in head}
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---:" if numeric[k] else "---" for k in head) + "|",
    ]
    lines += ["| " + " | ".join(_shown(row.get(k)) for k in head) + " |" for row in rows]
    return "\n".join(lines)


def where_and_when(machine: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Return one paragraph: on which machine, with which versions and on which day numbers were made."""
    memory = f", {machine['memory_GiB']} GiB" if machine.get("memory_GiB") else ""
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    threads = f", threads used: {machine['threads']}" if machine.get("threads") else ""
    load = f", load {machine['load']:g} at the start" if machine.get("load") is not None else ""
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores{memory}{gpu}{threads}{load}; "
        f"{machine['system']}. Versions: {packages}. Date: {today()}."
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # only Linux has this file; elsewhere the architecture has to do
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    except (AttributeError, ValueError, OSError):
        return None  # Windows has no sysconf


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", r"\|")


def _plain(value: Any) -> Any:
    """Return a value of JSON's own types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
