"""Readings of Python code, on text whose tokens were labelled while it was written."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from saelab.core.codes import Codes
from saelab.models.text import Document
from saelab.models.tokens import TokenRows
from saelab.recipes import python_readings as module
from saelab.recipes.python_readings import (
    Reading,
    TokenizedText,
    choose,
    contexts,
    readings,
    tokens_labelled,
)
from saelab.tasks.python_labels import Labels, labels_of
from saelab.tasks.python_tasks import PythonWindow


@dataclass
class Labelled:
    """Text under construction: pieces, what each is, and its document."""

    pieces: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    document: list[int] = field(default_factory=list)

    def add(self, number: int, *parts: str | tuple[str, str]) -> None:
        for part in parts:
            piece, kind = part if isinstance(part, tuple) else (part, "")
            self.pieces.append(piece)
            self.kinds.append(kind)
            self.document.append(number)

    def text(self) -> TokenizedText:
        """The text, read as the windows that it is made of."""
        numbers = torch.tensor(self.document)
        windows, spans = [], []
        for number in numbers.unique_consecutive().tolist():
            pieces = [piece for piece, own in zip(self.pieces, self.document, strict=True) if own == number]
            text, end = "".join(pieces), np.cumsum([len(piece) for piece in pieces])
            blank = [len(piece) - len(piece.lstrip() or piece) for piece in pieces]
            spans.append(np.stack([end - [len(piece) for piece in pieces] + blank, end], 1))
            windows.append(PythonWindow(Document("a.py", text), text, labels_or_none(text)))
        order = numbers.unique_consecutive(return_inverse=True)[1]
        keep = torch.ones(1, len(numbers), dtype=torch.bool)
        block = TokenRows(
            keep.long(), order[None], order[None], keep, [], torch.from_numpy(np.concatenate(spans))[None]
        )
        return TokenizedText.of(windows, [block])

    def where(self, *kinds: str) -> torch.Tensor:
        return torch.tensor([kind in kinds for kind in self.kinds])


def labels_or_none(text: str) -> Labels:
    try:
        return labels_of(text)
    except SyntaxError:
        return Labels(np.empty(0, np.int64), {})


@pytest.fixture(scope="module")
def code() -> Labelled:
    """Forty documents of two functions each; tokens end in the middle of names, as a tokenizer's do."""
    written = Labelled()
    for number in range(40):
        for half in ("a", "b"):
            written.add(
                number,
                *("def", (f" walk{number}", "name"), (half, "name tail"), "("),
                *(("self", "self"), ",", (" width", "parameter"), "):\n"),
                *('    """', ("Walk", "docstring"), " on", '."""', "\n"),
                *("    return", (" self", "self"), ".", ("width", "attribute"), " *", (f" {number + 10}", "number")),
                *("  ", ("#", "comment"), (" twice", "comment"), (f" over{number}", "comment"), "\n"),
            )
    return written


def planted(places: dict[int, torch.Tensor], latents: int = 12, noise: float = 0.0) -> Codes:
    """Codes of latents that fire with 1 to 2 exactly at their places, and by `noise` everywhere else."""
    tokens = len(next(iter(places.values())))
    dense = torch.full((tokens, latents), noise)
    draw = torch.Generator().manual_seed(0)
    for latent, where in places.items():
        dense[where, latent] = 1 + torch.rand(int(where.sum()), generator=draw)
    return Codes.full(dense)


def test_planted_latents_are_found_with_the_right_labels_and_f1_of_one(code):
    codes = planted({3: code.where("comment"), 7: code.where("self"), 5: code.where("name")})
    found = {reading.latent: reading for reading in choose(codes, code.text())}
    assert found[3] == Reading(3, "in a comment", 1.0)
    assert found[7] == Reading(7, "the token `self`", 1.0)
    assert found[5] == Reading(5, "name: of a function defined", pytest.approx(2 / 3))  # as its tails are names too
    both = planted({5: code.where("name", "name tail")})
    assert choose(both, code.text())[0] == Reading(5, "name: of a function defined", 1.0)


@pytest.mark.parametrize(
    ("kind", "label"),
    [("attribute", "name: attribute"), ("number", "mark: number"), ("docstring", "in a docstring")],
)
def test_other_readings(code, kind, label):
    kinds = [kind]
    where = code.where(*kinds)
    if kind == "docstring":  # the quotes and the words in between
        where = (
            torch.tensor(['"""' in p for p in code.pieces]) | where | torch.tensor([p == " on" for p in code.pieces])
        )
    assert torch.equal(torch.from_numpy(readings(code.text())[label]), where)
    assert choose(planted({2: where}), code.text())[0] == Reading(2, label, 1.0)


def test_f1_is_worked_out_from_strong_activations(code):
    """Half of the comment tokens, and as many others: precision and recall are one half."""
    comment = code.where("comment").nonzero().flatten()
    where = torch.zeros(len(code.pieces), dtype=torch.bool)
    where[comment[::2]] = True
    others = code.where("number", "parameter").nonzero().flatten()[: len(comment[::2])]
    where[others] = True
    reading = next(r for r in choose(planted({0: where}), code.text()) if r.label == "in a comment")
    assert reading.f1 == pytest.approx(2 * len(comment[::2]) / (where.sum().item() + len(comment)))


def test_weak_activations_do_not_count(code):
    weak = 0.9 * module.STRONG
    assert choose(planted({3: code.where("comment")}, noise=weak), code.text())[0] == Reading(3, "in a comment", 1.0)
    strong = choose(planted({3: code.where("comment")}, noise=3 * module.STRONG), code.text())
    assert all(reading.f1 < 0.9 for reading in strong if reading.latent == 3)


def test_signed_codes_count_by_their_size(code):
    codes = planted({3: code.where("comment")})
    assert choose(codes.with_values(-codes.values), code.text())[0] == Reading(3, "in a comment", 1.0)


def test_sparse_codes_give_the_same_choice_as_full_ones(code):
    codes = planted({3: code.where("comment"), 7: code.where("self")})
    assert choose(codes.compact(), code.text())[:2] == choose(codes, code.text())[:2]


def test_no_latent_and_no_label_is_chosen_twice(code):
    comment = code.where("comment")
    codes = planted(dict.fromkeys(range(6), comment))
    found = choose(codes, code.text(), count=10)
    assert len({reading.latent for reading in found}) == len(found)
    assert len({reading.label for reading in found}) == len(found)
    assert len(choose(codes, code.text(), count=2)) == 2


def test_few_of_the_chosen_just_stand_for_one_token():
    written = Labelled()
    words = [f"word{n}x" for n in range(9)]
    for _ in range(40):
        written.add(0, *[part for word in words for part in ((word, word), "\n")])
    codes = planted({n: written.where(word) for n, word in enumerate(words)})
    found = choose(codes, written.text())
    assert sum(reading.label.startswith("the token") for reading in found) == module.SPELLED_OUT


def test_rare_readings_are_left_out(code):
    assert all(mask.sum() >= module.MIN_TOKENS for mask in readings(code.text()).values())
    short = Labelled()
    short.add(0, "x", " =", " 1", "  ", "#", " once", "\n")
    assert readings(short.text()) == {}


def test_a_token_is_what_its_first_visible_character_is():
    text = "import os  # two\nx = 1\n"
    start = np.array([0, 7, 11, 13, 16, 17, 21, 22])  # import, os, # and two, the end of the line, x, 1, nothing more
    found = tokens_labelled(labels_of(text), text, start)
    assert found["name: imported"].tolist() == [False] * 8  # the alias in an import is no use of the name
    assert found["text: in a comment"].tolist() == [False, False, True, True, False, False, False, False]
    assert found["expression: in an import"].tolist() == [True, True, False, False, False, False, False, False]
    assert found["mark: number"].tolist() == [False, False, False, False, False, False, True, False]


def test_what_holds_for_most_code_is_no_reading(code):
    assert not {"in code", "text: in code", "block: at module level"} & readings(code.text()).keys()
    assert not any(label.startswith("letter") for label in readings(code.text()))


# ---- contexts ----


def test_contexts_show_the_tokens_that_excite_a_latent_most(code):
    dense = torch.zeros(len(code.pieces), 4)
    comments = [place for place, piece in enumerate(code.pieces) if piece.startswith(" over")]
    for rank, place in enumerate(comments):
        dense[place, 2] = 100 - rank
    found = contexts(Codes.full(dense), code.text(), latent=2)
    assert [token for _, token, _ in found] == ["over0", "over1", "over2"]
    assert found[0] == ("return self.width * 10  # twice ", "over0", "")


def test_contexts_differ_from_one_another(code):
    """All the lines of a document are the same but for the name: each line is shown once."""
    dense = torch.zeros(len(code.pieces), 4)
    dense[code.where("self"), 1] = 1.0
    found = contexts(Codes.full(dense), code.text(), latent=1, count=6)
    assert len(found) == 6
    assert len({"".join(context).strip() for context in found}) == 6
    assert {token.strip() for _, token, _ in found} == {"self"}


def test_contexts_end_at_the_line_and_at_the_document():
    written = Labelled()
    written.add(0, "one", " two", "\n", "three")
    written.add(1, "four", " five", " six", "\n", "seven")
    dense = torch.zeros(len(written.pieces), 1)
    dense[5] = 1.0
    assert contexts(Codes.full(dense), written.text(), 0) == [("four ", "five", " six")]
    dense[3], dense[0] = 2.0, 0.5
    assert contexts(Codes.full(dense), written.text(), 0) == [
        ("", "three", ""), ("four ", "five", " six"), ("", "one", " two")
    ]  # fmt: skip


def test_a_latent_that_is_silent_or_fires_on_blanks_only_has_no_context(code):
    codes = Codes.full(torch.zeros(len(code.pieces), 2))
    assert contexts(codes, code.text(), 1) == []
    blanks = torch.tensor([not piece.strip() for piece in code.pieces])
    assert contexts(planted({1: blanks}), code.text(), 1) == []


def test_long_lines_are_cut_around_the_token():
    written = Labelled()
    written.add(0, *["word "] * 25, "HERE", *[" more"] * 25)
    dense = torch.zeros(51, 1)
    dense[25] = 1.0
    ((before, token, after),) = contexts(Codes.full(dense), written.text(), 0, width=40)
    assert token == "HERE"
    assert before == ("word " * 25)[-40:]
    assert len(after) == 20
