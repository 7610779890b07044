"""The base of training algorithms: what a run does to an SAE beside following the gradient.

A component's own needs (unit directions, thresholds, firing counts) are its own hooks and belong to it; a training
algorithm can be added to any SAE and leaves no trace in what is saved but the weights. Its state is kept in buffers,
which are in every checkpoint, so that a resumed run goes on exactly.
"""

# Shape letters: B rows of this replica.

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor, nn

from saelab.core.components import Component
from saelab.core.mesh import Mesh
from saelab.sae.base import Forward
from saelab.sae.sae import SAE


class Training(Protocol):
    """What an algorithm may see of the trainer that it is part of, and ask it to do."""

    sae: SAE
    step_number: int
    """Steps that are done."""
    rows_seen: int
    """Rows of all replicas in them."""

    def forget(self, latents: Tensor) -> None:
        """Forget what the optimizers keep of some of this shard's latents."""


class Algorithm(Component, nn.Module, ABC):
    """Something done around the optimizer's step."""

    home = "saelab.train.algorithms"
    sharded: ClassVar[tuple[str, ...]] = ()
    """Buffers whose first axis is latents; a shard holds its own latents' part."""
    every: int
    """Rows of a round: what is done once in a while is done when a round is complete."""

    def setup(self, sae: SAE) -> None:
        """Check the settings and make buffers; ValueError for a setting, or an SAE, that does not fit."""

    def no_effect_warning(self, rows: int) -> str | None:
        """What to know about this algorithm in a run of so many rows, e.g. that it will have no effect."""
        return None

    def before_step(self, trainer: Training, step: Forward) -> None:
        """Called with gradients averaged over replicas, before they are clipped and the optimizer's step."""

    @abstractmethod
    def after_step(self, trainer: Training, step: Forward) -> None:
        """Called after the optimizer's step and the SAE's own hooks."""

    def round(self, trainer: Training, step: Forward) -> int | None:
        """Which round of `every` rows this step completes, from 1; None if it completes none."""
        now = trainer.rows_seen + len(step.x) * trainer.sae.mesh.replicas
        return now // self.every if now // self.every > trainer.rows_seen // self.every else None

    def check_every(self) -> None:
        """ValueError unless the setting `every` is a number of rows."""
        if self.every < 1:
            raise ValueError(f"{type(self).__name__}: every must be at least 1 row, got {self.every}")


def all_rows(mesh: Mesh, own: Tensor) -> Tensor:
    """The rows of all replicas in the batch's order, [replicas * B, ...], from this replica's rows [B, ...]."""
    if mesh.replicas == 1:
        return own
    spread = own.new_zeros(len(own), mesh.replicas, *own.shape[1:])
    spread[:, mesh.replica] = own
    return (mesh.mean(spread) * mesh.replicas).flatten(0, 1)
