"""Floor 5: one training loop for every architecture."""

from saelab.train.trainer import Trainer

__all__ = ["Trainer"]
