"""Scalings of rows, one a file.

A new file is found without its line here, which editors and type checkers read.
"""

from typing import TYPE_CHECKING

from saelab.core.components import import_variants
from saelab.sae.scales.constant_norm import ConstantNorm
from saelab.sae.scales.data_scale import DataScale
from saelab.sae.scales.identity import Identity
from saelab.sae.scales.layer_norm import LayerNorm
from saelab.sae.scales.unit_norm import UnitNorm

if not TYPE_CHECKING:  # so that a type checker still says of a misspelt name that there is none
    __getattr__ = import_variants("saelab.sae.scale", "Scale")

__all__ = ["ConstantNorm", "DataScale", "Identity", "LayerNorm", "UnitNorm"]
