"""Input scaling as visible buffers:  x' = (x - mean) / scale,   x = x' * scale + mean.

One mean and one scale for the whole data set, so that scaling can be folded into a dictionary's weights. Rows that
need a scaling of their own (layer normalisation) are not served here.
"""

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """x' = (x - mean) / scale; the identity until it is set.

    Attributes:
        mean: [D], subtracted from every row.
        scale: one number, the root mean square of a centred entry when set from data, so that E||x'||^2 = D.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, d_in: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))

    def set(self, mean: Tensor, scale: Tensor | float) -> None:
        """Use this mean [D] and scale; ValueError unless both are finite and the scale is positive."""
        scale = torch.as_tensor(scale)
        if not (torch.isfinite(mean).all() and torch.isfinite(scale) and scale > 0):
            raise ValueError(f"the data's mean must be finite and its scale positive, got scale {scale.item()}")
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def reset(self) -> None:
        """Back to the identity."""
        self.mean.zero_()
        self.scale.fill_(1)

    def apply_to(self, x: Tensor) -> Tensor:
        """Scaled rows [B, D], in the buffers' precision."""
        return (x.to(self.mean.dtype) - self.mean) / self.scale

    def undo(self, x: Tensor) -> Tensor:
        """Rows [B, D] in the data's own units."""
        return x * self.scale + self.mean
