"""The rows that SAEs are compared on: held in memory, as they are gone through more than once."""

# Shape letters: n rows of a block, D input width, G groups of documents.

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saelab.metrics.chunks import Chunk
from saelab.metrics.evaluation import Evaluation, StoreEvaluation

GROUPS = 128
"""Groups of documents that are resampled: what is kept of every latent, it is kept so many times."""


@dataclass(frozen=True)
class Rows:
    """Rows and the group of the document of each."""

    x: Tensor
    """[N, D] float32, in the data's units."""
    group: Tensor
    """[N] int64; numbers from GROUPS on are counted from 0 again."""

    columns: dict[str, Tensor] = field(default_factory=dict)
    """token, document and position of each row [N], where they are known; neighbours in a document stand together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", self.group % GROUPS)

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Rows":
        """All rows of an evaluation; N * D * 4 bytes of memory. ValueError where it has targets, or no rows."""
        if evaluation.d_out:
            raise ValueError("transcoders are not compared row by row: the data has targets")
        chunks = list(evaluation.chunks(need_logits=False))
        if not chunks:
            raise ValueError("the data to compare on has no rows")
        x, group = (torch.cat(part) for part in zip(*((chunk.x, chunk.group) for chunk in chunks), strict=True))
        return cls(x, group, _columns(evaluation, chunks))

    @classmethod
    def independent(cls, x: Tensor) -> "Rows":
        """Rows that have no documents, such as those of a world: dealt to the groups in turn."""
        return cls(x, torch.arange(len(x)))

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows [n, D] and their groups [n], n at most `size`."""
        return zip(self.x.split(size), self.group.split(size), strict=True)

    @property
    def variance(self) -> float:
        """Mean over rows and entries of the squared distance to the mean row."""
        mean = self.x.double().mean(0)
        total = sum((block.double() - mean).square().sum().item() for block in self.x.split(8192))
        return total / self.x.numel()

    def __len__(self) -> int:
        return len(self.x)


def _columns(evaluation: Evaluation, chunks: list[Chunk]) -> dict[str, Tensor]:
    if isinstance(evaluation, StoreEvaluation):
        store, count = evaluation.store, sum(len(chunk.x) for chunk in chunks)
        shards = [store.columns(number) for number in range(len(store.manifest.shards))]
        return {key: torch.cat([shard[key] for shard in shards])[:count].long() for key in shards[0]}
    places = [chunk.places for chunk in chunks if chunk.places]
    if len(places) < len(chunks):
        return {}
    found = [(place.tokens.ids, place.tokens.document, place.tokens.position, place.keep) for place in places]
    return {
        name: torch.cat([part[number][part[3]] for part in found]).long()
        for number, name in enumerate(("token", "document", "position"))
    }
