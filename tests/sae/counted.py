"""A training batch as a trainer takes it: the pass, what it counts, the terms."""

from typing import Any

from torch import Tensor

from saelab.sae import SAE
from saelab.sae.base import Forward


def counted(sae: SAE, x: Tensor, **more: Any) -> tuple[dict[str, Tensor], Forward]:
    """The objective on rows whose firing counts; without an update."""
    step = sae.forward_train(x, **more)
    sae.observe(step)
    return sae.terms(step), step
