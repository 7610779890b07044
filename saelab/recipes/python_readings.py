"""Which simple reading of Python code fits a latent: "in a comment", "name: of a function defined", "the token `self`".

Every reading is a yes or no for each token of windows of Python files, from the labels of `saelab.tasks`, and a latent
is put beside the reading that its strong activations agree with best:

    F1 = 2 TP / (strong tokens + tokens the reading holds for)        strong: above `STRONG` of the latent's largest

This is a first look for people, not a metric: of many latents and readings the best pairs are picked.
"""

# Shape letters: N tokens, K kept per token, L latents.

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.models.tokens import TokenRows
from saelab.tasks.python_labels import TASKS, YES, Labels
from saelab.tasks.python_tasks import PythonWindow

STRONG = 0.3
"""Share of a latent's largest activation above which it counts as strongly active."""
FREQUENT_TOKENS = 150
MIN_TOKENS = 30
"""Readings that hold for fewer tokens are left out."""
TOO_WIDE = ("text: in code", "block: at module level")
"""Tasks that hold for most of the code there is."""
SPELLED_OUT = 2
"""At most this many of the chosen latents just stand for one token."""


@dataclass(frozen=True)
class TokenizedText:
    """Tokens of whole documents in reading order."""

    pieces: list[str]
    """The text of each token; "" for all parts of a character but the first."""
    document: Tensor
    """[N]."""
    holds: dict[str, np.ndarray] = field(default_factory=dict)
    """Tokens that a task says yes to, [N] bool, by task."""

    @classmethod
    def of(cls, windows: Sequence[PythonWindow], blocks: Sequence[TokenRows]) -> "TokenizedText":
        """The tokens kept of packed blocks, with spans, whose documents are these windows."""
        document = torch.cat([block.document[block.keep] for block in blocks])
        spans = torch.cat([block.spans[block.keep] for block in blocks if block.spans is not None])
        counts = torch.bincount(document, minlength=len(windows)).tolist()
        pieces: list[str] = []
        holds = {task: np.zeros(len(document), bool) for task in TASKS}
        for window, own in zip(windows, spans.split(counts), strict=True):
            place = slice(len(pieces), len(pieces) + len(own))
            for task, yes in tokens_labelled(window.labels, window.text, own[:, 0].numpy()).items():
                holds[task][place] = yes
            done = 0
            for end in own[:, 1].tolist():
                pieces.append(window.text[done:end])
                done = end
        return cls(pieces, document, holds)


@dataclass(frozen=True)
class Reading:
    """A latent and what it seems to stand for."""

    latent: int
    label: str
    f1: float


def tokens_labelled(labels: Labels, text: str, start: np.ndarray) -> dict[str, np.ndarray]:
    """Which tokens of a text a task says yes to, [T] bool, by task.

    Args:
        labels: of the units of the text.
        text: the text.
        start: the first visible character of each token, [T].
    """
    visible = np.array([place < len(text) and not text[place].isspace() for place in start.tolist()], bool)
    unit = np.minimum(np.searchsorted(labels.at, start), max(0, len(labels.at) - 1))
    return {task: visible & (label[unit] == YES) for task, label in labels.of.items()} if len(labels.at) else {}


def readings(text: TokenizedText) -> dict[str, np.ndarray]:
    """Yes or no for every token, by the reading's label."""
    found = dict(_named(text.holds))
    stripped = [piece.strip() for piece in text.pieces]
    frequent = Counter(piece for piece in stripped if piece.isidentifier() and len(piece) > 1)
    words = np.array(stripped)
    for word, _ in frequent.most_common(FREQUENT_TOKENS):
        found[f"the token `{word}`"] = words == word
    return {label: mask for label, mask in found.items() if mask.sum() >= MIN_TOKENS}


def _named(holds: dict[str, np.ndarray]) -> Iterable[tuple[str, np.ndarray]]:
    """Tasks that make a reading, under the words that people read: "in a comment" for "text: in a comment"."""
    for task, mask in holds.items():
        group, _, rest = task.partition(": ")
        if group != "letter" and task not in TOO_WIDE:
            yield rest if rest.startswith("in ") else task, mask


def choose(codes: Codes, text: TokenizedText, count: int = 10) -> list[Reading]:
    """The latents whose strong activations agree best with a reading, at most one per reading."""
    largest = torch.zeros(codes.n_latents).scatter_reduce(
        0, codes.indices.flatten(), codes.values.flatten().abs(), "amax"
    )
    strong = codes.active & (codes.values.abs() > STRONG * largest[codes.indices])
    fired = torch.bincount(codes.indices[strong], minlength=codes.n_latents)
    pairs: list[Reading] = []
    for label, mask in readings(text).items():
        holds = torch.from_numpy(mask)
        both = torch.bincount(codes.indices[holds][strong[holds]], minlength=codes.n_latents)
        f1 = 2 * both / (fired + holds.sum()).clamp_min(1)
        for value, latent in zip(*(part.tolist() for part in f1.topk(min(3, len(f1)))), strict=True):
            pairs.append(Reading(latent, label, value))
    return _varied(sorted(pairs, key=lambda pair: -pair.f1), count)


def _varied(pairs: list[Reading], count: int) -> list[Reading]:
    chosen: list[Reading] = []
    for pair in pairs:
        used = any(pair.latent == other.latent or pair.label == other.label for other in chosen)
        spelled = sum(other.label.startswith("the token") for other in chosen)
        if not used and not (pair.label.startswith("the token") and spelled >= SPELLED_OUT):
            chosen.append(pair)
    # What a latent means in its context comes first, then those that stand for one word.
    return sorted(chosen[:count], key=lambda pair: pair.label.startswith("the token"))


def contexts(
    codes: Codes, text: TokenizedText, latent: int, count: int = 3, width: int = 60
) -> list[tuple[str, str, str]]:
    """The code around a latent's largest activations, each from another line and spelled differently where possible.

    Returns:
        Up to `count` triples: what stands before the token on its line, with the blank in front of the token, the
        token, what follows.
    """
    values = torch.where(codes.indices == latent, codes.values, 0).amax(1)
    found: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    for place in values.argsort(descending=True)[:200].tolist():
        if values[place] <= 0 or len(found) == count:
            break
        context = _context(text, place, width)
        if context[1].strip() and (line := "".join(context).strip()) not in seen:
            seen.add(line)
            found.append(context)
    return found


def _context(text: TokenizedText, place: int, width: int) -> tuple[str, str, str]:
    document = text.document[place]
    same = [text.document[n] == document if 0 <= n < len(text.pieces) else False for n in range(place - 30, place + 31)]
    before = "".join(text.pieces[n] for n in range(place - 30, place) if same[n - place + 30])
    after = "".join(text.pieces[n] for n in range(place + 1, place + 31) if same[n - place + 30])
    piece = text.pieces[place]
    own = piece.lstrip() or piece
    before = (before + piece[: len(piece) - len(own)]).rsplit("\n", 1)[-1].lstrip()
    after = after.split("\n", 1)[0].rstrip()
    return before[-width:], own.strip("\n"), after[: max(0, width - len(before[-width:]) // 2)]
