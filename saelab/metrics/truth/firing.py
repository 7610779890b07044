"""Whether latents fire when features do: precision, recall and F1 of a latent as a detector of a feature.

    precision = n_both / n_latent      recall = n_both / n_feature      F1 = 2 n_both / (n_latent + n_feature)

n_latent, n_feature and n_both: rows in which the latent, the feature, both are active (codes not zero). A latent that
never fires, and a feature without a matched latent, have 0 in all three. A feature that never occurred has NaN. Any
code that is not zero is firing, however small: a ReLU latent without a negative bias fires at what rounding leaves.
"""

# Shape letters: F features, L latents, n features of a block.

from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.geometry.pair_counts import PairCounts

BLOCK_ENTRIES = 1 << 20


@dataclass(frozen=True)
class Detection:
    """Scores of latents as detectors of features; [F] float64 each."""

    precision: Tensor
    recall: Tensor
    f1: Tensor


def detection(n_both: Tensor, n_latent: Tensor, n_feature: Tensor) -> Detection:
    """Precision, recall and F1 from counts of rows, of any one shape."""
    both, latent, feature = n_both.double(), n_latent.double(), n_feature.double()
    occurred = feature > 0
    precision = both / latent.clamp_min(1)
    recall = both / feature.clamp_min(1)
    f1 = 2 * both / (latent + feature).clamp_min(1)
    return Detection(*(part.where(occurred, torch.nan) for part in (precision, recall, f1)))


def of_matched(both: PairCounts, n_latent: Tensor, n_feature: Tensor, matched: Tensor) -> Detection:
    """Each feature's matched latent as its detector.

    Args:
        both: features on the left, latents on the right.
        n_latent: rows each latent was active in, [L].
        n_feature: rows each feature was active in, [F].
        matched: each feature's latent [F], -1 for none.
    """
    has, latent = matched >= 0, matched.clamp_min(0)
    features = torch.arange(len(matched), device=matched.device)
    return detection(both.counts(features, latent).where(has, 0), n_latent[latent], n_feature)


def best(both: PairCounts, n_latent: Tensor, n_feature: Tensor) -> tuple[Tensor, Tensor]:
    """Each feature's best detector among all latents: its F1 [F] float64 and its number [F].

    The best of many is biased upwards: a rare feature has a lucky latent by chance.
    """
    size = max(1, BLOCK_ENTRIES // both.n_right)
    scores, latents = [], []
    for start in range(0, both.n_left, size):
        n_both = both.block(start, min(start + size, both.n_left))
        feature = n_feature[start : start + size, None].float()
        score, latent = (2 * n_both / (n_latent.float() + feature).clamp_min(1)).max(1)
        scores.append(score.double().where(feature[:, 0] > 0, torch.nan))
        latents.append(latent)
    return torch.cat(scores), torch.cat(latents)
