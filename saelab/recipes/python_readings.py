"""Which simple reading of Python code fits a latent: "inside a comment", "the name after `def`", "the token `self`".

Every reading is a yes or no for each token of the text, worked out from Python's own tokenizer, and a latent is put
beside the reading that its strong activations agree with best:

    F1 = 2 TP / (strong tokens + tokens the reading holds for)        strong: above `STRONG` of the latent's largest

This is a first look for people, not a metric: of many latents and readings the best pairs are picked.
"""

# Shape letters: N tokens, K kept per token, L latents.

import io
import keyword
import tokenize
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from saelab.core.codes import Codes

STRONG = 0.3
"""Share of a latent's largest activation above which it counts as strongly active."""
FREQUENT_TOKENS = 150
MIN_TOKENS = 30
"""Readings that hold for fewer tokens are left out."""
Mark = Callable[[str, tuple[int, int], tuple[int, int]], None]
SPELLED_OUT = 2
"""At most this many of the chosen latents just stand for one token."""


@dataclass(frozen=True)
class TokenizedText:
    """Tokens of whole documents in reading order."""

    pieces: list[str]
    """The text of each token; "" for all parts of a character but the first."""
    document: Tensor
    """[N]."""

    def documents(self) -> list[tuple[int, int]]:
        """Each document's first token and the one behind its last."""
        edges = (self.document.diff() != 0).nonzero().flatten() + 1
        starts = [0, *edges.tolist()]
        return list(zip(starts, [*starts[1:], len(self.pieces)], strict=True))


@dataclass(frozen=True)
class Reading:
    """A latent and what it seems to stand for."""

    latent: int
    label: str
    f1: float


def readings(text: TokenizedText) -> dict[str, np.ndarray]:
    """Yes or no for every token, by the reading's label."""
    found: dict[str, np.ndarray] = {}
    for start, end in text.documents():
        pieces = text.pieces[start:end]
        for label, where in _syntax("".join(pieces)).items():
            spans = found.setdefault(label, np.zeros(len(text.pieces), dtype=bool))
            spans[start:end] = _tokens_in(pieces, where)
    stripped = [piece.strip() for piece in text.pieces]
    frequent = Counter(piece for piece in stripped if piece.isidentifier() and len(piece) > 1)
    words = np.array(stripped)
    for word, _ in frequent.most_common(FREQUENT_TOKENS):
        found[f"the token `{word}`"] = words == word
    return {label: mask for label, mask in found.items() if mask.sum() >= MIN_TOKENS}


def _tokens_in(pieces: list[str], marked: np.ndarray) -> np.ndarray:
    """Tokens whose first visible character is marked; [tokens] from marks per character."""
    yes, place = np.zeros(len(pieces), dtype=bool), 0
    for number, piece in enumerate(pieces):
        first = place + len(piece) - len(piece.lstrip())
        yes[number] = first < place + len(piece) and marked[first]
        place += len(piece)
    return yes


def _syntax(source: str) -> dict[str, np.ndarray]:
    """Marks per character for every syntactic reading, as far as the source can be tokenized."""
    lines = np.cumsum([0, *(len(line) + 1 for line in source.split("\n"))])
    marks: dict[str, np.ndarray] = {}

    def mark(label: str, begin: tuple[int, int], end: tuple[int, int]) -> None:
        spans = marks.setdefault(label, np.zeros(len(source), dtype=bool))
        spans[lines[begin[0] - 1] + begin[1] : lines[end[0] - 1] + end[1]] = True

    line: list[tokenize.TokenInfo] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENDMARKER):
                continue
            if token.type == tokenize.COMMENT:
                mark("inside a comment", token.start, token.end)
            elif token.type == tokenize.NEWLINE:
                _mark_line(line, mark)
                line = []
            else:
                line.append(token)
    except (tokenize.TokenError, SyntaxError):
        pass  # the text was cut there; what came before stands
    return marks


def _mark_line(line: list[tokenize.TokenInfo], mark: Mark) -> None:
    """Mark the readings of one logical line."""
    if not line:
        return
    first = line[0]
    if len(line) == 1 and first.type == tokenize.STRING:
        mark("inside a docstring", first.start, first.end)
        return
    whole = (first.end, line[-1].end)
    if first.string in ("import", "from"):
        mark("in an import statement", *whole)
    elif first.string == "@":
        mark("in a decorator", *whole)
    elif first.string in ("if", "elif", "while"):
        mark("in the condition of an if or while", *whole)
    elif first.string in ("for", "with", "return", "raise", "except", "assert", "del", "global"):
        mark(f"in a line that begins with `{first.string}`", *whole)
    for before, token in pairwise(line):
        _mark_token(before, token, first, mark)


def _mark_token(before: tokenize.TokenInfo, token: tokenize.TokenInfo, first: tokenize.TokenInfo, mark: Mark) -> None:
    if token.type == tokenize.NUMBER:
        mark("a number", token.start, token.end)
    elif token.type == tokenize.STRING:
        mark("inside a string", token.start, token.end)
    elif token.type == tokenize.NAME and not keyword.iskeyword(token.string):
        if before.string in ("def", "class", "as", "not", "in", "is", "import", "raise", "except"):
            mark(f"the name after `{before.string}`", token.start, token.end)
        elif before.string == ".":
            mark("an attribute, after a dot", token.start, token.end)
        if first.string == "def" and before.string in ("(", ","):
            mark("a parameter of a function", token.start, token.end)
    if before.string in ("==", "=", "->", "**", "[", "{", "%"):
        mark(f"right after `{before.string}`", token.start, token.end)


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
