"""Rows from an array in memory."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.data.source import WindowSource, generator_for


class ArraySource(WindowSource):
    """The rows of a tensor [n, D], in a new random order every pass.

    Args:
        rows: [n, D], floating point, finite; a tensor, or an array of numpy, whose memory is then shared.
        seed: of the order.
        target: rows [n, D] to reconstruct, where they are not the same.

    Raises:
        ValueError: if the rows are not a floating-point [n, D], empty, or not all finite, or the targets not as many.
    """

    def __init__(self, rows: Tensor | np.ndarray, seed: int = 0, target: Tensor | np.ndarray | None = None):
        rows, target = _tensor(rows), None if target is None else _tensor(target)
        d_in = rows.shape[-1] if rows.ndim else 0
        if target is not None:
            if target.ndim != 2 or len(target) != len(rows):
                raise ValueError(f"expected one target for each of {len(rows)} rows, got {list(target.shape)}")
            rows = torch.cat([rows, target.to(rows)], 1)
        if rows.ndim != 2 or not rows.is_floating_point() or not len(rows):
            raise ValueError(f"expected floating-point rows [n, D] with n >= 1, got {rows.dtype} {list(rows.shape)}")
        if not torch.isfinite(rows).all():
            bad = int((~torch.isfinite(rows).all(1)).nonzero()[0])
            raise ValueError(f"row {bad} holds NaN or infinity; leave such rows out")
        super().__init__(d_in, seed, prefetch=0)
        self.d_out = None if target is None else target.shape[1]
        self.rows = rows
        self.windows_a_pass = 1

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"rows": len(self.rows)}

    def window(self, number: int) -> Tensor:
        return self.rows

    def sample(self, rows: int) -> Tensor:
        return self.rows[torch.randperm(len(self.rows), generator=generator_for(self.seed, 0, 1))[:rows]]

    def _contents(self) -> str:
        return f"{len(self.rows):,} {super()._contents()}"

    def distinct_rows(self, most: int) -> int | None:
        return len(self.rows) if len(self.rows) < most else None

    def statistics(self) -> tuple[Tensor, Tensor]:
        rows = self.rows[:, : self.d_in].double()
        mean = rows.mean(0)
        return mean.float(), (rows - mean).square().mean().sqrt().float()


def _tensor(rows: Tensor | np.ndarray) -> Tensor:
    if isinstance(rows, Tensor):
        return rows
    array = np.asarray(rows)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"expected floating-point rows [n, D], got an array of {array.dtype}")
    # Tensors know no negative strides, and warn of memory that may not be written.
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())
