"""AuxK on a GPU: dead latents reconstruct what the others leave over, with forward and backward pass in one.

    e      = target - x_hat
    f      = ReLU(the k_aux largest pre-activations among dead latents)
    e_hat  = f @ decoder[dead]
    loss   = weight * mean (e_hat - e)^2 / mean (e - e_bar)^2           e_bar: the batch mean of e

as in sae/losses/auxk.py (Gao et al. 2024, arXiv 2406.04093). k_aux is half of D or so, many times the k of the SAE
itself, and dead latents are few: their rows are gathered into a matrix of their own, on which all products are dense,
in the precision asked for, and what is sparse is only a mask. How many latents are dead is known on the GPU alone, so
the matrix has room for a fixed number; where more are dead, each call takes the next of them in turn. Rows go through
in blocks, so that memory does not grow with the batch.

Left out: taking part of the batch only. A caller who passes every fourth row pays a quarter, and gets an unbiased
estimate of the same gradient.
"""

# Shape letters: B rows, D input width, E output width, L latents, N room for dead latents.

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saelab.kernels.gpu.device import on, power_of_2

ROWS_AT_ONCE = 2048
LARGEST_ROOM = 1 << 15


class Pull(NamedTuple):
    """The loss and what pulls dead latents: gradients of the rows in slots."""

    loss: Tensor
    """[]"""
    slots: Tensor
    """The row below that is a latent's, -1 for none; [L] int32."""
    encoder: Tensor
    """[N, D] fp32."""
    bias: Tensor
    """Of the latents' bias, [N] fp32."""
    decoder: Tensor
    """[N, E] fp32."""
    output: Tensor
    """Of what is added to every reconstruction, [E] fp32."""


class Dead(NamedTuple):
    """The dead latents that take part."""

    latents: Tensor
    """[N] int64; where there are fewer, the rest is 0."""
    taken: Tensor
    """Which of them are meant, [N] bool."""
    slots: Tensor
    """[L] int32."""


def choose(dead: Tensor, room: int, turn: Tensor | int = 0) -> Dead:
    """At most `room` of the dead latents [L] bool, in turn: call number `turn` starts where the one before ended."""
    rank = dead.cumsum(0)
    count = rank[-1]
    # Where there is room for all, the order stays as it is, and so do sums.
    start = torch.where(count > room, turn * room, 0)
    rank = torch.where(dead, (rank - 1 - start) % count.clamp(min=1), room)
    slots = torch.where(rank < room, rank, room)
    latents = torch.zeros(room + 1, dtype=torch.int64, device=dead.device)
    latents.scatter_(0, slots, torch.arange(len(dead), device=dead.device))
    taken = torch.arange(room, device=dead.device) < count
    return Dead(latents[:-1].where(taken, 0), taken, torch.where(slots < room, slots, -1).int())


@triton.jit
def _keep_largest(scores, width, kept, SIZE: tl.constexpr):
    """Replace all but the `kept` largest scores of a row by 0, and negative ones; of equal ones the first stay."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, SIZE)
    inside = columns < width
    values = tl.load(scores + row * width + columns, mask=inside, other=float("-inf")).to(tl.float32)
    # What is not positive becomes 0 anyway, and the bits of the rest sort as the numbers do, NaN last of all.
    values = tl.where(values <= 0, 0.0, values)
    bits = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    least = tl.full((), 0, tl.int32)
    for step in range(31):
        tried = least + (tl.full((), 1, tl.int32) << (30 - step))
        least = tl.where(tl.sum((bits >= tried).to(tl.int32), axis=0) >= kept, tried, least)
    above = bits > least
    equal = bits == least
    room = kept - tl.sum(above.to(tl.int32), axis=0)
    stays = above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room))
    tl.store(scores + row * width + columns, tl.where(stays, values, 0.0), mask=inside)


def keep_largest(scores: Tensor, kept: int) -> None:
    """ReLU of the `kept` largest of every row of scores [B, N] and 0 elsewhere, in place."""
    assert scores.is_contiguous(), scores.stride()
    width = scores.shape[1]
    if scores.numel() and kept < width:
        size = power_of_2(width)
        with on(scores):
            _keep_largest[(len(scores),)](scores, width, kept, size, num_warps=min(16, max(4, size // 1024)))
    else:
        scores.relu_()


@torch.no_grad()
def auxk(
    centred: Tensor,
    error: Tensor,
    dead: Dead,
    weights: tuple[Tensor, Tensor, Tensor],
    k_aux: int,
    weight: float = 1 / 32,
    offset: Tensor | None = None,
    precision: torch.dtype = torch.bfloat16,
) -> Pull:
    """Loss and gradients of AuxK.

    Args:
        centred: [B, D] rows as the encoder reads them.
        error: [B, E], what is left over, target - reconstruction.
        dead: from `choose`.
        weights: encoder [L, D], its bias [L], decoder [L, E]; narrow copies will do.
        k_aux: kept per row.
        weight: of the loss.
        offset: [E], the decoder's bias, which tells variation from rounding; 0 by default.
        precision: of the products; sums over rows are in fp32.

    Returns:
        The loss, 0 where nothing is dead or the error does not vary, and its gradients.
    """
    encoder, bias, decoder = (part[dead.latents] for part in weights)
    encoder, decoder = encoder.to(precision), decoder.to(precision)
    # What is in no slot scores lowest, and ReLU takes it away.
    bias = bias.float().masked_fill(~dead.taken, -torch.inf)
    scale = _scale(error.float(), dead, weight, offset)
    pull = _nothing(dead, encoder, decoder)
    for start in range(0, len(centred), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        _add(pull, (centred[rows].to(precision), error[rows].float()), (encoder, bias, decoder), k_aux, scale)
    return pull


def _scale(error: Tensor, dead: Dead, weight: float, offset: Tensor | None) -> Tensor:
    """What squared errors are multiplied by, []; 0 where the loss is."""
    variance = (error - error.mean(0)).square().mean()
    noise = (error if offset is None else error + offset).square().mean() * (4 * torch.finfo(error.dtype).eps) ** 2
    counts = (variance > noise) & dead.taken.any()
    return torch.where(counts, weight / (variance.clamp_min(torch.finfo(error.dtype).tiny) * error.numel()), 0.0)


def _nothing(dead: Dead, encoder: Tensor, decoder: Tensor) -> Pull:
    def zeros(*shape: int) -> Tensor:
        return encoder.new_zeros(shape, dtype=torch.float32)

    return Pull(
        zeros(), dead.slots, zeros(*encoder.shape), zeros(len(encoder)), zeros(*decoder.shape), zeros(decoder.shape[1])
    )


def _add(
    pull: Pull, rows: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor, Tensor], k_aux: int, scale: Tensor
) -> None:
    """Add a block of rows' part to loss and gradients."""
    (centred, error), (encoder, bias, decoder) = rows, weights
    codes = (centred @ encoder.T).float().add_(bias)
    keep_largest(codes, min(k_aux, len(bias)))
    active = codes > 0
    codes = codes.to(centred.dtype)
    off = (codes @ decoder).float() - error
    pull.loss.add_(off.square().sum() * scale)
    off = off.mul_(2 * scale)
    pull.output.add_(off.sum(0))
    off = off.to(centred.dtype)
    pull.decoder.add_(codes.T @ off)
    slopes = (off @ decoder.T).mul_(active)
    pull.bias.add_(slopes.sum(0, dtype=torch.float32))
    pull.encoder.add_(slopes.T @ centred)
