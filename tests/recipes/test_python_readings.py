"""Readings of Python code, on text whose tokens were labelled while it was written."""

from dataclasses import dataclass, field

import pytest
import torch

from saelab.core.codes import Codes
from saelab.recipes import python_readings as module
from saelab.recipes.python_readings import Reading, TokenizedText, choose, contexts, readings


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
        return TokenizedText(self.pieces, torch.tensor(self.document))

    def where(self, *kinds: str) -> torch.Tensor:
        return torch.tensor([kind in kinds for kind in self.kinds])


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
    assert found[3] == Reading(3, "inside a comment", 1.0)
    assert found[7] == Reading(7, "the token `self`", 1.0)
    assert found[5] == Reading(5, "the name after `def`", pytest.approx(2 / 3))  # as its tails are names too
    both = planted({5: code.where("name", "name tail")})
    assert choose(both, code.text())[0] == Reading(5, "the name after `def`", 1.0)


@pytest.mark.parametrize(
    ("kind", "label"),
    [("attribute", "an attribute, after a dot"), ("number", "a number"), ("docstring", "inside a docstring")],
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
    reading = next(r for r in choose(planted({0: where}), code.text()) if r.label == "inside a comment")
    assert reading.f1 == pytest.approx(2 * len(comment[::2]) / (where.sum().item() + len(comment)))


def test_weak_activations_do_not_count(code):
    weak = 0.9 * module.STRONG
    assert choose(planted({3: code.where("comment")}, noise=weak), code.text())[0] == Reading(
        3, "inside a comment", 1.0
    )
    strong = choose(planted({3: code.where("comment")}, noise=3 * module.STRONG), code.text())
    assert all(reading.f1 < 0.9 for reading in strong if reading.latent == 3)


def test_signed_codes_count_by_their_size(code):
    codes = planted({3: code.where("comment")})
    assert choose(codes.with_values(-codes.values), code.text())[0] == Reading(3, "inside a comment", 1.0)


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


def marks(source: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The marked characters of every reading, one piece a character."""
    monkeypatch.setattr(module, "MIN_TOKENS", 1)
    text = TokenizedText(list(source), torch.zeros(len(source), dtype=torch.int64))
    return {
        label: "".join(c for c, yes in zip(source, mask, strict=True) if yes) for label, mask in readings(text).items()
    }


def test_each_syntactic_reading_marks_what_it_says(monkeypatch):
    source = (
        "from os import path as p\n@cached(1)\ndef area(w, *, h=2):\n    if w == h:\n        raise Oops\n"
        "    return w ** 2\nclass Box(Base):\n    x.y = 'a b'\nfor i in range(3):\n    assert not i\n"
    )
    found = marks(source, monkeypatch)
    assert found["in an import statement"] == "osimportpathasp"
    assert found["in a decorator"] == "cached(1)"
    assert found["in the condition of an if or while"] == "w==h:"
    assert found["the name after `def`"] == "area"
    assert found["the name after `class`"] == "Box"
    assert found["the name after `as`"] == "p"
    assert found["the name after `raise`"] == "Oops"
    assert found["a parameter of a function"].startswith("wh")
    assert found["inside a string"] == "'ab'"
    assert found["an attribute, after a dot"] == "y"
    assert found["right after `==`"] == "h"
    assert found["in a line that begins with `for`"] == "iinrange(3):"


def test_text_that_is_cut_keeps_what_came_before(monkeypatch):
    assert marks("x = 1  # one\ny = (2,\n", monkeypatch)["inside a comment"] == "#one"
    assert marks("x = 1  # one\ny = '''cut", monkeypatch)["inside a comment"] == "#one"
    assert marks("x = 1  # one\n        y = 2\n  z\n", monkeypatch)["inside a comment"] == "#one"


@pytest.mark.parametrize("break_", ["\x0c\n", "s = '\u2028'\n", "s = '\x1c'\n", "s = '\x85'\n"])
def test_only_newlines_end_lines(monkeypatch, break_):
    """The standard library has form feeds between its parts."""
    assert marks(f"a = 1\n{break_}b = 2  # two\nc = 3\n", monkeypatch)["inside a comment"] == "#two"


def test_documents_do_not_run_into_one_another():
    written = Labelled()
    for number in range(40):
        written.add(number, "x", " =", " '''", "open", " for", " ever")  # never closed: its document ends there
        written.add(number + 1000, "y", " =", (" 2", "number"), "\n")
    assert torch.equal(torch.from_numpy(readings(written.text())["a number"]), written.where("number"))


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
