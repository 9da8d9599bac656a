"""Linear bijections: permutation, and a full matrix kept as its LU factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fluvial.core import native
from fluvial.core.bijection import Bijection


class Permutation(Bijection):
    """Reorder coordinates: ``z[..., i] = x[..., order[i]]``; logdet is 0.

    >>> Permutation([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))[0]
    tensor([12., 10., 11.])
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int]):
        super().__init__()
        indices = torch.as_tensor(list(order), dtype=torch.long)
        if sorted(indices.tolist()) != list(range(len(indices))):
            raise ValueError(f"Expected a permutation of 0 … {len(indices) - 1}; got {list(order)}.")
        self.register_buffer("order", indices)
        self.register_buffer("back", indices.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reorder."""
        return reordered(x, self.order, self.back), x.new_zeros(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Restore the order."""
        return reordered(z, self.back, self.order), z.new_zeros(z.shape[:-1])


def reordered(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """Return ``x[..., order]``; ``back`` undoes it."""
    if native.records_gradients(x):
        return _Reordered.apply(x, order, back)  # type: ignore[return-value]
    return x.index_select(-1, order)


class _Reordered(torch.autograd.Function):
    """PyTorch adds up the gradient of a selection, several times slower than to select back."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, back: Tensor):  # type: ignore[override]
        ctx.order, ctx.back = order, back
        return x.index_select(-1, order)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return reordered(grad, ctx.back, ctx.order), None, None


class LU(Bijection):
    r"""A full matrix with bias, :math:`z = L U x + b`, with L unit lower and U upper triangular.

    :math:`\log|\det| = \sum_i \log U_{ii}`; the diagonal is :math:`\exp` of a parameter squashed to
    [e⁻³, e³], so the matrix is never singular. Starts at the identity. (Kingma & Dhariwal 2018, eq. 10; Durkan et
    al. 2019, section 4.1.)
    """

    def __init__(self, dim: int):
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(dim, dim))
        self.upper = nn.Parameter(torch.zeros(dim, dim))
        self.log_diagonal = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        log_diagonal = 3 * torch.tanh(self.log_diagonal / 3)
        unit = torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
        return (
            self.lower.tril(-1) + unit,
            self.upper.triu(1) + torch.diag(log_diagonal.exp()),
            log_diagonal.sum(),
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multiply by the matrix and add the bias."""
        lower, upper, logdet = self._factors()
        return linear(x, lower @ upper, self.bias), logdet.expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve the two triangular systems."""
        lower, upper, logdet = self._factors()
        # On the D × D factors rather than on every row: one small inverse, then a matrix product.
        unit = torch.eye(len(self.bias), dtype=z.dtype, device=z.device)
        solved = torch.linalg.solve_triangular(lower, unit, upper=False, unitriangular=True)
        matrix = torch.linalg.solve_triangular(upper, solved, upper=True)
        return linear(z - self.bias, matrix), (-logdet).expand(z.shape[:-1])
