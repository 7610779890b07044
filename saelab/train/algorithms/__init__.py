"""Training algorithms, one a file.

A new file is found without its line here, which editors and type checkers read.
"""

from typing import TYPE_CHECKING

from saelab.core.components import import_variants
from saelab.train.algorithms.bias_adaptation import BiasAdaptation
from saelab.train.algorithms.closed_form_decoder import ClosedFormDecoder
from saelab.train.algorithms.resampling import Resampling

if not TYPE_CHECKING:  # so that a type checker still says of a misspelt name that there is none
    __getattr__ = import_variants("saelab.train.algorithm", "Algorithm")

__all__ = [
    "BiasAdaptation",
    "ClosedFormDecoder",
    "Resampling",
]
