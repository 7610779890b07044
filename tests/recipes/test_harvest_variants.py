"""The command line on targets, several sites and averages: harvest, train, resume, measure."""

import json
from functools import partial

import pytest
from recipes.world import SITE, SMALL, files

from saelab import load
from saelab.core.log import read_log
from saelab.core.run import Run
from saelab.data.store import Store
from saelab.models.contexts import ContextSource
from saelab.models.harvest import LiveSource

pytest_plugins = ["models.conftest", "recipes.small_world"]

MLP = "model.layers.1.mlp"
QUICK = [*SMALL, "--rows", "1280"]


@pytest.fixture(autouse=True)
def small_samples_and_windows(monkeypatch):
    monkeypatch.setattr("saelab.train.step.SAMPLE_ROWS", 500)
    for kind in (LiveSource, ContextSource):
        monkeypatch.setattr(f"saelab.train.job.{kind.__name__}", partial(kind, window_rows=2048))


@pytest.fixture(scope="session")
def where(tiny_llama, text_folder) -> list[str]:
    """The options that say which model and text."""
    return ["--model", str(tiny_llama), "--text", str(text_folder), "--seq_len", "16"]


@pytest.fixture
def live(saelab, where, tmp_path):
    """Train on the live model with more options; the run's folder and how the command ended."""
    words = [word.replace("--", "--live.") if word.startswith("--") else word for word in where]

    def train(*more, name="run"):
        return tmp_path / name, saelab("train", "--out", tmp_path / name, *words, *QUICK, *more)

    return train


def test_a_skip_transcoder_is_trained_on_the_live_model_and_measured(live, saelab):
    words = ["--live.site", f"{MLP}:in", "--live.target", MLP, "--sae.dictionary", "Dense"]
    words += ["--sae.dictionary.skip_connection", "true", "--trainer.lr", "0.01"]
    run, ended = live(*words)
    assert ended.status == 0, ended.err
    sae = load(run)
    assert (sae.d_in, sae.d_out) == (16, 16)
    assert sae.dictionary.skip_connection
    assert json.loads((run / "source.json").read_text())["target"] == MLP
    ended = saelab("measure", run, "--tokens", 300)
    assert ended.status == 0, ended.err
    scores = Run.open(run).scores()
    assert scores["fvu"]["value"] < 1
    assert scores["kl"]["value"] < scores["kl_zero"]["value"]
    other = saelab("measure", run, "--tokens", 300, "--subject.target", SITE, "--subject.site", f"{MLP}:in",
                   *[word.replace("--", "--subject.") for word in run_words(run)])  # fmt: skip
    assert other.status == 2
    assert f"was trained on the target {MLP}" in other.complaint


def run_words(run) -> list[str]:
    source = json.loads((run / "source.json").read_text())
    return [word for key in ("model", "text", "seq_len") for word in (f"--{key}", str(source[key]))]


def test_a_store_with_targets_trains_a_transcoder(saelab, where, tmp_path):
    words = [*where, "--site", f"{MLP}:in", "--target", f"{MLP}.up_proj", "--tokens", "1000"]
    ended = saelab("harvest", "--out", tmp_path / "acts", *words)
    assert ended.status == 0, ended.err
    assert "rows of width 16 with targets of width 24 in 1 shards" in ended.out
    ended = saelab("train", "--store", tmp_path / "acts", "--out", tmp_path / "run", *QUICK)
    assert ended.status == 0, ended.err
    assert load(tmp_path / "run").d_out == 24
    ended = saelab("measure", tmp_path / "run", "--store", tmp_path / "acts")
    assert "fvu" in ended.out
    assert "skipped Downstream: needs a model" in ended.out


@pytest.mark.parametrize(
    ("dictionary", "site", "target"),
    [
        ("Crosscoder", "model.layers.0,model.layers.2", None),
        ("CrossLayer", "model.layers.0.mlp:in,model.layers.1.mlp:in", "model.layers.0.mlp,model.layers.1.mlp"),
    ],
)
def test_dictionaries_of_several_sites_are_trained_and_measured(live, saelab, dictionary, site, target):
    words = ["--live.site", site, "--sae.dictionary", dictionary, "--sae.dictionary.sites", "2"]
    run, ended = live(*words, *(["--live.target", target] if target else []))
    assert ended.status == 0, ended.err
    assert (load(run).d_in, load(run).d_out) == (32, 32 if target else None)
    ended = saelab("measure", run, "--tokens", 200)
    assert ended.status == 0, ended.err
    assert {"fvu", "kl", "ce_recovered"} <= Run.open(run).scores().keys()


def test_averages_are_harvested_trained_on_and_measured(saelab, where, tmp_path):
    words = [*where, "--site", SITE, "--average", "document", "--tokens", "10000"]
    ended = saelab("harvest", "--out", tmp_path / "acts", *words)
    assert ended.status == 0, ended.err
    assert Store(tmp_path / "acts").manifest.origin["average"] == "document"
    ended = saelab("train", "--store", tmp_path / "acts", "--out", tmp_path / "run", *QUICK)
    assert ended.status == 0, ended.err
    ended = saelab("measure", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert "skipped Downstream: needs rows that can be put back into the model" in ended.out
    assert "fvu" in Run.open(tmp_path / "run").scores()


def test_training_that_asks_the_model_equals_itself_resumed(live, saelab, monkeypatch):
    monkeypatch.setattr("saelab.train.checkpoint.KEPT", 99)
    words = ["--live.site", SITE, "--downstream", "kl,gradient", "--save_every", "4", "--sae.losses+", "EndToEnd"]
    run, ended = live(*words, "--sae.activation", "GradientTopK", "--sae.activation.k", "4")
    assert ended.status == 0, ended.err
    assert all(record["EndToEnd"] > 0 for record in read_log(run / "log.jsonl"))
    expected = files(run / "sae")
    first, *later = sorted((run / "checkpoints").iterdir())
    assert (first.name, len(later)) == ("step-00000004.safetensors", 2)
    for path in [*later, *(run / "sae").iterdir()]:
        path.unlink()
    ended = saelab("train", "--resume", run)
    assert ended.status == 0, ended.err
    assert files(run / "sae") == expected


def test_what_the_model_says_decides_what_is_learnt(live):
    """Another loss downstream, other weights."""
    words = ["--live.site", SITE, "--sae.losses", '[{"class_path": "EndToEnd", "init_args": {"weight": 0.5}}]']
    found = {}
    for brings in ("kl", "ce"):
        run, ended = live(*words, "--downstream", brings, name=brings)
        assert ended.status == 0, ended.err
        found[brings] = read_log(run / "log.jsonl")[-1]["EndToEnd"]
    assert found["ce"] > found["kl"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--live.site", SITE, "--downstream", "kll"], "unknown downstream 'kll'; did you mean 'kl'"),
        (["--live.site", SITE, "--sae.losses+", "EndToEnd"], "EndToEnd needs a live model"),
        (["--live.site", SITE, "--live.average", "turn"], "average"),
        (["--live.site", SITE, "--live.target", "model.layer.2"], "has no module 'model.layer.2'"),
        (["--live.site", SITE, "--live.average", "document", "--downstream", "kl"], "averaged rows cannot be put back"),
    ],
)
def test_wrong_settings_are_named(live, words, message):
    _, ended = live(*words)
    assert ended.status == 2
    assert message in ended.complaint


def test_a_store_knows_no_downstream(saelab, store, tmp_path):
    ended = saelab("train", "--store", store, "--out", tmp_path / "run", "--downstream", "kl", *QUICK)
    assert ended.status == 2
    assert "--downstream needs the model: give --live.model, ... instead of --store" in ended.complaint
    assert not (tmp_path / "run").exists()
