"""The kernels in Triton give what PyTorch's operations give: on a GPU, or where there is none in Triton's interpreter."""

from copy import deepcopy
from functools import partial

import pytest
import splines
import torch
from splines import run
from zoo import FLOWS, make_flow

from fluvial.core import gpu
from fluvial.core.spline import _KernelSpline, _Spline
from fluvial.data.stream import Batches
from fluvial.flows import build_flow
from fluvial.flows.transformer import _affine
from fluvial.nets import MLP
from fluvial.nets import gpu as gpu_nets
from fluvial.train import EpochEvent, Trainer, TrainingOptions

pytest.importorskip("triton", reason="there is no Triton: PyTorch for a CPU comes without")
pytestmark = pytest.mark.filterwarnings("default::RuntimeWarning")  # NumPy's, in the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def by_kernel(*arguments):
    return _KernelSpline.apply(*arguments, gpu)


def problem(bins, rows=300, size=1.0):
    x, parameters, grads = splines.problem(bins, rows, size)
    return x.to(DEVICE), parameters.to(DEVICE), [g.to(DEVICE) for g in grads]


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("bins", [1, 2, 7, 16, 31, 128])
def test_the_spline_agrees_with_double_precision(bins, inverse):
    x, parameters, grads = problem(bins)
    ours, plain = (run(s, x, parameters, grads, inverse) for s in (by_kernel, _Spline.apply))
    exact = run(_Spline.apply, x.double(), parameters.double(), [g.double() for g in grads], inverse)
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        mine, theirs = (((t.double() - truth).abs() / (1 + truth.abs())).flatten() for t in (mine, theirs))
        for quantile in (0.5, 0.99):
            assert mine.quantile(quantile) <= 3 * theirs.quantile(quantile) + (
                1e-6 if quantile < 0.9 else 1e-4
            )


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_the_affine_map_agrees_with_operations(inverse):
    x, parameters, grads = problem(1)
    parameters = parameters[:, :2].contiguous().requires_grad_()
    x.requires_grad_()
    plain = _affine(x, parameters, 3.0, inverse=inverse)[:2]
    torch.testing.assert_close(gpu.affine(x.detach(), parameters.detach(), 3.0, inverse), plain)
    ours = gpu.affine_backward(x.detach(), parameters.detach(), *grads, 3.0, inverse)
    theirs = torch.autograd.grad(plain, (x, parameters), grads)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_parameters_in_bfloat16_are_those_numbers():
    x, parameters, grads = problem(8)
    parameters = parameters.bfloat16()
    ours = run(by_kernel, x, parameters, grads, False)
    plain = run(_Spline.apply, x, parameters.float(), grads, False)
    assert ours[3].dtype == torch.bfloat16
    for mine, theirs, tolerance in zip(ours, plain, (1e-4, 1e-3, 1e-3, 1e-2), strict=True):
        torch.testing.assert_close(mine.float(), theirs, rtol=tolerance, atol=tolerance)


def test_parameters_out_of_a_wider_matrix():
    x, parameters, grads = problem(8, rows=36)
    wide = torch.randn(12, 80, device=DEVICE)
    wide[:, :75] = parameters.reshape(12, 75)
    shape = (12, 3)
    x, grads = x.reshape(shape), [g.reshape(shape) for g in grads]
    padded = wide[:, :75].unflatten(-1, (3, 25))
    *ours, found = gpu.spline(x, padded, 5.0, 1e-2, 1e3, False)
    gradient = gpu.spline_backward(x, padded, found, *grads, 5.0, 1e-2, 1e3, False)[1]
    plain = run(by_kernel, x, parameters.reshape(12, 3, 25), grads, False)
    torch.testing.assert_close([*ours, gradient], [*plain[:2], plain[3]])


def test_far_out_and_not_a_number():
    x = torch.tensor([1e6, -1e6, 3e38, float("nan"), 0.0, 5.0, -5.0], device=DEVICE)
    _, parameters, _ = problem(8, rows=len(x), size=3.0)
    parameters[4] = float("nan")
    for inverse in (False, True):
        y, log_slope = by_kernel(x, parameters, 5.0, inverse)
        other, other_slope = _Spline.apply(x, parameters, 5.0, inverse)
        torch.testing.assert_close(y, other, equal_nan=True, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(log_slope[:3], other_slope[:3], rtol=1e-3, atol=1e-3)
        assert y.isnan().tolist() == [False, False, False, True, True, False, False]


NETWORKS = {
    "plain": {"depth": 3, "activation": "tanh"},
    "residual": {"residual": True, "activation": "elu"},
    "gated": {"residual": True, "gate": True},
    "FlashSim's": {"residual": True, "gate": True, "batch_norm": True, "activation": "relu"},
    "norm": {"residual": True, "batch_norm": True, "activation": "silu"},
    "masked": {"depth": 2, "output_degrees": [0, 0, 1, 1, 2, 2, 3, 3, 3], "activation": "relu"},
}


def gradients(net, call, x, context, weight):
    """Return the output of a network, and the gradients of all it is made of."""
    inputs = [x.clone().requires_grad_(), context.clone().requires_grad_(), *net.parameters()]
    out = call(*inputs[:2])
    grads = torch.autograd.grad((out.float() * weight).sum(), inputs, allow_unused=True)
    return [out.float().detach(), *(torch.zeros(1) if g is None else g for g in grads)]


@pytest.mark.parametrize("rows", [70, 1000])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_a_conditioner_in_training_agrees_with_operations(options, rows):
    torch.manual_seed(0)
    net = MLP(4, 3, 9, width=21, zero_start=False, **options).to(DEVICE).train()
    other = deepcopy(net)
    x, context, weight = (torch.randn(rows, n, device=DEVICE) for n in (4, 3, 9))
    ours = gradients(net, partial(gpu_nets.conditioner, net), x, context, weight)
    plain = gradients(other, lambda x, c: other.by_operations(x, c, other.weights()), x, context, weight)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max() + rows / 10))
    for mine, theirs in zip(net.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    if not net.norms:
        with torch.no_grad():
            torch.testing.assert_close(gpu_nets.conditioner(net, x, context), plain[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_a_conditioner_in_bfloat16_goes_the_same_way(options):
    torch.manual_seed(0)
    net = MLP(4, 3, 9, width=21, zero_start=False, **options).to(DEVICE).train()
    other = deepcopy(net)
    net.bf16 = True
    x, context, weight = (torch.randn(500, n, device=DEVICE) for n in (4, 3, 9))
    ours = gradients(net, partial(gpu_nets.conditioner, net), x, context, weight)
    exact = gradients(other, lambda x, c: other.by_operations(x, c, other.weights()), x, context, weight)
    with torch.autocast(DEVICE, torch.bfloat16):
        usual = gradients(other, lambda x, c: other.by_operations(x, c, other.weights()), x, context, weight)
    for mine, theirs, truth in zip(ours, usual, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - truth).norm() <= 1.5 * (theirs - truth).norm() + 1e-2 * truth.norm() + 1e-2


needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="there is no NVIDIA GPU")


@needs_gpu
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_on_a_gpu_is_that_on_a_cpu(name):
    flow = make_flow(name, 3, 2).train()
    other = deepcopy(flow).to(DEVICE)
    x, context = torch.randn(257, flow.targets), torch.randn(257, flow.context)
    for step in range(4):  # by operations, and from the third time as a recording
        for one, place in ((flow, "cpu"), (other, DEVICE)):
            one.train()
            one.zero_grad()
            torch.manual_seed(step)
            if not one.loss_is_nll or any(isinstance(m, torch.nn.Dropout) for m in one.modules()):
                continue
            one.backward(x.to(place), context.to(place) if flow.context else None)
        for mine, theirs in zip(other.parameters(), flow.parameters(), strict=True):
            if theirs.grad is not None:
                assert mine.grad is not None
                scale = float(theirs.grad.abs().max()) + 1e-3
                torch.testing.assert_close(mine.grad.cpu(), theirs.grad, rtol=5e-3, atol=2e-3 * scale)
    flow.eval()
    other.eval()
    with torch.no_grad():
        for _ in range(4):
            p, q = (f(context.to(d) if flow.context else None) for f, d in ((flow, "cpu"), (other, DEVICE)))
            torch.testing.assert_close(q.log_prob(x.to(DEVICE)).cpu(), p.log_prob(x), rtol=1e-3, atol=2e-3)
            draws = q.sample() if flow.context else q.sample((257,))
            assert draws.shape == x.shape
            assert draws.isfinite().all()


@needs_gpu
def test_a_recording_follows_the_weights_and_leaves_gradients_alone():
    torch.manual_seed(0)
    flow = build_flow("coupling-spline", targets=4, context=2, steps=3, width=32).to(DEVICE).train()
    optimizer = torch.optim.AdamW(flow.parameters(), lr=1e-2, fused=True)
    x, context = torch.randn(512, 4, device=DEVICE) * 0.3 + 1, torch.randn(512, 2, device=DEVICE)
    losses = []
    for _ in range(30):
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(flow.backward(x, context)))
        optimizer.step()
    assert losses[-1] < losses[0] - 1
    flow.zero_grad(set_to_none=True)
    first = flow.backward(x, context)
    once = [p.grad.clone() for p in flow.parameters()]
    flow.zero_grad(set_to_none=True)
    flow.backward(x, context)
    flow.backward(x, context)  # adds
    assert float(first) == pytest.approx(float(flow.loss(x, context).detach()), abs=1e-4)
    for p, g in zip(flow.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad - g, g, rtol=1e-3, atol=1e-4)


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_on_a_gpu_goes_on_from_its_checkpoint(precision):
    def trainer():
        torch.manual_seed(0)
        flow = build_flow("coupling-spline", targets=3, context=2, steps=3, width=32).to(DEVICE)
        options = TrainingOptions(epochs=6, learning_rate=2e-3, precision=precision, ema=0.99)
        return Trainer(flow, Batches(x, context, 256, 0), (x[:500], context[:500]), options)

    generator = torch.Generator().manual_seed(1)
    context = torch.randn(2000, 2, generator=generator).to(DEVICE)
    x = (torch.randn(2000, 3, generator=generator).to(DEVICE) * 0.3 + context[:, :1]).contiguous()
    whole = trainer()
    epochs = [e for e in whole.run() if isinstance(e, EpochEvent)]
    assert epochs[-1].validation_loss < epochs[0].validation_loss
    cut = trainer()
    for event in cut.run():
        if isinstance(event, EpochEvent) and event.epoch == 3:
            break
    state = cut.state()
    again = trainer()
    again.load(state)
    rest = [e for e in again.run() if isinstance(e, EpochEvent)]
    assert [e.epoch for e in rest] == [4, 5, 6]
    assert rest[-1].validation_loss == pytest.approx(epochs[-1].validation_loss, abs=0.02)
