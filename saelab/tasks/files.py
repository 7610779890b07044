"""Files of labelled tasks: .jsonl, .jsonl.gz, .csv or .parquet, one text with what is asked about it a line.

    text       the text
    label      the answer: 0 and 1, false and true, or names of classes; with names, there is a task for each but one of
               two, or for each of more: "FILE: CLASS", yes for that class and no for all others
    at         optional: the place of the character that is asked about; without it the text as a whole is
    task       optional: the task's name; by default the file's
    document   optional (also `doc`): examples of one document are in one part; by default each text is a document
    split      optional: `train` or `test`; by default half of the documents are for testing, by a hash of their name

Where many questions are asked about each text, a .jsonl has instead of label, at and task

    marks      {task: [[at, label], ...]} with labels 0 and 1: about places in the text
    labels     {task: label} with labels 0 and 1: about the text as a whole

Of each task as many examples are taken with yes as with no, in each part; what stands before a colon in its name is its
family. A task without enough examples is left out, and said.
"""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from saelab.core.components import near_miss
from saelab.core.files import write_whole
from saelab.core.read import BOM, read_json_lines, text_of
from saelab.data.parquet import parquet_rows
from saelab.data.source import generator_for
from saelab.tasks.task import WHOLE, Task, Texts, balanced

EXAMPLES = 2000
"""Examples of a task at most."""
FIELDS = ("text", "label", "at", "task", "document", "doc", "split", "marks", "labels")
SPLITS = ("train", "test")
ANSWERS = {"0": False, "1": True, "false": False, "true": True}
Line = Mapping[str, Any]


class NoTasks(ValueError):
    """A file that can be read has no task with enough examples of both classes."""


def read_tasks(path: str | Path, most: int = EXAMPLES) -> tuple[list[Task], dict[str, str]]:
    """The tasks of a file, and those left out with the reason.

    Raises:
        ValueError: that names the file, the line and what is wrong with it.
        NoTasks: if no task is left.
    """
    path = Path(path)
    reader = next((read for ending, read in READERS.items() if path.name.lower().endswith(ending)), None)
    if reader is None:
        raise ValueError(f"cannot read tasks from {path}: its ending is none of {', '.join(READERS)}")
    if not path.exists():
        raise ValueError(f"there is no file of tasks {path}")
    tasks, left_out = tasks_of(reader(path), path, most)
    if not tasks:
        raise NoTasks(f"{path} has no task that can be used: {next(iter(left_out.values()), 'the file is empty')}")
    return tasks, left_out


def tasks_of(lines: Iterable[Line], source: str | Path, most: int = EXAMPLES) -> tuple[list[Task], dict[str, str]]:
    """Tasks from lines as above, and those left out with the reason; `source` is named in complaints."""
    name = Path(source).name.partition(".")[0]
    collected = _Collected(name)
    for number, line in enumerate(lines, 1):
        collected.add(line, f"{source}, line {number},")
    return collected.tasks(most)


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Write lines as .jsonl.gz, equal files for equal lines."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(path, lambda file: file.write(gzip.compress(text.encode(), mtime=0)))


class _Collected:
    """Examples by task, as they are read."""

    def __init__(self, name: str):
        self.name = name
        self.texts: list[str] = []
        self.numbers: dict[str, int] = {}
        self.documents: dict[str, int] = {}
        self.examples: dict[str, list[tuple[int, int, str, bool, int]]] = {}

    def add(self, line: Line, where: str) -> None:
        unknown = [key for key in line if key not in FIELDS and key is not None]
        if "text" not in line or not {"label", "marks", "labels"} & line.keys():
            missing = "text" if "text" not in line else "label"
            hint = near_miss(missing, unknown) if unknown else ""
            raise ValueError(f"{where} has no field '{missing}'{hint}")
        text = line["text"]
        if not isinstance(text, str):
            raise ValueError(f"{where} holds a {type(text).__name__} in the field 'text', expected text")
        if not isinstance(line.get("task"), str | None):
            raise ValueError(f"{where} holds a {type(line['task']).__name__} in the field 'task', expected text")
        if not text.strip():
            return
        document = str(line.get("document") or line.get("doc") or text)
        split = line.get("split") or SPLITS[hashlib.sha256(document.encode()).digest()[0] % 2]
        if split not in SPLITS:
            raise ValueError(f"{where} has the split {split!r}{near_miss(str(split), SPLITS)}")
        number = self.numbers.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        for task, at, label in _asked(line, where):
            if at != WHOLE and not 0 <= at < len(text):
                raise ValueError(f"{where} asks about character {at} of a text of {len(text)}")
            group = self.documents.setdefault(document, len(self.documents))
            example = (number, at, label, split == "test", group)
            self.examples.setdefault(task or self.name, []).append(example)

    def tasks(self, most: int) -> tuple[list[Task], dict[str, str]]:
        texts = Texts(tuple(self.texts), self.name)
        tasks, left_out = [], {}
        for name, examples in self.examples.items():
            number, at, labels, test, group = zip(*examples, strict=True)
            for task, is_yes in _binary(name, set(labels)).items():
                label = torch.tensor([is_yes(one) for one in labels])
                parts = torch.tensor(number), torch.tensor(at), label, torch.tensor(test), torch.tensor(group)
                chosen = balanced(label, parts[3], most, generator_for(0))
                try:
                    tasks.append(Task(task, texts, *(part[chosen] for part in parts)))
                except ValueError as error:
                    left_out[task] = str(error)
            if len(set(labels)) < 2:
                left_out[name] = f"the task '{name}' has one class only: every label is '{labels[0]}'"
        return tasks, left_out


def _asked(line: Line, where: str) -> Iterator[tuple[str | None, int, str]]:
    """Task, place and label of everything that a line asks."""
    if line.get("label") is not None:
        at = line.get("at")
        yield line.get("task"), WHOLE if at in (None, "") else _whole_number(at, where), _label(line["label"], where)
    elif "label" in line:
        raise ValueError(f"{where} has an empty field 'label'")
    try:
        for task, marks in (line.get("marks") or {}).items():
            for at, label in marks:
                yield task, _whole_number(at, where), _label(label, where)
        for task, label in (line.get("labels") or {}).items():
            yield task, WHOLE, _label(label, where)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{where} has marks or labels in another form ({error})") from None


def _whole_number(value: Any, where: str) -> int:
    try:
        return int(value)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"{where} has {value!r} as the place of a character, expected a whole number") from None


def _label(value: Any, where: str) -> str:
    if isinstance(value, bool | int | float | str) and str(value).strip():
        return str(int(value)) if isinstance(value, bool) or value in (0, 1) else str(value).strip()
    raise ValueError(f"{where} has the label {value!r}, expected a word or a number")


def _binary(name: str, labels: set[str]) -> dict[str, Callable[[str], bool]]:
    """The binary tasks that labels make, by name; none for one label."""
    if len(labels) < 2:
        return {}
    if {label.lower() for label in labels} <= ANSWERS.keys():
        return {name: lambda label: ANSWERS[label.lower()]}
    # Of two classes the second by name is yes: of neg and pos, pos.
    wanted = sorted(labels)[1:] if len(labels) == 2 else sorted(labels)
    return {f"{name}: {one}": partial(str.__eq__, one) for one in wanted}


# ---- formats ----


def _json_lines(path: Path) -> Iterator[Line]:
    return (line for _, line in read_json_lines(path))


def _comma_separated(path: Path) -> Iterator[Line]:
    try:
        yield from csv.DictReader(io.StringIO(text_of(path, "convert it").removeprefix(BOM), newline=""))
    except csv.Error as error:
        raise ValueError(f"{path} is not valid CSV ({error}); write it otherwise") from None


def _parquet(path: Path) -> Iterator[Line]:
    return parquet_rows(path)


READERS: dict[str, Callable[[Path], Iterator[Line]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".csv": _comma_separated,
    ".parquet": _parquet,
}
