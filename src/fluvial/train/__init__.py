"""Training: one loop that emits events, and what decides when it ends."""

from fluvial.train.loop import EpochEvent, StepEvent, TrainingOptions, train

__all__ = ["EpochEvent", "StepEvent", "TrainingOptions", "train"]
