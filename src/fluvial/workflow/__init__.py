"""The verbs: the only place where the layers are wired together."""

from fluvial.workflow.bulk import sample_shards
from fluvial.workflow.card import write_card
from fluvial.workflow.check import check_run
from fluvial.workflow.fit import fit, resume
from fluvial.workflow.go_on import fit_or_resume
from fluvial.workflow.population import infer_population
from fluvial.workflow.recalibrate import recalibrate
from fluvial.workflow.report import report_run
from fluvial.workflow.use import (
    compare_runs,
    conformal_regions,
    list_runs,
    load,
    log_prob_table,
    sample_table,
)

__all__ = [
    "check_run",
    "compare_runs",
    "conformal_regions",
    "fit",
    "fit_or_resume",
    "infer_population",
    "list_runs",
    "load",
    "log_prob_table",
    "recalibrate",
    "report_run",
    "resume",
    "sample_shards",
    "sample_table",
    "write_card",
]
