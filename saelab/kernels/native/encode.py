"""The k largest pre-activations of every row, screened with small integers and computed in float (encode.cpp).

Nothing of size [B, L] is made. Rows that the screen leaves open (NaN, ties by the hundred, rounding errors that do not
behave as independent ones do) are computed in full by the caller, and counted in `tally`.
"""

# Shape letters: B rows, D columns, L latents, K kept per row, O outlier columns.

from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.kernels.native import library, ptr

LEAST_ROWS, LEAST_LATENTS, LEAST_COLUMNS = 128, 1024, 32
"""Below these the integers of the weights cost more than they save."""
MOST_OUTLIERS, OUTLIER = 16, 4.0
"""Columns whose share of the products' size is OUTLIER times the median's go through the screen in float."""
SAMPLE = 1024
"""Latents whose columns are looked at."""


@dataclass
class Tally:
    """What the screen has done in this process."""

    rows: int = 0
    candidates: int = 0
    """Pre-activations computed in float."""
    open: int = 0
    """Rows it left to be computed in full."""


tally = Tally()


def is_worth_screening(centred: Tensor, weight: Tensor, k: int) -> bool:
    """Whether the screen is worth its while for rows [B, D] and weights [L, D]."""
    n_latents, width = weight.shape
    big = len(centred) >= LEAST_ROWS and n_latents >= LEAST_LATENTS and width >= LEAST_COLUMNS
    return big and k * 8 <= n_latents and bool(library().saelab_screens())  # type: ignore[union-attr]


def largest(centred: Tensor, weight: Tensor, bias: Tensor, k: int, absolute: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of each row of centred @ weight.T + bias, largest first.

    Returns:
        values [B, K]; indices [B, K] int64; open [n] int64: numbers of the rows that must be computed in full.
    """
    values = torch.empty(len(centred), k)
    indices = torch.empty(len(centred), k, dtype=torch.int64)
    counts = torch.empty(len(centred), dtype=torch.int32)
    _encode(centred, weight, bias, None, k, absolute, values, indices, counts)
    return values, indices, (counts < 0).nonzero().squeeze(1)


def above(
    centred: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of centred @ weight.T + bias that exceed their latent's threshold [L], largest first.

    Returns:
        values [B, width], unused entries 0; indices [B, width]; numbers of the rows that must be computed in full,
        those with more than `width` entries among them.
    """
    values = torch.empty(len(centred), width)
    indices = torch.empty(len(centred), width, dtype=torch.int64)
    counts = torch.empty(len(centred), dtype=torch.int32)
    padded = torch.full((-(-len(weight) // 16) * 16,), torch.inf)
    padded[: len(weight)] = threshold
    _encode(centred, weight, bias, padded, 0, False, values, indices, counts)
    return values, indices, (counts < 0).nonzero().squeeze(1)


def _encode(
    centred: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor | None, k: int, absolute: bool, *out: Tensor
) -> None:
    lib = library()
    assert lib is not None
    centred, weight, bias = centred.contiguous(), weight.detach().contiguous(), bias.detach().contiguous()
    n_latents, width = weight.shape
    by_row, by_latent, outliers = _columns(centred, weight)
    slots, padded = -(-n_latents // 16) * 16, lib.saelab_padded(width)
    packed = torch.empty(slots * padded, dtype=torch.int8)
    scale, length_w, length_e, padded_bias = torch.zeros(4, slots).unbind(0)
    shift = torch.empty(slots, dtype=torch.int32)
    apart = torch.empty(slots * len(outliers))
    padded_bias[:n_latents] = bias
    lib.saelab_pack(
        *(ptr(weight), ptr(by_latent), n_latents, width, ptr(packed), ptr(scale), ptr(shift)),
        *(ptr(length_w), ptr(length_e), ptr(outliers), len(outliers), ptr(apart)),
    )
    values, indices, counts = out
    seen = torch.zeros(2, dtype=torch.int64)
    lib.saelab_encode(
        *(ptr(centred), ptr(weight), ptr(bias), ptr(padded_bias), ptr(threshold), ptr(by_row), len(centred), n_latents),
        *(width, k, int(absolute), ptr(packed), ptr(scale), ptr(shift), ptr(length_w), ptr(length_e)),
        *(ptr(outliers), len(outliers), ptr(apart), values.shape[1], ptr(values), ptr(indices), ptr(counts), ptr(seen)),
    )
    tally.rows += len(centred)
    tally.candidates += int(seen[0])
    tally.open += int(seen[1])


def _columns(centred: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of the columns for rows and weights [D], equal in size after them, and the numbers of outliers [O]."""
    rows = centred.square().mean(0).sqrt()
    weights = weight[:: max(1, len(weight) // SAMPLE)].square().mean(0).sqrt()
    share = (rows * weights).sqrt()
    apart = torch.zeros_like(share, dtype=torch.bool)
    top = share.topk(min(MOST_OUTLIERS, len(share)))
    apart[top.indices[top.values > OUTLIER * share.median()]] = True
    by_latent = (rows / weights).sqrt()
    by_latent = by_latent.where(by_latent.isfinite() & (by_latent > 0), 1.0)
    by_row = (1 / by_latent).masked_fill(apart, 0)
    outliers = apart.nonzero().squeeze(1).to(torch.int32)
    return by_row.contiguous(), by_latent.masked_fill(apart, 0).contiguous(), outliers
