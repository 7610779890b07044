"""One sweep over the data: every SAE as if alone, what is skipped, what is refused."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from recipes.world import SITE
from sweeps import Rows, constant, random_sae

from saelab.metrics import Metric, Score, StoreEvaluation, TextEvaluation, measure
from saelab.metrics.base import Setting, View
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
    assert measured.skipped["Downstream"] == "needs a model, and this data is activations only"
    assert "fvu" in measured.scores
    assert not [name for name in measured.scores if name.startswith(("ce_", "kl"))]


def test_nothing_that_looks_at_one_sae_and_its_text_is_skipped_on_text(text):
    names = [name for name in Metric.variants() if Metric.named(name).__module__.count(".") == 2]
    # Of several SAEs, of longer rows, and of trained ones.
    names = sorted({*names} - {"Stability", "InformationScope", "DeadLatents"})
    assert measure({"sae": random_sae()}, text, names, show=False)["sae"].skipped == {}


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
    with pytest.raises(ValueError, match="narrow .*8 wide, .* 16"):
        measure({"right": random_sae(), "narrow": SAE(8, 16, TopK(k=2))}, rows, show=False)


@pytest.mark.parametrize("weight", ["W_dec", "b_dec", "W_enc"])
def test_an_sae_with_nan_weights_is_said_to_be_broken_and_the_others_are_measured(rows, weight):
    sae = random_sae()
    with torch.no_grad():
        getattr(sae.dictionary, weight).fill_(float("nan"))
    found = measure({"good": random_sae(), "broken": sae}, rows, show=False)
    assert found["broken"].broken == "broken reconstructs NaN or infinity; its weights are not finite"
    assert found["broken"].scores == {}
    assert found["good"].broken is None
    alone = measure({"good": random_sae()}, rows, show=False)["good"].scores
    assert {key: found["good"].scores[key] for key in alone} == alone
    assert all(key.startswith("stability") for key in found["good"].scores.keys() - alone.keys())
    with pytest.raises(ValueError, match="broken reconstructs NaN or infinity"):
        measure({"broken": sae}, rows, show=False)


def test_nan_activations_are_refused(rows):
    rows.x[7, 3] = float("nan")
    with pytest.raises(ValueError, match="activations .*NaN or infinity"):
        measure({"sae": random_sae()}, rows, show=False)


class Probe(Metric):
    """Notes what happens to it; fails where it is told to."""

    by_default = False
    calls: ClassVar[list[str]] = []

    def __init__(self, fail: str = "", sweeps: int = 1):
        self.fail, self.sweeps = fail, sweeps

    def note(self, what: str) -> None:
        self.calls.append(what)
        if self.fail == what:
            raise OSError(f"no {what}") if what == "update" else ValueError(f"no {what}")

    def begin(self, setting: Setting) -> None:
        assert setting.sae is setting.saes[setting.name]
        self.seen = setting.cache.setdefault("seen", [])
        self.seen.append(setting.name)
        self.note("begin")

    def update(self, view: View) -> None:
        self.note("update")

    def needs_another_pass(self) -> bool:
        self.note("again")
        self.sweeps -= 1
        return self.sweeps > 0

    def scores(self, sae: SAE) -> dict[str, Score]:
        self.note("scores")
        return {"probed": Score(1.0, None, None, len(self.seen), "SAEs")}


@pytest.fixture
def calls() -> list[str]:
    Probe.calls.clear()
    return Probe.calls


def test_a_metric_is_begun_shown_every_chunk_and_asked_whether_it_wants_more(rows, calls):
    found = measure({"sae": random_sae()}, rows, [{"name": "Probe", "sweeps": 2}], show=False)["sae"]
    sweep = ["update"] * 4 + ["again"]
    assert calls == ["begin", *sweep, *sweep, "scores"]
    assert found.scores["probed"].value == 1
    assert found.seconds.keys() == {"Probe", "(model)", "(encode and decode)"}


def test_what_one_metric_does_not_need_again_it_does_not_see_again(rows, calls):
    alone = measure({"sae": random_sae()}, rows, ["L0"], show=False)["sae"].scores
    assert (
        measure({"sae": random_sae()}, rows, ["L0", {"name": "Probe", "sweeps": 3}], show=False)["sae"].scores["l0"]
        == alone["l0"]
    )


def test_saes_of_one_measurement_know_each_other(rows, calls):
    found = measure({"one": random_sae(), "two": random_sae(seed=1)}, rows, ["Probe"], show=False)
    assert [one.scores["probed"].n for one in found.values()] == [2, 2]


@pytest.mark.parametrize("fail", ["begin", "update", "again", "scores"])
def test_a_metric_that_cannot_go_on_says_why_and_the_others_do(rows, calls, fail):
    found = measure({"sae": random_sae()}, rows, ["L0", {"name": "Probe", "fail": fail}], show=False)["sae"]
    assert found.skipped == {"Probe": f"no {fail}"}
    assert found.scores.keys() == {"l0"}
    assert calls[-1] == fail


def test_the_data_are_not_gone_through_for_metrics_of_the_dictionary(rows, monkeypatch):
    monkeypatch.setattr(Rows, "chunks", lambda self, need: pytest.fail("the data were gone through"))
    assert measure({"sae": random_sae()}, rows, ["NearestCosine"], show=False)["sae"].scores


def test_default_stands_for_what_runs_by_default(rows, calls):
    names = measure({"sae": random_sae()}, rows, None, show=False)["sae"].scores.keys()
    assert "probed" not in names
    assert measure({"sae": random_sae()}, rows, ["default", "Probe"], show=False)["sae"].scores.keys() == {
        *names, "probed"
    }  # fmt: skip
    assert measure({"sae": random_sae()}, rows, ["L0", "L0"], show=False)["sae"].scores.keys() == {"l0"}


def test_an_unknown_setting_of_a_metric_is_refused_with_the_near_miss(rows):
    with pytest.raises(ValueError, match="'sweep' of metric Probe.*'sweeps'"):
        measure({"sae": random_sae()}, rows, [{"name": "Probe", "sweep": 2}], show=False)


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
