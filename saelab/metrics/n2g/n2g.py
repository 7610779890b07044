"""N2G: the token patterns that make one latent fire, and what they predict.

From a text whose last token makes the latent fire with activation a0 (Foote et al. 2023, arXiv 2305.19911, as Gao et
al. 2024, arXiv 2406.04093, use it in their code):

    suffix     the shortest end of the text on which the latent still has a >= a0 / 2; the whole text if none does
    padding    the pattern may stand anywhere if the suffix behind one more (padding) token has a >= a0 / 2,
               else only at the start of a text
    saliency   1 - a' / a for each token of the suffix, a' with that token replaced by padding;
               a token below 1/2 may be any token

Patterns go into a tree of tokens, last token first. A position's prediction walks back from it: the exact token if the
tree has it, else any token, else nothing; the first stored activation met on the way is the prediction. The walk never
turns back, so a pattern `a * c` does not match `a b b c`, and an exact token hides what stands under "any token".

The tree of one latent is here, one text at a time; `patterns.py` matches those of many latents at once.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from saelab.models.token_text import TokenText

ANY = -1
"""Stands for any token in a pattern."""
KEPT, SALIENT = 0.5, 0.5
"""Share of the activation that a suffix must keep, and of which a token must be the cause."""

Asked = list[int]
"""Tokens at whose last one the latent's activation is wanted."""


@dataclass(frozen=True)
class Example:
    """A text up to the token at which the latent fires, and how strongly it does."""

    tokens: list[int]
    activation: float


@dataclass(frozen=True)
class Pattern:
    """Tokens in reading order, ANY for those that do not matter, and the activation behind them."""

    tokens: tuple[int, ...]
    at_start: bool
    """Whether it holds only at the start of a text."""
    activation: float

    def texts(self, spelling: TokenText) -> list[str | None]:
        """What its tokens stand for, None where any may stand; tokens that are parts of one character are one."""
        found: list[str | None] = []
        for is_any, run in groupby(self.tokens, lambda token: token == ANY):
            part = list(run)
            found += [None] * len(part) if is_any else [u.text for u in spelling.of_ids(part, begins=False).units()]
        return found


@dataclass
class Node:
    """A place in the tree of patterns."""

    children: dict[int, "Node"] = field(default_factory=dict)
    value: float | None = None
    """Of patterns that end here."""
    start: float | None = None
    """Of patterns that end here at the start of a text."""


def search_pattern(example: Example, pad: int) -> Generator[list[Asked], list[float], Pattern]:
    """The pattern of an example: a generator that asks for activations of token lists and is sent them."""
    suffix, activation = example.tokens, example.activation
    for first in range(len(example.tokens) - 1, -1, -1):
        (got,) = yield [example.tokens[first:]]
        if got / example.activation >= KEPT:
            suffix, activation = example.tokens[first:], got
            break
    masked = [[*suffix[:place], pad, *suffix[place + 1 :]] for place in range(len(suffix))]
    padded, *without = yield [[pad, *suffix], *masked]
    salient = [1 - got / activation >= SALIENT for got in without]
    tokens = tuple(token if matters else ANY for token, matters in zip(suffix, salient, strict=True))
    return Pattern(tokens, padded / example.activation < KEPT, activation)


def find_patterns(
    examples: Sequence[Example],
    activations: Callable[[list[tuple[int, Asked]]], list[float]],
    pad: int,
    note: Callable[[int], None] = lambda done: None,
) -> list[Pattern]:
    """The patterns of many examples, worked out side by side so that the model always has much to read.

    Args:
        examples: of any latents.
        activations: gives the activation for each (number of the example, tokens); of the example's latent.
        pad: a token that says as little as possible.
        note: is called with how many examples were finished.
    """
    found: list[Pattern | None] = [None] * len(examples)
    at_work = {number: search_pattern(example, pad) for number, example in enumerate(examples)}
    asked = {number: next(one) for number, one in at_work.items()}
    while asked:
        answers = iter(activations([(number, tokens) for number, wanted in asked.items() for tokens in wanted]))
        following, done = {}, 0
        for number, wanted in asked.items():
            try:
                following[number] = at_work[number].send([next(answers) for _ in wanted])
            except StopIteration as end:
                found[number], done = end.value, done + 1
        note(done)
        asked = following
    return [pattern for pattern in found if pattern is not None]


def tree_of(patterns: Iterable[Pattern]) -> Node:
    """The tree of one latent's patterns; of two that are the same, the later activation counts."""
    root = Node()
    for pattern in patterns:
        node = root
        for token in reversed(pattern.tokens):
            node = node.children.setdefault(token, Node())
        if pattern.at_start:
            node.start = pattern.activation
        else:
            node.value = pattern.activation
    return root


def predict(tree: Node, tokens: Sequence[int]) -> list[float]:
    """The activation that the patterns predict at every token of a text; 0 for none."""
    return [_at(tree, tokens, place) for place in range(len(tokens))]


def _at(tree: Node, tokens: Sequence[int], place: int) -> float:
    node: Node | None = tree
    for earlier in range(place, -1, -1):
        assert node is not None
        node = node.children.get(tokens[earlier], node.children.get(ANY))
        if node is None:
            return 0.0
        if node.value is not None:
            return node.value
    assert node is not None
    return 0.0 if node.start is None else node.start
