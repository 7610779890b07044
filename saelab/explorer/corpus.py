"""What latents are looked at on: rows with the tokens, documents and lines they stand for, in pieces of fixed size.

A piece is the unit of resuming: number p always holds the same rows, whoever asks and whenever. Rows come from a store,
from text that a model reads now, or from any source of rows that have no text (a synthetic world).
"""

# Shape letters: n rows of a piece, D input width, R packed rows of tokens, T tokens of each.

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.data.source import Source
from saelab.data.store import Store
from saelab.models.harvest import identity_of, limit_of, read_rows
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject

PIECE_ROWS = 1 << 16


@dataclass(frozen=True)
class Piece:
    """Some consecutive rows."""

    rows: Tensor
    """[n, D], in their own precision."""
    token: Tensor
    """[n] int32; -1 where a row stands for no token."""
    document: Tensor
    """[n] int32."""
    position: Tensor
    """[n] int32: place in the document."""
    names: list[tuple[int, str]] = field(default_factory=list)
    """Number and name of documents; each at the latest with its first row."""
    spans: Tensor | None = None
    """[n, 2] int32: where in its document's text each row's token begins and ends, where the text is at hand."""
    texts: list[tuple[int, str]] = field(default_factory=list)
    """Number and text of the documents in `names`, where it is."""


class Corpus(ABC):
    """Rows in text order, in numbered pieces."""

    d_in: int
    tokens: int
    """About how many rows there are."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the rows depend on, JSON-able: equal for equal rows."""

    @abstractmethod
    def pieces(self, start: int = 0) -> Iterator[Piece]:
        """The pieces from number `start` on."""


class StoreCorpus(Corpus):
    """Rows of a store.

    Args:
        store: the store or its folder.
        tokens: rows to look at, at most; by default all.
        piece_rows: rows of a piece.
    """

    def __init__(self, store: Store | str | Path, tokens: int | None = None, piece_rows: int = PIECE_ROWS):
        self.store = store if isinstance(store, Store) else Store(store)
        if tokens is not None and tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        self.d_in, self.piece_rows = self.store.d_in, piece_rows
        self.tokens = min(len(self.store), tokens or len(self.store))

    def identity(self) -> dict[str, Any]:
        sums = [shard.sha256 for shard in self.store.manifest.shards]
        return {"shards": sums, "tokens": self.tokens, "piece_rows": self.piece_rows}

    def pieces(self, start: int = 0) -> Iterator[Piece]:
        counts = [shard.rows for shard in self.store.manifest.shards]
        for first in range(start * self.piece_rows, self.tokens, self.piece_rows):
            last, begin, parts = min(first + self.piece_rows, self.tokens), 0, []
            for number, count in enumerate(counts):
                low, high = max(first - begin, 0), min(last - begin, count)
                if low < high:
                    parts.append(self._part(number, low, high))
                begin += count
            yield _joined(parts)

    def _part(self, shard: int, low: int, high: int) -> Piece:
        columns = self.store.columns(shard)
        token, document, position = (
            columns[key][low:high] if key in columns else torch.full((high - low,), -1, dtype=torch.int32)
            for key in ("token", "document", "position")
        )
        return Piece(
            self.store.rows(shard, low, high)[:, : self.d_in], token, document, position, self.store.names(shard)
        )


class TextCorpus(Corpus):
    """Text that a subject's model reads now.

    Args:
        subject: model, site and text.
        model: the subject's model.
        tokens: positions of the text to read, about; those left out (BOS, padding, outliers) count.
        split: which part of the text.
        piece_rows: positions of a piece.
    """

    def __init__(
        self, subject: Subject, model: LanguageModel, tokens: int, split: str = "train", piece_rows: int = 1 << 14
    ):
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        self.subject, self.model, self.split = subject, model, split
        self.d_in = model.d_in
        self._packed = max(1, piece_rows // subject.seq_len)
        self._pieces = -(-tokens // (self._packed * subject.seq_len))
        self.tokens = self._pieces * self._packed * subject.seq_len

    def identity(self) -> dict[str, Any]:
        sizes = {"split": self.split, "packed": self._packed, "pieces": self._pieces}
        return identity_of(self.subject) | sizes | {"fingerprint": self.model.fingerprint}

    def pieces(self, start: int = 0) -> Iterator[Piece]:
        at_once = max(1, min(self._packed, 4096 // self.subject.seq_len))
        first = next(self.subject.token_rows(self.model, self.split, at_once))
        limit = limit_of(self.model, first)
        spans = not self.subject.average  # an average stands for no token
        blocks = self.subject.token_rows(self.model, self.split, self._packed, start * self._packed, spans)
        for _, block in zip(range(start, self._pieces), blocks, strict=False):
            kept = read_rows(self.subject, self.model, block, limit)
            token, document, position = (kept.columns[key] for key in ("token", "document", "position"))
            own = None if block.spans is None else block.spans[kept.keep]
            yield Piece(kept.rows[:, : self.d_in], token, document, position, block.names, own, block.texts)


class BareCorpus(Corpus):
    """Rows of a source that have no text: every latent has statistics and neighbours, but no examples to read.

    Args:
        source: of the rows; is moved back to its beginning.
        tokens: rows to look at.
        name: what the source is, for resuming.
        piece_rows: rows of a piece.
    """

    def __init__(self, source: Source, tokens: int, name: dict[str, Any], piece_rows: int = 1 << 14):
        self.source, self.tokens, self.d_in = source, tokens, source.d_in
        self._name, self.piece_rows = name, min(piece_rows, tokens)

    def identity(self) -> dict[str, Any]:
        return {"source": self._name, "tokens": self.tokens, "piece_rows": self.piece_rows}

    def pieces(self, start: int = 0) -> Iterator[Piece]:
        wanted = -(-self.tokens // self.piece_rows)
        batches = self.source.batches(self.piece_rows)
        for number, batch in zip(range(wanted), batches, strict=False):
            if number >= start:
                absent = torch.full((len(batch.x),), -1, dtype=torch.int32)
                yield Piece(batch.x, absent, torch.zeros_like(absent), torch.arange(len(absent), dtype=torch.int32))


def _joined(parts: list[Piece]) -> Piece:
    if len(parts) == 1:
        return parts[0]
    return Piece(
        rows=torch.cat([part.rows for part in parts]),
        token=torch.cat([part.token for part in parts]),
        document=torch.cat([part.document for part in parts]),
        position=torch.cat([part.position for part in parts]),
        names=[name for part in parts for name in part.names],
    )
