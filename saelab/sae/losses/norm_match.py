"""NormMatch, the AFA loss:  codes should have the norm that the row implies.

    consistent:  loss = weight * mean over rows of (||f~||_2 - ||x - b_dec||_2)^2 / variance,      f~_i = f_i ||d_i||
    reference:   loss = weight * mean over rows of (||f||_2  - ||x||_2        )^2 / variance

Lee et al. 2025 (arXiv 2503.24277): if directions were orthonormal and the reconstruction exact, the norms would be
equal. The authors' code is `reference`; `consistent` measures both norms as Top-AFA's selection does. `variance` is the
unit of the objective (1 for scaled rows), which the authors' layer-normalised rows share: their weights are 1/128 to
1/16, next to a mean squared error per entry. x is what is reconstructed; its norm passes no gradient to b_dec, which
could otherwise move the target towards the codes.
"""

# Shape letters: B rows, D width, K entries per row.

from torch import Tensor
from torch.nn import Module

from saelab.sae.base import Forward, Loss, Sizes

MODES = ("consistent", "reference")
TINY = 1e-24
"""Keeps the gradient of a norm finite where nothing is active."""


class NormMatch(Loss):
    """Bring the norm of the codes to that of the row.

    Args:
        weight: of the term in the objective; takes the place of k for `TopAFA`.
        mode: 'consistent' (codes weighted by the norms of their directions, rows without the decoder's bias) or
            'reference' (plain codes, whole rows).
    """

    def __init__(self, weight: float = 1 / 32, mode: str = "consistent"):
        Module.__init__(self)
        self.weight = weight
        self.mode = mode

    def setup(self, sizes: Sizes) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"NormMatch: weight must not be negative, infinite or NaN, got {self.weight}")
        if self.mode not in MODES:
            raise ValueError(f"NormMatch: mode must be {' or '.join(map(repr, MODES))}, got {self.mode!r}")

    def forward(self, step: Forward) -> Tensor:
        f, target = step.codes.values, step.target
        if self.mode == "consistent":
            f = f * step.sae.dictionary.directions().norm(dim=1)[step.codes.indices]
            target = target - past_latents(step)
        square = step.sae.mesh.sum_over_shards(f.square().sum(1))
        found, wanted = square.clamp_min(TINY).sqrt(), target.norm(dim=1)
        return self.weight * (found - wanted).square().mean() / step.sae.variance


def past_latents(step: Forward) -> Tensor:
    """What is decoded when no latent is active, [D] or [B, D]; no gradient."""
    bias, skipped = step.sae.dictionary.bias().detach(), step.sae.dictionary.skip(step.x)
    return bias if skipped is None else bias + skipped.detach()
