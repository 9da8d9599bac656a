"""The classifier two-sample test of sbibm: how well a small network tells draws from a reference posterior.

The recipe is that of ``sbibm.metrics.c2st`` (Lueckmann et al. 2021, arXiv:2101.04653), in which scikit-learn's
``MLPClassifier`` is cross-validated on five folds: two hidden layers of 10 D units, ReLU, Glorot's uniform initial
weights, Adam at 1e-3, batches of 200, an L2 penalty of 1e-4, and an end when the training loss has not fallen by 1e-4
for ten epochs. :func:`c2st` does the same arithmetic with the five networks side by side, which is several times
faster; :func:`c2st_sklearn` is the original.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

FOLDS, BATCH, RATE, ALPHA, TOLERANCE, PATIENCE = 5, 200, 1e-3, 1e-4, 1e-4, 10


def _both(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all rows, standardised by those of ``x``, and which of the two samples each is of."""
    mean, scale = x.mean(0), x.std(0, ddof=1)
    data = np.concatenate([(x - mean) / scale, (y - mean) / scale]).astype(np.float32)
    return data, np.repeat([0.0, 1.0], [len(x), len(y)]).astype(np.float32)


def c2st_sklearn(x: np.ndarray, y: np.ndarray, seed: int = 1) -> float:
    """Return the accuracy, by scikit-learn, as sbibm does. ``x``, ``y``: [N, D]; 0.5: not to be told apart."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    data, label = _both(x, y)
    hidden = 10 * data.shape[1]
    network = MLPClassifier(hidden_layer_sizes=(hidden, hidden), max_iter=10_000, random_state=seed)
    folds = KFold(n_splits=FOLDS, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(network, data, label, cv=folds, scoring="accuracy")))


def c2st(x: np.ndarray, y: np.ndarray, seed: int = 1, *, folds: int = FOLDS, epochs: int = 10_000) -> float:
    """Return the accuracy, all networks at a time. ``x``, ``y``: [N, D]; 0.5: not to be told apart.

    ``folds``: how many of the five are held out in turn, each by a network trained on the other four: with fewer, the
    accuracy has the same mean and more scatter. ``epochs``: at most so many, as ``max_iter`` of the original.
    """
    data, label = _both(x, y)
    rng = np.random.default_rng(seed)
    parts = np.array_split(rng.permutation(len(data)), FOLDS)
    fewest = min(len(data) - len(p) for p in parts)  # folds differ by one row at most
    train = np.stack([np.concatenate(parts[:k] + parts[k + 1 :])[:fewest] for k in range(folds)])
    rows, labels, order = torch.from_numpy(data), torch.from_numpy(label), torch.from_numpy(train)
    torch.manual_seed(seed)
    scores: dict[int, float] = {}
    network = _Networks(data.shape[1], folds)
    alive, epoch = list(range(folds)), 0
    best, waited = torch.full((folds,), torch.inf), torch.zeros(folds, dtype=torch.int64)
    while alive:
        shuffled = torch.stack([order[k][torch.randperm(fewest)] for k in alive])
        loss = torch.zeros(len(alive))
        for batch in shuffled.split(BATCH, dim=1):
            loss += network.step(rows[batch], labels[batch]) * (batch.shape[1] / fewest)
        stalled = loss > best - TOLERANCE
        waited = torch.where(stalled, waited + 1, 0)
        best = torch.minimum(best, loss)
        epoch += 1
        ended = (waited > PATIENCE) | (epoch == epochs)
        if ended.any():
            for i in torch.nonzero(ended)[:, 0].tolist():
                held_out = torch.from_numpy(parts[alive[i]])
                found = network.logits(rows[held_out].expand(len(alive), -1, -1))[i] > 0
                scores[alive[i]] = (found == (labels[held_out] > 0.5)).float().mean().item()
            network.keep(~ended)
            best, waited = best[~ended], waited[~ended]
            alive = [k for k, e in zip(alive, ended.tolist(), strict=True) if not e]
    return float(np.mean(list(scores.values())))


class _Networks:
    """Several networks of the same form, trained at once by their own gradients; each is one row of numbers."""

    def __init__(self, inputs: int, count: int):
        sizes = [inputs, 10 * inputs, 10 * inputs, 1]
        self.shapes = [shape for a, b in pairwise(sizes) for shape in ((a, b), (1, b))]
        parts = []
        for a, b in pairwise(sizes):
            bound = (6.0 / (a + b)) ** 0.5
            parts += [torch.empty(count, n).uniform_(-bound, bound) for n in (a * b, b)]
        decayed = [torch.full((a * b,), 1.0 - k % 2) for k, (a, b) in enumerate(self.shapes)]
        self.decay = ALPHA * torch.cat(decayed)
        self._hold(torch.cat(parts, 1), *torch.zeros(2, count, len(self.decay)))
        self.steps = torch.tensor(0.0)

    def _hold(self, numbers: Tensor, first: Tensor, second: Tensor) -> None:
        """Keep all numbers, and Adam's two moments of them; weights and gradients are views."""
        self.numbers, self.first, self.second = numbers, first, second
        self.gradient = torch.zeros_like(numbers)
        self.weights, self.slopes = self._views(self.numbers), self._views(self.gradient)

    def _views(self, numbers: Tensor) -> list[Tensor]:
        parts = numbers.split([a * b for a, b in self.shapes], dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def logits(self, x: Tensor) -> Tensor:
        """Return the logit of being of the second sample. ``x``: [K, N, D]; returns [K, N]."""
        w1, b1, w2, b2, w3, b3 = self.weights
        hidden = torch.baddbmm(b1, x, w1).relu_()
        hidden = torch.baddbmm(b2, hidden, w2).relu_()
        return torch.baddbmm(b3, hidden, w3)[:, :, 0]

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Take one step of Adam on a batch ``x``: [K, B, D], ``y``: [K, B]; return the loss before it, [K]."""
        w1, b1, w2, b2, w3, b3 = self.weights
        size = x.shape[1]
        h1 = torch.baddbmm(b1, x, w1).relu_()
        h2 = torch.baddbmm(b2, h1, w2).relu_()
        logit = torch.baddbmm(b3, h2, w3)[:, :, 0]
        loss = torch.nn.functional.softplus(logit).sub_(y * logit).mean(1)
        torch.mul(self.numbers, self.decay / size, out=self.gradient)
        loss += 0.5 * torch.linalg.vecdot(self.gradient, self.numbers)
        d3 = logit.sigmoid_().sub_(y).div_(size)[:, :, None]
        d2 = torch.ops.aten.threshold_backward(torch.bmm(d3, w3.mT), h2, 0)
        d1 = torch.ops.aten.threshold_backward(torch.bmm(d2, w2.mT), h1, 0)
        for k, (below, delta) in enumerate(((x, d1), (h1, d2), (h2, d3))):
            self.slopes[2 * k].baddbmm_(below.mT, delta)
            torch.sum(delta, 1, keepdim=True, out=self.slopes[2 * k + 1])
        self.steps += 1
        torch._fused_adam_(  # type: ignore[attr-defined]  # one pass over all numbers
            [self.numbers], [self.gradient], [self.first], [self.second], [], [self.steps],
            lr=RATE, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip
        return loss

    def keep(self, which: Tensor) -> None:
        """Go on with some of the networks only."""
        self._hold(self.numbers[which], self.first[which], self.second[which])
