"""Cross entropies and KL with replaced activations, against forward passes with hooks of the test's own."""

from pathlib import Path

import pytest
import torch
from recipes.world import SITE
from sweeps import constant, mirror, random_sae, values
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelab.metrics import TextEvaluation, measure
from saelab.models.subject import Subject
from saelab.models.text import read_text
from saelab.models.tokens import TokenRows, pack
from saelab.sae.sae import SAE

pytest_plugins = ["models.conftest", "recipes.small_world"]

LAYER = int(SITE.rsplit(".", 1)[1])


@pytest.fixture(scope="module")
def evaluation(tiny_llama: Path, text_folder: Path) -> TextEvaluation:
    """All of the held-out text."""
    return TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=10**6)


@pytest.fixture(scope="module")
def block(tiny_llama: Path, text_folder: Path) -> TokenRows:
    """The tokens of that text in one block."""
    documents = read_text(str(text_folder), split="held-out")
    (block,) = pack(documents, AutoTokenizer.from_pretrained(tiny_llama), 16, rows=1000)
    assert (block.document < 0).any()  # padding
    assert len(block) > 3
    return block


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


def measured(sae: SAE, evaluation: TextEvaluation) -> dict[str, float]:
    return values(measure({"sae": sae}, evaluation, ["Downstream"], show=False)["sae"].scores)


@torch.no_grad()
def by_hand(reference: torch.nn.Module, block: TokenRows, sae: SAE) -> dict[str, float]:
    """All scores from four passes over all the text in float64, the site's value replaced by a hook."""
    real = block.position >= 0
    clean = reference(block.ids, output_hidden_states=True)
    x = clean.hidden_states[LAYER + 1][real]
    counts = real[:, :-1] & (block.document[:, 1:] >= 0)

    def log_probabilities(rows: torch.Tensor | None) -> torch.Tensor:
        def replaced(module, args, output):
            output = output.clone()
            if rows is not None:
                output[real] = rows
            return output

        handle = reference.model.layers[LAYER].register_forward_hook(replaced)
        logits = reference(block.ids).logits
        handle.remove()
        return logits[:, :-1][counts].double().log_softmax(1)

    said = {
        "clean": log_probabilities(None),
        "sae": log_probabilities(sae(x)),
        "mean": log_probabilities(x.mean(0).expand_as(x)),
        "zero": log_probabilities(torch.zeros_like(x)),
    }
    target = block.ids[:, 1:][counts]
    ce = {name: -log[torch.arange(len(target)), target].mean().item() for name, log in said.items()}
    kl = {name: (said["clean"].exp() * (said["clean"] - log)).sum(1).mean().item() for name, log in said.items()}
    return {
        **{f"ce_{name}": value for name, value in ce.items()},
        "ce_delta": ce["sae"] - ce["clean"],
        "ce_recovered": (ce["zero"] - ce["sae"]) / (ce["zero"] - ce["clean"]),
        "ce_recovered_mean": (ce["mean"] - ce["sae"]) / (ce["mean"] - ce["clean"]),
        "kl": kl["sae"],
        "kl_mean": kl["mean"],
        "kl_zero": kl["zero"],
        "kl_recovered": (kl["zero"] - kl["sae"]) / kl["zero"],
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_all_scores_equal_passes_with_hooks_by_hand(evaluation, block, reference, seed):
    sae = random_sae(seed=seed)
    found, expected = measured(sae, evaluation), by_hand(reference, block, sae)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    assert abs(expected["ce_delta"]) > 0.01  # the replacement does something


def test_a_perfect_sae_recovers_everything(evaluation):
    sae = mirror(16)
    x = torch.randn(5, 16)
    assert torch.equal(sae(x), x)
    scores = measured(sae, evaluation)
    assert scores["ce_sae"] == scores["ce_clean"]
    assert [scores["kl"], scores["ce_delta"]] == [0, 0]
    assert [scores["ce_recovered"], scores["ce_recovered_mean"], scores["kl_recovered"]] == [1, 1, 1]


def test_an_sae_of_zeros_recovers_nothing(evaluation):
    scores = measured(constant(torch.zeros(16)), evaluation)
    assert scores["ce_sae"] == scores["ce_zero"] != scores["ce_clean"]
    assert [scores["ce_recovered"], scores["kl_recovered"]] == [0, 0]
    assert scores["kl"] == scores["kl_zero"] > 0


def test_an_sae_of_the_mean_recovers_nothing_over_mean_ablation(evaluation, block, reference):
    with torch.no_grad():
        x = reference(block.ids, output_hidden_states=True).hidden_states[LAYER + 1][block.position >= 0]
    scores = measured(constant(x.double().mean(0).float()), evaluation)
    assert scores["ce_sae"] == pytest.approx(scores["ce_mean"], rel=1e-6)
    assert scores["ce_recovered_mean"] == pytest.approx(0, abs=1e-4)
    assert scores["kl"] == pytest.approx(scores["kl_mean"], rel=1e-5)


def test_positions_without_rows_keep_their_activations(evaluation, block, monkeypatch):
    """BOS and padding: what is put in place differs from the clean activations at kept positions only."""
    model, put = evaluation.model, []
    real = model.forward_with
    monkeypatch.setattr(model, "forward_with", lambda ids, rows: put.append((ids, rows)) or real(ids, rows))
    measured(constant(torch.full((16,), 7.0)), evaluation)
    assert len(put) % 3 == 0
    seen = 0
    for ids, rows in put:
        clean = model.activations(ids)
        kept = (ids != model.tokenizer.bos_token_id) & (ids != model.tokenizer.eos_token_id)
        assert torch.equal(rows[~kept], clean[~kept])
        assert (rows[kept] != clean[kept]).any(1).all()
        seen += int((~kept).sum())
    assert seen == 3 * int((block.position < 0).sum())


def test_several_saes_share_what_does_not_depend_on_them(evaluation, monkeypatch):
    """One pass for each SAE and two for the ablations, and the same scores to the bit as alone."""
    saes = {"a": random_sae(), "b": random_sae(seed=1), "c": mirror(16)}
    alone = {
        name: measure({name: sae}, evaluation, ["Downstream"], show=False)[name].scores for name, sae in saes.items()
    }
    calls, real = [], evaluation.model.forward_with
    monkeypatch.setattr(evaluation.model, "forward_with", lambda ids, rows: calls.append(ids) or real(ids, rows))
    together = measure(saes, evaluation, ["Downstream"], show=False)
    assert {name: found.scores for name, found in together.items()} == alone
    assert len(calls) == (2 + len(saes)) * len(list(evaluation.chunks(True)))


def test_predictions_of_padding_do_not_count(evaluation, block):
    scores = measure({"sae": mirror(16)}, evaluation, ["Downstream"], show=False)["sae"].scores
    counts = (block.position >= 0)[:, :-1] & (block.document[:, 1:] >= 0)
    assert scores["ce_clean"].n == counts.sum() < (block.position >= 0).sum()


def test_ratios_lie_within_their_intervals(evaluation, monkeypatch):
    monkeypatch.setattr("saelab.metrics.base.LEAST_DOCUMENTS", 2)
    for name, score in measure({"sae": random_sae()}, evaluation, ["Downstream"], show=False)["sae"].scores.items():
        assert score.low <= score.value <= score.high, name
        assert score.low < score.high, name
