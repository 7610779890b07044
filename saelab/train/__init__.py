"""Floor 5: one training loop for every architecture."""

from saelab.train.config import MeshConfig, SAEConfig, TrainConfig, TrainerConfig
from saelab.train.job import train_run
from saelab.train.trainer import Trainer

__all__ = ["MeshConfig", "SAEConfig", "TrainConfig", "Trainer", "TrainerConfig", "train_run"]
