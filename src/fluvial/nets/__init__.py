"""Networks: conditioners, and encoders of array-valued contexts."""

from fluvial.nets.encoders import ENCODERS, Encoder, build_encoder
from fluvial.nets.inputs import ArrayInput
from fluvial.nets.mlp import MLP
from fluvial.nets.unfold import Unfolding, unfolded

__all__ = ["ENCODERS", "MLP", "ArrayInput", "Encoder", "Unfolding", "build_encoder", "unfolded"]
