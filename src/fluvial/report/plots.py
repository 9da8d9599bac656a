"""The figures of a report, one function each: they draw results and compute nothing beyond histograms.

Every function returns a :class:`matplotlib.figure.Figure`, which the caller may save, show, or put on a
page (:mod:`fluvial.report.page`). Data are black points with 68 % Poisson intervals; draws are a blue line
with a band. None raises on few rows, on constant columns or on values that are not finite: those are drawn
as what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from fluvial.data.schema import Column
from fluvial.errors import DataError
from fluvial.report import style
from fluvial.report.bins import Binning, bin_number, finite, poisson_interval
from fluvial.report.compare import Panel, joint, marginals
from fluvial.report.marks import data_points, heights
from fluvial.report.style import BAND, DRAWS, FAINT, INK, MUTED, STEPS, VERMILION, safe_text, styled

__all__ = ["Panel", "coverage", "joint", "loss_curves", "losses", "marginals", "pit", "pulls"]


@styled
def losses(history: Sequence[Mapping[str, Any]], best_epoch: int | None = None) -> Figure:
    """Draw the losses over the epochs, and the learning rate beneath.

    ``history`` has one mapping an epoch with ``epoch``, ``train_loss``, ``validation_loss`` (nats per row)
    and ``learning_rate``. The y range is that of the epochs after the first tenth, because the first ones
    may be huge. ``best_epoch`` is marked, if it is in the history.
    """
    grid = style.grid(1, 1, (2.3, 0.8), title=0.06)
    top, bottom = grid.cells[0]
    epochs = _series(history, "epoch")
    train, validation = _series(history, "train_loss"), _series(history, "validation_loss")
    mark = "o" if len(epochs) < 4 else None
    top.plot(epochs, train, color=MUTED, label="training", marker=mark)
    top.plot(epochs, validation, color=DRAWS, label="validation", marker=mark)
    known = np.isfinite(validation)
    best = np.flatnonzero((epochs == best_epoch) & known) if best_epoch is not None else []
    for i in best[:1]:
        words = f"best validation: {validation[i]:.4f} nats, epoch {best_epoch}".replace("-", "−")
        ring = {"ms": 6, "mfc": "white", "mec": VERMILION, "mew": 1.4, "ls": "none", "zorder": 5}
        top.plot(epochs[i], validation[i], "o", label=words, **ring)
        for axes in (top, bottom):
            axes.axvline(float(epochs[i]), color=FAINT, lw=0.8, zorder=0)
    off_scale = _loss_range(top, np.stack([train, validation]))
    if not known.any():
        style.corner_text(top, "no finite validation loss", right=False)
    elif off_scale:
        style.corner_text(top, "some early epochs above the frame")
    style.y_label(top, "loss [nats per row]")
    _learning_rate(bottom, epochs, _series(history, "learning_rate"), mark)
    style.legend_strip(grid, top)
    return grid.figure


@styled
def loss_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the validation losses of several runs: against the epoch on the left, against minutes on the right.

    ``histories`` has for each name what :func:`losses` takes, with ``seconds`` too. The y range is shared, and is that of
    the epochs after the first tenth.
    """
    grid = style.grid(2, 2, (2.6,), title=0.06)
    (by_epoch,), (by_time,) = grid.cells[0], grid.cells[1]
    late: list[np.ndarray] = []
    for number, (name, history) in enumerate(histories.items()):
        loss = _series(history, "validation_loss")
        late.append(loss[len(loss) // 10 :])
        look = {"color": style.CYCLE[number % len(style.CYCLE)], "marker": "o" if len(loss) < 4 else None}
        by_epoch.plot(_series(history, "epoch"), loss, label=safe_text(name), **look)
        by_time.plot(_series(history, "seconds") / 60, loss, **look)
    known = finite(np.concatenate(late)) if late else np.empty(0)
    for axes in (by_epoch, by_time):
        if len(known):
            pad = max(0.08 * float(np.ptp(known)), 1e-4 * float(np.abs(known).max()), 1e-9)
            axes.set_ylim(known.min() - pad, known.max() + pad)
        else:
            style.corner_text(axes, "no finite validation loss", right=False)
    by_epoch.set_xlabel("epoch")
    by_time.set_xlabel("minutes")
    style.y_label(by_epoch, "validation loss [nats per row]")
    style.legend_strip(grid, by_epoch)
    return grid.figure


def _learning_rate(axes: Axes, epochs: np.ndarray, rate: np.ndarray, mark: str | None) -> None:
    """The lower axes of the losses: the learning rate, and the epochs that both share."""
    rate = np.where(rate > 0, rate, np.nan)
    axes.plot(epochs, rate, color=MUTED, marker=mark)
    if np.isfinite(rate).any():
        axes.set_yscale("log")
        axes.set_ylim(np.nanmin(rate) / 4, np.nanmax(rate) * 4)
        axes.yaxis.set_minor_formatter(NullFormatter())
    if len(epochs):
        pad = 0.02 * float(np.ptp(epochs)) or 1.0
        axes.set_xlim(float(epochs.min()) - pad, float(epochs.max()) + pad)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=STEPS))
    axes.set_xlabel("epoch")
    style.y_label(axes, "learning rate")


def _series(history: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """One entry an epoch; what is absent, ``None`` or infinite becomes NaN: a gap in the line."""
    values = [h.get(key) for h in history]
    out = np.array([np.nan if v is None else v for v in values], dtype=float)
    return np.where(np.isfinite(out), out, np.nan)


def _loss_range(axes: Axes, losses: np.ndarray) -> bool:
    """Set a y range that shows the later epochs; return whether it leaves earlier ones out."""
    late = finite(losses[:, losses.shape[1] // 10 :])
    if not len(late):
        return False
    low, high = float(late.min()), float(late.max())
    high = min(high, float(np.quantile(late, 0.9)) + 1.5 * (float(np.quantile(late, 0.9)) - low))
    pad = max(0.08 * (high - low), 1e-4 * max(abs(high), 1e-6))
    everything = finite(losses)
    if everything.max() <= high + 2 * (high - low):
        high = float(everything.max())
    axes.set_ylim(low - pad, high + pad)
    return bool(everything.max() > high + pad)


def _cells(columns: Sequence[Column], heights: Sequence[float]) -> style.Grid:
    """One cell a column, half as wide as the page at most."""
    across = {1: 1, 2: 2, 4: 2}.get(len(columns), 3)
    width = style.WIDTH / 2 if across == 1 else None
    return style.grid(len(columns), across, heights, width=width)


def _column_values(values: np.ndarray, columns: Sequence[Column], what: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise DataError(
            f"{what}: expected shape [N, {len(columns)}], one column a target; got {list(values.shape)}."
        )
    return values


@styled
def pit(values: np.ndarray, columns: Sequence[Column]) -> Figure:
    r"""Draw the probability integral transforms ``values [N, D]``: uniform on (0, 1) if the density is exact.

    Above, a histogram with the band that 95 % of bins keep (binomial); beneath, the empirical distribution
    function minus the uniform one, with the band that the whole curve keeps 95 % of the time,
    :math:`\pm\sqrt{\ln(2/0.05)/2N}` (Massart 1990, Ann. Probab. 18, 1269).

    Raises :class:`~fluvial.errors.DataError` if ``values`` does not have one column for each of ``columns``.
    """
    values = _column_values(values, columns, "PIT values")
    grid = _cells(columns, (1.3, 1.0))
    for stack, column, v in zip(grid.cells, columns, values.T, strict=True):
        _pit_cell(stack, np.sort(finite(v)))
        title = safe_text(column.label or column.name)
        stack[0].set_title(title, loc="left", fontweight="bold", pad=4, y=1.0)
        stack[1].set_xlabel("PIT value")
    style.legend_strip(grid, grid.cells[0][0])
    return grid.figure


def _pit_cell(stack: list[Axes], v: np.ndarray) -> None:
    top, bottom = stack
    n, bins = len(v), int(np.clip(len(v) // 40, 5, 25))
    edges = np.linspace(0, 1, bins + 1)
    counts = np.histogram(v, edges)[0].astype(float)
    expected = max(n, 1) / bins
    half = 1.96 * np.sqrt((1 - 1 / bins) / expected)
    top.axhspan(max(1 - half, 0), 1 + half, color=BAND, lw=0, label="expected, 95 %")
    top.axhline(1, color=MUTED, lw=0.8, ls="--")
    lower, upper = poisson_interval(counts)
    top.stairs(counts / expected, edges, baseline=None, color=DRAWS, lw=1.0, alpha=0.5)
    error = np.stack([counts - lower, upper - counts]) / expected
    centres = 0.5 * (edges[1:] + edges[:-1])
    top.errorbar(centres, counts / expected, error, fmt="o", color=DRAWS, elinewidth=0.8, label="observed")
    top.set_xlim(0, 1)
    top.set_ylim(0, max(1.6, 1.15 * float((upper / expected).max()) if n else 0.0, 1.1 * (1 + half)))
    style.y_label(top, "density")
    x = np.concatenate([[0.0], np.repeat(v, 2), [1.0]])
    steps = np.repeat(np.arange(n + 1) / max(n, 1), 2) if n else x
    difference = steps - x
    shown = np.linspace(0, len(x) - 1, min(len(x), 8000)).astype(int)  # a million steps are not seen
    band = float(np.sqrt(np.log(2 / 0.05) / (2 * max(n, 1))))
    bottom.axhspan(-band, band, color=BAND, lw=0)
    bottom.axhline(0, color=MUTED, lw=0.8, ls="--")
    bottom.plot(x[shown], difference[shown], color=DRAWS, lw=1.1)
    reach = 1.25 * max(band, float(np.abs(difference).max()) if n else band)
    bottom.set_ylim(-reach, reach)
    bottom.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    style.y_label(bottom, "ECDF − uniform")
    style.corner_text(top, f"N = {n:,}")


@styled
def pulls(pulls: np.ndarray, columns: Sequence[Column]) -> Figure:
    r"""Draw the pulls ``[N, D]``, (truth − mean of draws) / (standard deviation of draws), column by column.

    An exact density has mean 0 and root mean square 1, whatever its shape; the unit normal is drawn as a
    guide only.

    Raises :class:`~fluvial.errors.DataError` if ``pulls`` does not have one column for each of ``columns``.
    """
    pulls = _column_values(pulls, columns, "pulls")
    grid = _cells(columns, (1.7,))
    for (axes,), column, p in zip(grid.cells, columns, pulls.T, strict=True):
        p = finite(p)
        bins = Binning(np.linspace(-5, 5, 2 * bin_number(len(p), 40) // 2 + 1))
        z = np.linspace(-5, 5, 201)
        normal = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        axes.plot(z, normal, color=VERMILION, ls="--", label="unit normal, a guide")
        data_points(axes, p, bins, label="pulls")
        axes.set_xlim(-5, 5)
        axes.set_ylim(0, max(0.62, 1.5 * float(heights(p, bins).max())))
        axes.set_title(safe_text(column.label or column.name), loc="left", fontweight="bold", pad=4, y=1.0)
        axes.set_xlabel("pull")
        style.y_label(axes, "density")
        style.corner_text(axes, _moments(p), color=INK)
        if (lost := bins.outside(p)) > 0:
            style.corner_text(axes, f"{style.percent(lost)} beyond ±5", right=False)
    style.legend_strip(grid, grid.cells[0][0], "pulls")
    return grid.figure


def _moments(p: np.ndarray) -> str:
    """Mean and root mean square with their standard errors, as text."""
    if len(p) < 2:
        return f"N = {len(p)}"
    root_n = np.sqrt(len(p))
    rms = float(np.sqrt(np.mean(p**2)))
    error = float(np.std(p**2) / (2 * max(rms, 1e-300) * root_n))
    mean = f"mean {np.mean(p):.3f} ± {np.std(p) / root_n:.3f}".replace("-", "−")
    return f"{mean}\nwidth {rms:.3f} ± {error:.3f}"


@styled
def coverage(
    levels: np.ndarray,
    observed_hpd: np.ndarray,
    error_hpd: np.ndarray,
    observed_central: np.ndarray,
    columns: Sequence[Column],
    error_central: np.ndarray | None = None,
) -> Figure:
    """Draw observed coverage against the nominal ``levels [L]``, and the difference beneath.

    Left, the joint highest-density regions, ``observed_hpd [L]`` with standard errors ``error_hpd [L]``;
    right, the central intervals of each column, ``observed_central [L, D]`` with ``error_central [L, D]``
    (those of the joint regions if none are given). Below zero means regions that are too small:
    overconfident.

    Raises :class:`~fluvial.errors.DataError` if a shape disagrees with ``levels`` and ``columns``.
    """
    levels = np.asarray(levels, dtype=float)
    hpd, error = np.asarray(observed_hpd, dtype=float), np.asarray(error_hpd, dtype=float)
    central = _column_values(observed_central, columns, "central coverage")
    errors = (
        np.broadcast_to(error[:, None], central.shape) if error_central is None else np.asarray(error_central)
    )
    if not (levels.shape == hpd.shape == error.shape == central.shape[:1]) or errors.shape != central.shape:
        shapes = [list(a.shape) for a in (levels, hpd, error, central, errors)]
        raise DataError(f"coverage: expected shapes [L], [L], [L], [L, D], [L, D]; got {shapes}.")
    grid = style.grid(2, 2, (2.3, 1.0), head=0.08)
    style.y_label(grid.cells[0][0], "observed coverage")
    style.y_label(grid.cells[0][1], "observed − nominal")
    (left, right), reach = grid.cells, 0.03
    _coverage_curve(left, levels, hpd, error, DRAWS, "highest-density regions", "o")
    worst = (
        np.argsort(-np.abs(central - levels[:, None]).max(axis=0)) if len(levels) else np.arange(len(columns))
    )
    named = list(worst[: len(style.CYCLE)]) if len(columns) > len(style.CYCLE) else list(range(len(columns)))
    for j in range(len(columns)):
        if j in named:
            color, mark = style.CYCLE[named.index(j)], "osD^vP"[named.index(j)]
            label = safe_text(columns[j].label or columns[j].name, 28)
            _coverage_curve(right, levels, central[:, j], errors[:, j], color, label, mark)
        else:
            _coverage_curve(right, levels, central[:, j], errors[:, j], FAINT, None, "")
    for gap, e in ((hpd - levels, error), (central - levels[:, None], errors)):
        reach = max(reach, 1.15 * float(np.max(finite(np.abs(gap) + e), initial=0.0)))
    for (top, bottom), title in zip(grid.cells, ("Joint regions", "Central intervals"), strict=True):
        top.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls="--", zorder=0)
        top.set(xlim=(0, 1), ylim=(0, 1))
        top.legend(loc="upper left", fontsize=7.5, ncols=2 if len(named) > 4 and top is right[0] else 1)
        top.set_title(title, loc="left", fontweight="bold", pad=4, y=1.0)
        bottom.axhline(0, color=MUTED, lw=0.8, ls="--", zorder=0)
        bottom.fill_between(levels, -2 * error, 2 * error, color=BAND, lw=0, zorder=-1)
        bottom.set_ylim(-reach, reach)
        bottom.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        bottom.set_xlabel("nominal coverage")
    return grid.figure


def _coverage_curve(
    stack: list[Axes],
    levels: np.ndarray,
    observed: np.ndarray,
    error: np.ndarray,
    color: str,
    label: str | None,
    mark: str,
) -> None:
    style_ = {"color": color, "lw": 0.9, "elinewidth": 0.8, "ms": 2.8, "marker": mark or None}
    z = 2 if label else 1
    stack[0].errorbar(levels, observed, error, label=label, zorder=z, **style_)
    stack[1].errorbar(levels, observed - levels, error, zorder=z, **style_)
