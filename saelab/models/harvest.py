"""Activations of a language model as rows: into a store on disk, or straight to the trainer.

Left out and counted, because they ruin squared errors and no one asks about them: BOS and document-joining tokens,
padding, and rows whose norm is more than ten times the median norm of the first block (attention sinks). The norm is
that of what is read; a target's activations, which stand behind it, do not count.
"""

# Shape letters: R packed rows of tokens, T tokens of each, D width of what is read and, where there is a target, of it
# too, n kept rows.

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.core.progress import progress
from saelab.data.source import WindowSource
from saelab.data.store import Manifest, Store, StoreWriter
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject
from saelab.models.tokens import TokenRows

OUTLIER = 10.0
"""Rows with more than this many times the median norm are left out."""
SHARD_BYTES = 64 << 20
TEXT = "text_sha256"
"""In a store's notes: for each shard, the digest of all packed rows of tokens up to its end."""
TOKENS_AT_ONCE = 4096
"""Tokens the model reads in one pass."""


READ_AT_ONCE = 64
"""Packed rows of text that are put together at once, before anyone asks for them."""


COUNTED = 5_000_000
"""Rows of a text that are counted, at most, to say how often they come again."""


def blocks_of(subject: Subject) -> int:
    """Packed rows the model reads in one pass."""
    return max(1, TOKENS_AT_ONCE // subject.seq_len)


@dataclass(frozen=True)
class KeptRows:
    """The rows kept of one block of text."""

    rows: Tensor
    """[n, D], on the CPU."""
    columns: dict[str, Tensor]
    """token, document and position of each row, [n] int32; see `averaged` for rows that are averages."""
    keep: Tensor
    """[R, T] bool: which positions the rows stand at, in reading order."""
    dropped: dict[str, int]
    """Positions left out, by reason."""
    names: list[tuple[int, str]]
    """Number and name of each document that begins here."""


def norm_limit(activations: Tensor, tokens: TokenRows) -> float:
    """The norm above which a row counts as an outlier, from what is read in a first block, [R, T, D]."""
    norms = activations[tokens.keep.to(activations.device)].float().norm(dim=1)
    norms = norms[torch.isfinite(norms)]
    return OUTLIER * norms.median().item() if len(norms) else float("inf")


def limit_of(model: LanguageModel, block: TokenRows) -> float:
    """The same, from the block's tokens."""
    return norm_limit(model.activations(block.ids)[..., : model.d_in], block)


def keep_rows(activations: Tensor, tokens: TokenRows, limit: float, d_in: int | None = None) -> KeptRows:
    """Split activations [R, T, D] of a block of text into the rows kept and counts of the others.

    Args:
        activations: at all positions.
        tokens: the block.
        limit: the norm above which a row is left out.
        d_in: how many of the columns were read, and so make the norm; by default all.
    """
    norms = activations[..., :d_in].float().norm(dim=2).cpu()
    # A row that is not finite has no norm to compare: it stays and is refused by whoever takes it.
    outliers = tokens.keep & (norms > limit) & torch.isfinite(norms)
    keep = tokens.keep & ~outliers
    columns = {"token": tokens.ids, "document": tokens.document, "position": tokens.position}
    padding = tokens.document < 0
    return KeptRows(
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


def averaged(kept: KeptRows) -> KeptRows:
    """One row for each packed row of tokens: the mean of the rows kept of it, in their precision.

    Its document is that of the packed row, its position that of the first token kept, its token -1. A packed row of
    which nothing is kept gives none.
    """
    counts = kept.keep.sum(1)
    counts = counts[counts > 0]
    of = torch.arange(len(counts)).repeat_interleave(counts)
    sums = torch.zeros(len(counts), kept.rows.shape[1], dtype=torch.float64).index_add_(0, of, kept.rows.double())
    first = counts.cumsum(0) - counts
    columns = {key: value[first] for key, value in kept.columns.items()}
    columns["token"] = torch.full_like(columns["token"], -1)
    return replace(kept, rows=(sums / counts[:, None]).to(kept.rows.dtype), columns=columns)


def read_rows(subject: Subject, model: LanguageModel, block: TokenRows, limit: float) -> KeptRows:
    """What is kept of a block of a subject's text; means of it if the subject asks for them."""
    kept = keep_rows(model.activations(block.ids), block, limit, model.d_in)
    return averaged(kept) if subject.average else kept


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
        subject: model, site and text; with a target, the store holds that behind each row.
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
    writer = StoreWriter(out, model.d_in, dtype, subject.origin(model, split), model.d_out)
    if writer.manifest.rows >= tokens or writer.manifest.notes.get("text_ended"):
        writer.finish()
        return Store(out)
    shard_rows = max(1, SHARD_BYTES // (writer.manifest.width * 4))
    pending: list[KeptRows] = []
    token_rows, text = 0, hashlib.sha256()
    with (
        _report_rows_on_interrupt(writer),
        progress("harvest", tokens, "tokens", done=writer.manifest.rows, show=show) as bar,
    ):
        for block in _after(writer, subject, subject.token_rows(model, split, blocks_of(subject)), text):
            text.update(block.ids.numpy().tobytes())
            if "norm_limit" not in writer.manifest.notes:
                writer.manifest.notes["norm_limit"] = limit_of(model, block)
            pending.append(read_rows(subject, model, block, writer.manifest.notes["norm_limit"]))
            token_rows += len(block.ids)
            bar.advance(len(pending[-1].rows))
            held = sum(len(kept.rows) for kept in pending)
            enough = writer.manifest.rows + held >= tokens
            if held >= shard_rows or enough:
                _append(writer, pending, token_rows, text.hexdigest())
                pending, token_rows = [], 0
            if enough:
                break
        else:
            writer.manifest.notes["text_ended"] = True
        if pending:
            _append(writer, pending, token_rows, text.hexdigest())
    writer.finish()
    return Store(out)


@contextmanager
def _report_rows_on_interrupt(writer: StoreWriter) -> Iterator[None]:
    """Ctrl-C tells what was kept."""
    try:
        yield
    except KeyboardInterrupt:
        message = f"stopped; {writer.folder} keeps {writer.manifest.rows:,} rows; run the same again to resume it"
        raise KeyboardInterrupt(message) from None


def is_text_known(manifest: Manifest) -> bool:
    """Whether a store says which text its rows are of, so that it can be seen to have changed."""
    return len(manifest.notes.get(TEXT, ())) >= len(manifest.shards)


def _after(
    writer: StoreWriter, subject: Subject, blocks: Iterator[TokenRows], text: "hashlib._Hash"
) -> Iterator[TokenRows]:
    """The blocks after those that the store is of; `text` is left as the digest of the packed rows before them.

    Raises:
        ValueError: if the store was harvested from another text, as far as it says which.
    """
    shards, notes = writer.manifest.shards, writer.manifest.notes
    known, found, ends = notes.get(TEXT, []), list[str](), list(accumulate(shard.token_rows for shard in shards))
    done, names = 0, list[tuple[int, str]]()
    for block in blocks:
        used, names = 0, [*names, *block.names]
        while used < len(block) and len(found) < len(ends):
            count = min(len(block) - used, ends[len(found)] - done)
            text.update(block.ids[used : used + count].numpy().tobytes())
            used, done = used + count, done + count
            if done == ends[len(found)]:
                found.append(text.hexdigest())
                if known[len(found) - 1 : len(found)] not in ([], found[-1:]):
                    raise ValueError(_changed(writer, subject, len(found) - 1, names))
                names = list(block.names)
        if len(found) == len(ends):
            notes[TEXT] = found
            if used < len(block):
                yield block if not used else replace(picked(block, slice(used, None)), names=block.names)
    if len(found) < len(ends):
        raise ValueError(_changed(writer, subject, len(found), names))


def _changed(writer: StoreWriter, subject: Subject, number: int, names: list[tuple[int, str]]) -> str:
    """What to say of a shard whose text has changed; `names` are of the documents that stand there now."""
    shard = writer.manifest.shards[number].file
    before = dict(Store(writer.folder).names(number))
    others = [f"{before[at]} is now {name}" for at, name in names if before.get(at, name) != name]
    where = others[0] if others else f"look at {next(iter(before.values()), 'the first document')}"
    return (
        f"the text {subject.text} has changed since {writer.folder} was harvested: it gives other tokens than those of "
        f"{shard} ({where}); put the text back as it was, or harvest into another folder"
    )


def _append(writer: StoreWriter, pending: list[KeptRows], token_rows: int, text: str) -> None:
    writer.manifest.notes[TEXT] = [*writer.manifest.notes.get(TEXT, []), text]
    rows = torch.cat([kept.rows for kept in pending])
    columns = {key: torch.cat([kept.columns[key] for kept in pending]) for key in pending[0].columns}
    dropped = {key: sum(kept.dropped[key] for kept in pending) for key in pending[0].dropped}
    names = [pair for kept in pending for pair in kept.names]
    writer.append(rows, token_rows, dropped, names, **columns)


class TextStream:
    """A subject's text as packed rows of tokens, over and over, and the norm above which a row of it is an outlier.

    Args:
        subject: model, site and text.
        model: the subject's model.
        split: which part of the text.
    """

    def __init__(self, subject: Subject, model: LanguageModel, split: str):
        self.subject, self.model, self.split = subject, model, split
        self._text: Iterator[TokenRows] = iter(())
        self._rest: TokenRows | None = None  # what was read and not yet asked for
        self._next = -1
        self._limit: float | None = None
        self._held: tuple[int, bool] | None = None

    def rows(self, start: int, count: int) -> TokenRows:
        """`count` packed rows from number `start` on; cheap where the last call ended, else the text is read again."""
        if start != self._next:
            self._text, self._rest = self._endless(start), None
        self._next = start + count
        parts: list[TokenRows] = []
        while count:
            block = next(self._text) if self._rest is None else self._rest
            parts.append(picked(block, slice(0, count)))
            self._rest = picked(block, slice(count, None)) if len(block) > count else None
            count -= len(parts[-1])
        return join(parts)

    def limit(self) -> float:
        """The norm above which a row counts as an outlier."""
        if self._limit is None:
            # From the first block of the text, wherever a source stands: a restored one draws the same line.
            first = next(self.subject.token_rows(self.model, self.split, blocks_of(self.subject)))
            self._limit = limit_of(self.model, first)
        return self._limit

    def _endless(self, start: int) -> Iterator[TokenRows]:
        """Blocks of packed rows from row `start` on, over and over."""
        while True:
            passed = False
            for block in self.subject.token_rows(self.model, self.split, READ_AT_ONCE, start=start):
                passed = True
                yield block
            start = 0 if passed else start % self._length()

    def distinct_rows(self, most: int) -> int | None:
        """How many rows a pass over the text has, outliers among them; None if these are `most` or more.

        Reads as much of the text as `most` rows, but not more than COUNTED: of a longer one it is not known.
        """
        if self._held is None or (self._held[1] and most > self._held[0]):
            self._held = self._count(min(most, COUNTED))
        count, goes_on = self._held
        return None if goes_on or count >= most else count

    def _count(self, most: int) -> tuple[int, bool]:
        """Rows of the text, and whether it goes on beyond them."""
        count = 0
        for block in self.subject.token_rows(self.model, self.split, READ_AT_ONCE):
            count += int(block.keep.any(1).sum() if self.subject.average else block.keep.sum())
            if count >= most:
                return count, True
        return count, False

    def _length(self) -> int:
        return sum(len(block.ids) for block in self.subject.token_rows(self.model, self.split, 1024))


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
        self.d_out = self.model.d_out
        self._rows_a_window = max(1, window_rows // subject.seq_len)
        self._stream = TextStream(subject, self.model, split)
        self._latest = (-1, torch.empty(0))

    def identity(self) -> dict[str, Any]:
        rows = {"split": self.split, "token_rows_a_window": self._rows_a_window}
        return super().identity() | identity_of(self.subject) | rows

    def distinct_rows(self, most: int) -> int | None:
        return self._stream.distinct_rows(most)

    def window(self, number: int) -> Tensor:
        if number == self._latest[0]:  # drawn for the sample that training starts from, and now to train on
            return self._latest[1]
        at_once, start = blocks_of(self.subject), number * self._rows_a_window
        parts = []
        for done in range(0, self._rows_a_window, at_once):
            block = self._stream.rows(start + done, min(at_once, self._rows_a_window - done))
            parts.append(read_rows(self.subject, self.model, block, self._stream.limit()).rows)
        rows = torch.cat(parts)
        check_finite(rows, self.subject)
        self._latest = number, rows
        return rows


def identity_of(subject: Subject) -> dict[str, Any]:
    """What of a subject the rows of a source depend on."""
    return {key: value for key, value in asdict(subject).items() if key != "device"}


def check_finite(rows: Tensor, subject: Subject) -> None:
    """ValueError that names model and site if an activation is not finite."""
    if not torch.isfinite(rows).all():
        sites = f"{subject.site} or {subject.target}" if subject.target else subject.site
        raise ValueError(f"{subject.model} gives NaN or infinity at {sites}; try --live.precision float32")


def join(blocks: list[TokenRows]) -> TokenRows:
    """Blocks of packed rows as one."""
    return TokenRows(
        ids=torch.cat([block.ids for block in blocks]),
        document=torch.cat([block.document for block in blocks]),
        position=torch.cat([block.position for block in blocks]),
        keep=torch.cat([block.keep for block in blocks]),
        names=[name for block in blocks for name in block.names],
    )


def picked(tokens: TokenRows, which: slice | Tensor) -> TokenRows:
    """Some packed rows of a block, without the names of their documents."""
    return TokenRows(tokens.ids[which], tokens.document[which], tokens.position[which], tokens.keep[which], [])
