"""How many latents the data need, how far back they look, and whether another SAE has the same ones."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from recipes.world import SITE
from sweeps import Rows, constant, fed_codes, random_sae

from saelab.core.codes import Codes
from saelab.metrics import TextEvaluation, measure
from saelab.metrics.active_pool import SparseSemanticDimension, pool_of
from saelab.metrics.information_scope import InformationScope, compact, distance
from saelab.metrics.stability import matched_cosines
from saelab.models.subject import Subject
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE

pytest_plugins = ["models.conftest", "recipes.small_world"]


# ---- pool ----


def test_the_pool_is_counted_over_all_rows_and_rarefied_over_documents(monkeypatch):
    monkeypatch.setattr("saelab.metrics.base.LEAST_DOCUMENTS", 2)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randint(30, (60, 2), generator=generator)
    values = torch.ones(60, 2)
    values[::3, 1] = 0  # not active
    document = torch.arange(60) // 5
    metric = SparseSemanticDimension()
    fed_codes(metric, [Codes(values, latents, 40)], document)
    scores = metric.scores(random_sae())
    sets = [set(latents[(document == d)][values[document == d] != 0].tolist()) for d in range(12)]
    assert scores["ssd"].value == len(set().union(*sets))
    expected = [len(set().union(*some)) for some in itertools.combinations(sets, 6)]
    assert scores["ssd_half"].value == pytest.approx(sum(expected) / len(expected), rel=1e-9)
    fewer = [len(set().union(*some)) for some in itertools.combinations(sets, 11)]
    growth = 1 - sum(fewer) / len(fewer) / scores["ssd"].value
    assert scores["ssd_growth"].value == pytest.approx(growth, rel=1e-9)
    without = [len(set().union(*(sets[:d] + sets[d + 1 :]))) for d in range(12)]
    error = math.sqrt(11 / 12 * sum((one - sum(without) / 12) ** 2 for one in without))
    assert scores["ssd"].low == pytest.approx(scores["ssd"].value - 1.96 * error)
    assert scores["ssd"].n == 60


def test_the_pool_of_all_documents_is_all_and_of_none_nothing():
    count = torch.tensor([0, 1, 3, 10])
    assert pool_of(count, 10, 10) == pytest.approx(3)
    assert pool_of(count, 10, 0) == pytest.approx(0)
    assert pool_of(count, 10, 1) == pytest.approx(1.4)


def test_nothing_active_is_no_pool():
    metric = SparseSemanticDimension()
    fed_codes(metric, [Codes(torch.zeros(20, 1), torch.zeros(20, 1, dtype=torch.int64), 4)])
    assert metric.scores(random_sae())["ssd"].value == 0


# ---- scope ----


def test_distances_are_the_earth_movers():
    one, other = torch.zeros(4, 5), torch.zeros(4, 5)
    one[0, 0], other[0, 0] = 2, 5  # the same place: no distance, whatever the size
    one[0, 1], other[3, 1] = 1, 1  # from end to end: three steps of four
    one[:, 2], other[1, 2] = 1, 4  # from everywhere to the second
    one[2, 3] = 7  # in one reading only
    expected = [0, 0.75, (0.25 + 0.5 + 0.25 + 0) / 4, 1, 1]
    assert distance(one, other).tolist() == pytest.approx(expected)


def test_codes_are_compacted_to_what_is_active():
    codes = Codes(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[7, 2], [5, 7]]), 9)
    latents, sizes = compact(codes)
    assert latents.tolist() == [2, 7]
    assert sizes.tolist() == [[2.0, 1.0], [0.0, 3.0]]


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory, bos_tokenizer, text_folder) -> Subject:
    """Rows of 64 tokens of a model that sees as much."""
    from models.conftest import saved
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        folder: Path = saved(LlamaForCausalLM(config), bos_tokenizer, tmp_path_factory.mktemp("long"))
    return Subject(str(folder), SITE, str(text_folder), seq_len=64)


def test_what_depends_on_the_token_alone_has_no_scope(long_rows):
    """At the embeddings no latent can see anything else; above them it can."""
    tokens = Subject(long_rows.model, "model.embed_tokens", long_rows.text, seq_len=64)
    scores = {}
    for name, subject in (("tokens", tokens), ("above", long_rows)):
        evaluation = TextEvaluation(subject, tokens=400, split="all")
        rows = next(iter(evaluation.chunks(False))).x
        sae = SAE(16, 24, TopK(k=4))
        sae.initialise(rows)
        scores[name] = measure({"sae": sae}, evaluation, ["InformationScope"], show=False)["sae"].scores
    assert scores["tokens"]["information_scope"].value == pytest.approx(0, abs=1e-6)
    assert 0 < scores["above"]["information_scope"].value < 1
    assert scores["above"]["information_scope_rows"].value > 0


def test_rows_too_short_for_two_readings_are_said(tiny_llama, text_folder):
    evaluation = TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=60)
    found = measure({"sae": random_sae()}, evaluation, ["InformationScope"], show=False)["sae"]
    assert found.skipped["InformationScope"].startswith("needs rows of at least 48 tokens")
    assert not InformationScope().latents()


def test_both_readings_are_made_once_for_several_saes(long_rows, monkeypatch):
    evaluation = TextEvaluation(long_rows, tokens=400, split="all")
    saes = {"a": random_sae(), "b": random_sae(seed=1)}
    alone = {
        name: measure({name: sae}, evaluation, ["InformationScope"], show=False)[name].scores
        for name, sae in saes.items()
    }
    calls, real = [], evaluation.model.activations
    monkeypatch.setattr(evaluation.model, "activations", lambda ids: calls.append(ids) or real(ids))
    together = measure(saes, evaluation, ["InformationScope"], show=False)
    assert {name: found.scores for name, found in together.items()} == alone
    assert len(calls) == 2 * len(list(evaluation.chunks(True)))


def test_latents_that_never_fire_have_no_scope(long_rows):
    evaluation = TextEvaluation(long_rows, tokens=400, split="all")
    found = measure({"sae": constant(torch.zeros(16))}, evaluation, ["InformationScope"], show=False)["sae"]
    assert not found.scores
    assert found.skipped["InformationScope"].startswith("no latent fires in the last 16 tokens of any of ")


# ---- stability ----


def shuffled(sae: SAE, order: torch.Tensor) -> SAE:
    other = random_sae(seed=7)
    with torch.no_grad():
        other.dictionary.W_dec.copy_(sae.dictionary.W_dec[order])
    return other


def test_the_same_directions_in_another_order_are_stable():
    sae = random_sae()
    other = shuffled(sae, torch.randperm(24, generator=torch.Generator().manual_seed(0)))
    found = measure({"a": sae, "b": other}, Rows(torch.randn(20, 16), torch.arange(20)), ["Stability"], show=False)
    for one in found.values():
        assert one.scores["stability"].value == pytest.approx(1, abs=1e-5)
        assert one.scores["stability_best"].value == pytest.approx(1, abs=1e-5)
        assert one.scores["stability_random"].value < 0.8


def test_every_direction_is_matched_once_with_the_largest_sum():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    unit = torch.nn.functional.normalize
    cosines = unit(one, dim=1) @ unit(other, dim=1).T
    best = max(sum(cosines[i, j].item() for i, j in enumerate(order)) for order in itertools.permutations(range(6)))
    assert matched_cosines(one, other).sum().item() == pytest.approx(best, rel=1e-5)


def test_an_sae_alone_or_of_another_size_has_nothing_to_be_compared_with():
    rows = Rows(torch.randn(20, 16), torch.arange(20))
    for saes in ({"a": random_sae()}, {"a": random_sae(), "b": random_sae(n_latents=40)}):
        found = measure(saes, rows, ["Stability"], show=False)["a"]
        assert found.skipped == {
            "Stability": "needs another SAE with the same number of latents, measured together with this one"
        }
