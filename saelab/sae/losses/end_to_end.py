"""End to end: the model should go on from the reconstruction as it would have from the rows.

    loss = weight * downstream(x_hat)

`downstream` is what the training data brings: the language model's loss when its rows at the site are replaced by the
reconstructions, in the data's own units. After Braun et al. 2024 (arXiv 2405.12241), who train on the downstream loss
and a sparsity penalty; here it is added to the objective's reconstruction, which stays. Whether it is the cross-entropy
or the divergence from the model's own prediction is the data's choice, and so is its unit.
"""

# Shape letters: B rows, D output width.

from torch import Tensor
from torch.nn import Module

from saelab.sae.base import Forward, Loss, Sizes


class EndToEnd(Loss):
    """The model's own loss when it runs on the reconstructions; needs a live model.

    Args:
        weight: of the term in the objective.
    """

    def __init__(self, weight: float = 1.0):
        Module.__init__(self)
        self.weight = weight

    def setup(self, sizes: Sizes) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"EndToEnd: weight must not be negative, infinite or NaN, got {self.weight}")

    def forward(self, step: Forward) -> Tensor:
        if step.downstream is None:
            raise ValueError("EndToEnd needs a live model: these rows come without one to run on reconstructions")
        return self.weight * step.downstream(step.undone(step.x_hat))
