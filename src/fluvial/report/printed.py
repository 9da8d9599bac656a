"""The report on paper: Markdown with figures beside it, and PDF."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.image import imread

from fluvial.report.markdown import code, fenced, plain, table
from fluvial.report.page import ReportContent, Section, measured, needs, number
from fluvial.report.style import INK, MUTED, safe_text, styled

#: Programs that print a page, in the order in which they are looked for.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
#: Seconds that a browser may take.
PATIENCE = 120


def markdown(content: ReportContent, figures: str) -> tuple[str, dict[str, bytes]]:
    """Return the report as Markdown, and its figures by their file name, which go into a folder named ``figures``."""
    files: dict[str, bytes] = {}
    parts = [f"# {plain(content.title)}", f"**{plain(content.verdict_sentence)}**"]
    parts += [plain(note) for note in content.notes]
    parts += ["\n".join(f"- {plain(a)}: **{plain(b)}** — {plain(c)}" for a, b, c in content.headline)]
    parts += [f"*{plain(content.fingerprint)}*"] if content.fingerprint else []
    if content.results:
        rows = [
            [r.verdict, plain(r.name), plain(r.column or "all"), measured(r.statistic, r.uncertainty), number(r.exact),
             number(r.threshold), f"{r.n:,}", plain(needs(r)) if r.verdict == "insufficient data" else ""]
            for r in content.results
        ]  # fmt: skip
        header = ["verdict", "check", "column", "value", "exact", "threshold", "n", ""]
        parts += ["## Checks", table(header, rows)]
    for section in content.sections:
        parts.append(f"## {plain(section.title)}")
        parts += [plain(p) for p in section.paragraphs]
        if section.table:
            header, *rows = [[plain(cell) for cell in row] for row in section.table]
            parts.append(table(header, rows))
        for item in section.figures:
            name = f"{len(files) + 1:02d}.png"
            files[name] = item.png
            parts.append(f"![{plain(item.alt or item.caption)}]({figures}/{name})\n\n*{plain(item.caption)}*")
    if content.facts:
        parts += ["## Facts", table(["", ""], [[plain(a), code(b)] for a, b in content.facts])]
    if content.study_text:
        parts += ["## Study", fenced(content.study_text, "toml")]
    parts += [f"*{plain(content.footer)}*"] if content.footer else []
    return "\n\n".join(p for p in parts if p) + "\n", files


def find_browser() -> str | None:
    """Return a program that can print a page without a window, or ``None``."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def print_page(browser: str, page: Path, out: Path) -> str | None:
    """Print a page to PDF with a browser; return ``None``, or why it could not be done."""
    with tempfile.TemporaryDirectory(prefix="fluvial-print-", ignore_cleanup_errors=True) as profile:
        command = [
            browser, "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}", "--no-pdf-header-footer",
            f"--print-to-pdf={out}", page.resolve().as_uri(),
        ]  # fmt: skip
        if getattr(os, "geteuid", lambda: 1)() == 0:  # a browser run by root has no sandbox
            command.insert(1, "--no-sandbox")
        try:
            done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    if done.returncode == 0 and out.exists() and out.read_bytes()[:5] == b"%PDF-":
        return None
    return done.stderr.decode(errors="replace").strip()[-300:] or f"exit code {done.returncode}"


# ------------------------------------------------------------------------------ without a browser: pages by matplotlib

_A4 = (8.27, 11.69)
_MARGIN, _BOTTOM = 0.75, 0.7
_CHARACTERS = 104


@dataclass
class _Pages:
    """A4 pages, filled from the top."""

    file: PdfPages
    figure: Figure | None = None
    left: float = 0.0

    def need(self, inches: float) -> None:
        if self.figure is None or self.left < inches:
            self.close()
            self.figure, self.left = Figure(figsize=_A4), _A4[1] - _MARGIN - _BOTTOM

    def text(
        self, words: str, size: float = 9.0, *, bold: bool = False, color: str = INK, mono: bool = False
    ) -> None:
        width = int(_CHARACTERS * 9.0 / size * (0.78 if mono else 1.0))
        for line in textwrap.wrap(words, width, replace_whitespace=True) or [""]:
            height = size * 1.45 / 72
            self.need(height)
            assert self.figure is not None
            y = (_BOTTOM + self.left) / _A4[1]
            look: dict[str, Any] = {"family": "monospace"} if mono else {}
            shown = safe_text(line, 10_000) if not mono else safe_text(line.replace("$", r"\$"), 10_000)
            self.figure.text(
                _MARGIN / _A4[0],
                y,
                shown,
                size=size,
                va="top",
                weight="bold" if bold else "normal",
                color=color,
                **look,
            )
            self.left -= height

    def gap(self, inches: float) -> None:
        self.left -= inches

    def image(self, png: bytes, size: tuple[int, int]) -> None:
        room = _A4[0] - 2 * _MARGIN, _A4[1] - _MARGIN - _BOTTOM - 0.6
        scale = min(room[0] / size[0], room[1] / size[1], 1 / 72)
        width, height = size[0] * scale, size[1] * scale
        self.need(height + 0.5)
        assert self.figure is not None
        place = (_MARGIN / _A4[0], (_BOTTOM + self.left - height) / _A4[1], width / _A4[0], height / _A4[1])
        axes: Axes = self.figure.add_axes(place)
        axes.imshow(imread(io.BytesIO(png)), aspect="auto", interpolation="none")
        axes.axis("off")
        self.left -= height + 0.06

    def close(self) -> None:
        if self.figure is not None:
            self.file.savefig(self.figure, dpi=200)
        self.figure = None


@styled
def pdf_pages(content: ReportContent) -> bytes:
    """Return the report as A4 pages drawn by matplotlib: for a machine without a browser."""
    out = io.BytesIO()
    with PdfPages(out, metadata={"Title": content.title, "Creator": "fluvial"}) as file:
        pages = _Pages(file)
        pages.text(content.title, 10, color=MUTED)
        pages.gap(0.1)
        pages.text(content.verdict_sentence, 15, bold=True)
        pages.gap(0.1)
        for note in content.notes:
            pages.text(note, 10)
        for label, value, explanation in content.headline:
            pages.gap(0.1)
            pages.text(f"{label}: {value}", 11, bold=True)
            pages.text(explanation, 8.5, color=MUTED)
        pages.gap(0.1)
        pages.text(content.fingerprint, 7.5, color=MUTED)
        if content.results:
            _heading(pages, "Checks")
            for line in _check_lines(content):
                pages.text(line, 6.8, mono=True)
        for section in content.sections:
            _section(pages, section)
        if content.facts:
            _heading(pages, "Facts")
            for label, value in content.facts:
                pages.text(f"{label}: {value}", 8)
        if content.study_text:
            _heading(pages, "Study")
            for line in content.study_text.splitlines():
                pages.text(line, 7.5, mono=True)
        pages.gap(0.2)
        pages.text(content.footer, 7.5, color=MUTED)
        pages.close()
    return out.getvalue()


def _heading(pages: _Pages, title: str) -> None:
    pages.need(1.2)
    pages.gap(0.25)
    pages.text(title, 13, bold=True)
    pages.gap(0.08)


def _section(pages: _Pages, section: Section) -> None:
    _heading(pages, section.title)
    for paragraph in section.paragraphs:
        pages.text(paragraph, 9)
        pages.gap(0.06)
    if section.table:
        widths = [max(len(row[i]) for row in section.table) for i in range(len(section.table[0]))]
        for row in section.table:
            cells = (cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            pages.text("\N{NO-BREAK SPACE}".join(cells).replace(" ", "\N{NO-BREAK SPACE}"), 7.5, mono=True)
        pages.gap(0.1)
    for item in section.figures:
        pages.image(item.png, item.size)
        pages.text(item.caption, 8, color=MUTED)
        pages.gap(0.12)


def _check_lines(content: ReportContent) -> Iterator[str]:
    symbols = {"pass": "✓", "fail": "✗", "insufficient data": "?"}
    rows = [
        [f"{symbols[r.verdict]} {r.name}", r.column or "", measured(r.statistic, r.uncertainty),
         f"allowed {number(r.threshold)}", f"n {r.n:,}"]
        for r in content.results
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        cells = (cell[:40].ljust(min(w, 40)) for cell, w in zip(row, widths, strict=True))
        yield "\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}".join(cells).replace(" ", "\N{NO-BREAK SPACE}")
