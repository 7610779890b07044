"""Ablation sparsity: how few of the model's outputs a latent moves.

At a token t the contribution f_j d_j of one active latent is taken out of the site, in the data's units; the model's
logits then change by Delta at the positions t ... t + T - 1, from which the median over the vocabulary is subtracted at
each position, because a shift of all logits changes nothing:

    sparsity = (||Delta||_1 / ||Delta||_2)^2 / (V T)       in (0, 1], smaller = fewer effects

over all V T entries (Gao et al. 2024, arXiv 2406.04093; T = 16 and the median as we read it). An effect of one logit
gives 1 / (V T), effects distributed like a Laplace give 1/2, like a Gaussian 2 / pi = 0.637, all of one size 1. Some
code has the reciprocal, where larger means sparser.

Beside it the same for channels of what is written at the site: entry x_j of the row is set to zero. A latent or channel
that is zero has no effect and no sparsity: it is not drawn, and an effect that is zero everywhere is left out and
counted. Contexts are cut to `context` tokens, t is drawn among the kept positions at which T tokens follow.
"""

# Shape letters: R packed rows of tokens, T tokens of an effect, V vocabulary, D width at the site, n ablations.

import math

import torch
from torch import Tensor

from saelab.data.source import generator_for
from saelab.metrics.base import Metric, Score, Setting, Table, Totals, View
from saelab.metrics.chunks import TextChunk
from saelab.sae.autoencoder import Autoencoder

LOGITS_BYTES = 24 << 20
"""Size of the logits of one pass."""
KINDS = ("latent", "channel")


class AblationSparsity(Metric):
    """How few logits a latent moves, and a channel of the site.

    Args:
        positions: tokens at which ablations are made, one a packed row of text.
        at_each: active latents ablated at each, drawn at random, and as many channels.
        tokens: T, tokens over which effects are looked at, the ablated one included.
        context: tokens that a context is cut to.
        seed: of what is drawn.
    """

    needs_model = True

    def __init__(self, positions: int = 64, at_each: int = 8, tokens: int = 16, context: int = 64, seed: int = 0):
        self.positions, self.at_each, self.tokens = positions, at_each, tokens
        self.context, self.seed = context, seed

    def begin(self, setting: Setting) -> None:
        for name in ("positions", "at_each", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"AblationSparsity: {name} must be at least 1, got {getattr(self, name)}")
        if self.context <= self.tokens:
            raise ValueError(f"AblationSparsity: context must be above tokens, {self.tokens}; got {self.context}")
        self.generator, self.drawn, self.done, self.without_effect = generator_for(self.seed, 13), 0, 0, 0
        self.totals = {kind: Totals() for kind in KINDS}
        self.seen: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}

    def update(self, view: View) -> None:
        text = view.text
        assert text is not None
        row_of = (text.keep.flatten().cumsum(0) - 1).view_as(text.keep)
        for row in range(len(text.tokens)):
            if self.done == self.positions:
                return
            candidates = self._candidates(text, row)
            if not len(candidates):
                continue
            self.drawn += 1
            place = int(candidates[self._draw(len(candidates), 1)])
            number = int(row_of[row, place])
            active = view.codes.active[number].nonzero().flatten()
            if not len(active):
                continue
            self.done += 1
            drawn = active[self._draw(len(active), self.at_each).to(active.device)]
            latents, values = view.codes.indices[number, drawn], view.codes.values[number, drawn]
            added = view.sae.data_values(view.codes.rows(slice(number, number + 1)))[0, drawn]
            written = added[:, None] * view.sae.data_directions(latents)
            self._take("latent", (text, row, place), latents, values, written)
            x = text.activations[row, place]
            channels = x.nonzero().flatten()
            channels = channels[self._draw(len(channels), len(drawn)).to(channels.device)]
            only = torch.nn.functional.one_hot(channels, len(x)) * x
            self._take("channel", (text, row, place), channels, x[channels], only)

    def _candidates(self, text: TextChunk, row: int) -> Tensor:
        """Positions of a row that may be drawn."""
        there = (text.tokens.document[row, : self.context] >= 0).int()
        last = min(self.context, text.keep.shape[1]) - self.tokens
        if last < 0:
            return torch.empty(0, dtype=torch.int64)
        follows = there.unfold(0, self.tokens, 1).sum(1) == self.tokens
        return (text.keep[row, : last + 1] & follows).nonzero().flatten()

    def _draw(self, of: int, count: int) -> Tensor:
        return torch.randperm(of, generator=self.generator)[:count]

    def _take(
        self, kind: str, where: tuple[TextChunk, int, int], numbers: Tensor, values: Tensor, taken_out: Tensor
    ) -> None:
        """Ablate at one position: `taken_out` [n, D] is subtracted, one after the other."""
        text, row, place = where
        end = place + self.tokens
        found = sparsity(self._effects(text, (row, place, end), taken_out))
        has_effect = torch.isfinite(found)
        self.without_effect += int((~has_effect).sum())
        found, numbers, values = found[has_effect], numbers[has_effect], values[has_effect]
        group = text.group[row, place].expand(len(found))
        self.totals[kind].add(group, sparsity=found, ablations=torch.ones_like(found))
        self.seen[kind] += [
            [float(number), float(value), float(one)] for number, value, one in zip(numbers, values, found, strict=True)
        ]

    def _effects(self, text: TextChunk, where: tuple[int, int, int], taken_out: Tensor) -> Tensor:
        """Changes of logits [n, T, V]."""
        row, place, end = where
        ids, clean = text.tokens.ids[row, :end], text.activations[row, :end]
        size = max(1, LOGITS_BYTES // (4 * self.tokens * text.logits.shape[-1]) - 1)
        effects = []
        for part in taken_out.to(clean).split(size):
            # The unchanged row stands in every pass, so that both sides of the difference are rounded alike.
            rows = clean.expand(1 + len(part), -1, -1).clone()
            rows[1:, place] -= part
            logits = text.model.forward_with(ids.expand(len(rows), -1), rows, last=self.tokens).float()
            effects.append(logits[1:] - logits[:1])
        return torch.cat(effects)

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        if not self.totals["latent"].n:
            if self.done:
                raise ValueError("no latent that was ablated changed a logit")
            if self.drawn:
                raise ValueError(f"no latent fires at any of the {self.drawn} tokens that were drawn")
            raise ValueError(
                f"no token has {self.tokens} tokens from it on within the first {self.context} of a row: give longer "
                "rows (--subject.seq_len) or fewer AblationSparsity.tokens"
            )

        def mean(kind: str) -> Score:
            return self.totals[kind].score(lambda sparsity, ablations: sparsity / ablations, "share of logits")

        found = {"ablation_sparsity": mean("latent")}
        if self.totals["channel"].n:
            found["ablation_sparsity_channels"] = mean("channel")
        return found

    def tables(self) -> dict[str, Table]:
        lines = [[kind, *line] for kind in KINDS for line in self.seen[kind]]
        names = ("kind", "number", "value", "sparsity")
        return {"ablation_sparsity": {name: [line[place] for line in lines] for place, name in enumerate(names)}}


def sparsity(effects: Tensor) -> Tensor:
    """Sparsity of effects [n, T, V]; NaN where there is no effect at all; [n] float64."""
    flat = (effects.double() - effects.median(dim=2, keepdim=True).values.double()).flatten(1)
    return (flat.abs().sum(1) / flat.norm(dim=1)).square() / flat.shape[1]


def reference_points(entries: int) -> dict[str, float]:
    """Sparsity of known effects over V T entries."""
    return {"one logit": 1 / entries, "Laplace": 0.5, "Gaussian": 2 / math.pi, "all alike": 1.0}
