"""Where a fit may report besides its run folder: TensorBoard, MLflow, or anything with four methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fluvial.errors import StudyError, nearest
from fluvial.extras import optional_module


@runtime_checkable
class Logger(Protocol):
    """What a fit reports to. Called by one process, in this order: begin, metrics every epoch, file, end."""

    def begin(self, run: Path, options: Mapping[str, Any]) -> None:
        """Training of this run begins; ``options`` are those of its study, flat: ``training.epochs`` and so on."""
        ...

    def metrics(self, values: Mapping[str, Any], epoch: int) -> None:
        """Take what was measured after an epoch; values that are no numbers may be left out."""
        ...

    def file(self, path: Path) -> None:
        """A file of the run is written that may be worth keeping, such as its report."""
        ...

    def end(self, status: str) -> None:
        """The fit has ended: ``finished``, ``interrupted`` or ``failed``."""
        ...


class TensorBoard:
    """Scalars for TensorBoard in the folder ``tensorboard`` of the run. Needs ``fluvial[tensorboard]``."""

    def __init__(self) -> None:
        self._module = optional_module("tensorboard", "tensorboard") and optional_module(
            "torch.utils.tensorboard", "tensorboard"
        )
        self._writer: Any = None

    def begin(self, run: Path, options: Mapping[str, Any]) -> None:
        """Open the folder, and write the options as a text."""
        self._writer = self._module.SummaryWriter(str(run / "tensorboard"))
        lines = [f"| {name} | {value} |" for name, value in options.items()]
        self._writer.add_text("study", "\n".join(["| option | value |", "|---|---|", *lines]))

    def metrics(self, values: Mapping[str, Any], epoch: int) -> None:
        """Write a scalar for every number."""
        for name, value in numbers(values).items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def file(self, path: Path) -> None:
        """Do nothing: the file is beside the scalars already."""

    def end(self, status: str) -> None:
        """Close the folder."""
        self._writer.add_text("status", status)
        self._writer.close()


class MLflow:
    """A run of MLflow, in the store that ``MLFLOW_TRACKING_URI`` names. Needs ``fluvial[mlflow]``."""

    def __init__(self) -> None:
        self._mlflow: Any = optional_module("mlflow", "mlflow")
        self._client: Any = None
        self._id = ""

    def begin(self, run: Path, options: Mapping[str, Any]) -> None:
        """Start a run of the same name in the experiment ``fluvial``, with the options as its parameters."""
        self._client = self._mlflow.tracking.MlflowClient()
        experiment = self._client.get_experiment_by_name("fluvial")
        number = experiment.experiment_id if experiment else self._client.create_experiment("fluvial")
        self._id = self._client.create_run(number, run_name=run.name).info.run_id
        for name, value in options.items():
            self._client.log_param(self._id, name, str(value)[:500])

    def metrics(self, values: Mapping[str, Any], epoch: int) -> None:
        """Log every number at this epoch."""
        for name, value in numbers(values).items():
            self._client.log_metric(self._id, name, value, step=epoch)

    def file(self, path: Path) -> None:
        """Keep the file as an artefact."""
        self._client.log_artifact(self._id, str(path))

    def end(self, status: str) -> None:
        """Close the run with MLflow's word for how it ended."""
        word = {"finished": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED")
        self._client.set_terminated(self._id, status=word)


LOGGERS: dict[str, type[TensorBoard] | type[MLflow]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def make_loggers(names: Sequence[str | Logger]) -> list[Logger]:
    """Return loggers by name; what is none but a logger itself stays.

    Raises
    ------
    StudyError
        If a name is unknown.
    MissingExtraError
        If what it needs is not installed.
    """
    out: list[Logger] = []
    for name in names:
        if not isinstance(name, str):
            out.append(name)
        elif name in LOGGERS:
            out.append(LOGGERS[name]())
        else:
            raise StudyError(f"--log {name!r} is not known{nearest(name, LOGGERS)}")
    return out


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among values.

    >>> numbers({"loss": 1.5, "improved": True, "stopped": None, "epoch": 2})
    {'loss': 1.5, 'epoch': 2.0}
    """
    return {n: float(v) for n, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
