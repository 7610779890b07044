"""Training from Python as the command line does: the same settings on disk, the same weights; earlier runs resume."""

from pathlib import Path

import pytest
import yaml

from saelab.cli import main
from saelab.core.run import Run
from saelab.data.synthetic import HierarchicalWorld
from saelab.recipes.train_options import complete, parsed
from saelab.sae.activations import TopK
from saelab.train import SAEConfig, TrainConfig, TrainerConfig, train_run
from saelab.train.job import resume_run

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
    run = Run.open(folder)
    resume_run(run, parsed(run.config(), "damaged"))
    for path in whole.sae.iterdir():
        assert (run.sae / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("source", [{"store": "/acts"}, {"live": {"model": "m", "site": "s", "text": "t"}}])
def test_defaults_are_those_of_the_command_line(source: dict[str, object]) -> None:
    settings = complete(dict(source))
    assert list(parsed(settings, "").settings().items()) == list(settings.items())
    own = TrainConfig(store="/acts").settings()
    assert {**own, "store": 0} == {**settings, "store": 0} or "live" in source


def test_settings_come_back_from_their_dump() -> None:
    settings = small().settings()
    assert (
        parsed(settings, "").settings()
        == settings
        == {k: v for k, v in yaml.safe_load(EARLIER).items() if k != "format"}
    )
