"""flowjax (Ward 2024), compiled by JAX."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import paramax
from flowjax.bijections import Chain, Coupling, Invert, Permute, RationalQuadraticSpline, Scan
from flowjax.distributions import Normal, Transformed
from flowjax.flows import masked_autoregressive_flow
from flowjax.train.losses import MaximumLikelihoodLoss
from flowjax.train.train_utils import step
from jax import Array

from peers.work import BOUND, LEARNING_RATE, Work


def build(work: Work) -> FlowjaxContender:
    """Build the flow, with flowjax's own loss and training step."""
    base = paramax.non_trainable(Normal(jnp.zeros(work.targets)))
    on_gpu = ["products in TF32, JAX's default there"] if work.device == "cuda" else []
    if work.architecture == "maf":
        flow = masked_autoregressive_flow(
            jr.key(0),
            base_dist=base,
            cond_dim=work.context,
            flow_layers=work.steps,
            nn_width=work.width,
            nn_depth=work.blocks,
        )
        return FlowjaxContender(flow, "; ".join(on_gpu))
    layers = eqx.filter_vmap(lambda key: _step(key, work))(jr.split(jr.key(0), work.steps))
    differs = ["permutations in place of LU; no gates, no batch norm"] if work.mixing == "lu" else []
    return FlowjaxContender(Transformed(base, Invert(Scan(layers))), "; ".join(differs + on_gpu))


class FlowjaxContender:
    """A flow in flowjax; every function is compiled at its first call."""

    def __init__(self, flow: Transformed, differs: str):
        self.differs = differs
        self.params, self.static = eqx.partition(
            flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
        )
        self.parameters = sum(leaf.size for leaf in jax.tree_util.tree_leaves(self.params))
        self.optimizer = optax.adam(LEARNING_RATE)
        self.state = self.optimizer.init(self.params)
        self.loss = MaximumLikelihoodLoss()
        self.key = jr.key(1)
        self._log_prob = eqx.filter_jit(lambda flow, x, c: flow.log_prob(x, c))
        self._sample = eqx.filter_jit(lambda flow, key, c: flow.sample(key, condition=c))

    def train_step(self, x: np.ndarray, c: np.ndarray) -> float:
        """Take one step of Adam and return the loss before it."""
        self.params, self.state, loss = step(
            self.params,
            self.static,
            jnp.asarray(x),
            jnp.asarray(c),
            optimizer=self.optimizer,
            opt_state=self.state,
            loss_fn=self.loss,
        )
        jax.block_until_ready(self.params)
        return float(loss)

    def log_prob(self, x: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Return log p(x | c)."""
        return np.asarray(self._log_prob(self._flow(), jnp.asarray(x), jnp.asarray(c)))

    def sample(self, c: np.ndarray) -> np.ndarray:
        """Return one draw for every context."""
        self.key, key = jr.split(self.key)
        return np.asarray(self._sample(self._flow(), key, jnp.asarray(c)))

    def device_memory(self) -> int:
        """Return the most memory of the GPU held so far, in bytes."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)

    def _flow(self) -> Transformed:
        return eqx.combine(self.params, self.static)


def _step(key: Array, work: Work) -> Chain:
    net_key, order_key = jr.split(key)
    coupling = Coupling(
        net_key,
        # flowjax counts inner knots: one fewer than bins.
        transformer=RationalQuadraticSpline(knots=work.bins - 1, interval=BOUND),
        untransformed_dim=work.targets // 2,
        dim=work.targets,
        cond_dim=work.context,
        nn_width=work.width,
        nn_depth=1,
    )
    plain = coupling.conditioner
    net = ResidualNet(
        net_key, plain.layers[0].in_features, plain.layers[-1].out_features, work.width, work.blocks
    )
    coupling = eqx.tree_at(lambda c: c.conditioner, coupling, net)
    return Chain([coupling, Permute(jr.permutation(order_key, jnp.arange(work.targets)))])


class ResidualNet(eqx.Module):
    """Pre-activation residual blocks; flowjax's own conditioner is plain."""

    first: eqx.nn.Linear
    blocks: list[tuple[eqx.nn.Linear, eqx.nn.Linear]]
    last: eqx.nn.Linear

    def __init__(self, key: Array, inputs: int, outputs: int, width: int, blocks: int):
        keys = iter(jr.split(key, 2 * blocks + 2))
        self.first = eqx.nn.Linear(inputs, width, key=next(keys))
        self.blocks = [
            (eqx.nn.Linear(width, width, key=next(keys)), eqx.nn.Linear(width, width, key=next(keys)))
            for _ in range(blocks)
        ]
        self.last = eqx.nn.Linear(width, outputs, key=next(keys))

    def __call__(self, x: Array) -> Array:
        h = self.first(x)
        for first, second in self.blocks:
            h = h + second(jax.nn.relu(first(jax.nn.relu(h))))
        return self.last(h)
