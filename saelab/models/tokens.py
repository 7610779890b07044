"""From documents to packed rows of tokens: each row full, beginning with BOS, its documents joined by BOS.

A row may hold the end of one document, some whole ones and the beginning of another; which token belongs to which
document, and where in it, is kept. Where documents are to be read apart, each has rows of its own instead, the last of
them padded. What becomes of the rows (dropping tokens, running a model) is not decided here.
"""

# Shape letters: R rows of tokens, T tokens a row.

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from saelab.models.text import Document
from saelab.models.token_text import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 4_000_000  # a tokenizer's output takes some hundred bytes a token until it is packed


@dataclass(frozen=True, eq=False)
class TokenRows:
    """A block of packed rows.

    BOS and joining tokens count as part of the document that follows them, but are not kept.
    """

    ids: Tensor
    """Token ids [R, T] int64."""
    document: Tensor
    """[R, T] int32: number of the document in reading order from 0; -1 at padding."""
    position: Tensor
    """[R, T] int32: place in the document, 0 at the first token of its text; -1 at BOS, joins and padding."""
    keep: Tensor
    """[R, T] bool: False at BOS, joins and padding."""
    names: list[tuple[int, str]]
    """Number and name of each document that occurs here for the first time in the text."""
    spans: Tensor | None = None
    """[R, T, 2] int32: where in its document's text each token begins and ends, where that was asked for; see
    `token_text`."""
    texts: list[tuple[int, str]] = field(default_factory=list)
    """Number and text of each of the documents in `names`, where spans were asked for."""

    def __len__(self) -> int:
        return len(self.ids)


def pack(
    documents: Iterable[Document],
    tokenizer: "PreTrainedTokenizerBase",
    seq_len: int,
    rows: int,
    start: int = 0,
    apart: bool = False,
    spans: bool = False,
) -> Iterator[TokenRows]:
    """Blocks of `rows` rows of `seq_len` tokens; the last block may have fewer rows, the last row is padded.

    Rows and documents are joined by the tokenizer's BOS token, else by EOS; a tokenizer without both joins nothing.

    Args:
        documents: the text, see `read_text`.
        tokenizer: of the model that will read the rows.
        seq_len: T, at least 2.
        rows: R.
        start: skip that many rows; what follows is what an uninterrupted run gives from there on.
        apart: whether every document begins a new row; what is left free of the row before it is padding.
        spans: whether to give texts and the tokens' places in them too.

    Raises:
        ValueError: for a bad setting, or text that does not fill one row (apart: that has no token).
    """
    if seq_len < 2:
        raise ValueError(f"seq_len must be at least 2, got {seq_len}")
    if rows < 1 or start < 0:
        raise ValueError(f"rows must be at least 1 and start at least 0, got {rows} and {start}")
    found = _rows(_tokenized(documents, tokenizer, spans), special_tokens(tokenizer), seq_len, apart)
    return _blocks(islice(found, start, None), rows, special_tokens(tokenizer)[0], spans)


@dataclass(frozen=True)
class _Tokens:
    """A document as tokens."""

    number: int
    name: str
    ids: np.ndarray
    """[n] int64."""
    text: str | None
    """Where spans are asked for."""
    spans: np.ndarray
    """[n, 2]; zeros where they are not."""


class _Row:
    """One row while it is filled."""

    def __init__(self, seq_len: int, join: int | None, pad: int):
        self.join = join
        self.length = 0
        self.ids = np.full(seq_len, pad, np.int64)
        self.document = np.full(seq_len, -1, np.int32)
        self.position = np.full(seq_len, -1, np.int32)
        self.spans = np.zeros((seq_len, 2), np.int32)
        self.names: list[tuple[int, str]] = []
        self.texts: list[tuple[int, str]] = []

    @property
    def room(self) -> int:
        return len(self.ids) - self.length

    def begin(self, number: int) -> None:
        """Put BOS before a document or what is left of it."""
        if self.join is not None and self.room:
            self.ids[self.length], self.document[self.length] = self.join, number
            self.length += 1

    def add(self, tokens: _Tokens, done: int) -> int:
        """Put tokens of a document from `done` on as far as there is room; how many fitted."""
        count = min(self.room, len(tokens.ids) - done)
        place = slice(self.length, self.length + count)
        self.ids[place] = tokens.ids[done : done + count]
        self.spans[place] = tokens.spans[done : done + count]
        self.document[place] = tokens.number
        self.position[place] = np.arange(done, done + count)
        self.length += count
        return count


def _rows(documents: Iterable[_Tokens], special: tuple[int | None, int], seq_len: int, apart: bool) -> Iterator[_Row]:
    join, pad = special
    row, n_rows, n_tokens = _Row(seq_len, join, pad), 0, 0
    for tokens in documents:
        n_tokens += len(tokens.ids)
        done, is_new = 0, True
        while done < len(tokens.ids):
            if not row.room or (apart and row.length):
                yield row
                row, n_rows = _Row(seq_len, join, pad), n_rows + 1
            if is_new or row.length == 0:
                row.begin(tokens.number)
            if is_new:
                row.names.append((tokens.number, tokens.name))
                row.texts += [] if tokens.text is None else [(tokens.number, tokens.text)]
                is_new = False
            done += row.add(tokens, done)
    if not n_rows and row.room and not (apart and row.length):
        raise ValueError(
            f"the text has only {n_tokens} tokens, shorter than one row of {seq_len}: give more text or a smaller "
            "--seq_len"
        )
    yield row


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[int | None, int]:
    """The token that begins rows and joins documents, if there is one, and the one that pads."""
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    join = bos if bos is not None else eos
    return join, next((token for token in (eos, pad) if token is not None), 0)


def _tokenized(documents: Iterable[Document], tokenizer: "PreTrainedTokenizerBase", spans: bool) -> Iterator[_Tokens]:
    """Each document that has tokens."""
    number, spelling = 0, TokenText(tokenizer)
    for batch in _batches(documents):
        texts = [document.text for document in batch]
        if spans:
            spelled = [spelling.of_text(text) for text in texts]
            ids = [one.ids for one in spelled]
            where = [np.stack([one.start, one.end], 1) for one in spelled]
            kept: list[str | None] = [one.text for one in spelled]
        else:
            ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            where = [np.zeros((len(own), 2), np.int32) for own in ids]
            kept = [None for _ in ids]
        for document, own, text, places in zip(batch, ids, kept, where, strict=True):
            if len(own):
                yield _Tokens(number, document.name, np.asarray(own, np.int64), text, places)
            number += 1


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """First one document, then twice as many each time, so that whoever wants a few rows does not wait for many."""
    batch: list[Document] = []
    characters, most = 0, 1
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == most or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters, most = [], 0, min(2 * most, BATCH_DOCUMENTS)
    if batch:
        yield batch


def _blocks(rows: Iterator[_Row], n_rows: int, join: int | None, with_spans: bool) -> Iterator[TokenRows]:
    while block := list(islice(rows, n_rows)):
        document = _stacked([row.document for row in block])
        position = _stacked([row.position for row in block])
        ids = _stacked([row.ids for row in block])
        # A document may spell the joining token out; there it is no better a row to learn from.
        keep = (position >= 0) & (ids != (-1 if join is None else join))
        texts = [pair for row in block for pair in row.texts]
        yield TokenRows(
            ids, document, position, keep, [name for row in block for name in row.names],
            _stacked([row.spans for row in block]) if with_spans else None, texts,
        )  # fmt: skip


def _stacked(rows: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(rows))
