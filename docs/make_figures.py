"""Draw docs/images/binaries.png: the exact density of the simulator, draws from a fit, and mass spectra.

Run: python docs/make_figures.py demo/runs/binaries-1     (after `make demo`)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import fluvial
from fluvial.apps.binaries.simulator import log_density

COLORS = ["#0072B2", "#009E73", "#D55E00"]  # Okabe & Ito
METALLICITIES = [0.0001, 0.004, 0.02]
Z, ALPHA = 0.0004, 1.0
EDGES = np.geomspace(4.5, 60, 140)
TICKS = [5, 7, 10, 20, 40]


def main() -> None:
    """Draw the figure for the run named on the command line."""
    density = fluvial.load(sys.argv[1])
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    centres = np.sqrt(EDGES[1:] * EDGES[:-1])
    exact = np.exp(log_density(centres[:, None], centres[None, :], Z, ALPHA))
    draws = density.given(Z=Z, alpha=ALPHA).sample(2_000_000, seed=1)
    counts, _, _ = np.histogram2d(draws["Mass_0"], draws["Mass_1"], bins=[EDGES, EDGES])
    area = np.diff(EDGES)[:, None] * np.diff(EDGES)[None, :]
    norm = LogNorm(1e-5, 0.3)
    for axes, image, title in (
        (left, exact, "exact"),
        (middle, counts / area / draws.size, "2,000,000 draws"),
    ):
        mesh = axes.pcolormesh(
            EDGES, EDGES, np.where(image > 1e-6, image, np.nan).T, norm=norm, cmap="magma_r", rasterized=True
        )
        axes.set(
            xscale="log",
            yscale="log",
            aspect="equal",
            xlabel=r"$M_0$ [M$_\odot$]",
            ylabel=r"$M_1$ [M$_\odot$]",
        )
        axes.set_title(f"{title}, Z = {Z:g}, $\\alpha$ = {ALPHA:g}", fontsize=10)
    figure.colorbar(mesh, ax=[left, middle], label=r"density [M$_\odot^{-2}$]", shrink=0.8, pad=0.01)
    spectra(right, density)
    for axes in (left, middle, right):
        axes.set_xticks(TICKS, [str(t) for t in TICKS])
        axes.minorticks_off()
    for axes in (left, middle):
        axes.set_yticks(TICKS, [str(t) for t in TICKS])
    path = Path(__file__).parent / "images" / "binaries.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


def spectra(axes, density: fluvial.Density) -> None:
    """Draw p(M0) at three metallicities: draws as points, the exact density as lines."""
    masses = np.geomspace(4.5, 60, 600)
    other = np.geomspace(2, 120, 1500)
    for Z, color in zip(METALLICITIES, COLORS, strict=True):
        joint = np.exp(log_density(masses[:, None], other[None, :], Z, ALPHA))
        axes.plot(masses, np.trapezoid(joint, other, axis=1), color=color, lw=1, label=f"Z = {Z:g}")
        draws = density.given(Z=Z, alpha=ALPHA).sample(1_000_000, seed=2)["Mass_0"]
        counts, _ = np.histogram(draws, EDGES)
        heights = counts / np.diff(EDGES) / draws.size
        axes.plot(
            np.sqrt(EDGES[1:] * EDGES[:-1]), np.where(counts > 20, heights, np.nan), ".", color=color, ms=3.5
        )
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(2e-5, 1),
        xlabel=r"$M_0$ [M$_\odot$]",
        ylabel=r"density [M$_\odot^{-1}$]",
    )
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("draws (points) and exact density (lines)", fontsize=10)


if __name__ == "__main__":
    main()
