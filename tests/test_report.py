"""The report: every figure for every kind of data, and a page that holds everything and runs nothing."""

from __future__ import annotations

import base64
import io
import math
import re
import time
from collections.abc import Sequence
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from fluvial.check.result import CheckResult
from fluvial.data.schema import Column, Support
from fluvial.errors import DataError
from fluvial.report import bins, page, plots, style

EVIL = "<script>alert(1)</script>"
LABELS = ("$M_0$", r"broken $\foo_{$", EVIL, "a_very_long_column_name_" * 4, "质量 \x07\n$")


def columns(dims: int) -> list[Column]:
    units = ("Msun", "", "GeV", "1", "km/s")
    supports = (Support(0.0), Support(), Support(-1.0, 1.0), Support(0.0), Support())
    return [Column(f"x{i}", "target", units[i], supports[i], label=LABELS[i]) for i in range(dims)]


def table(rows: int, dims: int, seed: int, kind: str = "normal") -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = {
        "normal": lambda: rng.normal(size=(rows, dims)),
        "steep": lambda: rng.pareto(1.0, (rows, dims)) + 1,
        "constant": lambda: np.full((rows, dims), 3.0),
        "zero": lambda: np.zeros((rows, dims)),
        "integer": lambda: rng.poisson(3.0, (rows, dims)).astype(float),
        "huge": lambda: rng.normal(size=(rows, dims)) * 1e12,
        "far": lambda: 1e6 + rng.normal(size=(rows, dims)),
        "bad": lambda: np.full((rows, dims), np.nan),
    }[kind]()
    return out


def drawn(figure: Figure) -> np.ndarray:
    """The pixels of a figure, decoded from its PNG: drawing is where labels and ticks can fail."""
    return np.asarray(Image.open(io.BytesIO(style.png(figure, scale=0.5))).convert("L"))


def content(results: Sequence[CheckResult] = (), **kwargs) -> page.ReportContent:
    return page.ReportContent("Title", page.verdict_sentence(results), results=results, **kwargs)


def result(verdict, name="PIT", column: str | None = "Mass_1", value=0.05, error=0.01, meaning="What it is."):
    return CheckResult(name, column, value, error, 0.03, 2000, verdict, meaning)


# ---------------------------------------------------------------------------------------------- figures


KINDS = [
    ("normal", 3, "normal", 400),
    ("constant", 3, "constant", 5),
    ("normal", 0, "normal", 0),
    ("steep", 300, "steep", 300),
    ("zero", 200, "zero", 200),
    ("normal", 0, "normal", 50),
    ("normal", 50, "normal", 0),
    ("integer", 200, "normal", 200),
    ("huge", 200, "far", 200),
    ("normal", 200, "bad", 200),
    ("bad", 3, "bad", 3),
]


@pytest.mark.parametrize(
    ("dims", "kind", "rows", "draws_kind", "draws"),
    [(dims, *kind) for dims, n in ((1, 3), (2, len(KINDS)), (3, 3), (5, 2)) for kind in KINDS[:n]],
)
def test_panels_of_every_kind(dims, kind, rows, draws_kind, draws):
    panel = plots.Panel(EVIL, table(rows, dims, 0, kind), table(draws, dims, 1, draws_kind))
    assert drawn(plots.marginals([panel], columns(dims))).min() < 128
    if dims > 1:
        assert drawn(plots.joint(panel, columns(dims))).min() < 128


@pytest.mark.parametrize(("dims", "rows"), [(1, 0), (1, 1), (2, 3), (2, 300), (5, 3), (7, 50)])
def test_calibration_figures(dims, rows):
    rng = np.random.default_rng(2)
    some = [columns(5)[i % 5] for i in range(dims)]
    assert drawn(plots.pit(rng.uniform(size=(rows, dims)), some)).min() < 128
    assert drawn(plots.pulls(rng.normal(size=(rows, dims)), some)).min() < 128
    levels = np.linspace(0.1, 0.9, rows % 20)
    curves = np.tile(levels[:, None], dims)
    figure = plots.coverage(levels, levels, 0.01 + 0 * levels, curves, some)
    assert drawn(figure).min() < 128


def test_constant_and_non_finite_calibration():
    one = columns(1)
    for v in (np.zeros((9, 1)), np.full((9, 1), np.nan), np.full((9, 1), 1e300)):
        drawn(plots.pulls(np.clip(v, None, 1e100), one))
    drawn(plots.pit(np.array([[0.0], [1.0], [np.nan]]), one))
    levels = np.array([0.5])
    drawn(plots.coverage(levels, np.array([np.nan]), np.array([np.nan]), np.array([[np.nan]]), one))


def epoch(i: int, train: float | None, validation: float | None) -> dict:
    return {
        "epoch": i,
        "seconds": 1.0 * i,
        "train_loss": train,
        "validation_loss": validation,
        "learning_rate": 1e-3,
    }


def test_losses_ignore_huge_first_epochs_and_say_so():
    history = [epoch(i, 5 + 1e9 * (i == 0), 5 + 1 / (i + 1) + 1e9 * (i == 0)) for i in range(40)]
    axes = plots.losses(history, 39).axes[0]
    assert axes.get_ylim()[1] < 10
    assert any("above the frame" in t.get_text() for t in axes.texts)
    _, labels = axes.get_legend_handles_labels()
    assert any("epoch 39" in label for label in labels)
    tame = [epoch(i, 5.0 - 0.01 * i, 5.1 - 0.01 * i) for i in range(40)]
    assert not plots.losses(tame, 39).axes[0].texts


@pytest.mark.parametrize(
    "history",
    [
        [],
        [epoch(0, 1.0, 2.0)],
        [epoch(0, math.nan, None)],
        [epoch(0, math.inf, math.inf), epoch(1, -3.0, -2.0)],
        [epoch(i, 2.0, 2.0) for i in range(5)],
        [{"epoch": 1}],
    ],
)
def test_losses_of_every_kind(history):
    assert drawn(plots.losses(history, 0)).min() < 128


def test_marginals_show_disagreement_and_not_agreement():
    rng = np.random.default_rng(3)
    column = [Column("x", "target")]
    data = rng.normal(size=(2000, 1))

    def coloured(draws: np.ndarray) -> int:
        ratio = plots.marginals([plots.Panel("", data, draws)], column).axes[1]
        marks = [a for a in ratio.lines if a.get_marker() in "^v" and a.get_color() == style.VERMILION]
        return sum(len(np.asarray(a.get_xdata())) for a in marks)

    assert coloured(rng.normal(size=(4000, 1))) == 0
    assert coloured(0.5 * rng.normal(size=(4000, 1))) > 5


def test_draws_beyond_the_frame_are_told():
    rng = np.random.default_rng(4)
    data, column = rng.normal(size=(500, 1)), [Column("x", "target")]
    for shift, told in ((0.0, False), (4.0, True)):
        top = plots.marginals([plots.Panel("", data, data + shift)], column).axes[0]
        assert any("beyond the frame" in t.get_text() for t in top.texts) is told


def test_steep_positive_spectrum_gets_logarithmic_axes():
    x = table(3000, 1, 5, "steep")
    top, bottom = plots.marginals([plots.Panel("", x, x)], [Column("m", "target", support=Support(0.0))]).axes
    assert (top.get_yscale(), bottom.get_xscale()) == ("log", "log")
    x = table(3000, 1, 5)
    top, bottom = plots.marginals([plots.Panel("", x, x)], [Column("m", "target")]).axes
    assert (top.get_yscale(), bottom.get_xscale()) == ("linear", "linear")


def test_panels_share_the_range_of_a_column():
    panels = [plots.Panel(str(i), table(n, 2, i) + i, table(200, 2, 9)) for i, n in enumerate((500, 20, 0))]
    axes = plots.marginals(panels, columns(2)).axes
    for j in (0, 2):
        assert len({a.get_xlim() for a in axes[j::4]}) == 1
        assert len({a.get_ylim() for a in axes[j::4]}) == 1


def test_joint_axes_of_one_unit_share_their_scale():
    rng = np.random.default_rng(8)
    data = np.stack([np.exp(rng.normal(2, 0.6, 500)), np.exp(rng.normal(2, 0.1, 500))], 1)
    for units, scale in ((("Msun", "Msun"), "log"), (("Msun", "GeV"), "linear")):
        pair = [Column(u + str(i), "target", u, Support(0.0)) for i, u in enumerate(units)]
        axes = plots.joint(plots.Panel("", data, data), pair).axes[0]
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", scale)


def test_positive_column_with_nothing_positive_is_drawn():
    x = -1.0 - table(200, 1, 0) ** 2
    assert drawn(plots.marginals([plots.Panel("", x, x)], columns(1))).min() < 128


def test_wrong_shapes_are_told():
    panel = plots.Panel("here", np.zeros((3, 2)), np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"'here'.*draws of shape \[rows, 2\] for x0, x1; got \[3, 3\]"):
        plots.marginals([panel], columns(2))
    with pytest.raises(DataError, match="expected 2 to 6 columns; got 1"):
        plots.joint(panel, columns(1))
    with pytest.raises(DataError, match=r"PIT values: expected shape \[N, 2\]"):
        plots.pit(np.zeros(4), columns(2))
    with pytest.raises(DataError, match="coverage: expected shapes"):
        plots.coverage(np.zeros(3), np.zeros(2), np.zeros(3), np.zeros((3, 1)), columns(1))


def test_labels_are_safe_to_draw():
    assert style.safe_text(r"$\frac{1}{2}$ and $x_0$") == r"$\frac{1}{2}$ and $x_0$"
    assert style.safe_text(r"5 \$") == r"5 \$"
    assert style.safe_text("质 a\x07b") == "\N{REPLACEMENT CHARACTER} a b"
    assert style.axis_label(Column("n", "target", unit="1")) == "n"
    assert style.density_label(Column("v", "target", unit="km/s")) == "density [1/(km/s)]"


def test_the_callers_settings_are_untouched():
    before = dict(matplotlib.rcParams)
    panel = plots.Panel("", table(50, 2, 0), table(50, 2, 1))
    style.png(plots.joint(panel, columns(2)))
    assert dict(matplotlib.rcParams) == before


def test_png_is_reproducible_sharp_and_bounded(monkeypatch):
    figures = [plots.pit(np.linspace(0, 1, 50)[:, None], columns(1)) for _ in range(2)]
    assert style.png(figures[0]) == style.png(figures[1]) == style.png(figures[0])
    width, _ = Image.open(io.BytesIO(style.png(figures[0]))).size
    assert width == pytest.approx(2 * 100 * figures[0].get_size_inches()[0], abs=1)
    monkeypatch.setattr(style, "MAX_PIXELS", 100_000)
    width, height = Image.open(io.BytesIO(style.png(Figure(figsize=(10, 150))))).size
    assert 90_000 < width * height < 102_000


# ------------------------------------------------------------------------------------------- histograms


def test_poisson_interval_is_garwoods():
    n = np.arange(1.0, 200.0)
    lower, upper = bins.poisson_interval(n)
    tail = stats.norm.sf(1.0)
    np.testing.assert_allclose(upper, stats.gamma.isf(tail, n + 1), rtol=0.01)
    np.testing.assert_allclose(lower, stats.gamma.ppf(tail, n), rtol=0.05)


def test_pooled_pull_has_unit_width_for_equal_densities_only():
    rng = np.random.default_rng(6)
    n, m = rng.poisson(20.0, 20_000).astype(float), rng.poisson(60.0, 20_000).astype(float)
    pull = bins.pooled_pull(n, m, 1000, 3000)
    assert abs(pull.mean()) < 0.03
    assert pull.std() == pytest.approx(1.0, abs=0.02)
    assert bins.pooled_pull(n, m, 1000, 2000).mean() < -1
    assert np.isnan(bins.pooled_pull(np.zeros(1), np.zeros(1), 10, 10)).all()


def test_bins_resolve_peaks_and_hold_atoms():
    rng = np.random.default_rng(7)
    peak, tail = rng.normal(6.0, 0.2, 5000), rng.uniform(5.0, 60.0, 5000)
    fine = bins.binning([np.concatenate([peak, tail])], [], 60)
    near = np.abs(fine.centres - 6.0) < 0.3
    assert near.sum() >= 3
    assert fine.widths[near].max() < 0.5 * fine.widths[-5:].min()
    atom = np.concatenate([np.full(5000, -1.0), rng.uniform(0, 1, 5000)])
    assert (bins.binning([atom], [], 40).widths > 0).all()
    assert bins.binning([np.array([1.0, 2.0, 4.0])], [], 8).edges.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    turn = bins.binning([rng.uniform(0, 360, 5000)], [], 40, within=(0.0, 360.0))
    assert turn.edges[[0, -1]].tolist() == [0.0, 360.0]
    assert bins.binning([atom], [], 40).counts(np.array([np.nan, np.inf])).sum() == 0


# ------------------------------------------------------------------------------------------------- page


class Resources(HTMLParser):
    """Collects the tags of a page and every address that it would load or link."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]
        if tag == "img":
            self.images.append(dict(attrs))


def parsed(html: str) -> Resources:
    parser = Resources()
    parser.feed(html)
    return parser


@pytest.fixture(scope="module")
def full() -> str:
    panel = plots.Panel("Z = 0.001", table(300, 2, 0), table(300, 2, 1))
    figures = [
        page.FigureItem(plots.joint(panel, columns(2)), "Read it so.", alt='An image of "both"'),
        page.FigureItem(style.png(plots.losses([epoch(0, 1.0, 2.0)], 0)), "And so."),
    ]
    return page.render(
        page.ReportContent(
            title=f"Masses {EVIL}",
            verdict_sentence=f"9 of 10 checks pass {EVIL}",
            headline=[("KL", "0.02 nats", f"small {EVIL}")],
            results=[
                result("pass", column=EVIL, meaning=EVIL),
                result("fail", column="Mass_0", meaning=EVIL),
                result("insufficient data", name="KL", column=None, value=math.inf, error=math.nan),
            ],
            sections=[page.Section(f"Section {EVIL}", figures, f"One.\n\nTwo {EVIL}.")],
            facts=[("path", f"/data/{EVIL}.parquet"), ("url", "https://example.org")],
            study_text=f'source = "{EVIL}"\nx = 1 < 2',
            footer=f"fluvial {EVIL}",
        )
    )


def test_page_says_everything(full):
    for words in (
        "9 of 10 checks pass",
        "0.02 nats",
        "Read it so.",
        "Mass_0",
        "x = 1 &lt; 2",
        "fluvial",
        "Two",
    ):
        assert words in full
    for symbol, verdict in (("✓", "pass"), ("✗", "fail"), ("?", "insufficient data")):
        assert re.search(rf'aria-hidden="true">{re.escape(symbol)}</span> {verdict}', full)
    assert full.index("9 of 10 checks pass") < full.index("0.02 nats") < full.index('id="checks"')
    assert "0.050 ± 0.010" in full
    assert "∞" in full
    # One for PIT, whose rows share it, one for KL, and one that says how many rows it lacks.
    assert full.count('class="meaning"') == 3
    assert "rows would decide" in full


def test_page_is_self_contained_and_runs_nothing(full):
    got = parsed(full)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(got.tags)
    assert got.addresses
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in got.addresses)
    css = re.search(r"<style>(.*?)</style>", full, re.S)
    assert css
    assert not re.search(r"@import|url\(|http", css.group(1))
    assert " on" not in " ".join(re.findall(r"<[a-z]+ on\w+=", full))


def test_page_escapes_what_comes_from_data(full):
    assert EVIL not in full
    assert full.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10
    assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)&lt;/script&gt;", "", full)


def test_page_holds_figures_that_decode(full):
    images = parsed(full).images
    assert len(images) == 2
    for image in images:
        source, width = image["src"] or "", int(image["width"] or 0)
        decoded = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
        decoded.load()
        assert decoded.size[0] == pytest.approx(2 * width, abs=1)
        assert image["alt"]


def test_page_is_well_formed(full):
    opened: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "br"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Balance().feed(full)
    assert opened == []
    assert len(set(re.findall(r'id="([^"]+)"', full))) == len(re.findall(r'id="([^"]+)"', full))


def test_an_empty_page_is_a_page():
    html = page.render(content())
    assert "No checks were made." in html
    assert "<table" not in html
    assert "<nav" not in html


def test_verdict_sentence():
    ok = result("pass")
    assert page.verdict_sentence([ok]) == "The one check passes."
    assert page.verdict_sentence([ok, ok]) == "All 2 checks pass."
    assert page.verdict_sentence([ok, result("fail")]) == "1 of 2 checks passes; 1 fails: PIT of Mass_1."
    few = result("insufficient data", name="KL", column=None)
    words = page.verdict_sentence([ok, ok, *[result("fail")] * 3, few], longest=2)
    assert words == (
        "2 of 6 checks pass; 3 fail: PIT of Mass_1, PIT of Mass_1 and 1 more; 1 has too few data: KL."
    )


def test_header_shows_the_worst_verdict():
    for results, mark in (
        ([result("pass")], "verdict pass"),
        ([result("pass"), result("insufficient data")], "verdict insufficient-data"),
        ([result("insufficient data"), result("fail"), result("pass")], "verdict fail"),
        ([], "verdict insufficient-data"),
    ):
        assert f'class="{mark}"' in page.render(content(results))


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (1.0, 0.1, "1.00 ± 0.10"),
        (0.0, 0.02, "0.000 ± 0.020"),
        (123456.0, 1300.0, "123500 ± 1300"),
        (-1e-9, 2e-9, "(−1.0 ± 2.0) × 10⁻⁹"),
        (1.0, math.inf, "1"),
        (math.nan, 1.0, "not a number"),
        (-math.inf, 0.0, "−∞"),
        (0.25, 0.0, "0.25"),
    ],
)
def test_measured(value, error, words):
    assert page.measured(value, error) == words


def test_a_figure_item_wants_a_figure():
    with pytest.raises(DataError, match="expected a matplotlib Figure or the bytes of a PNG; got str"):
        page.FigureItem("figure.png", "How to read it.")  # type: ignore[arg-type]
    item = page.FigureItem(Figure(figsize=(2, 1)), "How to read it.")
    assert isinstance(item.figure, bytes)
    assert item.size == (200, 100)


def test_a_report_of_six_contexts_is_light():
    start = time.process_time()
    panels = [plots.Panel(f"context {i}", table(800, 2, i), table(2000, 2, 50 + i)) for i in range(6)]
    figures = [plots.marginals(panels, columns(2)), *(plots.joint(p, columns(2)) for p in panels)]
    html = page.render(
        content(sections=[page.Section("All", [page.FigureItem(f, "Read.") for f in figures])])
    )
    assert len(html) < 4e6
    assert time.process_time() - start < 30  # about 3 s on one idle core; the bound is against blunders
