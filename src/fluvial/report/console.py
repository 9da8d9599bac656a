"""Checks in a terminal: what did not pass line by line, what passed folded by check where there are many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluvial.check import CheckResult
from fluvial.check.result import SYMBOLS
from fluvial.record import RunFolder
from fluvial.report.page import measured, needs, verdict_sentence

#: Results shown one by one; of more, those that pass are folded.
FEW = 30
#: How a user of studies gets more rows into the checks.
CONTEXTS = "A larger `contexts` under [check] draws at more test rows."
#: And where the checks use all test rows already.
TEST_ROWS = (
    "All test rows are used: a larger table, or a larger share for `test` under [data] split, gives more."
)
#: The validation loss still falls if it fell by so many nats over the last tenth of the epochs.
STILL_FALLS = 0.02


def result_lines(results: Sequence[CheckResult], how_to_more: str = CONTEXTS) -> list[str]:
    """Return the lines that show results: a table, what undecided ones need, and the verdict.

    Of more than :data:`FEW` results, those that pass are one line a check, which shows the column nearest to its limit.
    Where many are undecided, ``how_to_more`` ends the line on them.

    >>> one = CheckResult.judge("PIT", "x", 0.02, 0.025, 0.03, 400, "…")
    >>> print(*result_lines([one]), sep="\\n")
    verdict              check     statistic      exact  allowed  n
    ───────────────────  ────────  ─────────────  ─────  ───────  ───
    ? insufficient data  PIT of x  0.020 ± 0.025  0      0.03     400
    ? PIT of x: About 1,200 rows would decide; there are 400.
    0 of 1 checks pass; 1 has too few data: PIT of x.
    """
    groups: dict[tuple[object, ...], list[CheckResult]] = {}
    for i, r in enumerate(results):
        alone = r.verdict != "pass" or len(results) <= FEW
        groups.setdefault((i,) if alone else (r.name,), []).append(r)
    rows = []
    for members in groups.values():
        r = max(members, key=_nearness)
        rows.append(
            [
                f"{SYMBOLS[r.verdict]} {r.verdict}",
                r.title + (f" (worst of {len(members)})" if len(members) > 1 else ""),
                measured(r.statistic, r.uncertainty),
                f"{r.exact:g}",
                f"{r.threshold:g}",
                f"{r.n:,}",
            ]
        )
    lines = table_lines(rows, ["verdict", "check", "statistic", "exact", "allowed", "n"])
    undecided = [r for r in results if r.verdict == "insufficient data"]
    if len(undecided) <= FEW // 3:
        lines += [f"? {r.title}: {needs(r)}" for r in undecided]
    else:
        times = sorted(r.rows_needed / r.n for r in undecided if r.rows_needed and r.n)
        lines.append(
            f"? {len(undecided)} checks have too few rows"
            + (f": {_times(times[len(times) // 2])} as many would decide half of them" if times else "")
            + f". {how_to_more}"
        )
    return [*lines, verdict_sentence(results)]


def table_lines(rows: list[list[str]], header: list[str]) -> list[str]:
    """Return a table's lines, whole whatever the width of the terminal: it may go through a pipe."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in [header, ["─" * w for w in widths], *rows]
    ]


def of_run(results: Sequence[CheckResult], run: RunFolder) -> list[str]:
    """Return the lines that show the results of a run: with what its record says of how to get better ones."""
    record = run.record()
    used = record["study"]["check"]["contexts"] >= record["checks"].get("test_rows", 0)
    lines = result_lines(results, TEST_ROWS if used else CONTEXTS)
    budget = str(record["stopped"]).startswith("budget")
    if (
        budget
        and any(r.verdict == "fail" for r in results)
        and (fall := late_fall(run.metrics())) > STILL_FALLS
    ):
        lines.append(
            f"The validation loss still fell when the budget ended, by {fall:.2g} nats in the last tenth of the epochs: "
            "a larger one under [training] is the first thing to try."
        )
    return lines


def late_fall(metrics: Sequence[Mapping[str, Any]]) -> float:
    """Return by how much the validation loss fell over the last tenth of the epochs, the last at least, in nats per row.

    >>> late_fall([{"validation_loss": v} for v in (3.0, 2.0, 1.5)])
    0.5
    """
    losses = [m["validation_loss"] for m in metrics if m["validation_loss"] is not None]
    back = max(1, len(losses) // 10)
    return losses[-1 - back] - losses[-1] if len(losses) > back else 0.0


def _nearness(r: CheckResult) -> float:
    """How near a result is to its limit: 1 is at it."""
    return r.deviation / r.threshold if r.threshold else r.deviation


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:,.0f} times"
