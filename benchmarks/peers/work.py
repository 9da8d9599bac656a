"""What is measured: an architecture and its sizes, the same for every library."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

Op = Literal["train", "log_prob", "sample"]
OPS: tuple[Op, ...] = ("train", "log_prob", "sample")
#: Half the side of the box of every spline.
BOUND = 5.0
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Work:
    """An architecture, and how many rows each operation gets at a time.

    ``blocks`` are residual blocks of two layers for ``coupling-spline`` and hidden layers for ``maf``;
    ``mixing`` stands between steps; with ``gate`` the context multiplies what every block adds. Activations
    are ReLU.
    """

    name: str
    architecture: Literal["coupling-spline", "maf"]
    targets: int
    context: int
    steps: int
    width: int
    blocks: int
    train_rows: int
    inference_rows: int
    bins: int = 0
    mixing: Literal["permutation", "lu", "reverse"] = "permutation"
    gate: bool = False
    batch_norm: bool = False
    #: Where, as PyTorch names it: ``cpu`` or ``cuda``.
    device: str = "cpu"

    def rows(self, op: Op) -> int:
        """Return the rows that one call of ``op`` gets."""
        return self.train_rows if op == "train" else self.inference_rows

    def conditioner_weights(self) -> int:
        """Return how many weights one row meets in matrix products on its way through the conditioners.

        Counted for dense networks: masks save no product.
        """
        inputs, outputs, hidden = self.targets, 2 * self.targets, self.blocks - 1
        total = 0
        for step in range(self.steps):
            if self.architecture == "coupling-spline":
                inputs = self.targets // 2
                if self.mixing == "lu" and step % 2 == 1:
                    inputs = self.targets - inputs
                outputs, hidden = (self.targets - inputs) * (3 * self.bins + 1), 2 * self.blocks
            gates = self.blocks * self.context if self.gate else 0
            total += self.width * (inputs + self.context + hidden * self.width + gates + outputs)
        return total

    def flops(self, op: Op) -> int:
        """Return the floating-point operations of the conditioners for one row; training is three passes.

        A draw is one pass in both architectures, though an autoregressive one needs a pass a target.
        """
        return 2 * self.conditioner_weights() * (3 if op == "train" else 1)


WORKS = {
    work.name: work
    for work in (
        Work("jets-small", "coupling-spline", 17, 14, 8, 128, 2, 2_048, 10_000, bins=16),
        Work(
            "jets-flashsim",
            "coupling-spline",
            17,
            14,
            17,
            298,
            10,
            2_048,
            2_048,
            bins=128,
            mixing="lu",
            gate=True,
            batch_norm=True,
        ),
        Work("binaries-maf", "maf", 2, 2, 10, 128, 2, 40_000, 40_000, mixing="reverse"),
    )
}

QUICK_WORKS = {
    "jets-small": replace(WORKS["jets-small"], steps=2, train_rows=512, inference_rows=2_000),
    "binaries-maf": replace(WORKS["binaries-maf"], steps=3, train_rows=5_000, inference_rows=5_000),
}


class Contender(Protocol):
    """One library's flow for one work, in training; arrays are NumPy float32 on the outside."""

    parameters: int
    #: What is not as in the work, in a few words; empty if nothing.
    differs: str

    def train_step(self, x: np.ndarray, c: np.ndarray) -> float:
        """Take one step of Adam on the mean of −log p(x | c) and return the loss before it."""
        ...

    def log_prob(self, x: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Return log p(x | c), ``[rows]``."""
        ...

    def sample(self, c: np.ndarray) -> np.ndarray:
        """Return one draw for every context, ``[rows, D]``."""
        ...


def make_data(work: Work, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return standardised targets that lean on the context, ``[rows, D]``, and the context, ``[rows, C]``."""
    rng = np.random.default_rng(seed)
    c = rng.standard_normal((rows, work.context), dtype=np.float32)
    lean = np.random.default_rng(0).standard_normal((work.context, work.targets), dtype=np.float32)
    mean = np.tanh(c @ lean / np.sqrt(work.context))
    x = mean + 0.6 * rng.standard_normal((rows, work.targets), dtype=np.float32)
    return x.astype(np.float32), c
