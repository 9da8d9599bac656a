r"""Principal components of arrays whose neighbours belong together and whose pixels are noisy, such as spectra.

Principal components of pixels that are each scaled to variance 1 are those of noise: most pixels of a spectrum show
none of a line. And components that are fitted to the noise of the training rows fit these better than new ones: what a
network learns from the scores of training rows is then not true of others. Three things mend that:

- pixels are weighted by the inverse of their noise, which second differences along the array tell from signal;
- the array is smoothed, as a signal that an instrument has broadened may be: :math:`P = S W V`;
- components whose scores scatter much less on rows that they were not fitted to are left out.

They are found by iteration of a random subspace (Halko, Martinsson & Tropp 2011, arXiv:0909.4061, algorithm 4.4), which
reads the rows a few times and forms nothing larger than they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Directions beyond those wanted, and iterations of the subspace.
_MORE, _ITERATIONS = 12, 2
#: Parts of the rows that are held out in turn; from so many rows on, only the first is.
_FOLDS, _MANY = 4, 2048
#: The scatter (variance) of scores on other rows over that on their own, from which on a component is one of the signal.
REPRODUCED = 0.7
#: A pixel's noise is taken as at least this, in standard deviations of the pixel.
LEAST_NOISE = 0.05
#: The scale of the scores of component k is (s_k / s_1) to this power: weak ones come in quietly.
_QUIET = 0.3


def pixel_noise(x: Tensor) -> Tensor:
    """Return the noise of every pixel, ``[length]``, of arrays ``[n, length]``: the middle of second differences, scaled.

    White noise of size s has second differences of size √6 s, whose absolute value has its median at 0.6745 of that; what
    changes slowly from pixel to pixel leaves none.
    """
    if x.shape[1] < 3:
        return x.std(0, correction=0)
    pieces = [second_differences(part).abs().median(0).values for part in _overlapping(x)]
    inner = torch.cat(pieces) / (0.6745 * math.sqrt(6))
    return torch.cat([inner[:1], inner, inner[-1:]])


def second_differences(x: Tensor) -> Tensor:
    """Return ``x[i+1] − 2 x[i] + x[i−1]`` along the last axis, two fewer."""
    return x[..., 2:] - 2 * x[..., 1:-1] + x[..., :-2]


def principal_components(x: Tensor, number: int, *, smooth: float) -> tuple[Tensor, Tensor]:
    """Return a projection ``[number, length]`` and its offsets ``[number]``: scores are ``x @ projection.T − offset``.

    Scores have mean 0; the first has variance 1, and weaker ones less. Components that are not reproduced are zero.

    Parameters
    ----------
    x : Tensor
        ``[n, length]``, standardised.
    number : int
        Components at most.
    smooth : float
        Standard deviation of the Gaussian that the arrays are smoothed with, in pixels.
    """
    noise, spread = pixel_noise(x), x.std(0, correction=0)
    weight = torch.where(spread > 0, 1 / noise.clamp_min(LEAST_NOISE * spread).clamp_min(1e-6), 0.0)
    kept = min(number, max(1, len(x) // 2), x.shape[1])
    if len(x) >= _FOLDS * 4:
        kept = max(1, int((_reproduced(x, kept, weight, smooth) > REPRODUCED).sum()))
    directions, scatter = _subspace(x, kept, weight, smooth)
    scale = scatter.clamp_min(1e-6 * float(scatter[0]) + 1e-30)
    directions = directions / scale * (scale / scale[0]) ** _QUIET
    projection = x.new_zeros(number, x.shape[1])
    projection[:kept] = directions.T
    return projection, projection @ x.mean(0)


def _reproduced(x: Tensor, number: int, weight: Tensor, smooth: float) -> Tensor:
    """Return the variance of scores on held-out rows over that on their own; of many rows one fold will do."""
    fold = torch.arange(len(x)) % _FOLDS
    own = other = torch.zeros(())
    for k in range(_FOLDS if len(x) < _MANY else 1):
        directions, scatter = _subspace(x[fold != k], number, weight, smooth)
        own, other = own + scatter.square(), other + (x[fold == k] @ directions).var(0)
    return other / own.clamp_min(1e-30)


def _subspace(x: Tensor, number: int, weight: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """Return directions ``[length, number]`` (weights and smoothing within) and the standard deviations of scores."""
    mean = x.mean(0)
    generator = torch.Generator().manual_seed(0)
    width = min(number + _MORE, *x.shape)
    start = torch.randn(x.shape[1], width, generator=generator).to(x)
    basis = torch.linalg.qr(_smoothed(start, smooth))[0]

    def scores(basis: Tensor) -> tuple[Tensor, Tensor]:
        inside = weight[:, None] * _smoothed(basis, smooth)
        return x @ inside - mean @ inside, inside

    for _ in range(_ITERATIONS):
        found, _ = scores(basis)  # of mean 0, so that the mean need not be taken from x
        basis = torch.linalg.qr(_smoothed(weight[:, None] * (x.T @ found), smooth))[0]
    found, inside = scores(basis)
    _, sizes, turn = torch.linalg.svd(found, full_matrices=False)
    return (inside @ turn.T)[:, :number], sizes[:number] / math.sqrt(max(1, len(x) - 1))


def _smoothed(columns: Tensor, width: float) -> Tensor:
    """Return columns ``[length, k]`` smoothed along the first axis by a Gaussian; its own transpose."""
    if not width:
        return columns
    reach = math.ceil(3 * width)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=columns.device) / width).square())
    kernel = (kernel / kernel.sum()).to(columns)
    return torch.nn.functional.conv1d(columns.T[:, None], kernel[None, None], padding=reach)[:, 0].T


def _overlapping(x: Tensor, pixels: int = 512):
    """Yield the columns of ``x`` a few at a time, two of each shared with the next, so that no difference is lost."""
    for start in range(0, x.shape[1] - 2, pixels):
        yield x[:, start : start + pixels + 2]
