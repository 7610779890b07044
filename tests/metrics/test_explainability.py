"""N2G on a model: latents whose patterns are known, counts against a slow walk, the model run on predictions."""

import math
from pathlib import Path

import pytest
import torch
from recipes.world import SITE
from sweeps import constant, random_sae, values, with_weights

from saelab.metrics import TextEvaluation, measure
from saelab.metrics.base import Setting
from saelab.metrics.n2g.bigram import Bigram, pairs
from saelab.metrics.n2g.explainability import N2G
from saelab.metrics.n2g.last_token import LastToken
from saelab.metrics.n2g.n2g import predict, tree_of
from saelab.metrics.n2g.windows import Firings, Windows, before
from saelab.models.subject import Subject
from saelab.sae.activations.relu import ReLU
from saelab.sae.sae import SAE

pytest_plugins = ["models.conftest", "recipes.small_world"]


@pytest.fixture(scope="module")
def text(tiny_llama: Path, text_folder: Path) -> TextEvaluation:
    return TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=400, split="all")


@pytest.fixture(scope="module")
def embedding(tiny_llama: Path, text_folder: Path) -> TextEvaluation:
    """The same text at the embedding, where a row says its token and nothing else."""
    subject = Subject(str(tiny_llama), "model.embed_tokens", str(text_folder), seq_len=16)
    return TextEvaluation(subject, tokens=400, split="all")


def token_sae(evaluation: TextEvaluation, tokens: list[int]) -> SAE:
    """Latent j fires where the token is tokens[j], at the embedding."""
    rows = evaluation.model.model.get_input_embeddings().weight.detach().float()
    others = torch.linalg.pinv(rows[tokens])  # [D, n]: gives 1 for its own token, 0 for the other planted ones
    sae = SAE(rows.shape[1], len(tokens), ReLU(l1=0.0))
    encoder = others.T.contiguous()
    highest = (rows @ others).masked_fill(torch.nn.functional.one_hot(torch.tensor(tokens), len(rows)).T.bool(), -9)
    with_weights(sae, encoder, torch.nn.functional.normalize(rows[tokens], dim=1), torch.zeros(rows.shape[1]))
    with torch.no_grad():
        sae.dictionary.b_enc.copy_(-highest.amax(0).clamp_min(0))
    return sae


def common_tokens(evaluation: TextEvaluation, n: int) -> list[int]:
    ids = torch.cat([chunk.text.tokens.ids[chunk.text.keep] for chunk in evaluation.chunks(True)])
    return ids.bincount().topk(n).indices.tolist()


def test_latents_of_one_token_are_explained_wholly(embedding):
    tokens = common_tokens(embedding, 6)
    sae = token_sae(embedding, tokens)
    found = measure({"sae": sae}, embedding, ["N2G"], show=False)["sae"]
    scores = values(found.scores)
    fires = (sae.dictionary.b_enc > -1).tolist()  # those whose token is told from all others
    assert sum(fires) >= 2
    table = found.tables["n2g"]
    for latent, token in enumerate(tokens):
        if fires[latent]:
            assert table["patterns"][latent] == embedding.model.tokenizer.decode([token])
            assert table["fired"][latent] == table["predicted"][latent] == table["both"][latent] > 0
    assert scores["n2g_recall"] == scores["n2g_precision"] == scores["n2g_recall_pooled"] == 1


def test_explanations_that_predict_every_code_give_the_sae_s_own_cross_entropy(embedding):
    tokens = common_tokens(embedding, 6)
    sae = token_sae(embedding, tokens)
    found = measure({"sae": sae}, embedding, ["N2G"], show=False)["sae"].scores
    odd = reference_cross_entropy(embedding, sae)
    assert found["n2g_ce"].value == pytest.approx(odd["sae"], rel=1e-5)
    assert found["n2g_ce_delta"].value == pytest.approx(odd["sae"] - odd["clean"], rel=1e-4)
    assert found["n2g_ce"].n == odd["n"]
    assert found["n2g_ce"].low < found["n2g_ce"].value < found["n2g_ce"].high


@torch.no_grad()
def reference_cross_entropy(evaluation: TextEvaluation, sae: SAE) -> dict[str, float]:
    """Over predictions made in documents of odd number, with rows replaced by the SAE's reconstruction."""
    total, n = {"clean": 0.0, "sae": 0.0}, 0
    for chunk in evaluation.chunks(True):
        text = chunk.text
        rows = text.activations.clone()
        rows[text.keep] = sae(chunk.x)
        said = {"clean": text.logits, "sae": text.model.forward_with(text.tokens.ids, rows)}
        for row in range(len(text.tokens)):
            for place in range(text.tokens.ids.shape[1] - 1):
                counts = text.keep[row, place] and text.tokens.document[row, place + 1] >= 0
                if counts and text.group[row, place] % 2 == 1:
                    n += 1
                    for name, logits in said.items():
                        log = logits[row, place].double().log_softmax(0)
                        total[name] -= log[text.tokens.ids[row, place + 1]].item()
    return {name: value / n for name, value in total.items()} | {"n": n}


def test_counts_are_those_of_a_walk_for_every_latent_and_token(text):
    sae = random_sae(n_latents=12, k=2)
    found = measure({"sae": sae}, text, [{"name": "N2G", "examples": 6, "context": 5}], show=False)["sae"]
    metric = N2G(examples=6, context=5)
    metric.begin(Setting("sae", {"sae": sae}, text))
    patterns = patterns_by_hand(metric, text, sae)
    counts = torch.zeros(3, 12, dtype=torch.int64)
    for chunk in text.chunks(True):
        part, codes = chunk.text, sae.encode(chunk.x).dense()
        dense = torch.zeros(*part.keep.shape, 12)
        dense[part.keep] = codes.detach()
        for row in range(len(part.tokens)):
            for begin, end in stretches(part.tokens, row):
                tokens = part.tokens.ids[row, begin:end].tolist()
                for latent in range(12):
                    predicted = predict(tree_of(patterns[latent]), tokens)
                    for place, value in enumerate(predicted, begin):
                        if part.keep[row, place] and part.group[row, place] % 2 == 1:
                            fires = dense[row, place, latent] != 0
                            counts[:, latent] += torch.tensor([fires, value != 0, fires and value != 0])
    table = found.tables["n2g"]
    assert [table["fired"], table["predicted"], table["both"]] == counts.tolist()
    fired, predicted, both = counts.double()
    scores = values(found.scores)
    assert scores["n2g_recall"] == pytest.approx((both / fired)[fired > 0].mean().item())
    assert scores["n2g_precision"] == pytest.approx((both / predicted)[predicted > 0].mean().item())
    assert scores["n2g_precision_pooled"] == pytest.approx((both.sum() / predicted.sum()).item())
    assert counts[2].sum() < counts[1].sum()


def patterns_by_hand(metric, text, sae):
    for chunk in text.chunks(True):
        codes = sae.encode(chunk.x)
        firings = Firings.from_codes(codes, chunk.text.keep, metric.slot_of)
        metric.windows.update(chunk.text.tokens, firings, chunk.text.group % 2 == 0)
    metric.needs_another_pass()
    return metric.of


def stretches(tokens, row):
    """Where the stretches of documents in a packed row begin and end."""
    document, real, begin = tokens.document[row].tolist(), (tokens.position[row] >= 0).tolist(), None
    for place, (number, is_real) in enumerate(zip(document, real, strict=True)):
        if begin is not None and (not is_real or number != document[begin]):
            yield begin, place
            begin = None
        if is_real and begin is None:
            begin = place
    if begin is not None:
        yield begin, len(document)


def test_tokens_before_a_position_are_those_of_its_own_stretch(text):
    for chunk in text.chunks(True):
        tokens = chunk.text.tokens
        expected = torch.full(tokens.ids.shape, -1)
        for row in range(len(tokens)):
            for begin, end in stretches(tokens, row):
                expected[row, begin:end] = torch.arange(end - begin)
        assert torch.equal(before(tokens), expected)
    assert expected.max() > 3


def test_windows_keep_the_strongest_place_of_each_stretch_and_any_number_of_drawn_ones(text):
    sae = random_sae(n_latents=12, k=2)
    windows = Windows(12, top=3, drawn=2, left=2, right=1)
    strongest: list[dict[tuple, float]] = [{} for _ in range(12)]
    for number, chunk in enumerate(text.chunks(True)):
        part, dense = chunk.text, torch.zeros(*chunk.text.keep.shape, 12)
        codes = sae.encode(chunk.x)
        dense[part.keep] = codes.dense().detach()
        windows.update(part.tokens, Firings.from_codes(codes, part.keep, torch.arange(12)))
        for row in range(len(part.tokens)):
            for begin, end in stretches(part.tokens, row):
                for latent in range(12):
                    strongest[latent][number, row, begin] = dense[row, begin:end, latent].max().item()
    for latent in range(12):
        best = sorted((value for value in strongest[latent].values() if value > 0), reverse=True)[:3]
        kept = windows.priority[latent, : len(best)].tolist()
        assert kept == pytest.approx(best)
        torch.testing.assert_close(windows.values[latent, : len(best), 2], torch.tensor(kept))
    there = windows.priority > -torch.inf
    assert (windows.tokens[there][:, 2] >= 0).all()
    assert (windows.values[there][:, 2] > 0).all()
    assert (windows.tokens[~there] == -1).all()


def test_activations_at_the_end_of_lists_are_those_of_the_model_behind_its_first_token(text):
    sae, model = random_sae(), text.model
    lists = [[5], [7, 8, 9], [5], [7, 8, 9, 10, 11], []]
    latents = [3, 0, 4, 1, 2]
    expected = []
    for latent, tokens in zip(latents, lists, strict=True):
        ids = torch.tensor([[model.tokenizer.bos_token_id, *tokens]])
        expected.append(sae.encode(model.activations(ids)[0, -1:]).dense()[0, latent].item())
    assert LastToken(model, sae)(latents, lists) == pytest.approx(expected, abs=1e-5)
    full = SAE(16, 24, ReLU(l1=0.0))
    ids = torch.tensor([[model.tokenizer.bos_token_id, 5]])
    assert LastToken(model, full)([3], [[5]]) == pytest.approx(
        [full.encode(model.activations(ids)[0, -1:]).dense()[0, 3].item()], abs=1e-6
    )


def test_bigram_against_counting(text):
    blocks = [chunk.text.tokens for chunk in text.chunks(True)]
    seen = [pair for block in blocks for pair in zip(*(part.tolist() for part in pairs(block)), strict=True)]
    model, size = Bigram(blocks, 320, most=10**9), 320

    def chance(v, w):
        followers = [second for first, second in seen if first == v]
        single = (sum(second == w for _, second in seen) + 1) / (len(seen) + size)
        different = len(set(followers))
        if not followers:
            return single
        return (followers.count(w) + different * single) / (len(followers) + different)

    asked = [*seen[:5], (seen[0][0], 319), (319, 5)]
    first, second = (torch.tensor(part) for part in zip(*asked, strict=True))
    expected = [-math.log(chance(v, w)) for v, w in asked]
    torch.testing.assert_close(model.nats(first, second), torch.tensor(expected, dtype=torch.float64))
    every = torch.arange(size)
    assert model.nats(torch.full((size,), seen[0][0]), every).neg().exp().sum().item() == pytest.approx(1)


def test_a_sample_of_latents_is_explained_and_the_model_is_not_run_on_it(text):
    found = measure({"sae": random_sae()}, text, [{"name": "N2G", "most": 5}], show=False)["sae"]
    assert len(found.tables["n2g"]["latent"]) == 5
    assert "n2g_ce" not in found.scores
    assert found.scores["n2g_unexplained"].n == 5


def test_an_sae_that_never_fires_says_so(text):
    found = measure({"sae": constant(torch.zeros(16))}, text, ["N2G"], show=False)["sae"]
    assert found.scores == {}
    assert "no latent fires" in found.skipped["N2G"]


@pytest.mark.parametrize("setting", [{"most": 0}, {"examples": 1}, {"context": 0}])
def test_a_wrong_setting_is_named(text, setting):
    found = measure({"sae": random_sae()}, text, [{"name": "N2G"} | setting], show=False)["sae"]
    assert next(iter(setting)) in found.skipped["N2G"]


def test_logits_are_asked_for_only_where_the_model_runs_on_explanations(text, monkeypatch):
    asked, chunks = [], text.chunks
    monkeypatch.setattr(text, "chunks", lambda need: asked.append(need) or chunks(need))
    for most, expected in ((3, [False, False]), (None, [False, True])):
        asked.clear()
        settings = {"name": "N2G", "examples": 4, "context": 3, "most": most}
        measure({"sae": random_sae(n_latents=12, k=2)}, text, [settings], show=False)
        assert asked == expected


def test_what_pads_is_the_last_token_of_a_text_that_can_be_chosen(text):
    sae = random_sae(n_latents=12, k=2)
    for given, token in ((" _", " _"), ("\n", "\n"), ("a\n", "\n")):
        metric = N2G(pad=given)
        metric.begin(Setting("sae", {"sae": sae}, text))
        assert metric.padding == text.model.tokenizer.encode(token, add_special_tokens=False)[-1]
    with pytest.raises(ValueError, match="N2G: pad"):
        N2G(pad="").begin(Setting("sae", {"sae": sae}, text))
