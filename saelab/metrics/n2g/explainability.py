"""How far token patterns explain latents: precision, recall, and the model run on what the patterns predict.

    recall     P(g > 0 | f > 0)       f: the latent's activation, g: what its patterns predict (see `n2g.py`)
    precision  P(f > 0 | g > 0)

Definitions and names are our reading of Gao et al. 2024 (arXiv 2406.04093), who found recall high and precision low.
Patterns are made from one half of the documents; on the other half they are tried at every token, so that both samples,
the tokens where f fires and those where g does, are whole. Scores are means over latents; the `_pooled` ones count
tokens of all latents together and have intervals over documents.

Where every latent is explained, all codes are replaced by what the patterns predict, decoded and put into the model:

    n2g_ce          cross entropy then, in nats per token        n2g_ce_delta   n2g_ce - that of the unchanged model
    n2g_ce_bigram   that of a bigram model on the same tokens (see `bigram.py`), counted on the text's training split

A latent that fires nowhere in the first half has no patterns and predicts nothing.
"""

# Shape letters: R packed rows of tokens, T tokens of each, B kept rows of a chunk, L latents, S latents explained,
# V vocabulary, P positions.

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.core.codes import Codes
from saelab.core.progress import progress
from saelab.data.source import generator_for
from saelab.metrics.base import Metric, Score, Setting, Table, Totals, View, score_of_latents
from saelab.metrics.chunks import GROUPS, TextChunk
from saelab.metrics.downstream import log_probabilities, replaced
from saelab.metrics.evaluation import TextEvaluation
from saelab.metrics.n2g.bigram import Bigram
from saelab.metrics.n2g.last_token import LastToken
from saelab.metrics.n2g.n2g import Asked, Example, Pattern, find_patterns
from saelab.metrics.n2g.patterns import Matches, Patterns
from saelab.metrics.n2g.windows import NONE, Firings, Windows, before
from saelab.models.tokens import TokenRows
from saelab.sae.autoencoder import Autoencoder

BIGRAM_TOKENS = 1_000_000
SHOWN = 8
"""Patterns of a latent that the table shows."""


class N2G(Metric):
    """Precision and recall of token patterns, and what the model makes of them.

    Args:
        most: how many latents are explained, drawn at random; null explains all, which the model is then run on.
        examples: texts that patterns are made from, half of them those with the strongest activations, half drawn.
        context: tokens of such a text, counted back from where the latent fires; what a pattern costs grows with its
            square. Gao et al. 2024 read contexts of 64.
        seed: of what is drawn.
        pad: a text whose last token says as little as possible: it stands in front of a pattern and in a token's
            place. " _" is what Gao et al. 2024 take for GPT-2.
    """

    needs_model = True

    def __init__(self, most: int | None = 256, examples: int = 8, context: int = 16, seed: int = 0, pad: str = " _"):
        self.most, self.examples, self.context, self.seed, self.pad = most, examples, context, seed, pad

    def begin(self, setting: Setting) -> None:
        if self.most is not None and self.most < 1:
            raise ValueError(f"N2G: most must be at least 1, or null for all latents; got {self.most}")
        if self.examples < 2 or self.context < 1:
            given = f"{self.examples} and {self.context}"
            raise ValueError(f"N2G: examples must be at least 2 and context at least 1, got {given}")
        assert isinstance(setting.evaluation, TextEvaluation)
        self.setting, self.model = setting, setting.evaluation.model
        padding = self.model.tokenizer.encode(self.pad, add_special_tokens=False)
        if not padding:
            raise ValueError(f"N2G: pad must be text of at least one token, got {self.pad!r}")
        self.padding = int(padding[-1])
        n_latents = setting.sae.n_latents
        self.explained = torch.randperm(n_latents, generator=generator_for(self.seed, 7))[: self.most].sort().values
        self.slot_of = torch.full((n_latents,), NONE)
        self.slot_of[self.explained] = torch.arange(len(self.explained))
        drawn = self.examples // 2
        self.windows = Windows(len(self.explained), self.examples - drawn, drawn, self.context - 1, 0, self.seed)
        self.patterns: Patterns | None = None
        self.of: list[list[Pattern]] = []
        self.counts = torch.zeros(3, len(self.explained), dtype=torch.int64)
        self.totals, self.predictions = Totals(), Totals()
        self.bigram: Bigram | None = None
        self.tested = 0

    @property
    def explains_all(self) -> bool:
        """Whether every latent is explained."""
        return len(self.explained) == len(self.slot_of)

    def needs_logits(self) -> bool:
        return self.explains_all and self.patterns is not None

    def update(self, view: View) -> None:
        assert view.places is not None
        tokens, keep = view.places.tokens, view.places.keep
        firings = Firings.from_codes(view.codes, keep, self.slot_of)
        group = torch.zeros(keep.shape, dtype=torch.int64).masked_scatter(keep, view.group)
        if self.patterns is None:
            self.windows.update(tokens, firings, group % 2 == 0)
            return
        tried = keep & (group % 2 == 1)
        room = before(tokens).where(keep if self.explains_all else tried, -1)
        matches = self.patterns.match(tokens.ids.flatten(), room.flatten())
        self._count(firings, matches, group.flatten(), tried.flatten())
        if self.explains_all:
            assert view.text is not None
            self._replace(view, view.text, matches, tried)

    def _count(self, firings: Firings, matches: Matches, group: Tensor, tried: Tensor) -> None:
        """Count the tokens at which latents fire, are predicted to, and both."""
        predicted = tried[matches.position]
        fired = tried[firings.position]
        both = predicted & (firings.values_at(matches.position, matches.slot) != 0)
        pairs = (
            (firings.slot[fired], firings.position[fired]),
            (matches.slot[predicted], matches.position[predicted]),
            (matches.slot[both], matches.position[both]),
        )
        size, found = len(self.explained), torch.zeros(3, GROUPS, dtype=torch.float64)
        for number, (slot, position) in enumerate(pairs):
            self.counts[number] += torch.bincount(slot, minlength=size)
            found[number] = torch.bincount(group[position], minlength=GROUPS).double()
        self.tested += int(tried.sum())
        self.totals.add(torch.arange(GROUPS), fired=found[0], predicted=found[1], both=found[2])

    def _replace(self, view: View, text: TextChunk, matches: Matches, tried: Tensor) -> None:
        """Run the model on what the patterns predict."""
        assert self.bigram is not None
        codes = _codes(matches, text.keep, view.sae.n_latents).with_row_scale(view.codes.row_scale)
        x_hat = view.sae.decode(codes.with_values(codes.values.to(view.x)), view.rows)
        logits = text.model.forward_with(text.tokens.ids, replaced(text, x_hat))
        counts = tried[:, :-1] & (text.tokens.document[:, 1:] >= 0)
        first, target = text.tokens.ids[:, :-1][counts], text.tokens.ids[:, 1:][counts]
        clean, explained = (
            F.nll_loss(log_probabilities(one, counts), target.to(one.device), reduction="none").cpu()
            for one in (text.logits, logits)
        )
        bigram, tokens = self.bigram.nats(first, target), torch.ones(len(target))
        self.predictions.add(text.group[:, :-1][counts], clean=clean, explained=explained, bigram=bigram, tokens=tokens)

    def needs_another_pass(self) -> bool:
        if self.patterns is not None:
            return False
        latents, examples = _examples(self.windows)
        if not len(examples):
            raise ValueError("no latent fires in the half of the documents that patterns are made from; give more text")
        activations = LastToken(self.model, self.setting.sae)

        def ask(asked: list[tuple[int, Asked]]) -> list[float]:
            of = [int(self.explained[latents[number]]) for number, _ in asked]
            return activations(of, [tokens for _, tokens in asked])

        with progress("patterns", len(examples), "texts", show=self.setting.show) as bar:
            found = find_patterns(examples, ask, self.padding, bar.advance)
        self.of = [[] for _ in self.explained]
        for slot, pattern in zip(latents, found, strict=True):
            self.of[slot].append(pattern)
        vocabulary = 1 + max(self.model.model.config.get_text_config().vocab_size, len(self.model.tokenizer))
        self.patterns = Patterns(self.of, vocabulary)
        if self.explains_all:
            self.bigram = self._bigram(vocabulary)
        return True

    def _bigram(self, vocabulary: int) -> Bigram:
        shared, key = self.setting.cache, ("bigram", id(self.setting.evaluation))
        if key not in shared:
            shared[key] = Bigram(self._train_text(), vocabulary, BIGRAM_TOKENS)
        return shared[key]

    def _train_text(self) -> Iterator[TokenRows]:
        assert isinstance(self.setting.evaluation, TextEvaluation)
        return self.setting.evaluation.subject.token_rows(self.model, "train", 64)

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        fired, predicted, both = self.counts.double()
        have = torch.tensor([bool(patterns) for patterns in self.of])
        unit = "share of tokens"
        found = {"n2g_unexplained": score_of_latents((~have).double(), "share of latents")}
        if not (fired > 0).any() or not (predicted > 0).any():
            raise ValueError("no latent fires, or none is predicted to, in the other half of the documents")
        found |= {
            "n2g_recall": score_of_latents((both / fired)[fired > 0], unit),
            "n2g_precision": score_of_latents((both / predicted)[predicted > 0], unit),
            "n2g_recall_pooled": self._pooled(lambda both, fired: both / fired, unit),
            "n2g_precision_pooled": self._pooled(lambda both, predicted: both / predicted, unit),
        }
        return found | self._model_scores()

    def _pooled(self, formula: Callable[..., Tensor], unit: str) -> Score:
        return replace(self.totals.score(formula, unit), n=self.tested)

    def _model_scores(self) -> dict[str, Score]:
        if not self.predictions.n:
            return {}
        score, nats = self.predictions.score, "nats per token"
        return {
            "n2g_ce": score(lambda explained, tokens: explained / tokens, nats),
            "n2g_ce_delta": score(lambda explained, clean, tokens: (explained - clean) / tokens, nats),
            "n2g_ce_bigram": score(lambda bigram, tokens: bigram / tokens, nats),
        }

    def tables(self) -> dict[str, Table]:
        fired, predicted, both = self.counts.tolist()
        return {
            "n2g": {
                "latent": self.explained.tolist(),
                "patterns": [self._shown(patterns) for patterns in self.of],
                "n_patterns": [len({(one.tokens, one.at_start) for one in patterns}) for patterns in self.of],
                "fired": fired,
                "predicted": predicted,
                "both": both,
            }
        }

    def _shown(self, patterns: list[Pattern]) -> str:
        """Different patterns of a latent as text, the most frequent first; `*` is any token, `^` the start."""
        said = [
            ("^" if one.at_start else "")
            + "".join("*" if part is None else part for part in one.texts(self.model.token_text))
            for one in patterns
        ]
        return " | ".join(sorted(set(said), key=lambda text: (-said.count(text), said.index(text)))[:SHOWN])


def _examples(windows: Windows) -> tuple[list[int], list[Example]]:
    """Slots and texts of the places kept, each place of a latent once."""
    slots, examples, seen = [], [], set()
    for slot, place in (windows.priority > -torch.inf).nonzero().tolist():
        tokens = [token for token in windows.tokens[slot, place].tolist() if token != NONE]
        key = (slot, *tokens)
        if key not in seen:
            seen.add(key)
            slots.append(slot)
            examples.append(Example(tokens, float(windows.values[slot, place, -1])))
    return slots, examples


def _codes(matches: Matches, keep: Tensor, n_latents: int) -> Codes:
    """What is predicted at the kept positions [R, T] as codes [B], where every latent is explained."""
    row = (keep.flatten().cumsum(0) - 1)[matches.position]
    order = row.sort(stable=True).indices
    row, count = row[order], int(keep.sum())
    counts = torch.bincount(row, minlength=count)
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    width = max(1, int(counts.max())) if count else 1
    values, indices = torch.zeros(count, width), torch.zeros(count, width, dtype=torch.int64)
    values[row, place], indices[row, place] = matches.value[order], matches.slot[order]
    return Codes(values, indices, n_latents)
