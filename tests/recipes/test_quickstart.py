"""The quickstart at toy scale: the bundled model on a few files of the standard library."""

import json
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipes.world import die, files, in_process

import saelab as package
from saelab.models.text import is_held_out
from saelab.recipes import quickstart as module
from saelab.recipes.quickstart import SUBJECT, quickstart
from saelab.train.trainer import Trainer

pytest_plugins = ["recipes.small_world"]
pytestmark = pytest.mark.usefixtures("few_files")

TOY = {"tokens": 3000, "rows": 4000, "n_latents": 64, "k": 4, "measure_tokens": 600}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty files of the standard library, three of them held out: reading all of it takes long."""
    folder, held = tmp_path_factory.mktemp("library"), 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if not 3000 < len(text) < 30_000:
            continue
        held += is_held_out(text)
        if (is_held_out(text) and held <= 3) or (not is_held_out(text) and len(list(folder.iterdir())) < 17 + held):
            (folder / path.name).write_text(text, encoding="utf-8")
        if held >= 3:
            return folder
    raise AssertionError("this Python's library has hardly a file that is held out")


@pytest.fixture
def few_files(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUBJECT", replace(SUBJECT, text=str(library)))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, library: Path) -> tuple[Path, str]:
    """A finished quickstart's folder and what it printed."""
    folder = tmp_path_factory.mktemp("quick") / "start"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SUBJECT", replace(SUBJECT, text=str(library)))
        patch.setenv("COLUMNS", "100")
        said: list[str] = []
        patch.setattr("sys.stdout", _Kept(said))
        quickstart(str(folder), **TOY)
    return folder, "".join(said)


class _Kept:
    """Standard output as a list of strings; no terminal."""

    encoding = "utf-8"

    def __init__(self, said: list[str]):
        self.write = said.append

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def test_the_subject_is_the_bundled_model_on_the_standard_library():
    assert (SUBJECT.model, SUBJECT.site, SUBJECT.text) == ("pycode-7m", "model.layers.3", "stdlib")


def test_a_quickstart_prints_its_numbers_and_leaves_a_run(done):
    folder, printed = done
    scores = json.loads((folder / "scores.json").read_text())
    for metric in ("fvu", "l0", "dead", "ce_clean", "ce_sae", "ce_recovered"):
        assert f"{scores[metric]['value']:.4g}" in printed, metric
    assert "tokens per second" in printed
    assert scores["l0"]["value"] <= 4
    assert scores["fvu"]["n"] >= 600
    for name in ("README.md", "config.yaml", "log.jsonl", "source.json", "acts/manifest.json", "sae/config.json"):
        assert (folder / name).exists(), name
    sae = package.load(folder)
    assert (sae.d_in, sae.n_latents, sae.activation.k) == (256, 64, 4)


def test_latents_are_shown_with_the_code_that_excites_them(done):
    folder, printed = done
    latents = json.loads((folder / "latents.json").read_text())["latents"]
    assert 1 <= len(latents) <= 10
    for latent in latents:
        assert f"latent {latent['latent']}" in printed
        assert latent["label"] in printed
        assert 0 < latent["density"] <= 1
        assert latent["contexts"]
        assert latent["contexts"][0][1].strip()


def test_run_again_it_shows_the_same_without_training(done, monkeypatch, capsys):
    folder, printed = done
    before = files(folder)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("it trained again"))
    monkeypatch.setattr(module, "harvest", lambda *_, **__: pytest.fail("it harvested again"))
    monkeypatch.setenv("COLUMNS", "100")
    quickstart(str(folder), **TOY)
    assert capsys.readouterr().out == "".join(line for line in printed.splitlines(True) if "trained on" not in line)
    assert files(folder) == before


@pytest.mark.parametrize(
    "other",
    [
        {"k": 5},
        {"rows": 5000},
        {"n_latents": 65},
        {"seed": 1},
        {"tokens": 4000},
        {"measure_tokens": 700},
    ],
)
def test_other_settings_in_the_same_folder_are_refused(done, other):
    folder, _ = done
    before = files(folder)
    with pytest.raises(ValueError, match=f"{folder} holds .*another --out"):
        quickstart(str(folder), **(TOY | other))
    assert files(folder) == before


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder; choose another"):
        quickstart(str(tmp_path), **TOY)
    assert list(files(tmp_path)) == ["mine.txt"]


def killed_quickstart(folder: str, library: str, moment: str) -> None:
    """The target of a process: a quickstart that is killed in its training, or when it calls a function."""
    module.SUBJECT = replace(SUBJECT, text=library)
    if moment == "training":
        real = Trainer.step
        Trainer.step = lambda self, batch: die() if self.step_number == 2 else real(self, batch)  # type: ignore[method-assign]
    else:
        setattr(module, moment, die)
    quickstart(folder, **TOY)


@pytest.mark.parametrize("moment", ["training", "measure"])
def test_a_killed_quickstart_goes_on_and_ends_the_same(done, library, tmp_path, moment):
    """Killed at the third of four steps, and after the training."""
    folder, _ = done
    shutil.copytree(folder, tmp_path / "kept")  # the same name as the finished one, for its paths are in its files
    shutil.rmtree(folder)
    try:
        assert in_process(killed_quickstart, str(folder), str(library), moment) == -9
        assert not (folder / "scores.json").exists()
        quickstart(str(folder), **TOY)
        found, expected = files(folder), files(tmp_path / "kept")
        for name in expected:
            if name != "log.jsonl" and not name.startswith("checkpoints/"):
                assert found[name] == expected[name], name
        assert found.keys() == expected.keys()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "kept", folder)


def test_a_quickstart_can_be_repeated_and_resumed_as_any_run(done, tmp_path, saelab):
    folder, _ = done
    again = saelab("train", "--config", folder / "config.yaml", "--out", tmp_path / "again")
    assert again.status == 0, again.err
    assert files(tmp_path / "again" / "sae") == files(folder / "sae")
    before = files(folder / "sae")
    assert saelab("train", "--resume", folder).status == 0
    assert files(folder / "sae") == before
    assert torch.isfinite(package.load(folder).dictionary.directions()).all()
