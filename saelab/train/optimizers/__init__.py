"""Optimizers, one a file.

A new file is found without its line here, which editors and type checkers read.
"""

from typing import TYPE_CHECKING

from saelab.core.components import import_variants
from saelab.train.optimizers.adam import Adam
from saelab.train.optimizers.muon import Muon
from saelab.train.optimizers.signum import Signum

if not TYPE_CHECKING:  # so that a type checker still says of a misspelt name that there is none
    __getattr__ = import_variants("saelab.train.optimizer", "Optimizer")

__all__ = [
    "Adam",
    "Muon",
    "Signum",
]
