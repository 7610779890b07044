"""`saelab published` and `publish`, and commands that are given names of published SAEs."""

import json
from pathlib import Path

import pytest
from interchange.hub_server import TOKEN, Hub
from recipes.test_convert_command import foreign

from saelab import load

pytest_plugins = ["models.conftest", "recipes.small_world", "interchange.local_hub"]


def test_published_lists_what_words_and_options_leave(saelab):
    ended = saelab("published", "--model", "gpt2", "--site", "resid_post", "--width", "32k")
    assert ended.status == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].split()[:5] == ["name", "model", "site", "width", "L0"]
    assert lines[1].split() == [
        "gpt2-small-resid-post-v5-32k/blocks.0.hook_resid_post", "gpt2", "transformer.h.0", "32,768", "32", "sae_lens"
    ]  # fmt: skip
    assert len(lines) == 1 + 12 + 2
    assert lines[-2] == "12 of 13,857 published SAEs"
    assert lines[-1].startswith("from the registry of SAELens 6.54.12, 2026-11-28; `saelab convert NAME OUT`")


def test_published_takes_ranges_and_says_what_does_not_load(saelab):
    words = ("published", "gemma-scope-2b-pt-res/layer_12", "--width", "16384")
    every = saelab(*words).out.splitlines()[1:-2]
    some = saelab(*words, "--l0", "40-90").out.splitlines()[1:-2]
    assert [line.split()[4] for line in every] == ["176", "22", "41", "445", "82"]
    assert [line.split()[4] for line in some] == ["41", "82"]
    assert "temporal SAE reads earlier tokens" in saelab("published", "temporal").out
    assert saelab("published", "temporal", "--loads", "true").out.startswith("0 of 13,857")
    assert (
        "the first 2 are shown: give more words, or --limit 260"
        in saelab("published", "--model", "google/gemma-2-2b", "--limit", "2", "gemma-scope-2b-pt-att/").out
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "gpt3"), "no published SAE is of the model 'gpt3'"),
        (("--width", "wide"), "expected a number of latents, such as 16384 or 16k; got 'wide'"),
        (("--l0", "90-60"), "got '90-60'"),
        (("--l0", "few"), "--l0 takes a number or a range such as 40-80; got 'few'"),
    ],
)
def test_published_says_what_is_wrong(saelab, words, message):
    ended = saelab("published", *words)
    assert ended.status == 2
    assert message in ended.complaint


def test_a_run_is_published_and_measured_by_its_name(saelab, hub: Hub, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ended = saelab("publish", trained, "me/mine", "--license", "mit", "--also", "sae_lens")
    assert ended.status == 0, ended.err
    assert f'{hub.url}/me/mine: saelab.load("hf:me/mine") opens it' in ended.out
    ended = saelab("measure", "hf:me/mine", "--tokens", 60, "--metrics", "L0")
    assert ended.status == 0, ended.err
    assert "l0" in saelab("show", "hf:me/mine").out
    scores = next(path for path in (tmp_path / "cache").rglob("scores.json"))
    assert json.loads(scores.read_text())["l0"]["value"] == pytest.approx(4, abs=0.5)
    ended = saelab("convert", "hf:me/mine/sae_lens", tmp_path / "back")
    assert ended.status == 0, ended.err
    assert load(tmp_path / "back").n_latents == load(trained).n_latents
    ended = saelab("convert", "hf:me/mine", tmp_path / "theirs", "--to", "dictionary_learning")
    assert ended.status == 0, ended.err
    assert (tmp_path / "theirs" / "ae.pt").exists()


def test_publish_without_upload_writes_the_folder(saelab, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = saelab("publish", Path(trained).resolve(), "me/mine", "--dry_run", "true")
    assert ended.status == 0, ended.err
    assert "mine: README.md is the card" in ended.out
    assert (tmp_path / "mine" / "sae" / "weights.safetensors").exists()


def test_convert_takes_a_name_and_writes_down_the_commit(saelab, hub: Hub, tmp_path):
    commit = hub.add("org/saes", foreign(tmp_path / "theirs"), "blocks.8/")
    ended = saelab("convert", "hf:org/saes/blocks.8", tmp_path / "ours")
    assert ended.status == 0, ended.err
    assert f"from: hf:org/saes/blocks.8@{commit}" in (tmp_path / "ours" / "config.yaml").read_text()
    for name, status, message in (
        ("hf:org/saes/blocks.9", 2, "org/saes has no folder or file 'blocks.9'; did you mean 'blocks.8'?"),
        ("hf:org/none", 2, "the hub has no repository org/none"),
        ("gpt2-small-res-jb/blocks.77", 2, "gpt2-small-res-jb has no SAE 'blocks.77'"),
    ):
        ended = saelab("convert", name, tmp_path / "no")
        assert (ended.status, message in ended.complaint) == (status, True), ended.err
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "words",
    [("show",), ("measure",), ("explore",), ("figures",), ("convert", "OUT"), ("match", "hf:org/b", "--out", "OUT")],
)
def test_offline_is_said_by_every_command(saelab, tmp_path, words):
    command, *others = (str(tmp_path / "x") if word == "OUT" else word for word in words)
    ended = saelab(command, "hf:org/saes", *others)
    assert ended.status == 1
    assert "HF_HUB_OFFLINE is set, and the hub's cache has not all of hf:org/saes: unset it" in ended.complaint
