"""Some of the rows that went by, for what cannot be summed up: curves over other readings, medians, plots.

Rows are drawn by a hash of their number in the order of the data, so that the same ones are kept however the data are
cut into chunks, and as many as `most` of any number.
"""

# Shape letters: B rows of a chunk, M rows kept at most.

import numpy as np
import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.sae.autoencoder import Autoencoder

BLOCK_ENTRIES = 1 << 24
MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class Sample:
    """Columns of at most `most` rows."""

    def __init__(self, most: int):
        self.most, self.seen, self.kept = most, 0, 0
        self._priority = np.full(most, np.iinfo(np.uint64).max, dtype=np.uint64)
        self._number = torch.zeros(most, dtype=torch.int64)
        self._columns: dict[str, Tensor] = {}

    def update(self, **columns: Tensor) -> None:
        """Take in columns [B, ...] of a chunk."""
        rows = len(next(iter(columns.values())))
        for name, column in columns.items():
            if name not in self._columns:
                # All at once, so that what is held does not grow.
                self._columns[name] = torch.zeros((self.most, *column.shape[1:]), dtype=column.dtype)
        number = torch.arange(self.seen, self.seen + rows)
        self.seen += rows
        priority = np.concatenate([self._priority, _hash(number.numpy())])
        # Places that hold no row yet come last among equals.
        best = torch.from_numpy(np.argsort(priority, kind="stable")[: self.most])
        best = torch.cat([best[best < self.kept], best[best >= self.most]])
        self._priority[: len(best)] = priority[best.numpy()]
        self._number[: len(best)] = torch.cat([self._number, number])[best]
        for name, column in columns.items():
            both = torch.cat([self._columns[name], column.detach().cpu()])
            self._columns[name][: len(best)] = both[best]
        self.kept = len(best)

    def column(self, name: str) -> Tensor:
        """A column of the rows kept, in the order of the data."""
        return self._columns[name][: self.kept][self._number[: self.kept].sort().indices]

    @property
    def names(self) -> list[str]:
        """The columns there are."""
        return list(self._columns)

    def __len__(self) -> int:
        return self.kept


@torch.no_grad()
def codes_of(sae: Autoencoder, rows: Tensor) -> Codes:
    """Compact codes of rows [M, D], read some at a time: full ones of all rows would not fit for many latents."""
    device, size = sae.device, max(1, BLOCK_ENTRIES // sae.n_latents)
    parts = [sae.encode(part.to(device)).compact() for part in rows.split(size)]
    width = max(part.values.shape[1] for part in parts)
    values = [torch.nn.functional.pad(part.values, (0, width - part.values.shape[1])) for part in parts]
    indices = [torch.nn.functional.pad(part.indices, (0, width - part.indices.shape[1])) for part in parts]
    own = [part.row_scale for part in parts if part.row_scale is not None]
    return Codes(torch.cat(values), torch.cat(indices), sae.n_latents, torch.cat(own) if own else None)


def _hash(number: np.ndarray) -> np.ndarray:
    """A number that looks random for each number: the finaliser of splitmix64."""
    x = number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX[1])
    return x ^ (x >> np.uint64(31))
