"""Sums over the entries of sparse codes: by row (a decoder) and by latent (the gradient of a weight)."""

# Shape letters: B rows, D columns, L latents, K entries per row.

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from saelab.core.codes import Entries
from saelab.kernels import tier
from saelab.kernels.native import sparse as native_sparse


def sort_once(entries: Entries, sort: Callable[[Tensor, int], Any]) -> None:
    """Let a kernel work out the order of entries by latent, unless they have it."""
    if "order" not in entries.__dict__:
        found = sort(entries.indices, entries.n_latents)
        entries.order, entries.offsets, entries.rows = found.order, found.offsets, found.rows


def bag(indices: Tensor, weight: Tensor, values: Tensor) -> Tensor:
    """Row b is the sum over its entries of value * weight[index]; [B, D] from [B, K], [L, D], [B, K]."""
    values = values.to(weight.dtype)
    if tier.is_native(weight, values):
        return native_sparse.bag(indices, weight, values)
    if tier.is_gpu(weight, values):
        from saelab.kernels.gpu import decode as gpu_decode

        return gpu_decode.bag(indices, weight, values)
    return F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")


def sum_by_latent(entries: Entries, values: Tensor, rows: Tensor) -> Tensor:
    """Row l is the sum over latent l's entries of value * rows[row of the entry]; [L, D] from [B, K] and [B, D]."""
    values = values.to(rows.dtype)
    if tier.is_native(values, rows):
        return native_sparse.sum_by_latent(entries, values, rows)
    if tier.is_gpu(values, rows):
        from saelab.kernels.gpu import sort, sums

        sort_once(entries, sort.sort_by_latent)
        return sums.sum_by_latent(entries, values, rows)
    weights = values.flatten()[entries.order]
    return F.embedding_bag(entries.rows, rows, entries.offsets, per_sample_weights=weights, mode="sum")
