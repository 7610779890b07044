"""A small SAE, a corpus with text and a stand-in for a language model, for tests of the explorer."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from saelab.explorer.corpus import Corpus, Piece
from saelab.models.token_text import TokenText
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE

WORDS = ["def", " f", "(", ")\n", "<b>", "é", "\n\n    return", " x", "==", "import", " os", "&amp;"]
D, L, K, ROWS, PIECE = 8, 24, 3, 330, 100


def sae() -> SAE:
    made = SAE(d_in=D, n_latents=L, activation=TopK(k=K), seed=1)
    made.initialise(rows()[:200])
    return made


def rows(count: int = ROWS) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(5))


class Planted(Corpus):
    """Rows of normal numbers; documents of 11 tokens."""

    d_in, tokens = D, ROWS

    def __init__(self, stop_after: int | None = None):
        self.stop_after, self.given = stop_after, 0
        generator = torch.Generator().manual_seed(2)
        self.token = torch.randint(len(WORDS), (ROWS,), generator=generator).int()
        self.document = (torch.arange(ROWS) // 11).int()

    def identity(self) -> dict[str, Any]:
        return {"planted": ROWS}

    def pieces(self, start: int = 0) -> Iterator[Piece]:
        x, position = rows(), (torch.arange(ROWS) % 11).int()
        for first in range(start * PIECE, ROWS, PIECE):
            if self.given == self.stop_after:
                raise KeyboardInterrupt
            self.given += 1
            part = slice(first, first + PIECE)
            names = [(int(n), f"file{n}.py:{10 * n + 1}") for n in self.document[part].unique()]
            yield Piece(x[part], self.token[part], self.document[part], position[part], names)


class Model:
    """What `collect` asks of a language model."""

    def __init__(self) -> None:
        self.head = Head()
        self.tokenizer: Any = _Tokenizer()
        self.token_text = TokenText(self.tokenizer)
        self.model = SimpleNamespace()


class Head:
    """A head without a last norm."""

    width, vocabulary = D, len(WORDS)

    def __init__(self) -> None:
        self.weight = torch.randn(len(WORDS), D, generator=torch.Generator().manual_seed(9))

    def promoted_by(self, directions: Tensor) -> Tensor:
        logits = D**0.5 * directions / directions.norm(dim=1, keepdim=True) @ self.weight.T
        return logits - logits.mean(1, keepdim=True)


class _Tokenizer:
    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": []}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [WORDS[number] for number in ids]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(WORDS[number] for number in ids)

    def __len__(self) -> int:
        return len(WORDS)
