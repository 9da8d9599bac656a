"""Training: one loop that emits events, and what decides when it ends."""

from fluvial.train.checkpoint import CHECKPOINT, Checkpoint
from fluvial.train.device import training_device
from fluvial.train.distributed import Group, LostProcess, process_group
from fluvial.train.loop import Trainer, train
from fluvial.train.options import EpochEvent, StepEvent, TrainingError, TrainingOptions

__all__ = [
    "CHECKPOINT",
    "Checkpoint",
    "EpochEvent",
    "Group",
    "LostProcess",
    "StepEvent",
    "Trainer",
    "TrainingError",
    "TrainingOptions",
    "process_group",
    "train",
    "training_device",
]
