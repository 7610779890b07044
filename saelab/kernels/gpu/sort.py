"""Entries of a batch in the order of their latents: a counting sort in passes over the digits of latent numbers.

Each pass, programs count the digits in their block of entries; an exclusive sum over (digit, block) says where each
block's entries of each digit go; within a block an entry's place is the number of earlier ones with the same digit,
found by comparing all with all.
So the order is stable (rows ascend within a latent), and nothing depends on which program comes first: the counters
that are shared are only added to, and only read when all are done.
"""

# Shape letters: B rows, K entries per row, N = B * K, L latents.

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saelab.kernels.gpu.device import on

BLOCK, SLICE = 256, 16
"""Entries of a program, and how many of them it compares its own with at once."""
MOST_BITS = 9
"""Of a digit: counters take 4 bytes * 2^bits * N / BLOCK."""


class Sorted(NamedTuple):
    """As in core/codes.Entries."""

    order: Tensor
    """Entry numbers (row * K + slot) sorted by latent, rows ascending within a latent; [N] int64."""
    offsets: Tensor
    """Where each latent's entries begin in `order`; [L] int64."""
    rows: Tensor
    """The row of each entry of `order`; [N] int64."""


@triton.jit
def _digits(latents, order, places, total, shift, BITS: tl.constexpr):
    """Entries at some places in the order so far, and their digits; the digit of padding is no digit."""
    mask = places < total
    entries = places.to(tl.int64) if order is None else tl.load(order + places, mask=mask, other=0)
    digits = (tl.load(latents + entries, mask=mask, other=0) >> shift).to(tl.int32) & ((1 << BITS) - 1)
    return entries, tl.where(mask, digits, 1 << BITS)


@triton.jit
def _count(latents, order, counts, total, shift, BITS: tl.constexpr, SIZE: tl.constexpr):
    """counts [2^BITS, blocks], zero before."""
    places = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    _, digits = _digits(latents, order, places, total, shift, BITS)
    own = counts + digits * tl.num_programs(0) + tl.program_id(0)
    tl.atomic_add(own, 1, mask=places < total, sem="relaxed")


@triton.jit
def _place(latents, order, ends, out, total, shift, BITS: tl.constexpr, SIZES: tl.constexpr):
    """`ends` [2^BITS, blocks] are inclusive sums of the counts."""
    SIZE: tl.constexpr = SIZES[0]
    SLICE: tl.constexpr = SIZES[1]
    first = tl.program_id(0) * SIZE
    places = first + tl.arange(0, SIZE)
    entries, digits = _digits(latents, order, places, total, shift, BITS)
    rank = tl.zeros((SIZE,), tl.int32)
    for start in range(first, first + SIZE, SLICE):
        others = start + tl.arange(0, SLICE)
        _, theirs = _digits(latents, order, others, total, shift, BITS)
        is_before = (digits[:, None] == theirs[None, :]) & (others[None, :] < places[:, None])
        rank += tl.sum(is_before.to(tl.int32), axis=1)
    before = digits * tl.num_programs(0) + tl.program_id(0) - 1
    mask = places < total
    begin = tl.load(ends + before, mask=mask & (before >= 0), other=0)
    tl.store(out + begin + rank, entries, mask=mask)


def sort_by_latent(indices: Tensor, n_latents: int) -> Sorted:
    """The entries of indices [B, K] in the order of their latents, which are below `n_latents`."""
    kept = indices.shape[1]
    latents = indices.contiguous().flatten()
    order: Tensor | None = None
    # Digits of equal length, as few of them as MOST_BITS allows.
    bits = max(1, (n_latents - 1).bit_length())
    passes = -(-bits // MOST_BITS)
    bits = -(-bits // passes)
    if len(latents):
        with on(latents):
            for number in range(passes):
                order = _pass(latents, order, number * bits, bits)
    order = latents if order is None else order
    every = torch.arange(n_latents, device=latents.device)
    return Sorted(order, torch.searchsorted(latents[order], every), order // max(1, kept))


def _pass(latents: Tensor, order: Tensor | None, shift: int, bits: int) -> Tensor:
    blocks = -(-len(latents) // BLOCK)
    counts = torch.zeros(1 << bits, blocks, dtype=torch.int32, device=latents.device)
    _count[(blocks,)](latents, order, counts, len(latents), shift, bits, BLOCK)
    ends = counts.flatten().cumsum(0, dtype=torch.int32)
    out = torch.empty_like(latents)
    _place[(blocks,)](latents, order, ends, out, len(latents), shift, bits, (BLOCK, SLICE))
    return out
