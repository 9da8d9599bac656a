r"""Histograms of oversampled events, with errors that know which entries share a generator event.

The folds of an oversampled event differ in what the detector made of it, not in what happened: they are not
independent. The variance of the content of a bin b is therefore worked out from the sums over each event,

.. math:: \mathrm{var}(n_b) = \sum_{\text{events } e} \Big( \sum_{i \in e, b} w_i \Big)^2,

which is :math:`\sum w^2` where an event enters a bin once, and the larger the more its entries agree. With N folds of
weight w/N it falls from :math:`\sum w^2` towards what the number of generator events allows, and never below (as for
FlashSim: Vaselli, Rizzi, Cattafesta & Cicconofri 2023, CMS NOTE-2023/003).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fluvial.errors import DataError


def histogram(
    values: ArrayLike, edges: ArrayLike, *, events: ArrayLike, weights: ArrayLike | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the content of each bin and its standard error, entries of one event taken together.

    Parameters
    ----------
    values
        What is histogrammed, ``[n]``; values outside the edges are left out.
    edges
        Rising, ``[bins + 1]``; the last bin holds its upper edge too.
    events
        A whole number for each entry, ``[n]``: the same where the generator event is the same (``genEventIndex``).
    weights
        Of each entry, ``[n]``; 1 by default.

    Raises
    ------
    DataError
        If lengths differ, or edges do not rise.

    Two folds that agree are one event, not two:

    >>> content, error = histogram([1, 1], [0, 2], events=[7, 7], weights=[0.5, 0.5])
    >>> content.tolist(), error.tolist()
    ([1.0], [1.0])
    """
    x, edge = np.asarray(values, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    event = np.asarray(events)
    weight = np.ones(x.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if x.ndim != 1 or event.shape != x.shape or weight.shape != x.shape:
        raise DataError(
            f"expected values, events and weights of one length; got shapes {x.shape}, {event.shape}, {weight.shape}"
        )
    if edge.ndim != 1 or len(edge) < 2 or not (np.diff(edge) > 0).all():
        raise DataError("expected at least two edges that rise")
    bins = len(edge) - 1
    at = np.searchsorted(edge, x, side="right") - 1
    at[x == edge[-1]] = bins - 1
    inside = (at >= 0) & (at < bins)
    at, weight = at[inside], weight[inside]
    content = np.bincount(at, weight, bins).astype(np.float64)
    _, number = np.unique(event[inside], return_inverse=True)
    _, cell = np.unique(number * bins + at, return_inverse=True)
    of_event = np.bincount(cell, weight)
    bin_of_cell = np.zeros(len(of_event), dtype=np.int64)
    bin_of_cell[cell] = at
    return content, np.sqrt(np.bincount(bin_of_cell, of_event**2, bins))
