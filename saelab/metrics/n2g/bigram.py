"""A bigram model: the next token from the last one alone, by counting. What an explanation by tokens has to beat.

    p(w | v) = (c(v, w) + t(v) p(w)) / (c(v) + t(v)),     p(w) = (c(w) + 1) / (n + V)

c counts pairs in the text, t(v) the different tokens that followed v (Witten & Bell 1991's interpolation), n all pairs.
"""

# Shape letters: V vocabulary, n pairs.

from collections.abc import Iterable

import torch
from torch import Tensor

from saelab.models.tokens import TokenRows


class Bigram:
    """A bigram model of some text.

    Args:
        blocks: the text as packed rows.
        vocabulary: number of tokens V.
        most: tokens to count at most; memory is a few numbers for each different pair among them.
    """

    def __init__(self, blocks: Iterable[TokenRows], vocabulary: int, most: int):
        keys, seen = [], 0
        for block in blocks:
            first, second = pairs(block)
            keys.append(first * vocabulary + second)
            seen += len(first)
            if seen >= most:
                break
        if not seen:
            raise ValueError("there is no text to count pairs of tokens in")
        self.vocabulary = vocabulary
        self.keys, self.counts = torch.cat(keys).unique(return_counts=True)
        first, second = self.keys // vocabulary, self.keys % vocabulary
        zero = torch.zeros(vocabulary, dtype=torch.float64)
        self.followed = zero.index_add(0, first, self.counts.double())
        self.different = torch.bincount(first, minlength=vocabulary).double()
        self.single = (zero.index_add(0, second, self.counts.double()) + 1) / (seen + vocabulary)

    def nats(self, first: Tensor, second: Tensor) -> Tensor:
        """-log p(second | first) of pairs [n]; float64."""
        key = first * self.vocabulary + second
        place = torch.searchsorted(self.keys, key).clamp_max(len(self.keys) - 1)
        count = self.counts[place].double().where(self.keys[place] == key, 0)
        rest, total = self.different[first], self.followed[first] + self.different[first]
        # A token never seen before another has nothing of its own to say.
        chance = torch.where(total > 0, (count + rest * self.single[second]) / total, self.single[second])
        return -chance.log()


def pairs(tokens: TokenRows) -> tuple[Tensor, Tensor]:
    """Tokens and those that follow them, at the predictions of kept positions that are of no padding; [n] each."""
    counts = tokens.keep[:, :-1] & (tokens.document[:, 1:] >= 0)
    return tokens.ids[:, :-1][counts], tokens.ids[:, 1:][counts]
