"""What the contenders in PyTorch share: the step of Adam, and arrays in and out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from peers.work import LEARNING_RATE

#: PyTorch imports some 70 MiB when its first optimizer is built: an import, not memory of the work.
torch.optim.Adam([torch.zeros(1, requires_grad=True)])


class TorchContender:
    """A flow in PyTorch, driven through two functions of tensors.

    Parameters
    ----------
    module : nn.Module
        Holds the parameters.
    log_prob : callable
        ``(x, c) -> [rows]``, differentiable.
    sample : callable
        ``c -> [rows, D]``, one draw a context.
    differs : str
        What is not as in the work.
    optimizer : torch.optim.Optimizer, optional
        Default: ``torch.optim.Adam`` as the libraries' tutorials have it.
    chunk : int, optional
        Rows at a time when no gradients are wanted, for a library that splits by itself; default: all.
    device : str
        Where to work.
    """

    def __init__(
        self,
        module: nn.Module,
        log_prob: Callable[[Tensor, Tensor], Tensor],
        sample: Callable[[Tensor], Tensor],
        *,
        differs: str = "",
        optimizer: torch.optim.Optimizer | None = None,
        chunk: int | None = None,
        device: str = "cpu",
    ):
        self.module, self.differs, self.chunk, self.device = module.to(device), differs, chunk, device
        self._log_prob, self._sample = log_prob, sample
        self.parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        self.optimizer = optimizer or torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)

    def train_step(self, x: np.ndarray, c: np.ndarray) -> float:
        """Take one step of Adam and return the loss before it."""
        self.module.train()
        loss = -self._log_prob(self.tensor(x), self.tensor(c)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def log_prob(self, x: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Return log p(x | c)."""
        self.module.eval()
        with torch.no_grad():
            rows = self.chunk or len(x)
            parts = zip(self.tensor(x).split(rows), self.tensor(c).split(rows), strict=True)
            return torch.cat([self._log_prob(a, b) for a, b in parts]).cpu().numpy()

    def sample(self, c: np.ndarray) -> np.ndarray:
        """Return one draw for every context."""
        self.module.eval()
        with torch.no_grad():
            draws = [self._sample(b) for b in self.tensor(c).split(self.chunk or len(c))]
            return torch.cat(draws).cpu().numpy()

    def tensor(self, array: np.ndarray) -> Tensor:
        """Return an array as a tensor where the work is done."""
        return torch.from_numpy(array).to(self.device)

    def device_memory(self) -> int:
        """Return the most memory of the GPU held since the last call, in bytes."""
        peak = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return peak
