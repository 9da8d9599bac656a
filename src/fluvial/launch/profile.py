"""Profiles: what a cluster wants to be told, by name, in a small TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from fluvial.errors import RunError, nearest
from fluvial.launch.times import seconds_of

#: Looked for in this order.
PLACES = (Path("cluster.toml"), Path("~/.config/fluvial/cluster.toml"))


class Profile(BaseModel):
    """What a job asks of a cluster. Every key may be left out, and every one has an option of ``fluvial submit``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | int | None = Field(default=None, description="minutes, or as in 2:00:00, 1-12:00:00, 1.5h")
    nodes: PositiveInt = 1
    tasks: PositiveInt | None = Field(default=None, description="processes a node; one a GPU if left out")
    cpus: PositiveInt | None = Field(default=None, description="cores of a process")
    gpus: int = Field(default=0, ge=0, description="a node")
    mem: str | None = Field(default=None, description="a node, such as 16G")
    modules: list[str] = Field(default=[], description="loaded before anything is run")
    setup: list[str] = Field(default=[], description="lines of shell that are run first")
    container: str | None = Field(
        default=None, description="an image that the command is run in, by apptainer"
    )
    python: str | None = Field(
        default=None, description="of the environment with fluvial; this one if left out"
    )
    warning: str | int = Field(default="2m", description="how long before its end a job is told to stop")
    options: dict[str, str | int | bool] = Field(default={}, description="further options of sbatch, by name")

    @property
    def tasks_per_node(self) -> int:
        """Processes on a node: as said, or one for each GPU, or one."""
        return self.tasks or max(self.gpus, 1)

    @property
    def seconds(self) -> int:
        """The wall time; raises :class:`~fluvial.errors.RunError` if there is none, or it is too short to be of use."""
        if self.time is None:
            raise RunError(
                "--time: expected how long the job may run, there or in the profile, such as 2:00:00."
            )
        limit, warning = seconds_of(self.time), self.warning_seconds
        if limit < warning + 60:
            raise RunError(
                f"--time: {limit} s leave no time for one checkpoint: the job is told to stop {warning} s before its end "
                f"(warning), and the scheduler's clock goes by minutes. Expected at least {warning + 60} s; better hours."
            )
        return limit

    @property
    def warning_seconds(self) -> int:
        """How long before its end a job is told to stop."""
        given = self.warning
        return given if isinstance(given, int) else seconds_of(given, "warning")


def read_profile(name: str | None, file: Path | None, changes: Mapping[str, Any]) -> Profile:
    """Return a profile of a file, with what the command line says otherwise.

    Without a name it is the profile named ``default``, or one that says nothing.

    Raises
    ------
    RunError
        If the file or the profile is not there, or holds an unknown key or a value that cannot be.
    """
    profiles, where = _read(file)
    if name is None:
        chosen = profiles.get("default", {})
    elif name in profiles:
        chosen = profiles[name]
    elif not profiles:
        looked = file or " and ".join(map(str, PLACES))
        raise RunError(f"--profile {name}: found no profiles in {looked}; write them there, as [{name}].")
    else:
        raise RunError(f"--profile: {where} has no profile {name!r}{nearest(name, profiles)}")
    try:
        return Profile.model_validate({**chosen, **{k: v for k, v in changes.items() if v is not None}})
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            what = f"{key} is not a known key{nearest(key, Profile.model_fields)}"
        else:
            what = f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}; found {problem['input']!r:.80}"
        raise RunError(f"{where}: [{name or 'default'}] {what}") from None


def _read(file: Path | None) -> tuple[dict[str, dict[str, Any]], str]:
    path = file or next((p.expanduser() for p in PLACES if p.expanduser().is_file()), None)
    if path is None:
        return {}, "the command line"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"--profiles: expected a file at {path}; found none.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RunError(f"{path} could not be read as TOML: {error}.") from error
    for name, value in content.items():
        if not isinstance(value, dict):
            raise RunError(
                f"{path}: expected profiles, such as [gpu]; found the key {name!r} outside of any."
            )
    return content, str(path)
