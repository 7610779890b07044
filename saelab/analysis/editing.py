"""Changing what a latent writes by exchanging meta-latents of its direction (paper D's cities, arXiv 2502.04878).

    d'  =  d  -  sum over chosen m of c_m(start) w_m  +  size * sum over chosen m of c_m(target) w_m,   to unit norm

w_m: directions of meta-latents, c_m: their values in the decompositions of the latent that is edited and of the one
that it should become more like. If the meta-latents are what the latent is made of, exchanging those of one attribute
(a city's language) changes that attribute and leaves the others (its currency). Whether it does is for the model to
say: put the edited SAE in the activations' place.
"""

# Shape letters: D input width.

import copy
from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F

from saelab.analysis.meta import Meta
from saelab.sae.sae import SAE

LEAST_LEFT = 0.01
"""Norm of an edited direction, before it is brought to 1, below which nothing of it is left."""


@torch.no_grad()
def exchanged(
    sae: SAE, meta: Meta, start: int, target: int, chosen: Sequence[int] | None = None, size: float = 1.0
) -> SAE:
    """A copy of an SAE with one direction edited.

    Args:
        sae: whose directions the meta-SAE was trained on.
        meta: its meta-SAE.
        start: the latent that is edited.
        target: the latent whose meta-latents come in.
        chosen: meta-latents to exchange: those of `start` among them go, those of `target` come; by default all.
        size: how much larger than in the target's own direction they come.

    Raises:
        ValueError: for latents without a decomposition, a meta-latent that neither of the two has, a direction that
            becomes zero, or a dictionary whose directions cannot be set.
    """
    goes, comes = dict(meta.decomposition(start)), dict(meta.decomposition(target))
    wanted = set(goes) | set(comes) if chosen is None else set(chosen)
    for m in sorted(wanted):
        if m not in goes and m not in comes:
            raise ValueError(f"neither latent {start} nor latent {target} has meta-latent {m}")
    write = meta.sae.dictionary.directions().detach()
    (place,) = (meta.latents == start).nonzero().flatten().tolist()
    direction = meta.directions[place].to(write).clone()
    for m in wanted:
        direction += (size * comes.get(m, 0.0) - goes.get(m, 0.0)) * write[m]
    if direction.norm() < LEAST_LEFT:
        raise ValueError(f"the direction of latent {start} becomes zero: exchange fewer meta-latents")
    edited = copy.deepcopy(sae)
    directions = edited.dictionary.directions().detach().clone()
    # In the SAE's own units and as long as it was: codes mean what they meant.
    own = F.normalize(direction.to(directions) / edited.target_scale.size, dim=0)
    directions[start] = own * directions[start].norm()
    edited.dictionary.set_directions(directions)
    return edited


def subsets(meta: Meta, start: int, target: int, most: int = 8) -> Iterator[tuple[int, ...]]:
    """Every non-empty choice of meta-latents that `exchanged` may be given for two latents, small ones first.

    Only the `most` meta-latents with the largest values take part: there are 2^most - 1 choices.
    """
    both = sorted([*meta.decomposition(start), *meta.decomposition(target)], key=lambda pair: -abs(pair[1]))
    parts = list(dict.fromkeys(m for m, _ in both))[:most]
    for count in range(1, len(parts) + 1):
        yield from combinations(parts, count)
