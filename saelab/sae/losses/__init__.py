"""Losses, one a file.

A new file is found without its line here, which editors and type checkers read.
"""

from typing import TYPE_CHECKING

from saelab.core.components import import_variants
from saelab.sae.losses.auxk import AuxK
from saelab.sae.losses.decomposability import Decomposability
from saelab.sae.losses.end_to_end import EndToEnd
from saelab.sae.losses.matryoshka import Matryoshka
from saelab.sae.losses.multi_topk import MultiTopK
from saelab.sae.losses.norm_match import NormMatch
from saelab.sae.losses.nuclear_norm import NuclearNorm
from saelab.sae.losses.orthogonality import Orthogonality

if not TYPE_CHECKING:  # so that a type checker still says of a misspelt name that there is none
    __getattr__ = import_variants("saelab.sae.base", "Loss")

__all__ = [
    "AuxK",
    "Decomposability",
    "EndToEnd",
    "Matryoshka",
    "MultiTopK",
    "NormMatch",
    "NuclearNorm",
    "Orthogonality",
]
