"""Activations of latents at the last token of token lists, as many lists at once as the model reads well."""

# Shape letters: n lists, T tokens of the longest in a block.

from collections.abc import Sequence

import torch
from torch import Tensor

from saelab.metrics.sample import codes_of
from saelab.models.language_model import LanguageModel
from saelab.models.tokens import special_tokens
from saelab.sae.autoencoder import Autoencoder

TOKENS_AT_ONCE = 4096
ENTRIES = 1 << 26
"""Rows times latents that are encoded at once."""


class LastToken:
    """What a latent does at the end of a list of tokens.

    The model reads every list behind the token that rows of text begin with, where its tokenizer has one.

    Args:
        model: the model, at the site that the SAE reads.
        sae: the SAE.
    """

    def __init__(self, model: LanguageModel, sae: Autoencoder):
        self.model, self.sae = model, sae
        self.begin = special_tokens(model.tokenizer)[0]
        self.tokens_read = 0

    @torch.no_grad()
    def __call__(self, latents: Sequence[int], lists: Sequence[Sequence[int]]) -> list[float]:
        """The activation of each latent at the end of its list; a list asked for twice is read once."""
        number: dict[tuple[int, ...], int] = {}
        which = torch.tensor([number.setdefault(tuple(tokens), len(number)) for tokens in lists], dtype=torch.int64)
        wanted = torch.tensor(latents, dtype=torch.int64)
        found, unique = torch.zeros(len(lists)), list(number)
        by_length = sorted(range(len(unique)), key=lambda one: len(unique[one]))
        block_of, place_of = torch.zeros(len(unique), dtype=torch.int64), torch.zeros(len(unique), dtype=torch.int64)
        blocks = self._blocks(by_length, unique)
        for number_of_block, block in enumerate(blocks):
            block_of[block], place_of[block] = number_of_block, torch.arange(len(block))
        by_block = block_of[which].sort(stable=True).indices if len(which) else which
        counts = torch.bincount(block_of[which], minlength=len(blocks)).tolist()
        for block, asked in zip(blocks, by_block.split(counts), strict=True):
            found[asked] = self._read([unique[one] for one in block], place_of[which[asked]], wanted[asked])
        return found.tolist()

    def _blocks(self, order: list[int], lists: list[tuple[int, ...]]) -> list[list[int]]:
        """Lists, by number, of similar length together."""
        blocks: list[list[int]] = []
        for one in order:
            if not blocks or (len(blocks[-1]) + 1) * (len(lists[one]) + 1) > TOKENS_AT_ONCE:
                blocks.append([])
            blocks[-1].append(one)
        return blocks

    def _read(self, lists: list[tuple[int, ...]], rows: Tensor, latents: Tensor) -> Tensor:
        """Activations of latents [m] at the end of lists, by number [m]."""
        begin = () if self.begin is None else (self.begin,)
        whole = [(*begin, *tokens) for tokens in lists]
        longest = max(map(len, whole))
        ids = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in whole])
        self.tokens_read += ids.numel()
        last = torch.tensor([len(tokens) - 1 for tokens in whole])
        # A causal model does not look at what stands behind the last token.
        activations = self.model.activations(ids)[..., : self.model.d_in]
        x = activations[torch.arange(len(ids)), last.to(activations.device)]
        x = x.float().to(self.sae.device)
        codes = self.sae.encode(x) if len(x) * self.sae.n_latents <= ENTRIES else codes_of(self.sae, x)
        values, indices = codes.values.cpu().float(), codes.indices.cpu()
        if codes.is_full:
            return values[rows, latents]
        return (values[rows] * (indices[rows] == latents[:, None])).sum(1)
