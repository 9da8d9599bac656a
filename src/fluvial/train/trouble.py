"""What was wrong when no step could be taken: which rows of the batch, and which column of theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from fluvial.flows.flow import AbstractFlow
from fluvial.train.options import Diagnosis
from fluvial.train.stopping import Place

#: Rows named in a diagnosis, at most.
MOST_ROWS = 5


def diagnose(flow: AbstractFlow, x: Tensor, context: Tensor) -> Diagnosis:
    """Return the rows of a batch that are not finite, or whose log-density is not, or else the one furthest out."""
    rows = torch.cat([x, context], 1)
    bad = ~rows.isfinite().all(1)
    if not bad.any():
        flow.eval()
        with torch.no_grad():
            bad = ~flow(context).log_prob(x).isfinite()
        flow.train()
    # Of the rows whose numbers are all finite, the column that is furthest out is the likeliest cause.
    far = torch.where(rows.isfinite(), rows.abs(), torch.inf)
    if bad.any():
        chosen = bad.nonzero()[:, 0][:MOST_ROWS]
    else:
        chosen = far.amax(1).argmax()[None]
    column = int(far[chosen].amax(0).argmax())
    role, number = ("target", column) if column < x.shape[1] else ("context", column - x.shape[1])
    return Diagnosis("target" if role == "target" else "context", number, x[chosen], context[chosen])


def diverged(place: Place, found: Diagnosis) -> str:
    """Return what to tell: when it was, at which learning rate, and which column lies how far out."""
    values = (found.x if found.role == "target" else found.context)[:, found.column]
    finite = values[values.isfinite()]
    far = (
        f"{float(finite.abs().max()):.3g} standard deviations"
        if len(finite) == len(values)
        else "NaN or infinity"
    )
    tries = f", after {place.rollbacks} rollbacks with a lower rate each time" if place.rollbacks else ""
    return (
        f"Training stopped in epoch {place.epoch}: {place.skipped_in_a_row} steps in a row gave no finite loss or "
        f"gradient, at learning rate {place.rate_now:.2g}{tries}. The best weights so far are kept. In the last batch "
        f"{found.role} number {found.column + 1} reaches {far}; look at its rows, choose another transform for "
        "that column, or a smaller [training] learning_rate."
    )
