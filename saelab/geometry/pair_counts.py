"""In how many rows two things are active together, for all pairs, without a tensor of rows x left x right.

Rows have few active entries, so the pairs of each row are listed and counted. Small tables are kept whole; large ones
as the pairs that occurred, sorted.
"""

# Shape letters: B rows, K entries of a row on the left, J on the right, N pairs.

import torch
from torch import Tensor

from saelab.core.codes import Codes

DENSE_ENTRIES = 1 << 27
"""Largest table kept whole, 4 bytes an entry."""
WAITING = 1 << 24
"""Pairs that may wait to be counted into a table that is not kept whole."""


class PairCounts:
    """Counts of pairs (left, right) that were active in the same row.

    Args:
        n_left: how many things there are on the left.
        n_right: how many on the right.
        device: where the counts live.
        dense_entries: largest n_left * n_right for a table that is kept whole.
    """

    def __init__(self, n_left: int, n_right: int, device: torch.device | str, dense_entries: int = DENSE_ENTRIES):
        self.n_left, self.n_right = n_left, n_right
        self.is_dense = n_left * n_right <= dense_entries
        self._counts = torch.zeros(n_left * n_right if self.is_dense else 0, dtype=torch.int32, device=device)
        self._keys = torch.empty(0, dtype=torch.int64, device=device)  # sorted; unused where the table is whole
        self._waiting: list[Tensor] = []

    def add(self, left: Codes, right: Codes) -> None:
        """Count the pairs in the same rows of two codes [B, K] and [B, J]; takes memory for B * K * J entries."""
        keys = left.indices[:, :, None] * self.n_right + right.indices[:, None, :]
        keys = keys[left.active[:, :, None] & right.active[:, None, :]]
        if self.is_dense:
            self._counts.index_add_(0, keys, torch.ones_like(keys, dtype=torch.int32))
            return
        self._waiting.append(keys)
        if sum(map(len, self._waiting)) > WAITING:
            self._merge()

    def counts(self, left: Tensor, right: Tensor) -> Tensor:
        """Counts of some pairs, numbers on the left [N] and on the right [N]; [N] int64."""
        keys = left * self.n_right + right
        if self.is_dense:
            return self._counts[keys].long()
        self._merge()
        if not len(self._keys):
            return torch.zeros_like(keys)
        place = torch.searchsorted(self._keys, keys).clamp_max(len(self._keys) - 1)
        return self._counts[place].long().where(self._keys[place] == keys, 0)

    def block(self, start: int, stop: int) -> Tensor:
        """The rows of the table for left numbers start to stop - 1; [stop - start, n_right] int32."""
        first, last = start * self.n_right, stop * self.n_right
        if self.is_dense:
            return self._counts[first:last].view(-1, self.n_right)
        self._merge()
        low, high = torch.searchsorted(self._keys, self._keys.new_tensor([first, last])).tolist()
        found = self._counts.new_zeros(last - first)
        found[self._keys[low:high] - first] = self._counts[low:high]
        return found.view(-1, self.n_right)

    def _merge(self) -> None:
        if not self._waiting:
            return
        keys, counts = torch.cat(self._waiting).unique(return_counts=True)
        self._waiting = []
        merged, place = torch.cat([self._keys, keys]).unique(return_inverse=True)
        total = self._counts.new_zeros(len(merged))
        total.index_add_(0, place, torch.cat([self._counts, counts.to(self._counts)]))
        self._keys, self._counts = merged, total
