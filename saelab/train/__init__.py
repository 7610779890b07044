"""Floor 6: one training loop for every architecture."""

from saelab.train.config import MeshConfig, SAEConfig, TrainConfig, TrainerConfig
from saelab.train.grid import SweepConfig, resume_sweep, sweep_run
from saelab.train.job import resume_run, train_run
from saelab.train.trainer import Trainer

__all__ = [
    "MeshConfig", "SAEConfig", "SweepConfig", "TrainConfig", "Trainer", "TrainerConfig", "resume_run", "resume_sweep",
    "sweep_run", "train_run",
]  # fmt: skip
