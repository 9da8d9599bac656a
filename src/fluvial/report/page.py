"""The report: one HTML file that opens with the verdict and holds everything, figures included.

The page needs no network, no script and no other file. Whatever comes from data — names of columns, paths,
the study itself — is escaped.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import jinja2
from matplotlib.figure import Figure

from fluvial.check.result import SYMBOLS, CheckResult, overall
from fluvial.errors import DataError
from fluvial.report import style

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class FigureItem:
    """A figure of the report, with the sentence under it that says how to read it.

    A :class:`~matplotlib.figure.Figure` is drawn to PNG bytes at once and let go of, so that a report of
    fifty figures holds one in memory at a time. ``alt`` is what a screen reader says; the caption, unless
    given.

    Raises :class:`~fluvial.errors.DataError` if ``figure`` is neither a figure nor the bytes of a PNG.
    """

    figure: Figure | bytes
    caption: str
    alt: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.figure, Figure):
            object.__setattr__(self, "figure", style.png(self.figure))
        elif not (isinstance(self.figure, bytes) and self.figure.startswith(_PNG)):
            raise DataError(
                f"figure {self.caption[:40]!r}: expected a matplotlib Figure or the bytes of a PNG; "
                f"got {type(self.figure).__name__}."
            )

    @property
    def png(self) -> bytes:
        """The figure as a PNG."""
        assert isinstance(self.figure, bytes)
        return self.figure

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page, in CSS pixels: half of those of the PNG."""
        width, height = struct.unpack(">II", self.png[16:24])
        return round(width / 2), round(height / 2)

    @property
    def source(self) -> str:
        """The PNG as a ``data:`` address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A titled part of the report: paragraphs (parted by blank lines), a table, then figures.

    The first row of ``table`` is its header; its first column names the rows, the others are set to the right.
    """

    title: str
    figures: Sequence[FigureItem] = ()
    text: str = ""
    table: Sequence[Sequence[str]] = ()

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs of the text."""
        return [p for p in re.split(r"\n\s*\n", self.text.strip()) if p]


@dataclass(frozen=True)
class ReportContent:
    """All that a report says, ready to be laid out; nothing is computed from it but the look.

    ``headline`` has the numbers that matter, at most about three, each as (label, value, explanation).
    ``notes`` are sentences that the reader must see first; ``fingerprint`` is one line of what was fitted and checked.
    ``facts`` are (label, value) pairs: the data and its fingerprint, versions, timings. ``study_text`` is
    the study as it was read. ``verdict_sentence`` may be made by :func:`verdict_sentence`.
    """

    title: str
    verdict_sentence: str
    notes: Sequence[str] = ()
    fingerprint: str = ""
    headline: Sequence[tuple[str, str, str]] = ()
    results: Sequence[CheckResult] = ()
    sections: Sequence[Section] = ()
    facts: Sequence[tuple[str, str]] = ()
    study_text: str = ""
    footer: str = ""


@dataclass(frozen=True)
class _Row:
    """One result as text, ready for the table."""

    verdict: str
    symbol: str
    column: str
    value: str
    exact: str
    threshold: str
    n: str
    meaning: str


@dataclass(frozen=True)
class _Group:
    """The results of one check, one row a column; the meaning stands here if all rows share it."""

    name: str
    meaning: str
    rows: list[_Row] = field(default_factory=list)


def render(content: ReportContent) -> str:
    """Return the report as one self-contained HTML page: style and figures inside, no script, no link out.

    The page fits a phone, and prints without cutting figures. The table of checks keeps the order of
    ``content.results``, grouped by check.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = files("fluvial.report")
    template = environment.from_string((folder / "template.html.j2").read_text(encoding="utf-8"))
    css = (folder / "page.css").read_text(encoding="utf-8")
    outcome = overall(content.results)
    return template.render(
        content=content,
        css=css,
        groups=_groups(content.results),
        outcome=outcome.replace(" ", "-"),
        symbol=SYMBOLS[outcome],
        anchors=_anchors(content),
    )


def verdict_sentence(results: Sequence[CheckResult], longest: int = 5) -> str:
    """Return the verdict in a sentence that names what did not pass (at most ``longest`` of each kind).

    >>> verdict_sentence([])
    'No checks were made.'
    """
    if not results:
        return "No checks were made."
    passed = sum(r.verdict == "pass" for r in results)
    if passed == len(results):
        return "The one check passes." if passed == 1 else f"All {passed} checks pass."
    parts = [f"{passed} of {len(results)} checks {'passes' if passed == 1 else 'pass'}"]
    for verdict, one, many in (
        ("fail", "fails", "fail"),
        ("insufficient data", "has too few data", "have too few data"),
    ):
        names = [r.title for r in results if r.verdict == verdict]
        if names:
            more = f" and {len(names) - longest} more" if len(names) > longest else ""
            verb = one if len(names) == 1 else many
            parts.append(f"{len(names)} {verb}: {', '.join(names[:longest])}{more}")
    return "; ".join(parts) + "."


def measured(value: float, uncertainty: float) -> str:
    """Return value ± uncertainty, the uncertainty to two figures and the value to the same place.

    >>> measured(0.012345, 0.00311), measured(-1234.5, 120.0), measured(0.0, 0.0)
    ('0.0123 ± 0.0031', '−1230 ± 120', '0')
    >>> measured(float("inf"), float("nan")), measured(3.21e-7, 1.4e-8)
    ('∞', '(3.21 ± 0.14) × 10⁻⁷')
    """
    if not math.isfinite(value) or not math.isfinite(uncertainty) or uncertainty <= 0:
        return number(value)
    last = math.floor(math.log10(uncertainty)) - 1
    first = math.floor(math.log10(max(abs(value), uncertainty)))
    if -5 < first < 6:
        digits = max(-last, 0)
        shown = (f"{round(v, -last):.{digits}f}" for v in (value, uncertainty))
        return " ± ".join(shown).replace("-", "−")
    digits = max(first - last, 0)
    shown = (f"{v / 10.0**first:.{digits}f}" for v in (value, uncertainty))
    power = str(first).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"({' ± '.join(shown)}) × 10{power}".replace("-", "−")


def number(value: float) -> str:
    """Return a number to four figures, with a true minus sign; infinities and NaN in words that fit a table.

    >>> number(-0.05), number(float("-inf")), number(float("nan")), number(12345.0)
    ('−0.05', '−∞', 'not a number', '12345')
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}".replace("-", "−") if value else "0"
    return f"{value:.4g}".replace("-", "−")


def _groups(results: Sequence[CheckResult]) -> list[_Group]:
    """Results by check, in order of first appearance."""
    by_name: dict[str, list[CheckResult]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    groups: list[_Group] = []
    for name, members in by_name.items():
        meanings = {m.meaning for m in members}
        shared = meanings.pop() if len(meanings) == 1 else ""
        groups.append(_Group(name, shared, [_row(m, "" if shared else m.meaning) for m in members]))
    return groups


def _row(result: CheckResult, meaning: str) -> _Row:
    if result.verdict == "insufficient data":
        meaning = f"{meaning} {needs(result)}".strip()
    return _Row(
        verdict=result.verdict,
        symbol=SYMBOLS[result.verdict],
        column=result.column or "all columns",
        value=measured(result.statistic, result.uncertainty),
        exact=number(result.exact),
        threshold=number(result.threshold),
        n=f"{result.n:,}",
        meaning=meaning,
    )


def needs(result: CheckResult) -> str:
    """Return a sentence on how many rows would decide a check that has too few.

    >>> needs(CheckResult.judge("PIT", "x", 0.02, 0.025, 0.03, 400, "…"))
    'About 1,200 rows would decide; there are 400.'
    """
    rows = result.rows_needed
    if rows is None:
        return "How many rows would decide cannot be told from so few."
    step = 10 ** max(len(str(rows)) - 2, 0)
    return f"About {-(-rows // step) * step:,} rows would decide; there are {result.n:,}."


def _anchors(content: ReportContent) -> list[tuple[str, str]]:
    """The parts of the page, as (identifier, title), for the line of links under the title."""
    parts = [("checks", "Checks")] if content.results else []
    parts += [(f"section-{i}", s.title) for i, s in enumerate(content.sections, 1)]
    parts += [("facts", "Facts")] if content.facts else []
    parts += [("study", "Study")] if content.study_text else []
    return parts
