"""How much memory a table may take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal


def memory_budget(setting: float | Literal["auto"]) -> int:
    """Return the bytes that a table in memory and the work on it may take: a study's ``memory`` under [data].

    A number is GB (10⁹ bytes). ``"auto"`` is half of what is available now: of the machine's memory, or of what
    a container (cgroup version 2) still has to give, whichever is less.

    >>> memory_budget(1.5)
    1500000000
    """
    if setting != "auto":
        return int(setting * 1e9)
    return min(_machine(), _container()) // 2


def _machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # only Linux has this file; elsewhere half of all memory has to do for what is available
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 8 * 10**9  # Windows does not tell through Python: a small machine of today


def _container() -> int:
    try:
        folder = Path("/sys/fs/cgroup")
        most = (folder / "memory.max").read_text(encoding="ascii").strip()
        if most == "max":
            return 2**62
        return max(int(most) - int((folder / "memory.current").read_text(encoding="ascii")), 0)
    except (OSError, ValueError):
        return 2**62  # no container, or one that sets no limit
