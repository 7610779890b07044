"""Input scaling as visible buffers:  x' = (x - mean) / scale,   x = x' * scale + mean.

One mean and one scale for the whole data set, so that scaling can be folded into a dictionary's weights; rows that
are put together from several sites have one scale a site. Rows that need a scaling of their own (layer normalisation)
are not served here.
"""

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """x' = (x - mean) / scale; the identity until it is set.

    Attributes:
        mean: [D], subtracted from every row.
        scale: the root mean square of a centred entry when set from data, so that E||x'||^2 = D; one number [], or
            one a site [S].
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, d_in: int, sites: int = 1):
        super().__init__()
        if d_in % sites:
            raise ValueError(f"rows {d_in} wide cannot be cut into {sites} sites of equal width")
        self.sites = sites
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()) if sites == 1 else torch.ones(sites))

    @property
    def size(self) -> Tensor:
        """The scale of every entry: [] or [D]."""
        return self.scale if self.sites == 1 else self.scale.repeat_interleave(len(self.mean) // self.sites)

    def fit(self, sample: Tensor, known: tuple[Tensor, Tensor] | None = None) -> None:
        """Set from rows [n, D], or from a data set's mean [D] and scale where those are known."""
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
        """Back to the identity."""
        self.mean.zero_()
        self.scale.fill_(1)

    def apply_to(self, x: Tensor) -> Tensor:
        """Scaled rows [B, D], in the buffers' precision."""
        return (x.to(self.mean.dtype) - self.mean) / self.size

    def undo(self, x: Tensor) -> Tensor:
        """Rows [B, D] in the data's own units."""
        return x * self.size + self.mean
