"""JumpReLU:  f = pre * 1[pre > theta],   theta = exp(log_threshold), one a latent, trained.

Rajamanoharan et al. 2024 (arXiv 2407.14435). Thresholds learn through straight-through estimates with a rectangle of
width `bandwidth` (`saelab.sae.straight_through`); by the chain rule the gradient of log theta is that of theta times
theta, a factor that some code leaves out. Sparsity is one of three penalties, means over the rows of a batch:

    l0          weight * sum_j 1[pre_j > theta_j]              straight-through; reaches thresholds only
    tanh        weight * sum_j tanh(c f_j ||d_j||)             as we read Anthropic's update of January 2025
    target_l0   weight * (L0 / target - 1)^2                   L0: the batch mean, straight-through

    dead        dead_weight * sum over dead j of ReLU(theta_j - pre_j) ||d_j||       brings dead latents back

Published weights multiply an L0 that is added to the *sum* of squared errors of a row. The reconstruction term here is
a mean over D entries divided by the data's variance, so weight = lambda / (D * variance) where inputs are scaled alike.
Where the rows were scaled to a mean squared norm of 1 instead, weight is about lambda, and thresholds and bandwidths
are sqrt(D) times larger here. An active latent is worth its weight while it lowers the FVU by more than that.

Published are .001 for bandwidth and starting threshold. Adam moves log theta by about the learning rate a step, so from
there thresholds stay near zero in a short run: on synthetic rows 64 wide they reached .002 in 2,000 steps at 1e-3 while
L0 rose to 370 of 512 latents. The defaults here, .1 for both, brought it down.

With latents dealt to shards L0 is the sum over shards. With rows dealt to replicas `target_l0` uses the mean over all
rows; its gradient is right once gradients are averaged over replicas.
"""

# Shape letters: B rows, L latents.

import math

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from saelab.core.codes import Codes
from saelab.core.components import near_miss
from saelab.sae.base import Activation, Forward, PlainActivation, PreActivations, Sizes
from saelab.sae.straight_through import heaviside, jump

PENALTIES = ("l0", "tanh", "target_l0")


class JumpReLU(Activation):
    """Keep pre-activations above a learned threshold, unshrunk; the number active varies from row to row.

    `JumpReLU(threshold=t)` with weights from elsewhere reads rows as f = pre * 1[pre > t] does.

    Args:
        penalty: "l0", "tanh" or "target_l0": what makes codes sparse.
        weight: of the penalty, at least 0.
        target: active latents per row that "target_l0" aims at.
        threshold: where every latent's threshold starts, at least 0; 0 reads as a ReLU does and stays 0.
        bandwidth: width of the rectangle around a threshold whose rows move it, in the unit of pre-activations.
        tanh_scale: c of "tanh"; the penalty counts a code of size 3 / c as about one.
        dead_weight: of the term that brings dead latents back; 0 leaves it out.
        dead_after: rows (tokens) without firing after which a latent counts as dead; by default an eighth of the run's,
            at most 10 M.
    """

    sharded = ("log_threshold",)

    def __init__(
        self,
        penalty: str = "l0",
        weight: float = 1e-3,
        target: float = 50.0,
        threshold: float = 0.1,
        bandwidth: float = 0.1,
        tanh_scale: float = 4.0,
        dead_weight: float = 0.0,
        dead_after: int | None = None,
    ):
        Module.__init__(self)
        self.penalty = penalty
        self.weight = weight
        self.target = target
        self.threshold = threshold
        self.bandwidth = bandwidth
        self.tanh_scale = tanh_scale
        self.dead_weight = dead_weight
        self.dead_after = dead_after

    def setup(self, sizes: Sizes) -> None:
        if self.penalty not in PENALTIES:
            raise ValueError(f"JumpReLU: unknown penalty '{self.penalty}'{near_miss(self.penalty, PENALTIES)}")
        for name in ("weight", "threshold", "dead_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise ValueError(f"JumpReLU: {name} must not be negative, infinite or NaN, got {value}")
        for name in ("target", "bandwidth", "tanh_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"JumpReLU: {name} must be positive and finite, got {getattr(self, name)}")
        if self.dead_after is not None and self.dead_after < 1:
            raise ValueError(f"JumpReLU: dead_after must be at least 1 row, got {self.dead_after}")
        start = math.log(self.threshold) if self.threshold else -math.inf
        self.log_threshold = Parameter(torch.full((sizes.local_latents,), start))

    @property
    def theta(self) -> Tensor:
        """Each latent's threshold as it is trained, [L]; up to the rounding of a logarithm."""
        return self.log_threshold.exp()

    def forward(self, pre: PreActivations) -> Codes:
        return pre.above(self.theta)

    def forward_train(self, pre: PreActivations) -> Codes:
        return Codes.full(jump(pre.dense(), self.theta, self.bandwidth))

    def penalties(self, step: Forward) -> dict[str, Tensor]:
        penalty = {"l0": self._l0, "tanh": self._tanh, "target_l0": self._target_l0}[self.penalty]
        terms = {"sparsity": self.weight * penalty(step)}
        return terms | ({"dead": self.dead_weight * self._dead(step)} if self.dead_weight else {})

    def _l0(self, step: Forward) -> Tensor:
        active = heaviside(step.pre.dense(), self.theta, self.bandwidth).sum(1)
        return step.sae.mesh.sum_over_shards(active).mean()

    def _tanh(self, step: Forward) -> Tensor:
        sizes = step.codes.dense() * step.sae.dictionary.norms()
        return step.sae.mesh.sum_over_shards((self.tanh_scale * sizes).tanh().sum(1)).mean()

    def _target_l0(self, step: Forward) -> Tensor:
        own = self._l0(step)
        # The value of all replicas' rows with the gradient of this replica's.
        l0 = step.sae.mesh.mean(own.detach()) + (own - own.detach())
        return (l0 / self.target - 1).square()

    def _dead(self, step: Forward) -> Tensor:
        dead = step.sae.firing.dead(self.dead_after).nonzero().squeeze(1)
        short = (self.theta[dead] - step.pre.dense()[:, dead]).relu() * step.sae.dictionary.norms()[dead]
        return step.sae.mesh.sum_over_shards(short.sum(1)).mean()

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        self.log_threshold.add_(factor.log())

    def thresholds(self) -> Tensor:
        return self.log_threshold.detach().double().exp()

    def plain(self) -> PlainActivation:
        return PlainActivation("jumprelu", parts={"threshold": self.theta.detach()})
