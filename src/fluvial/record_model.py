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

    system: str = Field(description="operating system")
    processor: str = Field(description="its name, as the system gives it")
    cores: int | None = Field(description="of the machine; null where the system does not say")
    threads: int = Field(description="of each process, for mathematics")


class Resumed(_Strict):
    """A fit that went on."""

    at: str = Field(description="ISO 8601, UTC")
    after_epochs: int = Field(description="whole epochs before")
    process: int = Field(description="its number on the machine")
    versions: dict[str, str] = Field(
        description="of Python, fluvial and the libraries that bear on the result"
    )
    machine: Machine = Field(description="where it went on")
    command: list[str] = Field(description="the words it was called with")


class Training(_Strict):
    """Training so far; empty before the first epoch ends. Losses are means of −log p in nats per unit of the targets."""

    epochs: int = Field(description="whole passes over the training rows")
    steps: int = Field(description="of the optimiser")
    best_epoch: int = Field(description="the one whose weights are kept")
    best_loss: float | None = Field(description="of the validation rows, with the kept weights")
    final_loss: float | None = Field(description="of the validation rows, after the last epoch")
    final_train_loss: float | None = Field(description="mean over the batches of the last epoch")
    conditioning: float | None = Field(
        description="mean distance of the PIT from uniform over bins of the context, after the last epoch"
    )
    learning_rate: float = Field(description="at its highest: given, or found")
    rows: int = Field(description="passed through training, each as often as it was")
    rows_per_second: float = Field(description="over all of training")
    skipped_steps: int = Field(description="without a finite loss and gradient")
    rollbacks: int = Field(description="to sound weights, with a lower learning rate")
    processes: int = Field(description="that trained together, each on its share of a batch")
    compile_seconds: float | None = Field(description="the first step, where the flow is compiled")


class Checks(_Strict):
    """A summary of ``checks.json``; empty before the checks are made."""

    verdict: Literal["pass", "fail", "insufficient data"] = Field(
        description="fail if a check fails; pass if all pass"
    )
    passed: int = Field(description="checks that passed")
    made: int = Field(description="checks that were made")
    test_nll: float | None = Field(description="mean of −log p over the test rows")
    test_nll_error: float | None = Field(description="its standard error")
    test_rows: int = Field(description="rows of the test split")
    kl: float | None = Field(description="KL(truth‖fit) in nats, where the truth is known")
    kl_error: float | None = Field(description="its standard error")
    best_baseline: str | None = Field(
        default=None, description="of the densities that need no flow, the one that comes nearest to it"
    )
    gain: float | None = Field(default=None, description="of the flow over that, in nats per row")
    gain_error: float | None = Field(default=None, description="its standard error")


class Member(_Strict):
    """A member of an ensemble, whose run is under ``members/``."""

    name: str = Field(description="its folder")
    seed: int = Field(description="of its weights and of the order of rows")
    status: Status = Field(description="as that of a run")
    epochs: int = Field(description="whole passes over the training rows")
    best_loss: float | None = Field(description="of the validation rows, with the kept weights")
    seconds: float = Field(description="of training")


class Nothing(_Strict):
    """An empty table."""


class Record(_Strict):
    """``record.json``: written when the folder appears, after every epoch, at the end; NaN and infinity are ``null``."""

    format: int = Field(description="version of this layout")
    name: str = Field(description="of the run folder")
    status: Status = Field(
        description="unfinished: training, or killed in training; checking: likewise, in the checks"
    )
    stopped: str = Field(description="why training ended")
    process: int = Field(description="its number on the machine")
    started: str = Field(description="ISO 8601, UTC")
    ended: str | None = Field(description="ISO 8601, UTC; null until it ends")
    architecture: str = Field(description="of the flow")
    weights: int = Field(description="how many numbers are trained")
    study: dict[str, Any] = Field(description="every option with its value, those left out included")
    study_sha256: str = Field(description="of the study file")
    data: dict[str, Any] = Field(
        description="source, fingerprint, rows read, kept and dropped, sizes of the splits"
    )
    transforms: dict[str, str] = Field(description="of each column, readable")
    seeds: dict[str, int] = Field(description="of the split, of training and of the checks")
    timings: dict[str, float] = Field(
        description="seconds in each stage; training: of all processes that went on"
    )
    training: Training | Nothing = Field(description="how training went so far")
    checks: Checks | Nothing = Field(description="what the checks found")
    resumed: list[Resumed] = Field(description="each time that the fit was taken up again")
    recalibrated: dict[str, Any] | None = Field(
        default=None, description="of a run that recalibrate made: of which run, on which rows"
    )
    ensemble: list[Member] = Field(
        default=[], description="the members that have begun; then `training` is of all of them"
    )
    versions: dict[str, str] = Field(
        description="of Python, fluvial and the libraries that bear on the result"
    )
    machine: Machine = Field(description="where it ran")
    command: list[str] = Field(description="the words it was called with")


class Metrics(_Strict):
    """A line of ``metrics.jsonl``: one epoch. Losses are means of −log p in nats per unit of the targets."""

    epoch: int = Field(description="its number, from 1")
    steps: int = Field(description="since the start")
    seconds: float = Field(description="of training since the start")
    rows: int = Field(description="since the start")
    rows_per_second: float = Field(description="in this epoch")
    train_loss: float | None = Field(description="mean over the batches of this epoch")
    validation_loss: float | None = Field(description="after this epoch; null where it is not finite")
    conditioning: float | None = Field(
        description="mean distance of the PIT from uniform over bins of the context"
    )
    learning_rate: float = Field(description="of the last step")
    batch_rows: int = Field(description="rows in a step")
    skipped_steps: int = Field(description="without a finite loss and gradient, since the start")
    rollbacks: int = Field(description="to sound weights, since the start")
    improved: bool = Field(description="whether these are the best weights so far")
    best_epoch: int = Field(description="the one whose weights are the best so far")
    best_loss: float | None = Field(description="of the validation rows, with those weights")
    stopped: str | None = Field(description="why training ended here; null if it goes on")
