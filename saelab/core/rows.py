"""Rows at the door of the Python API: tensors or NumPy arrays with any leading dimensions, as [B, D].

Checks of content (NaN, infinity) are left to those who read many rows.
"""

# Shape letters: B rows, D width.

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Rows: TypeAlias = Tensor | np.ndarray
"""Rows [..., D]."""


def flat_rows(x: Rows, width: int, device: torch.device) -> tuple[Tensor, torch.Size]:
    """Rows [..., D] as [B, D], and their leading dimensions; an array goes to the device.

    Raises:
        ValueError: for another width, or what is no array of numbers.
    """
    rows = x if isinstance(x, Tensor) else as_tensor(x).to(device)
    if not rows.ndim or rows.shape[-1] != width:
        raise ValueError(f"expected rows of shape [..., {width}], got {list(rows.shape)}")
    return rows.reshape(-1, width), rows.shape[:-1]


def as_tensor(x: Rows) -> Tensor:
    """A NumPy array, or what one can be made of, as a tensor of its own memory; ValueError if it is not of numbers."""
    if isinstance(x, Tensor):
        return x
    try:
        array = np.ascontiguousarray(x)
        return torch.tensor(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"expected rows as a tensor or an array of numbers, got {type(x).__name__}") from None
