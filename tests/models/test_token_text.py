"""Text of tokens for eight kinds of tokenizer: the source comes back, from ids alone as far as they keep it."""

import re
from pathlib import Path

import numpy as np
import pytest
from models.tokenizers_of_many import KINDS

from saelab.models.token_text import NO_TOKEN, TokenText, strongest, unit_at, units

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
TEXTS = [
    "once upon a time",
    "今日はいい天気です🙂 na\u00efve caf\u00e9 e\u0301 ﬁne ①",
    f"{FAMILY} tab\there  two blanks \n new\r\nline\n\n\n",
    "play <s> once</s>upon <unk>  ",
    "  a blank in front, and behind \t ",
    "\n",
    "",
    "a",
]
KEEPS = ("byte-level", "gemma", "llama")
"""Kinds whose ids tell the text."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[str, TokenText]:
    return request.param, TokenText(KINDS[request.param]())


@pytest.mark.parametrize("text", TEXTS)
def test_the_source_comes_back_exactly(kind, text):
    spelled = kind[1].of_text(text)
    assert spelled.text == text
    assert "".join(unit.text for unit in spelled.units()) == text
    assert len(spelled.pieces()) == len(spelled.ids)
    assert "".join(spelled.pieces()) == text or not spelled.ids
    assert spelled.ids == kind[1].tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_spans_never_fall_and_own_no_blank_in_front(kind, text):
    spelled = kind[1].of_text(text)
    assert (np.diff(spelled.start) >= 0).all()
    assert (np.diff(spelled.end) >= 0).all()
    assert (spelled.start <= spelled.end).all()
    for first, last in zip(spelled.start, spelled.end, strict=True):
        own = text[first:last]
        assert own == own.lstrip() or not own.strip()


@pytest.mark.parametrize("text", TEXTS)
def test_units_hold_every_token_once_in_order(kind, text):
    spelled = kind[1].of_text(text)
    held = [token for unit in spelled.units() for token in range(unit.first, unit.last)]
    assert held == list(range(len(spelled.ids))) or not text


@pytest.mark.parametrize("text", TEXTS)
def test_ids_alone_give_the_text_that_the_tokenizer_decodes(kind, text):
    name, spelling = kind
    source = spelling.of_text(text)
    spelled = spelling.of_ids(source.ids)
    assert spelled.text == spelling.tokenizer.decode(source.ids, clean_up_tokenization_spaces=False)
    assert "".join(unit.text for unit in spelled.units()) == spelled.text
    # Llama's tokenizer puts a blank behind a special token that is spelled out in the text.
    if name in KEEPS and not (name == "llama" and "<s>" in text):
        assert spelled.text == text
        assert [unit.text for unit in spelled.units()] == [unit.text for unit in source.units()]


def test_a_character_of_several_tokens_is_one_unit():
    for name in KEEPS:
        spelled = TokenText(KINDS[name]()).of_text("a 🙂é n")
        texts = [unit.text for unit in spelled.units()]
        assert "🙂" in "".join(texts)
        assert not any("\ufffd" in text for text in texts)
        smile = next(unit for unit in spelled.units() if "🙂" in unit.text)
        assert smile.last - smile.first >= 4
        values = [0.0] * len(spelled.ids)
        values[smile.last - 2] = -3.0
        values[smile.first] = 2.0
        place = unit_at(smile.last - 1, spelled.units())
        assert strongest(values, spelled.units())[place] == -3.0


def test_bytes_that_are_no_whole_character_do_not_spoil_their_neighbours():
    for name in KEEPS:
        spelling = TokenText(KINDS[name]())
        ids = spelling.of_text("今日は").ids
        cut = spelling.of_ids(ids[1 if name != "llama" else 2 :], begins=False)
        assert cut.text == "\ufffd\ufffd日は"
        assert [unit.text for unit in cut.units()][-2:] == ["日", "は"]


def test_a_blank_in_front_is_kept_where_no_text_begins():
    llama = TokenText(KINDS["llama"]())
    ids = llama.of_text("once upon a time").ids
    assert llama.of_ids(ids).text == "once upon a time"
    assert llama.of_ids(ids, begins=False).text == " once upon a time"
    at = next(place for place, one in enumerate(ids) if llama.label(one) == " up")
    assert llama.context(ids[:at], ids[at], ids[at + 1 :]) == (" once ", "up", "on a time")


def test_labels_keep_the_blank_in_front_and_name_bytes():
    def label(kind: str, name: str) -> str:
        spelling = TokenText(KINDS[kind]())
        return spelling.label(spelling.tokenizer.convert_tokens_to_ids(name))

    assert label("llama", "▁up") == " up"
    assert label("llama", "on") == "on"
    assert label("llama", "<0xE6>") == "<0xE6>"
    assert label("llama", "<0x0A>") == "\n"
    assert label("gemma", "▁up") == " up"
    assert label("unigram", "▁") == " "
    assert label("word-piece", "##ing") == "ing"
    assert label("word-piece", "the") == " the"
    assert label("byte-level", "Ġa") == " a"
    assert label("byte-level", "æ") == "<0xE6>"
    assert label("byte-level", "Ċ") == "\n"
    assert label("character", "今") == "今"
    assert label("llama", "<s>") == "<s>"


def test_numbers_that_are_no_tokens_are_boxes(kind):
    spelling = kind[1]
    beyond = len(spelling.tokenizer)
    assert (spelling.label(-1), spelling.label(beyond)) == (NO_TOKEN, NO_TOKEN)
    assert spelling.of_ids([-1, beyond]).text == 2 * NO_TOKEN


def test_text_that_no_token_stands_for_is_a_unit_of_its_own():
    found = units("once [left out] upon", [0, 16], [4, 20])
    assert [(unit.text, unit.first, unit.last) for unit in found] == [
        ("once", 0, 1),
        (" [left out]", 1, 1),
        (" upon", 1, 2),
    ]
    assert strongest([1.0, 2.0], found) == [1.0, 0.0, 2.0]
    assert [unit.stripped for unit in found] == ["once", "[left out]", "upon"]
    assert [unit.blank for unit in found] == ["", " ", " "]


def test_no_other_module_makes_text_of_tokens():
    root = Path(__file__).resolve().parents[2] / "saelab"
    # The writer reads what a model says, all of it at once.
    allowed = {"models/token_text.py", "models/writer.py"}
    pattern = re.compile(r"tokenizer\.(batch_)?decode|convert_ids_to_tokens|convert_tokens_to_string")
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    }
    assert found - allowed == set()
