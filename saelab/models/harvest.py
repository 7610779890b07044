"""Activations of a language model as rows: into a store on disk, or straight to the trainer.

Left out and counted, because they ruin squared errors and no one asks about them: BOS and document-joining tokens,
padding, and rows whose norm is more than ten times the median norm of the first block (attention sinks).
"""

# Shape letters: R packed rows of tokens, T tokens of each, D width, n kept rows.

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.core.progress import progress
from saelab.data.source import WindowSource
from saelab.data.store import Store, StoreWriter
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject
from saelab.models.tokens import TokenRows

OUTLIER = 10.0
"""Rows with more than this many times the median norm are left out."""
SHARD_BYTES = 64 << 20
TOKENS_AT_ONCE = 4096
"""Tokens the model reads in one pass."""


def blocks_of(subject: Subject) -> int:
    """Packed rows the model reads in one pass."""
    return max(1, TOKENS_AT_ONCE // subject.seq_len)


@dataclass(frozen=True)
class Kept:
    """The rows kept of one block of text."""

    rows: Tensor
    """[n, D], on the CPU."""
    columns: dict[str, Tensor]
    """token, document and position of each row, [n] int32."""
    keep: Tensor
    """[R, T] bool: which positions the rows stand at, in reading order."""
    dropped: dict[str, int]
    """Positions left out, by reason."""
    names: list[tuple[int, str]]
    """Number and name of each document that begins here."""


def norm_limit(activations: Tensor, tokens: TokenRows) -> float:
    """The norm above which a row counts as an outlier, from a first block of activations [R, T, D]."""
    norms = activations[tokens.keep.to(activations.device)].float().norm(dim=1)
    norms = norms[torch.isfinite(norms)]
    return OUTLIER * norms.median().item() if len(norms) else float("inf")


def keep_rows(activations: Tensor, tokens: TokenRows, limit: float) -> Kept:
    """Split activations [R, T, D] of a block of text into the rows kept and counts of the others."""
    norms = activations.float().norm(dim=2).cpu()
    # A row that is not finite has no norm to compare: it stays and is refused by whoever takes it.
    outliers = tokens.keep & (norms > limit) & torch.isfinite(norms)
    keep = tokens.keep & ~outliers
    columns = {"token": tokens.ids, "document": tokens.document, "position": tokens.position}
    padding = tokens.document < 0
    return Kept(
        rows=activations[keep.to(activations.device)].cpu(),
        columns={key: value[keep].to(torch.int32) for key, value in columns.items()},
        keep=keep,
        dropped={
            "bos": int((~tokens.keep & ~padding).sum()),
            "padding": int(padding.sum()),
            "outlier": int(outliers.sum()),
        },
        names=tokens.names,
    )


def harvest(
    subject: Subject,
    out: str | Path,
    tokens: int,
    split: str = "train",
    dtype: str = "bf16",
    model: LanguageModel | None = None,
    show: bool = True,
) -> Store:
    """Write a subject's activations into a store; an interrupted harvest goes on where it stopped.

    Args:
        subject: model, site and text.
        out: the store's folder: new, or an unfinished store of the same subject.
        tokens: rows to keep, at least; a store that has fewer, finished or not, is gone on with.
        split: `train`, `held-out` (about 5 % of the documents, by a hash of their content) or `all`.
        dtype: of the rows on disk: bf16, fp16 or fp32.
        model: the subject's model, if it is already loaded.
        show: whether to show progress.

    Raises:
        ValueError: for a folder that holds something else, text that is too short, activations that are not finite.
        OSError: if the disk is full; what was complete is kept and the same call goes on from there.
    """
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    model = model or subject.language_model()
    writer = StoreWriter(out, model.d_in, dtype, subject.origin(model, split))
    if writer.manifest.rows >= tokens or writer.manifest.notes.get("text_ended"):
        writer.finish()
        return Store(out)
    shard_rows = max(1, SHARD_BYTES // (model.d_in * 4))
    done = sum(shard.token_rows for shard in writer.manifest.shards)
    pending: list[Kept] = []
    token_rows = 0
    with _told_apart(writer), progress("harvest", tokens, "tokens", done=writer.manifest.rows, show=show) as bar:
        for block in subject.token_rows(model, split, blocks_of(subject), start=done):
            activations = model.activations(block.ids)
            if "norm_limit" not in writer.manifest.notes:
                writer.manifest.notes["norm_limit"] = norm_limit(activations, block)
            pending.append(keep_rows(activations, block, writer.manifest.notes["norm_limit"]))
            token_rows += len(block.ids)
            bar.advance(len(pending[-1].rows))
            held = sum(len(kept.rows) for kept in pending)
            enough = writer.manifest.rows + held >= tokens
            if held >= shard_rows or enough:
                _append(writer, pending, token_rows)
                pending, token_rows = [], 0
            if enough:
                break
        else:
            writer.manifest.notes["text_ended"] = True
        if pending:
            _append(writer, pending, token_rows)
    writer.finish()
    return Store(out)


@contextmanager
def _told_apart(writer: StoreWriter) -> Iterator[None]:
    """Ctrl-C tells what was kept."""
    try:
        yield
    except KeyboardInterrupt:
        message = f"stopped; {writer.folder} keeps {writer.manifest.rows:,} rows; run the same again and it goes on"
        raise KeyboardInterrupt(message) from None


def _append(writer: StoreWriter, pending: list[Kept], token_rows: int) -> None:
    rows = torch.cat([kept.rows for kept in pending])
    columns = {key: torch.cat([kept.columns[key] for kept in pending]) for key in pending[0].columns}
    dropped = {key: sum(kept.dropped[key] for kept in pending) for key in pending[0].dropped}
    names = [pair for kept in pending for pair in kept.names]
    writer.append(rows, token_rows, dropped, names, **columns)


class LiveSource(WindowSource):
    """Activations computed while training, never written to disk.

    Each window is `window_rows` positions of text, run through the model and shuffled; the text starts over when it
    ends. Going back to a place reads the text again up to that window, without running the model on it.

    Args:
        subject: model, site and text.
        split: which part of the text.
        window_rows: token positions shuffled together.
        model: the subject's model, if it is already loaded.
    """

    def __init__(
        self, subject: Subject, split: str = "train", window_rows: int = 1 << 16, model: LanguageModel | None = None
    ):
        self.subject, self.split = subject, split
        self.model = model or subject.language_model()
        super().__init__(self.model.d_in, subject.seed)
        self._rows_a_window = max(1, window_rows // subject.seq_len)
        self._text: Iterator[TokenRows] = iter(())
        self._next = -1
        self._latest = torch.empty(0)
        self._limit: float | None = None

    def identity(self) -> dict[str, Any]:
        rows = {"split": self.split, "token_rows_a_window": self._rows_a_window}
        where = {key: value for key, value in asdict(self.subject).items() if key != "device"}
        return super().identity() | where | rows

    def window(self, number: int) -> Tensor:
        if number == self._next - 1:  # drawn for the sample that training starts from, and now to train on
            return self._latest
        if number != self._next:
            self._text = self._endless(number * self._rows_a_window)
        self._next = number + 1
        at_once = blocks_of(self.subject)
        parts = []
        for start in range(0, self._rows_a_window, at_once):
            block = join(list(islice(self._text, min(at_once, self._rows_a_window - start))))
            parts.append(keep_rows(self.model.activations(block.ids), block, self._norm_limit()).rows)
        rows = torch.cat(parts)
        if not torch.isfinite(rows).all():
            raise ValueError(
                f"{self.subject.model} gives NaN or infinity at {self.subject.site}; try --live.precision float32"
            )
        self._latest = rows
        return rows

    def _norm_limit(self) -> float:
        if self._limit is None:
            # From the first block of the text, wherever this source stands: a restored one draws the same line.
            first = next(self.subject.token_rows(self.model, self.split, blocks_of(self.subject)))
            self._limit = norm_limit(self.model.activations(first.ids), first)
        return self._limit

    def _endless(self, start: int) -> Iterator[TokenRows]:
        """Packed rows one by one from row `start` on, over and over."""
        while True:
            passed = 0
            for row in self.subject.token_rows(self.model, self.split, 1, start=start):
                passed += 1
                yield row
            start = 0 if passed else start % self._length()

    def _length(self) -> int:
        return sum(len(block.ids) for block in self.subject.token_rows(self.model, self.split, 1024))


def join(blocks: list[TokenRows]) -> TokenRows:
    """Blocks of packed rows as one."""
    return TokenRows(
        ids=torch.cat([block.ids for block in blocks]),
        document=torch.cat([block.document for block in blocks]),
        position=torch.cat([block.position for block in blocks]),
        keep=torch.cat([block.keep for block in blocks]),
        names=[name for block in blocks for name in block.names],
    )
