"""Adam (Kingma & Ba 2015, arXiv 1412.6980).

    m <- beta1 m + (1 - beta1) g            v <- beta2 v + (1 - beta2) g^2
    w <- w - lr * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)

There is no weight decay: directions have unit norm. Weights that have a row a latent are updated latent by latent
(kernels/update.py), with a gradient that is never held as a whole where kernels are compiled; the rest by torch's own.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from saelab.kernels import tier
from saelab.kernels.adam import MOMENTS, AdamSettings
from saelab.kernels.gradient import LatentGradients
from saelab.kernels.update import carried, catch_up, fresh, update
from saelab.sae.sae import SAE
from saelab.train.optimizer import DenseAdam, Optimizer, Stepper


class Adam(Optimizer):
    """Adam with a small epsilon, because the gradients of wide SAEs are small.

    Args:
        beta1: of the average of gradients, at least 0 and below 1.
        beta2: of the average of their squares, at least 0 and below 1.
        epsilon: is added to the root of the average square; 6.25e-10 in Gao et al. 2024's code.
        moments: how the averages of the two large weights are kept: float32, bfloat16 or float8. The narrow ones are
            rounded at random and save memory, and time where memory is what a step waits for.
        touched: whether only latents active in a batch are updated, the others when they are next active. Pays where
            a batch activates a small share of the latents.
    """

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 6.25e-10,
        moments: str = "float32",
        touched: bool = False,
    ):
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.moments = moments
        self.touched = touched

    def make(self, sae: SAE, lr: float) -> list[Stepper]:
        self._check(sae)
        units = sae.dictionary.latent_rows()
        rows = [parameter for parameter in sae.parameters() if parameter in units]
        rest: list[Tensor] = [parameter for parameter in sae.parameters() if parameter not in units]
        betas = (self.beta1, self.beta2)
        made: list[Stepper] = []
        if rows:
            step = AdamSettings(lr, *betas, self.epsilon, self.moments, self.touched, seed=sae.seed)
            stepper = LatentAdam(rows, lr, step, units)
            sae.dictionary.gradients = stepper.gradients
            made.append(stepper)
        if rest:
            made.append(DenseAdam(rest, lr, betas, self.epsilon))
        return made

    def _check(self, sae: SAE) -> None:
        self.check_share("beta1")
        self.check_share("beta2")
        if not 0 <= self.epsilon < float("inf"):
            raise ValueError(f"Adam: epsilon must not be negative, infinite or NaN, got {self.epsilon}")
        if self.moments not in MOMENTS:
            raise ValueError(f"Adam: moments must be one of {', '.join(MOMENTS)}, got '{self.moments}'")
        if (self.touched or self.moments != "float32") and sae.mesh.shards > 1:
            raise ValueError("Adam: touched and narrow moments are for latents of one process; use float32 here")
        if (self.touched or self.moments != "float32") and not sae.dictionary.latent_rows():
            name = type(sae.dictionary).__name__
            raise ValueError(f"Adam: touched and narrow moments need weights with a row a latent; {name} has none")


class LatentAdam(Stepper):
    """Adam on weights [L, D], a latent at a time.

    Args:
        rows: the weights.
        lr: learning rate.
        step: the other settings.
        units: whether a weight's rows have unit norm.
    """

    common = frozenset({"step", "rates", "clock_step", "clock_now", "clock_rates"})
    growing = frozenset({"rates"})

    def __init__(self, rows: Iterable[Tensor], lr: float, step: AdamSettings, units: dict[Tensor, bool]):
        self.settings, self.units, self.gradients = step, units, LatentGradients()
        super().__init__(rows, {"lr": lr})

    def _weights(self) -> list[Tensor]:
        return [weight for group in self.param_groups for weight in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.gradients.collect(weight for weight in self._weights() if self._by_latent(weight))

    def _by_latent(self, weight: Tensor) -> bool:
        """Whether a weight's gradient is best formed where it is used."""
        return self.settings.touched or tier.is_native(weight) or tier.is_gpu(weight)

    def fresh(self, weight: Tensor) -> dict[str, Any]:
        return fresh(weight, self.settings)

    def put_back(self, weight: Tensor, kept: Mapping[str, Tensor]) -> None:
        state = carried(dict(kept), weight)
        super().put_back(weight, state)
        if self.settings.touched:
            step, last = int(state["step"]), state["last"]
            if not 0 <= int(last.min()) <= int(last.max()) <= step or len(state["rates"]) not in (1, step + 1):
                raise ValueError(f"last and rates should be of steps up to {step}, the file holds others")

    def _step_for(self, weight: Tensor, lr: float, comes_in_terms: bool) -> AdamSettings:
        # A gradient that comes as a whole went through the dictionary's own hooks, which see to the norms.
        own = self.settings
        unit = self.units[weight] and comes_in_terms
        return AdamSettings(lr, own.beta1, own.beta2, own.epsilon, own.moments, own.touched, unit, own.seed)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                terms = self.gradients.terms(weight) or []
                if weight.grad is None and not terms:
                    continue
                step = self._step_for(weight, group["lr"], bool(terms))
                if not self.state[weight]:
                    self.state[weight] = self.fresh(weight)
                update(weight, self.state[weight], terms, weight.grad, step)
                if step.unit:
                    self.gradients.mark_unit(weight)
        self.gradients.stop()

    def finish(self) -> None:
        # Latents that were not visited lately come to where they belong.
        for group in self.param_groups:
            for weight in group["params"]:
                if self.state[weight]:
                    step = self._step_for(weight, group["lr"], True)
                    catch_up(weight, self.state[weight], step)
                    if step.unit and step.touched:
                        self.gradients.mark_unit(weight)
