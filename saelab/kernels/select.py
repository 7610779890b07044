"""The k largest pre-activations of every row, without keeping the [B, L] product.

    pre = (x - centre) @ weight.T + bias        values, indices = the k largest of each row of pre

Only the forward product is dense, and where kernels are compiled not even that one is made in full precision: see
native/encode.py. Backwards, the gradient of `values` reaches just the chosen entries, so each weight
gradient is a sum over a latent's own rows: O(B k D) work instead of O(B L D). The gradient of the centre needs no
gradient of x: it is -(sum of the entries' gradients by latent) @ weight.

`reference` is the same by plain autograd.
"""

# Shape letters: B rows, D input width, L latents, K kept per row.

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.core.codes import Codes, Entries
from saelab.kernels import tier
from saelab.kernels.gradient import Term, hand_over
from saelab.kernels.native import encode as native_encode
from saelab.kernels.sums import bag, sum_by_latent

BLOCK_ENTRIES, BLOCK_ROWS = 1 << 21, 256
"""Rows are taken in blocks of about this many pre-activations, so that a block is still in cache when its largest are
picked, but of no fewer rows than this, below which the product itself slows down."""


def topk_linear(
    x: Tensor,
    centre: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int,
    absolute: bool = False,
    groups: int = 1,
    terms: list[Term] | None = None,
) -> tuple[Tensor, Entries]:
    """The k largest of each row of (x - centre) @ weight.T + bias, largest first; ties fall the same way every time.

    Args:
        x: [B, D]; centre: [D]; weight: [L, D]; bias: [L].
        k: 1 <= k <= L / groups.
        absolute: whether the largest absolute values are meant; they keep their signs.
        groups: cuts the latents into this many equal parts, one after another; the k largest of each are chosen.
        terms: where the weight's gradient goes instead of into its `.grad` (see gradient.py).

    Returns:
        values [B, groups * K], differentiable in all four tensors, and their entries.
    """
    assert 1 <= k <= len(weight) // groups, (k, len(weight), groups)
    if tier.is_reference():
        return reference(x, centre, weight, bias, k, absolute, groups)
    entries = Entries(torch.empty(0), len(weight))
    return _TopKLinear.apply(x, centre, weight, bias, (k, absolute, groups), entries, terms), entries


def reference(
    x: Tensor, centre: Tensor, weight: Tensor, bias: Tensor, k: int, absolute: bool = False, groups: int = 1
) -> tuple[Tensor, Entries]:
    """`topk_linear` by plain autograd over the dense product."""
    pre = F.linear(x - centre, weight, bias)
    _, indices = _topk_of(pre.detach(), k, absolute, groups)
    return pre.gather(1, indices), Entries(indices, len(weight))


class _TopKLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        centre: Tensor,
        weight: Tensor,
        bias: Tensor,
        kept: tuple[int, bool, int],
        entries: Entries,
        terms: list[Term] | None,
    ) -> Tensor:
        centred = x - centre
        values, indices = _largest(centred, weight, bias, *kept)
        entries.indices = indices  # the caller's object, so that the sort by latent is shared with the decoder
        ctx.entries, ctx.terms = entries, terms
        ctx.save_for_backward(centred, weight)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight = ctx.saved_tensors
        return *_through_entries(ctx, grad, centred, weight), None, None, None


def _through_entries(ctx: Any, grad: Tensor, centred: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, centre, weight and bias from those of the chosen entries [B, K]."""
    entries, needs = ctx.entries, ctx.needs_input_grad
    # Summed in the entries' order, because adding by index would fall in any order on a GPU.
    grad_bias = sum_by_latent(entries, grad, torch.ones_like(centred[:, :1])).squeeze(1)
    grad_x = bag(entries.indices, weight, grad) if needs[0] else None
    grad_centre = -(grad_bias @ weight) if needs[1] else None
    grad_weight = hand_over(ctx.terms, entries, grad, centred) if needs[2] else None
    return grad_x, grad_centre, grad_weight, grad_bias if needs[3] else None


def centred_linear(x: Tensor, centre: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(x - centre) @ weight.T + bias: [B, L] from [B, D], [D], [L, D] and [L].

    Where x needs no gradient, the centre's costs a product with one row instead of B.
    """
    if tier.is_reference() or torch.is_autocast_enabled(x.device.type):
        return F.linear(x - centre, weight, bias)
    product: Tensor = _CentredLinear.apply(x, centre, weight, bias)
    return product


class _CentredLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = x - centre
        ctx.save_for_backward(centred, weight)
        return F.linear(centred, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight = ctx.saved_tensors
        needs, summed = ctx.needs_input_grad, grad.sum(0)
        grad_x = grad @ weight if needs[0] else None
        grad_centre = -(summed @ weight) if needs[1] else None
        return grad_x, grad_centre, grad.T @ centred if needs[2] else None, summed if needs[3] else None


def _largest(
    centred: Tensor, weight: Tensor, bias: Tensor, k: int, absolute: bool, groups: int
) -> tuple[Tensor, Tensor]:
    width = len(weight) // groups
    if tier.is_gpu(centred, weight, bias) and not absolute and groups == 1:
        from saelab.kernels.gpu.select import topk_linear_forward  # imports triton

        return topk_linear_forward(centred, weight, bias, k)
    if not (tier.is_native(centred, weight, bias) and native_encode.is_worth_screening(centred, weight[:width], k)):
        return _topk_in_blocks(centred, weight, bias, k, absolute, groups)
    parts = []
    for start in range(0, len(weight), width):
        own, shift = weight[start : start + width], bias[start : start + width]
        values, indices, left = native_encode.largest(centred, own, shift, k, absolute)
        if len(left):
            values[left], indices[left] = _topk_in_blocks(centred[left], own, shift, k, absolute, 1)
        parts.append((values, indices + start if start else indices))
    if groups == 1:
        return parts[0]
    return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)


PROBES = 16
"""Rows computed in full to see how many pre-activations pass a threshold."""


def above_threshold(
    x: Tensor, centre: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor, terms: list[Term] | None = None
) -> Codes:
    """The pre-activations above their latent's threshold, as codes with latents ascending.

    Differentiable in all but the threshold, of which a code is no smooth function.

    Args:
        x: [B, D]; centre: [D]; weight: [L, D]; bias: [L]; threshold: [L], none below 0.
        terms: where the weight's gradient goes instead of into its `.grad` (see gradient.py).
    """
    if tier.is_reference():
        return _above_in_full(x - centre, weight, bias, threshold)
    entries = Entries(torch.empty(0), len(weight))
    values = _AboveThreshold.apply(x, centre, weight, bias, threshold, entries, terms)
    return Codes(values, entries, len(weight))


class _AboveThreshold(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        centre: Tensor,
        weight: Tensor,
        bias: Tensor,
        threshold: Tensor,
        entries: Entries,
        terms: list[Term] | None,
    ) -> Tensor:
        centred = x - centre
        codes = _above(centred, weight, bias, threshold)
        entries.indices = codes.indices  # the caller's object, so that the sort by latent is shared with the decoder
        ctx.entries, ctx.terms = entries, terms
        ctx.save_for_backward(centred, weight, codes.active)
        return codes.values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight, active = ctx.saved_tensors
        grads = _through_entries(ctx, grad.where(active, 0), centred, weight)
        return *grads, None, None, None


def _above(centred: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor) -> Codes:
    if tier.is_native(centred, weight, bias) and len(centred):
        some = (F.linear(centred[:: max(1, len(centred) // PROBES)], weight, bias) > threshold).sum(1)
        width = 2 * int(some.max()) + 16
        if native_encode.is_worth_screening(centred, weight, width):
            values, indices, left = native_encode.above(centred, weight, bias, threshold, width)
            if len(left):
                values[left], indices[left] = 0, 0
                rest = _above_in_full(centred[left], weight, bias, threshold)
                extra = max(0, rest.values.shape[1] - width)
                values, indices = F.pad(values, (0, extra)), F.pad(indices, (0, extra))
                values[left, : rest.values.shape[1]], indices[left, : rest.values.shape[1]] = rest.values, rest.indices
            return Codes(values, indices, len(weight)).compact()
    return _above_in_full(centred, weight, bias, threshold)


def _above_in_full(centred: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor) -> Codes:
    pre = F.linear(centred, weight, bias)
    return Codes.full(pre.where(~(pre <= threshold), 0)).compact()  # NaN stays


def _topk_in_blocks(
    centred: Tensor, weight: Tensor, bias: Tensor, k: int, absolute: bool, groups: int
) -> tuple[Tensor, Tensor]:
    device = centred.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else centred.dtype
    rows, transposed, shift = centred.to(dtype), weight.to(dtype).T, bias.to(dtype)
    values = centred.new_empty(len(rows), groups * k)
    indices = torch.empty(len(rows), groups * k, dtype=torch.int64, device=rows.device)
    size = min(max(BLOCK_ROWS, BLOCK_ENTRIES // len(weight)), max(1, len(rows)))
    # One buffer for all blocks: fresh memory costs more in page faults than the arithmetic done in it.
    buffer = rows.new_empty(size, len(weight))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        pre = torch.addmm(shift, block, transposed, out=buffer[: len(block)])
        values[start : start + size], indices[start : start + size] = _topk_of(pre, k, absolute, groups)
    return values, indices


def _topk_of(pre: Tensor, k: int, absolute: bool, groups: int) -> tuple[Tensor, Tensor]:
    """Values and numbers [B, groups * K] of the k largest in each group of latents, from all of them [B, L]."""
    width = pre.shape[1] // groups
    cut = pre.view(len(pre) * groups, width)
    values, indices = (cut.abs() if absolute else cut).topk(k, dim=1)
    if absolute:
        values = cut.gather(1, indices)
    if groups > 1:
        indices = indices.view(len(pre), groups, k) + width * torch.arange(groups, device=pre.device)[:, None]
    return values.view(len(pre), groups * k), indices.view(len(pre), groups * k)
