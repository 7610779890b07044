"""The second half of the encoder: candidates computed again in fp32, and rows done again where that is not enough.

The screen's scores are off by what rounding to bf16 costs. Here the best candidates of a row get their exact values,
and the largest error seen among them, GUARD times, is what a latent that is no candidate is allowed to be off by: if
none of them could reach the k-th exact value, the k best are right. If one could, all survivors of the screen are
computed, against the bound that the last stage let pass; if that does not do either (many latents that are nearly
equal), or there were more survivors than room, the row is left open and done again over all latents.

The allowance is an estimate from the row itself, not a proof: errors of one row's scores are alike, for they come from
the same row and weights of the same kind, and the largest of 17 or more of them, times GUARD, is five or more of
their standard deviations.
"""

# Shape letters: B rows, D input width, L latents, K kept per row, C capacity of a row's survivors.

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from saelab.kernels.gpu.keys import EMPTY, best_of, latent_of, pack, value_of
from saelab.kernels.gpu.screen import Screened, ScreenSizes

GUARD = tl.constexpr(3.0)
PARTS = 16
"""Programs that share a row which is done again. A row has room for 16 times its candidates."""


class Chosen(NamedTuple):
    scores: Tensor
    """[B, K] fp32."""
    latents: Tensor
    """[B, K] int64."""


class RescoreShape(NamedTuple):
    """Numbers compiled into the kernels."""

    kept: int
    wanted: int
    """Candidates, kept and some more."""
    lanes: int
    """Latents computed at once, a power of two not below `wanted`."""
    columns: int
    """Columns taken at once."""
    capacity: int
    share: int = 1
    """Rows that a program looks after when rows are done again, a power of two."""


@triton.jit
def _exact(rows, weight, bias, row, latents, mask, sizes, S: tl.constexpr):
    """weight[latents] . rows[row] + bias[latents] in fp32, [lanes]."""
    LANES: tl.constexpr = S.lanes
    total = tl.zeros((LANES,), tl.float32)
    starts = latents.to(tl.int64)[:, None] * sizes.width
    for start in range(0, sizes.width, S.columns):
        columns = start + tl.arange(0, S.columns)
        inside = columns < sizes.width
        x = tl.load(rows + row * sizes.width + columns, mask=inside, other=0.0).to(tl.float32)
        read = mask[:, None] & inside[None, :]
        w = tl.load(weight + starts + columns[None, :], mask=read, other=0.0).to(tl.float32)
        total += tl.sum(w * x[None, :], axis=1)
    return total + tl.load(bias + latents, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _again(rows, weight, bias, row, keys, sizes, S: tl.constexpr):
    """Exact keys in place of screened ones, and the largest difference between the two."""
    latents = latent_of(keys)
    mask = (keys != EMPTY) & (latents < sizes.latents)
    latents = tl.where(mask, latents, 0)
    values = _exact(rows, weight, bias, row, latents, mask, sizes, S)
    error = tl.max(tl.where(mask, tl.abs(values - value_of(keys)), 0.0), axis=0)
    return tl.where(mask, pack(values, latents), EMPTY), error


@triton.jit
def _kept_last(best, S: tl.constexpr):
    """Value of the last one that would be kept, of keys [lanes], largest first."""
    at = tl.arange(0, S.lanes) == S.kept - 1
    return value_of(tl.sum(tl.where(at, best, 0), axis=0))


@triton.jit
def _write(chosen, row, best, S: tl.constexpr):
    lanes = tl.arange(0, S.lanes)
    tl.store(chosen.scores + row * S.kept + lanes, value_of(best), mask=lanes < S.kept)
    tl.store(chosen.latents + row * S.kept + lanes, latent_of(best), mask=lanes < S.kept)


@triton.jit
def rescore(rows, weight, bias, found, chosen, sizes, S: tl.constexpr):
    """Exact values of a row's candidates and the best of them; one program a row. rows [B, D] and weight are fp32."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, S.lanes)
    own = found.keys + row * S.capacity
    if tl.load(found.open + row) == 0:
        count = tl.load(found.counts + row)
        screened = tl.load(own + lanes, mask=(lanes < S.wanted) & (lanes < count), other=EMPTY)
        best, error = _again(rows, weight, bias, row, screened, sizes, S)
        best = tl.sort(best, descending=True)
        edge = tl.min(tl.where(screened != EMPTY, value_of(screened), float("inf")), axis=0)
        edge = tl.where(count > S.wanted, edge, tl.load(found.bounds + row))
        if not _kept_last(best, S) > edge + error * GUARD:
            for start in range(S.wanted, count, S.lanes):
                more = tl.load(own + start + lanes, mask=start + lanes < count, other=EMPTY)
                exact, off = _again(rows, weight, bias, row, more, sizes, S)
                best = best_of(best, exact, S.lanes)
                error = tl.maximum(error, off)
            if not _kept_last(best, S) > tl.load(found.bounds + row) + error * GUARD:
                tl.store(found.open + row, 1)
        _write(chosen, row, best, S)


@triton.jit
def redo_part(rows, weight, bias, found, sizes, PART: tl.constexpr, S: tl.constexpr):
    """The K best of a part of all latents, for every open row, into the place of the row's survivors."""
    begin = tl.program_id(1) * tl.cdiv(sizes.latents, PART)
    end = tl.minimum(begin + tl.cdiv(sizes.latents, PART), sizes.latents)
    LANES: tl.constexpr = S.lanes
    lanes = tl.arange(0, LANES)
    mine = tl.program_id(0) + tl.arange(0, S.share) * tl.num_programs(0)
    if tl.sum(tl.load(found.open + mine, mask=mine < sizes.rows, other=0), axis=0) > 0:
        for number in range(tl.program_id(0), sizes.rows, tl.num_programs(0)):
            if tl.load(found.open + number) != 0:
                row = tl.full((), 0, tl.int64) + number
                best = tl.full((LANES,), EMPTY, tl.int64)
                for start in range(begin, end, S.lanes):
                    latents = start + lanes
                    mask = latents < end
                    values = _exact(rows, weight, bias, row, latents, mask, sizes, S)
                    new = tl.where(mask, pack(values, latents), EMPTY)
                    if tl.max(new, axis=0) > tl.min(best, axis=0):
                        best = best_of(best, new, LANES)
                place = found.keys + row * S.capacity + tl.program_id(1) * S.kept
                tl.store(place + lanes, best, mask=lanes < S.kept)


@triton.jit
def redo_merge(found, chosen, sizes, PART: tl.constexpr, S: tl.constexpr):
    """The K best of what `redo_part` found."""
    LANES: tl.constexpr = S.lanes
    lanes = tl.arange(0, LANES)
    mine = tl.program_id(0) + tl.arange(0, S.share) * tl.num_programs(0)
    if tl.sum(tl.load(found.open + mine, mask=mine < sizes.rows, other=0), axis=0) > 0:
        for number in range(tl.program_id(0), sizes.rows, tl.num_programs(0)):
            if tl.load(found.open + number) != 0:
                row = tl.full((), 0, tl.int64) + number
                best = tl.full((LANES,), EMPTY, tl.int64)
                for start in range(0, PART * S.kept, S.lanes):
                    mask = start + lanes < PART * S.kept
                    new = tl.load(found.keys + row * S.capacity + start + lanes, mask=mask, other=EMPTY)
                    best = best_of(best, new, LANES)
                _write(chosen, row, best, S)


def finish(
    rows: Tensor, weight: Tensor, bias: Tensor, found: Screened, chosen: Chosen, sizes: ScreenSizes, shape: RescoreShape
) -> None:
    """The K best latents of every row with exact values, from the screen's survivors, into `chosen`."""
    programs = min(sizes.rows, 256)
    share = 1 << (-(-sizes.rows // programs) - 1).bit_length()
    shape = shape._replace(share=share)
    rescore[(sizes.rows,)](rows, weight, bias, found, chosen, sizes, shape)
    redo_part[(programs, PARTS)](rows, weight, bias, found, sizes, PARTS, shape)
    redo_merge[(programs,)](found, chosen, sizes, PARTS, shape)
