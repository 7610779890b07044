"""A run's folder: made once, opened again, and clear about what it is not."""

import pytest

from saelab.core import run as module
from saelab.core.run import Run

CONFIG = {"sae": {"d_in": 8, "activation": {"name": "TopK", "k": 4}}, "seed": 0, "text": "grüße", "clip": None}


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_run_comes_back_with_its_config(tmp_path):
    made = Run.create(tmp_path / "a" / "run", CONFIG)
    assert Run.open(made.folder).config() == CONFIG
    assert list(Run.open(made.folder).config()) == list(CONFIG)


def test_the_readme_names_the_run_and_its_files(tmp_path):
    run = Run.create(tmp_path / "my-run", CONFIG)
    text = (run.folder / "README.md").read_text()
    assert "my-run" in text
    for path in (run.config_file, run.log_file, run.checkpoints, run.sae, run.scores_file, run.latents_file):
        assert f"`{path.name}" in text


def test_an_empty_folder_will_do(tmp_path):
    assert Run.create(tmp_path, CONFIG).config() == CONFIG


def test_a_run_is_never_written_over(tmp_path):
    Run.create(tmp_path / "run", CONFIG)
    with pytest.raises(ValueError, match="already: `saelab train --resume .*/run`"):
        Run.create(tmp_path / "run", CONFIG)


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="is not an empty folder; choose another"):
            Run.create(folder, CONFIG)


@pytest.mark.parametrize("file", ["README.md", "config.yaml"])
def test_making_a_run_can_be_killed_and_repeated(tmp_path, monkeypatch, file):
    real = module.write_text

    def killed(path, text):
        if path.name == file:
            raise Killed
        real(path, text)

    monkeypatch.setattr(module, "write_text", killed)
    with pytest.raises(Killed):
        Run.create(tmp_path / "run", CONFIG)
    monkeypatch.setattr(module, "write_text", real)
    again = Run(tmp_path / "run")
    if not again.config_file.exists():
        again = Run.create(tmp_path / "run", CONFIG)
    assert again.config() == CONFIG


@pytest.mark.parametrize("folder", ["nothing", "."])
def test_a_folder_without_a_run_is_said(tmp_path, folder):
    with pytest.raises(ValueError, match=r"is not a run: it has no config\.yaml"):
        Run.open(tmp_path / folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: 2\nseed: 0\n", r"config\.yaml has format 2, newer than 1"),
        ("seed: 0\n", r"config\.yaml has no format number"),
        ("- 1\n", r"config\.yaml: expected a table, got a list of 1"),
        ("a: [1\n", r"config\.yaml is damaged"),
        ("!!python/object/apply:os.getcwd []\n", r"config\.yaml is damaged"),
    ],
)
def test_a_bad_config_is_named(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Run.open(tmp_path)


def test_new_scores_take_the_place_of_earlier_ones(tmp_path):
    run = Run.create(tmp_path / "run", CONFIG)
    assert run.scores() == {}
    score = {"low": None, "high": None, "n": 8, "unit": ""}
    run.write_scores({"fvu": {"value": 0.5} | score, "l0": {"value": 4} | score})
    run.write_scores({"fvu": {"value": 0.25} | score})
    assert run.scores() == {"fvu": {"value": 0.25} | score}
