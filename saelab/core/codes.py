"""Sparse codes: what an SAE says about each row, and the one definition of "active".

A code is kept as the values and latent numbers of K entries a row, never as [B, L] unless asked. Two layouts share the
class: *sparse* (K entries chosen per row) and *full* (K = L, entry j is latent j), which activations without a fixed
number of active latents use while they train.
"""

# Shape letters: B rows, K entries kept per row, L latents, N = B*K entries of a batch.

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Entries:
    """Which latents the entries of a batch name, and their order by latent, worked out once and shared.

    Both weight gradients of a sparse SAE walk the entries latent by latent: the sort is done at most once a batch.
    """

    def __init__(self, indices: Tensor, n_latents: int, is_full: bool = False):
        self.indices = indices  # [B, K] int64
        self.n_latents = n_latents
        self.is_full = is_full  # whether entry j of every row is latent j

    @cached_property
    def order(self) -> Tensor:
        """Entry numbers (row * K + slot) sorted by latent, rows ascending within a latent; [N]."""
        return torch.sort(self.indices.flatten(), stable=True).indices

    @cached_property
    def offsets(self) -> Tensor:
        """Where each latent's entries begin in `order`; [L]."""
        counts = torch.bincount(self.indices.flatten(), minlength=self.n_latents)
        return torch.cumsum(counts, 0) - counts

    @cached_property
    def rows(self) -> Tensor:
        """The row of each entry of `order`; [N]."""
        return self.order // self.indices.shape[1]


class Codes:
    """Sparse codes of B rows; rows that have leading dimensions [..., D] have codes [..., K].

    Attributes:
        values: [B, K], in the units of the SAE's scaled input; zero marks an unused entry.
        indices: [B, K] int64, the latent of each entry; distinct within a row wherever the value is not zero.
        n_latents: L.
        row_scale: [B, n], what undoing a scaling that each row has for itself needs to know of the rows
            (`saelab.sae.scale`); None where one scaling holds for all.
    """

    def __init__(self, values: Tensor, indices: Tensor | Entries, n_latents: int, row_scale: Tensor | None = None):
        self.values, self.row_scale = values, row_scale
        self.entries = indices if isinstance(indices, Entries) else Entries(indices, n_latents)
        self.n_latents = n_latents

    @classmethod
    def full(cls, values: Tensor) -> "Codes":
        """Codes in the full layout from activations [B, L]; no copy is made."""
        indices = torch.arange(values.shape[1], device=values.device).expand_as(values)
        return cls(values, Entries(indices, values.shape[1], is_full=True), values.shape[1])

    @property
    def indices(self) -> Tensor:
        return self.entries.indices

    @property
    def is_full(self) -> bool:
        """Whether entry j of every row is latent j."""
        return self.entries.is_full

    def with_values(self, values: Tensor) -> "Codes":
        """The same entries with other values [B, K]."""
        return Codes(values, self.entries, self.n_latents, self.row_scale)

    def with_row_scale(self, row_scale: Tensor | None) -> "Codes":
        """The same codes of rows with these numbers of their own [B, n]."""
        return Codes(self.values, self.entries, self.n_latents, row_scale)

    def rows(self, chosen: int | slice | Tensor) -> "Codes":
        """The codes of some rows alone: one, a slice, their numbers [n], or which they are [B] bool."""
        own = None if self.row_scale is None else self.row_scale[chosen]
        entries = Entries(self.indices[chosen], self.n_latents, self.is_full)
        return Codes(self.values[chosen], entries, self.n_latents, own)

    def to(self, device: torch.device | str) -> "Codes":
        """The same codes on a device."""
        own = None if self.row_scale is None else self.row_scale.to(device)
        entries = Entries(self.indices.to(device), self.n_latents, self.is_full)
        return Codes(self.values.to(device), entries, self.n_latents, own)

    def flat(self) -> "Codes":
        """The same codes as [B, K], their leading dimensions flattened."""
        return self if self.values.ndim == 2 else self._shaped((-1,))

    def unflatten(self, leading: Sequence[int]) -> "Codes":
        """The same codes as [*leading, K]."""
        return self._shaped(tuple(leading))

    def _shaped(self, leading: tuple[int, ...]) -> "Codes":
        shape, own = (*leading, self.values.shape[-1]), self.row_scale
        own = None if own is None else own.reshape(*leading, own.shape[-1])
        entries = Entries(self.indices.reshape(shape), self.n_latents, self.is_full)
        return Codes(self.values.reshape(shape), entries, self.n_latents, own)

    @property
    def active(self) -> Tensor:
        """Which entries are active: non-zero, because subspace codes are signed; [B, K] bool."""
        return self.values != 0

    def l0(self) -> Tensor:
        """Active latents of each row; [B] int64."""
        return self.active.sum(-1)

    def counts(self) -> Tensor:
        """In how many of the B rows each latent is active; [L] int64."""
        return torch.bincount(self.indices[self.active], minlength=self.n_latents)

    def dense(self) -> Tensor:
        """The codes as [B, L]; keeps the gradient."""
        if self.is_full:
            return self.values
        # Unused entries may repeat a latent number, hence add instead of set.
        nothing = self.values.new_zeros(*self.values.shape[:-1], self.n_latents)
        return nothing.scatter_add(-1, self.indices, self.values)

    def compact(self) -> "Codes":
        """The same codes with K = the largest number of active latents in a row (at least 1), latents ascending.

        Keeps the gradient of active entries; the others have none.
        """
        if self.values.ndim != 2:
            return self.flat().compact().unflatten(self.values.shape[:-1])
        active = self.active
        counts = active.sum(1)
        width = max(1, int(counts.max())) if len(active) else 1
        used = torch.arange(width, device=counts.device) < counts[:, None]
        if self.is_full:  # latents ascend already: packing is much cheaper than a sort over all of them
            row, latent = active.nonzero().unbind(1)
            slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
            indices = row.new_zeros(len(active), width)
            indices[row, slot] = latent
            return Codes(self.values.gather(1, indices).where(used, 0), indices, self.n_latents, self.row_scale)
        unused_last = self.indices.masked_fill(~active, self.n_latents)
        slots = unused_last.sort(dim=1, stable=True).indices[:, :width]
        values, indices = self.values.gather(1, slots).where(used, 0), self.indices.gather(1, slots)
        return Codes(values, indices, self.n_latents, self.row_scale)

    def table(self) -> dict[str, np.ndarray]:
        """The active entries as columns `row`, `latent` and `value`, rows ascending: what a data frame is made of.

        Rows with leading dimensions are numbered through, the last dimension fastest.
        """
        flat = self.flat()
        row, slot = flat.active.nonzero().unbind(1)
        columns = {"row": row, "latent": flat.indices[row, slot], "value": flat.values.detach()[row, slot]}
        return {name: _array(column) for name, column in columns.items()}

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The codes as a dense array [B, L], as for `numpy.asarray` and `pandas.DataFrame`; see `table` for less."""
        return np.array(_array(self.dense()), dtype=dtype)

    def __len__(self) -> int:
        return self.values.shape[:-1].numel()

    def __iter__(self) -> Iterator["Codes"]:
        """The codes [K] of one row after another."""
        flat = self.flat()
        for row in range(len(flat)):
            yield flat.rows(row)

    def __repr__(self) -> str:
        *rows, kept = self.values.shape
        count = " x ".join(map(str, rows)) or "1"
        own = "" if self.row_scale is None else ", each row with a scale of its own"
        return f"Codes({count} rows, {kept} of {self.n_latents} latents kept, {self.values.dtype}{own})"


def _array(column: Tensor) -> np.ndarray:
    column = column.detach().cpu()
    return column.float().numpy() if column.dtype == torch.bfloat16 else column.numpy()
