"""Stability: do SAEs that are measured together have the same directions? Between seeds they should.

For an SAE and every other one of the same width and number of latents, with cosines of unit directions,

    stability        mean cosine of directions matched one to one so that its sum is largest (the Hungarian method),
                     mean over the others; bootstrapped over latents
    stability_best   mean over directions of the largest cosine with any direction of the other: an upper bound
    stability_random stability_best of random directions of the same number

Above MATCHED pairs of latents the one-to-one matching is left out (it grows with the cube of their number, and needs
them all at once); the others go in blocks.
"""

# Shape letters: L latents, D width.

import torch
from torch import Tensor

from saelab.geometry import nearest
from saelab.metrics.base import Metric, Score, Setting, score_of_latents
from saelab.sae.autoencoder import Autoencoder

MATCHED = 1 << 24


class Stability(Metric):
    """Cosine of directions with those of the other SAEs."""

    def begin(self, setting: Setting) -> None:
        sae = setting.sae
        self.others = [
            other
            for name, other in setting.saes.items()
            if name != setting.name and other.n_latents == sae.n_latents and other.d_in == sae.d_in
        ]
        if not self.others:
            raise ValueError("needs another SAE with the same number of latents, measured together with this one")

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        own = sae.dictionary.directions().float().cpu()
        best, matched = [], []
        for other in self.others:
            directions = other.dictionary.directions().float().cpu()
            if len(directions[0]) != len(own[0]):
                raise ValueError("needs SAEs that reconstruct rows of one width")
            best.append(nearest(own, directions)[0].squeeze(1))
            if len(own) ** 2 <= MATCHED:
                matched.append(matched_cosines(own, directions))
        random = torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
        chance = nearest(own[:1024], random)[0].squeeze(1)
        unit = f"cosine, mean over {len(self.others)} others"
        found = {"stability": score_of_latents(torch.stack(matched).mean(0), unit)} if matched else {}
        return found | {
            "stability_best": score_of_latents(torch.stack(best).mean(0), unit),
            "stability_random": score_of_latents(chance, "cosine"),
        }


def matched_cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosines of directions [L, D] with those of another SAE [L, D] matched one to one; [L], in the first's order."""
    import scipy.optimize

    normal = torch.nn.functional.normalize
    cosines = normal(one, dim=1) @ normal(other, dim=1).T
    rows, columns = scipy.optimize.linear_sum_assignment(cosines.numpy(), maximize=True)
    return cosines[torch.from_numpy(rows), torch.from_numpy(columns)]
