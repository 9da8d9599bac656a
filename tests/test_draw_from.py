"""Draws made of given uniform numbers: the distribution of the density, each a function of its own numbers alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fluvial.apps.collider.noise import event_keys, philox, uniforms
from fluvial.errors import DataError
from fluvial.flows import build_flow
from fluvial.flows.mixed import build_mixed_flow


def scattered(flow: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return flow.eval()


def flows() -> dict[str, torch.nn.Module]:
    small = {"width": 16, "depth": 1}
    made = {
        "coupling": build_flow("coupling-spline", targets=3, context=2, steps=2, bins=4, **small),
        "student": build_flow("maf", targets=3, context=2, steps=2, base="student-t", **small),
        "mixture": build_flow("mixture", targets=3, context=2, components=3, **small),
        "continuous": build_flow("continuous", targets=3, context=2, **small),
        "unconditional": build_flow("autoregressive-spline", targets=3, context=0, steps=1, bins=4, **small),
        "levels": build_mixed_flow(
            "coupling-spline", numbers=2, levels=[2, 3], holder=[0, None], context=2, steps=2, bins=4,
            mixing="permutation", **small,
        ),
        "angles": build_mixed_flow(
            "autoregressive-spline", numbers=2, levels=[2], holder=[None, 0], angles=[True, False], context=2, bins=4,
            steps=1, base="student-t", **small,
        ),
        "only levels": build_mixed_flow("maf", numbers=0, levels=[3, 2], holder=[], context=2, **small),
        "beside levels": build_mixed_flow("mixture", numbers=2, levels=[3], holder=[None, None], context=2, **small),
    }  # fmt: skip
    return {name: scattered(flow, k) for k, (name, flow) in enumerate(made.items())}


FLOWS = flows()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest distance between distribution functions, over columns and a few projections."""
    generator = torch.Generator().manual_seed(1)
    ways = torch.cat((torch.eye(a.shape[-1]), torch.randn(3, a.shape[-1], generator=generator)))
    worst = 0.0
    for way in ways:
        x, y = (v @ way for v in (a, b))
        at = torch.cat((x, y)).sort().values
        below = [torch.searchsorted(v.sort().values, at, right=True) / len(v) for v in (x, y)]
        worst = max(worst, float((below[0] - below[1]).abs().max()))
    return worst


@pytest.mark.parametrize("name", FLOWS)
def test_uniform_numbers_give_draws_of_the_distribution(name: str) -> None:
    flow, n = FLOWS[name], 10_000
    p = flow(torch.tensor([0.5, -1.0]).expand(n, 2) if name != "unconditional" else None)
    shape = () if name != "unconditional" else (n,)
    generator = torch.Generator().manual_seed(2)
    u = torch.rand((n, p.uniforms), generator=generator, dtype=torch.float64)
    made = p.draw_from(u)
    drawn = p.sample(shape, generator=generator)
    assert made.shape == drawn.shape
    assert distance(made, drawn) < 0.032  # 0.01 % of exact samples are beyond 2.23 · sqrt(2 / n) = 0.0315
    assert distance(p.draw_from(u**1.3), drawn) > 0.05  # the test can fail
    few = torch.randperm(n, generator=generator)[:50]
    q = flow(torch.tensor([0.5, -1.0]).expand(50, 2) if name != "unconditional" else None)
    torch.testing.assert_close(q.draw_from(u[few]), made[few], rtol=1e-4, atol=1e-5)


def test_the_whole_range_gives_finite_draws() -> None:
    for name, flow in FLOWS.items():
        p = flow(None if name == "unconditional" else torch.zeros(2, 2))
        ends = torch.tensor([0.5, 2**32 - 0.5], dtype=torch.float64)[:, None] * 2.0**-32
        assert torch.isfinite(p.draw_from(ends.expand(2, p.uniforms))).all(), name


def test_philox_gives_the_published_words() -> None:
    """Known answers of Random123 (kat_vectors, philox4x32 10)."""
    full = 0xFFFFFFFF
    for counter, key, words in (
        ((full,) * 4, (full,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ):
        assert " ".join(f"{int(w):08x}" for w in philox(counter, key)) == words


def test_every_name_of_an_object_counts() -> None:
    one = np.array([1])
    seen = set()
    for seed, run, block, event in ((0, 1, 1, 1), (1, 1, 1, 1), (2**40, 1, 1, 1), (0, 2, 1, 1), (0, 1, 2, 1)):
        seen.add(uniforms(event_keys(seed, run * one, block * one, event * one), 0, 0 * one, 1, 1).item())
    keys = event_keys(0, one, one, np.array([2**40 + 1], dtype=np.uint64))  # beyond 32 bits
    for kind, index in ((0, 0), (1, 0), (0, 1)):
        seen |= set(uniforms(keys, kind, index * one, folds=2, size=6).ravel().tolist())
    assert len(seen) == 5 + 3 * 2 * 6
    many = np.arange(20_000)
    u = uniforms(event_keys(0, one, one, many), 0, 0 * many, 1, 6)[:, 0]
    assert 0 < u.min() < u.max() < 1
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in u.T])
    assert (np.abs(counts - 1000) < 5 * np.sqrt(950)).all()
    assert np.abs(np.corrcoef(u.T) - np.eye(6)).max() < 5 / np.sqrt(20_000)


def test_bad_numbers(tmp_path) -> None:
    import fluvial

    rng = np.random.default_rng(0)
    pq.write_table(pa.table({"x": rng.normal(size=300), "c": rng.normal(size=300)}), tmp_path / "t.parquet")
    study = '[data]\nsource = "t.parquet"\ntargets = ["x"]\ncontext = ["c"]\n[flow]\narchitecture = "maf"\nsteps = 1\n'
    (tmp_path / "t.toml").write_text(study + "[training]\nepochs = 1\n")
    density = fluvial.fit(tmp_path / "t.toml", runs=tmp_path / "runs", check=False)
    p = density.given(c=[0.0, 1.0])
    draws = p.draw_from(np.full((2, 3, p.uniforms), 0.5))
    assert draws.shape == (2, 3)
    assert (draws["x"][:, 0] == draws["x"][:, 2]).all()
    assert p.draw_from(np.zeros((2, 0, p.uniforms))).shape == (2, 0)
    with pytest.raises(DataError, match=r"Expected uniform numbers of shape \(2, 'draws', 1\); got \(2, 1\)"):
        p.draw_from(np.zeros((2, 1)))
