"""The data a sweep runs over: text through a language model, or a store of activations."""

# Shape letters: R packed rows of tokens, T tokens of each, B rows of a chunk, D width, D_out of a target.

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.data.store import Store
from saelab.metrics.chunks import GROUPS, Chunk, Places, TextChunk
from saelab.models.harvest import averaged, keep_rows, norm_limit
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject

CHUNK_TOKENS, LOGITS_BYTES = 2048, 24 << 20
"""Tokens of a chunk of rows, and the size of a chunk's logits: the C library keeps blocks below 32 MiB for reuse, and
fresh memory costs more in page faults than the arithmetic done in it."""
MEAN_TOKENS = 16_384
"""Tokens that the mean for mean ablation is taken over."""


def _chunk(
    rows: Tensor, d_in: int, group: Tensor, text: TextChunk | None = None, places: Places | None = None
) -> Chunk:
    """A chunk of rows [B, D] behind which targets may stand, [B, D + D_out]."""
    rows = rows.float()
    return Chunk(rows[:, :d_in], group, text, rows[:, d_in:] if rows.shape[1] > d_in else None, places)


class Groups:
    """The groups that documents are resampled in: pieces cut from one document are one, and there are at most GROUPS.

    Args:
        pieces: whether documents are pieces, named after the document they are cut from and a line.
    """

    def __init__(self, pieces: bool):
        self.pieces = pieces
        self._of_name: dict[str, int] = {}
        self._of_number: dict[int, int] = {}

    def add_names(self, names: list[tuple[int, str]]) -> None:
        """Learn the names of documents that begin."""
        for number, name in names:
            whole = name.rpartition(":")[0] if self.pieces else name
            self._of_number[number] = self._of_name.setdefault(whole, len(self._of_name)) % GROUPS

    def numbers(self, documents: Tensor) -> Tensor:
        """Groups of document numbers, int64 of the same shape; a document without a name is its own."""
        numbers, places = documents.unique(return_inverse=True)
        found = [self._of_number.get(number, number % GROUPS) for number in numbers.tolist()]
        return torch.tensor(found, dtype=torch.int64)[places]


class Evaluation(ABC):
    """Chunks of rows, the same every time it is gone through."""

    d_in: int
    d_out: int | None = None
    """Width of the rows to reconstruct, where they are not those read."""
    tokens: int
    """About how many rows there are."""
    model: LanguageModel | None = None
    """Whose activations the rows are, where it is at hand."""
    why_no_model: str | None = "needs a model, and this data is activations only"
    """Why metrics that run the model cannot be had; None where they can."""

    def origin(self) -> dict[str, Any]:
        """What scores on these data depend on; empty where nobody knows."""
        return {}

    @abstractmethod
    def chunks(self, need_logits: bool) -> Iterator[Chunk]:
        """The chunks; without the model's logits, and without running its upper layers, where nobody needs them."""


class TextEvaluation(Evaluation):
    """Text run through a subject's model.

    Args:
        subject: model, site and text; what is averages over documents has no place in the model to put it back.
        tokens: rows to measure on, rounded up to whole chunks.
        split: which part of the text; by default the documents that a harvest leaves out.
        model: the subject's model, if it is already loaded.
    """

    model: LanguageModel

    def __init__(self, subject: Subject, tokens: int, split: str = "held-out", model: LanguageModel | None = None):
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        self.subject, self.tokens, self.split = subject, tokens, split
        self.model = model or subject.language_model()
        self.d_in, self.d_out = self.model.d_in, self.model.d_out
        averages = "needs rows that can be put back into the model, and these are averages over documents"
        self.why_no_model = averages if subject.average else None
        tokens_at_once = CHUNK_TOKENS
        if self.model.device.type == "cpu":
            tokens_at_once = min(tokens_at_once, LOGITS_BYTES // (4 * len(self.model.tokenizer)))
        self._at_once = max(1, tokens_at_once // subject.seq_len)
        self._limit, self._mean = self._survey()

    def origin(self) -> dict[str, Any]:
        return self.subject.origin(self.model, self.split)

    def _survey(self) -> tuple[float, Tensor]:
        """The outlier limit and the mean of the rows to reconstruct, from the beginning of the text."""
        limit, total, count = float("inf"), torch.zeros(self.d_out or self.d_in, dtype=torch.float64), 0
        for block in self.subject.token_rows(self.model, self.split, self._at_once):
            activations = self.model.activations(block.ids)
            if not count:
                limit = norm_limit(activations[..., : self.d_in], block)
            rows = self.model.output_activations(keep_rows(activations, block, limit, self.d_in).rows)
            total, count = total + rows.double().sum(0), count + len(rows)
            if count >= min(MEAN_TOKENS, self.tokens):
                break
        return limit, (total / max(count, 1)).float()

    def chunks(self, need_logits: bool) -> Iterator[Chunk]:
        seen, groups = 0, Groups(self.subject.piece is not None)
        for block in self.subject.token_rows(self.model, self.split, self._at_once):
            if need_logits:
                logits, activations = self.model.run(block.ids)
            else:
                logits, activations = None, self.model.activations(block.ids)
            kept = keep_rows(activations, block, self._limit, self.d_in)
            groups.add_names(block.names)
            group, text = groups.numbers(block.document), None
            if logits is not None:
                written = self.model.output_activations(activations)
                text = TextChunk(self.model, block, written, kept.keep, group, logits, self._mean)
            places: Places | None = Places(block, kept.keep)
            if self.subject.average:
                kept, places = averaged(kept), None
            yield _chunk(kept.rows, self.d_in, groups.numbers(kept.columns["document"]), text, places)
            seen += len(kept.rows)
            if seen >= self.tokens:
                return


class StoreEvaluation(Evaluation):
    """Rows of a store, in text order. Nothing that needs the model can be measured on it.

    Rows of a store that does not say which document each belongs to are documents of their own.

    Args:
        store: the store or its folder.
        tokens: rows to measure on, at most; by default all.
    """

    def __init__(self, store: Store | str | Path, tokens: int | None = None):
        self.store = store if isinstance(store, Store) else Store(store)
        self.d_in, self.d_out = self.store.d_in, self.store.d_out
        if tokens is not None and tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        self.tokens = min(len(self.store), len(self.store) if tokens is None else tokens)

    def origin(self) -> dict[str, Any]:
        return {"store": self.store.manifest.origin}

    def description(self) -> str:
        """How much of the store is read, in words."""
        ends = accumulate(shard.rows for shard in self.store.manifest.shards)
        shards = 1 + sum(end < self.tokens for end in ends)
        of = f"{len(self.store):,} rows, in {shards} of {len(self.store.manifest.shards)} shards"
        return f"read {self.tokens:,} of {of} of {self.store.folder}"

    def chunks(self, need_logits: bool) -> Iterator[Chunk]:
        left, groups, before = self.tokens, Groups(self.store.manifest.origin.get("piece") is not None), 0
        for number in range(len(self.store.manifest.shards)):
            groups.add_names(self.store.names(number))
            columns, count = self.store.columns(number), self.store.manifest.shards[number].rows
            documents = groups.numbers(
                columns["document"] if "document" in columns else torch.arange(before, before + count)
            )
            before += count
            for first in range(0, min(left, count), CHUNK_TOKENS):
                last = min(first + CHUNK_TOKENS, left, count)
                yield _chunk(self.store.rows(number, first, last), self.d_in, documents[first:last])
            left -= count
            if left <= 0:
                return
