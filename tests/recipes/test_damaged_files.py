"""Files of a run that are damaged: one line that names the file, the place and what was expected."""

import json
import shutil

import pytest

pytest_plugins = ["models.conftest", "recipes.small_world"]


@pytest.fixture
def run(tmp_path, trained):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "members: expected a list of texts, got nothing"),
        ({"members": 3}, "members: expected a list of texts, got 3"),
        ({"members": [{}]}, "members[0]: expected a text, got a table of 0"),
        ({"members": [""]}, "members[0]: expected the name of a folder, got ''"),
        ({"members": ["../run"]}, "members[0]: expected the name of a folder, got '../run'"),
        ({"members": []}, "members: expected at least one name, each once"),
    ],
)
def test_a_list_of_members(saelab, tmp_path, content, words):
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    for command in (["sweep", "--resume", tmp_path], ["scaling", "fit", tmp_path, "--out", tmp_path / "new"]):
        assert saelab(*command).complaint.startswith(f"saelab: {tmp_path}/sweep.json: {words}; ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}", "step: expected a whole number, got nothing"),
        ('"text"', 'expected a table, got "text"'),
        ('{"step": "5"}', 'step: expected a whole number, got "5"'),
        ('{"step": 1, "fvu": []}', None),
        ('{"step": 1, "fvu": {}}', "fvu: expected a number or null or a list of whole numbers, got a table of 0"),
    ],
)
def test_a_line_of_the_log(saelab, run, line, words):
    log = run / "log.jsonl"
    log.write_text(f"{line}\n{log.read_text()}")
    ended = saelab("scaling", "fit", run, "--out", run / "new")
    if words:
        assert ended.complaint == f"saelab: {log}, line 1: {words}; remove that line"


@pytest.mark.parametrize("name", ["config.yaml", "scores.json", "log.jsonl", "source.json", "sae/config.json"])
def test_nesting_without_end(saelab, run, name):
    path = run / name
    path.write_text("[" * 10_000 + "\n")
    fit = ["scaling", "fit", run, "--out", run / "new"]
    command = {"scores.json": ["show", run], "log.jsonl": fit}.get(name, ["measure", run, "--tokens", 100])
    assert "nested more than 100 deep" in saelab(*command).complaint
    assert str(path) in saelab(*command).complaint


def test_null_for_a_components_option(saelab, run, tmp_path):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("k: 4\n", "k: null\n"))
    assert "TopK: k must be int, got None" in saelab("train", "--resume", run).complaint
    assert "TopK: k must be int, got None" in saelab("train", "--config", path, "--out", tmp_path / "new").complaint


def test_a_setting_of_another_kind(saelab, run):
    path = run / "config.yaml"
    before = path.read_text()
    path.write_text(before.replace("bf16: false", "bf16: 0"))
    assert path.read_text() != before
    assert str(path) in saelab("train", "--resume", run).complaint
