r"""What stands before an encoder: an array column in units becomes numbers of order one, whatever it holds.

.. math:: z_j = \frac{t(x_j) - m_j}{s_j}, \qquad t(x) = x \;\text{or}\; \log\max(x, c),

held within ±10, so that one cosmic ray cannot throw an encoder; a pixel that is missing (NaN) is :math:`m_j`, that is 0.
It is part of the network: its numbers lie among the weights, and arrays reach the network in their units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Standardised pixels are held within ± this.
LIMIT = 10.0
#: Before that, so that no product is infinite.
_LARGEST = 1e15


class ArrayInput(nn.Module):
    """The transform of one array column, ``[*batch, length]`` in units to numbers of order one.

    Parameters
    ----------
    length : int
        Numbers of each array.
    clip : float, optional
        With it, :math:`t(x) = \\log\\max(x, c)`.
    pixels : bool
        Whether every pixel has a shift and a scale of its own, rather than one of all.
    masked : bool
        Whether pixels may be missing.

    >>> one = ArrayInput(3, clip=0.2)
    >>> one.set(shift=torch.tensor([0.0]), scale=torch.tensor([0.5]))
    >>> one(torch.tensor([1.0, 0.0, 2.718282]))
    tensor([ 0.0000, -3.2189,  2.0000])
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, length: int, *, clip: float | None = None, pixels: bool = False, masked: bool = False):
        super().__init__()
        if length < 1 or (clip is not None and not clip > 0):
            raise ValueError(f"Expected length of at least 1 and clip above 0; got {length} and {clip}.")
        self.length, self.clip, self.masked = length, clip, masked
        size = length if pixels else 1
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def set(self, shift: Tensor, scale: Tensor) -> None:
        """Take fitted numbers, ``[1]`` or ``[length]`` each."""
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[*batch, length]`` within ±10, zero where a pixel of a masked column is not finite."""
        low = -_LARGEST if self.clip is None else self.clip
        t = x.clamp(low, _LARGEST)
        if self.clip is not None:
            t = t.log()
        z = ((t - self.shift) / self.scale).clamp(-LIMIT, LIMIT)
        return torch.where(x.isfinite(), z, 0.0) if self.masked else z
