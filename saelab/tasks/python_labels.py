"""Labels of every word and mark of a Python file, without an error, and the tasks that are made of them.

A *unit* is a word (letters, digits, underscores) or one mark of punctuation, in code as in comments and strings. A task
says yes or no of the units of its universe: all, those of code, the names in code, the words of comments, ... So a
negative is always something that could have been a positive: a name that is no attribute, not a comma. A task about a
whole document says whether there is a yes in it.
"""

# Shape letters: n units of a file.

import builtins
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from saelab.tasks.python_marks import Marks

UNIT = re.compile(r"\w+|[^\w\s]")
BUILTINS = frozenset(dir(builtins))
LETTERS = "acdefgilmnprstu"
"""Letters that many names begin with."""
YES, NO, NEITHER = 1, 0, -1


@dataclass(frozen=True)
class Labels:
    """Labels of a file's units."""

    at: np.ndarray
    """The last character of each unit, [n] int64, ascending."""
    of: dict[str, np.ndarray]
    """YES, NO or NEITHER for each unit, [n] int8, by task."""


class Units:
    """The units of a file with its marks."""

    def __init__(self, source: str):
        self.marks = Marks(source)
        found = list(UNIT.finditer(source))
        words = np.array([one[0] for one in found], dtype=object)
        self.words, self._place = np.unique(words, return_inverse=True)
        self.first = np.array([one.start() for one in found], np.int64)
        self.last = np.array([one.end() - 1 for one in found], np.int64)

    def marked(self, *names: str) -> np.ndarray:
        """Units with any of these marks, [n] bool."""
        yes = np.zeros(len(self.first), bool)
        for name in names:
            yes |= self.marks[name][self.first]
        return yes

    def spelled(self, test: Callable[[str], bool]) -> np.ndarray:
        """Units spelled so, [n] bool."""
        return np.fromiter(map(test, self.words), bool, len(self.words))[self._place]


Answer = Callable[[Units], np.ndarray]


def _marked(*names: str) -> Answer:
    return lambda units: units.marked(*names)


def _spelled(test: Callable[[str], bool]) -> Answer:
    return lambda units: units.spelled(test)


def _begins(letter: str, word: str) -> bool:
    return word[0].lower() == letter


def _deep(levels: int) -> Answer:
    return lambda units: units.marks.depth[units.first] >= levels


def _bracketed(levels: int) -> Answer:
    return lambda units: units.marks.brackets[units.first] >= levels


def _outside(*names: str) -> Answer:
    return lambda units: ~units.marked(*names)


UNIVERSES: dict[str, Answer] = {
    "all": lambda units: np.ones(len(units.first), bool),
    "quoted": lambda units: units.marked("string", "f-string") & ~units.marked("docstring"),
    "names": _marked("name"),
    "long names": lambda units: units.marked("name") & units.spelled(lambda word: len(word) > 2 and word[0].isalpha()),
} | {name: _marked(name) for name in ("code", "comment", "docstring", "function", "attribute", "operator")}

# Each task: its universe and its answer.
TASKS: dict[str, tuple[str, Answer]] = {
    "text: in a comment": ("all", _marked("comment")),
    "text: in a docstring": ("all", _marked("docstring")),
    "text: in a string": ("all", lambda units: UNIVERSES["quoted"](units)),
    "text: in code": ("all", _marked("code")),
    "text: in a comment after code": ("comment", _marked("comment after code")),
    "text: in an f-string": ("quoted", _marked("f-string")),
    "text: in a bytes literal": ("quoted", _marked("bytes")),
    "text: in a raw string": ("quoted", _marked("raw")),
    "text: in a triple-quoted string": ("quoted", _marked("triple")),
    "text: in a module's docstring": ("docstring", _marked("docstring of a module")),
    "text: in a class's docstring": ("docstring", _marked("docstring of a class")),
    **{
        f"block: in {what}": ("code", _marked(mark))
        for what, mark in {
            "a loop": "loop", "a while loop": "while", "an except": "except", "a try": "try", "a finally": "finally",
            "a with": "with", "an if": "if", "an else": "else", "a class": "class body", "a function": "function",
            "an async function": "async",
        }.items()
    },
    **{
        f"block: in {what}": ("function", _marked(mark))
        for what, mark in {
            "a method": "method", "a nested function": "nested function", "a test function": "test",
            "a generator": "generator", "a decorated function": "decorated",
        }.items()
    },
    "block: at module level": ("code", _outside("function", "class")),
    **{f"block: {levels} levels deep": ("code", _deep(levels)) for levels in (2, 3, 4)},
    **{
        f"expression: in {what}": ("code", _marked(mark))
        for what, mark in {
            "a lambda": "lambda", "a comprehension": "comprehension", "an assert": "assert", "a raise": "raise",
            "a return": "return", "an import": "import", "a dict": "dict", "a list": "list", "a tuple": "tuple",
            "a boolean operation": "boolean", "a comparison": "comparison", "arithmetic": "arithmetic",
            "an assignment": "assignment", "an augmented assignment": "augmented", "a condition": "condition",
            "an index": "index", "the arguments of a call": "arguments", "a keyword argument": "keyword value",
            "a type annotation": "annotation", "a default value": "default", "a decorator": "decorator",
            "the bases of a class": "bases", "what is iterated over": "iterated",
        }.items()
    },
    **{f"expression: {levels} brackets deep": ("code", _bracketed(levels)) for levels in (1, 2, 3)},
    **{
        f"name: {what}": ("names", _marked(mark))
        for what, mark in {
            "attribute": "attribute", "parameter": "parameter", "parameter used": "parameter used",
            "imported": "imported", "of a function defined": "after def", "of a class defined": "after class",
            "assigned": "stored", "called": "called", "keyword of an argument": "keyword name",
        }.items()
    },
    "name: attribute that is called": ("attribute", _marked("called attribute")),
    "name: builtin": ("names", _spelled(BUILTINS.__contains__)),
    "name: exception": ("names", _spelled(lambda word: word.endswith(("Error", "Exception", "Warning")))),
    "name: in capitals": ("names", _spelled(lambda word: word.isupper() and len(word) > 1)),
    "name: private": ("names", _spelled(lambda word: word.startswith("_") and not word.startswith("__"))),
    "name: with two underscores": ("names", _spelled(lambda word: word.startswith("__"))),
    "mark: number": ("code", _marked("number")),
    "mark: keyword": ("code", _marked("keyword")),
    "mark: operator": ("code", _marked("operator")),
    "mark: True, False or None": ("code", _spelled(lambda word: word in ("True", "False", "None"))),
    "mark: closing bracket": ("operator", _spelled(lambda word: word in ")]}")),
    "mark: first of a line": ("code", _marked("first")),
    **{
        f"letter: {letter}": ("long names", _spelled(partial(_begins, letter)))
        for letter in LETTERS
    },
}  # fmt: skip

DOCUMENT_TASKS = {
    "document: has a class": "block: in a class",
    "document: has a loop": "block: in a loop",
    "document: has an except": "block: in an except",
    "document: has an import": "expression: in an import",
    "document: has a docstring": "text: in a docstring",
    "document: has a comment": "text: in a comment",
    "document: has an assert": "expression: in an assert",
    "document: has a test": "block: in a test function",
    "document: has a decorator": "expression: in a decorator",
    "document: has a method": "block: in a method",
}
"""Tasks about a whole text: whether a task of tokens has a yes in it."""

BIASES = {
    "bias 1": ("name: attribute", "block: in a function"),
    "bias 2": ("name: called", "block: in a class"),
    "bias 3": ("expression: in the arguments of a call", "block: in an if"),
}
"""Pairs of tasks that are also given on the same places, as many with each of the four pairs of labels: for SCR."""


def labels_of(source: str) -> Labels:
    """Labels of a file.

    Raises:
        SyntaxError, ValueError: for text that is no Python.
    """
    units = Units(source)
    inside = {name: universe(units) for name, universe in UNIVERSES.items()}
    found = {}
    for name, (universe, answer) in TASKS.items():
        found[name] = np.where(inside[universe], np.where(answer(units), YES, NO), NEITHER).astype(np.int8)
    return Labels(units.last, found)
