"""Sums and dot products over the entries of sparse codes (sparse.cpp)."""

# Shape letters: B rows, D columns, L latents, K entries per row.

import torch
from torch import Tensor

from saelab.core.codes import Entries
from saelab.kernels.native import library, ptr


def bag(indices: Tensor, weight: Tensor, values: Tensor) -> Tensor:
    """Row b is the sum over its entries of value * weight[index]; [B, D] from [B, K], [L, D], [B, K]."""
    out = torch.empty(len(indices), weight.shape[1])
    at_indices, at_values, weight = indices.contiguous(), values.contiguous(), weight.detach().contiguous()
    library().saelab_bag(  # type: ignore[union-attr]
        ptr(at_indices),
        ptr(at_values),
        ptr(weight),
        len(indices),
        indices.shape[1],
        weight.shape[1],
        ptr(out),
    )
    return out


def dot_at(indices: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Entry (b, j) is rows[b] . weight[indices[b, j]]; [B, K] from [B, K], [B, D] and [L, D]."""
    out = torch.empty(indices.shape)
    indices, rows, weight = indices.contiguous(), rows.contiguous(), weight.detach().contiguous()
    library().saelab_dot_at(  # type: ignore[union-attr]
        ptr(indices), ptr(rows), ptr(weight), len(indices), indices.shape[1], weight.shape[1], ptr(out)
    )
    return out


def sum_by_latent(entries: Entries, values: Tensor, rows: Tensor) -> Tensor:
    """Row l is the sum over latent l's entries of value * rows[row of the entry]; [L, D] from [B, K] and [B, D]."""
    out = torch.empty(entries.n_latents, rows.shape[1])
    by_latent(entries)
    values, rows = values.contiguous(), rows.contiguous()
    kept = max(1, entries.indices.shape[1])
    library().saelab_sum_by_latent(  # type: ignore[union-attr]
        *(
            ptr(entries.order),
            ptr(entries.offsets),
            ptr(values),
            ptr(rows),
            entries.n_latents,
            entries.order.numel(),
        ),
        *(kept, rows.shape[1], ptr(out)),
    )
    return out


def by_latent(entries: Entries) -> None:
    """Work out the order of entries by latent, a counting sort, and keep it in them, unless they have it."""
    if "order" in entries.__dict__ and "offsets" in entries.__dict__:
        return
    flat = entries.indices.contiguous()
    order, offsets = torch.empty(flat.numel(), dtype=torch.int64), torch.empty(entries.n_latents, dtype=torch.int64)
    library().saelab_by_latent(ptr(flat), flat.numel(), entries.n_latents, ptr(order), ptr(offsets))  # type: ignore[union-attr]
    entries.order, entries.offsets = order, offsets
