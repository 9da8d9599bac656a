"""Runs as a table: filters are parsed, never executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fluvial.errors import RunError, StudyError
from fluvial.record import RECORD, RunFolder
from fluvial.runs_table import SHOWN, compile_filter, flat_row, formatted, select
from fluvial.workflow import compare_runs, list_runs

ROWS: list[dict[str, Any]] = [
    {"name": "a-1", "architecture": "maf", "epochs": 10, "kl": 0.02, "converged": True},
    {"name": "a-2", "architecture": "maf", "epochs": 30, "kl": None, "converged": False},
    {"name": "b-1", "architecture": "coupling-spline", "epochs": 30, "kl": 0.3, "converged": True},
    {"name": "b-2", "architecture": None, "epochs": None, "kl": -0.1, "converged": None},
]


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ('architecture == "maf"', ["a-1", "a-2"]),
        ("architecture != 'maf'", ["b-1"]),
        ("epochs > 10 and kl < 1", ["b-1"]),
        ("epochs == 10 or epochs == 30", ["a-1", "a-2", "b-1"]),
        ("not epochs > 10", ["a-1", "b-2"]),
        ("10 < epochs <= 30", ["a-2", "b-1"]),
        ("0 < kl < 0.1 < 1", ["a-1"]),
        ("kl == -0.1", ["b-2"]),
        ("-kl > 0", ["b-2"]),
        ('name in ("a-1", "b-2")', ["a-1", "b-2"]),
        ('name not in ["a-1", "b-2"]', ["a-2", "b-1"]),
        ('"spline" in architecture', ["b-1"]),
        ("converged", ["a-1", "b-1"]),
        ("converged == True and not (epochs == 10)", ["b-1"]),
        ("kl == None", []),
        ("  epochs >= 30  ", ["a-2", "b-1"]),
    ],
)
def test_filter_selects(where: str, names: list[str]) -> None:
    assert [row["name"] for row in select(ROWS, where, None)] == names


@pytest.mark.parametrize(
    "where",
    [
        '__import__("os").system("true")',
        "name.__class__",
        "name[0]",
        "(lambda: 1)()",
        "[n for n in name]",
        "epochs + 1 > 3",
        "10 ** 10 ** 10",
        "f'{name}'",
        "(name := 'x')",
        "name if epochs else kl",
        "kl is None",
        "~epochs",
        "{1: 2}",
        "print",
    ],
)
def test_anything_but_comparisons_is_refused(where: str) -> None:
    with pytest.raises(StudyError, match=r"^Filter .*(expected names, numbers|is not a column)"):
        select(ROWS, where, None)


@pytest.mark.parametrize(
    "where", ["epochs =", "epochs > ", "'maf", "a b", "import os", "(" * 500, "epochs > 1; kl", "\0"]
)
def test_a_filter_that_does_not_parse_says_so(where: str) -> None:
    with pytest.raises(StudyError, match="does not parse"):
        select(ROWS, where, None)


def test_deep_nesting_is_refused_not_a_crash() -> None:
    with pytest.raises(StudyError, match="does not parse"):
        select(ROWS, "not " * 100_000 + "kl", None)


@pytest.mark.parametrize("where", ['epochs < "30"', "architecture > 5", "architecture == 5", "name in 5"])
def test_text_against_number_says_to_mind_the_quotes(where: str) -> None:
    with pytest.raises(StudyError, match=r"cannot compare .*; text goes in quotes, numbers without"):
        select(ROWS, where, None)


@pytest.mark.parametrize("where", ["-name == 1", "-(1, 2) == 1"])
def test_minus_of_a_text_is_refused(where: str) -> None:
    with pytest.raises(StudyError, match="expected a number after the minus sign"):
        select(ROWS, where, None)


def test_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(StudyError, match=r"'epoch' is not a column; did you mean 'epochs'\?$"):
        select(ROWS, "epoch > 1", None)
    with pytest.raises(RunError, match=r"Cannot sort by 'epoch'.*did you mean 'epochs'\?$"):
        select(ROWS, None, "epoch")


@pytest.mark.parametrize(
    ("descending", "names"), [(False, ["b-2", "a-1", "b-1", "a-2"]), (True, ["b-1", "a-1", "b-2", "a-2"])]
)
def test_sort_puts_missing_values_last(descending: bool, names: list[str]) -> None:
    assert [r["name"] for r in select(ROWS, None, "kl", descending=descending)] == names


def test_sort_takes_numbers_and_texts_in_one_column() -> None:
    rows = [{"x": "b"}, {"x": 2}, {"x": None}, {"x": "a"}, {"x": 1.5}]
    assert [r["x"] for r in select(rows, None, "x")] == [1.5, 2, "a", "b", None]


def test_no_rows_give_no_rows_whatever_is_asked() -> None:
    assert select([], "best_loss < 5", "best_loss") == []


def test_predicate_on_a_row_without_the_column() -> None:
    assert not compile_filter("kl < 1", ["kl"])({})


def test_flat_row_of_a_damaged_or_empty_record(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("{}")
    assert set(SHOWN) <= set(flat_row(RunFolder(tmp_path)))
    (tmp_path / RECORD).write_text('{"name": "x", "sta')
    row = flat_row(RunFolder(tmp_path))
    assert set(SHOWN) <= set(row)
    assert (row["name"], row["status"]) == (tmp_path.name, "damaged")


def _run(parent: Path, name: str, losses: list[float], **training: Any) -> RunFolder:
    def fill(run: RunFolder) -> None:
        study = {"training": {"epochs": len(losses), **training}, "flow": {"architecture": "maf"}}
        best = min(losses)
        run.write_record(
            {
                "status": "finished",
                "architecture": "maf",
                "study": study,
                "training": {
                    "best_loss": best,
                    "epochs": len(losses),
                    "rows_per_second": 100.0 * len(losses),
                },
                "timings": {"training": 60.0 * len(losses)},
            }
        )
        for k, loss in enumerate(losses):
            run.append_metrics({"epoch": k + 1, "seconds": 60.0 * (k + 1), "validation_loss": loss})

    return RunFolder.create(parent, "r", name, fill)


def test_results_mark_the_best_of_each(tmp_path: Path) -> None:
    _run(tmp_path, "quick_1", [5.0, 3.0])
    _run(tmp_path, "slow", [5.0, 4.0, 3.5, 2.0])
    rows = list_runs(tmp_path, sort="best_loss")
    columns = ["name", "best_loss", "gain_per_minute", "minutes"]
    text = formatted(rows, columns, "text", mark=True).splitlines()
    assert text[0].split() == columns
    assert text[2].split() == ["slow", "2.000", "*", "1.000", "4.000"]
    assert text[3].split() == ["quick_1", "3.000", "2.000", "*", "2.000", "*"]
    markdown = formatted(rows, columns, "markdown", mark=True).splitlines()
    assert markdown[1] == "|---|---:|---:|---:|"
    assert markdown[2] == "| slow | **2.000** | 1.000 | 4.000 |"
    latex = formatted(rows, columns, "latex", mark=True)
    assert r"quick\_1 & 3.000 & \textbf{2.000} & \textbf{2.000} \\" in latex
    assert latex.splitlines()[0] == r"\begin{tabular}{lrrr}"
    assert "*" not in formatted(rows, columns, "text")
    with pytest.raises(RunError, match=r"--format 'latx' is not known; did you mean 'latex'\?"):
        formatted(rows, columns, "latx")


def test_two_runs_compared(tmp_path: Path) -> None:
    a = _run(tmp_path, "a", [5.0, 3.0], learning_rate=1e-3, start=None)
    b = _run(tmp_path, "b", [5.0, 4.0, 2.0], learning_rate=1e-2, start=None)
    rows = compare_runs(a.path, b.path, figure=tmp_path / "curves.png")
    found = {row["option"]: (row["a"], row["b"]) for row in rows}
    assert list(found)[:2] == ["training.epochs", "training.learning_rate"]
    assert found["training.learning_rate"] == (1e-3, 1e-2)
    assert found["best_loss"] == (3.0, 2.0)
    assert "training.start" not in found  # the same in both
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(RunError, match="found nothing"):
        compare_runs(a.path, tmp_path / "none")


def test_loss_curves_of_runs_without_a_finite_loss(tmp_path: Path) -> None:
    from fluvial.report.plots import loss_curves
    from fluvial.report.style import png

    histories = {"$x_^ odd": [], "nan": [{"epoch": 1, "seconds": 1.0, "validation_loss": None}]}
    assert png(loss_curves(histories))[:4] == b"\x89PNG"
