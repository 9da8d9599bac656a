"""Flows of fluvial in sbi (https://sbi.readthedocs.io), as the density estimator of neural posterior estimation.

The library is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluvial.core import Affine
from fluvial.extras import optional_module
from fluvial.flows.build import build_flow
from fluvial.flows.flow import AbstractFlow


def sbi_estimator(
    architecture: str = "autoregressive-spline", **options: Any
) -> Callable[[Tensor, Tensor], Any]:
    """Return a builder of density estimators for ``sbi``, made of a flow of ours.

    Parameters
    ----------
    architecture : str
        Any name that a study knows.
    **options
        Options of that architecture.

    Returns
    -------
    callable
        ``(theta, x) -> estimator``, as ``NPE(prior, density_estimator=...)`` takes it. Parameters and observations are
        standardised by their means and standard deviations over the simulations it is given, and the Jacobian is counted.
        Observations of several dimensions are taken as one vector.

    Raises
    ------
    MissingExtraError
        When the builder is called and ``sbi`` is not installed.

    Examples
    --------
    >>> from sbi.inference import NPE                                       # doctest: +SKIP
    >>> inference = NPE(prior, density_estimator=sbi_estimator(bins=16))    # doctest: +SKIP
    """

    def build(theta: Tensor, x: Tensor, **_: Any) -> Any:
        size, width = theta[0].numel(), x[0].numel()
        flow = build_flow(architecture, targets=size, context=width, **options)
        estimator = _sbi_class()
        return estimator(flow, _standardise(theta), _standardise(x), theta.shape[1:], x.shape[1:])

    return build


def _standardise(values: Tensor) -> Affine:
    """Return the map to mean 0 and standard deviation 1 over the rows; a constant column keeps its scale."""
    rows = values.reshape(len(values), -1)
    rows = rows[rows.isfinite().all(-1)]
    scale = rows.std(0)
    return Affine(rows.mean(0), torch.where(scale > 0, scale, torch.ones_like(scale)))


def __getattr__(name: str) -> Any:
    # SbiEstimator can only be defined once sbi is there; found under its name, it can be pickled.
    if name == "SbiEstimator":
        return _sbi_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _sbi_class() -> type:
    """Return the class of estimators, a subclass of sbi's, made at first use."""
    if "SbiEstimator" in globals():
        return globals()["SbiEstimator"]
    base: Any = optional_module("sbi.neural_nets.estimators", "sbi").ConditionalDensityEstimator

    class SbiEstimator(base):
        """A flow of ours as a density estimator of sbi: p(theta | x), in the user's units."""

        def __init__(
            self,
            flow: AbstractFlow,
            theta: Affine,
            x: Affine,
            input_shape: torch.Size,
            condition_shape: torch.Size,
        ):
            super().__init__(net=flow, input_shape=input_shape, condition_shape=condition_shape)
            self.theta = theta
            self.x = x

        def _given(self, condition: Tensor) -> Any:
            self._check_condition_shape(condition)
            rows = condition.reshape(*condition.shape[: condition.ndim - len(self.condition_shape)], -1)
            return self.net(self.x(rows)[0])

        def log_prob(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
            """Return log p for ``input: [S, B, D]`` and ``condition: [B, ...]``, as ``[S, B]``."""
            self._check_input_shape(input)
            if input.ndim == 2:
                input = input[None]
            u, logdet = self.theta(input)
            return self._given(condition).log_prob(u) + logdet

        def loss(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
            """Return −log p of every row; for a flow with a loss of its own, that, the same for every row."""
            if self.net.loss_is_nll:
                return -self.log_prob(input[None], condition)[0]
            self._check_condition_shape(condition)
            rows = condition.reshape(len(condition), -1)
            return self.net.loss(self.theta(input)[0], self.x(rows)[0]).expand(len(input))

        def sample(self, sample_shape: torch.Size, condition: Tensor, **_: Any) -> Tensor:
            """Draw ``[*sample_shape, B, D]``."""
            return self.theta.inverse(self._given(condition).sample(torch.Size(sample_shape)))[0]

        def sample_and_log_prob(
            self, sample_shape: torch.Size, condition: Tensor, **_: Any
        ) -> tuple[Tensor, Tensor]:
            """Draw ``[*sample_shape, B, D]``, and return the log-density of each draw."""
            u, log_prob = self._given(condition).rsample_and_log_prob(torch.Size(sample_shape))
            theta, logdet = self.theta.inverse(u)
            return theta, log_prob - logdet

    SbiEstimator.__qualname__ = "SbiEstimator"
    globals()["SbiEstimator"] = SbiEstimator
    return SbiEstimator
