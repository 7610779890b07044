"""Published SAEs by name: loaded to the bit, opened as runs that keep what is left in them, read as folders are."""

import json
from pathlib import Path

import pytest
import torch
from interchange.hub_server import Hub
from interchange.test_hub import sae_lens
from safetensors.torch import save_file

import saelab
from saelab.core.files import write_json
from saelab.core.run import Run
from saelab.explorer.workspace import Workspace
from saelab.interchange import read
from saelab.runs import load, open_run, open_runs, place_of
from saelab.sae import SAE, Ensemble
from saelab.sae.activations.topk import TopK

pytest_plugins = ["interchange.local_hub"]


def made_run(folder: Path) -> Path:
    """A run of ours with all that a run may hold."""
    run = Run.create(folder, {"rows": 100})
    SAE(4, 16, TopK(2), seed=3).save(run.sae)
    write_json(run.source_file, {"model": "pycode-7m", "site": "model.layers.1", "text": "stdlib"})
    run.write_scores({"fvu": {"value": 0.2, "low": 0.1, "high": 0.3, "n": 5, "unit": "share"}})
    run.log_file.write_text("{}\n")
    (run.checkpoints / "step").mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, run.checkpoints / "step" / "state.safetensors")
    return folder


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_run_on_the_hub_loads_to_the_bit_and_opens_with_its_scores(hub: Hub, tmp_path):
    folder = made_run(tmp_path / "run")
    hub.add("me/mine", folder)
    assert same(saelab.load("hf:me/mine"), saelab.load(folder))
    run = open_run("hf:me/mine")
    assert (run.kind, run.title, run.name) == ("run", "hf:me/mine", "mine")
    assert same(run.load(), saelab.load(folder))
    assert run.origin == open_run(folder).origin
    assert run.scores == open_run(folder).scores
    assert not [file for file in hub.files() if "checkpoints" in file or "log" in file]
    run.files.write_scores({"l0": {"value": 2, "low": None, "high": None, "n": 5, "unit": "latents"}})
    assert open_run("hf:me/mine").scores.keys() == {"l0"}  # what is left in a run is there the next time
    assert open_run(f"hf:me/mine@{hub.repositories['me/mine'].refs['main']}").folder == run.folder


def test_a_saved_sae_and_an_ensemble_on_the_hub(hub: Hub, tmp_path):
    sae = SAE(4, 16, TopK(2))
    sae.save(tmp_path / "sae")
    Ensemble([sae, SAE(4, 16, TopK(2), seed=1)], "bagging").save(tmp_path / "both")
    hub.add("me/mine", tmp_path / "sae", "one/")
    hub.add("me/mine", tmp_path / "both", "both/")
    assert same(load("hf:me/mine/one"), sae)
    assert same(load("hf:me/mine/both"), load(tmp_path / "both"))
    assert [run.kind for run in open_runs(["hf:me/mine/one", "hf:me/mine/both"])] == ["sae", "ensemble"]


def test_another_librarys_files_go_through_the_readers_of_folders(hub: Hub, tmp_path):
    theirs = sae_lens(tmp_path / "theirs")
    hub.add("org/saes", theirs, "blocks.8/")
    sae, description = read(theirs)
    assert same(load("hf:org/saes/blocks.8"), sae)
    run = open_run("hf:org/saes/blocks.8")
    assert (run.made_by, run.name, run.is_run) == ("convert", "saes--blocks.8", True)
    assert same(run.load(), sae)
    commit = hub.repositories["org/saes"].refs["main"]
    assert run.config["convert"]["from"] == f"hf:org/saes/blocks.8@{commit}"
    assert run.config["convert"]["architecture"] == description.architecture
    assert list(Workspace([Path("hf:org/saes/blocks.8")]).members) == ["saes--blocks.8"]


def test_a_new_commit_is_another_run(hub: Hub, tmp_path):
    hub.add("org/saes", sae_lens(tmp_path / "old", 1))
    old = open_run("hf:org/saes")
    hub.add("org/saes", sae_lens(tmp_path / "new", 2))
    new = open_run("hf:org/saes")
    assert old.folder != new.folder
    assert not same(old.load(), new.load())


def test_a_name_of_the_index_brings_model_and_site(hub: Hub, tmp_path):
    theirs = sae_lens(tmp_path / "theirs", d_in=4)
    hub.add("jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs", theirs, "v5_32k_layer_8.pt/")
    run = open_run("gpt2-small-resid-post-v5-32k/blocks.8")
    assert (run.origin["model"], run.origin["site"]) == ("gpt2", "transformer.h.8")
    assert run.needed_subject().site == "transformer.h.8"
    assert same(saelab.load("gpt2-small-resid-post-v5-32k/blocks.8"), read(theirs)[0])
    place = "hf:jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs/v5_32k_layer_8.pt"
    assert open_run(place).origin == run.origin


def test_what_the_index_knows_better_than_the_file_counts(hub: Hub, tmp_path):
    theirs = sae_lens(tmp_path / "theirs")
    config = json.loads((theirs / "cfg.json").read_text())
    (theirs / "cfg.json").write_text(json.dumps(config | {"normalize_activations": "expected_average_only_in"}))
    hub.add("jbloom/Gemma-2b-Residual-Stream-SAEs", theirs, "gemma_2b_blocks.12.hook_resid_post_16384/")
    with pytest.raises(ValueError, match="expected_average_only_in"):
        read(theirs)
    found = load("gemma-2b-res-jb/blocks.12")
    assert found.scale.scale.item() == pytest.approx(1 / 0.21381938399317255)


def test_what_is_not_there_or_does_not_load_is_said_in_one_line(hub: Hub, tmp_path):
    with pytest.raises(ValueError, match="temporal-sae-gemma-2-2b/blocks.12.hook_resid_post cannot be loaded: a temp"):
        load("temporal-sae-gemma-2-2b")
    with pytest.raises(
        ValueError, match="there is no folder gpt2-small-res-jbb/x, and no published SAE of that name; "
    ):
        open_run("gpt2-small-res-jbb/x")
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        open_run("nowhere")
    hub.commit("org/saes", {"config.json": b"{}", "weights.bin": b""})
    with pytest.raises(ValueError, match="hf:org/saes holds no SAE"):
        load("hf:org/saes")
    hub.commit("org/saes", {"thing.pt": b"not a pickle"})
    with pytest.raises(ValueError, match="thing.pt is damaged"):
        open_run("hf:org/saes/thing.pt")
    assert not list((tmp_path / "cache").rglob("config.yaml"))  # nothing half-made stays


def test_a_folder_is_what_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path / "gpt2-small-res-jb")
    assert place_of("gpt2-small-res-jb") == Path("gpt2-small-res-jb")  # a folder goes before the index
    assert open_run(Path("gpt2-small-res-jb")).title == "gpt2-small-res-jb"
