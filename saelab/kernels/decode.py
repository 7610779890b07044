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
from saelab.kernels import tier
from saelab.kernels.gradient import Term, hand_over
from saelab.kernels.native import sparse as native_sparse
from saelab.kernels.sums import bag

DENSE_SHARE = 16
"""Codes with K > L / 16 decode densely: a gather moves about that many times fewer values a second than a product."""


def decode(codes: Codes, weight: Tensor, terms: list[Term] | None = None) -> Tensor:
    """Sum of each row's directions, weighted by its codes: [B, D] from codes [B, K] and weight [L, D].

    The weight's gradient goes to the terms, if there are any, instead of into its `.grad` (see gradient.py).
    """
    kept = codes.values.shape[1]
    if tier.is_reference() or codes.is_full or not kept or kept * DENSE_SHARE > codes.n_latents:
        return reference(codes, weight)
    return _Decode.apply(codes.values, weight, codes.entries, terms)


def reference(codes: Codes, weight: Tensor) -> Tensor:
    """`decode` as a dense product of [B, L] with [L, D]."""
    return codes.dense().to(weight.dtype) @ weight


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, entries: Entries, terms: list[Term] | None) -> Tensor:
        ctx.entries, ctx.terms = entries, terms
        ctx.save_for_backward(values, weight)
        return bag(entries.indices, weight, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        entries, needs = ctx.entries, ctx.needs_input_grad
        grad_values = dot_at(entries.indices, grad, weight).to(values.dtype) if needs[0] else None
        grad_weight = hand_over(ctx.terms, entries, values.to(grad.dtype), grad) if needs[1] else None
        return grad_values, grad_weight, None, None


def dot_at(indices: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Entry (b, j) is rows[b] . weight[indices[b, j]]; [B, K] from [B, K], [B, D] and [L, D]."""
    if tier.is_native(rows, weight):
        return native_sparse.dot_at(indices, rows, weight)
    if tier.is_gpu(rows, weight):
        from saelab.kernels.gpu import decode as gpu_decode  # imports triton

        return gpu_decode.dot_at(indices, rows, weight)
    kept = indices.shape[1]
    flat = indices.flatten()
    offsets = torch.arange(0, flat.numel(), kept, device=flat.device)
    bags = torch.arange(len(rows), device=flat.device).repeat_interleave(kept)
    # The gather-and-dot that PyTorch uses for embedding_bag's own weights: no [B, K, D] tensor.
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(rows.contiguous(), weight, flat, offsets, bags, 0)
    return dots.view_as(indices)
