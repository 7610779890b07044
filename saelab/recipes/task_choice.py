"""Which labelled tasks a measurement is on, and what is said of those left out."""

from collections.abc import Sequence
from pathlib import Path

from saelab.metrics.evaluation import Evaluation
from saelab.models.loading import BUNDLED
from saelab.tasks.files import NoTasks, read_tasks, tasks_of
from saelab.tasks.python_tasks import python_lines
from saelab.tasks.task import Task

PYTHON = "python"
"""The name of the tasks that are made from the standard library."""


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
