"""Settings of one step of Adam on a weight whose rows are latents, for every version of the kernels."""

import math
from dataclasses import dataclass

MOMENTS = ("float32", "bfloat16", "float8")


@dataclass(frozen=True)
class AdamSettings:
    """What a step needs beside gradient and state; the formula is in update.py."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    moments: str = "float32"
    """How the averages are kept, one of MOMENTS."""
    touched: bool = False
    """Whether only latents with an entry in the batch are moved."""
    unit: bool = False
    """Whether rows have unit norm, before and after."""
    seed: int = 0
    """Of the rounding of narrow averages; one of its own for every weight."""

    def rate(self, step: int) -> float:
        """lr / (1 - beta1^t)."""
        return self.lr / (1 - self.beta1**step)

    def correction(self, step: int) -> float:
        """1 / sqrt(1 - beta2^t)."""
        return 1 / math.sqrt(1 - self.beta2**step)
