"""The original's model for stars: jammy_flows behind a convolutional encoder; run by ``benchmarks/stars.py --jammy
PYTHON``.

``python jammy.py STARS SPLIT.npz SECONDS`` trains on the stars of a split for so many seconds of wall time, keeps the
weights of the lowest validation loss, and prints one line of JSON. It needs torch, numpy and jammy_flows, and nothing
of fluvial: the encoder is the plain network of three convolutions that is ``tiny-cnn`` in fluvial.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path

import jammy_flows
import numpy as np
import torch
from torch import nn

BATCH, FEATURES, RATE = 64, 64, 1e-3
FLOW = "gggt"  # Gaussianization layers and a full Gaussian: the original's full flow


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in ((1, 16), (16, 32), (32, 32)):
            layers += [nn.Conv1d(*channels, 5, padding=2), nn.ReLU(), nn.MaxPool1d(4)]
        self.encoder = nn.Sequential(
            *layers,
            nn.AdaptiveAvgPool1d(16),
            nn.Flatten(),
            nn.Linear(512, 128),
            nn.ReLU(),
            nn.Linear(128, FEATURES),
        )
        self.flow = jammy_flows.pdf(
            "e3", FLOW, conditional_input_dim=FEATURES, hidden_mlp_dims_sub_pdfs="128"
        )

    def log_prob(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.flow(y, conditional_input=self.encoder(x[:, None]).to(y.dtype))[0]


def main() -> None:
    folder, split, seconds = Path(sys.argv[1]), np.load(sys.argv[2]), float(sys.argv[3])
    torch.manual_seed(1)
    spectra = np.load(folder / "spectra.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")[:, 4:7]
    train = split["train"]
    mean, scale = labels[train].mean(0), labels[train].std(0)
    x = torch.from_numpy(np.log(np.maximum(np.asarray(spectra), 0.2)).astype(np.float32))
    x = (x - x[train[:2000]].mean(0)) / (x[train[:2000]].std(0) + 1e-4)
    y = torch.from_numpy((labels - mean) / scale).double()
    model = Model()
    model.flow.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    best, kept, epochs, began = np.inf, copy.deepcopy(model.state_dict()), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        model.train()
        for part in torch.from_numpy(train)[torch.randperm(len(train))].split(BATCH):
            optimizer.zero_grad()
            loss = -model.log_prob(x[part], y[part]).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            if time.perf_counter() - began > seconds:
                break
        epochs += 1
        found = -evaluate(model, x, y, split["validation"]).mean()
        if found < best:
            best, kept = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    log_prob = evaluate(model, x, y, split["test"]) - np.log(scale).sum()
    print(json.dumps({
        "model": f"jammy_flows {FLOW}, tiny-cnn", "nll": -float(log_prob.mean()), "epochs": epochs,
        "error": float(log_prob.std() / len(log_prob) ** 0.5), "seconds": time.perf_counter() - began,
    }))  # fmt: skip


@torch.no_grad()
def evaluate(model: Model, x: torch.Tensor, y: torch.Tensor, rows: np.ndarray) -> np.ndarray:
    model.eval()
    parts = [model.log_prob(x[p], y[p]) for p in torch.from_numpy(rows).split(BATCH)]
    return torch.cat(parts).numpy()


if __name__ == "__main__":
    main()
