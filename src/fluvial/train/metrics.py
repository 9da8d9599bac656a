r"""What is measured on the validation rows after every epoch: the loss, and how well the density follows its context.

The loss is a mean over contexts, so it hardly sees a density that is right on the whole and wrong at each context. The
**conditioning** sees it. For targets d, and for bins b of each context column with equally many rows,

.. math:: \frac{1}{D B} \sum_{d, b} W_1\left(\mathrm{PIT}_d \,\big|\, b,\; U(0, 1)\right)

with :math:`\mathrm{PIT}_d` the probability integral transform of latent d (for a flow without latents, of target d),
uniform in every bin if the density is exact, and :math:`W_1` the Wasserstein distance, here the mean distance of sorted
values from evenly spaced ones: between 0 and 1/2, about :math:`0.31 / \sqrt{n}` for an exact density and n rows in a bin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fluvial.flows.flow import AbstractFlow, FlowDistribution
from fluvial.train.distributed import Group

#: Validation rows behind the conditioning; where a transform takes draws, rows and draws at each.
CONDITIONING_ROWS, DRAWN_ROWS, DRAWS = 4000, 400, 8
BINS = 5
#: A context of more columns than this is binned along so many of its principal components.
MOST_COLUMNS, COMPONENTS = 64, 4
#: Draws of the base density that stand for its distribution function.
BASE_DRAWS = 20_000
CHUNK = 4096


def mean_loss(
    flow: AbstractFlow,
    x: Tensor,
    context: Tensor,
    *,
    weight: Tensor | None = None,
    chunk: int = CHUNK,
    group: Group | None = None,
) -> float:
    """Return the mean of −log p(x | context) over all rows, in nats; ``inf`` where it is not finite.

    With ``weight: [n]`` each row counts so many times.
    In a ``group`` every process evaluates its piece of the rows.
    """
    flow.eval()
    group = group or Group()
    piece = group.piece(len(x))
    total = torch.zeros(1, dtype=torch.float64)
    weights = x.new_ones(len(x)) if weight is None else weight
    parts = (t[piece].split(chunk) for t in (x, context, weights))
    with torch.no_grad():
        for a, b, w in zip(*parts, strict=True):
            total -= (w * flow(b).log_prob(a)).double().sum().cpu()
    mean = float(group.total(total)) / float(weights.double().sum())
    return mean if math.isfinite(mean) else math.inf


class Conditioning:
    """The conditioning of a flow on fixed rows, bins and random numbers: it changes only as the flow does.

    ``x: [n, D]``, ``context: [n, C]``. Without a context there is one bin of all rows. Of more columns than
    :data:`MOST_COLUMNS` (a spectrum), bins are of the principal components of the rows. With ``weight: [n]`` rows are
    taken as often as their weights say.
    """

    def __init__(self, x: Tensor, context: Tensor, weight: Tensor | None = None):
        kept = _evenly(len(x), CONDITIONING_ROWS) if weight is None else by_weight(weight, CONDITIONING_ROWS)
        self.x, self.context = x[kept], context[kept]
        many = context.shape[1] > MOST_COLUMNS
        self.binned = principal_components(self.context) if many else self.context

    def __call__(self, flow: AbstractFlow) -> float:
        """Measure it; ``inf`` if the flow gives numbers that are not finite."""
        flow.eval()
        with torch.no_grad():
            if isinstance(flow(self.context[:1]), FlowDistribution):
                binned = self.binned
                pit = _latent_pit(flow, self.x, self.context)
            else:
                kept = _evenly(len(self.x), DRAWN_ROWS)
                binned = self.binned[kept]
                pit = _drawn_pit(flow, self.x[kept], self.context[kept])
        return binned_distance(pit, binned) if bool(pit.isfinite().all()) else math.inf


def principal_components(rows: Tensor, number: int = COMPONENTS, most: int = 500) -> Tensor:
    """Return the leading principal components ``[n, number]`` of ``rows: [n, C]``, found from ``most`` of them.

    Columns are standardised first; one that is not finite somewhere counts as 0 there.

    >>> t = torch.linspace(-1, 1, 100)[:, None]
    >>> order = principal_components(t * torch.ones(50), 1)[:, 0].argsort()
    >>> order[[0, -1]].sort().values
    tensor([ 0, 99])
    """
    rows = torch.nan_to_num(rows, 0.0, 0.0, 0.0)
    chosen = rows[_evenly(len(rows), most)]
    mean, scale = chosen.mean(0), chosen.std(0)
    scale = torch.where(scale > 0, scale, torch.inf)
    centred = ((chosen - mean) / scale).clamp(-5, 5)
    _, vectors = torch.linalg.eigh(centred @ centred.T)
    directions = centred.T @ vectors[:, -number:].flip(-1)
    return torch.cat([((part - mean) / scale).clamp(-5, 5) @ directions for part in rows.split(CHUNK)])


def binned_distance(pit: Tensor, context: Tensor) -> float:
    """Return the mean Wasserstein distance of ``pit: [n, D]`` from uniform, over bins of ``context: [n, C]``.

    >>> c = torch.linspace(0, 1, 1000)[:, None]
    >>> even = (torch.randperm(1000, generator=torch.Generator().manual_seed(0)) + 0.5)[:, None] / 1000
    >>> binned_distance(even, c) < 0.04, round(binned_distance(c, c), 2)  # the second follows c, bin by bin
    (True, 0.3)
    """
    columns = [context[:, i].argsort(stable=True) for i in range(context.shape[1])]
    bins = [rows for order in columns for rows in order.tensor_split(BINS) if len(rows)]
    distances = [_from_uniform(pit[rows]) for rows in bins or [torch.arange(len(pit), device=pit.device)]]
    return float(torch.stack(distances).double().mean())


def _from_uniform(pit: Tensor) -> Tensor:
    even = (torch.arange(len(pit), dtype=pit.dtype, device=pit.device) + 0.5) / len(pit)
    return (pit.sort(0).values - even[:, None]).abs().mean()


def _latent_pit(flow: AbstractFlow, x: Tensor, context: Tensor) -> Tensor:
    """Return the transform of every latent, by its rank among draws of the base, which does not know the context."""

    def latents(given: FlowDistribution, x: Tensor) -> Tensor:
        return given.flow.bijection(x, given.context)[0]

    pairs = zip(x.split(CHUNK), context.split(CHUNK), strict=True)
    z = torch.cat([latents(flow(c), part) for part, c in pairs])
    generator = torch.Generator(z.device).manual_seed(0)
    size = (BASE_DRAWS, x.shape[1])
    base = (
        flow(context[:1])
        .flow.base.sample(size, generator=generator, dtype=z.dtype, device=z.device)
        .sort(0)
        .values
    )
    ranks = torch.searchsorted(base.t().contiguous(), z.t().contiguous()).t()
    return torch.where(z.isfinite(), (ranks + 0.5) / (BASE_DRAWS + 1), torch.nan)


def _drawn_pit(flow: AbstractFlow, x: Tensor, context: Tensor) -> Tensor:
    """Return the transform of every target, by its rank among draws at its context; where between draws, is random."""
    generator = torch.Generator(x.device).manual_seed(0)
    given = flow(context) if context.shape[1] else flow(None)
    shape = (DRAWS,) if context.shape[1] else (DRAWS, len(x))
    draws = given.sample(shape, generator=generator)
    within = torch.rand(x.shape, generator=generator, device=x.device)
    ties = (draws == x).sum(0)  # where values are discrete: the rank is any of theirs
    pit = ((draws < x).sum(0) + within * (ties + 1)) / (DRAWS + 1)
    return torch.where(draws.isfinite().all(0), pit, torch.nan)


def by_weight(weight: Tensor, most: int) -> Tensor:
    """Return numbers of rows at equal steps of the sum of their weights."""
    share = weight.double().cumsum(0) / weight.double().sum()
    number = min(len(weight), most)
    steps = (torch.arange(number, dtype=torch.float64, device=weight.device) + 0.5) / number
    return torch.searchsorted(share, steps).clamp(max=len(weight) - 1)


def _evenly(rows: int, most: int) -> Tensor:
    return torch.linspace(0, rows - 1, min(rows, most), dtype=torch.float64).round().long()
