"""Labels of Python: places on tricky lines, and every task on code whose answers are written down here."""

import ast
import io
import tokenize
from pathlib import Path

import numpy as np
import pytest

from saelab.tasks.python_labels import NEITHER, NO, TASKS, UNIT, YES, labels_of
from saelab.tasks.python_marks import Marks, SourcePlaces
from saelab.tasks.python_tasks import Line, python_lines

CODE = '''"""Module: doc."""
import os.path as osp
from sys import argv


@decorate(level=2)
class Größe(Base):
    """Class doc."""

    LIMIT: int = 3

    def méthode(self, α, *rest, key=None):
        """Function doc, with a "nested" quote."""
        naïve = "ünï", α  # café
        for item in rest:
            while item:
                if item == LIMIT and not α:
                    raise ValueError(f"no {item!r} here")
                elif argv:
                    item -= 1
                else:
                    key.call(item, flag=True)
        return [x for x in (1, 2.5)]


async def test_it():
\ttry:
\t\twith open(osp) as file:
\t\t\tassert file, rb"raw"
\texcept OSError:
\t\tdef inner():
\t\t\tyield lambda q=0: q + LIMIT[1]
\tfinally:
\t\tpass
'''


def yes(task: str, source: str = CODE) -> list[str]:
    """The units that a task says yes to, as they are spelled."""
    labels = labels_of(source)
    words = UNIT.findall(source)
    assert len(words) == len(labels.at)
    assert all(source[at] == word[-1] for at, word in zip(labels.at, words, strict=True))
    return [word for word, label in zip(words, labels.of[task], strict=True) if label == YES]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("text: in a module's docstring", '" " " Module : doc . " " "'),
        ("text: in a class's docstring", '" " " Class doc . " " "'),
        ("text: in a comment", "# café"),
        ("text: in a comment after code", "# café"),
        ("text: in an f-string", 'f " no { item ! r } here "'),
        ("text: in a raw string", 'rb " raw "'),
        ("text: in a bytes literal", 'rb " raw "'),
        ("block: in a while loop", ("if item = = LIMIT and not α : raise ValueError ( ) elif argv : item - = 1 else : "
                                    "key . call ( item , flag = True )")),
        ("block: in an else", "key . call ( item , flag = True )"),
        ("block: in an except", "def inner ( ) : yield lambda q = 0 : q + LIMIT [ 1 ]"),
        ("block: in a finally", "pass"),
        ("block: in a with", 'assert file ,'),
        ("block: in a generator", "yield lambda q = 0 : q + LIMIT [ 1 ]"),
        ("block: in a nested function", "yield lambda q = 0 : q + LIMIT [ 1 ]"),
        ("expression: in an import", "import os . path as osp from sys import argv"),
        ("expression: in a decorator", "decorate ( level = 2 )"),
        ("expression: in the bases of a class", "Base"),
        ("expression: in a type annotation", "int"),
        ("expression: in a default value", "None 0"),
        ("expression: in a comprehension", "[ x for x in ( 1 , 2 . 5 ) ]"),
        ("expression: in a lambda", "lambda q = 0 : q + LIMIT [ 1 ]"),
        ("expression: in a raise", "raise ValueError ( )"),
        ("expression: in an assert", "assert file ,"),
        ("expression: in an augmented assignment", "item - = 1"),
        ("expression: in a boolean operation", "item = = LIMIT and not α"),
        ("expression: in a comparison", "item = = LIMIT"),
        ("expression: in an index", "1"),
        ("expression: in a keyword argument", "2 True"),
        ("expression: in what is iterated over", "rest"),
        ("name: parameter", "self α rest key q"),
        ("name: parameter used", "α rest α key q"),
        ("name: attribute", "call"),
        ("name: attribute that is called", "call"),
        ("name: called", "decorate ValueError call open"),
        ("name: imported", "argv osp"),
        ("name: of a function defined", "méthode test_it inner"),
        ("name: of a class defined", "Größe"),
        ("name: assigned", "LIMIT naïve item item x file"),
        ("name: keyword of an argument", "level flag"),
        ("name: builtin", "int ValueError open OSError"),
        ("name: exception", "ValueError OSError"),
        ("name: in capitals", "LIMIT LIMIT LIMIT"),
        ("mark: number", "2 3 1 1 2 . 5 0 1"),
        ("mark: True, False or None", "None True"),
        ("expression: 3 brackets deep", ""),
    ],
)  # fmt: skip
def test_the_units_that_a_task_says_yes_to(task, words):
    assert " ".join(yes(task)) == words


def test_negatives_are_of_the_tasks_universe():
    labels = labels_of(CODE)
    for name, (universe, _) in TASKS.items():
        if universe == "names":
            assert (labels.of[name] != NEITHER).sum() == (labels.of["name: attribute"] != NEITHER).sum(), name
    assert ((labels.of["text: in code"] == YES) == (labels.of["block: in a loop"] != NEITHER)).all()
    assert (labels.of["text: in code"] != NEITHER).all()
    depth = [labels.of[f"block: {levels} levels deep"] == YES for levels in (2, 3, 4)]
    assert (depth[1] <= depth[0]).all()
    assert (depth[2] <= depth[1]).all()
    assert depth[2].any()


def test_places_of_bytes_and_of_characters_agree():
    """Every node's span is its source segment as `ast` itself cuts it; every token's is its string."""
    places = SourcePlaces(CODE)
    for node in ast.walk(ast.parse(CODE)):
        if hasattr(node, "lineno") and not getattr(node, "decorator_list", []):
            start, end = places.span(node)
            assert CODE[start:end] == ast.get_source_segment(CODE, node)
    for token in tokenize.generate_tokens(io.StringIO(CODE).readline):
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.STRING, tokenize.COMMENT):
            assert CODE[places.character(*token.start) : places.character(*token.end)] == token.string


def test_nested_quotes_and_adjacent_strings_do_not_end_a_docstring_early():
    source = 'def f():\n    """One \'two\' "three".\n\n    >>> g("x")\n    """\n    return ("a" \'b\')\n'
    assert "".join(yes("text: in a docstring", source)) == '"""One\'two\'"three".>>>g("x")"""'
    assert "".join(yes("text: in a string", source)) == "\"a\"'b'"


def test_what_stands_in_an_f_string_is_no_code():
    source = 'x = f"{a.b(c)} {d!r:>{width}} é" "plain" + e.g\n'
    assert yes("name: attribute", source) == ["g"]
    assert "plain" not in yes("text: in an f-string", source)
    assert {"a", "b", "width", "é"} <= set(yes("text: in an f-string", source))


@pytest.mark.parametrize("source", ["def f(:\n", "x = (\n", "\x00", "  x\n y\n"])
def test_what_is_no_python_is_an_error_that_is_caught(source):
    with pytest.raises((SyntaxError, ValueError)):
        labels_of(source)


def test_a_file_of_nothing_has_no_units():
    assert len(labels_of("").at) == 0
    assert not Marks("x = 1\n")["loop"].any()


# ---- tasks made of a library ----


def made_of(folder: Path) -> list[Line]:
    """The tasks of a library of twelve files and one that is no Python."""
    for number in range(12):
        (folder / f"{number}.py").write_text(CODE.replace("naïve", f"n{number}"))
    (folder / "broken.py").write_text("def f(:\n" * 30)
    return python_lines(str(folder), files=20, examples=40)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    return made_of(tmp_path_factory.mktemp("library"))


def test_marks_are_the_labels_of_the_whole_file_at_the_windows_place(lines):
    assert lines
    for line in lines:
        source = next(CODE.replace("naïve", f"n{n}") for n in range(12) if line.document == f"{n}.py")
        start, labels = source.index(line.text), labels_of(source)
        for task, marks in line.marks.items():
            if task in TASKS:
                for at, label in marks:
                    (unit,) = np.flatnonzero(labels.at == start + at)
                    assert labels.of[task][unit] == (YES if label else NO)


def test_both_labels_are_in_the_cells_of_a_pair(lines):
    cells = set()
    for line in lines:
        bias = dict(line.marks.get("bias 1: in a function", []))
        cells |= {(label, bias[at]) for at, label in line.marks.get("bias 1: attribute", []) if at in bias}
    assert len(cells) >= 3


def test_files_are_in_one_part_and_the_same_library_gives_the_same_tasks(lines, tmp_path):
    parts: dict[str, set[str]] = {}
    for line in lines:
        parts.setdefault(line.document, set()).add(line.split)
    assert all(len(part) == 1 for part in parts.values())
    assert set().union(*parts.values()) == {"train", "test"}
    assert [line.as_json() for line in made_of(tmp_path)] == [line.as_json() for line in lines]


def test_no_task_has_more_examples_than_asked_for(lines):
    counts: dict[tuple[str, str, bool], int] = {}
    for line in lines:
        for task, marks in line.marks.items():
            for _, label in marks:
                counts[task, line.split, label] = counts.get((task, line.split, label), 0) + 1
    assert max(counts.values()) == 10


def test_there_are_at_least_61_tasks():
    assert len(TASKS) >= 61
