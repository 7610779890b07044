"""Information scope: does a latent look at the token, or at what stands far before it? (contextual dependency score of
arXiv 2604.05724, for images; the form for text is ours)

Each packed row is read twice at its last W positions: with all that stands before them, and with the last SHORT tokens
before them only (behind the token that rows begin with). For every latent active in one of the two readings, with its
activations over the W positions scaled to sum to one,

    distance = mean over positions of |difference of their running sums|        (earth mover's, in units of W)
             = 1  where it is active in one reading only

and of a latent, weighing windows by its larger total activation,

    scope = sum of distance * weight / sum of weight:  0 depends on the near context only, 1 on the far one

    information_scope       mean over latents that were active, bootstrapped over latents
    information_scope_rows  mean over the active latents of all windows, so that frequent ones count more,
                            bootstrapped over documents
"""

# Shape letters: R packed rows, T tokens of a row, W positions of a window, L latents, D width, a latents active in one.

import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.metrics.base import Metric, Score, Totals, View, score_of_latents
from saelab.metrics.chunks import TextChunk
from saelab.sae.autoencoder import Autoencoder

WINDOW, SHORT = 16, 16
CHUNKS = 32
"""Chunks that are looked at; the others are not, for the model reads every window once more."""


class InformationScope(Metric):
    """How far back what latents know comes from."""

    needs_model = True

    def __init__(self) -> None:
        self.totals, self.windows, self.chunks = Totals(), 0, 0
        self.weighted: Tensor | None = None
        self.weight: Tensor | None = None

    def update(self, view: View) -> None:
        text = view.text
        assert text is not None
        length = text.tokens.ids.shape[1]
        if self.chunks == CHUNKS or length < 2 * WINDOW + SHORT:
            return
        self.chunks += 1
        if self.weighted is None:
            self.weighted = torch.zeros(view.sae.n_latents, dtype=torch.float64)
            self.weight = torch.zeros_like(self.weighted)
        # Whole rows only, within which no other document begins in the part that the short reading cuts.
        whole = text.keep[:, -WINDOW - SHORT :].all(1).nonzero().flatten()
        if InformationScope not in text.cache:
            text.cache[InformationScope] = [
                text.model.activations(ids)[:, -WINDOW:].clone()
                for ids in (text.tokens.ids[whole], _shortened(text, whole))
            ]
        far, near = text.cache[InformationScope]
        for row, one, other in zip(whole.tolist(), far, near, strict=True):
            self._window(view.sae, one, other, int(text.group[row, -1]))

    def _window(self, sae: Autoencoder, far: Tensor, near: Tensor, group: int) -> None:
        assert self.weighted is not None
        assert self.weight is not None
        device = sae.device
        latents, long = compact(sae.encode(far[:, : sae.d_in].float().to(device)))
        others, short = compact(sae.encode(near[:, : sae.d_in].float().to(device)))
        both = torch.cat([latents, others]).unique()
        maps = torch.zeros(2, WINDOW, len(both))
        maps[0][:, torch.searchsorted(both, latents)] = long
        maps[1][:, torch.searchsorted(both, others)] = short
        found, weight = distance(maps[0], maps[1]).double(), maps.sum(1).amax(0).double()
        self.weighted.index_add_(0, both, found * weight)
        self.weight.index_add_(0, both, weight)
        self.totals.add(torch.full((len(both),), group), distance=found, latents=torch.ones_like(found))
        self.windows += 1

    def latents(self) -> dict[str, Tensor]:
        if self.weighted is None or self.weight is None:
            return {}
        return {"information_scope": (self.weighted / self.weight.clamp_min(1e-30)).float()}

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        if not self.windows or self.weight is None:
            needed, last = 2 * WINDOW + SHORT, WINDOW + SHORT
            raise ValueError(
                f"needs rows of at least {needed} tokens (--subject.seq_len), the last {last} of them kept"
            )
        if not (self.weight > 0).any():
            raise ValueError(f"no latent fires in the last {WINDOW} tokens of any of {self.windows} rows")
        scope = self.latents()["information_scope"][self.weight > 0]
        per_window = self.totals.score(lambda distance, latents: distance / latents, "distance in windows")
        return {
            "information_scope": score_of_latents(scope, f"distance, latents in {self.windows} windows"),
            "information_scope_rows": Score(per_window.value, per_window.low, per_window.high, self.windows * WINDOW,
                                            "distance, by active latent", per_window.documents),
        }  # fmt: skip


def _shortened(text: TextChunk, rows: Tensor) -> Tensor:
    """Token ids of rows, without what stands before the last WINDOW + SHORT, but for what rows begin with."""
    ids = text.tokens.ids[rows]
    begins = ids[:, :1] if not bool(text.tokens.keep[:, 0].any()) else ids[:, :0]
    return torch.cat([begins, ids[:, -WINDOW - SHORT :]], 1)


def compact(codes: Codes) -> tuple[Tensor, Tensor]:
    """The latents active in some rows [a], ascending, and the sizes of their codes [W, a]; on the CPU."""
    active = codes.active
    latents, place = codes.indices[active].cpu().unique(return_inverse=True)
    sizes = torch.zeros(len(codes), len(latents))
    row = active.nonzero()[:, 0].cpu()
    return latents, sizes.index_put((row, place), codes.values[active].abs().float().cpu(), accumulate=True)


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Earth mover's distance of each latent's two maps [W, a], in units of W; 1 where one of them is empty; [a]."""
    total, rest = one.sum(0), other.sum(0)
    running = (one / total.clamp_min(1e-30)).cumsum(0) - (other / rest.clamp_min(1e-30)).cumsum(0)
    return running.abs().mean(0).where((total > 0) & (rest > 0), 1.0)
