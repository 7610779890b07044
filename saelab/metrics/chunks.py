"""Chunks: what metrics are fed, with the text behind it and the documents that error bars are over."""

# Shape letters: B rows of a chunk, D width, R packed rows of tokens, T tokens of each, V vocabulary.

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from saelab.models.language_model import LanguageModel
from saelab.models.tokens import TokenRows

GROUPS = 1000
"""Documents are dealt into at most this many groups, so that memory does not grow with their number."""


@dataclass(frozen=True)
class TextChunk:
    """The text behind a chunk, for metrics that run the model."""

    model: LanguageModel
    tokens: TokenRows
    activations: Tensor
    """What is to be reconstructed at all positions, [R, T, D]."""
    keep: Tensor
    """[R, T] bool: the positions of the chunk's rows, in reading order."""
    group: Tensor
    """[R, T] int64: group of the document at each position."""
    logits: Tensor
    """[R, T, V] of the unchanged model."""
    mean: Tensor
    """[D], mean of the first rows to be reconstructed of the evaluation."""
    cache: dict[Any, Any] = field(default_factory=dict)
    """One for all metrics and SAEs: what does not depend on the SAE and would be worked out for each again."""


@dataclass(frozen=True)
class Places:
    """Where the rows of a chunk stand in the text."""

    tokens: TokenRows
    keep: Tensor
    """[R, T] bool: the positions of the chunk's rows, in reading order."""


@dataclass(frozen=True)
class Chunk:
    """Rows to measure on."""

    x: Tensor
    """[B, D], float32."""
    group: Tensor
    """[B] int64."""
    text: TextChunk | None
    target: Tensor | None = None
    """Rows to reconstruct [B, D_out], float32, where they are not those read."""
    places: Places | None = None
