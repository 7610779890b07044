"""Sweeps from Python: the bytes of the command line's, components as values, earlier folders gone on with."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import saelab
from saelab.cli import main
from saelab.data.synthetic import SparseWorld
from saelab.sae.activations import ReLU, TopK
from saelab.sae.scales import DataScale, LayerNorm
from saelab.train import SAEConfig, SweepConfig, TrainConfig, TrainerConfig, resume_sweep, sweep_run

WORDS = ["--world", "SparseWorld(8, 12, 2)", "--rows", "600", "--trainer.batch", "100", "--sae.n_latents", "40"]
WORDS += ["--log_every", "2", "--save_every", "3", "--device", "cpu", "--sae.activation.k", "3"]
VARY = {"sae.n_latents": [24, 40], "trainer.lr": [0.003, 1], "sae.losses.AuxK.weight": [0.5]}
TEXTS = ["sae.n_latents=24,40", "trainer.lr=0.003,1", "sae.losses.AuxK.weight=0.5"]


def base(**other: Any) -> TrainConfig:
    """The settings that WORDS spell."""
    sae, trainer = SAEConfig(n_latents=40, activation=TopK(k=3)), TrainerConfig(batch=100)
    world = SparseWorld(8, 12, 2)
    parts = {"rows": 600, "log_every": 2, "save_every": 3, "device": "cpu", "sae": sae, "trainer": trainer}
    return TrainConfig(world=world, **{**parts, **other})


def everything(folder: Path) -> dict[str, bytes]:
    """All files of a sweep but the logs, in which there are times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "log.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_sweep_from_python_is_that_of_the_command_line(tmp_path: Path) -> None:
    main(["sweep", "--out", str(tmp_path / "cli"), *WORDS, "--vary", *TEXTS])
    runs = sweep_run(SweepConfig(base(), VARY), tmp_path / "python")
    assert [run.folder.name for run in runs][1] == "n_latents24-lr1-weight0.5"
    wanted = everything(tmp_path / "cli")
    assert everything(tmp_path / "python") == wanted
    assert len([name for name in wanted if name.endswith(".safetensors")]) == 12  # of each of 4, two and the SAE
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SweepConfig(base(), VARY).settings(), sort_keys=False))
    main(["sweep", "--out", str(tmp_path / "file"), "--config", str(tmp_path / "sweep.yaml")])
    assert everything(tmp_path / "file") == wanted


def test_what_the_docs_show_of_training_from_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "architecture.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page.name, "exec"), {})  # noqa: S102 - our own text
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir())[0] == "k2-lr0.001"


def test_components_may_vary(tmp_path: Path) -> None:
    config = SweepConfig(base(), {"sae.activation": [TopK(k=2), ReLU(l1=0.1)]})
    sweep_run(config, tmp_path / "sweep")
    assert saelab.load(tmp_path / "sweep" / "activationTopK").activation.k == 2  # type: ignore[union-attr]
    assert saelab.load(tmp_path / "sweep" / "activationReLU").activation.l1 == 0.1  # type: ignore[union-attr]


def test_a_sweep_that_was_begun_before_is_gone_on_with(tmp_path: Path) -> None:
    """Earlier ones kept values as they were typed, `lr: 1e-3`, which YAML reads as a text, and `activation: ReLU`."""
    vary = {"trainer.lr": ["1e-3"], "sae.activation": ["ReLU"]}
    sweep_run(SweepConfig(base(), vary), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "begun")
    member = tmp_path / "begun" / "lr1e-3-activationReLU"
    settings = yaml.safe_load((member / "config.yaml").read_text())
    settings["trainer"]["lr"], settings["sae"]["activation"] = "1e-3", "ReLU"
    for resume in (
        lambda: resume_sweep(tmp_path / "begun"),
        lambda: sweep_run(SweepConfig(base(), vary), member / ".."),
    ):
        (member / "config.yaml").write_text(yaml.safe_dump(settings))
        shutil.rmtree(member / "sae")
        shutil.rmtree(member / "checkpoints")
        resume()
        for path in (tmp_path / "whole" / member.name / "sae").iterdir():
            assert (member / "sae" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({}, "nothing varies"),
        ({"seed": [0, 1]}, "seed cannot vary: the members of a sweep see the same rows"),
        ({"world.noise": [0, 1]}, "world.noise cannot vary"),
        ({"sae.seed": 3}, "sae.seed varies over a list of values, got 3"),
        ({"sae.seed": "0,1"}, "sae.seed varies over a list of values, got '0,1'"),
        ({"sae.seeds": [1]}, "the member seeds1 of the sweep does not fit: unknown option 'seeds' of sae"),
        ({"sae.losses.AuxQ.weight": [1]}, "there is no AuxQ in these settings; did you mean 'AuxK'?"),
        ({"sae.n_latents.k": [1]}, "sae.n_latents.k: k is no setting of a int"),
    ],
)
def test_what_cannot_vary_is_said(vary: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        sweep_run(SweepConfig(base(), vary), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_scalings_are_groups_of_their_own(tmp_path):
    out = tmp_path / "sweep"
    config = SweepConfig(base(), {"sae.scale": [LayerNorm(), DataScale()], "sae.activation.k": [2, 3]})
    runs = {run.folder.name: saelab.load(run.folder) for run in sweep_run(config, out)}
    assert {name: type(sae.scale) for name, sae in runs.items()} == {
        "scaleLayerNorm-k2": LayerNorm, "scaleLayerNorm-k3": LayerNorm,
        "scaleDataScale-k2": DataScale, "scaleDataScale-k3": DataScale,
    }  # fmt: skip
    alone = SweepConfig(base(sae=SAEConfig(40, TopK(k=3), scale=LayerNorm())), {"sae.activation.k": [3]})
    (run,) = sweep_run(alone, tmp_path / "alone")
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(saelab.load(run.folder)(x), runs["scaleLayerNorm-k3"](x), rtol=1e-4, atol=1e-5)
