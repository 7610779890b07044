"""`saelab tasks`: labelled tasks about Python, made from Python files."""

from pathlib import Path

from saelab.recipes.task_choice import PYTHON, first_few
from saelab.tasks.files import tasks_of, write_lines
from saelab.tasks.python_tasks import EXAMPLES, FILES, python_lines


def make_tasks(out: str, text: str = "stdlib", files: int = FILES, examples: int = EXAMPLES) -> None:
    """Write labelled probing tasks about Python code into a file for `saelab measure --tasks`.

    Args:
        out: output file, ending in .jsonl.gz.
        text: `stdlib` (the Python standard library of this machine), or a folder or glob of Python files.
        files: number of files to read.
        examples: maximum number of examples of a task.
    """
    if not out.endswith(".jsonl.gz"):
        raise ValueError(f"--out must end in .jsonl.gz, got '{out}'")
    for name, number in (("files", files), ("examples", examples)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    lines = [line.as_json() for line in python_lines(text, files, examples)]
    tasks, left_out = tasks_of(lines, PYTHON)
    write_lines(Path(out), lines)
    print(f"{out}: {len(tasks)} tasks on {len(lines):,} texts, {sum(map(len, tasks)):,} examples")
    for line in first_few([f"note: {why}" for why in left_out.values()]):
        print(line)
