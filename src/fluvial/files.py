"""Files written at once or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from fluvial.errors import RunError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that whoever reads it, whenever, finds the old content or the new, whole.

    Raises
    ------
    RunError
        If the disk is full or the folder not writable; what was there before is left as it was.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        raise RunError(f"Could not write {path}: {error.strerror}. Nothing that was there has been lost.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
