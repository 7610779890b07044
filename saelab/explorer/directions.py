"""What the dictionary alone tells about each latent: neighbours, promoted and suppressed tokens, places on a map.

    logits of latent j    (f(r) - f(-r)) / 2, less their mean over the vocabulary;  r = sqrt(D) d_j

d_j: its direction in the data's own units and at unit norm, so that r has a root mean square of 1; f: the model's own
last norm and head, with its scale and its cap, see `saelab.models.head`. It is the direct path only: layers between the
site and the last norm are left out.
"""

# Shape letters: L latents, D width, V vocabulary, C kept of each, H bins.

from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.geometry import nearest
from saelab.models.head import Head
from saelab.models.language_model import LanguageModel
from saelab.sae.autoencoder import Autoencoder

BLOCK_ENTRIES = 1 << 24
LOGIT_BINS = 40


@torch.no_grad()
def directions_of(sae: Autoencoder) -> Tensor:
    """Unit directions in the data's own units; [L, D] float32 on the CPU."""
    return sae.data_directions(normalised=True).detach().float().cpu()


def head_of(model: LanguageModel | None, width: int) -> tuple[Head | None, str | None]:
    """What makes logits of directions of that width; None, and why, where that is not known."""
    if model is None:
        return None, "these rows are of no language model"
    try:
        head = model.head
    except ValueError as error:
        return None, str(error)
    if head.width != width:
        return None, f"directions are {width} wide, the model's residual stream {head.width}"
    return head, None


@dataclass(frozen=True)
class Logits:
    """Tokens that latents promote and suppress."""

    top: Tensor
    """Token numbers [L, C], most promoted first."""
    top_value: Tensor
    bottom: Tensor
    """Token numbers [L, C], most suppressed first."""
    bottom_value: Tensor
    counts: Tensor
    """Tokens by logit: H equal bins from the least to the greatest, [L, H]."""


@torch.no_grad()
def logits_of(directions: Tensor, head: Head, count: int = 12) -> Logits:
    """Direct logits of directions [L, D]."""
    parts: list[tuple[Tensor, ...]] = []
    for block in directions.split(max(1, BLOCK_ENTRIES // head.vocabulary)):
        values = head.promoted_by(block)
        count = min(count, values.shape[1])
        top, bottom = values.topk(count, 1), values.topk(count, 1, largest=False)
        parts.append((top.indices, top.values, bottom.indices, bottom.values, _histogram(values, LOGIT_BINS)))
    return Logits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _histogram(values: Tensor, bins: int) -> Tensor:
    """Entries of each row in equal bins from its least to its greatest; [n, bins]."""
    least, most = values.aminmax(dim=1, keepdim=True)
    number = ((values - least) / (most - least).clamp_min(1e-12) * bins).long().clamp_max(bins - 1)
    counts = torch.zeros(len(values), bins, dtype=torch.int32)
    return counts.scatter_add_(1, number, torch.ones_like(number, dtype=torch.int32))


@torch.no_grad()
def neighbours_of(directions: Tensor, count: int = 12) -> tuple[Tensor, Tensor]:
    """Cosines [L, C] and numbers [L, C] of the nearest other directions."""
    return nearest(directions, directions, count, skip_self=True)


@torch.no_grad()
def fits(sae: Autoencoder, cosines: Tensor, neighbours: Tensor, count: int = 256, atol: float = 1e-3) -> bool:
    """Whether an SAE's directions have these cosines [L, C] with these neighbours [L, C]; some of them are tried."""
    directions = directions_of(sae)
    if len(cosines) != len(directions) or (neighbours >= len(directions)).any():
        return False
    chosen = torch.linspace(0, len(directions) - 1, min(count, len(directions))).long()
    found = torch.einsum("ld,lcd->lc", directions[chosen], directions[neighbours[chosen].long()])
    return bool(torch.allclose(found, cosines[chosen].float(), atol=atol))


@torch.no_grad()
def principal(directions: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """Coordinates [L, C] along the directions' principal components, and the share of variance of each [C].

    Signs are chosen so that the largest loading of a component is positive.
    """
    centred = directions.double() - directions.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    chosen = vectors.flip(1)[:, :count]
    chosen = chosen * chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()
    share = values.flip(0).clamp_min(0)[:count] / values.clamp_min(0).sum().clamp_min(1e-30)
    return (centred @ chosen).float(), share.float()
