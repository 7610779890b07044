"""`saelab measure`: what is kept of one measurement after another, settings of metrics, a broken SAE."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from recipes.world import files

from saelab.core.files import read_tensors
from saelab.core.log import append_record, read_log
from saelab.core.run import Run
from saelab.data.store import StoreWriter
from saelab.metrics.base import Score
from saelab.metrics.keep import keep_scores
from saelab.metrics.measure import Measured
from saelab.recipes.measure import _trained_on_it, with_options
from saelab.runs import open_run
from saelab.sae.files import load

pytest_plugins = ["models.conftest", "recipes.small_world"]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def scores(run: Path) -> dict:
    return json.loads((run / "scores.json").read_text())


def test_metrics_measured_later_on_the_same_data_come_beside_the_earlier_ones(saelab, run, store):
    saelab("measure", run, "--store", store, "--metrics", "L0")
    first = scores(run)
    saelab("measure", run, "--store", store, "--metrics", "Reconstruction", "Density")
    assert scores(run).keys() > first.keys() | {"fvu", "silent"}
    assert scores(run)["l0"] == first["l0"]
    saelab("measure", run, "--store", store, "--metrics", "NearestCosine")
    assert read_tensors(run / "latents.safetensors")[0].keys() == {"density", "nearest_cosine"}


def test_scores_on_other_data_take_the_place_of_earlier_ones(saelab, run, store):
    """It is said once, not where there was nothing before or the data are the same; the log has what they were."""
    says = f"scores of {run} on other data were replaced"
    assert says not in saelab("measure", run, "--store", store, "--metrics", "Reconstruction").out
    fvu = scores(run)["fvu"]["value"]
    assert says not in saelab("measure", run, "--store", store, "--metrics", "Density").out
    assert (run / "latents.safetensors").exists()
    ended = saelab("measure", run, "--metrics", "L0", "--tokens", 50)
    assert ended.out.count(says) == 1
    assert scores(run).keys() == {"l0"}
    assert not (run / "latents.safetensors").exists()
    assert fvu in [line.get("measured.fvu") for line in read_log(run / "log.jsonl")]
    assert says not in saelab("measure", run, "--metrics", "L0", "--tokens", 50).out


@pytest.mark.parametrize("call", ["write_columns", "write_table", "write_json", "append_record"])
def test_a_measurement_that_is_cut_short_mixes_no_data(run, monkeypatch, call):
    def measured(value: float) -> Measured:
        found = Measured()
        found.scores["a"] = Score(value, None, None, 1, "share")
        found.tables["t"] = {"value": [value]}
        found.latents["l"] = torch.tensor([value])
        return found

    def cut(*words: object) -> None:
        raise KeyboardInterrupt

    keep_scores(Run(run), measured(1.0), {"store": "one"})
    with monkeypatch.context() as patch:
        patch.setattr(f"saelab.metrics.keep.{call}", cut)
        with pytest.raises(KeyboardInterrupt):
            keep_scores(Run(run), measured(2.0), {"store": "two"})
    other = Measured()
    other.scores["b"] = Score(3.0, None, None, 1, "share")
    keep_scores(Run(run), other, {"store": "one"})  # what is of the other data is gone, whatever was written of it
    assert scores(run).keys() == {"b"}
    assert not list((run / "tables").glob("*.parquet"))
    assert not (run / "latents.safetensors").exists()


def test_scores_are_kept_as_a_table_and_in_the_log_too(saelab, run, store):
    steps = len(read_log(run / "log.jsonl"))
    saelab("measure", run, "--store", store, "--metrics", "L0", "Reconstruction", "Downstream")
    table = {row["metric"]: row for row in pyarrow.parquet.read_table(run / "scores.parquet").to_pylist()}
    assert table.keys() == scores(run).keys()
    for key, score in scores(run).items():
        assert table[key] == {"sae": "run", "metric": key, "documents": None, **score}
    log = read_log(run / "log.jsonl")
    assert len(log) == steps + 1
    assert log[-1]["measured.fvu"] == scores(run)["fvu"]["value"]
    assert log[-1]["step"] == log[-2]["step"]
    about = json.loads((run / "measured.json").read_text())
    assert about["skipped"]["Downstream"].startswith("needs a model")
    assert log[-1]["seconds.L0"] >= 0


def test_what_was_computed_stays_when_it_cannot_be_computed_again(run):
    one = Score(1.0, None, None, 3, "tokens")
    run_ = Run.open(run)
    keep_scores(run_, Measured({"a": one, "b": one}, seconds={"A": 1.0}), {"text": "x"})
    keep_scores(run_, Measured({"c": one}, skipped={"A": "no endpoint", "b": "divides by zero"}), {"text": "x"})
    assert run_.scores().keys() == {"a", "c"}  # b has no value any more; what became of a is not known
    keep_scores(run_, Measured({"a": one, "b": one}, seconds={"A": 1.0}), {"text": "x"})
    assert json.loads(run_.measured_file.read_text())["skipped"] == {}


def test_a_run_without_a_log_gets_one(tmp_path):
    append_record(tmp_path / "log.jsonl", {"measured.fvu": 0.5})
    assert read_log(tmp_path / "log.jsonl") == [{"step": 0, "measured.fvu": 0.5}]


def test_a_broken_sae_is_told_and_the_rest_of_the_table_comes(saelab, run, store, tmp_path):
    broken = load(run)
    with torch.no_grad():
        broken.dictionary.W_dec.fill_(float("nan"))
    broken.save(tmp_path / "broken")
    ended = saelab("measure", run, tmp_path / "broken", "--store", store, "--metrics", "L0")
    assert ended.status == 2
    assert f"{tmp_path / 'broken'} reconstructs NaN or infinity" in ended.complaint
    assert "l0" in ended.out
    assert scores(run).keys() == {"l0"}


def test_settings_of_metrics_are_options(saelab, run, store):
    assert with_options(["L0", "default"], []) == ["L0", "default"]
    assert with_options(["L0", "Density"], ["Density.a=1", "Density.b=[x]"]) == [
        "L0", {"name": "Density", "a": 1, "b": ["x"]}
    ]  # fmt: skip
    for words, says in (
        (["Density"], "--options takes METRIC.SETTING=VALUE"),
        (["L0.cut=3"], "unknown key 'cut' of metric L0"),
        (["Densty.cut=3"], "unknown metric 'Densty'; did you mean 'Density'?"),
    ):
        ended = saelab("measure", run, "--store", store, "--options", *words)
        assert ended.status == 2
        assert says in ended.complaint
    ended = saelab("measure", run, "--store", store, "--metrics", "L0", "--options", "Density.cut=3")
    assert "has a setting for Density, which is not measured" in ended.complaint


def test_a_table_of_several_saes_says_on_how_many_tokens_it_stands(saelab, run, trained, store):
    ended = saelab("measure", run, run.parent / "run" / "sae", "--store", store, "--metrics", "L0", "--tokens", 200)
    (line,) = [line.split() for line in ended.out.splitlines() if line.startswith("l0")]
    assert line[-3:] == ["200", str(scores(run)["l0"]["documents"]), "latents"]


def own_store(folder: Path, seed: int) -> str:
    writer = StoreWriter(folder, 4, "fp32", {"made": "here"})
    writer.append(torch.randn(20, 4, generator=torch.Generator().manual_seed(seed)), 1, {})
    writer.finish()
    return str(folder)


def test_a_run_is_said_to_have_seen_only_what_it_was_trained_on(tmp_path):
    ours, other = own_store(tmp_path / "train", 0), own_store(tmp_path / "held-out", 1)
    made = Run.create(tmp_path / "run", {"store": ours})
    made.source_file.write_text(json.dumps({"made": "here"}))
    name = str(made.folder)
    # Both stores say the same of themselves, and hold other rows.
    assert _trained_on_it({name: open_run(name)}, {"made": "here"}, ours) == [f"note: {name} was trained on these rows"]
    assert _trained_on_it({name: open_run(name)}, {"made": "here"}, other) == []
    text = {"text": "stdlib", "field": "text", "split": "train", "seq_len": 64}
    made.source_file.write_text(json.dumps(text))
    for wanted, of in (
        (True, text | {"seq_len": 128}), (True, text | {"split": "all"}), (False, text | {"split": "held-out"}),
        (False, text | {"text": "other.txt"}), (False, {}),
    ):  # fmt: skip
        expected = [f"note: {name} was trained on these documents"] if wanted else []
        assert _trained_on_it({name: open_run(name)}, of, None) == expected
        assert _trained_on_it({name: open_run(name)}, of, other) == expected


def test_few_documents_are_said_in_place_of_an_interval_and_old_scores_still_read(saelab, run, store):
    words = ["--store", store, "--metrics", "Reconstruction", "NearestCosine", "--tokens"]
    ended = saelab("measure", run, *words, 30)
    (line,) = [line for line in ended.out.splitlines() if line.startswith("fvu ")]
    few = scores(run)["fvu"]
    assert 0 < few["documents"] < 20
    assert (few["low"], few["high"]) == (None, None)
    assert f"only {few['documents']} document" in line
    assert "documents" not in scores(run)["nearest_cosine"]
    ended = saelab("measure", run, *words, 2000)
    (line,) = [line.split() for line in ended.out.splitlines() if line.startswith("fvu ")]
    many = scores(run)["fvu"]
    assert many["documents"] >= 20
    assert many["low"] < many["value"] < many["high"]
    assert line[-3:] == ["2,000", str(many["documents"]), "share"]
    old = {key: {k: v for k, v in one.items() if k != "documents"} for key, one in scores(run).items()}
    (run / "scores.json").write_text(json.dumps(old))
    ended = saelab("show", run)
    assert ended.status == 0, ended.err
    assert f"{many['low']:.4g} to {many['high']:.4g}" in ended.out


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A finished store of rows that are not text, without columns and origin."""
    to = StoreWriter(tmp_path / "bare", 16, "fp32", {})
    for part in torch.randn(300, 16, generator=torch.Generator().manual_seed(0)).split(100):
        to.append(part, 1, {})
    to.finish()
    return tmp_path / "bare"


def test_rows_without_columns_are_measured_as_far_as_they_can_be(saelab, bare, run, tmp_path):
    options = ["--rows", 512, "--sae.n_latents", 32, "--sae.activation.k", 4, "--trainer.batch", 128]
    assert saelab("train", "--store", bare, "--out", tmp_path / "own", *options).status == 0
    ended = saelab("measure", tmp_path / "own", "--store", bare, "--metrics", "Reconstruction", "L0", "Downstream")
    assert ended.status == 0, ended.err
    assert scores(tmp_path / "own")["fvu"]["documents"] == 300
    assert "skipped Downstream: needs a model" in ended.out
    for words in (["measure", tmp_path / "own"], ["manifolds", tmp_path / "own", "--out", tmp_path / "m"]):
        ended = saelab(*words)
        assert ended.status == 2
        assert "does not say what it was trained on: give --store" in ended.complaint


def test_what_cannot_keep_scores_is_said_before_measuring_and_another_folder_does(
    saelab, run, store, tmp_path, monkeypatch
):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != run and real(path, mode))
    before = files(run)
    words = ["measure", run, "--store", store, "--metrics", "L0"]
    ended = saelab(*words)
    assert ended.status == 2
    assert ended.complaint == f"saelab: the scores cannot be written to {run}: give another folder with --out"
    assert ended.err.count("\n") == 1
    assert saelab(*words, "--out", tmp_path / "found").status == 0
    assert files(run) == before
    assert scores(tmp_path / "found" / "run").keys() == {"l0"}
    shutil.copytree(run, tmp_path / "other" / "run")
    twice = saelab("measure", run, tmp_path / "other" / "run", "--store", store, "--out", tmp_path / "found")
    assert "two runs have the same folder name" in twice.complaint
