"""Ablation sparsity: closed forms, planted effects, and passes with hooks of the test's own."""

import math
from pathlib import Path

import pytest
import torch
from recipes.world import SITE
from sweeps import constant, random_sae, values
from transformers import AutoModelForCausalLM

from saelab.metrics import TextEvaluation, measure
from saelab.metrics.causal.ablation_sparsity import reference_points, sparsity
from saelab.models.subject import Subject
from saelab.sae.sae import SAE

pytest_plugins = ["models.conftest", "recipes.small_world"]

LAYER = int(SITE.rsplit(".", 1)[1])
SETTING = {"name": "AblationSparsity", "positions": 12, "at_each": 3, "tokens": 4, "context": 12}


@pytest.fixture(scope="module")
def text(tiny_llama: Path, text_folder: Path) -> TextEvaluation:
    return TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=400, split="all")


def test_one_logit_is_the_sparsest_and_noise_is_as_dense_as_its_distribution():
    generator = torch.Generator().manual_seed(0)
    one_hot = torch.zeros(1, 16, 500)
    one_hot[0, 3, 77] = -5.0
    assert sparsity(one_hot).item() == pytest.approx(1 / 8000)
    normal = torch.randn(2, 16, 5000, generator=generator)
    assert sparsity(normal).tolist() == pytest.approx([2 / math.pi] * 2, abs=0.01)
    uniform = torch.rand(1, 16, 5000, generator=generator, dtype=torch.float64)
    laplace = -torch.sign(uniform - 0.5) * torch.log1p(-2 * (uniform - 0.5).abs())
    assert sparsity(laplace).item() == pytest.approx(0.5, abs=0.01)
    points = reference_points(8000)
    assert points == {"one logit": 1 / 8000, "Laplace": 0.5, "Gaussian": 2 / math.pi, "all alike": 1.0}


def test_no_effect_has_no_sparsity():
    assert math.isnan(sparsity(torch.zeros(1, 4, 9)).item())
    assert math.isnan(sparsity(torch.full((1, 4, 9), 3.0)).item())  # a shift of all logits is no effect


def test_a_shift_of_all_logits_and_the_size_of_an_effect_do_not_count():
    effect = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0))
    moved = effect * 3 + torch.randn(1, 4, 1, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sparsity(moved), sparsity(effect))


@torch.no_grad()
def test_against_passes_with_a_hook(text, tiny_llama, monkeypatch):
    monkeypatch.setattr("saelab.metrics.base.LEAST_DOCUMENTS", 2)
    sae, reference = random_sae(k=3), AutoModelForCausalLM.from_pretrained(tiny_llama).eval().double()
    sae.scale.set(torch.randn(16, generator=torch.Generator().manual_seed(2)), 0.7)
    found = measure({"sae": sae}, text, [SETTING], show=False)["sae"]
    table, ids = found.tables["ablation_sparsity"], text_rows(text)
    lines = list(zip(*table.values(), strict=True))
    candidates: list[list[float]] = [[] for _ in lines]
    for row, x in ids:
        codes = sae.encode(x).dense()
        for number_of_line, (kind, number, value, _) in enumerate(lines):
            entries = (codes if kind == "latent" else x)[:, int(number)]
            for place in torch.isclose(entries[1:], torch.tensor(value), atol=0).nonzero().flatten() + 1:
                direction = sae.dictionary.W_dec[int(number)] * 0.7 if kind == "latent" else torch.eye(16)[int(number)]
                candidates[number_of_line].append(by_hand(reference, row, int(place), value * direction))
    for found_by_hand, line in zip(candidates, lines, strict=True):
        # Contexts that begin alike have the same value at several places.
        assert any(one == pytest.approx(line[3], rel=1e-3) for one in found_by_hand), line
    counts = {kind: table["kind"].count(kind) for kind in ("latent", "channel")}
    assert counts["latent"] == counts["channel"] >= 24
    mean = sum(line[3] for line in lines if line[0] == "latent") / counts["latent"]
    assert found.scores["ablation_sparsity"].value == pytest.approx(mean)
    assert found.scores["ablation_sparsity"].n == counts["latent"]
    assert found.scores["ablation_sparsity"].low < mean < found.scores["ablation_sparsity"].high


def text_rows(text):
    blocks = [chunk.text for chunk in text.chunks(True)]
    return [pair for block in blocks for pair in zip(block.tokens.ids, block.activations, strict=True)]


def by_hand(reference: torch.nn.Module, ids: torch.Tensor, place: int, out: torch.Tensor) -> float:
    """In float64, over the 4 positions from `place` on."""

    def ablated(module, args, output):
        output = output.clone()
        output[0, place] -= out.double()
        return output

    clean = reference(ids[None]).logits[0]
    handle = reference.model.layers[LAYER].register_forward_hook(ablated)
    changed = reference(ids[None]).logits[0]
    handle.remove()
    effect = (changed - clean)[place : place + 4]
    effect = effect - effect.median(dim=1, keepdim=True).values
    return (effect.abs().sum() ** 2 / effect.square().sum() / effect.numel()).item()


def test_as_many_positions_as_asked_for_one_a_row(text):
    table = measure({"sae": random_sae()}, text, [SETTING | {"positions": 5}], show=False)["sae"].tables
    assert table["ablation_sparsity"]["kind"].count("latent") == 5 * 3


def test_rows_too_short_and_latents_that_never_fire_are_said(text):
    for sae, setting, says in (
        (
            random_sae(),
            SETTING | {"tokens": 17, "context": 18},
            "no token has 17 tokens from it on",
        ),
        (constant(torch.zeros(16)), SETTING, "no latent fires at any of the "),
    ):
        found = measure({"sae": sae}, text, [setting], show=False)["sae"]
        assert found.scores == {}
        assert found.skipped["AblationSparsity"].startswith(says)


def test_latents_without_a_direction_have_no_effect_and_are_left_out(text):
    sae: SAE = random_sae()
    with torch.no_grad():
        sae.dictionary.W_dec.zero_()
    found = measure({"sae": sae}, text, [SETTING], show=False)["sae"]
    assert found.skipped["AblationSparsity"] == "no latent that was ablated changed a logit"


@pytest.mark.parametrize("setting", [{"positions": 0}, {"at_each": 0}, {"tokens": 0}, {"context": 4}])
def test_a_wrong_setting_is_named(text, setting):
    found = measure({"sae": random_sae()}, text, [SETTING | setting], show=False)["sae"]
    assert next(iter(setting)) in found.skipped["AblationSparsity"]
    assert values(found.scores) == {}
