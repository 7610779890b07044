"""BatchTopK:  in training, keep the k * B largest positive pre-activations of the whole batch of B rows.

    training:  f = pre * 1[pre among the round(k B) largest of all B * L] * 1[pre > 0]
    reading:   f = pre * 1[pre > threshold]             threshold: round(k n) pre-activations of n rows lie above it

Bussmann et al. 2024, "BatchTopK sparse autoencoders" (arXiv 2412.06410), which adapts the number of latents to the row;
the threshold makes a row's codes independent of what else is read. What is saved is the exact quantile of the
pre-activations of `calibration_rows` rows under the weights that are saved (`calibrate`), so that the mean L0 on those
rows is k. Between two calibrations it is the exponential average of each step's smallest kept value, corrected for its
start: with momentum m, step t moves it by (1 - m) / (1 - m^t) of the difference, so that the first step sets it and
early steps count alike. That lags behind weights that change. It is held once a latent because folding may scale
latents differently. Before the first step there is none, and each row keeps its own round(k) largest.
"""

# Shape letters: B rows of this replica, L latents of this shard, K candidates per row.

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from saelab.core.codes import Codes
from saelab.core.mesh import Mesh
from saelab.sae.base import Activation, PlainActivation, PreActivations, Sizes
from saelab.sae.quantile import threshold_over

SPARE = 4
"""Candidates looked at per row, as a multiple of k, before it is known how many a row keeps."""


class BatchTopK(Activation):
    """Keep k latents per row on average: the largest pre-activations of the batch in training, a threshold after it.

    Args:
        k: latents kept per row on average, above 0 and at most the number of latents; need not be whole.
        momentum: of the average that the threshold is between two calibrations, at least 0 and below 1.
    """

    sharded = ("threshold",)
    calibration_rows = 16_384
    threshold: Tensor
    updates: Tensor

    def __init__(self, k: float = 32, momentum: float = 0.999):
        Module.__init__(self)
        self.k = k
        self.momentum = momentum

    def setup(self, sizes: Sizes) -> None:
        if not 0 < self.k <= sizes.n_latents:
            raise ValueError(
                f"BatchTopK: k must be above 0 and at most the number of latents, {sizes.n_latents}; got k={self.k}"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"BatchTopK: momentum must be at least 0 and below 1, got {self.momentum}")
        self.register_buffer("threshold", torch.zeros(sizes.local_latents))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # steps that the threshold is made of

    def forward(self, pre: PreActivations) -> Codes:
        if self.updates:
            return pre.above(self.threshold.relu())
        codes = pre.topk(max(1, round(self.k)))
        return codes.with_values(codes.values.relu())

    def forward_train(self, pre: PreActivations) -> Codes:
        count = round(self.k * len(pre.x) * pre.mesh.replicas)
        width = min(pre.n_latents, SPARE * math.ceil(self.k))
        while True:
            values, entries = pre.local_topk(width, absolute=False)  # largest first
            chosen = pre.mesh.largest_of_batch(values, count) & (values > 0)
            # A row whose every candidate was chosen may have lost some that were not candidates.
            if not pre.mesh.any(width < pre.n_latents and bool(chosen[:, -1].any())):
                break
            width = min(pre.n_latents, 2 * width)
        widest = max(1, int(chosen.sum(1).max())) if len(chosen) else 1
        kept = values.where(chosen, 0)[:, :widest]  # the chosen of a row are its first
        return Codes(kept, entries.indices[:, :widest].contiguous(), pre.n_latents)

    @torch.no_grad()
    def observe(self, codes: Codes, mesh: Mesh) -> None:
        smallest = smallest_of(codes.values, codes.active, mesh)
        found = smallest.isfinite()  # not where nothing was kept
        self.updates += found
        decay = math.log(self.momentum) if self.momentum else -math.inf
        rate = (1 - self.momentum) / -torch.expm1(self.updates * decay)
        moved = self.threshold + rate * (smallest - self.threshold)
        self.threshold.copy_(moved.where(found, self.threshold))

    @torch.no_grad()
    def calibrate(self, parts: Iterable[PreActivations], rows: int, mesh: Mesh) -> None:
        threshold, _ = threshold_over((part.dense() for part in parts), max(1, round(self.k * rows)), mesh)
        self.threshold.fill_(threshold)
        self.updates.clamp_(min=1)

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        self.threshold.mul_(factor)

    def thresholds(self) -> Tensor | None:
        return self.threshold.double().relu() if self.updates else None

    def plain(self) -> PlainActivation:
        if not self.updates:  # without a threshold it reads as TopK does
            return PlainActivation("topk", max(1, round(self.k)))
        return PlainActivation("batchtopk", self.k, {"threshold": self.threshold.relu()})


def smallest_of(values: Tensor, chosen: Tensor, mesh: Mesh) -> Tensor:
    """The smallest chosen entry of all processes, a scalar; infinity where none is chosen."""
    own = F.pad(values.masked_fill(~chosen, torch.inf).flatten(), (0, 1), value=torch.inf).amin()
    return mesh.smallest(mesh.gather_latents(own[None]).amin())
