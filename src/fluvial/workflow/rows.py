"""The rows of a run: read as its fit read them, and split as it split them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fluvial.errors import RunError
from fluvial.record import STUDY, RunFolder
from fluvial.study import Study, read_study
from fluvial.workflow.data import Rows, data_changed, read_rows


def read_run(folder: RunFolder) -> tuple[dict[str, Any], Study, Rows]:
    """Return the record, the study and the rows of a run.

    Raises
    ------
    RunError
        If its data have changed since the fit.
    """
    record = folder.record()
    study, _ = read_study(folder.path / STUDY)
    source = record["data"]["source"]
    rows = read_rows(study, source, like=record["data"])
    if data_changed(record["data"], rows):
        raise RunError(
            f"{source} has changed since {folder.path} was fitted (its SHA-256 differs), so its test rows are not "
            "those of the fit; restore the file, or fit again."
        )
    return record, study, rows


def rows_of_run(run: str | Path) -> tuple[RunFolder, Study, Rows]:
    """Read the table of a run again.

    Raises
    ------
    RunError
        If the run is missing, or its data have changed since the fit.
    """
    folder = RunFolder.open(run)
    _, study, rows = read_run(folder)
    return folder, study, rows
