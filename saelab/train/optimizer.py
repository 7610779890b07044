"""The base of optimizers: how the weights follow their gradients. The learning rate and its schedule are the trainer's.

A variant makes one or more steppers, torch's optimizers that also say what they keep of a weight, which share out the
parameters. What they keep is saved in checkpoints and put back as it was, in its own precision.
"""

# Shape letters: n latents.

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from saelab.core.components import Component
from saelab.sae.sae import SAE


class Optimizer(Component, ABC):
    """How weights follow their gradients."""

    home = "saelab.train.optimizers"

    @abstractmethod
    def make(self, sae: SAE, lr: float) -> list["Stepper"]:
        """The steppers of an SAE's parameters, each parameter in one of them; ValueError for a wrong setting."""

    def check_share(self, name: str) -> None:
        """ValueError unless the setting of that name is at least 0 and below 1."""
        value = getattr(self, name)
        if not 0 <= value < 1:
            raise ValueError(f"{type(self).__name__}: {name} must be at least 0 and below 1, got {value}")


class Stepper(torch.optim.Optimizer, ABC):
    """One of torch's optimizers that says what it keeps of a weight, so that a checkpoint can hold it."""

    common: ClassVar[frozenset[str]] = frozenset({"step"})
    """What is kept of a weight as a whole; all else has an entry, or a row, for each of its rows."""
    growing: ClassVar[frozenset[str]] = frozenset()
    """What gets longer from step to step."""

    # torch wraps these for its compiler, so that the first call imports it: two seconds of every start.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    @abstractmethod
    def fresh(self, weight: Tensor) -> dict[str, Any]:
        """What is kept of a weight that has not moved yet."""

    @torch.no_grad()
    def put_back(self, weight: Tensor, kept: Mapping[str, Tensor]) -> None:
        """Let `kept` be what is kept of a weight, where the weight is, bit for bit as it was saved.

        Raises:
            ValueError: that names the first tensor that is missing, too many or of another shape or precision.
        """
        state = self.fresh(weight)
        for name in sorted(state.keys() | kept.keys()):
            found, wanted = _sort(name, kept, self.growing), _sort(name, state, self.growing)
            if found != wanted:
                raise ValueError(f"{name} should be {wanted}, the file holds {found}")
        # A copy: what was read may still lie in the file, which others can change.
        self.state[weight] = {name: kept[name].to(value.device, copy=True) for name, value in state.items()}

    @torch.no_grad()
    def forget(self, weight: Tensor, latents: Tensor) -> None:
        """Zero what is kept of some rows [n] of a weight."""
        for name, value in self.state.get(weight, {}).items():
            if name not in self.common:
                value[latents] = 0

    @torch.no_grad()
    def finish(self) -> None:
        """Do what was put off; the weights are then as they are to be used."""


def _sort(name: str, tensors: Mapping[str, Tensor], growing: frozenset[str]) -> str:
    if name not in tensors:
        return "nothing"
    shape = "some" if name in growing and tensors[name].ndim == 1 else list(tensors[name].shape)
    return f"{shape} {str(tensors[name].dtype).removeprefix('torch.')}"


class DenseAdam(Stepper, torch.optim.Adam):
    """torch's own Adam, fused."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))

    def __init__(self, weights: list[Tensor], lr: float, betas: tuple[float, float], epsilon: float):
        super().__init__(weights, lr=lr, betas=betas, eps=epsilon, fused=True)

    def fresh(self, weight: Tensor) -> dict[str, Any]:
        moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), device=weight.device), **moments}
