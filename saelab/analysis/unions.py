"""SAEs made of what two matched SAEs share, or do not.

    union        A, and the latents of B that A has nothing like
    difference   the latents of A that B has nothing like
    averaged     each shared latent as the mean of the two: encoder rows, biases and directions (which are then brought
                 to unit norm), and the geometric mean of thresholds
    swapped      A, whose latents write along the directions of their partners in B

All but `swapped` are made by `assembled`, in the data's units, and keep A's bias. Each is an ordinary SAE. Ensembles of
whole SAEs, matched or not, are in `saelab.sae.ensemble`.
"""

# Shape letters: n rows, D input width, L latents.

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.analysis.assembled import assembled, independent
from saelab.analysis.match import Match
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.combine import mean_of
from saelab.sae.sae import SAE


def union(a: Autoencoder, b: Autoencoder, found: Match, rows: Tensor | None = None) -> SAE:
    """A's living latents and B's unique ones.

    Args:
        a: as it was matched.
        b: likewise.
        found: their match.
        rows: [n, D] that TopK's threshold is set on.

    Raises:
        ValueError: for SAEs that cannot be taken apart.
    """
    ours, theirs = (independent(sae, rows, name) for sae, name in zip((a, b), found.names, strict=True))
    living = found.a.of_kind("shared", "split", "merged", "tangled", "unique")
    return assembled([(ours, living), (theirs, found.b.of_kind("unique"))])


def difference(a: Autoencoder, found: Match, rows: Tensor | None = None) -> SAE:
    """A's unique latents; ValueError if there are none. Arguments as of `union`."""
    return assembled([(independent(a, rows, found.names[0]), found.a.of_kind("unique"))])


@torch.no_grad()
def averaged(a: Autoencoder, b: Autoencoder, found: Match, rows: Tensor | None = None) -> SAE:
    """The shared latents as means of the two; ValueError if none is shared. Arguments as of `union`."""
    ours, theirs = (independent(sae, rows, name) for sae, name in zip((a, b), found.names, strict=True))
    left = found.a.of_kind("shared")
    right = found.a.nearest[left]
    bias = (ours.dictionary.bias() + theirs.dictionary.bias()).detach() / 2
    one, other = assembled([(ours, left)], bias), assembled([(theirs, right)], bias)
    # Thresholds are kept as logarithms: theirs is a geometric mean.
    mean = mean_of(one, other)
    # Codes stay as they are: only the directions are stretched, by what averaging shortened them.
    mean.dictionary.set_directions(F.normalize(mean.dictionary.directions(), dim=1))
    return mean


@torch.no_grad()
def swapped(a: Autoencoder, b: Autoencoder, found: Match, least: float = 0.0, rows: Tensor | None = None) -> SAE:
    """A with its latents' directions exchanged for those of their one-to-one partners.

    Args:
        a: as it was matched; reads rows and keeps its bias.
        b: likewise; gives directions.
        found: their match.
        least: cosine that a pair must have to be exchanged.
        rows: [n, D] that TopK's threshold is set on.
    """
    one = independent(a, rows, found.names[0])
    left = (found.a.cosine >= least).nonzero().squeeze(1)
    other = b.data_directions(normalised=True)
    directions = one.dictionary.directions().detach().clone()
    directions[left] = other[found.a.partner[left]].to(directions)
    one.dictionary.set_directions(directions)
    return one
