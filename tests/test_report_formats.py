"""The report of a run in its three formats, and the card: all there, and nothing from the data breaks out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import fluvial
from fluvial import StudyError
from fluvial.check.baselines import Baseline
from fluvial.check.cells import CellDifferences
from fluvial.data.readers import write_table
from fluvial.data.schema import Column
from fluvial.record import RunFolder
from fluvial.report import markdown, page, plots, printed, style, trust_plots
from fluvial.workflow import report as workflow_report

EVIL = '<img src=x onerror="alert(1)">|`*_[a](b)'
STUDY = """
[data]
source = {source}
targets = [{evil}, "y"]
context = ["c", "d"]

[columns.{evil}]
unit = "<b>"
label = "$\\\\broken{{"

[flow]
architecture = "full-gaussian"
width = 8

[training]
epochs = 2

[check]
contexts = 300
draws = 100
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose target, file and folder have hostile names."""
    folder = tmp_path_factory.mktemp("<script>alert(2)</script>".replace("/", "|"))
    rng = np.random.default_rng(0)
    c, d = rng.uniform(0, 1, 3000), rng.integers(0, 3, 3000).astype(float)
    name = "`<i>`.parquet"
    write_table(
        folder / name, {EVIL: c + rng.normal(size=3000), "y": d + rng.normal(size=3000), "c": c, "d": d}
    )
    (folder / "s.toml").write_text(STUDY.format(source=json.dumps(name), evil=json.dumps(EVIL)))
    density = fluvial.fit(folder / "s.toml", runs=folder / "runs", name="<u>run")
    assert density.folder is not None
    return density.folder


def test_the_page_has_all_and_escapes_it(run: Path) -> None:
    html = (run / "report.html").read_text()
    for title in (
        "Checks",
        "Against simpler densities",
        "Data against draws",
        "Calibration",
        "Conformal regions",
        "Novelty",
    ):
        assert re.search(rf"<h2>{title}</h2>", html), title
    assert not re.search(r"<(img src=x|i>|u>|script)", html)
    assert "&lt;img src=x" in html
    headline = html[: html.index("<nav")]
    assert headline.index("verdict") < headline.index("nats per row") < headline.index('class="headline"')
    assert headline.count("<dt>") == 3
    assert re.search(r'class="fingerprint">data [0-9a-f]{12} · study [0-9a-f]{12} · .* fitted \d{4}', html)
    assert html.count('class="plain"') == 2
    # Linear data: no flow is needed, and the page says so before all else.
    assert "A flow is not needed here" in headline


def test_markdown_has_all_and_escapes_it(run: Path) -> None:
    path = fluvial.report_run(run, "md")
    text = path.read_text()
    figures = re.findall(r"\((report-figures/\d\d\.png)\)", text)
    assert len(figures) >= 6
    assert all((run / f).read_bytes().startswith(b"\x89PNG") for f in figures)
    assert "## Calibration" in text
    body = text[: text.index("## Facts")]
    assert "<img" not in body
    assert r"&lt;img src=x onerror=" in body
    assert "\n```toml\n" in text


def test_the_card_is_strict_json_and_markdown(run: Path) -> None:
    card = json.loads((run / "card.json").read_bytes())
    assert card["density"]["targets"][0]["name"] == EVIL
    assert card["trained_on"]["files"] == ["`<i>`.parquet"]  # no folder of the machine
    assert str(run.parent.parent) not in json.dumps(card)
    assert card["checks"]["date"] >= card["trained_on"]["from"]
    assert card["limits"]["context"]["c"]["range"][0] == pytest.approx(0, abs=0.01)
    assert "at most 1 %" in card["limits"]["novelty"]
    text = (run / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: fluvial\n")
    front = text.split("---\n")[1]
    assert 'name: "<u>run"' in front
    assert re.search(r"type: nll, value: \d", front)
    assert "<img" not in text.split("## Where it holds")[0]
    assert "density.given({" in text
    fluvial.write_card(run)
    again = json.loads((run / "card.json").read_bytes())
    assert again == card | {"written": again["written"]}


def test_a_card_before_any_check_says_so(run: Path, tmp_path: Path) -> None:
    density = fluvial.fit(run.parent.parent / "s.toml", runs=tmp_path, name="unchecked", check=False)
    assert density.folder is not None
    assert "**not been checked**" in (density.folder / "README.md").read_text()
    assert json.loads((density.folder / "card.json").read_bytes())["checks"] is None


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a report two sections and two figures: how they look is another test's business."""
    figure = page.FigureItem(
        style.png(plots.pit(np.linspace(0, 1, 90)[:, None], [Column("x", "target")])), "Read it."
    )
    two = [
        page.Section(f"One {EVIL}", [figure], "Words.", [["", "$a"], ["b", "1"]]),
        page.Section("Two", [figure]),
    ]
    monkeypatch.setattr(workflow_report, "sections", lambda *_, **__: two)


@pytest.mark.usefixtures("short")
def test_pdf_without_a_browser_is_drawn(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed, "find_browser", lambda: None)
    path = fluvial.report_run(run, "pdf")
    assert path.name == "report.pdf"
    content = path.read_bytes()
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b", content)) >= 3


@pytest.mark.usefixtures("short")
def test_a_browser_that_fails_is_told_and_replaced(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho no display >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(printed, "find_browser", lambda: str(broken))
    monkeypatch.setattr(printed, "pdf_pages", lambda content: b"%PDF-drawn")
    told: list[str] = []
    assert fluvial.report_run(run, "pdf", on_event=told.append).read_bytes() == b"%PDF-drawn"
    assert "no display" in told[0]
    with pytest.raises(StudyError, match=r"--format: expected one of html, md, pdf; found 'docx'"):
        fluvial.report_run(run, "docx")  # type: ignore[arg-type]


@pytest.mark.skipif(printed.find_browser() is None, reason="no Chromium or Chrome on this machine")
@pytest.mark.browser
def test_a_browser_prints_the_page(run: Path, tmp_path: Path) -> None:
    browser = printed.find_browser()
    assert browser is not None
    html = tmp_path / "page.html"
    html.write_bytes((run / "report.html").read_bytes())
    assert printed.print_page(browser, html, tmp_path / "out.pdf") is None
    assert (tmp_path / "out.pdf").stat().st_size > 100_000


def test_the_words_of_a_report_that_needs_a_flow() -> None:
    better = Baseline("nearest neighbours", 2.0, 0.1, 0.4, 0.01, 100)
    worse = Baseline("marginal density", 2.5, 0.1, 0.9, 0.01, 100)
    notes = workflow_report._notes([worse, better], {"rows": 5, "split": "calibration"})
    assert notes[0].startswith(
        "The flow gains 0.400 ± 0.010 nats per row over the best density that needs none: nearest"
    )
    assert notes[1] == "Recalibrated on 5 calibration rows."
    assert workflow_report._notes([], None) == []


@pytest.mark.parametrize("context", [0, 1, 2, 3])
@pytest.mark.parametrize("targets", [1, 3])
def test_trust_figures_of_every_kind(context: int, targets: int) -> None:
    rng = np.random.default_rng(0)
    at = rng.integers(0, 4, (9, context)).astype(float) if context == 2 else rng.normal(size=(9, context))
    cells = CellDifferences(
        at, np.arange(100, 1000, 100), *(rng.uniform(0.01, 0.2, (9, targets)) for _ in range(4))
    )
    columns = [Column(f"x{EVIL}{j}", "target") for j in range(targets)]
    contexts = [Column(f"c{j}$", "context") for j in range(context)]
    figure = trust_plots.cell_map(cells, columns, contexts, 0.05)
    assert style.png(figure, scale=0.5).startswith(b"\x89PNG")
    beside = [Baseline("a", 1.0, 0.1, 0.0, 0.01, 9), Baseline("b", note="no")]
    assert style.png(trust_plots.baselines(beside), scale=0.5).startswith(b"\x89PNG")


def test_markdown_escapes() -> None:
    assert markdown.plain("a|b*c_d`e<f>\n# g") == r"a\|b\*c\_d\`e&lt;f&gt; \# g"
    assert markdown.code("``x`` y`") == "``` ``x`` y` ```"
    assert markdown.fenced("```\nx") == "````\n```\nx\n````"


def test_a_run_of_another_job_still_shows_progress(run: Path) -> None:
    """Stages of the checks are told, so that a long one is not silent."""
    told: list[str] = []
    fluvial.check_run(run, on_event=told.append)
    assert "fitting baselines" in told
    from fluvial.workflow.trust import Progress

    progress = Progress(told.append, "drawing", 100)
    progress.last -= 100
    progress.done(50)
    assert re.fullmatch(r"drawing: 50 %, about \d+ s left", told[-1])
    assert RunFolder.open(run).record()["checks"]["best_baseline"] is not None
