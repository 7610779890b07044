"""The explorer on a model with a SentencePiece-like tokenizer: the source is shown as it was, and found."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from models.tokenizers_of_many import llama_like
from transformers import LlamaConfig, LlamaForCausalLM

from saelab.data.store import Store
from saelab.explorer.collect import collect
from saelab.explorer.corpus import StoreCorpus, TextCorpus
from saelab.explorer.database import FILE, Database
from saelab.explorer.export import neuronpedia
from saelab.explorer.pages import latents, pattern, prompt
from saelab.explorer.search import Query
from saelab.explorer.search import latents as found_in
from saelab.explorer.windows import windows
from saelab.explorer.workspace import Workspace
from saelab.models.harvest import harvest
from saelab.models.subject import Subject
from saelab.runs import open_run
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE

ROWS = ["\n".join(f"once upon a time {n} {line} 🙂 na\u00efve\tcup  on" for line in range(1, 11)) for n in range(1, 31)]
SITE = "model.layers.0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a SentencePiece-like tokenizer, rows of ten lines, an SAE looked at on text and store."""
    folder = tmp_path_factory.mktemp("source-text")
    tokenizer = llama_like()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS))
    subject = Subject(str(folder / "model"), SITE, str(folder / "lines.jsonl"), seq_len=64)
    model = subject.language_model()
    sae = SAE(d_in=16, n_latents=24, activation=TopK(k=3), seed=0)
    harvest(subject, folder / "acts", 3000, "all", "fp32", model, show=False)
    sae.initialise(Store(folder / "acts").rows(0)[:500])
    for name, corpus in (
        ("text", TextCorpus(subject, model, 3000, "all")),
        ("store", StoreCorpus(folder / "acts", 3000)),
    ):
        run = folder / name
        sae.save(run / "sae")
        (run / "config.yaml").write_text("format: 1\n")
        (run / "source.json").write_text(json.dumps(subject.origin(model, "all")))
        collect(sae, open_run(run).weights_file, corpus, model, run, show=False)
    return folder


@pytest.fixture(scope="module")
def workspace(folder) -> Workspace:
    return Workspace([folder / "text", folder / "store"])


def busy(workspace: Workspace, name: str) -> int:
    (row,) = workspace[name].database.all("SELECT id FROM latents ORDER BY count DESC LIMIT 1")
    return int(row["id"])


@pytest.mark.parametrize("name", ["text", "store"])
def test_examples_read_as_the_source_and_say_where_they_are(workspace, name):
    database, latent = workspace[name].database, busy(workspace, name)
    rows, _ = database.activations(latent)
    last = int(database.corpus(2900, 10_000)["document"][-1])
    for one in windows(workspace[name], latent, rows[::7].tolist()):
        number = int(one["document"].removeprefix("lines.jsonl row "))
        source, text = ROWS[number - 1], "".join(one["tokens"])
        assert text in source
        assert len(one["tokens"]) == len(one["values"])
        assert one["values"][one["focus"]] != 0
        assert not any("\ufffd" in token for token in one["tokens"])
        if one["document"] != database.document(last)["name"]:  # of the last one there may be a line only
            assert one["place"] == f"lines.jsonl row {number}, line {one['line']}"
        # The line that is named is the one on which the token stands.
        before = "".join(one["tokens"][: one["focus"]])
        own = one["tokens"][one["focus"]]
        at = source.index(text) + len(before) + len(own) - len(own.lstrip() or own)
        assert source[:at].count("\n") + 1 == one["line"] or text in source[source.index(text) + 1 :]


@pytest.mark.parametrize("name", ["text", "store"])
@pytest.mark.parametrize("query", ["upon", "once upon a time", "na\u00efve", "cup on"])
def test_words_with_blanks_between_them_are_found(workspace, name, query):
    assert found_in(workspace[name].database, Query(q=query))["total"] > 0


def test_top_tokens_keep_their_blank(workspace):
    joined = "\x1f".join(row["tokens"] for row in workspace["store"].database.all("SELECT tokens FROM latents"))
    assert {" a", " t", " up", "on"} & set(joined.split("\x1f"))
    assert not any("\u2581" in word for word in joined.split("\x1f"))


def test_a_prompt_is_shown_as_it_was_written(workspace):
    text = "once upon  a time 🙂\tna\u00efve\n"
    found = prompt.prompt(workspace, "text", {"text": text})
    assert "".join(found["tokens"]) == text
    assert "🙂" in [token.strip() for token in found["tokens"]]
    assert len(found["latents"]) == len(found["tokens"])
    place = next(place for place, token in enumerate(found["tokens"]) if "🙂" in token)
    numbers = [one["latent"] for one in found["latents"][place]]
    assert len(numbers) == len(set(numbers)) > 3  # of several tokens, with three latents each
    ablated = prompt.ablate(workspace, "text", {"text": text, "token": place})
    assert {one["latent"] for one in ablated["effects"]} >= set(numbers)
    assert {one["latent"] for one in ablated["effects"] if one["loss"]}
    steered = prompt.steer(
        workspace, "text", {"text": "once", "changes": [], "tokens": 5, "temperature": 0.0, "seed": 0}
    )
    assert steered["plain"] == steered["steered"]


def test_what_ablation_does_is_told_for_the_same_text(workspace):
    latent = busy(workspace, "text")
    row = workspace["text"].database.details(latent)["top"][0]
    found = prompt.effects(workspace, "text", latent, row)
    assert "".join(found["tokens"]) in "".join(ROWS)
    assert len(found["tokens"]) == len(found["values"]) == len(found["loss"]) == len(found["kl"])
    assert found["values"][found["focus"]] != 0


def test_patterns_and_exports_read_as_the_source(workspace, tmp_path):
    latent = busy(workspace, "text")
    for one in pattern.pattern(workspace, "text", latent)["patterns"]:
        assert not any("\u2581" in (token or "") for token in one["tokens"])
    neuronpedia(Workspace([workspace["text"].folder]), tmp_path / "out.jsonl", [latent])
    for one in json.loads((tmp_path / "out.jsonl").read_text())["activations"]:
        assert any("".join(one["tokens"]) in text for text in ROWS)
        assert one["values"][one["maxValueTokenIndex"]] == max(one["values"])


def test_a_database_of_before_still_opens(folder, workspace, tmp_path):
    shutil.copytree(folder / "text", tmp_path / "old")
    connection = sqlite3.connect(tmp_path / "old" / FILE)
    for name in ("start", "stop", "text"):
        connection.execute(f"ALTER TABLE corpus DROP COLUMN {name}")
    connection.execute("UPDATE documents SET name = replace(name, ' row ', ':')")
    connection.execute("PRAGMA user_version = 2")
    connection.commit()
    connection.close()
    old, latent = Workspace([tmp_path / "old"]), busy(workspace, "text")
    found = latents.latent(old, "old", latent, {})["examples"]["top"]
    new = latents.latent(workspace, "text", latent, {})["examples"]["top"]
    assert [one["place"] for one in found] == [one["place"] for one in new]
    assert [one["value"] for one in found] == [one["value"] for one in new]
    assert all("".join(one["tokens"]) for one in found)
    assert Database(tmp_path / "old" / FILE).text(0, 5) is None
