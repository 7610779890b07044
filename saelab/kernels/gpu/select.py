"""The k largest pre-activations of every row on a GPU, without the [B, L] product.

    pre = centred @ weight.T + bias        values, indices = the k largest of each row of pre

Latents are screened in bf16 with fp32 sums, in stages, each of which lets through only what can still be among the
best (`screen.py`); some more candidates than k get their exact fp32 values, and rows for which that does not settle
the matter are done again over all latents (`rescore.py`). The result is that of fp32 throughout, largest first, of
equal values the lower latent, NaN before everything.

Memory beside operands and results: 8 bytes times the capacity (1024 for k up to 48) for each of at most ROWS_AT_ONCE
rows, whatever L is. Nothing waits for the GPU, and shapes depend on the arguments' shapes alone, so that a call can be
part of a CUDA graph.

Where k is more than a 16th of L, or larger than 480, so few latents are left out that there is nothing to screen: rows
are taken in blocks, each through an fp32 product in plain torch (`by_blocks`).
"""

# RescoreShape letters: B rows, D input width, L latents, K kept per row.

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from saelab.kernels.gpu.device import can_copy_tiles, column_block, is_interpreted, on, operand, power_of_2
from saelab.kernels.gpu.keys import packed, unpacked
from saelab.kernels.gpu.rescore import Chosen, RescoreShape, finish
from saelab.kernels.gpu.screen import Screened, ScreenSizes, Span, Tiles, appending, run_stage, settle

ROWS_AT_ONCE = 1 << 15
BLOCK_ENTRIES = 1 << 24
MOST_CANDIDATES = 512
SHARE = 16
"""With fewer latents than this times k, blocks of rows in plain torch are the better way."""


@dataclass(frozen=True)
class Plan:
    """How many latents are looked at when, and with how much room."""

    candidates: int
    """Per row, that get exact values; k and some more."""
    tiles: Tiles
    stages: tuple[Span, ...]

    @classmethod
    def of(cls, n_latents: int, k: int, tiles: Tiles | None = None, margin: int | None = None) -> "Plan":
        """For so many latents and k.

        Args:
            n_latents: L; k: kept per row.
            tiles: sizes of the product; the capacity of a row is theirs if given, else 16 candidates or more.
            margin: candidates beside k; a quarter of k, at least 16, by default.
        """
        candidates = min(n_latents, k + (max(16, k // 4) if margin is None else margin))
        if tiles is None:
            tiles = Tiles(capacity=max(1024, power_of_2(16 * candidates)))
        count = -(-n_latents // tiles.latents)
        tiles = tiles._replace(ragged=n_latents % tiles.latents != 0)
        stride = _scattering(count)
        # A row's bound lets through about candidates * (latents of the stage / latents seen before), give or take.
        growth = max(2.0, tiles.capacity / (2.5 * candidates))
        first = min(count, max(1, tiles.capacity // tiles.latents))
        further = max(0, math.ceil(math.log(count / first, growth) - 1e-9))
        ends = [first, *(round(first * (count / first) ** (stage / further)) for stage in range(1, further + 1))]
        spans = [Span(begin, end - begin, stride, count) for begin, end in zip([0, *ends], ends, strict=False)]
        return cls(candidates, tiles, tuple(span for span in spans if span.tiles))


def _scattering(count: int) -> int:
    """A stride near the golden ratio of `count` that visits every one of so many tiles once."""
    stride = max(1, round(count * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride


def topk_linear_forward(
    centred: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int,
    shadow: Tensor | None = None,
    plan: Plan | None = None,
    redone: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k largest of every row of centred @ weight.T + bias, largest first, equal values by latent.

    Args:
        centred: [B, D] rows; weight: [L, D]; bias: [L].
        k: 1 <= k <= L.
        shadow: [L, D], the weight rounded to bf16; made if not given.
        plan: of the screen; by default one for L and k.
        redone: [] int64 on the same device; the number of rows that had to be done again is added.

    Returns:
        values [B, K] fp32 and latents [B, K] int64. They carry no gradient.
    """
    n_latents = len(weight)
    assert 1 <= k <= n_latents, (k, n_latents)
    if k * SHARE > n_latents or k + max(16, k // 4) > MOST_CANDIDATES:
        return by_blocks(centred, weight, bias, k)
    plan = Plan.of(n_latents, k) if plan is None else plan
    centred, weight, bias = centred.detach().contiguous(), weight.detach().contiguous(), bias.detach().contiguous()
    rounded = operand(weight if shadow is None else shadow)
    chosen = Chosen(centred.new_empty(len(centred), k, dtype=torch.float32), _integers(centred, len(centred), k))
    with on(centred):
        for start in range(0, len(centred), ROWS_AT_ONCE):
            rows = centred[start : start + ROWS_AT_ONCE]
            part = Chosen(*(result[start : start + ROWS_AT_ONCE] for result in chosen))
            still_open = _select(rows, weight, rounded, bias, part, plan)
            if redone is not None:
                redone += still_open.sum()
    return chosen.scores, chosen.latents


def _integers(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device=like.device)


def _select(rows: Tensor, weight: Tensor, rounded: Tensor, bias: Tensor, chosen: Chosen, plan: Plan) -> Tensor:
    """Fill in the chosen latents of a block of rows; returns which of them were done again, [B]."""
    sizes = ScreenSizes(len(rows), *weight.shape)
    found = _nothing_found(rows, plan)
    narrow = operand(rows)
    tiles = plan.tiles._replace(instructions=None if is_interpreted(rows) else appending(plan.tiles.capacity))
    operands: tuple[Any, Any] = (narrow, rounded)
    # A ragged matrix has no shape in which tiles are blocks; with a ragged depth, tiles would reach into the next ones.
    if can_copy_tiles(narrow, rounded) and not tiles.ragged and sizes.width % tiles.depth == 0:
        tiles, operands = tiles._replace(by_copy_engine=True), descriptors(narrow, rounded, tiles)
    capacity = tiles.capacity
    for number, span in enumerate(plan.stages):
        run_stage(operands, bias, found, sizes, span, tiles._replace(keeps_all=number == 0))
        is_last = number == len(plan.stages) - 1
        settle[(sizes.rows,)](found, plan.candidates, capacity, is_last, num_warps=min(16, max(1, capacity // 512)))
    lanes = max(16, power_of_2(plan.candidates))
    columns = column_block(sizes.width, max(16, 4096 // lanes))
    shape = RescoreShape(chosen.scores.shape[1], plan.candidates, lanes, columns, capacity)
    finish(rows, weight, bias, found, chosen, sizes, shape)
    return found.open


def descriptors(narrow: Tensor, rounded: Tensor, tiles: Tiles) -> tuple[Any, Any]:
    """What the copy engine has to know of the rows [B, D] and the weight [L, D], L a multiple of a tile's latents."""
    spread = rounded.view(tiles.latents, -1)
    return (
        TensorDescriptor.from_tensor(narrow, [tiles.rows, tiles.depth]),
        TensorDescriptor.from_tensor(spread, [tiles.latents, tiles.depth]),
    )


def _nothing_found(rows: Tensor, plan: Plan) -> Screened:
    count, tiles = len(rows), plan.tiles
    return Screened(
        keys=_integers(rows, count + 1, tiles.capacity),
        counts=torch.full((count + 1,), plan.stages[0].tiles * tiles.latents, dtype=torch.int32, device=rows.device),
        bounds=torch.full((count + 1,), -torch.inf, dtype=torch.float32, device=rows.device),
        open=torch.zeros(count, dtype=torch.int32, device=rows.device),
    )


def by_blocks(centred: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`topk_linear_forward` in plain torch: [rows, L] of a block of rows at a time, in fp32."""
    values = centred.new_empty(len(centred), k, dtype=torch.float32)
    indices = _integers(centred, len(centred), k)
    size = max(1, BLOCK_ENTRIES // len(weight))
    for start in range(0, len(centred), size):
        block = slice(start, start + size)
        pre = F.linear(centred[block].float(), weight.float(), bias.float())
        values[block], indices[block] = unpacked(packed(pre).topk(k, dim=1).values)
    return values, indices
