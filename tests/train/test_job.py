"""Training from Python as the command line does: the same settings on disk, the same weights; earlier runs resume."""

import inspect
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

from saelab.cli import main
from saelab.core.mesh import Mesh
from saelab.core.run import Run
from saelab.data.synthetic import HierarchicalWorld, SparseWorld
from saelab.sae import SAE
from saelab.sae.activations import TopK
from saelab.train import MeshConfig, SAEConfig, TrainConfig, Trainer, TrainerConfig, resume_run, train_run

NOT_SET = ("d_in", "d_out", "mesh", "sae")
"""What has no setting of its own: rows say widths, and one makes the other."""
# As saelab wrote it before there was a TrainConfig.
EARLIER = """\
format: 1
world:
  class_path: HierarchicalWorld
  init_args:
    d_in: 16
    n_features: 24
    l0: 4.0
    alpha: 0.0
    spread: 0.5
    noise: 0.0
    seed: 0
    branching:
    - 3
    chance: 0.25
    exclusive: false
rows: 1024
seed: 0
window_rows: 131072
device: cpu
log_every: 50
save_every: 4
tensorboard: false
sae:
  n_latents: 32
  activation:
    class_path: TopK
    init_args:
      k: 4
  losses:
  - class_path: AuxK
    init_args:
      weight: 0.03125
      share: 0.1
  seed: 0
trainer:
  batch: 128
  warmup: 100
  decay: 0.2
  bf16: false
  optimizer:
    class_path: Adam
    init_args:
      beta1: 0.9
      beta2: 0.999
      epsilon: 6.25e-10
      moments: float32
      touched: false
  algorithms: []
  ramps: []
mesh:
  replicas: 1
  shards: 1
"""


def small() -> TrainConfig:
    """The settings of EARLIER, written in Python."""
    return TrainConfig(
        world=HierarchicalWorld(d_in=16, n_features=24, l0=4.0),
        rows=1024,
        device="cpu",
        save_every=4,
        sae=SAEConfig(n_latents=32, activation=TopK(k=4)),
        trainer=TrainerConfig(batch=128),
    )


def run_cli(*words: str) -> None:
    main(list(words))


def test_python_trains_as_the_command_line_does(tmp_path: Path) -> None:
    (tmp_path / "earlier.yaml").write_text(EARLIER)
    run_cli("train", "--config", str(tmp_path / "earlier.yaml"), "--out", str(tmp_path / "cli"))
    train_run(small(), tmp_path / "python")
    names = {str(path.relative_to(tmp_path / "cli")) for path in (tmp_path / "cli").rglob("*") if path.is_file()}
    assert {"config.yaml", "source.json"} < names
    assert len([name for name in names if name.endswith(".safetensors")]) == 3  # two checkpoints, the SAE
    for name in names - {"README.md", "log.jsonl"}:  # these tell the folder's name and the time it took
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "cli" / name).read_bytes(), name
    assert (tmp_path / "cli" / "config.yaml").read_text() == EARLIER


def test_an_earlier_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = train_run(small(), tmp_path / "whole")
    folder = train_run(small(), tmp_path / "part").folder
    (folder / "checkpoints" / "step-00000008.safetensors").unlink()
    (folder / "config.yaml").write_text(EARLIER)
    for path in (folder / "sae").iterdir():
        path.unlink()
    run = resume_run(folder)
    for path in whole.sae.iterdir():
        assert (run.sae / path.name).read_bytes() == path.read_bytes()


def test_the_command_line_and_python_have_the_same_defaults(tmp_path: Path) -> None:
    run_cli("train", "--world", "SparseWorld(8, 12, 2)", "--rows", "100", "--out", str(tmp_path / "cli"))
    train_run(TrainConfig(world=SparseWorld(8, 12, 2), rows=100), tmp_path / "python")
    config = (tmp_path / "cli" / "config.yaml").read_text()
    assert config == (tmp_path / "python" / "config.yaml").read_text()
    assert "l0: 2.0\n" in config  # a whole number, where the option takes any


@pytest.mark.parametrize(("kind", "config"), [(SAE, SAEConfig), (Trainer, TrainerConfig), (Mesh, MeshConfig)])
def test_a_config_has_the_settings_of_what_it_is_for(kind: type, config: type) -> None:
    own = {part.name: part for part in fields(config)}
    theirs = inspect.signature(kind).parameters
    assert [name for name in theirs if name in own] == [name for name in theirs if name not in NOT_SET]
    assert own.keys() <= theirs.keys()
    for name, part in own.items():
        if part.default is not MISSING and theirs[name].default is not inspect.Parameter.empty:
            assert part.default == theirs[name].default, name


def test_settings_come_back_from_their_dump() -> None:
    settings = small().settings()
    assert settings == {k: v for k, v in yaml.safe_load(EARLIER).items() if k != "format"}
    assert TrainConfig.from_settings(settings).settings() == settings


def test_a_run_that_is_none_of_training_is_not_resumed(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"stitch": {}})
    with pytest.raises(ValueError, match="run/config.yaml is not .*'stitch'"):
        resume_run(run.folder)
