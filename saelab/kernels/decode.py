"""Sparse decoding: the weighted sum of the directions a row's codes name.

    out[b] = sum_j values[b, j] * weight[indices[b, j]]

Three sparse passes replace the dense products: the sum itself, the gradient of the values (a dot product per entry)
and the gradient of the weight (a sum over each latent's own rows). `reference` is the dense product. Full codes and
codes that keep more than one latent in `DENSE_SHARE` go through the dense product, which is faster there.
"""

# Shape letters: B rows, D input width, L latents, K kept per row.

from typing import Any

import torch
from torch import Tensor

from saelab.core.codes import Codes, Entries
from saelab.kernels.select import bag, sum_by_latent

DENSE_SHARE = 16
"""Codes with K > L / 16 decode densely: a gather moves about that many times fewer values a second than a product."""


def decode(codes: Codes, weight: Tensor) -> Tensor:
    """Sum of each row's directions, weighted by its codes: [B, D] from codes [B, K] and weight [L, D]."""
    kept = codes.values.shape[1]
    if codes.is_full or not kept or kept * DENSE_SHARE > codes.n_latents:
        return reference(codes, weight)
    return _Decode.apply(codes.values, weight, codes.entries)


def reference(codes: Codes, weight: Tensor) -> Tensor:
    """`decode` as a dense product of [B, L] with [L, D]."""
    return codes.dense().to(weight.dtype) @ weight


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, entries: Entries) -> Tensor:
        ctx.entries = entries
        ctx.save_for_backward(values, weight)
        return bag(entries.indices, weight, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        entries, needs = ctx.entries, ctx.needs_input_grad
        grad_values = dot_at(entries.indices, grad, weight).to(values.dtype) if needs[0] else None
        grad_weight = sum_by_latent(entries, values, grad) if needs[1] else None
        return grad_values, grad_weight, None


def dot_at(indices: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Entry (b, j) is rows[b] . weight[indices[b, j]]; [B, K] from [B, K], [B, D] and [L, D]."""
    kept = indices.shape[1]
    flat = indices.flatten()
    offsets = torch.arange(0, flat.numel(), kept, device=flat.device)
    bags = torch.arange(len(rows), device=flat.device).repeat_interleave(kept)
    # The gather-and-dot that PyTorch uses for embedding_bag's own weights: no [B, K, D] tensor.
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(rows.contiguous(), weight, flat, offsets, bags, 0)
    return dots.view_as(indices)
