"""Muon: every matrix moves by its averaged gradient with all singular values brought near 1.

    m <- momentum m + (1 - momentum) g            u = momentum m + (1 - momentum) g
    X = u / ||u||_F,  then `steps` times  X <- a X + (b A + c A^2) X,  A = X X^T        a, b, c below
    W <- W - lr * 0.2 sqrt(max(rows, columns)) * X

Jordan et al. 2024 (kellerjordan.github.io/posts/muon): Nesterov momentum and a quintic Newton-Schulz iteration, whose
coefficients bring singular values into about 0.7 to 1.2 quickly instead of to 1 slowly. The factor is that of Liu et
al. 2025 (arXiv 2502.16982): a whole update has a root mean square of about 0.2, as Adam's have, so that a learning rate
chosen for Adam serves here. No weight decay. Biases, and whatever else is no matrix, are left to Adam at the same rate.

The products A are taken over latents where latents are a matrix's rows, which makes them D x D: shards add up their
parts, and the update is that of the whole matrix. It is done in the weights' own precision; torch.optim.Muon, which
knows no shards, does it in bfloat16.
"""

# Shape letters: D width, L latents.

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelab.core.mesh import ALONE, Mesh
from saelab.sae.sae import SAE
from saelab.train.optimizer import DenseAdam, Optimizer, Stepper

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
LIKE_ADAM = 0.2


class Muon(Optimizer):
    """Orthogonalised updates for matrices, Adam for all else.

    Args:
        momentum: of the average of a matrix's gradients, at least 0 and below 1.
        steps: of the iteration that orthogonalises, at least 1.
        beta1: Adam's, of the average of gradients.
        beta2: Adam's, of the average of their squares.
        epsilon: Adam's, added to the root of the average square.
    """

    def __init__(
        self,
        momentum: float = 0.95,
        steps: int = 5,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 6.25e-10,
    ):
        self.momentum = momentum
        self.steps = steps
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon

    def make(self, sae: SAE, lr: float) -> list[Stepper]:
        for name in ("momentum", "beta1", "beta2"):
            self.check_share(name)
        if self.steps < 1:
            raise ValueError(f"Muon: steps must be at least 1, got {self.steps}")
        if not 0 <= self.epsilon < float("inf"):
            raise ValueError(f"Muon: epsilon must not be negative, infinite or NaN, got {self.epsilon}")
        sharded = sae.sharded_names()
        matrices: dict[bool, list[Tensor]] = {True: [], False: []}
        others: list[Tensor] = []
        for name, parameter in sae.named_parameters():
            if parameter.ndim == 2:
                matrices[name in sharded].append(parameter)
            else:
                others.append(parameter)
        groups = [{"params": params, "sharded": is_sharded} for is_sharded, params in matrices.items() if params]
        made: list[Stepper] = []
        if groups:
            defaults = {"lr": lr, "momentum": self.momentum, "steps": self.steps}
            made.append(OrthogonalSteps(groups, defaults, sae.mesh))
        if others:
            made.append(DenseAdam(others, lr, (self.beta1, self.beta2), self.epsilon))
        return made


class OrthogonalSteps(Stepper):
    """Muon's update of matrices; those of a group marked `sharded` are this shard's rows of larger ones."""

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any], mesh: Mesh):
        self.mesh = mesh
        super().__init__(groups, defaults)

    def fresh(self, weight: Tensor) -> dict[str, Any]:
        return {"mean": torch.zeros_like(weight)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update; there is no closure."""
        assert closure is None
        for group in self.param_groups:
            mesh = self.mesh if group["sharded"] else ALONE
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.state[parameter] = self.fresh(parameter)
                state = self.state[parameter]
                mean = state["mean"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(mean, group["momentum"]), group["steps"], mesh)
                size = LIKE_ADAM * math.sqrt(max(len(parameter) * mesh.shards, parameter.shape[1]))
                parameter.add_(update, alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor, steps: int, mesh: Mesh) -> Tensor:
    """A matrix [L, D] with its singular values brought near 1; zero stays zero.

    Over several shards it is this shard's rows of the whole matrix that go in and come out.
    """
    a, b, c = COEFFICIENTS
    norm = mesh.total(matrix.square().sum()).sqrt()
    found = matrix / norm.clamp_min(torch.finfo(matrix.dtype).tiny)
    over_rows = mesh.shards > 1 or len(matrix) > matrix.shape[1]
    for _ in range(steps):
        if over_rows:
            product = mesh.total(found.T @ found)
            found = a * found + found @ (b * product + c * product @ product)
        else:
            product = found @ found.T
            found = a * found + (b * product + c * product @ product) @ found
    return found
