"""Tasks about Python made from Python files: labels without an error, balanced, dealt into parts by file.

Files are cut into windows of whole lines that begin with a statement of the top level where they can, since what stands
above it (the `class`, the `def`) is then in the window. Of a window, units are drawn for every task, few of a file for
any one task, and as many with yes as with no. Which part a file is in is decided by its text alone, as is which units
are drawn: the same library gives the same tasks.
"""

# Shape letters: n units of a window.

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saelab.models.text import Document, read_text
from saelab.tasks.python_labels import BIASES, DOCUMENT_TASKS, NO, YES, Labels, labels_of

FILES, WINDOW, WINDOWS_A_FILE = 300, 1000, 4
LONGEST = 24_000
"""Characters of the longest file that is read: parsing takes its time."""
OF_A_WINDOW = 3
"""Units of a window at most with one label of one task."""
EXAMPLES = 800
"""Examples of a task at most."""


@dataclass
class Line:
    """A text with what is asked about it, as a line of a file of tasks (see `files.py`)."""

    text: str
    document: str
    split: str
    marks: dict[str, list[tuple[int, bool]]] = field(default_factory=dict)
    """Places in the text and their labels, by task."""
    labels: dict[str, bool] = field(default_factory=dict)
    """Labels of the text as a whole, by task."""

    def as_json(self) -> dict[str, Any]:
        return {"text": self.text, "document": self.document, "split": self.split} | {
            "marks": {name: [[at, int(label)] for at, label in marks] for name, marks in self.marks.items()},
            "labels": {name: int(label) for name, label in self.labels.items()},
        }


@dataclass(frozen=True)
class PythonWindow:
    """Whole lines of a file, with labels of all their units; places are counted from the window's first character."""

    file: Document
    text: str
    labels: Labels


def python_windows(source: str = "stdlib", files: int = FILES) -> Iterator[PythonWindow]:
    """Windows of Python files, up to WINDOWS_A_FILE of each; see `python_lines` for the arguments."""
    for document in _files(source, files):
        yield from _windows(document, _draw(document))


def python_lines(source: str = "stdlib", files: int = FILES, examples: int = EXAMPLES) -> list[Line]:
    """Windows of Python files with labels.

    Args:
        source: where the files are from, as `saelab harvest --text` takes it; what is no Python is left out.
        files: how many to read.
        examples: of a task, at most; a part has at most half of them.
    """
    lines = [line for document in _files(source, files) for line in _lines(document)]
    order = sorted(lines, key=lambda line: _hash(line.text))
    left: dict[tuple[str, str, bool], int] = {}
    for line in order:
        for name, marks in line.marks.items():
            line.marks[name] = [one for one in marks if _room(left, (name, line.split, one[1]), examples // 4)]
        line.marks = {name: marks for name, marks in line.marks.items() if marks}
        line.labels = {
            name: label for name, label in line.labels.items() if _room(left, (name, line.split, label), examples // 4)
        }
    return [line for line in lines if line.marks or line.labels]


def _room(left: dict[tuple[str, str, bool], int], key: tuple[str, str, bool], most: int) -> bool:
    left[key] = left.get(key, most) - 1
    return left[key] >= 0


def _files(source: str, count: int) -> Iterator[Document]:
    for document in read_text(source, seed=0):
        if len(document.text) <= LONGEST and "\r" not in document.text and "\f" not in document.text:
            yield document
            count -= 1
        if not count:
            return


def _lines(document: Document) -> Iterator[Line]:
    draw = _draw(document)
    split = "test" if _hash(document.text) % 2 else "train"
    for window in _windows(document, draw):
        line = Line(window.text, document.name, split)
        _ask(line, window.labels, draw)
        yield line


def _draw(document: Document) -> np.random.Generator:
    return np.random.default_rng(_hash(document.text))


def _windows(document: Document, draw: np.random.Generator) -> Iterator[PythonWindow]:
    try:
        labels = labels_of(document.text)
    except (SyntaxError, ValueError):
        return
    spans = list(_spans(document.text))
    for which in sorted(draw.permutation(len(spans))[:WINDOWS_A_FILE]):
        start, end = spans[which]
        units = slice(*np.searchsorted(labels.at, [start, end]))
        own = {name: found[units] for name, found in labels.of.items()}
        yield PythonWindow(document, document.text[start:end], Labels(labels.at[units] - start, own))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Windows, first character and the one behind the last: they end where the next line would not fit."""
    start = place = 0
    for row in text.splitlines(keepends=True):
        statement = row[:1].isalpha() or row[:1] in "@#_"
        if place > start and (place + len(row) - start > WINDOW or (statement and place - start > WINDOW // 2)):
            yield start, place
            start = place
        place += len(row)
    if place - start > WINDOW // 4:
        yield start, place


def _ask(line: Line, labels: Labels, draw: np.random.Generator) -> None:
    """Draw the units of a window that are asked about."""
    at, of = labels.at, labels.of

    def marks(task: str, units: Iterable[int]) -> list[tuple[int, bool]]:
        return [(int(at[unit]), bool(of[task][unit] == YES)) for unit in units]

    for name, found in of.items():
        line.marks[name] = marks(name, [unit for label in (YES, NO) for unit in _some(found == label, draw)])
    for name, task in DOCUMENT_TASKS.items():
        line.labels[name] = bool((of[task] == YES).any())
    for name, (wanted, bias) in BIASES.items():
        cells = [(of[wanted] == one) & (of[bias] == other) for one in (YES, NO) for other in (YES, NO)]
        drawn = [unit for cell in cells for unit in _some(cell, draw)]
        for task in (wanted, bias):
            line.marks[f"{name}: {task.partition(': ')[2]}"] = marks(task, drawn)


def _some(wanted: np.ndarray, draw: np.random.Generator) -> Iterable[int]:
    return sorted(draw.permutation(np.flatnonzero(wanted))[:OF_A_WINDOW].tolist())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[1:8], "big")
