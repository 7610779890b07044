"""From text files to scores in seconds: harvest, train, measure, save, load, show, with a tiny model."""

import json

import torch
from recipes.world import SITE

import saelab as package
from saelab.core.run import Run
from saelab.data import StoreSource
from saelab.metrics import TextEvaluation, measure
from saelab.metrics.keep import keep_scores
from saelab.models.harvest import LiveSource, harvest
from saelab.models.subject import Subject
from saelab.recipes.show import show
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.train.trainer import Trainer

pytest_plugins = ["models.conftest", "recipes.small_world"]


def test_from_text_to_scores_and_back(tiny_llama, text_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("saelab.metrics.base.LEAST_DOCUMENTS", 2)  # there are few documents here
    subject = Subject(model=str(tiny_llama), site=SITE, text=str(text_folder), seq_len=16)
    model = subject.language_model()
    store = harvest(subject, tmp_path / "acts", 1500, model=model, show=False)

    source = StoreSource(store)
    sae = package.SAE(store.d_in, 64, TopK(k=4), [AuxK(dead_after=1000)])
    sae.initialise(source.sample(1000).float(), store.manifest.statistics())
    held_out = TextEvaluation(subject, 10**6, model=model)
    untrained = measure({"untrained": sae}, held_out, show=False)["untrained"].scores

    run = Run.create(tmp_path / "run", {"note": "tiny"})
    trainer = Trainer(sae, lr=3e-3, batch=128, warmup=10)
    trainer.fit(source, 128 * 150, run, show=False)
    measured = measure({"run": sae}, held_out, show=False)["run"]
    scores = measured.scores
    assert scores["fvu"].value < 0.75 * untrained["fvu"].value
    assert scores["fvu"].high < untrained["fvu"].low
    assert scores["kl"].value < untrained["kl"].value
    assert scores["l0"].value <= 4
    assert scores["dead"].value <= 1
    keep_scores(run, measured, held_out.origin())

    loaded = package.load(tmp_path / "run")
    rows = store.rows(0)[:50].float()
    assert torch.equal(loaded(rows), sae(rows))
    assert measure({"run": loaded}, held_out, show=False)["run"].scores == scores

    saved = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert saved["fvu"] == scores["fvu"].as_json()
    assert saved["ce_recovered"] == scores["ce_recovered"].as_json()
    capsys.readouterr()
    show([str(tmp_path / "run")])
    shown = capsys.readouterr().out
    assert "note: tiny" in shown
    assert f"{saved['fvu']['value']:.4g}" in shown


def test_a_live_model_trains_as_well_without_a_store(tiny_gpt2, text_folder, tmp_path):
    """Another family of models, another kind of site, and nothing on the disk."""
    subject = Subject(model=str(tiny_gpt2), site="transformer.h.1:in", text=str(text_folder), seq_len=16)
    source = LiveSource(subject, window_rows=512)
    sae = package.SAE(source.d_in, 48, TopK(k=3))
    sae.initialise(source.sample(500))
    held_out = TextEvaluation(subject, 10**6, model=source.model)
    before = measure({"sae": sae}, held_out, ["Reconstruction"], show=False)["sae"].scores["fvu"].value
    Trainer(sae, lr=3e-3, batch=128, warmup=10).fit(source, 128 * 60, show=False)
    after = measure({"sae": sae}, held_out, ["Reconstruction"], show=False)["sae"].scores["fvu"].value
    assert after < 0.8 * before
