"""Group bias adaptation (GBA): latents' biases follow how often latents fire instead of a gradient.

The latents are dealt to groups of equal size, one after another; the groups' target frequencies T_g fall in equal
ratios from `highest` to `lowest`. After every round of `every` rows, with p_j the share of these rows on which latent j
was active and r_j its largest pre-activation among them, or 0 if that is negative:

    p_j > T_g      ->  b_j <- max(b_j - rate * r_j,  floor * ||w_j|| N)
    p_j < epsilon  ->  b_j <- min(b_j + rate * mean of r over the group,  0)

Chen et al. 2025, "Taming polysemanticity in LLMs" (arXiv 2506.14002), as we read it: 10 groups from 0.1 to 0.001, rate
0.01, floor -1. There rows and encoder rows w_j have unit norm, so that a bias of -1 silences a latent on every row;
here N is the norm of scaled rows on average, sqrt(D) mostly, and the floor is counted in ||w_j|| N. A frequency comes
down to its target and is not raised to it: only latents that never fire get a larger bias.

It is meant for activations that keep whatever is positive, such as ReLU without a penalty. With one that chooses the
largest, being active counts as firing all the same, and all pre-activations of every batch have to be computed.
"""

# Shape letters: B rows, D width, L latents, G groups.

import math

import torch
from torch import Tensor
from torch.nn import Module

from saelab.sae.base import Composed, Forward
from saelab.sae.sae import SAE
from saelab.train.algorithm import Algorithm, Training


class BiasAdaptation(Algorithm):
    """Set latents' biases by how often latents fire, in groups with target frequencies; no gradient reaches them.

    Args:
        every: rows over which frequencies are counted, between two changes of the biases.
        groups: of latents, each with a target of its own; at most one a latent.
        highest: target frequency of the first group, above 0 and at most 1.
        lowest: target frequency of the last group, above 0 and at most `highest`.
        rate: how far a bias moves, in units of the largest pre-activation.
        epsilon: frequency below which a latent is dead and its bias rises.
        floor: least bias, in units of the norm of the latent's encoder row times that of a typical row; negative.
    """

    sharded = ("counts", "largest")
    counts: Tensor
    largest: Tensor
    rows: Tensor

    def __init__(
        self,
        every: int = 40_960,
        groups: int = 10,
        highest: float = 1e-1,
        lowest: float = 1e-3,
        rate: float = 0.01,
        epsilon: float = 1e-6,
        floor: float = -1.0,
    ):
        Module.__init__(self)
        self.every = every
        self.groups = groups
        self.highest = highest
        self.lowest = lowest
        self.rate = rate
        self.epsilon = epsilon
        self.floor = floor

    def setup(self, sae: SAE) -> None:
        self._check(sae)
        bias = sae.dictionary.latent_bias()
        sae.dictionary.encoder  # noqa: B018 - says now if there is none
        self.register_buffer("counts", torch.zeros(len(bias), dtype=torch.int64, device=bias.device))
        self.register_buffer("largest", torch.zeros_like(bias, requires_grad=False))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64, device=bias.device))
        latents = torch.arange(len(bias), device=bias.device) + sae.mesh.shard * len(bias)
        self.group_of = latents * self.groups // sae.n_latents
        targets = torch.logspace(math.log10(self.highest), math.log10(self.lowest), self.groups, dtype=torch.float64)
        self.targets = targets.to(bias.device)[self.group_of]

    def _check(self, sae: Composed) -> None:
        self.check_every()
        if not 1 <= self.groups <= sae.n_latents:
            allowed = f"from 1 to the number of latents, {sae.n_latents}"
            raise ValueError(f"BiasAdaptation: groups must be {allowed}; got {self.groups}")
        if not 0 < self.lowest <= self.highest <= 1:
            got = f"got lowest={self.lowest} and highest={self.highest}"
            raise ValueError(f"BiasAdaptation: need 0 < lowest <= highest <= 1, {got}")
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"BiasAdaptation: rate must be positive and finite, got {self.rate}")
        if not 0 <= self.epsilon < self.lowest:
            allowed = f"at least 0 and below lowest={self.lowest}"
            raise ValueError(f"BiasAdaptation: epsilon must be {allowed}, got {self.epsilon}")
        if not -float("inf") < self.floor < 0:
            raise ValueError(f"BiasAdaptation: floor must be negative and finite, got {self.floor}")

    def no_effect_warning(self, rows: int) -> str | None:
        if rows >= self.every:
            return None
        return f"BiasAdaptation keeps biases at 0: {rows:,} rows are less than one round of every = {self.every:,} rows"

    @torch.no_grad()
    def before_step(self, trainer: Training, step: Forward) -> None:
        mesh = step.sae.mesh
        step.sae.dictionary.latent_bias().grad = None
        # Over all replicas at once, so that every process holds the same and a checkpoint is whole.
        self.counts += (mesh.mean(step.codes.counts().double()) * mesh.replicas).round().to(torch.int64)
        if len(step.x):
            largest = step.pre.dense().amax(0).to(self.largest.dtype)
            torch.maximum(self.largest, -mesh.smallest(-largest), out=self.largest)
        self.rows += len(step.x) * mesh.replicas

    @torch.no_grad()
    def after_step(self, trainer: Training, step: Forward) -> None:
        if self.round(trainer, step) is None:
            return
        sae = step.sae
        bias = sae.dictionary.latent_bias()
        frequency = self.counts.double() / self.rows
        lowest = self.floor * sae.scale.norm * sae.dictionary.encoder.norm(dim=1)
        lower = torch.maximum(bias - self.rate * self.largest, lowest)
        higher = (bias + self.rate * self._group_means(sae)).clamp(max=0)
        dead = frequency < self.epsilon
        bias.copy_(torch.where(frequency > self.targets, lower, torch.where(dead, higher, bias)))
        for buffer in self.buffers():
            buffer.zero_()

    def _group_means(self, sae: Composed) -> Tensor:
        """The mean over each latent's group, over all shards, of the largest pre-activations; [L]."""
        member = torch.nn.functional.one_hot(self.group_of, self.groups).to(self.largest.dtype)
        sums, sizes = sae.mesh.total(self.largest @ member), sae.mesh.total(member.sum(0))
        return (sums / sizes)[self.group_of]
