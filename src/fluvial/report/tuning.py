"""Figures of a search: which options matter, and how options go together with the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fluvial.report.style import BLUE, DENSITY_MAP, FAINT, INK, VERMILION, WIDTH, dress, safe_text, styled


@styled
def importance_bars(importances: Mapping[str, float], trials: int) -> Figure:
    """Draw how much of the spread of the loss each option decides; shares that sum to one."""
    names = sorted(importances, key=lambda n: importances[n])
    height = 0.9 + 0.28 * len(names)
    figure = Figure(figsize=(WIDTH * 0.6, height))
    axes = figure.add_axes((0.28, 0.5 / height, 0.64, (height - 0.8) / height))
    axes.barh(range(len(names)), [importances[n] for n in names], color=BLUE, height=0.6)
    for i, name in enumerate(names):
        axes.text(
            importances[name] + 0.01, i, f"{importances[name]:.2f}", va="center", fontsize=7.5, color=INK
        )
    dress(axes)
    axes.set_yticks(range(len(names)), [safe_text(n) for n in names])
    axes.set_xlim(0, 1.12 * max(importances.values()))
    axes.set_xlabel("importance for the validation loss (PED-ANOVA)")
    axes.set_title(f"{trials} trials", loc="left")
    return figure


@styled
def parallel_coordinates(
    options: Mapping[str, Sequence[Any]],
    losses: Sequence[float],
    log: Sequence[str] = (),
    even: Sequence[str] = (),
) -> Figure:
    """Draw every trial as a line through its options and its loss; the better, the darker, and the best in red.

    ``log`` names the options that are shown on a logarithmic scale, ``even`` those whose values are evenly spaced.
    """
    columns = [_placed(v, logarithmic=name in log, even=name in even) for name, v in options.items()]
    loss = np.asarray(losses, dtype=float)
    # The worst trials may lie far out; the scale is that of the better three quarters.
    low, high = float(loss.min()), float(np.quantile(loss, 0.75))
    high = high if high > low else low + 1e-9
    norm = Normalize(low, high, clip=True)
    shown = 1 - norm(loss)
    figure = Figure(figsize=(WIDTH, 3.3))
    axes = figure.add_axes((0.05, 0.12, 0.83, 0.76))
    places = range(len(columns) + 1)
    best = int(loss.argmin())
    for i in np.argsort(-loss):
        line = [at[i] for at, _ in columns] + [float(norm(loss[i]))]
        emphasis = i == best
        color = VERMILION if emphasis else DENSITY_MAP(0.15 + 0.85 * float(shown[i]))
        axes.plot(
            places, line, color=color, lw=1.8 if emphasis else 0.9, alpha=1.0 if emphasis else 0.8, zorder=2
        )
    axes.set_xlim(-0.05, len(columns) + 0.05)
    axes.set_ylim(-0.06, 1.06)
    for place, (_, ticks) in zip(places, [*columns, (None, _ends(low, high))], strict=True):
        axes.axvline(place, color=INK, lw=0.8, zorder=1)
        for height, text in ticks:
            axes.text(place + 0.02, height, text, fontsize=7, color=INK, va="center", zorder=4,
                      bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6})  # fmt: skip
    axes.set_xticks(places, [*(safe_text(n, 20) for n in options), "loss [nats]"])
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), DENSITY_MAP.reversed()),
        cax=figure.add_axes((0.94, 0.12, 0.012, 0.76)),
    )
    bar.outline.set_edgecolor(FAINT)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=7)
    axes.set_title(
        "every line a trial; the best in red; losses beyond the worst quarter's edge stand at the top",
        loc="left",
    )
    return figure


def _ends(low: float, high: float) -> list[tuple[float, str]]:
    return [(0.0, f"{low:.4g}"), (1.0, f"≥ {high:.4g}")]


def _placed(
    values: Sequence[Any], *, logarithmic: bool, even: bool
) -> tuple[list[float], list[tuple[float, str]]]:
    """Return where each value stands on its axis, from 0 to 1, and the ticks of the axis."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    distinct = sorted(set(values)) if numbers else list(dict.fromkeys(values))
    if not numbers or even or len(distinct) < 2:
        step = 1 / max(len(distinct) - 1, 1)
        place = {v: (i * step if len(distinct) > 1 else 0.5) for i, v in enumerate(distinct)}
        return [place[v] for v in values], [(place[v], safe_text(_text(v), 14)) for v in distinct]
    x = np.log(np.asarray(values, dtype=float)) if logarithmic else np.asarray(values, dtype=float)
    at = (x - x.min()) / (x.max() - x.min())
    ticks = distinct if len(distinct) <= 5 else [distinct[0], distinct[-1]]
    return at.tolist(), [(float(at[list(values).index(v)]), _text(v)) for v in ticks]


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
