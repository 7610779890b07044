"""A cross-layer transcoder: latents read one layer and write to it and all later ones.

    row = [x_1 ... x_S], target = [y_1 ... y_S]: what S layers read and what they write, side by side
    pre of a latent of layer l  =  W_enc . x_l + b_enc                   latents are dealt to layers in equal parts
    x_hat_m = sum over latents of layers l <= m of  f * (d in site m)  + b_dec

Cross-layer transcoders (for vision transformers 2604.13304), as we read them: the decoders W^(l -> m), m >= l, are
triangular, and what all latents up to a layer write to its site is added up. Each encoder is kept as its own block
[L / S, D / S]. Decoder entries of earlier sites are held at zero: they start there, lose their gradient before every
step, and cost memory and arithmetic like the others. Directions have unit norm over all sites together. Each site has a
scale of its own.

Without d_out it reconstructs the rows that it reads: a crosscoder whose latents read one site only, and nothing of a
site reaches earlier ones.
"""

# Shape letters: B rows, D width of all sites together, L latents, S sites.

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.core.codes import Entries
from saelab.kernels.select import topk_linear
from saelab.sae.base import PreActivations, Sizes
from saelab.sae.dictionaries.crosscoder import check_sites
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.scale import Fixed


class CrossLayerPre(PreActivations):
    """Pre-activations of latents that read one site each."""

    dictionary: "CrossLayer"

    def all(self) -> Tensor:
        return torch.cat([F.linear(x, weight, bias) for x, weight, bias in self._per_site()], 1)

    def _per_site(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For every site with latents on this shard: centred columns, weight and bias of its latents."""
        blocks, columns = self.dictionary.blocks, self.centred.chunk(self.dictionary.sites, 1)
        sizes = [stop - start for _, start, stop in blocks]
        used = [columns[site] for site, _, _ in blocks]
        return list(zip(used, self.dictionary.W_enc.split(sizes), self.bias.split(sizes), strict=True))

    def for_latents(self, latents: Tensor) -> Tensor:
        dictionary, columns = self.dictionary, self.centred.chunk(self.dictionary.sites, 1)
        site = dictionary.site_of(latents)
        order = site.argsort(stable=True)
        groups = latents[order].split(torch.bincount(site, minlength=dictionary.sites).tolist())
        parts = [
            F.linear(x, dictionary.W_enc[group], self.bias[group]) for x, group in zip(columns, groups, strict=True)
        ]
        return torch.cat(parts, 1)[:, order.argsort()]

    def for_rows(self, centred: Tensor) -> "CrossLayerPre":
        return CrossLayerPre(self.dictionary, centred, torch.zeros_like(self.centre), self.bias, self.mesh)

    def local_topk(self, k: int, absolute: bool) -> tuple[Tensor, Entries]:
        """The largest of the largest of every site, whose gradients are sparse."""
        values, numbers, sites = [], [], self.dictionary.sites
        columns, centres = self.x.chunk(sites, 1), self.centre.chunk(sites)
        for (site, start, stop), (_, weight, bias) in zip(self.dictionary.blocks, self._per_site(), strict=True):
            found, entries = topk_linear(columns[site], centres[site], weight, bias, min(k, stop - start), absolute)
            values.append(found)
            numbers.append(entries.indices + start)
        best = torch.cat(values, 1)
        chosen = (best.abs() if absolute else best).topk(k, dim=1).indices
        return best.gather(1, chosen), Entries(torch.cat(numbers, 1).gather(1, chosen), self.n_latents)


class CrossLayer(Dense):
    """Encoders that read one site each, decoders that write to it and all later ones.

    Args:
        sites: how many layers there are; rows, targets and latents are divided among them equally.
        decoder_bias: whether a bias is added after decoding (and, without d_out, subtracted before encoding).
        encoder_bias: whether latents have a bias.
    """

    is_separable = False  # a latent's number says which site it reads

    def __init__(self, sites: int = 2, decoder_bias: bool = True, encoder_bias: bool = True):
        Dense.__init__(self, decoder_bias, encoder_bias)
        self.sites = sites

    def _check(self, sizes: Sizes) -> None:
        check_sites("CrossLayer", self.sites, sizes)
        if sizes.n_latents % self.sites:
            raise ValueError(f"CrossLayer: {sizes.n_latents} latents cannot be split evenly over sites={self.sites}")

    def start(self, sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        own = sizes.local_latents
        self.first, self.per_site = sizes.mesh.shard * own, sizes.n_latents // self.sites
        ends = [min(max(site * self.per_site - self.first, 0), own) for site in range(self.sites + 1)]
        # Site and this shard's own latents of it, from start to stop.
        self.blocks = [(site, *span) for site, span in enumerate(pairwise(ends)) if span[0] < span[1]]
        weight, out = super().start(sizes, generator)
        weight = weight[:, : sizes.d_in // self.sites].contiguous()  # fused Adam goes wrong on a strided view
        if not sizes.is_transcoder:
            out = weight.repeat(1, self.sites)  # parallel to what is read, in every site
        return weight, out

    def site_of(self, latents: Tensor) -> Tensor:
        """The site that each of some latents of this shard [n] reads; [n]."""
        return torch.div(latents + self.first, self.per_site, rounding_mode="floor")

    def pre(self, x: Tensor) -> PreActivations:
        return CrossLayerPre(self, x, self.centre(x), self.b_enc, self.sizes.mesh)

    def fold_reading(self, read: Fixed, factor: Tensor) -> None:
        means, sizes = (part.expand_as(read.mean).chunk(self.sites) for part in (read.mean, read.size))
        for site, start, stop in self.blocks:
            weight = self.W_enc[start:stop]
            if self.sizes.is_transcoder:
                self.b_enc[start:stop] -= weight @ (means[site] / sizes[site])
            weight *= factor[start:stop, None] / sizes[site]

    @torch.no_grad()
    def before_step(self) -> None:
        super().before_step()
        if self.W_dec.grad is not None:
            self._clear_earlier(self.W_dec.grad)

    @torch.no_grad()
    def after_step(self) -> None:
        self._clear_earlier(self.W_dec)
        super().after_step()

    def _clear_earlier(self, weight: Tensor) -> None:
        """Set the parts of [L, D] in sites before the one that a latent reads to zero."""
        for site, start, stop in self.blocks:
            weight[start:stop, : site * (weight.shape[1] // self.sites)] = 0
