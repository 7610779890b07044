"""What latents, and meta-latents through them, stand for in a text: the tokens they are strongest on, and contexts.

strength of token t for latent j   =  sum of f_j over the rows of t
strength of t for meta-latent m    =  sum over the latents j that m writes of  value_jm * share of t in latent j
"""

# Shape letters: N rows, L latents, C tokens of each, M meta-latents, E entries.

import torch
from torch import Tensor

from saelab.analysis.assembled import encoded
from saelab.analysis.rows import Rows
from saelab.sae.autoencoder import Autoencoder

BLOCK_ROWS = 4096


@torch.no_grad()
def top_tokens(sae: Autoencoder, rows: Rows, count: int = 5) -> tuple[Tensor, Tensor]:
    """The tokens each latent is strongest on, strongest first.

    Args:
        sae: reads rows in the data's units.
        rows: with the column "token".
        count: C.

    Returns:
        Token ids [L, C] int64, -1 where there are fewer; and each one's share of the latent's total strength [L, C].
    """
    tokens, strength = _strengths(sae, rows)
    latent, token = tokens // _vocabulary(rows), tokens % _vocabulary(rows)
    return _largest(latent, token, strength, sae.n_latents, count)


def _vocabulary(rows: Rows) -> int:
    if "token" not in rows.columns:
        raise ValueError("these rows have no tokens: use rows of a text or of a store")
    return int(rows.columns["token"].max()) + 2  # averages of rows have the token -1


def _strengths(sae: Autoencoder, rows: Rows) -> tuple[Tensor, Tensor]:
    """Keys latent * V + token, ascending, and the total of the latent's codes on the token; [E] each."""
    width = _vocabulary(rows)
    keys, values = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    for x, token in zip(rows.x.split(BLOCK_ROWS), rows.columns["token"].split(BLOCK_ROWS), strict=True):
        codes = encoded(sae, x)
        row, slot = codes.active.nonzero().unbind(1)
        own = (codes.indices[row, slot] * width + token.to(row.device)[row].clamp_min(0)).cpu()
        keys, place = torch.cat([keys, own]).unique(return_inverse=True)
        added = torch.cat([values, codes.values[row, slot].abs().double().cpu()])
        values = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, place, added)
    return keys, values


def _largest(left: Tensor, right: Tensor, value: Tensor, n: int, count: int) -> tuple[Tensor, Tensor]:
    """Of entries (left, right, value) the `count` with the largest values of each left, and their shares of its sum."""
    order = value.argsort(descending=True, stable=True)
    order = order[left[order].argsort(stable=True)]
    left, right, value = left[order], right[order], value[order]
    sizes = torch.bincount(left, minlength=n)
    slot = torch.arange(len(left)) - (sizes.cumsum(0) - sizes)[left]
    total = torch.zeros(n, dtype=torch.float64).index_add_(0, left, value)
    found, share = torch.full((n, count), -1), torch.zeros(n, count, dtype=torch.float64)
    kept = slot < count
    found[left[kept], slot[kept]] = right[kept]
    share[left[kept], slot[kept]] = value[kept] / total[left[kept]]
    return found, share


def meta_tokens(
    tokens: Tensor, share: Tensor, codes: tuple[Tensor, Tensor, Tensor], n_meta: int, count: int = 5
) -> Tensor:
    """The tokens each meta-latent stands for, from those of the latents it writes; [M, C] int64, -1 for none.

    Args:
        tokens: of each latent [L, C'], as `top_tokens` gives them.
        share: theirs [L, C'].
        codes: latent, meta-latent and value of every entry of the decompositions, [E] each.
        n_meta: M.
        count: C.
    """
    latent, meta, value = codes
    width = int(tokens.max()) + 1 if tokens.numel() else 1
    own, weight = tokens[latent], share[latent] * value.double()[:, None]
    keep = (own >= 0) & (weight > 0)
    keys, place = (meta[:, None] * width + own)[keep].unique(return_inverse=True)
    strength = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, place, weight[keep])
    return _largest(keys // width, keys % width, strength, n_meta, count)[0]


def context(rows: Rows, place: int, before: int = 8, after: int = 3) -> tuple[list[int], int, list[int]]:
    """Token ids before, at and after a row, of its own document as far as the rows reach."""
    token, document = rows.columns["token"], rows.columns["document"]
    start, stop = max(0, place - before), min(len(token), place + after + 1)
    same = document[start:stop] == document[place]
    window = token[start:stop]
    here = torch.arange(start, stop)
    return (
        window[same & (here < place)].tolist(),
        int(token[place]),
        window[same & (here > place)].tolist(),
    )
