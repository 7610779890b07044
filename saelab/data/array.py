"""Rows from an array in memory."""

from typing import Any

import torch
from torch import Tensor

from saelab.data.source import WindowSource, generator_for


class ArraySource(WindowSource):
    """The rows of a tensor [n, D], in a new random order every pass.

    Args:
        rows: [n, D], floating point, finite.
        seed: of the order.
        target: rows [n, D] to reconstruct, where they are not the same.

    Raises:
        ValueError: if the rows are not a floating-point [n, D], empty, or not all finite, or the targets not as many.
    """

    def __init__(self, rows: Tensor, seed: int = 0, target: Tensor | None = None):
        d_in = rows.shape[-1]
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

    def statistics(self) -> tuple[Tensor, Tensor]:
        rows = self.rows[:, : self.d_in].double()
        mean = rows.mean(0)
        return mean.float(), (rows - mean).square().mean().sqrt().float()
