"""Batches of whole contexts, for objectives that ask the model what a reconstruction does further up.

    kl        mean over predictions of  KL( p(. | clean rows) || p(. | reconstructed rows) )
    ce        mean over predictions of  -log p(next token | reconstructed rows)
    gradient  d / d row of  sum over predictions of  -log p(next token | clean rows)

in nats (the unit of the gradient: nats per unit of the data). What is replaced is the model's target site or, where it
has none, the site that is read. The rows of a batch are the kept positions of some contexts in full, of the last one
perhaps only the first; other positions keep their clean activations, and the predictions that count are those made
at the batch's rows. The gradient counts every prediction made at a kept position of the context. A prediction of
padding never counts.

The model's weights are constants: the gradient goes through the layers above the site, a block of contexts at a time,
so that logits of one block only are held. Left out: reading ahead on a thread, because training needs the model too.
"""

# Shape letters: B rows, D width of what is read (and the target), R packed rows of tokens, T tokens of each,
# V vocabulary.

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from saelab.core.components import near_miss
from saelab.data.source import Batch, Source, generator_for
from saelab.models.harvest import TextStream, blocks_of, check_finite, identity_of, join, keep_rows, picked
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject
from saelab.models.tokens import TokenRows

BROUGHT = ("kl", "ce", "gradient")


@dataclass(frozen=True)
class Contexts:
    """Contexts of which some positions are the rows of a batch."""

    model: LanguageModel
    tokens: TokenRows
    keep: Tensor
    """[R, T] bool: the positions of the rows, in reading order."""
    at_once: int
    """Contexts that the model reads in one pass."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self.keep.sum())

    def loss(self, kind: str, reconstructions: Tensor) -> Tensor:
        """The model's loss [], `kl` or `ce`, with reconstructions [B, D] of all the rows in their place.

        Raises:
            ValueError: if there is not one reconstruction for every row.
        """
        if len(reconstructions) != self.rows:
            raise ValueError(
                f"expected reconstructions of all {self.rows} rows of the batch, got {len(reconstructions)}; contexts "
                "cannot be dealt to several replicas"
            )
        return _Loss.apply(reconstructions, self, kind)

    def loss_and_gradient(self, kind: str, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient [B, D] with respect to the reconstructions."""
        count = sum(int(predictions(block, keep).sum()) for block, keep, _ in self._blocks(reconstructions))
        total, gradients = reconstructions.new_zeros(()), []
        for block, keep, rows in self._blocks(reconstructions.detach()):
            rows = rows.clone().requires_grad_()
            # What the trainer computes in lower precision, it does not compute in the model.
            with torch.enable_grad(), torch.autocast(self.model.device.type, enabled=False):
                loss = self._block_loss(kind, block, keep, rows) / max(count, 1)
            gradients.append(torch.autograd.grad(loss, rows)[0])
            total += loss.detach().to(total)
        return total, torch.cat(gradients)

    def gradient(self) -> Tensor:
        """Gradient [B, D] of the contexts' summed cross entropy with respect to the clean rows, on the CPU."""
        found = []
        for start in range(0, len(self.tokens), self.at_once):
            block, keep = picked(self.tokens, slice(start, start + self.at_once)), self.keep[start:][: self.at_once]
            clean = self.model.output_activations(self.model.activations(block.ids)).requires_grad_()
            with torch.enable_grad(), torch.autocast(self.model.device.type, enabled=False):
                logits = self.model.forward_with(block.ids, clean, gradient=True)
                loss = _cross_entropy(logits, block, predictions(block, block.keep))
            found.append(torch.autograd.grad(loss, clean)[0][keep.to(clean.device)].cpu())
        return torch.cat(found)

    def _blocks(self, rows: Tensor) -> Iterator[tuple[TokenRows, Tensor, Tensor]]:
        """Tokens, kept positions and rows of as many contexts as the model reads in one pass."""
        done = 0
        for start in range(0, len(self.tokens), self.at_once):
            keep = self.keep[start : start + self.at_once]
            count = int(keep.sum())
            yield picked(self.tokens, slice(start, start + self.at_once)), keep, rows[done : done + count]
            done += count

    def _block_loss(self, kind: str, block: TokenRows, keep: Tensor, rows: Tensor) -> Tensor:
        """The loss summed over the block's predictions."""
        if kind == "kl":
            clean_logits, clean = self.model.run(block.ids)
        else:
            clean = self.model.activations(block.ids)
        put = self.model.output_activations(clean).clone()
        put[keep.to(put.device)] = rows.to(put)
        logits = self.model.forward_with(block.ids, put, gradient=True)
        counts = predictions(block, keep)
        if kind == "ce":
            return _cross_entropy(logits, block, counts)
        return F.kl_div(
            _log_probabilities(logits, counts),
            _log_probabilities(clean_logits, counts),
            log_target=True,
            reduction="sum",
        )


class _Loss(torch.autograd.Function):
    """The loss, whose gradient is found with it, so that a block's graph can be let go before the next block."""

    @staticmethod
    def forward(ctx: Any, reconstructions: Tensor, contexts: Contexts, kind: str) -> Tensor:
        value, gradient = contexts.loss_and_gradient(kind, reconstructions)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None


def predictions(tokens: TokenRows, keep: Tensor) -> Tensor:
    """Which predictions count, [R, T - 1] bool: those made at kept positions [R, T] of a token that is no padding."""
    return keep[:, :-1] & (tokens.document[:, 1:] >= 0)


def _log_probabilities(logits: Tensor, counts: Tensor) -> Tensor:
    chosen = logits[:, :-1][counts.to(logits.device)]
    return F.log_softmax(chosen.to(torch.promote_types(chosen.dtype, torch.float32)), dim=1)


def _cross_entropy(logits: Tensor, tokens: TokenRows, counts: Tensor) -> Tensor:
    target = tokens.ids[:, 1:][counts].to(logits.device)
    return F.nll_loss(_log_probabilities(logits, counts), target, reduction="sum")


class ContextSource(Source):
    """Activations computed while training, in batches of whole contexts, with what the model makes of them.

    The text is read in windows of contexts, each shuffled by a generator of (seed, window). A batch takes contexts
    until they have enough rows and leaves the rest of the last one out; the next batch begins with the next context.
    The source's place is the window and how many of its contexts were taken.

    Args:
        subject: model, site and text.
        brings: what batches bring, joined by commas: `kl` or `ce` (`Batch.downstream`), `gradient` (`Batch.gradient`).
        split: which part of the text.
        window_rows: token positions whose contexts are shuffled together.
        model: the subject's model, if it is already loaded.

    Raises:
        ValueError: for something else to bring, averaged rows, which have no place in the model, or the gradient at
            several sites.
    """

    def __init__(
        self,
        subject: Subject,
        brings: str = "kl",
        split: str = "train",
        window_rows: int = 1 << 16,
        model: LanguageModel | None = None,
    ):
        self.loss, self.with_gradient = _brought(brings)
        if subject.average:
            raise ValueError("averaged rows cannot be put back into the model: leave average out")
        self.subject, self.split, self.seed = subject, split, subject.seed
        self.model = model or subject.language_model()
        if self.with_gradient and self.model.n_output_sites > 1:
            raise ValueError("the gradient is of the rows of one site: name one site, or one target")
        self.d_in, self.d_out = self.model.d_in, self.model.d_out
        self._contexts_a_window = max(1, window_rows // subject.seq_len)
        self._stream = TextStream(subject, self.model, split)
        self._shuffled: tuple[int, TokenRows] | None = None
        self._window, self._offset = 0, 0
        self._tokens: int | None = None  # checksum of the window that the place is in, from the first batch on

    def identity(self) -> dict[str, Any]:
        """What a place depends on: it means the same rows only to a source with the same."""
        contexts = {"split": self.split, "contexts_a_window": self._contexts_a_window}
        return identity_of(self.subject) | contexts

    def state(self) -> dict[str, Any]:
        return {"window": self._window, "offset": self._offset, "tokens": self._tokens, **self.identity()}

    def restore(self, state: dict[str, Any]) -> None:
        for key, own in self.identity().items():
            if state.get(key) != own:
                raise ValueError(f"the saved position is for {key} {state.get(key)}, this source has {own}")
        self._window, self._offset = int(state["window"]), int(state["offset"])
        self._tokens = state["tokens"]

    def distinct_rows(self, most: int) -> int | None:
        return self._stream.distinct_rows(most)

    def sample(self, rows: int) -> Tensor:
        return self._taken(0, 0, rows)[0]

    def batches(self, rows: int) -> Iterator[Batch]:
        if rows < 1:
            raise ValueError(f"a batch needs at least 1 row, got {rows}")
        number, offset = self._window, self._offset
        if self._tokens not in (None, self._checksum(number)):
            raise ValueError(
                f"the data changed since this position was saved: window {number} has other tokens; resume with the "
                "original data"
            )
        while True:
            taken, contexts, number, offset = self._taken(number, offset, rows)
            self._window, self._offset = number, offset
            self._tokens = self._checksum(number)
            yield self._batch(taken, contexts)

    def _batch(self, rows: Tensor, contexts: Contexts) -> Batch:
        def downstream(reconstructions: Tensor) -> Tensor:
            return contexts.loss(str(self.loss), reconstructions)

        return Batch(
            rows[:, : self.d_in],
            None if self.d_out is None else rows[:, self.d_in :],
            contexts.gradient() if self.with_gradient else None,
            downstream if self.loss else None,
            self.state(),
        )

    def _taken(self, number: int, offset: int, rows: int) -> tuple[Tensor, Contexts, int, int]:
        """Exactly `rows` rows from a place on, the contexts they are of, and the place after them."""
        parts: list[Tensor] = []
        blocks: list[TokenRows] = []
        keep: list[Tensor] = []
        have = 0
        while have < rows:
            # As many contexts as have the rows by their tokens; more of them if there are outliers.
            missing = rows - have
            while missing > 0:
                if offset == len(self._contexts(number)):
                    number, offset = number + 1, 0
                context = picked(self._contexts(number), slice(offset, offset + 1))
                blocks.append(context)
                offset, missing = offset + 1, missing - int(context.keep.sum())
            for start in range(len(keep), len(blocks), blocks_of(self.subject)):
                block = join(blocks[start : start + blocks_of(self.subject)])
                kept = keep_rows(self.model.activations(block.ids), block, self._stream.limit(), self.d_in)
                parts.append(kept.rows)
                keep += list(kept.keep)
                have += len(kept.rows)
        found = torch.cat(parts)[:rows]
        check_finite(found, self.subject)
        which = torch.stack(keep)
        which &= (which.flatten().cumsum(0) <= rows).view_as(which)
        tokens = join(blocks)
        return found, Contexts(self.model, tokens, which, blocks_of(self.subject)), number, offset

    def _checksum(self, number: int) -> int:
        """Of a window's tokens in their order."""
        return zlib.crc32(self._contexts(number).ids.numpy().tobytes())

    def _contexts(self, number: int) -> TokenRows:
        """The contexts of a window, shuffled."""
        if self._shuffled is None or self._shuffled[0] != number:
            window = self._stream.rows(number * self._contexts_a_window, self._contexts_a_window)
            order = torch.randperm(len(window), generator=generator_for(self.seed, number, 1))
            self._shuffled = number, picked(window, order)
        return self._shuffled[1]


def _brought(words: str) -> tuple[str | None, bool]:
    """The loss, if one is brought, and whether the gradient is."""
    chosen = [word.strip() for word in words.split(",")]
    for word in chosen:
        if word not in BROUGHT:
            raise ValueError(f"unknown downstream '{word}'{near_miss(word, BROUGHT)}")
    losses = [word for word in chosen if word != "gradient"]
    if len(set(losses)) > 1:
        raise ValueError("downstream takes kl or ce, not both")
    return (losses[0] if losses else None), "gradient" in chosen
