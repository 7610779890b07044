"""The first half of the encoder: a bf16 product whose entries are looked at while they are in registers.

Each row has a bound, the value of its `wanted`-th best latent among those seen so far, so never more than the final
one. Every stage multiplies some more tiles of latents and appends what exceeds the bound to the row's survivors; after
a stage the best survivors are put in front and the bound rises. The first stage has no bound and keeps everything it
sees, which is as much as a row's survivors may be. A row with more survivors than that is marked open.

A tile's latents are not neighbours but spread evenly over all of them, and tiles follow one another in a scattered
order: in a dictionary that is sorted, say by how often its latents fire, the first stage would else give bounds that
say nothing about the rest.
"""

# Shape letters: B rows, D input width, L latents, C capacity of a row's survivors.

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from saelab.kernels.gpu.keys import EMPTY, kth_largest, pack, value_of


class Screened(NamedTuple):
    """What is known about every row. One row more swallows what the padding of the last tile finds."""

    keys: Tensor
    """Survivors, [B + 1, C] int64."""
    counts: Tensor
    """How many there were, also those for which there was no room; [B + 1] int32."""
    bounds: Tensor
    """Latents whose score is not greater are no survivors; [B + 1] fp32."""
    open: Tensor
    """Whether the row has to be done again, exactly; [B] int32."""


class ScreenSizes(NamedTuple):
    rows: int
    latents: int
    width: int


class Span(NamedTuple):
    """Which tiles of latents a stage takes: number `first` and on, each standing for tile (number * stride) % all.

    Tile t holds the latents t, t + all, t + 2 all, ...
    """

    first: int
    tiles: int
    stride: int
    all: int


class Tiles(NamedTuple):
    """How the product is cut; compiled into the kernel."""

    rows: int = 128
    latents: int = 128
    depth: int = 64
    group: int = 16
    """Tiles of rows that pass over the latents together, to find them in the second-level cache."""
    warps: int = 4
    buffers: int = 3
    """Tiles in flight from memory."""
    capacity: int = 1024
    keeps_all: bool = False
    """The first stage: no bound, survivors in order."""
    ragged: bool = True
    """Whether the last tile of latents is not full."""
    by_copy_engine: bool = False
    """Whether operands are tensor descriptors instead of pointers: of rows [B, D], and of the weight in the shape
    [latents, all * D], whose part from column t * D is tile t."""
    instructions: str | None = None
    """Machine instructions that append survivors; none for plain Triton."""


@triton.jit
def screen(rows, weight, bias, found, sizes, span, T: tl.constexpr):
    """Scores of a tile of rows and a tile of latents; what exceeds its row's bound joins the row's survivors.

    rows [B, D] and weight [L, D] are bf16, or descriptors; bias [L].
    """
    program = tl.program_id(0)
    in_group = T.group * span.tiles
    first_row_tile = program // in_group * T.group
    height = min(tl.cdiv(sizes.rows, T.rows) - first_row_tile, T.group)
    row = (first_row_tile + program % in_group % height) * T.rows
    number = program % in_group // height
    tile = ((span.first + number).to(tl.int64) * span.stride % span.all).to(tl.int32)
    latents = tile + tl.arange(0, T.latents) * span.all
    scores = _product(rows, weight, row, latents, tile, sizes, T)

    scores += tl.load(bias + latents, mask=latents < sizes.latents, other=0.0).to(tl.float32)[None, :]
    if T.ragged:
        scores = tl.where((latents < sizes.latents)[None, :], scores, float("-inf"))
    numbers = row + tl.arange(0, T.rows)
    if T.keeps_all:
        slots = number * T.latents + tl.arange(0, T.latents)
        keys = tl.where((latents < sizes.latents)[None, :], pack(scores, latents[None, :]), EMPTY)
        places = numbers.to(tl.int64)[:, None] * T.capacity + slots[None, :]
        tl.store(found.keys + places, keys, mask=(numbers < sizes.rows)[:, None])
    else:
        _append(scores, latents, tl.minimum(numbers, sizes.rows), found, T)


@triton.jit
def _product(rows, weight, row, latents, tile, sizes, T: tl.constexpr):
    ROWS: tl.constexpr = T.rows
    LATENTS: tl.constexpr = T.latents
    scores = tl.zeros((ROWS, LATENTS), tl.float32)
    if T.by_copy_engine:
        for start in range(0, sizes.width, T.depth):
            scores = tl.dot(rows.load([row, start]), weight.load([0, tile * sizes.width + start]).T, scores)
    else:
        local_rows = row + tl.arange(0, T.rows)
        row_starts = local_rows.to(tl.int64)[:, None] * sizes.width
        latent_starts = latents.to(tl.int64)[:, None] * sizes.width
        for start in range(0, sizes.width, T.depth):
            columns = (start + tl.arange(0, T.depth))[None, :]
            inside = columns < sizes.width
            left = tl.load(rows + row_starts + columns, mask=inside & (local_rows < sizes.rows)[:, None], other=0.0)
            mask = inside & (latents < sizes.latents)[:, None]
            right = tl.load(weight + latent_starts + columns, mask=mask, other=0.0)
            scores = tl.dot(left, right.T, scores)
    return scores


@triton.jit
def _append(scores, latents, rows, found, T: tl.constexpr):
    """`rows` names the swallowing row for padding. Passes what is not below the bound, hence NaN too."""
    bounds = tl.broadcast_to(tl.load(found.bounds + rows)[:, None], scores.shape)
    counters = tl.broadcast_to((found.counts + rows)[:, None], scores.shape)
    lists = tl.broadcast_to((found.keys + rows.to(tl.int64) * T.capacity)[:, None], scores.shape)
    numbers = tl.broadcast_to(latents[None, :], scores.shape)
    if T.instructions is not None:
        tl.inline_asm_elementwise(
            T.instructions,
            "=&r,=&r,=&r,=&r,f,f,f,f,f,f,f,f,r,r,r,r,l,l,l,l,l,l,l,l",
            [scores, bounds, numbers, counters.to(tl.int64), lists.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=4,
        )
    else:
        passes = (scores > bounds) | (scores != scores) | (bounds != bounds)
        slots = tl.atomic_add(counters, 1, mask=passes, sem="relaxed")
        tl.store(lists + slots, pack(scores, numbers), mask=passes & (slots < T.capacity))


def appending(capacity: int) -> str:
    """Machine instructions (PTX) for four scores at a time: $4 scores, $8 bounds, $12 latents, $16 counters, $20 lists.

    A store of Triton's own would move the whole tile through shared memory into another layout; this leaves it in the
    registers of the matrix unit, and passes over four scores at once when none exceeds its bound. All counters are
    asked first, so that their answers are waited for once.
    """
    lanes = range(4)
    lines = ["{", ".reg .pred p<4>, any, room, odd;", ".reg .b32 slot<4>, high, low, sign;", ".reg .f32 value;"]
    lines += [".reg .b64 place, key;"]
    lines += [
        f"mov.b32 ${i}, 0; setp.gtu.f32 p{i}, ${4 + i}, ${8 + i};" for i in lanes
    ]  # gtu: also where either is NaN
    lines += ["or.pred any, p0, p1; or.pred any, any, p2; or.pred any, any, p3;", "@!any bra DONE;"]
    lines += [f"mov.b32 slot{i}, -1; @p{i} atom.relaxed.gpu.global.add.u32 slot{i}, [${16 + i}], 1;" for i in lanes]
    for i in lanes:
        lines += [
            f"add.f32 value, ${4 + i}, 0f00000000; mov.b32 high, value;",  # -0 becomes 0
            f"setp.nan.f32 odd, ${4 + i}, ${4 + i}; selp.b32 high, 0x7FC00000, high, odd;",
            "shr.s32 sign, high, 31; and.b32 sign, sign, 0x7FFFFFFF; xor.b32 high, high, sign;",
            f"sub.u32 low, 0x7FFFFFFF, ${12 + i}; mov.b64 key, {{low, high}};",
            f"setp.lt.u32 room, slot{i}, {capacity}; mad.wide.u32 place, slot{i}, 8, ${20 + i};",
            "@room st.global.b64 [place], key;",
        ]
    return "\n".join([*lines, "DONE:", "}"])


@triton.jit
def settle(found, wanted, CAPACITY: tl.constexpr, IS_LAST: tl.constexpr):
    """Put a row's `wanted` best survivors in front, and raise its bound to the last of them; one program a row.

    After the last stage the bound stays, because all that it let through is still there behind the best.
    """
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(found.counts + row)
    slots = tl.arange(0, CAPACITY)
    keys = tl.load(found.keys + row * CAPACITY + slots, mask=slots < count, other=EMPTY)
    last = kth_largest(keys, wanted)
    is_best = (keys >= last) & (keys != EMPTY)
    ahead = tl.cumsum(is_best.to(tl.int32), axis=0)
    tl.debug_barrier()  # everything is read before anything is written
    # Of the n others before slot s, s - ahead lie before it: they keep their order behind the best.
    n_best = tl.sum(is_best.to(tl.int32), axis=0)
    places = tl.where(is_best, ahead - 1, n_best + slots - ahead)
    tl.store(found.keys + row * CAPACITY + places, keys)
    if count > CAPACITY:
        tl.store(found.open + row, 1)
    if IS_LAST:
        tl.store(found.counts + row, tl.minimum(count, CAPACITY))
    else:
        tl.store(found.counts + row, n_best)
        bound = tl.where(count > CAPACITY, float("inf"), value_of(last))
        tl.store(found.bounds + row, bound)


def run_stage(
    operands: tuple[Any, Any], bias: Tensor, found: Screened, sizes: ScreenSizes, span: Span, tiles: Tiles
) -> None:
    """Start `screen` over one stage's tiles."""
    programs = -(-sizes.rows // tiles.rows) * span.tiles
    screen[(programs,)](*operands, bias, found, sizes, span, tiles, num_warps=tiles.warps, num_stages=tiles.buffers)
