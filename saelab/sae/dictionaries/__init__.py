"""Dictionaries, one a file.

A new file is found without its line here, which editors and type checkers read.
"""

from typing import TYPE_CHECKING

from saelab.core.components import import_variants
from saelab.sae.dictionaries.cross_layer import CrossLayer
from saelab.sae.dictionaries.crosscoder import Crosscoder
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.dictionaries.expander import Expander

if not TYPE_CHECKING:  # so that a type checker still says of a misspelt name that there is none
    __getattr__ = import_variants("saelab.sae.base", "Dictionary")

__all__ = [
    "CrossLayer",
    "Crosscoder",
    "Dense",
    "Expander",
]
