r"""Which wavelengths carry the information on a label.

The predicted mean of a label is a function m(f) of the flux in every pixel. Its **response** is the gradient

.. math:: r_p = \frac{\partial m}{\partial f_p},

in K (or dex) per unit of flux. How much a pixel tells is its response times how much it varies from star to star,
:math:`I_p = \sqrt{\langle r_p^2 \rangle}\,\sigma_p`, the mean over stars (gradient times input scale; Simonyan, Vedaldi &
Zisserman 2014, arXiv:1312.6034). A pixel that carries what its neighbours carry as well may have a small response though
it is no less informative: read it as what *this network* looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fluvial.density import Density
from fluvial.errors import DataError

Array = np.ndarray

CHUNK, DRAWS = 32, 16


@dataclass(frozen=True)
class Attribution:
    """What pixels say about labels.

    Attributes:
        response: mean gradient ``[D, L]``, in the label's unit per unit of flux.
        information: ``[D, L]``, root mean square of the gradient times the spread of the pixel, in the label's unit.
        mean: mean spectrum ``[L]``.
        stars: how many were averaged.
    """

    response: Array
    information: Array
    mean: Array
    stars: int


def attribute(density: Density, table: Mapping[str, Any], *, column: str | None = None) -> Attribution:
    """Return the responses of predicted labels to the pixels of an array column, averaged over the stars of a table.

    Args:
        density: with an array in its context.
        table: the density's context columns, a few hundred stars.
        column: the array column; left out, the first.

    Raises:
        DataError: if the density has no such column.
    """
    arrays = density.schema.arrays
    names = [c.name for c in arrays]
    if not arrays or (column is not None and column not in names):
        raise DataError(
            f"attribution: expected a density with an array column; it has {', '.join(names) or 'none'}"
        )
    chosen = names.index(column) if column else 0
    spectra = [np.asarray(table[name], dtype=np.float32) for name in names]
    stars, length = spectra[chosen].shape
    scalars = (
        np.stack([np.asarray(table[c.name], float) for c in density.schema.scalars], -1)
        if density.schema.scalars
        else np.zeros((stars, 0))
    )
    coded = torch.from_numpy(density.context_transforms.forward(scalars)[0].astype(np.float32))
    targets = len(density.schema.targets)
    total, square = np.zeros((targets, length)), np.zeros((targets, length))
    for start in range(0, stars, CHUNK):
        part = slice(start, start + CHUNK)
        pixels = [torch.from_numpy(np.array(s[part])) for s in spectra]
        pixels[chosen].requires_grad_(True)
        context = torch.cat([coded[part].reshape(len(pixels[0]), -1), *pixels], -1)
        mean = _mean(density, context)
        scale = _scale(density, mean.detach().numpy())
        for j in range(targets):
            (gradient,) = torch.autograd.grad(mean[:, j].sum(), pixels[chosen], retain_graph=j + 1 < targets)
            in_units = np.nan_to_num(gradient.numpy().astype(np.float64)) * scale[:, j, None]
            total[j] += in_units.sum(axis=0)
            square[j] += np.square(in_units).sum(axis=0)
    mean_spectrum, spread = np.nanmean(spectra[chosen], axis=0), np.nanstd(spectra[chosen], axis=0)
    return Attribution(total / stars, np.sqrt(square / stars) * spread, mean_spectrum, stars)


def _mean(density: Density, context: torch.Tensor) -> torch.Tensor:
    """The mean over a few draws with the same latents at every star, coded and standardised, with its gradient."""
    flow: Any = density.flow
    with torch.enable_grad():
        given = flow(context)
        generator = torch.Generator().manual_seed(0)
        drawn, _ = given.rsample_and_log_prob((DRAWS,), generator=generator)
        return drawn.mean(0)


def _scale(density: Density, coded: Array) -> Array:
    """Units of each target to one of its coded value, at coded values ``[n, D]``."""
    step = 1e-3
    low, high = (
        density.target_transforms.inverse(coded.astype(np.float64) + sign * step) for sign in (-1, 1)
    )
    return (high - low) / (2 * step)
