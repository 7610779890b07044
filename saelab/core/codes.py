"""Sparse codes: what an SAE says about each row, and the one definition of "active".

A code is kept as the values and latent numbers of K entries a row, never as [B, L] unless asked. Two layouts share the
class: *sparse* (K entries chosen per row) and *full* (K = L, entry j is latent j), which activations without a fixed
number of active latents use while they train.
"""

# Shape letters: B rows, K entries kept per row, L latents, N = B*K entries of a batch.

from functools import cached_property

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
    """Sparse codes of B rows.

    Attributes:
        values: [B, K], in the units of the SAE's scaled input; zero marks an unused entry.
        indices: [B, K] int64, the latent of each entry; distinct within a row wherever the value is not zero.
        n_latents: L.
    """

    def __init__(self, values: Tensor, indices: Tensor | Entries, n_latents: int):
        self.values = values
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
        return Codes(values, self.entries, self.n_latents)

    @property
    def active(self) -> Tensor:
        """Which entries are active: non-zero, because subspace codes are signed; [B, K] bool."""
        return self.values != 0

    def l0(self) -> Tensor:
        """Active latents of each row; [B] int64."""
        return self.active.sum(1)

    def counts(self) -> Tensor:
        """In how many of the B rows each latent is active; [L] int64."""
        return torch.bincount(self.indices[self.active], minlength=self.n_latents)

    def dense(self) -> Tensor:
        """The codes as [B, L]; keeps the gradient."""
        if self.is_full:
            return self.values
        # Unused entries may repeat a latent number, hence add instead of set.
        return self.values.new_zeros(len(self.values), self.n_latents).scatter_add(1, self.indices, self.values)

    def compact(self) -> "Codes":
        """The same codes with K = the largest number of active latents in a row (at least 1), latents ascending.

        Not differentiable: it is for codes that are stored or counted.
        """
        active = self.active
        counts = active.sum(1)
        width = max(1, int(counts.max())) if len(active) else 1
        if self.is_full:  # latents ascend already: packing is much cheaper than a sort over all of them
            row, latent = active.nonzero().unbind(1)
            slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
            values, indices = self.values.new_zeros(len(active), width), row.new_zeros(len(active), width)
            values[row, slot], indices[row, slot] = self.values.detach()[row, latent], latent
            return Codes(values, indices, self.n_latents)
        unused_last = self.indices.masked_fill(~active, self.n_latents)
        slots = unused_last.sort(dim=1, stable=True).indices[:, :width]
        return Codes(self.values.detach().gather(1, slots), self.indices.gather(1, slots), self.n_latents)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        rows, kept = self.values.shape
        return f"Codes({rows} rows, {kept} of {self.n_latents} latents kept, {self.values.dtype})"
