"""What a probe no longer knows when some latents are taken out of its rows, without decoding anything.

A row without the latents A is x - sum over A of f_j d_j, so a linear probe's log odds change by sum over A of
f_j (w . d_j): a sum over active entries. Used by `tpp.py` and `scr.py`.
"""

# Shape letters: n examples, e active entries, L latents, D width.

import torch
from torch import Tensor

from saelab.metrics.probing.codes import ExampleEntries
from saelab.metrics.probing.logistic import Together

REMOVED = (2, 5, 10, 20, 50, 100, 500)
"""How many latents are taken out."""
NEVER = 1 << 40
"""The place of a latent that is not taken out, however many are."""
SCORED = (10, 50)
"""Those that become scores; all are in the tables."""


def ranks(effects: Tensor) -> Tensor:
    """The place of every latent in the order of its effect [L], from 0; those without an effect have none."""
    order = effects.argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return place.where(effects > 0, NEVER)


def along(directions: Tensor, probe: Together) -> Tensor:
    """How much a code of 1 adds to a probe's log odds, [L]."""
    return directions @ probe.weight.to(directions)


def right_without(
    logits: Tensor, label: Tensor, entries: ExampleEntries, adds: Tensor, place: Tensor, removed: int
) -> Tensor:
    """Whether each example is answered right, [n] float, with the latents of the first places taken out.

    Args:
        logits: a probe's log odds of the whole rows, [n].
        label: the right answers, [n].
        entries: active entries of the examples.
        adds: what a code of 1 adds to the log odds, [L].
        place: of every latent in the order to take them out, [L].
        removed: how many are taken out.
    """
    weight = adds[entries.latent] * (place[entries.latent] < removed)
    return ((logits - entries.total(weight) > 0) == label).float()
