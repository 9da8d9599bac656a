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


def c2st(x: np.ndarray, y: np.ndarray, seed: int = 1) -> float:
    """Return the accuracy, five networks at a time. ``x``, ``y``: [N, D]; 0.5: not to be told apart."""
    data, label = _both(x, y)
    rng = np.random.default_rng(seed)
    parts = np.array_split(rng.permutation(len(data)), FOLDS)
    fewest = min(len(data) - len(p) for p in parts)  # folds differ by one row at most
    train = np.stack([np.concatenate(parts[:k] + parts[k + 1 :])[:fewest] for k in range(FOLDS)])
    rows, labels, order = torch.from_numpy(data), torch.from_numpy(label), torch.from_numpy(train)
    torch.manual_seed(seed)
    scores: dict[int, float] = {}
    network = _Networks(data.shape[1])
    alive = list(range(FOLDS))
    best, waited = torch.full((FOLDS,), torch.inf), torch.zeros(FOLDS, dtype=torch.int64)
    while alive:
        shuffled = torch.stack([order[k][torch.randperm(fewest)] for k in alive])
        loss = torch.zeros(len(alive))
        for batch in shuffled.split(BATCH, dim=1):
            loss += network.step(rows[batch], labels[batch]) * (batch.shape[1] / fewest)
        stalled = loss > best - TOLERANCE
        waited = torch.where(stalled, waited + 1, 0)
        best = torch.minimum(best, loss)
        ended = waited > PATIENCE
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
    """Several networks of the same form, trained at once by their own gradients."""

    def __init__(self, inputs: int):
        sizes = [inputs, 10 * inputs, 10 * inputs, 1]
        self.weights: list[Tensor] = []
        for a, b in pairwise(sizes):
            bound = (6.0 / (a + b)) ** 0.5
            self.weights += [
                torch.empty(FOLDS, a, b).uniform_(-bound, bound),
                torch.empty(FOLDS, 1, b).uniform_(-bound, bound),
            ]
        self.first = [torch.zeros_like(w) for w in self.weights]
        self.second = [torch.zeros_like(w) for w in self.weights]
        self.steps = 0

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
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, y, reduction="none").mean(1)
        loss += 0.5 * ALPHA / size * sum(w.square().sum((1, 2)) for w in (w1, w2, w3))
        d3 = ((logit.sigmoid() - y) / size)[:, :, None]
        d2 = torch.bmm(d3, w3.mT).mul_(h2 > 0)
        d1 = torch.bmm(d2, w2.mT).mul_(h1 > 0)
        gradients: list[Tensor] = []
        for below, delta, w in ((x, d1, w1), (h1, d2, w2), (h2, d3, w3)):
            gradients += [
                torch.baddbmm(w, below.mT, delta, beta=ALPHA / size),
                delta.sum(1, keepdim=True),
            ]
        self.steps += 1
        rate = RATE * (1 - 0.999**self.steps) ** 0.5 / (1 - 0.9**self.steps)
        for w, g, m, v in zip(self.weights, gradients, self.first, self.second, strict=True):
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            w.addcdiv_(m, v.sqrt().add_(1e-8), value=-rate)
        return loss

    def keep(self, which: Tensor) -> None:
        """Go on with some of the networks only."""
        for group in (self.weights, self.first, self.second):
            group[:] = [w[which] for w in group]
