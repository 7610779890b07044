"""Sums over each latent's own entries on a GPU, always in the same order.

    sum_by_latent[l] = sum over latent l's entries of  value * rows[row of the entry]

One program a latent walks its entries. A few latents of a trained dictionary fire on most rows, and their programs
would end long after all others: where a latent has more than CHUNK entries, programs of their own sum chunks of CHUNK
first, and the latent's program adds those up. What belongs to which chunk follows from counts alone, on the GPU; room
is taken for as many chunks as there can be, N / 32 rows of D.
"""

# Shape letters: B rows, D width, L latents, K entries per row, N = B * K, C chunks.

from typing import Any, NamedTuple, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from saelab.kernels.gpu.device import on, power_of_2

CHUNK = 64


class SortedEntries(Protocol):
    """Entries in the order of their latents: `sort.Sorted` or `core.codes.Entries`."""

    @property
    def order(self) -> Tensor: ...
    @property
    def offsets(self) -> Tensor: ...
    @property
    def rows(self) -> Tensor: ...


class Part(NamedTuple):
    """One sum over entries, as kernels take it."""

    order: Tensor
    offsets: Tensor
    rows: Tensor
    amounts: Tensor
    """[B, K] values."""
    source: Tensor
    """[B, D], what is summed."""
    first_chunk: Tensor
    """[L]."""
    chunks: Tensor
    """Sums of chunks [C, D], fp32."""
    entries: int
    latents: int


class SumShape(NamedTuple):
    """Numbers compiled into the kernels."""

    width: int
    columns: int
    """A power of two, at least the width."""
    lanes: int
    """Entries taken at once."""
    chunk: int


def shape_for(width: int) -> SumShape:
    columns = max(16, power_of_2(width))
    return SumShape(width, columns, max(1, min(4, 4096 // columns)), CHUNK)


def warps_for(shape: SumShape) -> int:
    return 4 if shape.columns <= 1024 else 8


@triton.jit
def walk(part, begin, end, S: tl.constexpr):
    """Sum over the entries from place `begin` to `end` of the order, [columns]."""
    COLUMNS: tl.constexpr = S.columns
    columns = tl.arange(0, COLUMNS)
    inside = columns < S.width
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(begin, end, S.lanes):
        places = start + tl.arange(0, S.lanes)
        mask = places < end
        entries = tl.load(part.order + places, mask=mask, other=0)
        rows = tl.load(part.rows + places, mask=mask, other=0).to(tl.int64)
        amounts = tl.load(part.amounts + entries, mask=mask, other=0.0).to(tl.float32)
        read = mask[:, None] & inside[None, :]
        x = tl.load(part.source + rows[:, None] * S.width + columns[None, :], mask=read, other=0.0).to(tl.float32)
        total += tl.sum(amounts[:, None] * x, axis=0)
    return total


@triton.jit
def bounds(part, latent):
    """Where a latent's entries begin and end in the order."""
    begin = tl.load(part.offsets + latent)
    end = tl.load(part.offsets + latent + 1, mask=latent + 1 < part.latents, other=part.entries)
    return begin.to(tl.int32), end.to(tl.int32)


@triton.jit
def sum_of(part, latent, S: tl.constexpr):
    """A latent's whole sum, [columns], once chunks are summed."""
    COLUMNS: tl.constexpr = S.columns
    begin, end = bounds(part, latent)
    total = tl.zeros((COLUMNS,), tl.float32)
    if end - begin <= S.chunk:
        total = walk(part, begin, end, S)
    else:
        columns = tl.arange(0, COLUMNS)
        first = tl.load(part.first_chunk + latent)
        for chunk in range(first, first + tl.cdiv(end - begin, S.chunk)):
            place = part.chunks + (tl.full((), 0, tl.int64) + chunk) * S.width + columns
            total += tl.load(place, mask=columns < S.width, other=0.0)
    return total


@triton.jit
def _sum_chunk(part, chunk_latent, S: tl.constexpr):
    number = tl.program_id(0)
    latent = tl.load(chunk_latent + number)
    if latent < part.latents:
        begin, end = bounds(part, latent)
        begin += (number - tl.load(part.first_chunk + latent)).to(tl.int32) * S.chunk
        total = walk(part, begin, tl.minimum(begin + S.chunk, end), S)
        columns = tl.arange(0, S.columns)
        tl.store(part.chunks + number.to(tl.int64) * S.width + columns, total, mask=columns < S.width)


@triton.jit
def _sum_rows(part, out, S: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    total = sum_of(part, latent, S)
    columns = tl.arange(0, S.columns)
    tl.store(out + latent * S.width + columns, total, mask=columns < S.width)


def prepared(entries: SortedEntries, values: Tensor, rows: Tensor) -> Part:
    """A sum as kernels take it, its chunks summed; values [B, K] and rows [B, D]."""
    offsets, n_entries = entries.offsets, values.numel()
    ends = torch.cat([offsets[1:], offsets.new_full((1,), n_entries)])
    counts = ends - offsets
    chunks = torch.where(counts > CHUNK, (counts + CHUNK - 1) // CHUNK, 0).cumsum(0)
    first = torch.cat([chunks.new_zeros(1), chunks[:-1]])
    most = n_entries // (CHUNK // 2)
    shape = shape_for(rows.shape[1])
    part = Part(
        entries.order,
        offsets,
        entries.rows,
        values.detach().contiguous(),
        rows.detach().contiguous(),
        first,
        torch.empty(most, rows.shape[1], device=rows.device),
        n_entries,
        len(offsets),
    )
    if most:
        latents = torch.searchsorted(chunks, torch.arange(most, device=rows.device), right=True)
        with on(rows):
            _sum_chunk[(most,)](part, latents, shape, num_warps=warps_for(shape))
    return part


def sum_by_latent(entries: SortedEntries, values: Tensor, rows: Tensor) -> Tensor:
    """Row l is the sum over latent l's entries of value * rows[row of the entry]; [L, D] from [B, K] and [B, D]."""
    part: Any = prepared(entries, values, rows)
    out = torch.empty(part.latents, rows.shape[1], dtype=rows.dtype, device=rows.device)
    shape = shape_for(rows.shape[1])
    with on(rows):
        _sum_rows[(part.latents,)](part, out, shape, num_warps=warps_for(shape))
    return out


def totals(entries: SortedEntries, values: Tensor) -> Tensor:
    """Sum of each latent's own values, [L] from [B, K]: the gradient of a latent's bias."""
    ones = torch.ones(len(values), 1, device=values.device)
    return sum_by_latent(entries, values, ones).squeeze(1)
