"""Scaling laws, one a file.

A new file is found without its line here, which editors and type checkers read.
"""

from typing import TYPE_CHECKING

from saelab.core.components import import_variants
from saelab.scaling.laws.compute import ComputeLaw
from saelab.scaling.laws.joint import JointLaw
from saelab.scaling.laws.rate import RateLaw
from saelab.scaling.laws.subject import SubjectLaw
from saelab.scaling.laws.tokens import TokensLaw
from saelab.scaling.laws.width import WidthLaw

if not TYPE_CHECKING:  # so that a type checker still says of a misspelt name that there is none
    __getattr__ = import_variants("saelab.scaling.law", "Law")

__all__ = [
    "ComputeLaw",
    "JointLaw",
    "RateLaw",
    "SubjectLaw",
    "TokensLaw",
    "WidthLaw",
]
