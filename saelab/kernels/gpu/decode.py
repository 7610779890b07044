"""Sparse decoding on a GPU: one program a row (and block of columns) gathers the directions that its codes name.

    bag[b]         = sum_j values[b, j] * weight[indices[b, j]]
    dot_at[b, j]   = rows[b] . weight[indices[b, j]]
    residual[b]    = bag[b] + bias - target[b]

Sums are in fp32 whatever the weight's precision (a bf16 copy halves what is read) and always in the same order. The
directions of a batch are read B * K times, mostly from the second-level cache where few latents make up most entries.
"""

# Shape letters: B rows, D width, L latents, K entries per row.

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saelab.kernels.gpu.device import column_block, on, power_of_2


class DecodeShape(NamedTuple):
    """Numbers compiled into the kernels."""

    kept: int
    width: int
    columns: int
    lanes: int = 1
    """Entries taken at once."""


@triton.jit
def _sum(indices, values, weight, row, columns, S: tl.constexpr):
    """Sum of a row's directions in some columns; fp32."""
    COLUMNS: tl.constexpr = S.columns
    inside = columns < S.width
    total = tl.zeros((COLUMNS,), tl.float32)
    for entry in range(S.kept):
        latent = tl.load(indices + row * S.kept + entry).to(tl.int64)
        value = tl.load(values + row * S.kept + entry).to(tl.float32)
        total += value * tl.load(weight + latent * S.width + columns, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def _bag(indices, values, weight, out, S: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * S.columns + tl.arange(0, S.columns)
    total = _sum(indices, values, weight, row, columns, S)
    tl.store(out + row * S.width + columns, total, mask=columns < S.width)


@triton.jit
def _residual(indices, values, weight, bias, target, residual, squares, S: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * S.columns + tl.arange(0, S.columns)
    inside = columns < S.width
    total = _sum(indices, values, weight, row, columns, S)
    total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    total -= tl.load(target + row * S.width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(residual + row * S.width + columns, total, mask=inside)
    tl.store(squares + row * tl.num_programs(1) + tl.program_id(1), tl.sum(total * total, axis=0))


@triton.jit
def _dots(indices, rows, weight, out, S: tl.constexpr):
    LANES: tl.constexpr = S.lanes
    row = tl.program_id(0).to(tl.int64)
    entries = tl.program_id(1) * LANES + tl.arange(0, LANES)
    mask = entries < S.kept
    latents = tl.load(indices + row * S.kept + entries, mask=mask, other=0).to(tl.int64)
    total = tl.zeros((LANES,), tl.float32)
    for start in range(0, S.width, S.columns):
        columns = start + tl.arange(0, S.columns)
        inside = columns < S.width
        x = tl.load(rows + row * S.width + columns, mask=inside, other=0.0).to(tl.float32)
        read = mask[:, None] & inside[None, :]
        w = tl.load(weight + latents[:, None] * S.width + columns[None, :], mask=read, other=0.0).to(tl.float32)
        total += tl.sum(w * x[None, :], axis=1)
    tl.store(out + row * S.kept + entries, total, mask=mask)


def bag(indices: Tensor, weight: Tensor, values: Tensor) -> Tensor:
    """Row b is the sum over its entries of value * weight[index]; [B, D] from [B, K], [L, D], [B, K].

    The result has the weight's precision.
    """
    indices, weight, values = indices.contiguous(), weight.contiguous(), values.contiguous()
    out = weight.new_empty(len(indices), weight.shape[1])
    shape = DecodeShape(indices.shape[1], weight.shape[1], column_block(weight.shape[1]))
    if out.numel():
        with on(weight):
            grid = (len(indices), -(-shape.width // shape.columns))
            _bag[grid](indices, values, weight, out, shape)
    return out


def dot_at(indices: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Entry (b, j) is rows[b] . weight[indices[b, j]]; [B, K] fp32 from [B, K], [B, D] and [L, D]."""
    indices, rows, weight = indices.contiguous(), rows.contiguous(), weight.contiguous()
    out = torch.empty(indices.shape, dtype=torch.float32, device=weight.device)
    if out.numel():
        lanes = min(64, max(1, power_of_2(indices.shape[1])))
        columns = column_block(weight.shape[1], max(16, 4096 // lanes))
        shape = DecodeShape(indices.shape[1], weight.shape[1], columns, lanes)
        with on(weight):
            _dots[(len(indices), -(-shape.kept // lanes))](indices, rows, weight, out, shape)
    return out


def decode_residual(
    indices: Tensor, values: Tensor, weight: Tensor, bias: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """What reconstructions are off by, in one pass over the directions.

    Args:
        indices, values: [B, K] codes.
        weight: [L, D], fp32 or a bf16 copy; bias: [D].
        target: [B, D], rows to reconstruct, of any precision.

    Returns:
        Reconstruction - target, [B, D] fp32, and the sum of its squares, a scalar.
    """
    indices, values, target = indices.contiguous(), values.contiguous(), target.contiguous()
    residual = torch.empty(target.shape, dtype=torch.float32, device=target.device)
    shape = DecodeShape(indices.shape[1], weight.shape[1], column_block(weight.shape[1]))
    grid = (len(indices), -(-shape.width // shape.columns))
    squares = residual.new_empty(grid)
    if residual.numel():
        with on(weight):
            _residual[grid](indices, values, weight.contiguous(), bias, target, residual, squares, shape)
    return residual, squares.sum()
