"""Matryoshka: the first m latents alone should reconstruct too, for several m.

    x_hat_m = sum over latents i < m of f_i d_i + b_dec
    loss    = weight * sum over inner prefixes m < L of  mean (x_hat_m - target)^2 / variance

Bussmann et al. 2025 (arXiv 2503.17547): early latents learn what is general, and general latents are absorbed into
special ones less. The full prefix is the objective's own reconstruction, which the inner ones are added to. The
authors' code instead takes the mean over the full prefix, the inner ones and the bias alone, G + 1 terms in all: that
is ours with weight 1 and a prefix of 0, divided by G + 1. So the same optimum, but next to it the other terms (AuxK, a
sparsity penalty) weigh G + 1 times less here.

Prefixes are fixed, or drawn anew for every batch after Nabeshima: the lengths are log-uniform here, as likely from 10
to 20 as from 1000 to 2000, which is our choice. With a `CrossLayer` dictionary the first latents are those of the first
sites.
"""

# Shape letters: B rows, D input width, L latents of this shard, K entries per row, G inner prefixes.

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import Module

from saelab.core.codes import Codes
from saelab.sae.base import Forward, Loss, Sizes

SHARES = [1 / 16, 1 / 8, 1 / 4, 1 / 2]


class Matryoshka(Loss):
    """Reconstruct from nested prefixes of the latents as well.

    Args:
        prefixes: lengths of the inner prefixes as shares of all latents, rising, at least 0 and below 1; 0 is the
            bias alone. By default 1/16, 1/8, 1/4 and 1/2, where none are drawn.
        sampled: how many prefixes to draw for every batch instead; 0 for fixed ones.
        weight: of every inner reconstruction, where that of all latents weighs 1.
    """

    def __init__(self, prefixes: list[float] | None = None, sampled: int = 0, weight: float = 1.0):
        Module.__init__(self)
        self.prefixes = prefixes
        self.sampled = sampled
        self.weight = weight

    def setup(self, sizes: Sizes) -> None:
        if self.sampled < 0:
            raise ValueError(f"Matryoshka: sampled must not be negative, got {self.sampled}")
        if self.sampled and self.prefixes is not None:
            raise ValueError("Matryoshka: give prefixes or sampled, not both")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"Matryoshka: weight must not be negative, infinite or NaN, got {self.weight}")
        if self.sampled and sizes.n_latents < 2:
            raise ValueError("Matryoshka: sampled prefixes need at least 2 latents")
        self.n_latents = sizes.n_latents
        self.fixed = [] if self.sampled else self._lengths(SHARES if self.prefixes is None else self.prefixes)

    def _lengths(self, shares: list[float]) -> list[int]:
        if not isinstance(shares, list) or not shares or not all(isinstance(s, (int, float)) for s in shares):
            raise ValueError(f"Matryoshka: prefixes must be a list of shares of the latents, got {shares!r}")
        if not all(0 <= share < 1 for share in shares):
            raise ValueError(f"Matryoshka: prefixes must be shares from 0 to below 1, got {shares}")
        lengths = [round(share * self.n_latents) for share in shares]
        if any(later <= earlier for earlier, later in pairwise(lengths)) or lengths[-1] >= self.n_latents:
            raise ValueError(
                f"Matryoshka: prefixes must rise and stay below all {self.n_latents} latents; "
                f"{shares} are the first {lengths}"
            )
        return lengths

    def forward(self, step: Forward) -> Tensor:
        errors = [step.error(x_hat) for x_hat in nested(step, self.lengths(step))]
        return self.weight * torch.stack(errors).sum()

    def lengths(self, step: Forward) -> list[int]:
        """The inner prefixes of this batch, rising; drawn ones may repeat, and then count as often."""
        if not self.sampled:
            return self.fixed
        draws = torch.rand(self.sampled, generator=drawn_for(step), dtype=torch.float64)
        return sorted(min(int(self.n_latents**draw), self.n_latents - 1) for draw in draws.tolist())


def drawn_for(step: Forward) -> torch.Generator:
    """Random numbers fixed by the SAE's seed and the rows it has seen, so that a resumed run draws the same again."""
    mixed = step.sae.seed * 0x9E3779B1 + int(step.sae.firing.rows) * 0x85EBCA77 + 0x27D4EB2F
    return torch.Generator().manual_seed(mixed % (1 << 32))


def nested(step: Forward, lengths: list[int]) -> Iterator[Tensor]:
    """Reconstructions [B, D] (or [D], of nothing) from the first m latents of all shards, for rising lengths m.

    Each stretch of latents between two lengths is decoded once and added to what was there.
    """
    dictionary, reached = step.sae.dictionary, 0
    x_hat, skipped = dictionary.bias(), dictionary.skip(step.x)
    if skipped is not None:
        x_hat = x_hat + skipped
    distinct = sorted({*lengths} - {0})
    stretches = (_full if step.codes.is_full else _sparse)(step, distinct)
    for length in lengths:
        if length > reached:
            x_hat, reached = x_hat + next(stretches), length
        yield x_hat


def _own(step: Forward, lengths: list[int]) -> list[int]:
    """How many of this shard's latents lie below each length."""
    own = step.codes.n_latents
    return [min(max(length - step.sae.mesh.shard * own, 0), own) for length in lengths]


def _full(step: Forward, lengths: list[int]) -> Iterator[Tensor]:
    """Sums [B, D] over each stretch of latents, from full codes: products of slices."""
    ends = [0, *_own(step, lengths), step.codes.n_latents]
    sizes = [stop - start for start, stop in pairwise(ends)]
    # Split once, so that the gradients are joined once.
    values, directions = step.codes.values.split(sizes, 1), step.sae.dictionary.directions().split(sizes)
    for number in range(len(lengths)):
        yield step.sae.mesh.sum_over_shards(values[number].to(directions[number].dtype) @ directions[number])


def _sparse(step: Forward, lengths: list[int]) -> Iterator[Tensor]:
    """Sums [B, D] over each stretch of latents, from sparse codes: every entry is decoded in its own stretch only."""
    codes, dictionary = step.codes, step.sae.dictionary
    bounds = torch.tensor(_own(step, lengths), device=codes.indices.device)
    stretch = torch.bucketize(codes.indices, bounds, right=True)
    stretch, order = stretch.sort(dim=1, stable=True)
    counts = torch.stack([(stretch == number).sum(1) for number in range(len(lengths))], 1)  # [B, G]
    widths = counts.amax(0).tolist() if len(codes) else [0] * len(lengths)
    first = counts.cumsum(1) - counts
    for number, width in enumerate(widths):
        # Shards have widths of their own but decode together, so none may leave a stretch out.
        slots = torch.arange(max(1, width), device=order.device)
        at = order.gather(1, (first[:, number, None] + slots).clamp(max=order.shape[1] - 1))
        values = codes.values.gather(1, at).where(slots < counts[:, number, None], 0)
        chosen = Codes(values, codes.indices.gather(1, at), codes.n_latents)
        yield dictionary.decode(chosen) - dictionary.bias()
