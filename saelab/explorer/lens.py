"""A model seen through an SAE: which latents fire on a text, what happens without one, and with more of another.

An intervention changes codes and keeps what the SAE does not explain:

    x'_t = x_t + decode(c'_t) - decode(c_t)          at the SAE's site (of a transcoder: at its target)

    by activation    c_tj
    by logit         c_tj (dlogit_next/dz_t . d_j)   first order: what it adds to the logit of the token that follows
    by loss          -c_tj (dloss/dx_t . d_j)        first order: how much the text's loss would rise without the latent

where z_t is what the model's last block gives at the token: the direct path, through the last norm and the head alone;
the logit is that less the mean over the vocabulary.

Exact ablation runs the model again. Continuations are chosen from the model's logits, greedily or by temperature, the
same random numbers with and without steering; nothing is cached between tokens, so texts are kept short.
"""

# Shape letters: T tokens of a text, K active latents of a row, L latents, D width, V vocabulary, R copies of a text.

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.core.codes import Codes
from saelab.explorer.directions import head_of
from saelab.models.language_model import LanguageModel
from saelab.sae.autoencoder import Autoencoder

MODES = ("add", "scale")


@dataclass(frozen=True)
class Change:
    """What is done to one latent at every position.

    `add`: its code becomes `value` times the largest seen in the corpus, plus what it is; `scale`: it is multiplied by
    `value`, so that 0 ablates it.
    """

    latent: int
    mode: str
    value: float


class Lens:
    """A model and an SAE that reads it.

    Args:
        sae: the SAE, on the CPU.
        model: the model it was trained on.
    """

    def __init__(self, sae: Autoencoder, model: LanguageModel):
        self.sae, self.model = sae, model

    @cached_property
    def data_directions(self) -> Tensor:
        """What a code of 1 adds, in the data's units; [L, D]."""
        return self.sae.data_directions().detach()

    @cached_property
    def first_token(self) -> int | None:
        """The token that texts begin with."""
        tokenizer = self.model.tokenizer
        return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, with the one that texts begin with."""
        return self.with_first_token(self.model.token_text.of_text(text).ids)

    def with_first_token(self, ids: Sequence[int]) -> list[int]:
        """Tokens behind the one that texts begin with."""
        return list(ids) if self.first_token is None else [self.first_token, *ids]

    def start(self) -> int:
        """Where a text's own tokens begin."""
        return 0 if self.first_token is None else 1

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> tuple[Tensor, Codes]:
        """Activations [T, D_in (+ D_out)] and codes of a text; the token that texts begin with has no codes."""
        activations = self.model.activations(torch.tensor([list(ids)]))[0].float().cpu()
        codes = self.sae.encode(activations[:, : self.sae.d_in]).compact()
        values = codes.values.clone()
        values[: self.start()] = 0
        return activations, codes.with_values(values)

    @torch.no_grad()
    def changed(self, activations: Tensor, codes: Codes, changes: Sequence[Change], largest: Sequence[float]) -> Tensor:
        """What stands at the site with some latents changed; [T, D_out]."""
        start, values = self.start(), self.sae.data_values(codes)
        size = self.sae.data_values(codes.with_values(torch.ones_like(codes.values)))[:, :1]
        move = torch.zeros_like(self.model.output_activations(activations))
        for change, most in zip(changes, largest, strict=True):
            code = torch.where(codes.indices == change.latent, values, 0).sum(1)
            if change.mode == "add":
                move[start:] += change.value * most * size[start:] * self.data_directions[change.latent]
            else:
                move += ((change.value - 1) * code)[:, None] * self.data_directions[change.latent]
        return self.model.output_activations(activations) + move

    def by_token(self, ids: Sequence[int], most: int = 16) -> list[list[dict[str, Any]]]:
        """For each token the latents active there with their three effects; of many, the largest `most` by each.

        There is no effect on the logit where `why_no_logit` says so.
        """
        activations, codes = self.read(ids)
        gradient, values = self.gradient(ids, activations), self.sae.data_values(codes)
        along = torch.einsum("td,tkd->tk", gradient, self.data_directions[codes.indices])
        loss = -values * along
        effects = {"value": codes.values, "loss": loss}
        if self.why_no_logit is None:
            along = torch.einsum("td,tkd->tk", self.direct(ids), self.data_directions[codes.indices])
            effects["logit"] = values * along
        found = []
        for t in range(len(ids)):
            own = codes.values[t] != 0
            chosen = torch.zeros_like(own)
            for effect in effects.values():
                chosen[effect[t].abs().where(own, -1.0).topk(min(most, len(own))).indices] = True
            places = (own & chosen).nonzero().flatten()
            places = places[codes.values[t, places].abs().argsort(descending=True)]
            found.append(
                [
                    {"latent": int(codes.indices[t, place])}
                    | {name: _rounded(effect[t, place]) for name, effect in effects.items()}
                    for place in places.tolist()
                ]
            )
        return found

    @cached_property
    def why_no_logit(self) -> str | None:
        """Why effects on logits are not known, None where they are."""
        return head_of(self.model, self.data_directions.shape[1])[1]

    def direct(self, ids: Sequence[int]) -> Tensor:
        """Of the following token's logit, less the mean of all, with respect to what the last block gives; [T, D].

        Zero at the last token.
        """
        head = self.model.head
        rows = head.stream(torch.tensor([list(ids)], device=self.model.device))[0].requires_grad_()
        with torch.enable_grad():
            logits = head(rows).float()
            own = logits[:-1].gather(1, torch.tensor(ids[1:], device=logits.device)[:, None])[:, 0]
            total = own.sum() - logits[:-1].mean(1).sum()
        return torch.autograd.grad(total, rows)[0].float().cpu()

    def gradient(self, ids: Sequence[int], activations: Tensor) -> Tensor:
        """Of the text's summed cross entropy with respect to what stands at the site; [T, D]."""
        put = self.model.output_activations(activations)[None].clone().requires_grad_()
        batch = torch.tensor([list(ids)])
        with torch.enable_grad():
            logits = self.model.forward_with(batch, put, gradient=True)[0, :-1].float()
            loss = F.cross_entropy(logits, batch[0, 1:].to(logits.device), reduction="sum")
        return torch.autograd.grad(loss, put)[0][0].float().cpu()

    @torch.no_grad()
    def logits(self, ids: Sequence[int], rows: Tensor) -> Tensor:
        """Log probabilities [R, T, V] of a text with rows [R, T, D] at the site."""
        batch = torch.tensor([list(ids)]).expand(len(rows), -1)
        return F.log_softmax(self.model.forward_with(batch, rows).float(), dim=-1).cpu()

    @torch.no_grad()
    def ablated(
        self, ids: Sequence[int], latents: Sequence[int], positions: range | None = None
    ) -> list[dict[str, Any]]:
        """What each latent does: the model without it, everywhere or at some positions only.

        Returns:
            For each latent: `loss` [T - 1], by how much each prediction's loss rises without it; `kl` [T - 1], of
            predictions with it against those without; both in nats.
        """
        activations, codes = self.read(ids)
        clean = self.model.output_activations(activations)
        rows = [clean]
        for latent in latents:
            without = self.changed(activations, codes, [Change(latent, "scale", 0.0)], [0.0])
            if positions is not None:
                place = torch.arange(len(ids))[:, None]
                without = torch.where((place >= positions.start) & (place < positions.stop), without, clean)
            rows.append(without)
        logs = self.logits(ids, torch.stack(rows))
        target = torch.tensor(list(ids[1:]))
        before = logs[0, :-1]
        found = []
        for after in logs[1:, :-1]:
            index = target[:, None]
            loss = (before.gather(1, index) - after.gather(1, index))[:, 0]
            kl = (before.exp() * (before - after)).sum(1)
            found.append({"loss": _list(loss), "kl": _list(kl), "logs": (before, after)})
        return found

    @torch.no_grad()
    def moved_tokens(self, before: Tensor, after: Tensor, count: int = 6) -> dict[str, list[list[Any]]]:
        """Tokens that an ablation makes likelier (`up`) and unlikelier (`down`): log probability change, probability.

        before, after: log probabilities [V] of one prediction.
        """
        change = after - before
        # Among tokens that the model takes for possible at all, with or without the latent.
        change = change.where(torch.maximum(before, after) > -9.2, 0.0)
        found = {}
        for name, sign in (("up", 1), ("down", -1)):
            best = (sign * change).topk(min(count, len(change)))
            places = best.indices[best.values > 0].tolist()
            found[name] = [[place, _rounded(change[place]), _rounded(before[place].exp())] for place in places]
        return found

    @torch.no_grad()
    def continued(
        self,
        ids: Sequence[int],
        changes: Sequence[Change],
        largest: Sequence[float],
        tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[int]:
        """The tokens that the model writes next, with some latents changed at every position."""
        generator = torch.Generator().manual_seed(seed)
        found = list(ids)
        for _ in range(tokens):
            batch = torch.tensor([found])
            if changes:
                activations, codes = self.read(found)
                row = self.changed(activations, codes, changes, largest)
                logits = self.model.forward_with(batch, row[None])[0, -1].float().cpu()
            else:
                logits = self.model.run(batch)[0][0, -1].float().cpu()
            noise = torch.rand(logits.shape, generator=generator)
            if temperature > 0:
                # The largest of logits with Gumbel noise is a draw from their softmax.
                logits = logits / temperature - torch.log(-torch.log(noise.clamp(1e-9, 1 - 1e-7)))
            found.append(int(logits.argmax()))
        return found[len(ids) :]


def _rounded(value: Tensor | float) -> float:
    return float(f"{float(value):.4g}")


def _list(values: Tensor) -> list[float]:
    return [_rounded(value) for value in values.tolist()]
