"""Wrong input: one line that names what is wrong and the way out, exit status 2 or 1, and nothing half-written.

The first part is the list that the project was asked for; the second what else is easily done wrong.
"""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from recipes.world import SMALL, files
from safetensors.torch import load_file, save_file

from saelab import SAE
from saelab.core.files import read_tensors, write_tensors, write_whole
from saelab.data import store as store_module
from saelab.data.store import Store
from saelab.sae.activations.topk import TopK
from saelab.train.trainer import Trainer

pytest_plugins = ["models.conftest", "recipes.small_world"]


@dataclass
class World:
    """A folder of one's own with copies of a store and a run to break."""

    folder: Path
    patch: pytest.MonkeyPatch
    subject: list[str]

    def harvest(self, **other: str) -> list[str]:
        words = ["harvest", "--out", str(self.folder / "new"), "--tokens", "200", *self.subject]
        return words + [part for key, value in other.items() for part in (f"--{key}", value)]

    def train(self, *other: str) -> list[str]:
        words = ["train", "--out", str(self.folder / "new"), "--store", str(self.folder / "acts")]
        return [*words, "--rows", "1280", *SMALL, *other]

    @property
    def shard(self) -> Path:
        return self.folder / "acts" / "shard-00000.safetensors"

    def model(self, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
        """A copy of the tiny model with changed weights."""
        shutil.copytree(self.subject[1], self.folder / "model")
        weights = load_file(self.folder / "model" / "model.safetensors")
        change(weights)
        save_file(weights, self.folder / "model" / "model.safetensors", {"format": "pt"})
        return str(self.folder / "model")


@dataclass
class Wrong:
    """A wrong input: the words of the command, how it ends, and what its line has to say."""

    words: list[str]
    says: list[str]
    status: int = 2
    leaves: Callable[[World], None] | None = field(default=None)
    """Checks what is left; by default everything is as it was."""


Case = Callable[[World], Wrong]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


@case
def unknown_option(world):
    return Wrong(world.harvest(tokns="3"), ["unknown option --tokns", "did you mean --tokens?"])


@case
def option_without_its_prefix(world):
    return Wrong(world.train("--lr", "1"), ["unknown option --lr", "did you mean --trainer.lr?"])


@case
def site_that_does_not_exist(world):
    words = world.harvest(site="model.layer.1")
    return Wrong(words, ["has no module 'model.layer.1'", "closest: model.layers.1", "model.layers.2"])


@case
def side_that_does_not_exist(world):
    return Wrong(world.harvest(site="model.layers.1:inn"), ["'inn'", "neither in nor out"])


@case
def k_above_the_number_of_latents(world):
    words = world.train("--sae.n_latents", "16", "--sae.activation.k", "17")
    return Wrong(words, ["k must be from 1 to the number of latents, 16", "k=17"])


@case
def text_shorter_than_one_row(world):
    (world.folder / "short.txt").write_text("the fox")
    words = world.harvest(text=str(world.folder / "short.txt"), split="all")
    return Wrong(words, ["shorter than one row of 16", "more text or a smaller --seq_len"])


@case
def truncated_shard_on_training(world):
    world.shard.write_bytes(world.shard.read_bytes()[:-5])
    return Wrong(world.train(), [str(world.shard), "is truncated", "restore it from a copy or harvest again"])


@case
def truncated_shard_on_measuring(world):
    world.shard.write_bytes(world.shard.read_bytes()[:-5])
    words = ["measure", str(world.folder / "run"), "--store", str(world.folder / "acts")]
    return Wrong(words, [str(world.shard), "is truncated", "restore it from a copy or harvest again"])


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


@case
def damaged_shard_on_measuring(world):
    damage(world.shard)
    words = ["measure", str(world.folder / "run"), "--store", str(world.folder / "acts")]
    return Wrong(words, [str(world.shard), "is damaged (checksum)", "restore it from a copy or harvest again"])


@case
def damaged_shard_on_training(world):
    damage(world.shard)
    return Wrong(world.train(), [str(world.shard), "is damaged (checksum)", "restore it from a copy or harvest again"])


@case
def missing_shard(world):
    world.shard.unlink()
    return Wrong(world.train(), [str(world.shard), "is missing", "restore it from a copy or harvest again"])


@case
def harvesting_into_a_store_of_another_model(world):
    model = world.model(lambda weights: weights["lm_head.weight"].mul_(2))
    words = world.harvest(model=model, out=str(world.folder / "acts"), tokens="9999")
    return Wrong(words, [str(world.folder / "acts"), "holds a store with model", "choose another folder"])


@case
def measuring_on_a_store_of_another_site(world):
    manifest = json.loads((world.folder / "acts" / "manifest.json").read_text())
    manifest["origin"]["site"] = "model.layers.0"
    (world.folder / "acts" / "manifest.json").write_text(json.dumps(manifest))
    return Wrong(["measure", str(world.folder / "run"), "--store", str(world.folder / "acts")], ["site"])


@case
def measuring_on_a_store_of_another_model(world):
    manifest = json.loads((world.folder / "acts" / "manifest.json").read_text())
    manifest["origin"]["fingerprint"] = "0" * 64
    (world.folder / "acts" / "manifest.json").write_text(json.dumps(manifest))
    words = ["measure", str(world.folder / "run"), "--store", str(world.folder / "acts")]
    return Wrong(words, [str(world.folder / "run"), "was trained on another model", str(world.folder / "acts")])


@case
def checkpoint_of_a_newer_format(world):
    (path, *_) = (world.folder / "run" / "checkpoints").iterdir()
    tensors, about = read_tensors(path)
    write_tensors(path, tensors, about | {"format": 99})
    words = ["train", "--resume", str(world.folder / "run")]
    return Wrong(words, [str(path), "has format 99, newer than", "update saelab"])


@case
def sae_of_a_newer_format(world):
    path = world.folder / "run" / "sae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    words = ["measure", str(world.folder / "run"), "--store", str(world.folder / "acts")]
    return Wrong(words, [str(path), "has format 99, newer than", "update saelab"])


@case
def store_of_a_newer_format(world):
    path = world.folder / "acts" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    return Wrong(world.train(), [str(path), "has format 99, newer than", "update saelab"])


@case
def config_of_a_newer_format(world):
    (world.folder / "new.yaml").write_text("format: 99\n")
    words = world.train("--config", str(world.folder / "new.yaml"))
    return Wrong(words, ["format 99, newer than", "update saelab"])


@case
def run_of_a_newer_format(world):
    path = world.folder / "run" / "config.yaml"
    path.write_text(path.read_text().replace("format: 1", "format: 99"))
    return Wrong(["show", str(world.folder / "run")], [str(path), "has format 99, newer than", "update saelab"])


@case
def full_disk_while_harvesting(world):
    world.patch.setattr("saelab.models.harvest.SHARD_BYTES", 6400)
    world.patch.setattr("saelab.models.harvest.TOKENS_AT_ONCE", 64)
    real = store_module.write_tensors

    def full(opened):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def limited(path, *content):
        write_whole(path, full) if path.name == "shard-00001.safetensors" else real(path, *content)

    def leaves(world):
        store = Store(world.folder / "new")  # what was complete can be read, and nothing else is there
        assert sorted(files(world.folder / "new")) == ["manifest.json", "shard-00000.safetensors"]
        assert store.rows(0).isfinite().all()

    world.patch.setattr(store_module, "write_tensors", limited)
    says = ["the disk is full", "shard-00001", "Nothing was lost", "free some space and run the same again"]
    return Wrong(world.harvest(), says, status=1, leaves=leaves)


def nan(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")


@case
def nan_in_activations_while_harvesting(world):
    words = world.harvest(model=world.model(nan))
    return Wrong(words, ["the activations hold NaN or infinity", "token", "precision"])


@case
def nan_in_activations_while_training_on_a_live_model(world):
    words = ["train", "--out", str(world.folder / "new"), "--rows", "256", *SMALL, "--live.model", world.model(nan)]
    words += ["--live.site", "model.layers.1", "--live.text", world.subject[5], "--live.seq_len", "16"]
    return Wrong(words, ["gives NaN or infinity at model.layers.1", "--live.precision float32"])


@case
def nan_weights_of_a_saved_sae(world):
    sae = SAE(16, 8, TopK(k=2))
    with torch.no_grad():
        sae.dictionary.W_dec[0, 0] = float("nan")
        sae.dictionary.b_dec[0] = float("nan")
    sae.save(world.folder / "broken")
    words = ["measure", str(world.folder / "broken"), "--store", str(world.folder / "acts")]
    return Wrong(words, [str(world.folder / "broken"), "NaN or infinity"])


@case
def ctrl_c_while_training(world):
    real = Trainer.step
    world.patch.setattr(Trainer, "step", lambda self, batch: (signal.raise_signal(signal.SIGINT), real(self, batch))[1])

    def leaves(world):
        assert [path.name for path in (world.folder / "new" / "checkpoints").iterdir()] == ["step-00000001.safetensors"]

    says = ["stopped after step 1", f"`saelab train --resume {world.folder / 'new'}` resumes it"]
    return Wrong(world.train(), says, status=130, leaves=leaves)


def _interrupted(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a test before has left
    signal.raise_signal(signal.SIGINT)


@case
def ctrl_c_while_harvesting(world):
    world.patch.setattr("saelab.models.harvest.keep_rows", _interrupted)
    return Wrong(world.harvest(), ["run the same again", "resume"], status=130)


# ---- more ----


@case
def missing_store(world):
    words = world.train("--store", str(world.folder / "none"))
    return Wrong(words, [str(world.folder / "none"), "is not a store", "saelab harvest"])


@case
def no_store_at_all(world):
    words = ["train", "--out", str(world.folder / "new")]
    return Wrong(words, ["--store DIR", "--live.model, --live.site and --live.text"])


@case
def no_place_for_the_run(world):
    return Wrong(["train", "--store", str(world.folder / "acts")], ["--out is missing", "--resume RUN"])


@case
def run_that_exists(world):
    words = world.train("--out", str(world.folder / "run"))
    return Wrong(words, [str(world.folder / "run"), "holds a run already", "--resume", "another --out"])


@case
def folder_that_holds_something_else(world):
    words = world.train("--out", str(world.folder / "acts"))
    return Wrong(words, [str(world.folder / "acts"), "is not an empty folder", "choose another"])


@case
def missing_run(world):
    words = ["show", str(world.folder / "none")]
    return Wrong(words, [str(world.folder / "none"), "there is no folder", "give the folders of runs"])


@case
def run_that_is_not_finished(world):
    shutil.rmtree(world.folder / "run" / "sae")
    words = ["measure", str(world.folder / "run"), "--store", str(world.folder / "acts")]
    return Wrong(words, [str(world.folder / "run"), "not finished", "--resume"])


@case
def harvesting_into_a_run(world):
    words = world.harvest(out=str(world.folder / "run"))
    return Wrong(words, [str(world.folder / "run"), "is not a store", "choose another folder"])


@case
def model_that_does_not_exist(world):
    return Wrong(world.harvest(model="./none"), ["there is no folder './none'"])


@case
def text_that_does_not_exist(world):
    words = world.harvest(text=str(world.folder / "actts"))
    return Wrong(words, [str(world.folder / "actts"), "did you mean 'acts'?"])


@case
def unknown_split(world):
    return Wrong(world.harvest(split="held_out"), ["unknown split 'held_out'", "did you mean 'held-out'?"])


@case
def unknown_dtype(world):
    return Wrong(world.harvest(dtype="bf61"), ["unknown dtype 'bf61'", "did you mean 'bf16'?"])


@case
def rows_longer_than_the_model_takes(world):
    return Wrong(world.harvest(seq_len="17"), ["rows of 17 tokens", "at most 16"])


@case
def rows_of_no_tokens(world):
    return Wrong(world.harvest(seq_len="0"), ["seq_len must be at least 2, got 0"])


@case
def no_tokens_to_harvest(world):
    return Wrong(world.harvest(tokens="0"), ["tokens must be at least 1, got 0"])


@case
def no_rows_to_train_on(world):
    return Wrong(world.train("--rows", "0"), ["rows must be at least 1, got 0"])


@case
def log_every_zero(world):
    return Wrong(world.train("--log_every", "0"), ["log_every must be at least 1"])


@case
def save_every_zero(world):
    return Wrong(world.train("--save_every", "0"), ["save_every must be at least 1"])


@case
def unknown_device_to_train_on(world):
    return Wrong(world.train("--device", "gpu7"), ["gpu7"])


@case
def unknown_device_to_measure_on(world):
    words = ["measure", str(world.folder / "run"), "--store", str(world.folder / "acts"), "--device", "gpu7"]
    return Wrong(words, ["gpu7"])


@case
def learning_rate_of_zero(world):
    return Wrong(world.train("--trainer.lr", "0"), ["lr must be positive, got 0"])


@case
def file_in_the_place_of_the_stores_folder(world):
    (world.folder / "file").write_text("mine")
    return Wrong(world.harvest(out=str(world.folder / "file")), [str(world.folder / "file")])


@case
def file_in_the_place_of_the_runs_folder(world):
    (world.folder / "file").write_text("mine")
    return Wrong(world.train("--out", str(world.folder / "file")), [str(world.folder / "file"), "another --out"])


@case
def folder_below_a_file(world):
    (world.folder / "file").write_text("mine")
    return Wrong(world.harvest(out=str(world.folder / "file" / "new")), [str(world.folder / "file")], status=1)


@case
def sae_of_another_width(world):
    SAE(8, 16, TopK(k=2)).save(world.folder / "narrow")
    words = ["measure", str(world.folder / "narrow"), "--store", str(world.folder / "acts")]
    return Wrong(words, [str(world.folder / "narrow"), "8 wide", "16"])


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_gets_one_clear_line(name, saelab, store, trained, subject_words, tmp_path, monkeypatch):
    shutil.copytree(store, tmp_path / "acts")
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path, monkeypatch, subject_words)
    wrong = CASES[name](world)
    before = files(tmp_path)
    ended = saelab(*wrong.words)
    assert ended.status == wrong.status, ended.err
    for words in wrong.says:
        assert words in ended.complaint
    assert len(ended.complaint) < 600
    if wrong.leaves:
        wrong.leaves(world)
    else:
        assert files(tmp_path) == before
        assert not (tmp_path / "new").exists()
