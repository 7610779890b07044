"""Identity: rows are read as they are.

    x' = x

For rows that are scaled already, and for SAEs of libraries that do not scale (Bloom's of GPT-2, OpenAI's v1 and v4).
Errors are those in the data's units; components whose settings are in units of a scaled row (thresholds, l1) meet the
data's own sizes.
"""

from torch import Tensor

from saelab.sae.scale import Fixed, Scale


class Identity(Scale):
    """No scaling."""

    def apply_to(self, x: Tensor, numbers: Tensor | None = None) -> Tensor:
        return x.to(self.unit.dtype)

    def undo(self, x: Tensor, numbers: Tensor | None = None) -> Tensor:
        return x

    @property
    def is_identity(self) -> bool:
        return True

    def fixed(self) -> Fixed:
        return Fixed(self.unit.new_zeros(self.d_in), self.unit)
