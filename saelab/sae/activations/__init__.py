"""Activations, one a file.

A new file is found without its line here, which editors and type checkers read.
"""

from typing import TYPE_CHECKING

from saelab.core.components import import_variants
from saelab.sae.activations.abs_topk import AbsTopK
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.bi_jump_relu import BiJumpReLU
from saelab.sae.activations.binary import Binary
from saelab.sae.activations.block_topk import BlockTopK
from saelab.sae.activations.gated import Gated
from saelab.sae.activations.gradient_topk import GradientTopK
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.matching_pursuit import MatchingPursuit
from saelab.sae.activations.prolu import ProLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.top_afa import TopAFA
from saelab.sae.activations.topk import TopK

if not TYPE_CHECKING:  # so that a type checker still says of a misspelt name that there is none
    __getattr__ = import_variants("saelab.sae.base", "Activation")

__all__ = [
    "AbsTopK",
    "BatchTopK",
    "BiJumpReLU",
    "Binary",
    "BlockTopK",
    "Gated",
    "GradientTopK",
    "JumpReLU",
    "MatchingPursuit",
    "ProLU",
    "ReLU",
    "TopAFA",
    "TopK",
]
