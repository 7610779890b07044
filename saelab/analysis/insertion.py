"""What each latent of a large SAE adds to a small one: the insertion test of paper D (Leask et al. 2025, 2502.04878).

    x_hat_i = f_small W_small + b_small + f_i w_i                       the large SAE's latent i put in, bias kept
    delta_i = MSE(x_hat_i) - MSE(x_hat_small)
            = (1 / N D) sum_b ( f_bi^2 ||w_i||^2 - 2 f_bi e_b . w_i )   e = x - x_hat_small

Novel latents lower the error (delta < 0), reconstruction latents raise it: they say again what the small SAE says
already. All of them are tested in one pass, which is exact: only a latent's own active entries enter its sum.

The sign is given only where it can be told: a latent that never fired is dead, one that fired in fewer rows than asked
for, or whose 95 % bootstrap interval over documents holds 0, is undecided. The cosine rule says novel without any data,
where the largest cosine with a direction of the small SAE lies below a threshold; `cosine_rule` tells how well.
"""

# Shape letters: B rows of a block, K active latents of a row, L latents of the large SAE, D width, G groups.

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelab.analysis.assembled import contributed
from saelab.analysis.rows import GROUPS, Rows
from saelab.kernels.decode import dot_at
from saelab.metrics.base import LEAST_DOCUMENTS, RESAMPLES
from saelab.sae.sae import SAE

BLOCK_ROWS = 1024
BLOCK_LATENTS = 4096
"""Latents resampled at once: RESAMPLES float64 numbers each."""
CLASSES = ("novel", "reconstruction", "undecided", "dead")


@dataclass(frozen=True)
class Insertion:
    """The test's outcome for every latent of the large SAE; all on the CPU."""

    delta: Tensor
    """[L] float64, change of the mean squared error; 0 for latents that never fired."""
    low: Tensor
    """[L] float64, lower end of its 95 % bootstrap interval over groups of documents."""
    high: Tensor
    """[L] float64, upper end."""
    firings: Tensor
    """[L] int64, rows in which it was active."""
    min_firings: int
    """Of latents that are decided at all."""

    @property
    def kind(self) -> Tensor:
        """[L] int64, number in CLASSES."""
        kind = torch.full_like(self.firings, CLASSES.index("undecided"))
        told = self.firings >= self.min_firings
        kind[told & (self.high < 0)] = CLASSES.index("novel")
        kind[told & (self.low > 0)] = CLASSES.index("reconstruction")
        kind[self.firings == 0] = CLASSES.index("dead")
        return kind

    def rows_to_decide(self, rows: int) -> int | None:
        """About how many rows, instead of these, would decide half of the undecided latents.

        An estimate: intervals narrow with the root of the rows, until the end next to 0 is at 0, and firings grow with
        them. None where nothing is undecided, or no interval is known.
        """
        undecided = self.kind == CLASSES.index("undecided")
        width = (torch.where(self.delta < 0, self.high, self.low) - self.delta).abs()
        more = torch.maximum((width / self.delta.abs()).square(), self.min_firings / self.firings)[undecided]
        more = more[torch.isfinite(more)]
        return math.ceil(rows * max(1.0, more.median().item())) if len(more) else None

    def counts(self) -> dict[str, int]:
        """How many latents there are of each class."""
        found = torch.bincount(self.kind, minlength=len(CLASSES))
        return dict(zip(CLASSES, found.tolist(), strict=True))


@torch.no_grad()
def insertion_test(small: SAE, large: SAE, rows: Rows, min_firings: int = 100) -> Insertion:
    """Test every latent of the large SAE.

    Args:
        small: in the data's units, as `independent` gives it (or `fold`: TopK then keeps the k largest of each row).
        large: likewise.
        rows: to test on; 100,000 or more where latents are rare.
        min_firings: rows a latent must be active in for its sign to be told.
    """
    if min_firings < 1:
        raise ValueError(f"min_firings must be at least 1, got {min_firings}")
    directions = large.data_directions().contiguous()
    square = directions.double().square().sum(1)
    sums = torch.zeros(GROUPS * large.n_latents, dtype=torch.float64, device=directions.device)
    firings = torch.zeros(large.n_latents, dtype=torch.int64, device=directions.device)
    for x, group in rows.blocks(BLOCK_ROWS):
        x = x.to(directions)
        error = x - small(x)
        codes = contributed(large, x)
        values, latents = codes.values.double(), codes.indices
        change = values.square() * square[latents] - 2 * values * dot_at(latents, error, directions).double()
        place = group.to(latents.device)[:, None] * large.n_latents + latents
        sums.index_add_(0, place.flatten(), change.flatten())  # unused entries have a value, and so a change, of 0
        firings += codes.counts()
    entries = torch.bincount(rows.group, minlength=GROUPS).double() * rows.x.shape[1]
    delta, low, high = resampled(sums.view(GROUPS, -1).cpu(), entries)
    return Insertion(delta, low, high, firings.cpu(), min_firings)


def resampled(sums: Tensor, entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of several quantities over all entries and ends of their 95 % intervals, groups drawn with replacement.

    Args:
        sums: by group, [G, Q].
        entries: how many entries each group has, [G].

    Returns:
        mean, low and high, [Q] each; the ends are NaN where fewer than LEAST_DOCUMENTS groups have entries.
    """
    mean = sums.sum(0) / entries.sum()
    held = entries > 0
    sums, entries = sums[held], entries[held]
    if len(sums) < LEAST_DOCUMENTS:
        return mean, torch.full_like(mean, torch.nan), torch.full_like(mean, torch.nan)
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(RESAMPLES, len(sums), dtype=sums.dtype)
    weights.scatter_add_(1, drawn, torch.ones_like(weights))
    weights /= (weights @ entries)[:, None]
    ends = torch.tensor([0.025, 0.975], dtype=sums.dtype)
    parts = [torch.quantile(weights @ block, ends, dim=0) for block in sums.split(BLOCK_LATENTS, dim=1)]
    low, high = torch.cat(parts, 1)
    return mean, low, high


def cosine_rule(kind: Tensor, cosine: Tensor, threshold: float = 0.7) -> dict[str, Any]:
    """How well the largest cosine with the small SAE's directions tells novel from reconstruction latents.

    Args:
        kind: numbers in CLASSES [L]; only novel and reconstruction latents count.
        cosine: largest cosines [L].
        threshold: from which on the rule says reconstruction.

    Returns:
        `auc`: chance that a novel latent has a smaller cosine than a reconstruction latent (ties count half);
        `accuracy` at `threshold`; `best_threshold` and its `best_accuracy`, chosen on these same latents; `confusion`:
        counts by class and by what the rule says; `n`. Numbers are None where one of the classes is missing.
    """
    novel, double = cosine[kind == 0].double(), cosine[kind == 1].double()
    confusion = {
        f"{name}_said_{said}": int(((part < threshold) == (said == "novel")).sum())
        for name, part in (("novel", novel), ("reconstruction", double))
        for said in ("novel", "reconstruction")
    }
    found: dict[str, Any] = {"threshold": threshold, "n": len(novel) + len(double), "confusion": confusion}
    if not len(novel) or not len(double):
        return found | dict.fromkeys(("auc", "accuracy", "best_threshold", "best_accuracy"))
    # How many novel latents lie below each reconstruction latent, and on it.
    ordered = novel.sort().values
    below, upto = torch.searchsorted(ordered, double), torch.searchsorted(ordered, double, right=True)
    auc = (below + upto).double().mean().item() / 2 / len(novel)
    right = confusion["novel_said_novel"] + confusion["reconstruction_said_reconstruction"]
    best, share = _best_threshold(novel, double)
    return found | {
        "auc": auc,
        "accuracy": right / found["n"],
        "best_threshold": best,
        "best_accuracy": share,
    }


def _best_threshold(novel: Tensor, double: Tensor) -> tuple[float, float]:
    """The threshold that is right most often, half-way between two neighbouring cosines, and how often."""
    values = torch.cat([novel, double]).unique()
    middle = torch.cat([values[:1] - 1e-6, (values[1:] + values[:-1]) / 2, values[-1:] + 1e-6])
    right = torch.searchsorted(novel.sort().values, middle)  # novel latents below it
    right = right + len(double) - torch.searchsorted(double.sort().values, middle)
    best = int(right.argmax())
    return middle[best].item(), right[best].item() / (len(novel) + len(double))
