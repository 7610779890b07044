"""SAEs made of latents of other SAEs.

Latents can be taken out of an SAE and put into another one if each decides by itself whether it is active:

    f_i = pre_i * 1[pre_i > theta_i]       ReLU: theta = 0; JumpReLU, BatchTopK: their thresholds;
                                           TopK: one theta for all latents, with the mean L0 that k gives

`independent` gives any of these as such an SAE in the data's units, with directions of unit norm. `assembled` puts
latents of several together. What comes out is an ordinary SAE (`Dense`, `JumpReLU`): it is saved, loaded, measured and
explored like any other. Whose bias b is kept makes no difference to when a latent fires:

    W (x - b_own) + c  =  W (x - b) + [c + W (b - b_own)]

Left out: activations whose latents compete in other ways, and dictionaries other than `Dense`.
"""

# Shape letters: n rows, D input width, L latents.

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.combine import joined
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.files import needed_sae
from saelab.sae.reading import threshold_for, thresholded
from saelab.sae.sae import SAE


@torch.no_grad()
def independent(sae: Autoencoder, rows: Tensor | None = None, name: str = "the SAE") -> SAE:
    """A copy of an SAE as independent latents with thresholds, in the data's units and with unit directions.

    One that scales every row by itself goes on doing so: its units are those of the scaled row.

    Exact for ReLU, JumpReLU and trained BatchTopK; of TopK it is the reading by threshold (`threshold_for`).

    Args:
        sae: to be copied.
        rows: [n, D] in the data's units, on which TopK's threshold is set to give the L0 that its k gives.
        name: of the SAE, for errors.

    Raises:
        ValueError: for an SAE that cannot be read so, or TopK without rows.
    """
    sae = needed_sae(sae, name)
    if type(sae.dictionary) is not Dense:
        kind = type(sae.dictionary).__name__
        raise ValueError(f"only latents of Dense dictionaries can be put together; {name} has {kind}")
    if sae.d_out or sae.mesh.shards > 1:
        what = "a transcoder" if sae.d_out else "dealt to several shards"
        raise ValueError(f"only latents of whole SAEs can be put together; {name} is {what}")
    one = thresholded(copy.deepcopy(sae), _thresholds(sae, rows, name))
    if not one.scale.per_row:
        one.fold()
    one.unit_directions()
    assert isinstance(one.dictionary, Dense)
    one.dictionary = one.dictionary.untied()
    return one.eval()


def _thresholds(sae: SAE, rows: Tensor | None, name: str) -> Tensor:
    """In the units of the SAE's own pre-activations, [L]."""
    try:
        own = sae.thresholds()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if own is not None:
        return own
    if rows is None:
        raise ValueError(f"{name} keeps the k largest latents of a row: give rows to set its threshold on")
    rows = rows.to(sae.device, sae.dtype)
    l0 = sum(sae.encode(block).l0().sum().item() for block in rows.split(4096)) / len(rows)
    return rows.new_full((sae.n_latents,), threshold_for(sae, rows, l0))


@torch.no_grad()
def assembled(parts: Sequence[tuple[SAE, Tensor]], bias: Tensor | None = None) -> SAE:
    """An SAE of chosen latents of others, part after part.

    Args:
        parts: SAEs as `independent` gives them, each with the numbers of its latents [n], in the order wanted.
        bias: what is decoded when no latent is active [D]; by default the first SAE's.

    Raises:
        ValueError: if no latent is chosen.
    """
    first = parts[0][0]
    chosen = [(sae, latents) for sae, latents in parts if len(latents)]
    if not chosen:
        raise ValueError("an SAE needs at least one latent; none was chosen")
    bias = first.dictionary.bias().detach() if bias is None else bias.to(first.device, first.dtype)
    selected = [sae.select(latents) for sae, latents in chosen]
    for part in selected:
        part.dictionary.set_bias(bias)
    made = joined(selected)
    made.variance.copy_(first.variance)
    return made.eval()


def encoded(sae: Autoencoder, rows: Tensor) -> Codes:
    """Codes of rows [n, D] that are on any device, as few entries a row as are needed."""
    return sae.encode(rows.to(sae.device, sae.dtype)).compact()


def contributed(sae: Autoencoder, rows: Tensor) -> Codes:
    """The same with values in the unit of `data_directions`: times these they add up to what is reconstructed."""
    codes = encoded(sae, rows)
    return codes.with_values(sae.data_values(codes))
