"""DataScale: one mean and one scale for all rows, as visible buffers.

    x' = (x - mean) / scale          x = x' * scale + mean

mean is that of the data, scale the root mean square of a centred entry, so that E||x'||^2 = D; sites that stand side by
side have one scale each. Gemma Scope and dictionary_learning divide by the same kind of scale and subtract no mean.
With one scale, errors of scaled rows are those in the data's units over scale^2, so that FVU is the same in both. It
can be folded into a dictionary's weights.
"""

# Shape letters: D width, S sites.

from typing import Self

import torch
from torch import Tensor

from saelab.sae.scale import Fixed, Scale

FURTHEST_SCALE, FURTHEST_MEAN = 1.5, 0.5
"""By which factor scales of the same rows may differ, and by how much of a scale the entries of means (root mean
square)."""


class DataScale(Scale):
    """One mean and scale for the data set; the default.

    Attributes:
        mean: [D], subtracted from every row.
        scale: the root mean square of a centred entry when set from data; one number [], or one a site [S].
    """

    mean: Tensor
    scale: Tensor

    def setup(self, d_in: int, sites: int = 1) -> Self:
        super().setup(d_in, sites)
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()) if sites == 1 else torch.ones(sites))
        return self

    @property
    def size(self) -> Tensor:
        return self.scale if self.sites == 1 else self.scale.repeat_interleave(self.d_in // self.sites)

    def fit(self, sample: Tensor, known: tuple[Tensor, Tensor] | None = None) -> None:
        mean = known[0] if known else sample.mean(0)
        if known and self.sites == 1:
            self.set(mean, known[1])
            return
        square = (sample - mean).square().unflatten(1, (self.sites, -1)).mean((0, 2)).sqrt()
        self.set(mean, square[0] if self.sites == 1 else square)

    def set(self, mean: Tensor, scale: Tensor | float) -> None:
        """Use this mean [D] and scale; ValueError unless both are finite and the scale is positive."""
        scale = torch.as_tensor(scale)
        if not (torch.isfinite(mean).all() and torch.isfinite(scale).all() and (scale > 0).all()):
            smallest = scale.min().item()
            raise ValueError(f"the data's mean must be finite and its scale positive, got scale {smallest}")
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def reset(self) -> None:
        self.mean.zero_()
        self.scale.fill_(1)

    def apply_to(self, x: Tensor, numbers: Tensor | None = None) -> Tensor:
        return (x.to(self.mean.dtype) - self.mean) / self.size

    def undo(self, x: Tensor, numbers: Tensor | None = None) -> Tensor:
        return x * self.size + self.mean

    @property
    def is_identity(self) -> bool:
        return not self.mean.any() and bool((self.scale == 1).all())

    def fixed(self) -> Fixed:
        return Fixed(self.mean, self.size)

    def same_as(self, other: Scale) -> bool:
        if not (isinstance(other, DataScale) and super().same_as(other)):
            return False
        return torch.equal(self.mean, other.mean) and torch.equal(self.scale, other.scale)

    def difference(self, other: Scale) -> str | None:
        why = super().difference(other)
        if why or self.is_identity or other.is_identity or not isinstance(other, DataScale):
            return why
        a, b = self.size.double().cpu(), other.size.double().cpu()
        apart = ((self.mean.double().cpu() - other.mean.double().cpu()) / torch.minimum(a, b)).square().mean().sqrt()
        if (a / b).max() <= FURTHEST_SCALE and (b / a).max() <= FURTHEST_SCALE and apart <= FURTHEST_MEAN:
            return None
        numbers = f"scale {a.max():.4g} and {b.max():.4g}, means {apart:.2g} scales apart"
        return f"were trained on rows of different normalisation: {numbers}"
