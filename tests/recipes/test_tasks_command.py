"""`saelab tasks` and `saelab measure --tasks`: from Python files to scores of a run on its own model."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest

from saelab.tasks.files import read_tasks

pytest_plugins = ["models.conftest", "recipes.small_world"]

CODE = """
class A{n}:
    def f(self, x{n}):
        for i in self.b({n}):
            self.c = i
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    for number in range(60):
        (folder / f"{number}.py").write_text(CODE.format(n=number) * 4)
    return folder


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "mood.csv"
    lines = [f"the quick {'fox' if number % 2 else 'dog'} {number},{number % 2}" for number in range(100)]
    path.write_text("\n".join(["text,label", *lines]))
    return path


def test_tasks_are_written_as_a_file_that_is_read(saelab, library, tmp_path):
    out = tmp_path / "python.jsonl.gz"
    ended = saelab("tasks", "--out", out, "--text", library, "--files", 60, "--examples", 100)
    assert ended.status == 0, ended.err
    tasks, _ = read_tasks(out)
    assert {"name: attribute", "block: in a loop", "letter: s"} <= {task.name for task in tasks}
    assert f"{out}: {len(tasks)} tasks on" in ended.out
    assert max(len(task) for task in tasks) <= 100
    assert ended.out.count("note: the task") == 3
    assert "more tasks without enough examples" in ended.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "tasks.json"], "--out must end in .jsonl.gz"),
        (["--out", "t.jsonl.gz", "--files", "0"], "files must be at least 1, got 0"),
        (["--out", "t.jsonl.gz", "--text", "nowhere"], "there is no file or folder 'nowhere'"),
    ],
)
def test_wrong_words_are_said(saelab, words, says):
    ended = saelab("tasks", *words)
    assert ended.status == 2
    assert says in ended.complaint


def test_a_run_is_probed_on_a_file_of_tasks(saelab, trained, mood, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    words = ["measure", tmp_path / "run", "--tokens", 50, "--metrics", "ProbeLoss"]
    ended = saelab(*words, "--tasks", mood)
    assert ended.status == 0, ended.err
    found = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert 0 < found["probe_loss"]["value"] < 2
    assert "mean of 1 tasks" in found["probe_loss"]["unit"]
    table = pyarrow.parquet.read_table(tmp_path / "run" / "tables" / "probes.parquet").to_pydict()
    assert table["task"] == ["mood"]
    assert 0 <= table["latent"][0] < 32
    ended = saelab(*words)
    assert "skipped ProbeLoss: needs labelled tasks: give --tasks" in ended.out
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == found
    twice = saelab(*words, "--tasks", mood, mood)
    assert twice.status == 2
    assert "two files have a task 'mood'" in twice.complaint


def test_a_bad_task_is_said_and_the_table_comes(saelab, trained, mood, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    lines = [json.dumps({"text": f"fox {n}", "label": n % 2, "task": "good"}) for n in range(80)]
    (tmp_path / "two.jsonl").write_text("\n".join([*lines, '{"text": "a", "label": 1, "task": "bad"}']))
    words = ["measure", tmp_path / "run", "--tokens", 50, "--metrics", "ProbeLoss", "--tasks", tmp_path / "two.jsonl"]
    ended = saelab(*words)
    assert ended.status == 0, ended.err
    assert "skipped task bad: the task 'bad' has one class only" in ended.out
    assert "task bad" in json.loads((tmp_path / "run" / "measured.json").read_text())["skipped"]
    assert "probe_loss" in ended.out


def test_a_file_without_a_usable_task_is_said_and_the_table_comes(saelab, trained, mood, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(f"fox {n},yes\n" for n in range(40)))
    why = f"skipped task one.csv: {tmp_path / 'one.csv'} has no task that can be used: the task 'one' has one class"
    words = [
        "measure",
        tmp_path / "run",
        "--tokens",
        50,
        "--metrics",
        "ProbeLoss",
        "L0",
        "--tasks",
        tmp_path / "one.csv",
    ]
    alone, beside = saelab(*words), saelab(*words, mood)
    assert alone.status == beside.status == 0
    assert why in alone.out
    assert why in beside.out
    assert "l0" in alone.out
    assert "skipped ProbeLoss: needs labelled tasks" in alone.out
    assert "probe_loss" in beside.out


def test_tasks_are_not_read_for_metrics_that_need_none(saelab, trained, store, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    words = ["measure", tmp_path / "run", "--store", store, "--metrics", "L0", "--tasks", tmp_path / "none.csv"]
    assert saelab(*words).status == 0
