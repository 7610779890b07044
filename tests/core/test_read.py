"""Whatever stands in a file, reading it gives what was expected or one line: file, place, what was expected."""

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.core.read import Row, check_format, expect, parse_json, parse_yaml, read_json, read_json_lines, read_yaml

SWEEP = {"members": [str], "step?": int}


def complaint(read, *arguments, **options):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        read(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "members: expected a list of texts, got nothing"),
        ('{"members": 3}', "members: expected a list of texts, got 3"),
        ('{"members": ""}', 'members: expected a list of texts, got ""'),
        ('{"members": ["a", {}]}', "members[1]: expected a text, got a table of 0"),
        ('{"members": [], "step": true}', "step: expected a whole number, got true"),
        ('{"members": [], "step": 1.0}', "step: expected a whole number, got 1.0"),
        ('{"members": [], "step": null}', "step: expected a whole number, got null"),
        (f'{{"members": [], "step": {1 << 63}}}', "step: expected a whole number, got a number of more than 63 bits"),
        ("[]", "expected a table, got a list of 0"),
    ],
)
def test_a_value_that_is_not_as_expected_is_named_with_its_place(text, words):
    assert complaint(parse_json, text, "k/sweep.json", SWEEP) == (
        f"k/sweep.json: {words}; restore it from a copy or make it again"
    )


@pytest.mark.parametrize(
    ("kind", "value", "place"),
    [
        ({"a": float}, {"a": float("inf")}, "a: expected a number, got Infinity"),
        ({"a": float}, {"a": 10**400}, "a: expected a number, got a number of more than 63 bits"),
        ({"a": float}, {"a": True}, "a: expected a number, got true"),
        ({"a": (int, None)}, {"a": "x"}, 'a: expected a whole number or null, got "x"'),
        ({"a": ("kl", "ce")}, {"a": "x"}, "a: expected 'kl' or 'ce', got \"x\""),
        ({"a": Row(int, str)}, {"a": [1]}, "a: expected a list of 2, got a list of 1"),
        ({"a": [Row(int, str)]}, {"a": [[1, "x"], [1, 2]]}, "a[1][1]: expected a text, got 2"),
        ({str: {"value": float}}, {"l0": {"value": None}}, "l0.value: expected a number, got null"),
        ({"a": ([{"b": int}], None)}, {"a": [{"b": 1}, {"b": "x"}]}, 'a[1].b: expected a whole number, got "x"'),
    ],
)
def test_places_and_kinds(kind, value, place):
    assert complaint(expect, value, kind, "file", "mend it") == f"file: {place}; mend it"


def test_what_is_as_expected_is_given_back():
    value = {"members": ["a"], "more": None, "n": 3}
    assert expect(value, SWEEP | {"n": float, "more": (int, None), "other?": Row(int)}, "file") is value
    assert parse_json('{"a": [1, "ü\\u00fc\\ud83d\\ude42"]}', "file", {"a": Row(int, str)}) == {"a": [1, "üü🙂"]}


BAD_JSON = {
    "": "Expecting value",
    "[" * 10_000 + "]" * 10_000: "nested more than 100 deep",
    '{"a":' * 200 + "1" + "}" * 200: "nested more than 100 deep",
    '{"a": 1, "a": 2}': "the key a is repeated",
    '{"a": NaN}': "NaN is not a number of JSON",
    '{"a": "\\ud800"}': "an unpaired surrogate in a text",
    '{"a": ' + "9" * 5000 + "}": "a number of too many digits",
}


@pytest.mark.parametrize("text", BAD_JSON)
def test_what_is_no_json(text):
    assert complaint(parse_json, text, "file").startswith(f"file is damaged: not JSON ({BAD_JSON[text]}")


def test_files_of_strangers_may_hold_what_other_programs_write():
    value = parse_json('{"a": 1, "a": NaN, "text": "x\\ud800"}', "file", {"text": str}, foreign=True)
    assert value["text"] == "x?"
    assert value["a"] != value["a"]
    assert "nested" in complaint(parse_json, "[" * 10_000, "file", foreign=True)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
BAD_YAML = {
    BOMB: "more than 1,000,000 values",
    "&a [*a]": "nested more than 100 deep",
    "[" * 10_000 + "]" * 10_000: "nested more than 100 deep",
    "k: 1\nk: 2": "the key k is repeated",
    "1: 2": "the key 1 is not text: write it in quotes",
    "at: 2020-01-01": "2020-01-01 is a date: write it in quotes",
    "at: 2020-13-01": "month must be in 1..12",
    "k: .nan": "the number nan is not finite",
    "k: !!bool foo": "a value that does not fit its tag",
    "k: !!timestamp foo": "a value that does not fit its tag",
    "k: " + "9" * 5000: "a number of too many digits",
    "- !!python/object/apply:os.system ['x']": "could not determine a constructor",
    "? [1]\n: 2": "while constructing a mapping",
    "k: [": "while parsing a flow node",
    "\x00": "unacceptable character",
}


@pytest.mark.parametrize("text", BAD_YAML)
def test_what_is_no_yaml(text):
    assert complaint(parse_yaml, text, "file").startswith(
        f"file is damaged: not YAML that saelab reads ({BAD_YAML[text]}"
    )


def test_yaml_may_say_a_table_once_and_use_it_again(tmp_path):
    (tmp_path / "file.yaml").write_text("a: &one {k: 1, l: 1}\nb: {<<: *one, k: 2}\n")
    assert read_yaml(tmp_path / "file.yaml", {"b": {"k": int}})["b"] == {"k": 2, "l": 1}
    assert complaint(parse_yaml, "text", "file") == (
        'file: expected a table, got "text"; restore it from a copy or make it again'
    )


def test_files_that_cannot_be_read_are_named(tmp_path):
    assert complaint(read_json, tmp_path / "none") == f"there is no file {tmp_path}/none"
    assert complaint(read_json, tmp_path) == f"{tmp_path} is a folder, expected a file"
    (tmp_path / "file").write_bytes(b'{"a": "\xff"}')
    for read in (read_json, read_yaml):
        assert complaint(read, tmp_path / "file").startswith(f"{tmp_path}/file is not UTF-8 text ('utf-8' codec")


def test_lines_of_strangers(tmp_path):
    lines = b'\xef\xbb\xbf{"a": 1}\n\n{"a": NaN}\n[\n'
    (tmp_path / "x.jsonl").write_bytes(lines)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines))
    for name in ("x.jsonl", "x.jsonl.gz"):
        read = read_json_lines(tmp_path / name)
        assert next(read) == (1, {"a": 1})
        assert next(read)[0] == 3
        words = complaint(next, read)
        assert words.startswith(f"{tmp_path / name}, line 4 is damaged: not JSON (Expecting value")
        assert words.endswith("; mend the line or take it out")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 9)[:-9])
    assert "is damaged or cut short" in complaint(list, read_json_lines(tmp_path / "x.jsonl.gz"))


def test_format_number():
    check_format(Path("file"), 1, 2)
    check_format(Path("file"), 2, 2)
    with pytest.raises(ValueError, match="format 3, newer than 2.*update saelab"):
        check_format(Path("file"), 3, 2)
    for found in (None, "1", 1.0):
        with pytest.raises(ValueError, match="file has no format number"):
            check_format(Path("file"), found, 2)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
)


@settings(max_examples=200, deadline=None)
@given(PLAIN, st.sampled_from([parse_json, parse_yaml]), st.booleans())
def test_any_value_is_given_back_or_refused_in_one_line(value, parse, foreign):
    options = {"foreign": foreign} if parse is parse_json else {}
    words = None
    try:
        read = parse(json.dumps(value), "file", {"a": int, "b": [(float, None)], "c?": {str: str}}, **options)
    except ValueError as error:
        words = str(error)
    assert re.fullmatch(r"file(:| is damaged: not) [^\n]+", words) if words else read == value
