"""The parts of a report that go cell by cell: contexts that were held out, and those of the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fluvial.data.schema import Schema
from fluvial.record import RunFolder
from fluvial.report import page
from fluvial.report.cells import cell_map
from fluvial.report.compare import Panel, marginals
from fluvial.workflow.cells import CELL_ARRAYS, Cell, load_cells

#: Held-out cells that get a figure, at most, and cells of the grid that the table lists.
MOST_PANELS, MOST_LISTED = 8, 80

_HELD = (
    "No row of these contexts was trained on, or used to choose the weights: what the density says here is "
    "interpolation. Loss against its own flow: by how much a flow of the same architecture, fitted to the cell's own "
    "rows alone in a short fit, is better on rows that neither saw; where it is negative, what the neighbours teach "
    "outweighs the interpolation. Chance: how often rows and draws of one density differ as much "
    "(energy distance, permutations, at most 1,000 rows)."
)
_TRAINED = (
    "Test rows of every context of the grid. PIT: the largest error of a reported probability, chance removed. "
    "A cell with few rows is said to have insufficient data, with what its rows do allow to say."
)


def cell_sections(run: RunFolder, schema: Schema) -> list[page.Section]:
    """Return the sections on held-out cells and on the cells of the grid; none if there are none."""
    trained, held = load_cells(run)
    sections = []
    if held:
        figures = []
        with np.load(run.path / CELL_ARRAYS, allow_pickle=False) as arrays:
            panels = [
                Panel(f"held out: {cell.title}", arrays[f"data{k}"], arrays[f"draws{k}"])
                for k, cell in enumerate(held[:MOST_PANELS])
                if cell.compared >= 2
            ]
        if panels:
            caption = "Points are the rows that were held out, the line is drawn from the fit, which has not seen them."
            figures.append(page.FigureItem(marginals(panels, schema.targets), caption))
        sections.append(page.Section("Held-out contexts", figures, _HELD, _table(held, own=True)))
    if trained:
        known = any(math.isfinite(c.kl) for c in trained)
        figures = []
        if len(schema.context) == 2:
            what = "KL(truth‖fit)" if known else "the PIT's distance from uniform"
            figures.append(
                page.FigureItem(
                    cell_map(trained, held, schema.context, kl=known),
                    f"Each cell of the grid: {what} on its test rows. Pale cells have too few rows to tell; framed ones "
                    "were held out.",
                )
            )
        listed = sorted(trained, key=lambda c: _order(c))[:MOST_LISTED]
        more = f" The worst {MOST_LISTED} of {len(trained)} are listed." if len(trained) > MOST_LISTED else ""
        sections.append(page.Section("Cell by cell", figures, _TRAINED + more, _table(listed, own=False)))
    return sections


def _order(cell: Cell) -> tuple[int, float]:
    severity = {"fail": 0, "insufficient data": 1, "pass": 2}[cell.verdict]
    size = cell.kl if math.isfinite(cell.kl) else cell.pit
    return severity, -size if math.isfinite(size) else 0.0


def _table(cells: Sequence[Cell], *, own: bool) -> list[list[str]]:
    known = any(math.isfinite(c.kl) for c in cells)
    weighted = any(abs(c.effective_rows - c.rows) > 0.5 for c in cells)
    head = ["context", "rows", *(["worth"] if weighted else []), "−log p", "PIT"]
    head += ["KL"] if known else []
    head += ["loss against own", "chance"] if own else ["judged on"]
    rows = [[*head, "verdict"]]
    for c in cells:
        row = [c.title, f"{c.rows:,}", *([f"{c.effective_rows:,.0f}"] if weighted else [])]
        row += [_value(c.nll, c.nll_error), _value(c.pit, c.pit_error)]
        row += [_value(c.kl, c.kl_error)] if known else []
        if own:
            row += [
                _value(c.own_loss, c.own_loss_error),
                f"{c.chance:.3f}" if math.isfinite(c.chance) else "–",
            ]
        else:
            row += [f"{c.compared:,}"]
        rows.append([*row, c.verdict])
    return rows


def _value(value: float, error: float) -> str:
    if not math.isfinite(value):
        return "–"
    return page.measured(value, error) if math.isfinite(error) else f"{page.number(value)} (error unknown)"
