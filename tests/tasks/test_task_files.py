"""Files of tasks: every format, what makes a task, and what is wrong with a file in one line."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from saelab.metrics import TextEvaluation, measure
from saelab.models.subject import Subject
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE
from saelab.tasks.files import read_tasks, tasks_of, write_lines
from saelab.tasks.task import WHOLE, Task, Texts, balanced

PROBES = Path(__file__).resolve().parents[4] / "shared" / "probes"


def examples(n: int = 60, labels: tuple[str, ...] = ("neg", "pos")) -> list[dict]:
    return [{"text": f"text {number}", "label": labels[number % len(labels)]} for number in range(n)]


def written(folder: Path, ending: str, lines: list[dict]) -> Path:
    path = folder / f"mood{ending}"
    if ending == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0].keys())
            writer.writeheader()
            writer.writerows(lines)
    elif ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), path)
    else:
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_every_format_gives_the_same_task(tmp_path, ending):
    (task,), left_out = read_tasks(written(tmp_path, ending, examples()))
    assert left_out == {}
    assert (task.name, task.family, task.of_tokens) == ("mood: pos", "mood", False)
    for text, label in zip(task.text.tolist(), task.label.tolist(), strict=True):
        assert label == (int(task.texts.texts[text].split()[1]) % 2 == 1)
    for part in (task.test, ~task.test):
        assert task.label[part].sum() * 2 == part.sum()


def test_three_classes_are_three_tasks_each_against_the_others():
    tasks, _ = tasks_of(examples(300, ("a", "b", "c")), "kinds.csv")
    assert [task.name for task in tasks] == ["kinds: a", "kinds: b", "kinds: c"]
    for task in tasks:
        numbers = torch.tensor([int(task.texts.texts[text].split()[1]) for text in task.text])
        assert (task.label == (numbers % 3 == "abc".index(task.name[-1]))).all()
        assert task.texts is tasks[0].texts


@pytest.mark.parametrize("labels", [(0, 1), (False, True), ("0", "1"), ("false", "TRUE"), (0.0, 1.0)])
def test_yes_and_no_make_one_task_named_like_the_file(labels):
    lines = [{"text": f"text {number}", "label": labels[number % 2]} for number in range(80)]
    (task,), _ = tasks_of(lines, "here.jsonl")
    assert task.name == "here"
    numbers = torch.tensor([int(task.texts.texts[text].split()[1]) for text in task.text])
    assert (task.label == (numbers % 2 == 1)).all()


def test_many_questions_about_one_text():
    lines = [
        {"text": f"abc {n}", "document": f"d{n}", "marks": {"m: x": [[0, 1], [2, 0]]}, "labels": {"odd": n % 2}}
        for n in range(80)
    ]
    marks, odd = tasks_of(lines, "f")[0]
    assert (marks.name, marks.of_tokens, odd.name, odd.of_tokens) == ("m: x", True, "odd", False)
    assert (marks.label == (marks.at == 0)).all()
    assert (odd.at == WHOLE).all()
    assert marks.texts is odd.texts


def test_a_document_is_in_one_part_and_a_split_is_kept():
    lines = [{**line, "doc": f"d{number // 3}"} for number, line in enumerate(examples(200))]
    (task,), _ = tasks_of(lines, "f")
    for group in task.group.unique():
        assert len(task.test[task.group == group].unique()) == 1
    told = [{**line, "split": "test" if number < 40 else "train"} for number, line in enumerate(examples(100))]
    (task,), _ = tasks_of(told, "f")
    numbers = torch.tensor([int(task.texts.texts[text].split()[1]) for text in task.text])
    assert (task.test == (numbers < 40)).all()
    assert task.test.sum() == 40


def test_a_task_has_at_most_so_many_examples():
    (task,), _ = tasks_of(examples(1000), "f", most=200)
    assert len(task) == 200
    assert task.test.sum() == 100


def test_balanced_examples_are_as_many_of_each_class_in_each_part():
    generator = torch.Generator().manual_seed(0)
    label, test = torch.rand(500, generator=generator) < 0.1, torch.rand(500, generator=generator) < 0.3
    chosen = balanced(label, test, 10_000, torch.Generator().manual_seed(1))
    assert (chosen.diff() > 0).all()
    for part in (test, ~test):
        assert label[chosen][part[chosen]].sum() == (label & part).sum()
        assert (~label[chosen])[part[chosen]].sum() == (label & part).sum()


def test_what_is_written_is_read(tmp_path):
    write_lines(tmp_path / "mood.jsonl.gz", examples())
    again, _ = read_tasks(tmp_path / "mood.jsonl.gz")
    first = (tmp_path / "mood.jsonl.gz").read_bytes()
    write_lines(tmp_path / "mood.jsonl.gz", examples())
    assert (tmp_path / "mood.jsonl.gz").read_bytes() == first
    assert torch.equal(again[0].label, tasks_of(examples(), "mood")[0][0].label)


ROW = {"text": "x y", "label": "1"}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "has no task that can be used: the file is empty"),
        ([{"txt": "a", "label": 1}], "line 1, has no field 'text'; did you mean 'txt'?"),
        ([{"text": "a", "lable": 1}], "line 1, has no field 'label'; did you mean 'lable'?"),
        ([ROW, {"text": "a", "label": None}], "line 2, has an empty field 'label'"),
        ([ROW, {"text": 3, "label": 1}], "line 2, holds a int in the field 'text', expected text"),
        ([{**ROW, "at": 3}], "line 1, asks about character 3 of a text of 3"),
        ([{**ROW, "at": -2}], "line 1, asks about character -2"),
        ([{**ROW, "at": "end"}], "line 1, has 'end' as the place of a character, expected a whole number"),
        ([{**ROW, "label": ["a"]}], "line 1, has the label .*expected a word or a number"),
        ([{**ROW, "split": "tset"}], "line 1, has the split 'tset'; did you mean 'test'?"),
        ([{"text": "x", "marks": [1, 2]}], "line 1, has marks or labels in another form"),
        ([{"text": "x", "marks": {"a": [3]}}], "line 1, has marks or labels in another form"),
        (examples(50, ("pos",)), "the task 'mood' has one class only: every label is 'pos'"),
        (examples(6), "the task 'mood: pos' has . positive examples to train on, fewer than 8"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, lines, says):
    path = written(tmp_path, ".jsonl", lines)
    with pytest.raises(ValueError, match=says) as error:
        read_tasks(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"x", "its ending is none of .jsonl, .jsonl.gz, .csv, .parquet"),
        ("a.jsonl", b'{"text": \n', "line 1 is damaged: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: expected a table, got a list of 1"),
        ("a.jsonl.gz", b"no gzip", "is damaged or cut short"),
        ("a.parquet", b"no parquet", "is damaged or not Parquet"),
        ("a.csv", b"text,label\n\xff\xfe,1\n", "is not UTF-8 text"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        read_tasks(tmp_path / name)
    assert name in str(error.value)
    with pytest.raises(ValueError, match="there is no file of tasks"):
        read_tasks(tmp_path / "none.csv")


def test_one_bad_task_of_a_file_is_left_out_and_the_others_stay():
    tasks, left_out = tasks_of([*({**one, "task": "good"} for one in examples()), {**ROW, "task": "bad"}], "f")
    assert [task.name for task in tasks] == ["good: pos"]
    assert left_out == {"bad": "the task 'bad' has one class only: every label is '1'"}


def test_a_task_needs_both_classes_in_both_parts():
    n = 40
    label, test = torch.arange(n) % 2 == 0, torch.arange(n) < 20
    parts = (torch.zeros(n, dtype=torch.int64), torch.full((n,), WHOLE))
    Task("fine", Texts(("a",), "here"), *parts, label, test, torch.arange(n))
    with pytest.raises(ValueError, match="'poor' has 0 negative examples"):
        Task("poor", Texts(("a",), "here"), *parts, label | test, test, torch.arange(n))


@pytest.mark.skipif(not PROBES.is_dir(), reason="the collection of text tasks is not on this machine")
@pytest.mark.parametrize(
    ("name", "count"), [("sentiment-sentences", 1), ("subjectivity", 1), ("names-gender", 1), ("genre-masc", 19)]
)
def test_text_tasks_are_read(name, count):
    tasks, left_out = read_tasks(PROBES / f"{name}.jsonl.gz", most=200)
    assert len(tasks) == count
    assert all("documents" in why for why in left_out.values())  # two of the court's transcripts are all there is
    assert all(50 <= len(task) <= 200 for task in tasks)


@pytest.mark.skipif(not PROBES.is_dir(), reason="the collection of text tasks and models is not on this machine")
@pytest.mark.slow
def test_text_tasks_are_probed_through_an_english_model(tmp_path):
    """Through a model of 260 thousand parameters: more is known than chance, whoever answers."""
    (tmp_path / "text.txt").write_text("Once upon a time there was a little fox who liked to jump. " * 40)
    model = str(PROBES.parent / "models" / "stories260K")
    evaluation = TextEvaluation(Subject(model, "model.layers.2", str(tmp_path), seq_len=64), tokens=200, split="all")
    files = [PROBES / f"{name}.jsonl.gz" for name in ("subjectivity", "names-gender")]
    tasks = [task for file in files for task in read_tasks(file, 400)[0]]
    sae = SAE(evaluation.d_in, 128, TopK(k=8))
    sae.initialise(next(iter(evaluation.chunks(False))).x)
    found = measure({"sae": sae}, evaluation, ["ProbeLoss", "SparseProbing"], show=False, tasks=tasks)["sae"]
    assert found.skipped == {}
    assert found.scores["probe_loss"].value < 0.72
    assert found.scores["sparse_probing_full"].value > 0.6
