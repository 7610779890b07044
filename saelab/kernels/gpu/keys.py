"""A value and a latent's number in one integer that sorts as the choice of latents does.

Larger keys come first: the larger value, and of equal values the lower latent. -0 equals 0, and NaN comes before
everything, so that a row that holds one shows it. All keys of a row differ, so the k-th largest is well defined and
nothing depends on the order in which they were found.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

EMPTY = tl.constexpr(-(1 << 63))
"""Sorts after every key."""
LAST = tl.constexpr((1 << 63) - 1)
NAN = tl.constexpr(0x7FC00000)
LOW = tl.constexpr(0x7FFFFFFF)


@triton.jit
def pack(values, latents):
    """Keys of fp32 values and latents."""
    values = tl.where(values == 0, 0.0, values)
    bits = tl.where(values != values, NAN, values.to(tl.int32, bitcast=True))
    high = bits ^ ((bits >> 31) & LOW)  # makes negative floats sort as integers do
    return (high.to(tl.int64) << 32) | (latents.to(tl.int32) ^ LOW).to(tl.int64)


@triton.jit
def value_of(keys):
    """The fp32 values in keys."""
    high = (keys >> 32).to(tl.int32)
    return (high ^ ((high >> 31) & LOW)).to(tl.float32, bitcast=True)


@triton.jit
def latent_of(keys):
    """The latents in keys, int64."""
    return (keys & 0xFFFFFFFF) ^ LOW


@triton.jit
def kth_largest(keys, k):
    """The k-th largest of one program's keys [n]; EMPTY where there are fewer.

    A threshold is found bit by bit, down to the first one that exactly k keys reach; some 20 bits do, as a rule.
    """
    one = tl.full((), 1, tl.int64)
    reach = tl.sum((keys >= 0).to(tl.int32), axis=0)
    threshold = tl.where(reach >= k, tl.full((), 0, tl.int64), tl.full((), EMPTY, tl.int64))
    bit = tl.where(reach == k, -1, 62)
    while bit >= 0:
        tried = threshold + (one << bit)
        reach = tl.sum((keys >= tried).to(tl.int32), axis=0)
        threshold = tl.where(reach >= k, tried, threshold)
        bit = tl.where(reach == k, -1, bit - 1)
    return tl.min(tl.where(keys >= threshold, keys, LAST), axis=0)


@triton.jit
def best_of(best, new, LANES: tl.constexpr):
    """The LANES largest of two lists [LANES] of keys, largest first."""
    both = tl.sort(tl.reshape(tl.join(best, new), (2 * LANES,)), descending=True)
    upper = (tl.arange(0, 2) == 0)[:, None]
    return tl.sum(tl.where(upper, tl.reshape(both, (2, LANES)), 0), axis=0)


def packed(values: Tensor) -> Tensor:
    """Keys [B, L] of fp32 values [B, L], entry j that of latent j; in plain torch."""
    values = values.float().where(values != 0, 0.0)
    bits = values.contiguous().view(torch.int32).masked_fill(values.isnan(), NAN.value)
    high = bits ^ ((bits >> 31) & LOW.value)
    return (high.long() << 32) | (LOW.value - torch.arange(values.shape[1], device=values.device))


def unpacked(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Values (fp32) and latents (int64) of keys; in plain torch."""
    high = (keys >> 32).int()
    return (high ^ ((high >> 31) & LOW.value)).view(torch.float32), LOW.value - (keys & 0xFFFFFFFF)
