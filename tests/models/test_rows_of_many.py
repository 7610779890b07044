"""Rows of several sites, with targets behind them, and rows that are averages over documents: stored and live."""

import os
from dataclasses import replace

import pytest
import torch
from recipes.world import files
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelab.data.store import Store, StoreSource
from saelab.models import harvest as module
from saelab.models.harvest import LiveSource, harvest
from saelab.models.subject import Subject
from saelab.models.text import read_text

pytest_plugins = ["recipes.small_world"]

MLP = "model.layers.1.mlp"


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """4 packed rows a pass, shards of about 100 rows."""
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 64)
    monkeypatch.setattr(module, "SHARD_BYTES", 100 * 32 * 4)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="module")
def subject(tiny_llama, text_folder) -> Subject:
    return Subject(str(tiny_llama), f"{MLP}:in", str(text_folder), seq_len=16, target=MLP)


@pytest.fixture(scope="module")
def model(subject):
    return subject.language_model()


def all_rows(store: Store) -> torch.Tensor:
    return torch.cat([store.rows(number) for number in range(len(store.manifest.shards))])


def column(store: Store, name: str) -> torch.Tensor:
    return torch.cat([store.columns(number)[name] for number in range(len(store.manifest.shards))])


# ---- targets ----


def test_a_store_holds_targets_behind_their_rows(subject, model, tmp_path):
    store = harvest(subject, tmp_path / "acts", 1000, dtype="fp32", model=model, show=False)
    rows = all_rows(store)
    assert (store.d_in, store.d_out, rows.shape[1]) == (16, 16, 32)
    with torch.no_grad():
        made = model.model.model.layers[1].mlp(rows[:, :16])
    torch.testing.assert_close(made, rows[:, 16:], rtol=1e-4, atol=1e-5)
    plain = harvest(replace(subject, target=None), tmp_path / "plain", 1000, dtype="fp32", show=False)
    torch.testing.assert_close(rows[:, :16], all_rows(plain), rtol=1e-5, atol=1e-5)
    assert store.manifest.origin["target"] == MLP


def test_only_the_rows_that_are_read_decide_what_is_an_outlier(subject, model, tmp_path, monkeypatch):
    """A target with some enormous norms drops nothing; the same numbers among what is read drop their rows."""
    real, loud = model.activations, {}

    def activations(ids):
        found = real(ids).clone()
        found[:, 3, loud["columns"]] *= 1e4
        return found

    monkeypatch.setattr(model, "activations", activations)
    rows = {}
    for name, columns in {"target": slice(16, 32), "read": slice(0, 16)}.items():
        loud["columns"] = columns
        store = harvest(subject, tmp_path / name, 500, dtype="fp32", model=model, show=False)
        rows[name] = store.manifest.dropped["outlier"], all_rows(store).abs().max()
    assert rows["target"][0] == 0
    assert rows["target"][1] > 1e3
    assert rows["read"][0] > 20
    assert rows["read"][1] < 1e3


def test_a_live_source_gives_the_targets_a_store_has(subject, model, tmp_path):
    store = harvest(subject, tmp_path / "acts", 500, dtype="fp32", model=model, show=False)
    live = LiveSource(subject, window_rows=16 * 7, model=model)
    assert (live.d_in, live.d_out) == (16, 16)
    found = torch.cat([live.window(number) for number in range(4)])
    torch.testing.assert_close(found, all_rows(store)[: len(found)], rtol=1e-4, atol=1e-4)
    for source in (live, StoreSource(store)):
        batch = next(source.batches(60))
        assert (batch.x.shape, batch.target.shape) == ((60, 16), (60, 16))
        with torch.no_grad():
            made = model.model.model.layers[1].mlp(batch.x)
        torch.testing.assert_close(made, batch.target, rtol=1e-4, atol=1e-4)
        assert source.sample(30).shape == (30, 32)


@pytest.mark.parametrize("key", ["target", "average"])
def test_a_store_of_another_target_or_average_is_refused_by_its_key(subject, model, tmp_path, key):
    plain = replace(subject, target=None)
    harvest(plain, tmp_path / "acts", 100, show=False)
    other = replace(plain, **{key: {"target": MLP, "average": "document"}[key]})
    with pytest.raises(ValueError, match=f"{key} = None, not '{other.__dict__[key]}'"):
        harvest(other, tmp_path / "acts", 200, show=False)


def test_several_sites_are_harvested_side_by_side(subject, tmp_path):
    parts = ["model.layers.0", "model.layers.2:in", "model.layers.1.mlp.up_proj"]
    both = replace(subject, site=",".join(parts[:2]), target=parts[2])
    store = harvest(both, tmp_path / "acts", 200, dtype="fp32", show=False)
    assert (store.d_in, store.d_out) == (32, 24)
    for number, part in enumerate(parts):
        one = harvest(replace(subject, site=part, target=None), tmp_path / part, 200, dtype="fp32", show=False)
        columns = all_rows(store)[:, 16 * number :][:, : one.d_in]
        n = min(len(one), len(store))
        torch.testing.assert_close(columns[:n], all_rows(one)[:n], rtol=1e-4, atol=1e-4)


def test_a_source_that_gives_nan_names_both_sites(subject, model, monkeypatch):
    real = model.activations
    monkeypatch.setattr(model, "activations", lambda ids: real(ids) * float("nan"))
    with pytest.raises(ValueError, match=f"NaN .*{MLP}:in or {MLP}"):
        next(LiveSource(subject, window_rows=100, model=model).batches(8))


# ---- averages ----


@pytest.fixture(scope="module")
def turns(subject, text_folder) -> Subject:
    text = str(text_folder / "0[0-2]*.txt")
    return replace(subject, site="model.layers.1", target=None, average="document", text=text)


def means_by_hand(subject: Subject) -> list[tuple[int, int, torch.Tensor]]:
    """Document, position and mean of every part of up to 15 tokens, each run on its own in plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(subject.model)
    reference = AutoModelForCausalLM.from_pretrained(subject.model).eval()
    found = []
    for number, document in enumerate(read_text(subject.text, split="train", seed=subject.seed)):
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, len(ids), 15):
            part = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + 15]]])
            with torch.no_grad():
                hidden = reference(part, output_hidden_states=True).hidden_states[2]
            found.append((number, start, hidden[0, 1:].mean(0)))
    return found


def test_an_average_is_the_mean_over_a_documents_tokens_read_by_themselves(turns, tmp_path):
    store = harvest(turns, tmp_path / "acts", 10**6, dtype="fp32", show=False)
    expected = means_by_hand(turns)
    assert len(store) == len(expected)
    torch.testing.assert_close(all_rows(store), torch.stack([row for _, _, row in expected]), rtol=1e-4, atol=1e-4)
    assert column(store, "document").tolist() == [number for number, _, _ in expected]
    assert column(store, "position").tolist() == [start for _, start, _ in expected]
    assert set(column(store, "token").tolist()) == {-1}
    documents = list(read_text(turns.text, split="train", seed=turns.seed))
    names = [pair for shard in range(len(store.manifest.shards)) for pair in store.names(shard)]
    assert names == [(number, document.name) for number, document in enumerate(documents)]
    dropped = store.manifest.dropped
    assert dropped["padding"] > dropped["bos"] == len(store)  # one packed row, one BOS, one average
    assert sum(start > 0 for _, start, _ in expected) > 5  # some documents are longer than a row


def test_outliers_do_not_enter_an_average(turns, tmp_path, monkeypatch):
    model = turns.language_model()
    real = model.activations

    def activations(ids):
        found = real(ids).clone()
        found[:, 2] *= 1e4
        return found

    before = all_rows(harvest(turns, tmp_path / "plain", 30, dtype="fp32", model=model, show=False))
    monkeypatch.setattr(model, "activations", activations)
    store = harvest(turns, tmp_path / "loud", 30, dtype="fp32", model=model, show=False)
    assert store.manifest.dropped["outlier"] >= 30
    blocks = list(turns.token_rows(model, "train", len(store)))
    keep = blocks[0].keep.clone()
    keep[:, 2] = False
    rows = [real(ids[None])[0][kept].mean(0) for ids, kept in zip(blocks[0].ids, keep, strict=True) if kept.any()]
    torch.testing.assert_close(all_rows(store), torch.stack(rows)[: len(store)], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(all_rows(store)[:5], before[:5], atol=1e-2)


def test_targets_are_averaged_like_their_rows(turns, tmp_path):
    both = replace(turns, target="model.layers.0")
    store = harvest(both, tmp_path / "both", 100, dtype="fp32", show=False)
    for columns, site in ((slice(0, 16), "model.layers.1"), (slice(16, 32), "model.layers.0")):
        one = harvest(replace(turns, site=site), tmp_path / site, 100, dtype="fp32", show=False)
        n = min(len(one), len(store))
        torch.testing.assert_close(all_rows(store)[:n, columns], all_rows(one)[:n], rtol=1e-4, atol=1e-4)


def test_averages_go_on_where_they_stopped(turns, tmp_path):
    harvest(turns, tmp_path / "acts", 20, show=False)
    harvest(turns, tmp_path / "acts", 60, show=False)
    harvest(turns, tmp_path / "once", 60, show=False)
    one, other = Store(tmp_path / "acts"), Store(tmp_path / "once")
    assert torch.equal(all_rows(one), all_rows(other))
    assert torch.equal(column(one, "document"), column(other, "document"))
    assert one.manifest.dropped == other.manifest.dropped
    assert len(one) >= 60


def test_a_live_source_gives_the_averages_a_store_has(turns, tmp_path):
    model = turns.language_model()
    store = harvest(turns, tmp_path / "acts", 10**6, dtype="fp32", model=model, show=False)
    live = LiveSource(turns, window_rows=16 * 20, model=model)
    found = torch.cat([live.window(number) for number in range(len(store) // 20 + 2)])
    assert len(live.window(0)) == 20
    expected = torch.cat([all_rows(store)] * 2)[: len(found)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    state = None
    for number, batch in enumerate(live.batches(30)):
        if number == 2:
            state = batch.place
        if number == 3:
            break
    again = LiveSource(turns, window_rows=16 * 20, model=model)
    again.restore(state)
    assert torch.equal(next(again.batches(30)).x, batch.x)


def test_a_piece_is_a_document_to_an_average(turns, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"the lazy dog {n}\n" for n in range(20)))
    here = replace(turns, text=str(tmp_path / "text.txt"), piece=15)
    store = harvest(here, tmp_path / "acts", 10**6, split="all", show=False)
    names = dict(store.names(0))
    assert len(store) == len(names) == 20
    assert sorted(names.values()) == sorted(f"text.txt:{line}" for line in range(1, 21))


def test_one_short_document_is_enough_for_an_average(turns, tmp_path):
    (tmp_path / "short.txt").write_text("the fox")
    here = replace(turns, text=str(tmp_path / "short.txt"))
    assert len(harvest(here, tmp_path / "acts", 10, split="all", show=False)) == 1
    assert set(files(tmp_path / "acts")) == {"manifest.json", "shard-00000.safetensors"}


def test_only_documents_are_averaged_over(turns):
    with pytest.raises(ValueError, match="average .*'document'.*got 'piece'"):
        replace(turns, average="piece")
