"""Exponential moving average of weights, bias-corrected:  a_t = m a_{t-1} + (1 - m) w_t,  read-out a_t / (1 - m^t)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter


class WeightAverage:
    """Average of some parameters over the steps.

    Args:
        parameters: what to average.
        momentum: m; 0.999 in Gao et al. 2024's code.
    """

    def __init__(self, parameters: Iterable[Parameter], momentum: float):
        if not 0 <= momentum < 1:
            raise ValueError(f"the average's momentum must be from 0 to below 1, got {momentum}")
        self.parameters = list(parameters)
        self.momentum = momentum
        self.steps = 0
        self.sums = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Count the parameters as they are now."""
        self.steps += 1
        for total, parameter in zip(self.sums, self.parameters, strict=True):
            total.lerp_(parameter, 1 - self.momentum)

    def values(self) -> list[Tensor]:
        """The averages; the parameters themselves before the first update."""
        if not self.steps:
            return [parameter.detach().clone() for parameter in self.parameters]
        return [total / (1 - self.momentum**self.steps) for total in self.sums]

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The parameters hold their averages inside the block."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        try:
            self._assign(self.values())
            yield
        finally:
            self._assign(kept)

    @torch.no_grad()
    def _assign(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
