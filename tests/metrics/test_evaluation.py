"""The data of a sweep: text through a model, and a store."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipes.world import SITE

from saelab.data.store import Store
from saelab.metrics import StoreEvaluation, TextEvaluation
from saelab.metrics import evaluation as module
from saelab.metrics.chunks import GROUPS
from saelab.models.harvest import harvest
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject
from saelab.models.text import is_held_out, read_text

pytest_plugins = ["models.conftest", "recipes.small_world"]


@pytest.fixture(scope="module")
def subject(tiny_llama: Path, text_folder: Path) -> Subject:
    return Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16)


@pytest.fixture(scope="module")
def model(subject: Subject) -> LanguageModel:
    return subject.language_model()


def rows_and_groups(evaluation) -> tuple[torch.Tensor, torch.Tensor]:
    chunks = list(evaluation.chunks(False))
    return torch.cat([chunk.x for chunk in chunks]), torch.cat([chunk.group for chunk in chunks])


def test_text_gives_the_rows_a_harvest_of_the_same_split_stores(subject, model, tmp_path):
    store = harvest(subject, tmp_path / "acts", 10**6, split="held-out", dtype="fp32", model=model, show=False)
    rows, group = rows_and_groups(TextEvaluation(subject, 10**6, model=model))
    torch.testing.assert_close(rows, store.rows(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(group, store.columns(0)["document"].long())


def test_text_is_held_out_unless_told_otherwise(subject, model):
    documents = list(read_text(subject.text))
    held = [document for document in documents if is_held_out(document.text)]
    assert 0 < len(held) < len(documents) < GROUPS
    assert len(rows_and_groups(TextEvaluation(subject, 10**6, model=model))[1].unique()) == len(held)
    every = TextEvaluation(subject, 10**6, split="all", model=model)
    assert len(rows_and_groups(every)[1].unique()) == len(documents)


def test_pieces_of_one_document_are_one_group(subject, model, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"the lazy dog {number} jumps over\n" * 40)
    cut = replace(subject, text=str(tmp_path), piece=50)
    _, group = rows_and_groups(TextEvaluation(cut, 10**6, split="all", model=model))
    assert len(group.unique()) == 3


def test_the_same_rows_come_every_time_with_logits_and_without(subject, model):
    evaluation = TextEvaluation(subject, 100, model=model)
    first, second = rows_and_groups(evaluation)[0], torch.cat([chunk.x for chunk in evaluation.chunks(True)])
    torch.testing.assert_close(first, second)
    assert torch.equal(first, rows_and_groups(evaluation)[0])


def test_text_stops_with_the_chunk_that_has_enough(subject, model, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_TOKENS", 32)
    rows, _ = rows_and_groups(TextEvaluation(subject, 60, split="all", model=model))
    assert 60 <= len(rows) < 60 + 32


def test_the_chunks_text_belongs_to_its_rows(subject, model):
    for chunk in TextEvaluation(subject, 100, model=model).chunks(True):
        text = chunk.text
        assert torch.equal(text.activations[text.keep], chunk.x)
        assert torch.equal(text.tokens.document[text.keep].long() % GROUPS, chunk.group)
        assert text.logits.shape == (*text.tokens.ids.shape, 320)


@pytest.mark.parametrize("tokens", [0, -1])
def test_text_needs_at_least_one_token(subject, model, tokens):
    with pytest.raises(ValueError, match="tokens must be at least 1"):
        TextEvaluation(subject, tokens, model=model)


def test_text_that_is_too_short_is_refused(subject, model, tmp_path):
    (tmp_path / "short.txt").write_text("the fox")
    with pytest.raises(ValueError, match="shorter than one row of 16"):
        TextEvaluation(replace(subject, text=str(tmp_path / "short.txt")), 100, split="all", model=model)


@pytest.mark.parametrize("tokens", [1, 99, 10**6, None])
@pytest.mark.parametrize("chunk", [7, 2048])
def test_a_store_gives_its_first_rows_in_chunks(store, monkeypatch, tokens, chunk):
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
    opened = Store(store)
    rows, group = rows_and_groups(StoreEvaluation(store, tokens))
    wanted = min(tokens or len(opened), len(opened))
    assert torch.equal(rows, opened.rows(0)[:wanted].float())
    assert torch.equal(group, opened.columns(0)["document"][:wanted].long() % GROUPS)


def test_a_store_of_many_shards_is_one(subject, model, tmp_path, monkeypatch):
    monkeypatch.setattr("saelab.models.harvest.SHARD_BYTES", 4000)
    monkeypatch.setattr("saelab.models.harvest.TOKENS_AT_ONCE", 64)
    store = harvest(subject, tmp_path / "acts", 300, model=model, show=False)
    assert len(store.manifest.shards) > 2
    rows, _ = rows_and_groups(StoreEvaluation(store, 250))
    expected = torch.cat([store.rows(number) for number in range(len(store.manifest.shards))])[:250]
    assert torch.equal(rows, expected.float())


@pytest.mark.parametrize("tokens", [0, -3])
def test_a_store_needs_at_least_one_row_to_measure_on(store, tokens):
    with pytest.raises(ValueError, match="tokens must be at least 1"):
        StoreEvaluation(store, tokens)
