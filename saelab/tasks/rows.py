"""Activations behind labelled tasks: the model reads every text once, and the rows that examples are about are kept.

An example about a place is the row of the token that holds the character (of several tokens of one character, the
last). An example about a whole text is up to POOLED rows of it, evenly spaced, the last token's among them: probes look
at the last or pool them. Texts begin with BOS, are read by themselves and cut to the model's context; examples behind
the cut, or at a character that no token holds, are left out and counted.

What is kept is bounded by tasks and examples, not by the length of the texts.
"""

# Shape letters: n examples of a task, N rows of all tasks, T tokens of a text, R texts read at once, D width.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelab.core.progress import progress
from saelab.models.language_model import LanguageModel
from saelab.models.tokens import special_tokens
from saelab.tasks.task import WHOLE, Task, Texts

POOLED = 32
"""Rows kept of an example that is about a whole text."""
CONTEXT = 512
"""Tokens of a text that are read at most."""
TOKENS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class Examples:
    """A task with the rows of its examples."""

    task: Task
    """With those examples that have rows."""
    first: Tensor
    """Number of each example's first row, [n] int64; the others follow it."""
    count: Tensor
    """How many rows each example has, [n] int64."""

    @property
    def last(self) -> Tensor:
        """Number of each example's last row, [n] int64."""
        return self.first + self.count - 1


@dataclass(frozen=True, eq=False)
class TaskRows:
    """Rows of tasks."""

    x: Tensor
    """[N, D], float32, on the CPU."""
    examples: list[Examples]
    left_out: dict[str, str]
    """Tasks that lost too many examples, and how."""


def collect(tasks: Sequence[Task], model: LanguageModel, show: bool = False) -> TaskRows:
    """Read the texts of tasks; ValueError if the tokenizer does not fit the model, or no task keeps enough examples."""
    if not getattr(model.tokenizer, "is_fast", False):
        raise ValueError(f"the tokenizer of {model.name} does not say which characters its tokens are")
    rows: list[Tensor] = []
    found: list[Examples] = []
    left_out: dict[str, str] = {}
    offset = 0
    for texts in dict.fromkeys(task.texts for task in tasks):
        own = [task for task in tasks if task.texts is texts]
        reader = _Reader(texts, own, model, offset)
        rows.append(reader.read(show))
        offset += len(rows[-1])
        for task in own:
            try:
                found.append(reader.examples(task))
            except ValueError as error:
                left_out[task.name] = (
                    f"{error} (examples behind the {reader.context} tokens that are read are left out)"
                )
    if not found:
        raise ValueError(next(iter(left_out.values())))
    return TaskRows(torch.cat(rows), found, left_out)


class _Reader:
    """Reads the texts of tasks that share them.

    Args:
        texts: the texts.
        tasks: that share them.
        model: that reads.
        offset: number of the first row.
    """

    def __init__(self, texts: Texts, tasks: Sequence[Task], model: LanguageModel, offset: int):
        self.texts, self.tasks, self.model, self.offset = texts, tasks, model, offset
        self.join, self.pad = special_tokens(model.tokenizer)
        self.context = min(model.context or CONTEXT, CONTEXT) - (self.join is not None)
        text = torch.cat([task.text for task in tasks])
        at = torch.cat([task.at for task in tasks])
        self.asked = torch.stack([text, at], 1).unique(dim=0)  # sorted by text, then place
        self.used = self.asked[:, 0].unique().tolist()
        self.of = torch.searchsorted(torch.tensor(self.used), self.asked[:, 0].contiguous())  # number in use, of each
        self._tokenize()

    def _tokenize(self) -> None:
        """Token ids of the texts in use, and where the tokens of each question are."""
        encoded: Any = self.model.tokenizer(
            [self.texts.texts[number] for number in self.used],
            add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False,
        )  # fmt: skip
        self.ids = [torch.tensor(ids[: self.context], dtype=torch.int64) for ids in encoded["input_ids"]]
        start, needed = 0, [0] * len(self.ids)
        self.places: list[Tensor] = []  # of each question, tokens [count]
        counts = torch.bincount(self.of).tolist()
        for spans, ids, count in zip(encoded["offset_mapping"], self.ids, counts, strict=True):
            spans = torch.tensor(spans, dtype=torch.int64).view(-1, 2)[: len(ids)]
            self.places += [_tokens_of(at, spans) for at in self.asked[start : start + count, 1].tolist()]
            start += count
        for number, question in zip(self.of.tolist(), self.places, strict=True):
            needed[number] = max(needed[number], int(question.max()) + 1 if len(question) else 0)
        self.ids = [ids[:count] for ids, count in zip(self.ids, needed, strict=True)]  # nobody looks behind that

    def read(self, show: bool) -> Tensor:
        """The rows of all questions, [N, D]."""
        counts = torch.tensor([len(place) for place in self.places])
        self.count, self.first = counts, self.offset + counts.cumsum(0) - counts
        x = torch.empty(int(counts.sum()), self.model.d_in)
        questions: list[list[int]] = [[] for _ in self.used]
        for question, text in enumerate(self.of.tolist()):
            questions[text].append(question)
        order = sorted(range(len(self.ids)), key=lambda number: len(self.ids[number]))
        with progress(f"read {self.texts.source}", sum(map(len, self.ids)), "tokens", show=show) as bar:
            while order:
                longest = len(self.ids[order[-1]]) + (self.join is not None)
                block, order = order[-max(1, TOKENS_AT_ONCE // longest) :], order[: -max(1, TOKENS_AT_ONCE // longest)]
                activations = self._run([self.ids[number] for number in block])
                for row, number in zip(activations, block, strict=True):
                    for question in questions[number]:
                        start = int(self.first[question]) - self.offset
                        x[start : start + int(counts[question])] = row[self.places[question]]
                bar.advance(sum(len(self.ids[number]) for number in block))
        if not torch.isfinite(x).all():
            raise ValueError(f"{self.model.name} gives NaN or infinity at {self.model.site} on {self.texts.source}")
        return x

    def _run(self, block: Sequence[Tensor]) -> Tensor:
        """What is read of texts at their own tokens, [R, T, D_in]."""
        bos = int(self.join is not None)
        ids = torch.full((len(block), max(2, bos + max(map(len, block)))), self.pad)
        for row, own in zip(ids, block, strict=True):
            row[:bos] = self.join if bos else row[:0]
            row[bos : bos + len(own)] = own
        return self.model.activations(ids)[:, bos:, : self.model.d_in].float().cpu()

    def examples(self, task: Task) -> Examples:
        """A task's examples that have rows; ValueError if they are too few."""
        longest = int(self.asked[:, 1].max()) + 2  # places begin at WHOLE, -1
        keys = self.asked[:, 0] * longest + self.asked[:, 1] + 1
        question = torch.searchsorted(keys, task.text * longest + task.at + 1)
        kept = self.count[question] > 0
        return Examples(task.only(kept), self.first[question][kept], self.count[question][kept])


def _tokens_of(at: int, spans: Tensor) -> Tensor:
    """The tokens that a question is about, [count], from the characters of every token [T, 2]; none if it has none."""
    if not len(spans):
        return torch.empty(0, dtype=torch.int64)
    if at == WHOLE:
        return torch.linspace(0, len(spans) - 1, min(POOLED, len(spans))).round().long()
    holds = ((spans[:, 0] <= at) & (at < spans[:, 1])).nonzero().flatten()
    return holds[-1:]
