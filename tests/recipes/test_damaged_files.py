"""Files of a run that are damaged: one line that names the file, the place and what was expected."""

import json
import shutil

import pytest
import yaml

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
    commands = {"scores.json": ["show", run], "log.jsonl": fit, "config.yaml": ["train", "--resume", run]}
    command = commands.get(name, ["measure", run, "--tokens", 100])
    assert "nested more than 100 deep" in saelab(*command).complaint
    assert str(path) in saelab(*command).complaint


def test_null_for_a_components_option(saelab, run, tmp_path):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("k: 4\n", "k: null\n"))
    assert "TopK: k must be a whole number, got None" in saelab("train", "--resume", run).complaint
    assert (
        "TopK: k must be a whole number, got None"
        in saelab("train", "--config", path, "--out", tmp_path / "new").complaint
    )


@pytest.mark.parametrize(("format_", "word"), [(None, "null"), (9, "newer than 1; update")])
def test_the_format_of_a_config(saelab, run, tmp_path, format_, word):
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"format": format_}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    ended = saelab("train", "--config", tmp_path / "config.yaml", "--out", tmp_path / "new")
    assert ended.status == 2
    assert word in ended.err
    assert not (tmp_path / "new").exists()


def test_a_setting_of_another_kind(saelab, run):
    path = run / "config.yaml"
    before = path.read_text()
    path.write_text(before.replace("bf16: false", "bf16: 0"))
    assert path.read_text() != before
    assert str(path) in saelab("train", "--resume", run).complaint


def test_a_world_with_null_for_what_it_needs(saelab, tmp_path):
    train = ["train", "--out", tmp_path / "new", "--rows", 100, "--world"]
    for given in (
        ["SparseWorld", "--world.d_in", "null"],
        ['{"class_path": "SparseWorld", "init_args": {"d_in": null}}'],
    ):
        assert saelab(*train, *given).complaint == "saelab: --world: SparseWorld needs d_in, n_features, l0"
    said = saelab(*train, '{"class_path": "SparseWorld", "init_args": null}').complaint
    assert said == "saelab: --world: SparseWorld needs a table of init_args, not null"
    assert not (tmp_path / "new").exists()


def test_a_line_of_text_that_is_nested_without_end(saelab, tmp_path, tiny_llama):
    text = tmp_path / "deep.jsonl"
    text.write_text('{"text": "a b c"}\n{"text": ' + "[" * 10_000 + "]" * 10_000 + "}\n")
    model = ["--model", tiny_llama, "--site", "model.layers.0", "--text", text]
    said = saelab("harvest", "--out", tmp_path / "new", "--tokens", 100, *model).complaint
    assert said == (
        f"saelab: {text}, line 2 is damaged: not JSON (nested more than 100 deep); mend the line or take it out"
    )


def test_a_list_for_a_pair_of_a_stitch(saelab, run, tmp_path):
    (tmp_path / "stitched").mkdir()
    content = {"format": 1, "kind": "stitch", "saes": [], "pairs": [[]]}
    (tmp_path / "stitched" / "stitch.json").write_text(json.dumps(content))
    said = saelab("explore", run, tmp_path / "stitched", "--tokens", 100, "--export.to", tmp_path / "page").complaint
    assert said.startswith(
        f"saelab: {tmp_path}/stitched/stitch.json: pairs[0]: expected a table, got a list of 0; restore it"
    )


def test_an_interval_with_one_end(saelab, run):
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "unit": "share"}
    scores = run / "scores.json"
    scores.write_text(json.dumps({"fvu": score, "l0": score | {"low": None, "high": None}}))
    assert saelab("show", run).status == 0
    scores.write_text(json.dumps({"fvu": score | {"high": None}}))
    assert saelab("show", run).complaint.startswith(f"saelab: {scores}: fvu.high: expected a number, got null; restore")
