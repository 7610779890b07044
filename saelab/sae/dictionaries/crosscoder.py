"""A crosscoder: latents that read and write several places of a model at once.

    row = [x_1 ... x_S]: the activations of S sites, side by side        d_j = [d_j1 ... d_jS]
    norms_j = sum over sites of ||d_js||

Lindsey et al. 2024, "Sparse crosscoders for cross-layer features and model diffing": sites are layers of one model, or
the same layer of two models. An L1 penalty weighs a code by the sum of its direction's norms (not the norm of the
whole), so that a latent pays for every site it is in; where those norms lie tells which sites share it. There the norms
are free and the penalty alone bounds them. Here the whole direction has unit norm: with an activation that only scales
with its input (ReLU) any free solution can be brought to that form with the same reconstruction and the same penalty,
because a code grows by what its direction shrinks; TopK and the like compare codes between latents, and with them it is
a choice. Each site has a scale of its own (`saelab.sae.scale`), so that no site outweighs the others.

A latent starts with the same random direction in every site.
"""

# Shape letters: D width of all sites together, L latents, S sites.

import torch
from torch import Tensor

from saelab.sae.base import Sizes
from saelab.sae.dictionaries.dense import Dense


class Crosscoder(Dense):
    """A dense dictionary over the rows of several sites, side by side.

    Args:
        sites: how many there are; the width of the rows is divided among them equally.
        decoder_bias: whether a bias is subtracted before encoding and added after decoding (in a transcoder: only
            added).
        encoder_bias: whether latents have a bias.
    """

    def __init__(self, sites: int = 2, decoder_bias: bool = True, encoder_bias: bool = True):
        Dense.__init__(self, decoder_bias, encoder_bias)
        self.sites = sites

    def _check(self, sizes: Sizes) -> None:
        check_sites(type(self).__name__, self.sites, sizes)

    def start(self, sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        weight, out = super().start(sizes, generator)
        return self._same(weight), self._same(out)

    def _same(self, weight: Tensor) -> Tensor:
        """Every site as the first one."""
        return weight[:, : weight.shape[1] // self.sites].repeat(1, self.sites)

    def site_norms(self) -> Tensor:
        """Norm of each direction's part in each site; [L, S]."""
        return self.W_dec.unflatten(1, (self.sites, -1)).norm(dim=2)

    def norms(self) -> Tensor:
        return self.site_norms().sum(1)

    def relative_norms(self) -> Tensor:
        """Each site's share of the sum of a direction's norms; [L, S], rows add up to 1.

        1/S in every site for a latent that all share, 1 in one for a latent of that site alone.
        """
        norms = self.site_norms()
        return norms / norms.sum(1, keepdim=True)


def check_sites(name: str, sites: int, sizes: Sizes) -> None:
    """ValueError unless the rows can be cut into so many sites."""
    if sites < 1:
        raise ValueError(f"{name}: sites must be at least 1, got {sites}")
    for what, width in (("d_in", sizes.d_in), ("d_out", sizes.d_out)):
        if width % sites:
            raise ValueError(f"{name}: {what}={width} cannot be cut into sites={sites} of equal width")
