"""The contract of the three words an SAE is made of: dictionary, activation, losses. All of it is on this page.

A component's constructor is its configuration; the sizes come later, through `setup`. A dictionary owns the weights:
others ask it for pre-activations, reconstructions and directions. An activation turns pre-activations into codes. A
loss is one more term of the training objective.
"""

# Shape letters: B rows, D input width, L latents, K kept per row.

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saelab.core.codes import Codes
from saelab.core.components import Component
from saelab.core.mesh import ALONE, Mesh
from saelab.kernels.select import topk_linear

if TYPE_CHECKING:
    from saelab.sae.sae import SAE


class PreActivations:
    """Pre-activations of B rows, (x - centre) @ weight.T + bias, computed only as far as they are asked for."""

    def __init__(self, x: Tensor, centre: Tensor, weight: Tensor, bias: Tensor, mesh: Mesh = ALONE):
        self.x, self.centre, self.weight, self.bias = x, centre, weight, bias
        self.mesh = mesh

    @property
    def n_latents(self) -> int:
        """How many there are on this shard."""
        return len(self.weight)

    def dense(self) -> Tensor:
        """All of them, [B, L]."""
        return F.linear(self.x - self.centre, self.weight, self.bias)

    def topk(self, k: int) -> Codes:
        """The k largest of each row over all shards, signed, without a [B, L] tensor; others are zero."""
        width = min(k, self.n_latents)
        values, entries = topk_linear(self.x, self.centre, self.weight, self.bias, width)
        if self.mesh.shards > 1:
            values = values.where(self.mesh.largest(values, k), 0)
        return Codes(values, entries, self.n_latents)

    def of(self, latents: Tensor) -> Tensor:
        """Those of some latents only: [B, n] for latent numbers [n]."""
        return F.linear(self.x - self.centre, self.weight[latents], self.bias[latents])


class Dictionary(Component, nn.Module, ABC):
    """The two linear maps. Nothing outside a dictionary touches its weights."""

    home = "saelab.sae.dictionaries"

    sharded: ClassVar[tuple[str, ...]] = ()
    """Parameters and buffers whose first axis is latents; a shard holds its own latents' part."""

    @abstractmethod
    def setup(self, d_in: int, n_latents: int, generator: torch.Generator, mesh: Mesh = ALONE) -> None:
        """Make the parameters, this shard's part of the latents."""

    @abstractmethod
    def initialise(self, sample: Tensor, activation: "Activation", generator: torch.Generator) -> None:
        """Fit the starting point to a sample of scaled rows [n, D]."""

    @abstractmethod
    def pre(self, x: Tensor) -> PreActivations:
        """Pre-activations of scaled rows [B, D]."""

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """Reconstruction [B, D] from codes."""

    @abstractmethod
    def bias(self) -> Tensor:
        """What is decoded when no latent is active; [D]."""

    @abstractmethod
    def directions(self) -> Tensor:
        """Each latent's decoder direction; [L, D]."""

    @abstractmethod
    def fold(self, mean: Tensor, scale: Tensor) -> None:
        """Absorb an input scaling x' = (x - mean) / scale, so that rows go in and come out unscaled."""

    @abstractmethod
    def unit_directions(self) -> None:
        """Bring directions to unit norm with codes rescaled, so that a set of active latents decodes to the same."""

    def before_step(self) -> None:
        """Called between the backward pass and the optimizer's step."""

    def after_step(self) -> None:
        """Called after the optimizer's step."""


class Activation(Component, nn.Module, ABC):
    """Pre-activations to sparse codes. May own a sparsity penalty and buffers."""

    home = "saelab.sae.activations"
    sharded: ClassVar[tuple[str, ...]] = ()
    """Parameters and buffers whose first axis is latents."""

    def setup(self, d_in: int, n_latents: int) -> None:
        """Check the sizes and make parameters and buffers; ValueError for a setting that does not fit."""

    @abstractmethod
    def forward(self, pre: PreActivations) -> Codes:
        """The codes."""

    def penalty(self, step: "Forward") -> Tensor | None:
        """The activation's own sparsity penalty, if it has one."""
        return None

    def rescale(self, factor: Tensor) -> None:
        """Adapt thresholds to pre-activations that became `factor` times larger (when a scaling is folded)."""

    def after_step(self) -> None:
        """Called after the optimizer's step."""


@dataclass(frozen=True)
class Forward:
    """One training batch on its way through an SAE, as losses see it. All rows are scaled."""

    sae: "SAE"
    x: Tensor
    """Input rows [B, D]."""
    target: Tensor
    """Rows to reconstruct [B, D]; the input itself for an SAE."""
    pre: PreActivations
    codes: Codes
    x_hat: Tensor
    """Reconstruction [B, D]."""


class Loss(Component, nn.Module, ABC):
    """One more term of the training objective."""

    home = "saelab.sae.losses"

    def setup(self, d_in: int, n_latents: int) -> None:
        """Check the sizes; ValueError for a setting that does not fit."""

    def note(self, rows: int) -> str | None:
        """What to know about this loss in a run of so many rows, e.g. that it will have no effect."""
        return None

    @abstractmethod
    def forward(self, step: Forward) -> Tensor:
        """The weighted term, a scalar; exactly zero with a finite gradient when it does not apply."""
