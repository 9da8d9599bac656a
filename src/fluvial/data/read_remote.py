"""Sets on the Hugging Face Hub, by name: fetched once into its cache, then read from there."""

from __future__ import annotations

from pathlib import Path

from fluvial.errors import DataError
from fluvial.extras import optional_module

#: What a remote source begins with.
REMOTE = "hf://"


def fetch(source: str) -> Path:
    """Return the local path of ``hf://owner/name`` (a folder) or ``hf://owner/name/file`` (also a glob).

    What was fetched before is taken from the cache of ``huggingface_hub`` where the Hub cannot be reached.

    Raises :class:`~fluvial.errors.DataError` where the name is no set or the Hub cannot be reached, and
    :class:`~fluvial.errors.MissingExtraError` where huggingface_hub is not installed.
    """
    owner, _, rest = source.removeprefix(REMOTE).partition("/")
    name, _, inside = rest.partition("/")
    if not owner or not name:
        raise DataError(f"{source}: expected hf://owner/name or hf://owner/name/file")
    hub = optional_module("huggingface_hub", "hub")
    errors = optional_module("huggingface_hub.errors", "hub")
    repo, patterns = f"{owner}/{name}", [inside] if inside else None
    try:
        folder = hub.snapshot_download(repo, repo_type="dataset", allow_patterns=patterns)
    except errors.LocalEntryNotFoundError as error:
        raise DataError(
            f"{source} is not in the cache of this machine, and the Hugging Face Hub cannot be reached (offline?); "
            f"where there is a network, run: hf download {repo} --repo-type dataset --local-dir {name}; then copy "
            f'that folder here and set source = "{name}"'
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise DataError(
            f"{source}: the Hugging Face Hub has no such set, or it is not open to you ({_first_line(error)}); check "
            "the name; for a private one run: hf auth login"
        ) from error
    return Path(folder, inside) if inside else Path(folder)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
