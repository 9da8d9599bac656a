"""The kernel in C of whole conditioners gives what PyTorch's operations give, and is left out where it cannot serve."""

import copy
import itertools

import pytest
import torch

from fluvial.core import native as core_native
from fluvial.nets import MLP, native
from fluvial.nets.mlp import ACTIVATIONS

needs_kernels = pytest.mark.skipif(
    core_native.library() is None, reason="no kernels: fluvial was installed without a C compiler"
)
needs_bf16 = pytest.mark.skipif(not native.multiplies_in_bf16(), reason="no instructions for bfloat16 here")

#: Inputs, context, width, outputs: less and more than a block of products in every direction, whole blocks too.
SIZES = [(3, 2, 20, 11), (5, 0, 33, 7), (2, 14, 128, 98), (0, 3, 10, 4), (17, 30, 70, 40), (1, 1, 3, 2)]
KINDS = ["plain", "residual", "gated", "masked", "masked, gated"]


def network(kind, activation, sizes, depth=2):
    inputs, context, width, outputs = sizes
    masked = "masked" in kind and inputs > 0
    torch.manual_seed(sum(sizes) + depth)
    return MLP(
        inputs,
        context,
        outputs,
        width=width,
        depth=depth,
        residual=kind in ("residual", "gated", "masked, gated"),
        activation=activation,
        gate="gated" in kind,
        zero_start=False,
        output_degrees=sorted(i % inputs for i in range(outputs)) if masked else None,
    )


def problem(net, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = net.first.in_features - net.context
    x = 2 * torch.randn(rows, inputs, generator=generator)
    context = torch.randn(rows, net.context, generator=generator) if net.context else None
    return x, context, torch.randn(rows, net.last.out_features, generator=generator)


def results(net, x, context, grad, dtype=torch.float32, kernel=False):
    """Return by name: the output, and the gradients of x, context and every parameter."""
    net = copy.deepcopy(net).to(dtype)
    x, context = (
        None if t is None else t.detach().to(dtype, copy=True).requires_grad_() for t in (x, context)
    )
    grad = grad.to(dtype)
    out = native.conditioner(net, x, context) if kernel else net.by_operations(x, context, net.weights())
    out.backward(grad)
    found = {"out": out, "x": x.grad} | {name: p.grad for name, p in net.named_parameters()}
    if context is not None:
        found["context"] = context.grad
    return {name: t.detach().double() for name, t in found.items() if t is not None and t.numel()}


def off(found, exact):
    """Return the largest error of every result, in units of the largest number in it."""
    return {k: ((found[k] - exact[k]).abs().max() / (exact[k].abs().max() + 1e-6)).item() for k in exact}


def spread(found, exact):
    """Return the root mean square error of every result, in units of that of the numbers in it."""
    return {k: ((found[k] - exact[k]).norm() / (exact[k].norm() + 1e-6)).item() for k in exact}


@needs_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_agrees_with_double_precision(kind, activation):
    for sizes, rows in itertools.product(SIZES, (1, 191, 400)):
        net = network(kind, activation, sizes, depth=1 + rows % 3)
        given = problem(net, rows)
        exact = results(net, *given, dtype=torch.float64)
        ours, theirs = (off(results(net, *given, kernel=k), exact) for k in (True, False))
        assert len(ours) >= 6
        for name in ours:
            # Gradients of weights are sums over rows that may nearly cancel.
            assert ours[name] <= 3 * theirs[name] + (3e-6 if name in ("out", "x") else 3e-5), (
                sizes,
                rows,
                name,
            )


@needs_kernels
def test_without_gradients_the_same_numbers():
    for kind, activation in itertools.product(KINDS, ACTIVATIONS):
        net = network(kind, activation, SIZES[2])
        x, context, grad = problem(net, 300)
        with torch.no_grad():
            alone = native.conditioner(net, x, context)
        assert torch.equal(alone.double(), results(net, x, context, grad, kernel=True)["out"])


@needs_kernels
def test_shapes_layouts_and_partial_gradients():
    net = network("gated", "silu", SIZES[2])
    x, context, _ = problem(net, 60)
    whole = net(x, context)
    assert native.serves(net, x, context)
    torch.testing.assert_close(net(x.reshape(3, 20, -1), context.reshape(3, 20, -1)).reshape(60, -1), whole)
    torch.testing.assert_close(net(x.t().contiguous().t(), context), whole)
    one = context[:1].expand(60, -1)
    torch.testing.assert_close(net(x, one), net(x, one.clone()))
    for p in net.parameters():
        p.requires_grad_(False)
    for wanted in (x, context):
        given = [t.clone().requires_grad_(t is wanted) for t in (x, context)]
        net(*given).square().sum().backward()
        exact = [t.double().requires_grad_(t is wanted) for t in (x, context)]
        copy.deepcopy(net).double()(*exact).square().sum().backward()
        for ours, truth in zip(given, exact, strict=True):
            assert (ours.grad is None) == (truth.grad is None)
            if truth.grad is not None:
                torch.testing.assert_close(ours.grad.double(), truth.grad, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_memory_serves_again_only_when_it_is_free():
    net = network("gated", "silu", SIZES[2])
    given = [problem(net, rows, seed=rows) for rows in (400, 250, 400)]

    def gradients(out, grad):
        return torch.autograd.grad(out, list(net.parameters()), grad, retain_graph=True)

    alone = [gradients(native.conditioner(net, x, context), grad) for x, context, grad in given]
    # Three graphs at once, backward in another order, and again through graphs whose memory others have by now.
    outs = [native.conditioner(net, x, context) for x, context, _ in given]
    for i in (1, 0, 2, 0, 1, 1):
        for a, b in zip(gradients(outs[i], given[i][2]), alone[i], strict=True):
            assert torch.equal(a, b)
    assert 0 < sum(memory.numel() for memory in native._done) <= native._KEPT


@needs_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_a_number_and_far_out(activation):
    net = network("gated", activation, SIZES[2])
    x, context, _ = problem(net, 40)
    x[3, 1], context[5, 2], x[7, 0], x[8, 0] = float("nan"), float("nan"), float("inf"), 1e30
    context[9] = 1e6
    out, exact = native.conditioner(net, x, context), net.by_operations(x, context, net.weights())
    assert out.isnan().all(1).tolist() == exact.isnan().all(1).tolist() == [i in (3, 5, 7) for i in range(40)]
    sound = ~exact.isnan().any(1)
    torch.testing.assert_close(out[sound], exact[sound], rtol=1e-3, atol=1e-3)
    found = results(net, x[sound], context[sound], torch.ones_like(out[sound]), kernel=True)
    assert all(t.isfinite().all() for t in found.values())


@needs_kernels
def test_the_same_bits_again_and_rounding_alone_between_numbers_of_threads():
    net = network("masked, gated", "silu", SIZES[2])
    given = problem(net, 1500)
    before = torch.get_num_threads()
    try:
        found = {}
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found[threads], again = (results(net, *given, kernel=True) for _ in range(2))
            assert all(torch.equal(again[name], t) for name, t in found[threads].items())
    finally:
        torch.set_num_threads(before)
    for threads in (2, 3):
        assert torch.equal(found[threads]["out"], found[1]["out"])
        assert torch.equal(found[threads]["x"], found[1]["x"])
        assert max(off(found[threads], found[1]).values()) < 1e-5


@needs_kernels
def test_second_derivatives():
    net = network("gated", "tanh", SIZES[0])
    x, context, _ = problem(net, 20)
    second = []
    for flow, dtype in ((net, torch.float32), (copy.deepcopy(net).double(), torch.float64)):
        a, c = x.to(dtype).requires_grad_(), context.to(dtype).requires_grad_()
        (first,) = torch.autograd.grad(flow(a, c).sin().sum(), a, create_graph=True)
        second.append(
            torch.autograd.grad(first.square().sum(), [a, c, *flow.parameters()], allow_unused=True)
        )
    for ours, truth in zip(*second, strict=True):
        assert (ours is None) == (truth is None)
        if truth is not None:
            torch.testing.assert_close(ours.double(), truth, rtol=1e-3, atol=1e-5)


@needs_kernels
def test_what_the_kernel_serves():
    net = network("residual", "relu", SIZES[0])
    x, context, _ = problem(net, 20)
    assert native.serves(net, x, context)
    assert not native.serves(net, x[:2], context[:2])
    assert not native.serves(net, x.double(), context.double())
    assert not native.serves(copy.deepcopy(net).double(), x, context)
    assert not native.serves(net, x.to("meta"), context.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not native.serves(net, x, context)
    normed = MLP(3, 2, 11, width=20, residual=True, batch_norm=True)
    assert not native.serves(normed, x, context)
    dropped = MLP(3, 2, 11, width=20, dropout=0.5)
    assert not native.serves(dropped, x, context)
    assert native.serves(dropped.eval(), x, context)
    assert MLP(0, 0, 3)(torch.zeros(20, 0)).shape == (20, 3)


@needs_kernels
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func.jvp itself
def test_transformations_of_functions_go_by_operations():
    net = network("residual", "relu", SIZES[0])
    x, context, _ = problem(net, 24)
    by_row = torch.vmap(lambda a, c: net(a, c))(x.reshape(1, 24, -1), context.reshape(1, 24, -1))[0]
    torch.testing.assert_close(by_row, net(x, context), rtol=1e-4, atol=1e-5)
    _, tangent = torch.func.jvp(lambda a: net(a, context), (x,), (torch.ones_like(x),))
    assert tangent.abs().sum() > 0


@needs_bf16
@pytest.mark.parametrize("kind", KINDS)
def test_products_in_bfloat16(kind):
    for sizes, activation in itertools.product(SIZES[:5], ("silu", "tanh")):
        net = network(kind, activation, sizes)
        given = problem(net, 201)
        exact = results(net, *given, dtype=torch.float64)
        net.bf16 = True
        ours = spread(results(net, *given, kernel=True), exact)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = spread(results(net, *given), exact)
        assert ours["out"] > 1e-4, "not rounded"
        for name in ours:  # PyTorch rounds what comes out of a product as well
            assert ours[name] <= 2 * theirs[name] + 2e-3, (sizes, activation, name)
        net.eval()
        assert spread(results(net, *given, kernel=True), exact)["out"] < 1e-5


@needs_kernels
@pytest.mark.parametrize("mode", ["training", "evaluation", "evaluation, no gradients"])
def test_batch_norm_between_products(mode):
    sizes = {
        "width": 40,
        "depth": 2,
        "residual": True,
        "activation": "relu",
        "gate": True,
        "zero_start": False,
    }
    net = MLP(3, 2, 11, **sizes, batch_norm=True)
    for norm in net.norms:
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
        torch.nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x, context, grad = problem(net, 401)
    net.train(mode == "training")
    exact = copy.deepcopy(net).double()
    assert native.serves_products(net, x, context)
    if mode == "evaluation, no gradients":
        with torch.no_grad():
            assert native.serves(net, x, context)
            torch.testing.assert_close(
                net(x, context).double(), exact(x.double(), context.double()), rtol=1e-4, atol=1e-5
            )
        return
    assert not native.serves(net, x, context)
    for flow, dtype in ((net, torch.float32), (exact, torch.float64)):
        flow(x.to(dtype), context.to(dtype)).backward(grad.to(dtype))
    for ours, truth in zip(net.parameters(), exact.parameters(), strict=True):
        assert (ours.grad - truth.grad).abs().max() < 1e-4 * (1 + truth.grad.abs().max())
    for ours, truth in zip(net.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), truth.double(), rtol=1e-4, atol=1e-5)


@needs_kernels
def test_a_product_alone():
    for rows, inputs, outputs in ((1, 3, 5), (193, 20, 300), (400, 70, 33), (192, 64, 64)):
        generator = torch.Generator().manual_seed(rows)
        given = [
            torch.randn(*s, generator=generator) for s in ((rows, inputs), (outputs, inputs), (outputs,))
        ]
        grad = torch.randn(rows, outputs, generator=generator)
        found = []
        for product, dtype in ((native.product, torch.float32), (torch.nn.functional.linear, torch.float64)):
            tensors = [t.to(dtype, copy=True).requires_grad_() for t in given]
            out = product(*tensors)
            first = torch.autograd.grad(out, tensors, grad.to(dtype), retain_graph=True)
            again = torch.autograd.grad(out.sin().sum(), tensors[0], create_graph=True)[0].square().sum()
            found.append([out.detach(), *first, *torch.autograd.grad(again, tensors)])
        for ours, truth in zip(*found, strict=True):
            assert (ours - truth).abs().max() < 3e-5 * (1 + truth.abs().max())
