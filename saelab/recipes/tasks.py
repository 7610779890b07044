"""`saelab tasks`: labelled tasks about Python, made from Python files; and which tasks a measurement is on."""

from collections.abc import Sequence
from pathlib import Path

from saelab.metrics.evaluation import Evaluation
from saelab.models.loading import BUNDLED
from saelab.tasks.files import NoTasks, read_tasks, tasks_of, write_lines
from saelab.tasks.python_tasks import EXAMPLES, FILES, python_lines
from saelab.tasks.task import Task

PYTHON = "python"
"""The name of the tasks that are made from the standard library."""


def make_tasks(out: str, text: str = "stdlib", files: int = FILES, examples: int = EXAMPLES) -> None:
    """Write labelled tasks about Python code; `saelab measure --tasks OUT` measures on them.

    Args:
        out: the file, ending in .jsonl.gz.
        text: `stdlib` (the Python standard library of this machine), or a folder or glob of Python files.
        files: how many files to read.
        examples: of a task, at most.
    """
    if not out.endswith(".jsonl.gz"):
        raise ValueError(f"--out is written as .jsonl.gz; '{out}' ends otherwise")
    for name, number in (("files", files), ("examples", examples)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    lines = [line.as_json() for line in python_lines(text, files, examples)]
    tasks, left_out = tasks_of(lines, PYTHON)
    write_lines(Path(out), lines)
    print(f"{out}: {len(tasks)} tasks on {len(lines):,} texts, {sum(map(len, tasks)):,} examples")
    for line in first_few([f"note: {why}" for why in left_out.values()]):
        print(line)


def first_few(lines: list[str], count: int = 3) -> list[str]:
    """The first lines about tasks, and how many more there are."""
    more = len(lines) - count
    return lines if more <= 1 else [*lines[:count], f"... and {more} more tasks without enough examples"]


def tasks_for(names: Sequence[str] | None, evaluation: Evaluation) -> tuple[list[Task], dict[str, str]]:
    """The tasks of a measurement, and those left out with the reason; a file without a usable task is one of these.

    Args:
        names: files of tasks; `python` stands for tasks made from the standard library. By default those, if the
            bundled model is measured.
        evaluation: the data that SAEs are measured on.
    """
    if names is None:
        is_bundled = evaluation.model is not None and evaluation.model.name == BUNDLED
        names = [PYTHON] if is_bundled and not evaluation.why_no_model else []
    tasks: list[Task] = []
    left_out: dict[str, str] = {}
    for name in names:
        found, bad = _tasks_of(name)
        twice = {task.name for task in tasks} & {task.name for task in found}
        if twice:
            raise ValueError(f"two files have a task '{min(twice)}': rename one of the files, or its tasks")
        tasks, left_out = tasks + found, left_out | bad
    return tasks, left_out


def _tasks_of(name: str) -> tuple[list[Task], dict[str, str]]:
    """Tasks of one name, and those left out with the reason."""
    if name == PYTHON:
        return tasks_of((one.as_json() for one in python_lines()), PYTHON)
    try:
        return read_tasks(name)
    except NoTasks as error:
        return [], {Path(name).name: str(error)}
