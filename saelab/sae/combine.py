"""One SAE out of several that have the same components and the same bias: latents side by side, or averaged.

`SAE.select` takes latents out and `Dictionary.set_bias` gives them another bias, after which they fit beside those of
another SAE. Ensembles, whose members go on reading by themselves, are in `saelab.sae.ensemble`.
"""

from collections.abc import Sequence

import torch

from saelab.sae.sae import SAE


@torch.no_grad()
def joined(saes: Sequence[SAE]) -> SAE:
    """All latents of some SAEs, one SAE's after another's; all else is as in the first.

    Its counter of rows is that of the SAE that was trained on the fewest.

    Raises:
        ValueError: for SAEs of different components or biases.
    """
    first = saes[0]
    for other in saes[1:]:
        _check_alike(first, other)
        if not torch.equal(other.dictionary.bias(), first.dictionary.bias()):
            raise ValueError("only SAEs with one bias can be joined: call set_bias of their dictionaries first")
    sharded, states = first.sharded_names(), [sae.state_dict() for sae in saes]
    state = {
        name: torch.cat([own[name] for own in states]) if name in sharded else states[0][name] for name in states[0]
    }
    state["firing.rows"] = torch.stack([own["firing.rows"] for own in states]).min()
    return first.with_state(sum(sae.n_latents for sae in saes), state)


@torch.no_grad()
def mean_of(one: SAE, other: SAE) -> SAE:
    """An SAE whose latents' parameters are the means of those of two, latent by latent; all else is as in the first.

    Raises:
        ValueError: for SAEs of different components or numbers of latents.
    """
    _check_alike(one, other)
    if one.n_latents != other.n_latents:
        raise ValueError(f"only SAEs of one size can be averaged: one has {one.n_latents}, the other {other.n_latents}")
    sharded, theirs = one.sharded_names(), other.state_dict()
    state = {
        name: (part + theirs[name]) / 2 if name in sharded and part.is_floating_point() else part
        for name, part in one.state_dict().items()
    }
    return one.with_state(one.n_latents, state)


def _check_alike(one: SAE, other: SAE) -> None:
    ours, theirs = one.config(), other.config()
    for key in ("d_in", "d_out", "activation", "dictionary", "scale"):
        if ours.get(key) != theirs.get(key):
            raise ValueError(
                f"only SAEs with the same settings can be joined: {key} is {ours.get(key)} and {theirs.get(key)}"
            )
