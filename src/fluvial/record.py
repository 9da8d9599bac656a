"""The run folder: what a fit leaves, and how runs are found again.

========================= ================================================================================
``study.toml``            the study as read
``record.json``           every option, versions, data fingerprint, seeds, timings, losses, how it stopped
``metrics.jsonl``         one line an epoch, written as it goes
``checkpoint.safetensors`` all that training needs to go on: see :mod:`fluvial.train.checkpoint`
``density.json``          with ``weights.safetensors``: the best density so far, loadable at any moment
``checks.json``           results of the checks; ``checks.npz`` holds the arrays behind their figures
``report.html``           one self-contained page; ``report.md`` and ``report.pdf`` where they were asked for
``novelty.json``          with ``novelty.safetensors``: what tells a context that is unlike those of the training rows
``conformal.safetensors`` scores of held-out rows, behind regions that hold the truth as often as they say
``card.json``             with ``README.md``: what the density was trained on, its checks, where it holds
========================= ================================================================================

The folder appears whole or not at all, and from its first moment says that no end was recorded; only an end
that was reached overwrites that. So a fit that is killed leaves a true record.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fluvial.errors import RunError, nearest
from fluvial.files import write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 1
RECORD, METRICS, STUDY = "record.json", "metrics.jsonl", "study.toml"
CHECKS, ARRAYS, REPORT = "checks.json", "checks.npz", "report.html"

UNFINISHED = "unfinished"
CHECKING = "checking"
NO_END = "no end was recorded: the fit is still running, or was killed"


def now() -> str:
    """Return the time as ISO 8601 text, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path

    @classmethod
    def create(
        cls, parent: Path, stem: str, name: str | None, fill: Callable[[RunFolder], None]
    ) -> RunFolder:
        """Make a new run folder; it appears under its name only when ``fill`` has written its first files.

        Without a name the folder is ``stem-1``, ``stem-2``, …, the first that is free.

        Raises
        ------
        RunError
            If a folder of that name exists, or cannot be made, or is no name of one folder. Nothing half-made
            is left.
        """
        check_new(parent, name)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".new-run-", dir=parent))
        except OSError as error:
            raise RunError(
                f"Could not make a run folder under {parent}: {error.strerror or error}."
            ) from error
        try:
            temporary.chmod(0o755)
            fill(cls(temporary))
            return cls(_claim(temporary, parent, stem, name))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run.

        Raises
        ------
        RunError
            If there is no run at that path; runs nearby are named.
        """
        path = Path(path)
        if (path / RECORD).is_file():
            return cls(path)
        beside = [run.path.name for run in find_runs(path.parent)] if path.parent.is_dir() else []
        hint = nearest(path.name, beside)
        usual = Path("runs") / path  # where fits put their runs, unless told otherwise
        if (usual / RECORD).is_file():
            hint = f"; did you mean {usual}?"
        what = "a folder without record.json" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise RunError(f"Expected a run folder at {path}; found {what}{hint or '.'}")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    def record(self) -> dict[str, Any]:
        """Return the record."""
        return _read_json(self.path / RECORD)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace the record."""
        self.write_json(RECORD, record)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run at once or not at all; numbers that JSON lacks become ``null``."""
        text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.path / name, (text + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Return what a JSON file of the run holds; raise :class:`~fluvial.errors.RunError` if it is damaged."""
        return _read_json(self.path / name)

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        line = json.dumps(_plain(metrics), allow_nan=False) + "\n"
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise RunError(
                f"Could not write {self.path / METRICS}: {error.strerror or error}. The density saved before "
                "is whole; mend the cause (a full disk, missing rights) and fit again."
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics, a dictionary an epoch; a last line cut short by a kill is left out."""
        path = self.path / METRICS
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        complete = lines[:-1]  # what follows the last line end is empty, or cut short
        try:
            return [json.loads(line) for line in complete]
        except ValueError as error:
            raise RunError(f"{path} is damaged ({error}); restore it, or fit again.") from error

    def keep_metrics(self, epochs: int) -> None:
        """Drop the metrics of later epochs: they are trained again."""
        kept = [m for m in self.metrics() if m["epoch"] <= epochs]
        text = "".join(json.dumps(_plain(m), allow_nan=False) + "\n" for m in kept)
        write_atomically(self.path / METRICS, text.encode())

    def remove(self, *names: str) -> None:
        """Remove files of the run, those of them that there are."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the lock goes with the process, even if it is killed.

        Where the system or the file system has no such locks, nobody is kept out.

        Raises :class:`~fluvial.errors.RunError` if another process holds it.
        """
        if fcntl is None:
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise RunError(
                f"Another process is training in {self.path}; end it first, or wait until it is done."
            ) from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            os.close(descriptor)

    def density_folder(self) -> Path:
        """Return the folder that holds ``density.json``: the run folder itself."""
        return self.path

    def checks(self) -> dict[str, Any] | None:
        """Return the results of the checks, or ``None`` if none have been made."""
        path = self.path / CHECKS
        return _read_json(path) if path.exists() else None


_TAKEN = "Expected {} to be new; it exists. Choose another --name, or remove it."


def check_new(parent: Path, name: str | None) -> None:
    """Raise :class:`~fluvial.errors.RunError` if a new run cannot have this name; ``None`` always can.

    A name is one folder under the folder of runs that a listing shows, and not yet there. Asked before the
    data are read, this saves the wait.
    """
    if name is None:
        return
    if not name or name.startswith(".") or set(name) & {"/", "\\", "\0"}:
        raise RunError(
            f"--name: expected the name of one new folder, without slashes or a leading dot; found {name!r}."
        )
    if (parent / name).exists():
        raise RunError(_TAKEN.format(parent / name))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); restore it, or fit again.") from error
    if not isinstance(value, dict):
        raise RunError(
            f"{path} is damaged (expected an object, found {value!r:.40}); restore it, or fit again."
        )
    return value


def _claim(temporary: Path, parent: Path, stem: str, name: str | None) -> Path:
    """Rename the filled folder to its name.

    Renaming onto a folder with files fails, so two fits never share one.
    """
    number = 1
    while True:
        path = parent / (name if name is not None else f"{stem}-{number}")
        try:
            if not path.exists():
                os.rename(temporary, path)
                return path
        except OSError as error:
            if not path.exists():
                raise RunError(f"Could not make the run folder {path}: {error.strerror or error}.") from error
        if name is not None:
            raise RunError(_TAKEN.format(path))
        number += 1


def find_runs(parent: str | Path) -> list[RunFolder]:
    """Return the runs in a folder, by name."""
    parent = Path(parent)
    if not parent.is_dir():
        raise RunError(f"Expected a folder of runs at {parent}; found none. 'fluvial fit' makes it.")
    return [RunFolder(p.parent) for p in sorted(parent.glob(f"[!.]*/{RECORD}"))]


def environment(torch_threads: int) -> dict[str, Any]:
    """Return versions and the machine, as far as they bear on a result."""
    packages = ("fluvial", "torch", "numpy", "pyarrow", "pydantic", "safetensors", "matplotlib")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed as a package"
    return {
        "versions": versions,
        "machine": {
            "system": platform.system(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch_threads,
        },
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv and sys.argv[0] else [],
    }


def _processor() -> str:
    """Return the processor's model, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # only Linux has this file; elsewhere the architecture has to do
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """Return a value of JSON's own types: paths as text, numpy's numbers as Python's, NaN and ±∞ ``None``."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return str(value)
