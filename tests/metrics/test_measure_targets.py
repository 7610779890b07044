"""Measuring transcoders, SAEs of several sites and of averages: against what, in whose place, and what is skipped."""

from dataclasses import replace

import pytest
import torch
from sweeps import Rows, random_sae
from transformers import AutoModelForCausalLM

from saelab.metrics import StoreEvaluation, TextEvaluation, measure
from saelab.metrics.chunks import Chunk
from saelab.models.harvest import harvest
from saelab.models.subject import Subject
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.sae import SAE

pytest_plugins = ["models.conftest", "recipes.small_world"]

MLP = "model.layers.1.mlp"
D = 16


@pytest.fixture(scope="module")
def subject(tiny_llama, text_folder) -> Subject:
    return Subject(str(tiny_llama), f"{MLP}:in", str(text_folder), seq_len=16, target=MLP)


@pytest.fixture(scope="module")
def text(subject) -> TextEvaluation:
    return TextEvaluation(subject, 10**6)


def transcoder(seed: int = 0, skip: bool = False) -> SAE:
    sae = SAE(D, 24, TopK(k=4), dictionary=Dense(skip_connection=skip), seed=seed, d_out=D)
    draw = torch.Generator().manual_seed(seed)
    sae.initialise(torch.randn(256, D, generator=draw), target=torch.randn(256, D, generator=draw))
    if skip:
        with torch.no_grad():
            sae.dictionary.W_skip.copy_(torch.randn(D, D, generator=draw))
    return sae


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_is_compared_with_its_target_and_put_in_its_place(text, subject, skip):
    """All of it by hand in plain transformers."""
    sae = transcoder(skip=skip)
    measured = measure({"sae": sae}, text, show=False)["sae"]
    scores = {name: score.value for name, score in measured.scores.items()}
    reference = AutoModelForCausalLM.from_pretrained(subject.model).eval()
    (block,) = subject.token_rows(text.model, "held-out", 1000)
    seen, mlp, put = {}, reference.model.layers[1].mlp, None

    def hook(module, args, output):
        seen.update(x=args[0], y=output)
        if put is None:
            return output
        output = output.clone()
        output[block.keep] = put
        return output

    handle = mlp.register_forward_hook(hook)
    with torch.no_grad():
        clean = reference(block.ids).logits.log_softmax(2)
        x, y = seen["x"][block.keep], seen["y"][block.keep]
        put = sae(x)
        logits = [reference(block.ids).logits.log_softmax(2)]
        put = y.mean(0)
        logits.append(reference(block.ids).logits.log_softmax(2))
        put = torch.zeros(D)
        logits.append(reference(block.ids).logits.log_softmax(2))
    handle.remove()
    x_hat = sae(x)
    assert scores["mse_sum"] == pytest.approx((y - x_hat).square().sum(1).mean().item(), rel=1e-4)
    assert scores["mse"] == pytest.approx((y - x_hat).square().mean().item(), rel=1e-4)
    fvu = (y - x_hat).square().sum() / (y - y.mean(0)).square().sum()
    assert scores["fvu"] == pytest.approx(fvu.item(), rel=1e-4)
    counts = block.keep[:, :-1] & (block.document[:, 1:] >= 0)
    for name, changed in zip(("kl", "kl_mean", "kl_zero"), logits, strict=True):
        kl = (clean.exp() * (clean - changed)).sum(2)[:, :-1][counts].mean().item()
        assert scores[name] == pytest.approx(kl, rel=1e-3, abs=1e-6), name
    assert "Downstream" not in measured.skipped


def test_of_targets_of_another_width_the_mean_is_over_theirs(subject):
    wide = replace(subject, site="model.layers.1", target=f"{MLP}.up_proj")
    evaluation = TextEvaluation(wide, 100)
    sae = SAE(D, 8, TopK(k=2), d_out=24)
    scores = measure({"sae": sae}, evaluation, show=False)["sae"].scores
    y = torch.cat([chunk.target for chunk in evaluation.chunks(False)])
    x = torch.cat([chunk.x for chunk in evaluation.chunks(False)])
    assert scores["mse"].value == pytest.approx((y - sae(x)).square().mean().item(), rel=1e-4)


def test_a_store_with_targets_gives_what_its_text_gives(subject, text, tmp_path):
    store = harvest(subject, tmp_path / "acts", 10**6, "held-out", "fp32", text.model, show=False)
    sae = transcoder()
    found = measure({"sae": sae}, StoreEvaluation(store), show=False)["sae"]
    expected = measure({"sae": sae}, text, show=False)["sae"]
    assert found.scores["fvu"].value == pytest.approx(expected.scores["fvu"].value, rel=1e-4)
    assert found.skipped["Downstream"] == "needs a model, and this data is activations only"


def test_several_sites_are_put_back_at_once(subject):
    """An SAE that gives everything back changes nothing; one of zeros is the same as zeros at both."""
    both = replace(subject, site="model.layers.0.mlp,model.layers.2.mlp", target=None)
    evaluation = TextEvaluation(both, 200)
    sae = SAE(2 * D, 4 * D, ReLU(l1=0.0))
    with torch.no_grad():
        unit = torch.cat([torch.eye(2 * D), -torch.eye(2 * D)])
        sae.dictionary.W_enc.copy_(unit)
        sae.dictionary.W_dec.copy_(unit)
    same = measure({"sae": sae}, evaluation, show=False)["sae"].scores
    assert same["kl"].value == 0
    assert same["fvu"].value == 0
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(-1e9)
    nothing = measure({"sae": sae}, evaluation, show=False)["sae"].scores
    assert nothing["kl"].value == nothing["kl_zero"].value > 0


def test_what_needs_the_model_is_skipped_with_its_reason_on_averages(subject, tmp_path):
    turns = replace(subject, site="model.layers.1", target=None, average="document")
    evaluation = TextEvaluation(turns, 10**6)
    store = harvest(turns, tmp_path / "acts", 10**6, "held-out", "fp32", evaluation.model, show=False)
    chunks = list(evaluation.chunks(False))
    rows = torch.cat([chunk.x for chunk in chunks])
    torch.testing.assert_close(rows, store.rows(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.cat([chunk.group for chunk in chunks]), store.columns(0)["document"].long())
    measured = measure({"sae": random_sae()}, evaluation, show=False)["sae"]
    reason = "needs rows that can be put back into the model, and these are averages over documents"
    assert measured.skipped["Downstream"] == reason
    assert measured.scores["fvu"].n == len(rows)


@pytest.mark.parametrize(
    ("sae", "targets", "message"),
    [
        (random_sae(), 16, "sae reconstructs what it reads, the data has a target 16 wide; measure it on data of its"),
        (transcoder(), None, "sae reconstructs a target 16 wide, the data has none"),
        (transcoder(), 8, "sae reconstructs a target 16 wide, the data has a target 8 wide"),
    ],
)
def test_targets_that_do_not_fit_are_refused_by_name(sae, targets, message):
    rows = Rows(torch.randn(20, 16), torch.arange(20))
    rows.d_out = targets
    with pytest.raises(ValueError, match=message):
        measure({"sae": sae}, rows, show=False)


def test_a_chunk_needs_no_target():
    assert Chunk(torch.zeros(1, 2), torch.zeros(1), None).target is None
