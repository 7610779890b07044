"""Helpers for tests of metrics: SAEs whose reconstruction is known, rows as an evaluation, one metric on its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.metrics import Evaluation, Metric, Score
from saelab.metrics.base import View
from saelab.metrics.chunks import GROUPS, Chunk
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE
from saelab.tasks.task import WHOLE, Task, Texts


def random_sae(d_in: int = 16, n_latents: int = 24, k: int = 4, seed: int = 0) -> SAE:
    """A TopK SAE fitted to a few random rows."""
    sae = SAE(d_in, n_latents, TopK(k=k), seed=seed)
    sae.initialise(torch.randn(256, d_in, generator=torch.Generator().manual_seed(seed)))
    return sae


def mirror(d_in: int) -> SAE:
    """An SAE that gives back every row exactly: a latent for the positive and one for the negative of each entry."""
    sae = SAE(d_in, 2 * d_in, ReLU(l1=0.0))
    both = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    return with_weights(sae, encoder=both, decoder=both, bias=torch.zeros(d_in))


def constant(row: Tensor) -> SAE:
    """An SAE that gives `row` for every row."""
    sae = SAE(len(row), 4, TopK(k=2))
    return with_weights(sae, torch.zeros(4, len(row)), torch.eye(4, len(row)), row)


def with_weights(sae: SAE, encoder: Tensor, decoder: Tensor, bias: Tensor) -> SAE:
    """The SAE with these weights and no latent bias; where the encoder is zero, nothing fires."""
    with torch.no_grad():
        sae.dictionary.W_enc.copy_(encoder)
        sae.dictionary.W_dec.copy_(decoder)
        sae.dictionary.b_enc.fill_(0.0 if encoder.any() else -1.0)
        sae.dictionary.b_dec.copy_(bias)
    return sae


@dataclass
class Rows(Evaluation):
    """Rows [n, D] with the document of each, as an evaluation in chunks."""

    x: Tensor
    document: Tensor
    chunk: int = 50

    def __post_init__(self) -> None:
        self.d_in, self.tokens = self.x.shape[1], len(self.x)

    def chunks(self, need_logits: bool) -> Iterator[Chunk]:
        for x, document in zip(self.x.split(self.chunk), self.document.split(self.chunk), strict=True):
            yield Chunk(x, document % GROUPS, None)


def fed(metric: Metric, x: Tensor, x_hat: Tensor, document: Tensor | None = None, chunk: int = 50) -> Metric:
    """A metric that has seen these rows and reconstructions, no latent active."""
    document = torch.arange(len(x)) if document is None else document
    for rows, rows_hat, group in zip(x.split(chunk), x_hat.split(chunk), document.split(chunk), strict=True):
        codes = Codes(torch.zeros(len(rows), 1), torch.zeros(len(rows), 1, dtype=torch.int64), 4)
        metric.update(View(sae_of_width(x.shape[1]), rows, rows_hat, codes, group % GROUPS, None))
    return metric


def fed_codes(metric: Metric, parts: Sequence[Codes], document: Tensor | None = None) -> Metric:
    """A metric that has seen these codes, one chunk each, of rows that are all zero."""
    seen = 0
    for codes in parts:
        group = torch.arange(seen, seen + len(codes)) if document is None else document[seen : seen + len(codes)]
        zeros = torch.zeros(len(codes), 2)
        metric.update(View(sae_of_width(2), zeros, zeros, codes, group % GROUPS, None))
        seen += len(codes)
    return metric


def sae_of_width(d_in: int) -> SAE:
    return SAE(d_in, 4, TopK(k=1))


def values(scores: dict[str, Score]) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


def planted_task(name: str = "planted: even", n: int = 64) -> Task:
    """A task about whole texts, of two words each: whether the second is "fox"."""
    words = tuple(f"the {'fox' if number % 2 == 0 else 'dog'}" for number in range(n))
    numbers = torch.arange(n)
    return Task(
        name, Texts(words, "here"), numbers, torch.full((n,), WHOLE), numbers % 2 == 0, numbers % 4 > 1, numbers
    )
