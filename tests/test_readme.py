"""Every command of the README is executed, in the order in which it stands there, and so is its Python."""

import re
import shlex
import subprocess
import sys
from inspect import Parameter, signature
from pathlib import Path

import pytest

from saelab.cli import main
from saelab.metrics.n2g.explainability import N2G
from saelab.models.harvest import LiveSource
from saelab.models.loading import bundled_folder

ROOT = Path(__file__).parent.parent
SAE_WEIGHTS = {"config.json", "weights.safetensors"}
README = (ROOT / "README.md").read_text(encoding="utf-8")

# The hub cannot be reached in a test: the bundled model and a local file stand in for what would come from there.
STAND_INS = {"transformer.h.8": "model.layers.1", "hf:NeelNanda/pile-10k": "text.txt"}


@pytest.fixture
def less_of_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only says how much: of text before a run on the fly begins, of latents that patterns explain."""
    monkeypatch.setattr("saelab.train.step.SAMPLE_ROWS", 1 << 12)
    for function, name, less in ((LiveSource.__init__, "window_rows", 1 << 11), (N2G.__init__, "most", 3)):
        defaults = {key: option.default for key, option in signature(function).parameters.items()}
        assert defaults[name] > less
        given = (defaults | {name: less}).values()
        monkeypatch.setattr(function, "__defaults__", tuple(value for value in given if value is not Parameter.empty))


def blocks(language: str) -> list[str]:
    fenced = re.split(r"^```", README, flags=re.MULTILINE)[1::2]
    return [block.partition("\n")[2] for block in fenced if block.partition("\n")[0] == language]


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("less_of_the_same")
def test_readme_commands_and_python_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times.\n" * 300)
    stand_ins = STAND_INS | {"gpt2": str(bundled_folder())}
    assert len(commands()) >= 8
    for program, *words in commands():
        if program == "torchrun":
            subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], check=True, capture_output=True)
        else:
            assert program == "saelab"
            main([stand_ins.get(word, word) for word in words])
    assert {path.name for path in Path("runs/shared/sae").iterdir()} >= SAE_WEIGHTS
    printed = capsys.readouterr().out
    assert "ce_recovered" in printed
    assert "n_latents: 1024" in printed
    (source,) = blocks("python")
    exec(compile(source, "README.md", "exec"), {})  # noqa: S102 - our own text
    printed = capsys.readouterr().out
    assert "Codes(100 rows, 16 of 1024 latents kept, torch.float32)" in printed


def test_readme_make_targets_exist():
    named = set(re.findall(r"\bmake ([a-z]+)", " ".join(blocks(""))))
    assert named == {"quickstart", "test", "parity", "campaign"}
    makefile = (ROOT / "Makefile").read_text()
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_readme_tree_names_what_exists():
    (tree,) = [block for block in blocks("") if block.startswith("saelab/")]
    for folder in (
        "core",
        "kernels",
        "sae",
        "data",
        "models",
        "interchange",
        "metrics",
        "train",
        "analysis",
        "recipes",
        "assets/pycode-7m",
    ):
        assert f"{folder}/" in tree
        assert (ROOT / "saelab" / folder).is_dir()
    folders = ("saelab", "tests", "benchmarks", "campaigns", "parity", "tools")
    there = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}
    for file in re.findall(r"\b([a-z_]+\.py)\b", tree):
        assert file in there, file
