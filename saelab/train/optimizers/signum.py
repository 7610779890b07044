"""Signum: the sign of the averaged gradient (Bernstein et al. 2018, signSGD, arXiv 1802.04434).

    m <- momentum m + (1 - momentum) g            w <- w - lr * sign(m)

Every entry whose average is not exactly 0 moves by the learning rate, so gradients count by their signs only, and one
number is kept per weight where Adam keeps two. A latent that no row activates any more goes on moving for as long as
its average stays a number above 0.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelab.sae.sae import SAE
from saelab.train.optimizer import Optimizer, Stepper


class Signum(Optimizer):
    """Steps of equal size along the sign of the averaged gradient.

    Args:
        momentum: of the average of gradients, at least 0 and below 1; 0 goes by the latest gradient alone.
    """

    def __init__(self, momentum: float = 0.9):
        self.momentum = momentum

    def make(self, sae: SAE, lr: float) -> list[Stepper]:
        self.check_share("momentum")
        return [SignSteps(sae.parameters(), {"lr": lr, "momentum": self.momentum})]


class SignSteps(Stepper):
    """Moves every entry by `lr` against the sign of its averaged gradient; parameters without a gradient stay."""

    def fresh(self, weight: Tensor) -> dict[str, Any]:
        return {"mean": torch.zeros_like(weight)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update; there is no closure."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.state[parameter] = self.fresh(parameter)
                state = self.state[parameter]
                state["mean"].lerp_(parameter.grad, 1 - group["momentum"])
                parameter.add_(state["mean"].sign(), alpha=-group["lr"])
