"""Networks: conditioners, and encoders of array-valued contexts."""

from fluvial.nets.mlp import MLP
from fluvial.nets.unfold import Unfolding, unfolded

__all__ = ["MLP", "Unfolding", "unfolded"]
