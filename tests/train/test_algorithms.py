"""What every training algorithm and optimizer must do, over all that are found: configs, options, exact resume."""

# Shape letters: B rows of a batch, D input width, L latents.

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from recipes.world import SMALL
from torch import Tensor

from saelab.core.files import read_tensors, write_tensors
from saelab.core.log import read_log
from saelab.data import Batch
from saelab.data.store import StoreWriter
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.train import Trainer, checkpoint
from saelab.train.algorithm import Algorithm
from saelab.train.optimizer import Optimizer
from saelab.train.ramp import Ramp

pytest_plugins = ["recipes.small_world"]

B, D, L = 16, 6, 40
LOUD = {
    "Resampling": {"every": 3 * B, "dead_after": 2 * B},
    "BiasAdaptation": {"every": 3 * B, "rate": 0.3},
    "ClosedFormDecoder": {"every": 3 * B, "rows": 5 * B, "mu": 0.1},
}
"""Settings with which an algorithm acts within a few steps."""
SHAPED = {"algorithms": Algorithm, "optimizer": Optimizer, "ramps": Ramp}
ALL = [(option, name) for option, kind in SHAPED.items() for name in kind.variants()]
every_algorithm = pytest.mark.parametrize("name", Algorithm.variants())
every_optimizer = pytest.mark.parametrize("optimizer", Optimizer.variants())


def rows(seed: int) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed)) + 0.3


def make(names: list[str], optimizer: str = "Adam", **settings: object) -> Trainer:
    """A trainer of an SAE with five latents that cannot fire."""
    sae = SAE(D, L, ReLU(0.05))
    sae.initialise(torch.cat([rows(seed) for seed in range(4)]))
    with torch.no_grad():
        sae.dictionary.b_enc[:5] = -100.0
    algorithms = [Algorithm.named(name)(**LOUD.get(name, {})) for name in names]
    ramps = [Ramp("activation.l1", 0.2, 9)]
    made = Optimizer.named(optimizer)()
    return Trainer(sae, 3e-3, B, 2, 0.2, 1.0, 0.9, optimizer=made, algorithms=algorithms, ramps=ramps, **settings)  # type: ignore[arg-type]


def trained(trainer: Trainer, first: int, last: int) -> Trainer:
    for step in range(first, last):
        trainer.step(Batch(rows(step)))
    return trainer


def everything(trainer: Trainer, folder: Path) -> dict[str, Tensor]:
    return read_tensors(checkpoint.save(folder, trainer, {}))[0]


def test_what_there_is():
    assert set(Optimizer.variants()) >= {"Adam", "Signum", "Muon"}
    assert set(Algorithm.variants()) >= set(LOUD)


@pytest.mark.parametrize(("option", "name"), ALL)
def test_a_config_rebuilds_it(option, name):
    kind = SHAPED[option]
    needed = {"setting": "activation.k", "start": 3.0, "steps": 2} if name == "Ramp" else {}
    config = json.loads(json.dumps(kind.named(name)(**needed).config()))
    assert kind.build(config).config() == config


@pytest.mark.parametrize(("option", "name"), ALL)
def test_every_setting_is_described(saelab, option, name):
    ended = saelab("train", f"--trainer.{option}.help", name)
    assert ended.status == 0
    for setting in SHAPED[option].named(name).options():
        described = ended.out.partition(f".{setting} ")[2]
        assert described, setting
        assert described.split("(type:")[0].strip(" \nA-Z_"), setting


@every_algorithm
def test_it_acts_and_stays_finite(name):
    found, plain = (trained(make(names), 0, 8).sae.state_dict() for names in ([name], []))
    assert all(torch.isfinite(value).all() for value in found.values())
    assert any(not torch.equal(value, plain[key]) for key, value in found.items())


@every_optimizer
@pytest.mark.parametrize("names", [*[[name] for name in LOUD], list(LOUD), []], ids="+".join)
def test_a_restored_trainer_goes_on_bit_for_bit(tmp_path, optimizer, names):
    whole = trained(make(names, optimizer), 0, 5)
    checkpoint.save(tmp_path / "half", whole, {})
    again = make(names, optimizer)
    for parameter in again.sae.parameters():
        parameter.data.normal_()
    checkpoint.restore(checkpoint.newest(tmp_path / "half"), again)
    torch.manual_seed(1)
    trained(again, 5, 11)
    torch.manual_seed(2)
    trained(whole, 5, 11)
    found, expected = everything(again, tmp_path / "again"), everything(whole, tmp_path / "whole")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@every_algorithm
def test_its_state_in_a_checkpoint_has_to_fit(tmp_path, name):
    path = checkpoint.save(tmp_path, trained(make([name]), 0, 2), {})
    tensors, about = read_tensors(path)
    own = [key for key in tensors if key.startswith(f"algorithm.{name}.")]
    assert len(own) == len(list(make([name]).algorithms[0].buffers()))
    if own:
        write_tensors(path, {key: value for key, value in tensors.items() if key != own[0]}, about)
        with pytest.raises(ValueError, match=r"step-00000002\.safetensors does not fit"):
            checkpoint.restore(path, make([name]))


def test_other_settings_are_refused(tmp_path):
    path = checkpoint.save(tmp_path, trained(make(["Resampling"]), 0, 2), {})
    with pytest.raises(ValueError, match=r"algorithms = .*Resampling.*has \[\]"):
        checkpoint.restore(path, make([]))
    with pytest.raises(ValueError, match="optimizer = .*Adam.*has .*Signum"):
        checkpoint.restore(path, make(["Resampling"], "Signum"))
    other = make(["Resampling"])
    other.ramps[0].steps = 10
    with pytest.raises(ValueError, match="ramps = .*9.*has .*10"):
        checkpoint.restore(path, other)


def test_an_algorithm_is_given_once():
    with pytest.raises(ValueError, match="Resampling is given 2 times"):
        make(["Resampling", "Resampling"])


@every_optimizer
def test_bf16_runs_and_keeps_float32(optimizer):
    trainer = trained(make(list(LOUD), optimizer, bf16=True), 0, 8)
    assert all(value.dtype != torch.bfloat16 for value in trainer.sae.state_dict().values())
    assert all(torch.isfinite(value).all() for value in trainer.sae.state_dict().values())


# The command line.


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "acts"
    writer = StoreWriter(folder, 8, "fp32", {})
    writer.append(torch.randn(600, 8, generator=torch.Generator().manual_seed(0)), 1, {})
    writer.finish()
    return folder


WORDS = [
    *SMALL, "--rows", "1280", "--trainer.optimizer", "Muon", "--trainer.optimizer.momentum", "0.5",
    "--trainer.algorithms+=Resampling", "--trainer.algorithms.every=256", "--trainer.algorithms.dead_after=128",
    "--trainer.algorithms+=BiasAdaptation", "--trainer.algorithms.every=384",
    "--trainer.algorithms+=ClosedFormDecoder", "--trainer.algorithms.every=512", "--trainer.algorithms.rows=300",
    "--trainer.ramps+=Ramp", "--trainer.ramps.setting=activation.k", "--trainer.ramps.start=16",
    "--trainer.ramps.steps=6",
]  # fmt: skip


def test_all_by_name_and_again_from_the_config(saelab, store, tmp_path):
    ended = saelab("train", "--store", store, "--out", tmp_path / "run", *WORDS)
    assert ended.status == 0, ended.err
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]
    assert config["optimizer"]["class_path"] == "Muon"
    assert config["optimizer"]["init_args"]["momentum"] == 0.5
    assert [one["class_path"] for one in config["algorithms"]] == ["Resampling", "BiasAdaptation", "ClosedFormDecoder"]
    assert [one["init_args"]["every"] for one in config["algorithms"]] == [256, 384, 512]
    assert config["ramps"][0]["init_args"] == {"setting": "activation.k", "start": 16.0, "steps": 6}
    assert [record["activation.k"] for record in read_log(tmp_path / "run" / "log.jsonl")] == [16, 14, 10, 6, 4, 4]
    ended = saelab("train", "--config", tmp_path / "run" / "config.yaml", "--out", tmp_path / "again")
    assert ended.status == 0, ended.err
    weights = [(tmp_path / run / "sae" / "weights.safetensors").read_bytes() for run in ("run", "again")]
    assert weights[0] == weights[1]


def test_the_config_names_the_default_optimizer(saelab, store, tmp_path):
    assert saelab("train", "--store", store, "--out", tmp_path / "run", *SMALL, "--rows", "128").status == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]
    assert config["optimizer"]["class_path"] == "Adam"
    defaults = {"beta1": 0.9, "beta2": 0.999, "epsilon": 6.25e-10, "moments": "float32", "touched": False}
    assert config["optimizer"]["init_args"] == defaults


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.optimizer", "Muo"], "--trainer.optimizer: unknown component 'Muo'; did you mean 'Muon'?"),
        (["--trainer.optimizer.beta", "1"], "unknown option 'beta'; did you mean 'beta"),
        (["--trainer.algorithms+=Resampler"], "unknown component 'Resampler'; did you mean 'Resampling'?"),
        (["--trainer.algorithms+=Resampling", "--trainer.algorithms.evry=2"], "'evry'; did you mean 'every'?"),
        (["--trainer.ramps+=Rampp"], "unknown component 'Rampp'; did you mean 'Ramp'?"),
        (["--trainer.ramps+=Ramp", "--trainer.ramps.setting=activation.kk", "--trainer.ramps.start=8",
          "--trainer.ramps.steps=3"], "no setting 'activation.kk' that is a number; did you mean 'activation.k'?"),
        (["--trainer.ramps+=Ramp"], "Ramp needs setting, start, steps"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_with_the_near_miss(saelab, store, tmp_path, words, message):
    ended = saelab("train", "--store", store, "--out", tmp_path / "run", *SMALL, *words)
    assert ended.status == 2
    assert message in ended.complaint
    assert not (tmp_path / "run").exists()


def test_what_will_have_no_effect_is_said(saelab, store, tmp_path):
    words = [word for name in LOUD for word in (f"--trainer.algorithms+={name}",)]
    ended = saelab("train", "--store", store, "--out", tmp_path / "run", *SMALL, "--rows", "128", *words)
    assert ended.status == 0, ended.err
    for note in ("Resampling has no effect", "BiasAdaptation keeps biases at 0", "ClosedFormDecoder never refits"):
        assert f"note: {note}: 128 rows are less than one round" in ended.out


@pytest.mark.parametrize("text", [
    "optimizer: trapped.Trap",
    "optimizer: {class_path: trapped.Trap}",
    "algorithms: [trapped.Trap]",
    "algorithms: [{class_path: trapped.Trap}]",
    "ramps: [{class_path: trapped.Trap}]",
])  # fmt: skip
def test_a_class_that_a_config_names_is_not_imported(saelab, store, tmp_path, monkeypatch, text):
    (tmp_path / "trapped.py").write_text("class Trap:\n    def __init__(self): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.yaml").write_text(f"trainer:\n  {text}\n")
    ended = saelab("train", "--store", store, "--config", tmp_path / "evil.yaml", "--out", tmp_path / "run", *SMALL)
    assert ended.status == 2
    assert "trapped" not in sys.modules
    assert not (tmp_path / "run").exists()
