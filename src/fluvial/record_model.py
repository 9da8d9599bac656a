"""What ``record.json`` and a line of ``metrics.jsonl`` hold, as strict models: their JSON Schema is in ``docs/``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fluvial.record import CHECKING, UNFINISHED

Status = Literal["unfinished", "checking", "finished", "interrupted", "failed"]
assert {UNFINISHED, CHECKING} <= set(Status.__args__)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Machine(_Strict):
    """Where a fit ran."""

    system: str
    processor: str
    cores: int | None
    threads: int = Field(description="of each process, for mathematics")


class Resumed(_Strict):
    """A fit that went on."""

    at: str = Field(description="ISO 8601, UTC")
    after_epochs: int = Field(description="whole epochs before")
    process: int
    versions: dict[str, str]
    machine: Machine
    command: list[str]


class Training(_Strict):
    """Training so far; empty before the first epoch ends. Losses are means of −log p in nats per unit of the targets."""

    epochs: int
    steps: int
    best_epoch: int
    best_loss: float | None
    final_loss: float | None
    final_train_loss: float | None
    conditioning: float | None = Field(
        description="mean distance of the PIT from uniform over bins of the context, after the last epoch"
    )
    learning_rate: float = Field(description="at its highest: given, or found")
    rows: int = Field(description="passed through training, each as often as it was")
    rows_per_second: float
    skipped_steps: int = Field(description="without a finite loss and gradient")
    rollbacks: int = Field(description="to sound weights, with a lower learning rate")
    processes: int
    compile_seconds: float | None = Field(description="the first step, where the flow is compiled")


class Checks(_Strict):
    """A summary of ``checks.json``; empty before the checks are made."""

    verdict: Literal["pass", "fail", "insufficient data"]
    passed: int
    made: int
    test_nll: float | None = Field(description="mean of −log p over the test rows")
    test_nll_error: float | None
    test_rows: int
    kl: float | None = Field(description="KL(truth‖fit) in nats, where the truth is known")
    kl_error: float | None
    best_baseline: str | None = Field(
        default=None, description="of the densities that need no flow, the one that comes nearest to it"
    )
    gain: float | None = Field(default=None, description="of the flow over that, in nats per row")
    gain_error: float | None = None


class Member(_Strict):
    """A member of an ensemble, whose run is under ``members/``."""

    name: str
    seed: int
    status: Status
    epochs: int
    best_loss: float | None
    seconds: float = Field(description="of training")


class Nothing(_Strict):
    """An empty table."""


class Record(_Strict):
    """``record.json``: written when the folder appears, after every epoch, at the end; NaN and infinity are ``null``."""

    format: int
    name: str
    status: Status = Field(
        description="unfinished: training, or killed in training; checking: likewise, in the checks"
    )
    stopped: str = Field(description="why training ended")
    process: int = Field(description="its number on the machine")
    started: str = Field(description="ISO 8601, UTC")
    ended: str | None
    architecture: str
    weights: int = Field(description="how many numbers are trained")
    study: dict[str, Any] = Field(description="every option with its value, those left out included")
    study_sha256: str
    data: dict[str, Any] = Field(
        description="source, fingerprint, rows read, kept and dropped, sizes of the splits"
    )
    transforms: dict[str, str] = Field(description="of each column, readable")
    seeds: dict[str, int]
    timings: dict[str, float] = Field(
        description="seconds in each stage; training: of all processes that went on"
    )
    training: Training | Nothing
    checks: Checks | Nothing
    resumed: list[Resumed]
    recalibrated: dict[str, Any] | None = Field(
        default=None, description="of a run that recalibrate made: of which run, on which rows"
    )
    ensemble: list[Member] = Field(
        default=[], description="the members that have begun; then `training` is of all of them"
    )
    versions: dict[str, str]
    machine: Machine
    command: list[str]


class Metrics(_Strict):
    """A line of ``metrics.jsonl``: one epoch. Losses are means of −log p in nats per unit of the targets."""

    epoch: int
    steps: int = Field(description="since the start")
    seconds: float = Field(description="of training since the start")
    rows: int = Field(description="since the start")
    rows_per_second: float = Field(description="in this epoch")
    train_loss: float | None
    validation_loss: float | None
    conditioning: float | None = Field(
        description="mean distance of the PIT from uniform over bins of the context"
    )
    learning_rate: float = Field(description="of the last step")
    batch_rows: int = Field(description="rows in a step")
    skipped_steps: int
    rollbacks: int
    improved: bool = Field(description="whether these are the best weights so far")
    best_epoch: int
    best_loss: float | None
    stopped: str | None
