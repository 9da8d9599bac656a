"""What the tests of the spline's kernels, in C and in Triton, have in common."""

import torch

from fluvial.core.spline import spline_parameters


def problem(bins, rows=4096, size=1.0):
    generator = torch.Generator().manual_seed(bins)
    x = 3 * torch.randn(rows, generator=generator)
    parameters = size * torch.randn(rows, spline_parameters(bins), generator=generator)
    return x, parameters, [torch.randn(rows, generator=generator) for _ in range(2)]


def run(spline, x, parameters, grads, inverse):
    x, parameters = x.clone().requires_grad_(), parameters.clone().requires_grad_()
    outputs = spline(x, parameters, 5.0, inverse)
    torch.autograd.backward(outputs, grads)
    return [*(o.detach() for o in outputs), x.grad, parameters.grad]
