"""Every bijection and every flow, by name, with a way to make one and the inputs on which it is defined.

A new bijection is one line in ``BIJECTIONS``, a new flow one line in ``FLOWS``; the laws in ``test_laws.py`` then
hold it to account.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fluvial.core import (
    LU,
    ActNorm,
    Affine,
    Arctan,
    ArctanLogit,
    Asinh,
    BatchNorm,
    Bijection,
    Chain,
    CircularSpline,
    Columnwise,
    Inverse,
    Log,
    Logit,
    MonotoneSpline,
    Permutation,
    RationalQuadraticSpline,
    Softplus,
)
from fluvial.flows import ConditionalFlow, LatentMap, build_flow, recalibrated
from fluvial.flows.amortized import Amortized, GaussianizationMap, RotationMap, TriangularMap
from fluvial.flows.autoregressive import Autoregressive
from fluvial.flows.continuous import Transport
from fluvial.flows.coupling import Coupling
from fluvial.flows.encoded import ArrayKind, EncodedFlow, build_encoded_flow
from fluvial.flows.flow import AbstractFlow
from fluvial.flows.held import hold
from fluvial.flows.mixed import build_mixed_flow
from fluvial.flows.transformer import AffineTransformer, SplineTransformer

CONTEXT = 3
INF = math.inf


@dataclass(frozen=True)
class Entry:
    """A bijection of ``dim`` coordinates, the open interval of x on which it is defined, and that of z.

    ``solver`` is the error that a numerical solution is allowed where the two directions undo one another.
    """

    make: Callable[[int], Bijection]
    domain: tuple[float, float] = (-INF, INF)
    image: tuple[float, float] = (-INF, INF)
    context: int = 0
    dims: tuple[int, ...] = (1, 2, 5)
    solver: float = 0.0


def _affine(dim: int) -> Affine:
    return Affine(torch.linspace(-1, 1, dim), torch.linspace(0.3, 2, dim))


def _columnwise(dim: int) -> Columnwise:
    return Columnwise([Log(bound=-1.0), Asinh(0.5), Softplus(bound=-1.0), Affine(torch.ones(1), torch.ones(1) * 2)][i % 4]
                      for i in range(dim))  # fmt: skip


def _held(step: Callable[[int], Bijection], angles: bool = False) -> Callable[[int], Bijection]:
    """Return a step every other coordinate of which is absent where the first context column is below 1/2."""

    def make(dim: int) -> Bijection:
        present = [-1 if i % 2 or angles else 0 for i in range(dim)]
        network = {"width": 16, "depth": 1}
        return hold(step(dim), present, [angles] * dim, CONTEXT, network)[0]

    return make


def _autoregressive(dim: int) -> Autoregressive:
    return Autoregressive(dim, CONTEXT, SplineTransformer(bins=5), width=16, depth=1)


def _coupling(dim: int) -> Coupling:
    return Coupling(dim, CONTEXT, SplineTransformer(bins=5), width=16, depth=1)


BIJECTIONS: dict[str, Entry] = {
    "affine": Entry(_affine),
    "log": Entry(lambda dim: Log(), domain=(0, INF)),
    "log, bound 5": Entry(lambda dim: Log(bound=5.0), domain=(5, INF)),
    "log, bounded above": Entry(lambda dim: Log(bound=2.0, sign=-1), domain=(-INF, 2)),
    "softplus": Entry(lambda dim: Softplus(), domain=(0, INF)),
    "softplus, bounded above": Entry(lambda dim: Softplus(bound=3.0, sign=-1, width=0.2), domain=(-INF, 3)),
    "logit": Entry(lambda dim: Logit(), domain=(0, 1)),
    "logit on (-2, 5)": Entry(lambda dim: Logit(-2, 5), domain=(-2, 5)),
    "asinh": Entry(lambda dim: Asinh(0.3)),
    "arctan": Entry(lambda dim: Arctan(2.0), image=(-math.pi / 2, math.pi / 2)),
    "arctan, logit": Entry(lambda dim: ArctanLogit(2.0)),
    "monotone spline": Entry(
        lambda dim: MonotoneSpline(
            torch.tensor([-3.0, -1.0, 0.0, 0.1, 2.5]), torch.tensor([-2.0, -1.5, 0.0, 1.0, 2.0])
        )
    ),
    "columnwise": Entry(_columnwise, domain=(-1, INF)),
    "inverse of asinh": Entry(lambda dim: Inverse(Asinh(1.0)), domain=(-50, 50)),
    "permutation": Entry(lambda dim: Permutation([*range(1, dim), 0])),
    "LU": Entry(LU),
    "act norm": Entry(ActNorm),
    "batch norm": Entry(BatchNorm),
    "rational-quadratic spline": Entry(lambda dim: RationalQuadraticSpline(dim, bins=7)),
    "rational-quadratic spline, one bin": Entry(lambda dim: RationalQuadraticSpline(dim, bins=1, bound=2.0)),
    "chain": Entry(lambda dim: Chain([_affine(dim), LU(dim), RationalQuadraticSpline(dim, bins=5)])),
    "autoregressive affine step": Entry(
        lambda dim: Autoregressive(dim, CONTEXT, AffineTransformer(), width=16, depth=1), context=CONTEXT
    ),
    "autoregressive spline step": Entry(
        lambda dim: Autoregressive(dim, CONTEXT, SplineTransformer(bins=5), width=16, depth=2, residual=True),
        context=CONTEXT,
    ),
    "coupling spline step": Entry(
        lambda dim: Coupling(dim, CONTEXT, SplineTransformer(bins=5), width=16, depth=1), context=CONTEXT
    ),
    "coupling spline step, flipped": Entry(
        lambda dim: Coupling(dim, CONTEXT, SplineTransformer(bins=5), flip=True, width=16, depth=1),
        context=CONTEXT,
    ),
    "coupling affine step": Entry(
        lambda dim: Coupling(dim, CONTEXT, AffineTransformer(), width=16, depth=1), context=CONTEXT
    ),
    "circular spline": Entry(
        lambda dim: CircularSpline(dim, bins=6), domain=(-math.pi, math.pi), image=(-math.pi, math.pi)
    ),
    "autoregressive step with absences": Entry(_held(_autoregressive), context=CONTEXT),
    "coupling step with absences": Entry(_held(_coupling), context=CONTEXT),
    "triangular with absences": Entry(
        _held(lambda dim: Amortized(dim, CONTEXT, [TriangularMap(dim)], width=16, depth=1)), context=CONTEXT
    ),
    "autoregressive step of angles": Entry(
        _held(_autoregressive, angles=True),
        domain=(-math.pi, math.pi),
        image=(-math.pi, math.pi),
        context=CONTEXT,
    ),
    "coupling step of angles": Entry(
        _held(_coupling, angles=True),
        domain=(-math.pi, math.pi),
        image=(-math.pi, math.pi),
        context=CONTEXT,
    ),
    "transport": Entry(
        lambda dim: Transport(dim, CONTEXT, solver_steps=6, width=16, depth=2), context=CONTEXT, solver=1e-4
    ),
    "triangular": Entry(
        lambda dim: Amortized(dim, CONTEXT, [TriangularMap(dim)], width=16, depth=1), context=CONTEXT
    ),
    "rotation": Entry(
        lambda dim: Amortized(dim, CONTEXT, [RotationMap(dim)], width=16, depth=1), context=CONTEXT
    ),
    "mixture-CDF Gaussianization": Entry(
        lambda dim: Amortized(dim, CONTEXT, [GaussianizationMap(dim, kernels=6)], width=16, depth=1),
        context=CONTEXT,
    ),
    "mixture-CDF Gaussianization, one kernel": Entry(
        lambda dim: Amortized(dim, 0, [GaussianizationMap(dim, kernels=1)])
    ),
    "latent map": Entry(lambda dim: LatentMap(dim, bins=0)),
    "latent map, steered": Entry(lambda dim: LatentMap(dim, CONTEXT, bins=6, steered=True), context=CONTEXT),
}

FLOWS: dict[str, dict] = {
    "maf": {"architecture": "maf", "steps": 3, "width": 24},
    "maf, lu": {"architecture": "maf", "steps": 3, "width": 24, "mixing": "lu", "activation": "tanh"},
    "autoregressive-spline": {"architecture": "autoregressive-spline", "bins": 6, "width": 24},
    "autoregressive-spline, residual": {
        "architecture": "autoregressive-spline", "bins": 4, "width": 24, "residual": True, "mixing": "permutation",
    },
    "coupling-spline": {"architecture": "coupling-spline", "steps": 3, "bins": 6, "width": 24},
    "coupling-spline, residual": {
        "architecture": "coupling-spline", "steps": 4, "bins": 4, "width": 24, "residual": True, "mixing": "reverse",
    },
    "coupling-spline, permutation": {
        "architecture": "coupling-spline", "steps": 2, "bins": 4, "width": 24, "mixing": "permutation",
    },
    "coupling-spline, FlashSim's kind": {
        "architecture": "coupling-spline", "steps": 3, "bins": 8, "width": 24, "residual": True, "gate": True,
        "batch_norm": True, "activation": "relu",
    },
    "coupling-affine, act norm": {"architecture": "coupling-affine", "steps": 3, "width": 24, "norm": "act"},
    "maf, batch norm": {
        "architecture": "maf", "steps": 3, "width": 24, "norm": "batch", "activation": "relu", "depth": 1,
    },
    "autoregressive-spline, dropout": {
        "architecture": "autoregressive-spline", "bins": 4, "width": 24, "dropout": 0.1, "gate": True,
    },
    "coupling-spline, no mixing": {
        "architecture": "coupling-spline", "steps": 2, "bins": 4, "width": 24, "mixing": "none",
    },
    "maf, student-t": {"architecture": "maf", "steps": 2, "width": 24, "base": "student-t"},
    "coupling-spline, student-t": {
        "architecture": "coupling-spline", "steps": 2, "bins": 4, "width": 24, "base": "student-t",
    },
    "continuous": {"architecture": "continuous", "solver_steps": 4, "width": 12, "depth": 2},
    "diagonal-gaussian": {"architecture": "diagonal-gaussian", "width": 24},
    "full-gaussian": {"architecture": "full-gaussian", "width": 24, "residual": True},
    "gaussianization": {"architecture": "gaussianization", "kernels": 6, "width": 24},
    "gaussianization, one layer": {"architecture": "gaussianization", "layers": 1, "kernels": 2, "width": 24, "depth": 1},
    "point": {"architecture": "point", "width": 24},
    "mixture": {"architecture": "mixture", "components": 4, "width": 24},
    "mixture, diagonal": {"architecture": "mixture", "components": 3, "covariance": "diagonal", "width": 24},
    "maf, recalibrated": {"architecture": "maf", "steps": 2, "width": 24, "map": {"bins": 4, "steered": True}},
    "continuous, recalibrated": {
        "architecture": "continuous", "solver_steps": 4, "width": 12, "depth": 2, "map": {"bins": 0},
    },
    "ensemble": {"architecture": "maf", "steps": 2, "width": 24, "members": 3},
}  # fmt: skip

#: Flows over numbers and levels. ``holder`` and ``angles`` are cut to the numbers of a case.
MIXED: dict[str, dict] = {
    "maf": {"architecture": "maf", "steps": 2, "width": 16},
    "maf, student-t": {"architecture": "maf", "steps": 3, "width": 16, "base": "student-t"},
    "autoregressive-spline": {"architecture": "autoregressive-spline", "bins": 6, "width": 16, "gate": True},
    "coupling-affine": {"architecture": "coupling-affine", "steps": 3, "width": 16, "mixing": "reverse"},
    "coupling-spline": {
        "architecture": "coupling-spline", "steps": 4, "bins": 6, "width": 16, "mixing": "permutation",
    },
    "coupling-spline, no mixing": {
        "architecture": "coupling-spline", "steps": 3, "bins": 6, "width": 16, "mixing": "none",
    },
    "diagonal-gaussian": {"architecture": "diagonal-gaussian", "width": 16},
    "full-gaussian": {"architecture": "full-gaussian", "width": 16},
    "autoregressive-spline, angle": {
        "architecture": "autoregressive-spline", "bins": 6, "width": 16, "angles": (False, True, False),
    },
    "coupling-spline, angle": {
        "architecture": "coupling-spline", "steps": 4, "bins": 6, "width": 16, "mixing": "reverse",
        "angles": (False, True, False),
    },
    "integers, continuous": {"architecture": "continuous", "solver_steps": 4, "width": 12, "depth": 2, "absent": False},
    "integers, mixture": {"architecture": "mixture", "components": 3, "width": 16, "absent": False},
}  # fmt: skip


def make_mixed(
    name: str, numbers: int, context: int, dtype: torch.dtype = torch.float32, size: float = 0.3
) -> AbstractFlow:
    """Return a flow over ``numbers`` and two levels of sizes 2 and 3; the first number, and the third, can be absent."""
    options = dict(MIXED[name])
    holder = [0, None, 1][:numbers] if options.pop("absent", True) else [None] * numbers
    angles = options.pop("angles", (False,) * 3)[:numbers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(numbers + 10 * context)
        flow = build_mixed_flow(
            **options, numbers=numbers, levels=[2, 3], holder=holder, angles=angles, context=context
        )
        return scatter(flow, size).to(dtype).eval()  # type: ignore[return-value]


#: Flows over one scalar and arrays, in their units: lengths of the arrays, and what is built for them.
ENCODED: dict[str, dict] = {
    "spectrum": {"lengths": (40,), "encoder": {"architecture": "spectrum", "features": 6, "patch": 8, "width": 8}},
    "spectrum and errors, log": {
        "lengths": (40, 40), "clip": 0.2, "encoder": {"architecture": "spectrum", "features": 6, "patch": 16, "width": 8},
    },
    "two grids, masked": {
        "lengths": (40, 100), "masked": True,
        "encoder": {"architecture": "spectrum", "features": 4, "patch": 16, "width": 8},
    },
    "components": {"lengths": (40, 40), "clip": 0.2, "encoder": {"architecture": "components", "components": 3}},
    "cnn": {"lengths": (64,), "encoder": {"architecture": "cnn", "features": 6, "width": 4, "hidden": 8}},
    "tiny-cnn": {"lengths": (64,), "encoder": {"architecture": "tiny-cnn", "features": 6, "width": 4, "hidden": 8}},
    "trunk": {
        "lengths": (40,), "trunk": 8, "encoder": {"architecture": "spectrum", "features": 6, "patch": 8, "width": 8},
    },
}  # fmt: skip


def make_encoded(
    name: str,
    targets: int = 2,
    dtype: torch.dtype = torch.float32,
    size: float = 0.2,
    architecture: str = "coupling-spline",
    **options: object,
) -> EncodedFlow:
    """Return a flow over arrays whose parameters have moved away from their start, the same each time."""
    own = dict(ENCODED[name])
    common = {"clip": own.get("clip"), "masked": own.get("masked", False)}
    kinds = [ArrayKind(n, pixels=bool(i), **common) for i, n in enumerate(own["lengths"])]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(targets)
        flow = build_encoded_flow(
            architecture, numbers=targets, levels=(), holder=(None,) * targets, context=1, arrays=kinds,
            encoder=own["encoder"], trunk=own.get("trunk", 0), width=16, **options,
        )  # fmt: skip
        return scatter(flow, size).to(dtype).eval()  # type: ignore[return-value]


#: What a numerical solution is allowed where draws and density are compared, by name of the flow.
SOLVER: dict[str, float] = {"continuous": 1e-2, "continuous, recalibrated": 1e-2}


#: Flows that are no bijection, so no law of one holds for them, nor do they start at the base density: the components of
#: a mixture must differ from the start, or they would never part.
NO_BIJECTION = ("mixture", "mixture, diagonal", "ensemble")

#: Flows that start only near the base density, and how near in log p at ordinary values: a mixture of kernels that differ
#: is not exactly a normal.
NEAR_START: dict[str, float] = {"gaussianization": 0.4, "gaussianization, one layer": 0.1}


def make_bijection(name: str, dim: int, dtype: torch.dtype = torch.float32) -> Bijection:
    """Return a bijection whose parameters have moved away from their start, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(dim)
        return scatter(BIJECTIONS[name].make(dim)).to(dtype).eval()  # type: ignore[return-value]


def make_flow(
    name: str, targets: int, context: int, dtype: torch.dtype = torch.float32, size: float = 0.3
) -> ConditionalFlow:
    """Return a flow whose parameters have moved away from their start, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(targets + 10 * context)
        return scatter(new_flow(name, targets, context), size).to(dtype).eval()  # type: ignore[return-value]


def new_flow(name: str, targets: int, context: int) -> AbstractFlow:
    """Return a flow as it starts."""
    options = dict(FLOWS[name])
    latent_map = options.pop("map", None)
    flow = build_flow(targets=targets, context=context, **options)
    return flow if latent_map is None else recalibrated(flow, **latent_map)[0]


def scatter(module: nn.Module, size: float = 0.3) -> nn.Module:
    """Add noise to every parameter, the same each time."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += (
                size * torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 1) ** 0.25
            )
    return module


def inputs(
    entry: Entry, dim: int, rows: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Return x inside the domain, spread over it, and a context."""
    generator = torch.Generator().manual_seed(seed)
    raw = 2 * torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    low, high = entry.domain
    if math.isfinite(low) and math.isfinite(high):
        raw = low + (high - low) * torch.sigmoid(raw)
    elif math.isfinite(low):
        raw = low + raw.exp()
    elif math.isfinite(high):
        raw = high - raw.exp()
    context = torch.randn(rows, entry.context, generator=generator).to(dtype) if entry.context else None
    return raw.to(dtype), context
