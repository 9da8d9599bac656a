"""Encoders, what stands before them, and the laws of flows over arrays."""

from __future__ import annotations

import math

import pytest
import torch
from zoo import ENCODED, make_encoded, scatter

from fluvial.errors import StudyError
from fluvial.flows import ARCHITECTURES, build_flow
from fluvial.flows.encoded import ROWS, ArrayKind, EncodedFlow, build_encoded_flow
from fluvial.nets import ENCODERS, ArrayInput, build_encoder
from fluvial.nets.encoders import encoder_options

encoders = pytest.mark.parametrize("name", [name for name in ENCODERS if name != "components"])
encoded = pytest.mark.parametrize("name", ENCODED)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def contexts(flow: EncodedFlow, rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, flow.context, dtype=dtype, generator=torch.Generator().manual_seed(5))


@encoders
@pytest.mark.parametrize(("channels", "length"), [(1, 64), (2, 101)])
def test_every_pixel_reaches_the_features(name: str, channels: int, length: int) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, channels=channels, length=length, features=5).eval()
    x = torch.randn(3, channels, length, requires_grad=True)
    features = encoder(x)
    assert features.shape == (3, 5)
    (gradient,) = torch.autograd.grad(features.square().sum(), x)
    reached = (gradient != 0).any(0).float().mean()
    assert reached > (0.99 if name == "spectrum" else 0.5)  # max-pooling passes one pixel of two


@encoders
def test_features_are_of_order_one_at_the_start(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, channels=1, length=512).eval()
    with torch.no_grad():
        features = encoder(torch.randn(200, 1, 512))
        shifted = encoder(torch.full((1, 1, 512), 10.0))
    assert 0.003 < features.std(0).mean() < 3
    assert shifted.abs().max() < 100


def lines(rows: int, seed: int, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return arrays of 300 pixels, of three smooth shapes and white noise, standardised, and the sizes of the shapes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.arange(300.0)
    shapes = torch.stack([torch.exp(-0.5 * ((x - centre) / 4) ** 2) for centre in (60, 150, 153)])
    sizes = torch.randn(rows, 3, generator=generator)
    arrays = sizes @ shapes + noise * torch.randn(rows, 300, generator=generator)
    return arrays / arrays.std(), sizes


def test_components_are_those_of_the_signal() -> None:
    encoder = build_encoder("components", channels=1, length=300, components=8)
    x, _ = lines(200, seed=0)
    encoder.fit(x[:, None])
    kept = (encoder.projection[0] != 0).any(-1)  # type: ignore[index]
    assert kept.sum() == 3  # those of noise are not reproduced on held-out rows
    new, sizes = lines(400, seed=1)
    features = encoder(new[:, None])
    assert features.shape == (400, 9)
    assert features[:, 3:8].abs().max() == 0
    scores = torch.cat([features[:, :3], torch.ones(400, 1)], 1)
    residual = sizes - scores @ torch.linalg.lstsq(scores, sizes).solution
    explained = 1 - residual.square().mean(0) / sizes.square().mean(0)
    assert explained.min() > 0.8
    # as many as there are, of the same rows: what pure noise gives scatters on its own rows alone
    pure = torch.randn(200, 300, generator=torch.Generator().manual_seed(2))
    encoder.fit(pure[:, None])
    assert (encoder.projection[0] != 0).any(-1).sum() == 1  # type: ignore[index]


def test_components_tell_how_noisy_an_array_is() -> None:
    encoder = build_encoder("components", channels=2, length=300, components=4)
    quiet, loud = lines(100, seed=3)[0], 3 * lines(100, seed=4)[0]
    x = torch.cat([quiet, loud])
    encoder.fit(torch.stack([x, x], 1))
    features = encoder(torch.stack([x, x], 1))
    assert features.shape == (200, 10)
    torch.testing.assert_close(features[:, :5], features[:, 5:])
    assert features[:100, 4].max() < features[100:, 4].min()
    assert features.std(0).max() < 1.01
    assert encoder(torch.zeros(1, 2, 300)).isfinite().all()


@pytest.mark.parametrize(("rows", "length"), [(40, 1), (40, 2), (41, 3), (41, 60), (5, 60), (1, 60)])
def test_components_of_few_and_short_arrays(rows: int, length: int) -> None:
    encoder = build_encoder("components", channels=1, length=length, components=30)
    x = torch.randn(rows, 1, length, generator=torch.Generator().manual_seed(0))
    x[:, :, -1:] = 0.0 if length > 1 else x[:, :, -1:]  # a dead pixel
    encoder.fit(x)
    assert encoder(x).isfinite().all()
    assert encoder(x).shape == (rows, 31)


def test_the_spectrum_encoder_knows_where_a_line_is() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("spectrum", channels=1, length=64, patch=8).eval()
    one, other = torch.zeros(1, 1, 64), torch.zeros(1, 1, 64)
    one[..., 11], other[..., 43] = -5.0, -5.0  # the same place in its patch
    assert (encoder(one) - encoder(other)).abs().max() > 0.01


@encoders
def test_options_come_from_the_signature(name: str) -> None:
    options = encoder_options(name)
    assert options["features"][1] == 64
    assert {"channels", "length"}.isdisjoint(options)
    assert all(kind in (int, float) for kind, _ in options.values())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spectrun", {}, "did you mean 'spectrum'"),
        ("spectrum", {"patches": 3}, "patches"),
        ("spectrum", {"features": 0}, "features of at least 1; got 0"),
        ("components", {"components": 0}, "components of at least 1"),
        ("components", {"smooth": 30.0}, "smooth from 0 to"),
        ("spectrum", {"patch": 0}, "patch of at least 1; got 0"),
        ("spectrum", {"dropout": 1.5}, "dropout"),
        ("cnn", {"kernel": 4}, "kernel to be odd; got 4"),
        ("tiny-cnn", {"length": 20}, "at least 64 numbers for tiny-cnn; got 20"),
        ("cnn", {"length": 63}, "at least 64 numbers for cnn; got 63"),
    ],
)
def test_what_cannot_be_is_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        build_encoder(name, **{"channels": 1, "length": 100, **options})


def test_bfloat16_in_training_alone() -> None:
    flow = make_encoded("spectrum")
    c = contexts(flow, 4)
    exact = flow.encode(c)
    flow.use_bf16(True)
    torch.testing.assert_close(flow.encode(c), exact)
    flow.train()
    assert not torch.equal(flow.encode(c), exact)
    flow.use_bf16(False)


# --- what stands before an encoder --------------------------------------------------------------------------


def test_input_standardises_and_masks() -> None:
    one = ArrayInput(4, masked=True)
    one.set(shift=torch.tensor([2.0]), scale=torch.tensor([0.5]))
    x = torch.tensor([[2.0, 3.0, math.nan, math.inf], [1e30, -1e30, 2.5, 1.5]], requires_grad=True)
    z = one(x)
    assert z.tolist() == [[0.0, 2.0, 0.0, 0.0], [10.0, -10.0, 1.0, -1.0]]
    (gradient,) = torch.autograd.grad(z.sum(), x)
    assert gradient.isfinite().all()


def test_log_clip_is_that_of_galah() -> None:
    flux = torch.tensor([1.1, 0.5, 0.1, -3.0, 0.0])
    torch.testing.assert_close(ArrayInput(5, clip=0.2)(flux), flux.clamp(min=0.2).log())


# --- laws -----------------------------------------------------------------------------------------------------


@encoded
@dtypes
def test_density_of_draws_is_log_prob(name: str, dtype: torch.dtype) -> None:
    flow = make_encoded(name, dtype=dtype)
    p = flow(contexts(flow, 6, dtype))
    x, log_prob = p.rsample_and_log_prob((50,), generator=torch.Generator().manual_seed(1))
    assert x.shape == (50, 6, 2)
    near = 1e-2 if dtype == torch.float32 else 1e-7
    torch.testing.assert_close(p.log_prob(x), log_prob, atol=near, rtol=near)


@encoded
def test_density_integrates_to_one(name: str) -> None:
    flow = make_encoded(name, targets=1, dtype=torch.float64, size=0.1)
    axis = torch.sinh(torch.linspace(-9.5, 9.5, 2000, dtype=torch.float64) / 2.5)
    with torch.no_grad():
        p = flow(contexts(flow, 1, torch.float64)[0]).log_prob(axis[:, None]).exp()
    assert abs(float(torch.trapezoid(p, axis)) - 1) < 5e-3


@encoded
@dtypes
def test_finite_however_far_out(name: str, dtype: torch.dtype) -> None:
    flow = make_encoded(name, dtype=dtype)
    values = torch.tensor([0.0, 1e6, -1e6, 1e30, -1e30, 1e-30], dtype=dtype)
    c = values[:, None].expand(-1, flow.context).clone()
    c[:, 0] = c[:, 0].clamp(-1e6, 1e6)  # a scalar, standardised
    c[0, 2], c[1, 5] = 1e20, -1e20
    c.requires_grad_()
    x = torch.full((len(c), 2), 3.0, dtype=dtype)
    log_prob = flow(c).log_prob(x)
    assert log_prob.isfinite().all()
    grads = torch.autograd.grad(log_prob.sum(), [c, *flow.parameters()], allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in grads)


@encoded
def test_batch_shape_does_not_matter(name: str) -> None:
    flow = make_encoded(name, dtype=torch.float64)
    c = contexts(flow, 24, torch.float64)
    x = torch.randn(24, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    log_prob = flow(c).log_prob(x)
    shaped = flow(c.reshape(2, 3, 4, -1)).log_prob(x.reshape(2, 3, 4, 2))
    torch.testing.assert_close(shaped.reshape(24), log_prob)
    torch.testing.assert_close(flow(c[0]).log_prob(x), flow(c[:1].expand(24, -1)).log_prob(x))


@encoded
def test_state_round_trip(name: str) -> None:
    flow = make_encoded(name)
    flow.inputs[0].set(torch.tensor([0.3]), torch.tensor([2.0]))
    other = make_encoded(name, size=0.0)
    other.load_state_dict(flow.state_dict())
    c, x = contexts(flow, 5), torch.randn(5, 2)
    assert torch.equal(flow(c).log_prob(x), other(c).log_prob(x))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_features(architecture: str) -> None:
    small = {"solver_steps": 2} if architecture == "continuous" else {}
    flow = make_encoded("spectrum", architecture=architecture, **small)
    c = contexts(flow, 40)
    features = flow.encode(c)
    assert features is not None
    x = flow(c).sample((), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(flow.given_features(features).log_prob(x), flow(c).log_prob(x))
    flow.train()
    flow.backward(x, c, generator=torch.Generator().manual_seed(2))
    grads = [p.grad for p in flow.encoders.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads)
    assert sum(float(g.abs().sum()) for g in grads if g is not None) > 0


def test_an_encoder_runs_once_per_context_never_once_per_draw() -> None:
    flow, rows = make_encoded("spectrum"), []
    flow.encoders[0].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    with torch.no_grad():
        p = flow(contexts(flow, 5))
        p.sample((1000,))
        p.log_prob(torch.zeros(100, 5, 2))
        p.expand((7, 5)).sample((3,))
        assert rows == [5]
        flow(contexts(flow, 5).expand(200, 5, -1)).log_prob(torch.zeros(200, 5, 2))
        assert rows == [5, 5]  # contexts that were only repeated are one
        rows.clear()
        flow(contexts(flow, ROWS + 3))
        assert rows == [ROWS, 3]


def test_backward_in_pieces_is_that_of_the_whole() -> None:
    flow = make_encoded("spectrum", dtype=torch.float64)
    c, x = contexts(flow, 50, torch.float64), torch.randn(50, 2, dtype=torch.float64)
    flow.backward(x, c)
    whole = [p.grad.clone() for p in flow.parameters() if p.grad is not None]
    flow.zero_grad()
    flow.train_rows = 7
    flow.backward(x, c)
    for one, other in zip(whole, [p.grad for p in flow.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(one, other)


def test_without_arrays_there_is_no_encoder() -> None:
    flow = build_encoded_flow("maf", numbers=2, levels=(), holder=(None, None), context=3, width=8)
    assert not isinstance(flow, EncodedFlow)
    with pytest.raises(StudyError, match="is not known"):
        build_encoded_flow(
            "maf", numbers=1, levels=(), holder=(None,), context=0, arrays=[ArrayKind(64)], encoder={"architecture": "x"}
        )  # fmt: skip


# --- point regression -----------------------------------------------------------------------------------------


def test_point_regression_has_the_covariance_of_held_out_residuals() -> None:
    generator = torch.Generator().manual_seed(0)
    flow = scatter(build_flow("point", targets=2, context=3, width=16)).eval()
    c = torch.randn(20_000, 3, generator=generator)
    mixing = torch.tensor([[0.3, 0.0], [-0.2, 0.1]])
    x = flow.bijection.mean(c).detach() + torch.randn(20_000, 2, generator=generator) @ mixing.T
    flow.calibrate(x, c)
    torch.testing.assert_close(flow.bijection.factor, mixing, atol=0.01, rtol=0.03)
    exact = torch.distributions.MultivariateNormal(flow.bijection.mean(c), scale_tril=flow.bijection.factor)
    torch.testing.assert_close(flow(c).log_prob(x), exact.log_prob(x), atol=1e-3, rtol=1e-3)
    assert flow.loss(x, c).item() == pytest.approx(float((mixing @ mixing.T).trace()) / 2, rel=0.03)
    before = flow.bijection.factor.clone()
    flow.calibrate(torch.full_like(x, math.nan), c)  # a diverged network keeps what it had
    assert torch.equal(flow.bijection.factor, before)
