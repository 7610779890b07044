"""Many small SAEs on the same low-dimensional rows, as one computation: what loss curves of single manifolds need.

A curve takes dozens of SAEs of a few latents each, and a step of one costs calls, not arithmetic. So all widths and
seeds of a curve are padded to the widest and trained together. Objectives are per row, in the data's own units:

    relu        ||x - x_hat||^2 + weight * sum_j f_j         f = max(pre, 0)
    jumprelu    ||x - x_hat||^2 + weight * sum_j 1[f_j > 0]  f = pre where pre > theta_j, straight-through for theta
    topk        ||x - x_hat||^2                              f = the k largest pre, through a ReLU
    batchtopk   ||x - x_hat||^2                              f = the k B largest positive pre of a batch of B rows

with unit directions (renormalised after each step), encoders that begin as their transposes, nothing added to the
reconstruction (an offset would serve a manifold as one more direction), and Adam with a linear fall of the rate over
the last 40 %. Latents that have not fired lately are put on rows, four times in the first half. When reading, batchtopk
selects within the batch it is given. SAEs of real rows are `saelab.train`'s business.
"""

# Shape letters: B rows, D width, M members, n latents of the widest.

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.core.components import near_miss
from saelab.data.source import generator_for
from saelab.sae.straight_through import heaviside, jump

ACTIVATIONS = ("relu", "jumprelu", "topk", "batchtopk")
REVIVALS = (0.1, 0.2, 0.35, 0.5)
BANDWIDTH, THRESHOLD = 0.1, 0.1
FALL = 0.4


@dataclass(frozen=True)
class Recipe:
    """How small SAEs are trained.

    Args:
        activation: relu, jumprelu, topk or batchtopk.
        weight: of the penalty of relu and jumprelu.
        k: active latents of topk and, on average, of batchtopk.
        steps: updates.
        batch: fresh rows of each.
        lr: of Adam.
    """

    activation: str = "relu"
    weight: float = 0.1
    k: int = 1
    steps: int = 4000
    batch: int = 512
    lr: float = 3e-3

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation '{self.activation}'{near_miss(self.activation, ACTIVATIONS)}")
        if self.weight < 0 or min(self.k, self.steps, self.batch) < 1 or self.lr <= 0:
            raise ValueError("need weight >= 0, lr > 0, and k, steps and batch of at least 1")


class Small:
    """M small SAEs.

    Args:
        d_in: D.
        sizes: latents of each member.
        seeds: of each member's start.
        recipe: how they are trained.
    """

    def __init__(self, d_in: int, sizes: Sequence[int], seeds: Sequence[int], recipe: Recipe):
        if not sizes or min(sizes) < 1 or len(sizes) != len(seeds):
            raise ValueError(f"every member needs at least 1 latent and a seed, got sizes {list(sizes)}")
        self.recipe, self.sizes, widest = recipe, list(sizes), max(sizes)
        own = torch.arange(widest) < torch.tensor(self.sizes)[:, None]
        self.own = own
        """[M, n] bool, which latents are there."""
        starts = [torch.randn(widest, d_in, generator=generator_for(seed, 17)) for seed in seeds]
        self.decoder = F.normalize(torch.stack(starts), dim=2)
        self.encoder = self.decoder.clone()
        self.bias = torch.zeros(len(sizes), widest)
        self.log_threshold = torch.full((len(sizes), widest), THRESHOLD).log()
        for part in self.parameters():
            part.requires_grad_(True)

    def parameters(self) -> list[Tensor]:
        """What is trained: encoder and decoder [M, n, D], bias [M, n], log thresholds [M, n]."""
        return [self.encoder, self.decoder, self.bias, self.log_threshold]

    def _pre(self, x: Tensor) -> Tensor:
        """Pre-activations [B, M, n]; below zero where a member has no latent."""
        flat = F.linear(x, self.encoder.flatten(0, 1), self.bias.flatten())
        return flat.view(len(x), *self.own.shape).masked_fill(~self.own, -1.0)

    def _select(self, pre: Tensor) -> Tensor:
        """Codes [B, M, n]."""
        if self.recipe.activation == "jumprelu":
            return jump(pre, self.log_threshold.exp(), BANDWIDTH)
        codes, (rows, members, widest) = pre.relu(), pre.shape
        if self.recipe.activation == "topk":
            return _largest(codes, min(self.recipe.k, widest))
        if self.recipe.activation == "batchtopk":
            flat = codes.transpose(0, 1).flatten(1)
            kept = _largest(flat, min(self.recipe.k * rows, flat.shape[1]))
            return kept.view(members, rows, widest).transpose(0, 1)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Reconstructions [B, M, D]."""
        return torch.bmm(codes.transpose(0, 1), self.decoder).transpose(0, 1)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean error [M], mean penalty [M] (without its weight) and codes of rows [B, D]."""
        pre = self._pre(x)
        codes = self._select(pre)
        error = (x[:, None] - self.decode(codes)).square().sum(2).mean(0)
        if self.recipe.activation == "relu":
            return error, codes.sum(2).mean(0), codes
        if self.recipe.activation == "jumprelu":
            return error, heaviside(pre, self.log_threshold.exp(), BANDWIDTH).sum(2).mean(0), codes
        return error, torch.zeros_like(error), codes

    def fit(self, rows: Callable[[int, torch.Generator], Tensor], seed: int = 0) -> None:
        """Train on rows(B, generator) -> [B, D]."""
        recipe, generator = self.recipe, generator_for(seed, 18)
        stepper = torch.optim.Adam(self.parameters(), lr=recipe.lr)
        fired = torch.zeros_like(self.own)
        revivals = {round(share * recipe.steps) for share in REVIVALS}
        for step in range(recipe.steps):
            stepper.param_groups[0]["lr"] = recipe.lr * min(1.0, (recipe.steps - step) / (FALL * recipe.steps))
            x = rows(recipe.batch, generator)
            error, penalty, codes = self.terms(x)
            stepper.zero_grad()
            (error + recipe.weight * penalty).sum().backward()
            stepper.step()
            with torch.no_grad():
                self.decoder.copy_(F.normalize(self.decoder, dim=2))
                fired |= (codes > 0).any(0)
                if step in revivals:
                    self._revive(~fired & self.own, x, stepper)
                    fired.zero_()

    def _revive(self, dead: Tensor, x: Tensor, stepper: torch.optim.Optimizer) -> None:
        """Put latents [M, n] that do not fire on rows, one after another."""
        count = int(dead.sum())
        if not count:
            return
        places = F.normalize(x[torch.arange(count) % len(x)], dim=1)
        self.decoder[dead], self.encoder[dead], self.bias[dead] = places, places, 0.0
        self.log_threshold[dead] = torch.tensor(THRESHOLD).log()
        for part in (self.encoder, self.decoder, self.bias, self.log_threshold):
            for value in stepper.state[part].values():
                if value.shape == part.shape:
                    value[dead] = 0


@torch.no_grad()
def measure(small: Small, x: Tensor) -> dict[str, Tensor]:
    """What each member does on rows [B, D]: total, error, penalty (without its weight), l0, alive; [M] each.

    `nearest` is the mean over a member's live latents of the cosine with the nearest other live one; NaN below two.
    """
    parts = [small.terms(piece) for piece in x.split(2048)]
    weights = torch.tensor([len(piece) / len(x) for piece in x.split(2048)])
    error, penalty = (torch.stack([part[i] for part in parts], 1) @ weights for i in (0, 1))
    active = torch.cat([part[2] > 0 for part in parts])
    alive = active.any(0)
    return {
        "total": error + small.recipe.weight * penalty,
        "error": error,
        "penalty": penalty,
        "l0": active.sum(2).float().mean(0),
        "alive": alive.sum(1),
        "nearest": torch.stack([_nearest(d[a]) for d, a in zip(small.decoder, alive, strict=True)]),
    }


def _nearest(directions: Tensor) -> Tensor:
    if len(directions) < 2:
        return torch.tensor(torch.nan)
    return (directions @ directions.T).fill_diagonal_(-2).amax(1).mean()


def _largest(codes: Tensor, k: int) -> Tensor:
    """Codes [..., n] with all but the k largest set to zero."""
    values, indices = codes.topk(k, dim=-1)
    return torch.zeros_like(codes).scatter(-1, indices, values)
