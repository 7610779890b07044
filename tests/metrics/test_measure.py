"""One sweep over the data: every SAE as if alone, what is skipped, what is refused."""

from pathlib import Path

import pytest
import torch
from recipes.world import SITE
from sweeps import Rows, constant, random_sae

from saelab.metrics import Metric, StoreEvaluation, TextEvaluation, measure
from saelab.models.subject import Subject
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE

pytest_plugins = ["models.conftest", "recipes.small_world"]


@pytest.fixture(scope="module")
def text(tiny_llama: Path, text_folder: Path) -> TextEvaluation:
    return TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=60)


@pytest.fixture
def rows() -> Rows:
    return Rows(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)), torch.arange(200) // 10)


def test_two_saes_in_one_sweep_equal_each_alone(text):
    one, other = random_sae(seed=0), random_sae(n_latents=40, k=7, seed=1)
    both = measure({"one": one, "other": other}, text, show=False)
    for name, sae in (("one", one), ("other", other)):
        alone = measure({name: sae}, text, show=False)[name]
        assert both[name].scores == alone.scores
        assert both[name].latents.keys() == alone.latents.keys()
        for key, value in alone.latents.items():
            assert torch.equal(both[name].latents[key], value)
    assert both["one"].scores["fvu"] != both["other"].scores["fvu"]


def test_measuring_changes_nothing_and_repeats(text):
    sae = random_sae()
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    first = measure({"sae": sae}, text, show=False)["sae"].scores
    assert measure({"sae": sae}, text, show=False)["sae"].scores == first
    assert all(torch.equal(value, before[key]) for key, value in sae.state_dict().items())


def test_the_data_is_gone_through_once_for_all_saes(rows, monkeypatch):
    passes, real = [], Rows.chunks
    monkeypatch.setattr(Rows, "chunks", lambda self, need: passes.append(need) or real(self, need))
    measure({name: random_sae() for name in "abc"}, rows, show=False)
    assert passes == [False]


def test_what_needs_the_model_is_skipped_with_its_reason_on_a_store(store):
    measured = measure({"sae": random_sae()}, StoreEvaluation(store), show=False)["sae"]
    assert measured.skipped == {"Downstream": "needs a model, and this data is activations only"}
    assert "fvu" in measured.scores
    assert not [name for name in measured.scores if name.startswith(("ce_", "kl"))]


def test_nothing_is_skipped_on_text(text):
    assert measure({"sae": random_sae()}, text, show=False)["sae"].skipped == {}


def test_only_the_metrics_asked_for_are_run(text):
    assert measure({"sae": random_sae()}, text, ["L0"], show=False)["sae"].scores.keys() == {"l0"}
    assert measure({"sae": random_sae()}, text, [], show=False)["sae"].scores == {}


def test_the_upper_layers_are_run_only_where_a_metric_needs_them(text, monkeypatch):
    monkeypatch.setattr(text.model, "run", lambda ids: pytest.fail("the whole model was run"))
    assert measure({"sae": random_sae()}, text, ["L0", "Reconstruction"], show=False)["sae"].scores


@pytest.mark.parametrize(
    ("name", "hint"), [("L1", "did you mean 'L0'"), ("reconstruction", "did you mean 'Reconstruction'")]
)
def test_an_unknown_metric_is_refused_with_the_near_miss(rows, name, hint):
    with pytest.raises(ValueError, match=f"unknown metric '{name}'; {hint}"):
        measure({"sae": random_sae()}, rows, [name], show=False)


def test_an_sae_of_another_width_is_refused_by_name(rows):
    with pytest.raises(ValueError, match="narrow reads rows 8 wide, the data's are 16"):
        measure({"right": random_sae(), "narrow": SAE(8, 16, TopK(k=2))}, rows, show=False)


@pytest.mark.parametrize("weight", ["W_dec", "b_dec", "W_enc"])
def test_nan_weights_are_refused_by_the_saes_name(rows, weight):
    sae = random_sae()
    with torch.no_grad():
        getattr(sae.dictionary, weight).fill_(float("nan"))
    with pytest.raises(ValueError, match="broken reconstructs NaN or infinity"):
        measure({"good": random_sae(), "broken": sae}, rows, show=False)


def test_nan_activations_are_refused(rows):
    rows.x[7, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity; its weights or the activations are not finite"):
        measure({"sae": random_sae()}, rows, show=False)


def test_every_metric_is_found_by_its_class_name():
    assert {"DeadLatents", "Density", "Downstream", "L0", "NearestCosine", "Reconstruction"} <= set(Metric.variants())


def test_a_score_that_divides_by_zero_is_skipped_and_said(rows):
    """Nothing is reconstructed, so the bias of what is reconstructed has no value."""
    measured = measure({"nothing": constant(torch.zeros(16))}, rows, show=False)["nothing"]
    assert "divides by zero" in measured.skipped["relative_bias"]
    assert "relative_bias" not in measured.scores
    assert measured.scores["l2_ratio"].value == 0


def test_progress_is_shown_unless_told_otherwise(rows, capsys):
    measure({"sae": random_sae()}, rows, ["L0"])
    assert "measure: 200 tokens in" in capsys.readouterr().err
    measure({"sae": random_sae()}, rows, ["L0"], show=False)
    assert capsys.readouterr().err == ""
