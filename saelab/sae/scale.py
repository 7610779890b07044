"""How rows are scaled before they are encoded, and back: what the variants in `saelab.sae.scales` have in common.

    x' = (x - centre) / divisor              x_hat = x_hat' * size + centre

Either one centre and one size hold for all rows (`DataScale`, `Identity`), so that weights can absorb them, or every
row has its own (`RowScale`: `LayerNorm`, `UnitNorm`, `ConstantNorm`), which its codes then carry: decoding needs them
and does not need the row. Rows that are put together from several sites have one centre and size a site.

The loss of training counts errors of scaled rows, metrics errors of rows in the data's units. With one size for all
these are the same up to a factor, and the share of the variance left over (FVU) is the same. With each row's own, a row
ten times as large counts a hundred times as much in FVU and no more than others in the loss.
"""

# Shape letters: B rows, D width, S sites.

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from saelab.core.codes import Codes
from saelab.core.components import Component


@dataclass(frozen=True)
class Fixed:
    """One mean and size for all rows, which weights can absorb: x' = (x - mean) / size."""

    mean: Tensor
    """[D]"""
    size: Tensor
    """[] or [D]"""


class Scale(Component, nn.Module, ABC):
    """A scaling of rows; the identity until it is fitted, where there is anything to fit."""

    home = "saelab.sae.scales"
    per_row: ClassVar[bool] = False
    """Whether every row has a centre and a size of its own."""
    unit: Tensor

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def setup(self, d_in: int, sites: int = 1) -> Self:
        """Learn the width of rows and the number of sites they are from; ValueError if these do not go together."""
        if d_in % sites:
            raise ValueError(f"rows {d_in} wide cannot be cut into {sites} sites of equal width")
        self.d_in, self.sites, self.in_use = d_in, sites, True
        # Not saved: it says where the SAE is and in which precision.
        self.register_buffer("unit", torch.ones(()), persistent=False)
        return self

    def fit(self, sample: Tensor, known: tuple[Tensor, Tensor] | None = None) -> None:
        """Set from rows [n, D], or from a data set's mean [D] and scale where those are known."""

    def numbers(self, x: Tensor) -> Tensor | None:
        """What undoing the scaling of rows [B, D] needs to know of them: centres and sizes [B, 2 S], or None."""
        return None

    @abstractmethod
    def apply_to(self, x: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Scaled rows [B, D], in the precision of the SAE; numbers: those of these rows, worked out if not given."""

    @abstractmethod
    def undo(self, x: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Rows [B, D] in the data's own units, from scaled ones and their numbers."""

    @property
    def size(self) -> Tensor:
        """What one unit of every entry is in the data's units, [] or [D]; 1 where that is each row's own size."""
        return self.unit

    def data_values(self, codes: Codes) -> Tensor:
        """Values [..., K] of codes in the data's units, but for what `size` says; see `Autoencoder.data_values`."""
        return codes.values

    @property
    def norm(self) -> float:
        """Root mean square norm of scaled rows, about; `Identity` knows none and says the same as the others."""
        return math.sqrt(self.d_in)

    @property
    def is_identity(self) -> bool:
        """Whether rows stay as they are."""
        return False

    @abstractmethod
    def fixed(self) -> Fixed:
        """The one mean and size that this is; ValueError, saying why, where there is none."""

    def reset(self) -> None:
        """Back to the identity, once weights have absorbed it."""

    def same_as(self, other: "Scale") -> bool:
        """Whether it does the same to every row as another."""
        return self.config() == other.config() and self.sites == other.sites

    def difference(self, other: "Scale") -> str | None:
        """Why SAEs with this and another scaling cannot be compared, in words behind "A and B"; None where they can.

        Where one is the identity, which a folded SAE has, the other may be any single mean and size.
        """
        if self.sites != other.sites:
            return f"have {self.sites} and {other.sites} scales of their rows"
        if (self.per_row or other.per_row) and self.config() != other.config():
            return f"scale rows by {self.sentence()} and {other.sentence()}: they cannot be compared"
        return None


class RowScale(Scale):
    """Every row, or every site's part of one, has a centre and a size of its own."""

    per_row = True

    @abstractmethod
    def measured(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and size of each part of rows [B, S, D / S]; [B, S] each."""

    def divisor(self, size: Tensor) -> Tensor:
        """What rows of a size are divided by; 1 for one without any."""
        return size.where(size > 0, 1)

    def numbers(self, x: Tensor) -> Tensor:
        return torch.cat(self.measured(self._parts(x)), 1)

    def apply_to(self, x: Tensor, numbers: Tensor | None = None) -> Tensor:
        centre, size = self._split(self.numbers(x) if numbers is None else numbers)
        return ((self._parts(x) - centre) / self.divisor(size)).flatten(1).to(self.unit.dtype)

    def undo(self, x: Tensor, numbers: Tensor | None = None) -> Tensor:
        centre, size = self._split(self._needed(numbers, x))
        return (self._parts(x) * size + centre).flatten(1).to(self.unit.dtype)

    def data_values(self, codes: Codes) -> Tensor:
        if self.sites > 1:
            name = type(self).__name__
            raise ValueError(f"{name} gives every site of a row a size of its own: its codes have no one unit")
        return codes.values * self._needed(codes.row_scale, codes.values)[..., 1:].to(codes.values.dtype)

    def _needed(self, numbers: Tensor | None, rows: Tensor) -> Tensor:
        """The numbers of rows [..., any]; ValueError if they are none."""
        wanted = [*rows.shape[:-1], 2 * self.sites]
        if numbers is not None and list(numbers.shape) == wanted:
            return numbers
        got = "none" if numbers is None else f"numbers of shape {list(numbers.shape)}"
        raise ValueError(
            f"{type(self).__name__} scales every row by its own centre and size, which codes carry as row_scale "
            f"{wanted}, and these have {got}: use codes that encode gave"
        )

    def fixed(self) -> Fixed:
        name = type(self).__name__
        raise ValueError(f"{name} scales every row by its own size, which no weights can absorb: it stays as it is")

    def _parts(self, x: Tensor) -> Tensor:
        """Rows by site, [B, S, D / S], in single precision at least: bfloat16 would round a row's mean."""
        return x.to(torch.promote_types(self.unit.dtype, torch.float32)).unflatten(1, (self.sites, -1))

    def _split(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Centres and sizes, [B, S, 1] each."""
        centre, size = numbers.unflatten(1, (2, self.sites)).unsqueeze(3).unbind(1)
        return centre, size
