r"""Linear maps whose numbers come from elsewhere, such as a network: a triangular factor, and reflections.

Both act on tensors with the *coordinates first*: ``x: [D, *batch]``, and parameters ``[size, *lead]`` whose ``lead``
broadcasts against ``batch``. So one set of numbers serves many values without being repeated for each, and a sum over
coordinates runs over whole rows of memory.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

#: Log-scales stay within ± this: scales from 1/1100 to 1100.
LOG_SCALE_LIMIT = 7.0
#: Entries off the diagonal stay within ± this.
OFF_DIAGONAL_LIMIT = 1e3
#: Directions of reflections move from their start by less than this in each coordinate.
DIRECTION_LIMIT = 10.0


def squash(raw: Tensor, limit: float) -> Tensor:
    r"""Return :math:`r / (1 + |r| / \ell)`, nearly r for small values and never beyond ±limit.

    >>> squash(torch.tensor([0.0, 1.0, 1e6]), 7.0)
    tensor([0.0000, 0.8750, 7.0000])
    """
    return raw / (1 + raw.abs() / limit)


def triangular_parameters(dim: int, *, full: bool = True) -> int:
    """Return how many numbers :func:`triangular_affine` takes: D means, D log-scales and, if full, D (D − 1) / 2 more.

    >>> triangular_parameters(3), triangular_parameters(3, full=False)
    (9, 6)
    """
    return 2 * dim + (dim * (dim - 1) // 2 if full else 0)


def triangular_affine(
    x: Tensor, parameters: Tensor, *, full: bool = True, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Apply :math:`z = L^{-1} (x - \mu)` with a triangular factor of positive diagonal, or its inverse.

    With :math:`u_i = (x_i - \mu_i) e^{-s_i}` it is :math:`z_i = u_i + \sum_{j<i} a_{ij} u_j`. A standard normal z
    makes x a Gaussian with means :math:`\mu`; :math:`e^{s_i}` is the standard deviation of :math:`x_i` given those
    before it, and :math:`-a_{ij}` the regression of :math:`u_i` on theirs: every Gaussian within the limits is reached.

    Parameters
    ----------
    x : Tensor
        ``[D, *batch]``.
    parameters : Tensor
        ``[size, *lead]`` with ``lead`` broadcasting against ``batch``: D means; D log-scales, squashed to ±7; and if
        ``full`` the D (D − 1) / 2 entries :math:`a_{ij}` row by row, squashed to ±1000. All zeros give the identity.
    full : bool
        Without it :math:`a = 0`: a diagonal factor.
    inverse : bool
        Apply the inverse map, :math:`x = \mu + L z`.

    Returns
    -------
    tuple[Tensor, Tensor]
        The value ``[D, *batch]``, and the log-determinant ``[*batch]`` of the map applied.

    Examples
    --------
    >>> triangular_affine(torch.tensor([3.0]), torch.tensor([1.0, 0.0]))
    (tensor([2.]), tensor(-0.))
    """
    dim = x.shape[0]
    mean, raw, off = parameters.split((dim, dim, parameters.shape[0] - 2 * dim))
    log_scale = squash(raw, LOG_SCALE_LIMIT)
    if not inverse:
        x = (x - mean) * (-log_scale).exp()
    if full and dim > 1:
        x = _substitute(x, squash(off, OFF_DIAGONAL_LIMIT), inverse=inverse)
    if inverse:
        x = x * log_scale.exp() + mean
    logdet = log_scale.sum(0).expand(x.shape[1:])
    return x, logdet if inverse else -logdet


def _substitute(x: Tensor, off: Tensor, *, inverse: bool) -> Tensor:
    """Multiply by the unit triangular matrix whose rows below the diagonal are ``off``, or solve with it."""
    rows = [x[0].expand(torch.broadcast_shapes(x.shape[1:], off.shape[1:]))]
    first = 0
    for i in range(1, x.shape[0]):
        factors, first = off[first : first + i], first + i
        known = torch.stack(rows) if inverse else x[:i]
        shift = (factors * known).sum(0)
        rows.append(x[i] - shift if inverse else x[i] + shift)
    return torch.stack(rows)


def reflect(x: Tensor, vectors: Tensor, *, inverse: bool = False) -> Tensor:
    r"""Apply a product of Householder reflections, :math:`\prod_v (1 - 2 v v^\top / \lVert v \rVert^2)`; its logdet is 0.

    With D vectors every orthogonal matrix of D dimensions is reached (Householder 1958; for flows: Tomczak & Welling
    2016, arXiv:1611.09630).

    Parameters
    ----------
    x : Tensor
        ``[D, *batch]``.
    vectors : Tensor
        ``[V, D, *lead]``, none zero, with ``lead`` broadcasting against ``batch``; the first acts first.
    inverse : bool
        Apply the inverse: the same reflections, the last one first.

    Examples
    --------
    >>> reflect(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 0.0]]))
    tensor([-3.,  4.])
    """
    for vector in vectors.flip(0) if inverse else vectors:
        unit = vector * vector.square().sum(0).rsqrt()
        x = x - 2 * unit * (unit * x).sum(0)
    return x


def rotate(x: Tensor, raw: Tensor, *, inverse: bool = False) -> Tensor:
    """Apply D reflections whose directions start at fixed ones, spread evenly, and move from there.

    ``x: [D, *batch]`` and ``raw: [D * D, *lead, 1]``: along the last dimension of ``batch`` values share their numbers.
    With several of them the product is formed once, as a matrix.

    >>> x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    >>> z = rotate(x, torch.zeros(9, 2, 1))
    >>> torch.allclose(z.norm(dim=0), x.norm(dim=0))
    True
    >>> torch.allclose(rotate(z, torch.zeros(9, 2, 1), inverse=True), x, atol=1e-6)
    True
    """
    dim = x.shape[0]
    start = _spread_directions(dim).to(raw).reshape(dim, dim, *(1,) * (raw.dim() - 1))
    vectors = start + squash(raw.unflatten(0, (dim, dim)), DIRECTION_LIMIT)
    vectors = torch.where(vectors.square().sum(1, keepdim=True) > 1e-10, vectors, start)
    if x.shape[-1] == 1:
        return reflect(x, vectors, inverse=inverse)
    unit = torch.eye(dim, dtype=x.dtype, device=x.device).reshape(dim, dim, *(1,) * (raw.dim() - 1))
    matrix = reflect(unit, vectors.unsqueeze(2), inverse=inverse)
    return torch.stack([(row * x).sum(0) for row in matrix])


@lru_cache
def _spread_directions(dim: int) -> Tensor:
    """Return ``[D, D]``: D unit vectors drawn once and for all from the isotropic distribution."""
    generator = torch.Generator().manual_seed(dim)
    vectors = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return vectors / vectors.norm(dim=1, keepdim=True)
