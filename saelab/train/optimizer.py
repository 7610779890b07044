"""The base of optimizers: how the weights follow their gradients. The learning rate and its schedule are the trainer's.

A variant makes one or more of torch's optimizers, which share out the parameters. Their state is kept in checkpoints;
where a tensor of it has its parameter's shape, an entry belongs to the same entry of the parameter.
"""

from abc import ABC, abstractmethod

import torch

from saelab.core.components import Component
from saelab.sae.sae import SAE


class Optimizer(Component, ABC):
    """How weights follow their gradients."""

    home = "saelab.train.optimizers"

    @abstractmethod
    def make(self, sae: SAE, lr: float) -> list[torch.optim.Optimizer]:
        """torch's optimizers of an SAE's parameters, each parameter in one of them; ValueError for a wrong setting."""

    def check_share(self, name: str) -> None:
        """ValueError unless the setting of that name is at least 0 and below 1."""
        value = getattr(self, name)
        if not 0 <= value < 1:
            raise ValueError(f"{type(self).__name__}: {name} must be at least 0 and below 1, got {value}")
