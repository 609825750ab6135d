"""`segbench train`: from a recipe to a checkpoint."""

from segbench.training.train import train

__all__ = ["train"]
