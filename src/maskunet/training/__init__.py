"""Training: masks learned from the diffusion loss."""

from .trainer import Run, TrainConfig, train

__all__ = ["Run", "TrainConfig", "train"]
