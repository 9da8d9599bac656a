"""Files written at once or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from fluvial.errors import RunError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that whoever reads it, whenever, finds the old content or the new, whole.

    The content goes to a new file beside ``path``, is flushed to disk, and takes the name in one step. It is
    removed again whatever goes wrong, a Ctrl-C included.

    Raises
    ------
    RunError
        If the disk is full or the folder not writable; what was there before is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(
            f"Could not write {path}: {error.strerror or error}. Nothing that was there has been lost; mend "
            "the cause (a full disk, missing rights) and try again."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it has taken its name, or was never made
            temporary.unlink()
