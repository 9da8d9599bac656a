"""An autoregressive network evaluated degree by degree, every hidden unit once: a draw costs one pass, not D."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fluvial.nets import native
from fluvial.nets.mlp import MLP, draw_in

#: Up to so many coordinates, the kernel in C beats PyTorch's operations although it makes some units again.
FEW = 3


def unfolded(
    net: MLP, context: Tensor | None, rows: int, like: Tensor
) -> Unfolding | UnfoldingAtOne | native.Prefixes:
    """Return what gives the outputs of an autoregressive network coordinate by coordinate, for ``rows`` like ``like``.

    ``context`` is ``[rows, C]``, or ``[1, C]`` where all rows share it.
    """
    if rows > 1 and (context is None or len(context) == 1) and not net.norms:
        return UnfoldingAtOne(net, context)
    if context is not None:
        context = context.expand(rows, -1)
    if like.shape[-1] <= FEW and native.serves(net, like, context):
        return native.Prefixes(net, context)
    return Unfolding(net, context, rows)


class Unfolding:
    """The outputs of a masked :class:`~fluvial.nets.MLP`, coordinate by coordinate, as the coordinates become known.

    Units of degree d see the first d coordinates alone; once those are known, what such units give never changes.
    So each coordinate that a draw adds needs the units of one degree only, and all coordinates together one pass of the
    network, where naive sampling takes a pass for each. Gradients are not kept.

    Parameters
    ----------
    net : MLP
        With ``output_degrees``, and in evaluation mode if it has batch norm or dropout.
    context : Tensor, optional
        ``[n, C]``.
    rows : int
        n.
    """

    def __init__(self, net: MLP, context: Tensor | None, rows: int):
        assert net.degree_ends is not None, "only an autoregressive network can be unfolded"
        self.net = net
        weight, inputs = net.first.weight, net.first.weight.shape[1] - (0 if context is None else net.context)
        self.weight = weight[:, :inputs]
        self.entrance = net.first.bias.expand(rows, -1)
        if context is not None:
            self.entrance = linear(context, weight[:, inputs:], net.first.bias)
        elif net.constant:
            self.entrance = self.entrance + weight[:, 0]
        self.gates = [torch.sigmoid(gate(context)) for gate in net.gates]
        # What each layer after the first gets: filled degree by degree.
        self.seen = [weight.new_empty(rows, weight.shape[0]) for _ in range(len(net.hidden) + 1)]
        self.norms = [native.scale_and_shift(norm) for norm in net.norms]

    def outputs(self, degree: int, x: Tensor, which: slice) -> Tensor:
        """Return the outputs ``which``, whose degree is ``degree``, given ``x: [n, degree]``; ask in order of degree."""
        net = self.net
        assert net.degree_ends is not None
        start, end = net.degree_ends[degree], net.degree_ends[degree + 1]
        mine = slice(start, end)
        if end > start:
            h = self.entrance[:, mine]
            if degree:
                h = torch.addmm(h, draw_in(x), self.weight[mine, :degree].t())
            self._hidden(h, mine)
        return linear(self.seen[-1][:, :end], net.last.weight[which, :end], net.last.bias[which])

    def _hidden(self, h: Tensor, mine: slice) -> None:
        """Fill in what the units of one degree give, layer by layer, from the first layer's ``h``."""
        net = self.net
        skip = h
        for layer, hidden in enumerate(net.hidden):
            if layer % 2 == 0:
                skip = h
            if self.norms:
                scale, shift = self.norms[layer]
                h = torch.addcmul(shift[mine], h, scale[mine])
            self.seen[layer][:, mine] = net.activation(h)
            assert isinstance(hidden, nn.Linear)
            h = linear(self.seen[layer][:, : mine.stop], hidden.weight[mine, : mine.stop], hidden.bias[mine])
            if net.residual and layer % 2:
                h = torch.addcmul(skip, h, self.gates[layer // 2][:, mine]) if self.gates else skip + h
        self.seen[-1][:, mine] = net.activation(h)


class UnfoldingAtOne:
    """:class:`Unfolding` where all rows share one context: the units that see no coordinate are evaluated once.

    In two dimensions they are half of all units, and the larger part of the products.
    """

    def __init__(self, net: MLP, context: Tensor | None):
        assert net.degree_ends is not None, "only an autoregressive network can be unfolded"
        self.net = net
        self.alone = Unfolding(net, context, 1)
        self.start = net.degree_ends[1]
        # Of the units that see a coordinate: what each layer after the first gets.
        self.seen: list[Tensor] = []

    def outputs(self, degree: int, x: Tensor, which: slice) -> Tensor:
        """Return the outputs ``which``, whose degree is ``degree``, given ``x: [n, degree]``; ask in order of degree."""
        net, alone, start = self.net, self.alone, self.start
        assert net.degree_ends is not None
        if not degree:
            return alone.outputs(0, x[:1], which).expand(len(x), -1)
        if len(net.degree_ends) - 1 <= FEW and native.serves_part(net, x):
            return native.part(net, x, self._part(degree, which))
        if not self.seen:
            size = len(net.first.weight) - start
            self.seen = [x.new_empty(len(x), size) for _ in range(len(net.hidden) + 1)]
        first, end = net.degree_ends[degree], net.degree_ends[degree + 1]
        if end > first:
            self._hidden(degree, x, slice(first, end))
        return self._linear(len(net.hidden), end, net.last.weight[which], net.last.bias[which])

    def _hidden(self, degree: int, x: Tensor, mine: slice) -> None:
        net, alone = self.net, self.alone
        put = slice(mine.start - self.start, mine.stop - self.start)
        h = torch.addmm(alone.entrance[:, mine], draw_in(x), alone.weight[mine, :degree].t())
        skip = h
        for layer, hidden in enumerate(net.hidden):
            if layer % 2 == 0:
                skip = h
            self.seen[layer][:, put] = net.activation(h)
            assert isinstance(hidden, nn.Linear)
            h = self._linear(layer, mine.stop, hidden.weight[mine], hidden.bias[mine])
            if net.residual and layer % 2:
                h = torch.addcmul(skip, h, alone.gates[layer // 2][:, mine]) if alone.gates else skip + h
        self.seen[-1][:, put] = net.activation(h)

    def _part(self, degree: int, which: slice) -> list[Tensor]:
        """Return weights and biases of the units that see a coordinate, and no more than ``degree`` of them."""
        net = self.net
        assert net.degree_ends is not None
        units = slice(self.start, net.degree_ends[degree + 1])
        masked = net.weights()
        pairs = list(
            zip(masked[2:-2:2], masked[3:-2:2], strict=True)
        )  # of the hidden layers: there are no gates
        out = [masked[0][units, :degree], self.alone.entrance[0, units]]
        for layer, (weight, bias) in enumerate(pairs):
            out += [weight[units, units], self._shared(layer, weight[units], bias[units])]
        last, bias = masked[-2][which], masked[-1][which]
        return [*out, last[:, units], self._shared(len(pairs), last, bias)]

    def _linear(self, layer: int, end: int, weight: Tensor, bias: Tensor) -> Tensor:
        """Return a layer's product with all units before ``end``."""
        shared = self._shared(layer, weight, bias)
        return torch.addmm(shared, self.seen[layer][:, : end - self.start], weight[:, self.start : end].t())

    def _shared(self, layer: int, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the bias of a layer, with what the units that are the same in all rows add to it."""
        return torch.addmv(bias, weight[:, : self.start], self.alone.seen[layer][0, : self.start])
