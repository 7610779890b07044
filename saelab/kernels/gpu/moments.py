"""How the two averages of Adam are kept for a row of a weight: fp32, bf16, or 8 bits a number.

Narrow ones are rounded up or down at random, so that the mean over chances is the number: to the nearest, most steps
of the average square would be lost, which move it by a thousandth. The 8-bit floats have 4 bits of exponent and 3 of
mantissa (e4m3) and a scale per row, which brings the row's largest number to the largest of them; of the average
square the root is kept. They are put together from their bits, so any GPU will do, and Triton's interpreter.

Chance comes from a counter, Philox with 7 rounds (Salmon et al. 2011): the same seed, step, latent and column give the
same bits wherever they are worked out.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

FLOAT32, BFLOAT16, FLOAT8 = 0, 1, 2


class Moments(NamedTuple):
    """Both averages of a weight [L, D]."""

    first: Tensor
    """[L, D]: float32, int16 (the bits of bfloat16) or uint8 (the bits of e4m3)."""
    second: Tensor
    """Of squares; of 8 bits: their roots."""
    scale: Tensor | None = None
    """Of 8-bit rows of `first`, [L]."""
    scale_sq: Tensor | None = None
    """Of 8-bit rows of `second`, [L]."""


@triton.jit
def read(average, scale, latent, columns, WIDTH: tl.constexpr, KIND: tl.constexpr):
    """A row of an average as it is kept, in fp32 (8 bits: times the row's scale)."""
    codes = tl.load(average + latent * WIDTH + columns, mask=columns < WIDTH, other=0)
    if KIND == 0:
        values = codes
    elif KIND == 1:
        values = (codes.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        values = decode8(codes.to(tl.int32)) * tl.load(scale + latent)
    return values


@triton.jit
def decode8(codes):
    """The numbers that 8-bit codes (int32) stand for."""
    size = codes & 127
    normal = ((size + 960) << 20).to(tl.float32, bitcast=True)  # 960 is 8 * (127 - 7), the difference of the biases
    values = tl.where(size < 8, size.to(tl.float32) * 0.001953125, normal)
    return tl.where(codes >= 128, -values, values)


@triton.jit
def encode8(values, chance):
    """8-bit codes (int32) of values up to 448, rounded up or down by 32 random bits."""
    size = tl.where(values == values, tl.abs(values), 0.0)
    normal = ((size.to(tl.int32, bitcast=True) + (chance & 0xFFFFF).to(tl.int32)) >> 20) - 960
    share = (chance >> 8).to(tl.int32).to(tl.float32) * (1.0 / (1 << 24))
    small = tl.floor(size * 512.0 + share).to(tl.int32)
    codes = tl.minimum(tl.where(size < 0.015625, small, normal), 126)
    codes = tl.where(values != values, 127, codes)
    return tl.where(values < 0, codes | 128, codes)


@triton.jit
def write(average, scale, latent, columns, values, chance, WIDTH: tl.constexpr, KIND: tl.constexpr):
    """Keep a row of an average, `values` in fp32."""
    place = average + latent * WIDTH + columns
    inside = columns < WIDTH
    if KIND == 0:
        tl.store(place, values, mask=inside)
    elif KIND == 1:
        bits = values.to(tl.int32, bitcast=True)
        up = tl.where(values == values, (chance & 0xFFFF).to(tl.int32), 0)  # a NaN stays one
        tl.store(place, ((bits + up) >> 16).to(tl.int16), mask=inside)
    else:
        size = tl.max(tl.where(inside, tl.abs(values), 0.0), axis=0) / 448.0
        tl.store(scale + latent, size)
        codes = encode8(values / tl.maximum(size, 1.1754943508222875e-38), chance)
        tl.store(place, codes.to(tl.uint8), mask=inside)


@triton.jit
def chances(seed, columns, latent, step):
    """Two words of 32 random bits for each column of a latent's row in a step."""
    own = (columns * 0 + latent).to(tl.uint32)
    when = (columns * 0 + step).to(tl.uint32)
    first, second, _, _ = tl.philox(seed, columns.to(tl.uint32), own, when, own * 0, n_rounds=7)
    return first, second
