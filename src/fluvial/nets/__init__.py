"""Networks: conditioners, and encoders of array-valued contexts."""

from fluvial.nets.mlp import MLP

__all__ = ["MLP"]
