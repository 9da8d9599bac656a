"""Checks: how often they raise a false alarm, how long they take, and what sbi says of the same posterior.

*False alarms.* Each check on exact densities (``check_nulls.py``), with a threshold of 0, so that the standard error
alone decides: a deviation beyond 4 standard errors is a false alarm. The level stated is 1 in 1,000 per result; a
threshold of practical size comes on top in use. ``>2`` and ``>3`` are the shares of results beyond 2 and 3 standard
errors, 4.6 % and 0.3 % for a normal statistic; a distance whose error is a bound has less, the worst of several parts
of context more. No results: too few rows for a verdict.

*Time.* Each check on 1,000 contexts × 1,000 draws of 5 targets (a classifier or a two-sample distance: 5,000 rows).

*Against sbi* (``--sbi PYTHON``: a Python that has sbi and this package's dependencies): parameters of a uniform prior
in two dimensions, seen with Gaussian noise; 4,000 simulations, 20 epochs, one thread. Times include drawing. As a user of
sbi has it: NPE with ``maf`` or ``nsf``, sbi's defaults, checked by ``run_sbc`` and ``run_tarp``; as a user of ours has
it: a study with a flow of the same form (5 steps; two layers, or residual blocks, of 50 units; 10 bins) of the same
simulations, checked by us. These are two posteriors, so answers agree within their errors only. *Same flow*: one flow of
ours in sbi's NPE, checked by sbi and by us; the ranks of a row differ by the scatter of its draws alone, so their rms
difference over that is 1 if the answers are the same. There both sides draw by the same kernels, and drawing is
nearly all of the work of ``run_sbc`` by target and of ``run_tarp``: alone, they cannot be much faster. *All three* is
what sbi's users run on a posterior (ranks by target, expected coverage by log-density, TARP), one after the other; ours
share their draws, as ``fluvial check`` does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from check_nulls import NULLS, deviations
from common import kept, machine, markdown_table, versions, where_and_when, write_json

from fluvial import check as checks

HERE = Path(__file__).parent


def false_alarms(name: str, rows: int, trials: int) -> dict[str, Any]:
    """Return the row of one check: how far exact densities deviate, in standard errors."""
    found = deviations(name, rows, trials)
    known = found[~np.isnan(found)]
    fails = int(np.isinf(known).sum())
    row = {
        "check": name,
        "rows": rows,
        "results": known.size,
        "false alarms": fails,
        ">3 in %": 100 * float((known > 3).mean()) if known.size else None,
        ">2 in %": 100 * float((known > 2).mean()) if known.size else None,
        "within 1 in 1,000": ("yes" if _within(fails, known.size) else "no") if known.size else None,
    }
    print(row, file=sys.stderr, flush=True)
    return row


def _within(fails: int, results: int, level: float = 1e-3) -> bool:
    """Return whether so many fails, or more, have a probability above 1 % at the level."""
    mean = results * level
    below = sum(mean**k * math.exp(-mean) / math.factorial(k) for k in range(fails))
    return 1.0 - below > 0.01


def times(contexts: int, draws: int, targets: int = 5) -> list[dict[str, Any]]:
    """Return the seconds that each check takes."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(contexts, targets)), rng.normal(size=(contexts, draws, targets))
    p, q = -0.5 * (x**2).sum(-1), -0.5 * (y**2).sum(-1)
    names = [f"x{j}" for j in range(targets)]
    a, b, around = (rng.normal(size=(5 * contexts, size)) for size in (targets, targets, 3))
    pit = rng.random((5 * contexts, targets))
    work: dict[str, Callable[[], object]] = {
        "PIT": lambda: checks.pit(checks.pit_values(x, y, rng), names),
        "pulls": lambda: checks.pull_checks(x, y, names),
        "coverage": lambda: checks.coverage(p, q, rng),
        "SBC ranks": lambda: checks.sbc_ranks(x, y, names, rng, log_prob_truth=p, log_prob_draws=q),
        "TARP": lambda: checks.tarp(x, y, rng),
        "CRPS": lambda: checks.crps(x, y),
        "energy score": lambda: checks.energy_score(x, y),
        "PIT across context": lambda: checks.local_calibration(pit, around, names),
        "PIT by regression": lambda: checks.local_regression(pit, around, names, rng),
        "tails": lambda: checks.tail_rates(pit, names),
        "KS distance": lambda: checks.kolmogorov_smirnov(a, b, names),
        "Wasserstein distance": lambda: checks.wasserstein(a, b, names, rng),
        "sliced Wasserstein": lambda: checks.sliced_wasserstein(a, b, rng),
        "MMD": lambda: checks.mmd(a, b, rng),
        "classifier": lambda: checks.classifier_test(a, b, around, rng),
        "classifier across context": lambda: checks.local_classifier_test(a, b, around, rng),
        "extrapolation": lambda: checks.extrapolation(around, around),
    }
    out = []
    for name, run in work.items():
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        out.append({"check": name, "wall s": time.perf_counter() - wall, "CPU s": time.process_time() - cpu})
    out.append({"check": "all", **{k: sum(row[k] for row in out) for k in ("wall s", "CPU s")}})
    return out


#: Cases of ``checks_sbi.py``: what they are called here, and their rows (sbi's own flows take minutes for a thousand).
CASES = {
    "maf": ("sbi's maf against our maf", 300),
    "nsf": ("sbi's nsf against our coupling-spline", 300),
    "same": ("same flow (our coupling-spline) in sbi's NPE", 1000),
}


def against_sbi(python: str, case: str, rows: int, draws: int) -> dict[str, Any]:
    """Return what sbi and we say of a posterior, and the seconds of both, from a process of that Python."""
    script = HERE / "checks_sbi.py"
    command = [python, "-W", "ignore", str(script), case, "--rows", str(rows), "--draws", str(draws)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    with tempfile.TemporaryDirectory() as folder:  # sbi leaves its logs where it runs
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=folder
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def sbi_tables(peer: list[dict[str, Any]]) -> list[str]:
    """Return the part of the page about sbi."""
    parts = ["## Against sbi", ""]
    for one in peer:
        times = [
            {"job": t["job"], "fluvial, CPU s": t["fluvial"]["CPU"], "sbi, CPU s": t["sbi"]["CPU"],
             "times faster": t["sbi"]["CPU"] / t["fluvial"]["CPU"]}
            for t in one["times"]
        ]  # fmt: skip
        title = f"### {CASES[one['case']][0]}, {one['rows']:,} rows × {one['draws']:,} draws"
        answers = [{k: a.get(k) for k in ("answer", "fluvial", "sbi")} for a in one["answers"]]
        parts += [title, "", markdown_table(times), "", markdown_table(answers), ""]
    return parts


def result_rows(
    alarms: list[dict[str, Any]], seconds: list[dict[str, Any]], peer: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows of the JSON."""
    out: list[dict[str, Any]] = [
        {"work": f"{row['check']}, {row['rows']} rows", "op": "false alarms", "who": "fluvial",
         "value": row["false alarms"], "unit": f"of {row['results']}"}
        for row in alarms
    ]  # fmt: skip
    out += [
        {"work": "1,000 contexts × 1,000 draws", "op": row["check"], "who": "fluvial", "value": row["wall s"],
         "unit": "s"}
        for row in seconds
    ]  # fmt: skip
    for one in peer:
        work = f"{CASES[one['case']][0]}, {one['rows']:,} × {one['draws']:,}"
        for who in ("fluvial", "sbi"):
            out += [
                {"work": work, "op": t["job"], "who": who, "value": t[who]["CPU"], "unit": "s"}
                for t in one["times"]
            ]
            out += [
                {"work": work, "op": a["answer"], "who": who, "value": a[who], "unit": "1"}
                for a in one["answers"]
                if who in a
            ]
    return out


def page(
    alarms: list[dict[str, Any]],
    seconds: list[dict[str, Any]],
    peer: list[dict[str, Any]],
    command: str,
    where: str,
) -> str:
    """Return the Markdown page."""
    text = (__doc__ or "").split("\n\n", 1)[1].strip().replace("``", "`")
    parts = [
        "# Checks: false alarms, time, and sbi",
        "",
        "<!-- Written by benchmarks/checks.py; do not edit. -->",
    ]
    parts += ["", text, "", "## False alarms", "", markdown_table(alarms), "", "## Time", ""]
    parts += [markdown_table(seconds), ""]
    if peer:
        parts += sbi_tables(peer)
    return "\n".join([*parts, where, "", f"Made with `{command}`.", ""])


def main() -> None:
    """Read the options, measure, write what was asked for, and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--trials", type=int, default=1000, help="exact densities for each check (default: 1,000)"
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[200, 1000], help="rows of each (default: 200 1000)"
    )
    parser.add_argument("--contexts", type=int, default=1000, help="contexts to time on (default: 1,000)")
    parser.add_argument("--draws", type=int, default=1000, help="draws at each (default: 1,000)")
    parser.add_argument("--sbi", metavar="PYTHON", help="a Python with sbi, to compare with it")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="of the comparison")
    parser.add_argument(
        "--quick", action="store_true", help="40 densities of 200 rows, 300 contexts × 300 draws"
    )
    parser.add_argument(
        "--keep", type=Path, help="rows of false alarms and of sbi, kept there one by one and read again"
    )
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--markdown", type=Path, help="write the page there")
    options = parser.parse_args()
    if options.quick:
        options.trials, options.rows, options.contexts, options.draws = 40, [200], 300, 300
    host, packages = machine(), versions(["fluvial", "numpy"])
    seconds = times(options.contexts, options.draws)
    peer = [
        kept(
            options.keep,
            {"case": case, "rows": min(rows, options.contexts), "draws": options.draws},
            lambda case=case, rows=rows: against_sbi(
                options.sbi, case, min(rows, options.contexts), options.draws
            ),
        )
        for case, (_, rows) in CASES.items()
        if options.sbi and case in options.cases
    ]
    alarms = [
        kept(
            options.keep,
            {"check": name, "rows": rows, "trials": options.trials},
            lambda name=name, rows=rows: false_alarms(name, rows, options.trials),
        )
        for rows in options.rows
        for name in NULLS
    ]
    work = "--quick" if options.quick else f"--trials {options.trials}"
    command = f"python benchmarks/checks.py {work}" + (" --sbi PYTHON" if options.sbi else "")
    text = page(alarms, seconds, peer, command, where_and_when(host, packages))
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        write_json(options.json, result_rows(alarms, seconds, peer), machine=host, versions=packages)
    print(text)


if __name__ == "__main__":
    main()
