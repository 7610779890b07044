"""A store is gone on with on the text that it was harvested from, or not at all."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipes.world import SITE

from saelab.core.read import read_json
from saelab.data.store import Store
from saelab.models import harvest as module
from saelab.models.harvest import harvest
from saelab.models.harvest_config import HarvestConfig
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject
from saelab.recipes.harvest import harvest_to

pytest_plugins = ["recipes.small_world"]

WORDS = [
    "once",
    "upon",
    "a",
    "time",
    "there",
    "was",
    "a",
    "child",
    "who",
    "liked",
    "to",
    "play",
    "in",
    "the",
    "garden",
    "with",
    "an",
    "old",
    "dog",
]


def write(path: Path, first: int, last: int) -> None:
    """Stories number `first` to `last` as JSON lines."""
    stories = [" ".join(random.Random(number).choices(WORDS, k=30)) for number in range(first, last)]
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LanguageModel:
    return Subject(str(tiny_llama), SITE).language_model()


@pytest.fixture
def subject(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 64)  # 4 packed rows a pass, and a shard every second one
    monkeypatch.setattr(module, "SHARD_BYTES", 100 * 16 * 4)
    write(tmp_path / "stories.jsonl", 0, 40)
    return Subject(str(tiny_llama), SITE, str(tmp_path / "stories.jsonl"), seq_len=16)


def rows_of(store: Store) -> torch.Tensor:
    return torch.cat([store.rows(number) for number in range(len(store.manifest.shards))])


@pytest.mark.parametrize(
    ("first", "last", "where"),
    [
        (-20, 40, r"shard-00000\.safetensors \(look at stories\.jsonl row 1\)"),  # others in front of it
        (0, 3, r"shard-0000\d\.safetensors"),  # most of it is gone
    ],
)
def test_a_text_that_changed_is_refused(subject, model, tmp_path, first, last, where):
    harvest(subject, tmp_path / "acts", 400, "all", model=model, show=False)
    before = (tmp_path / "acts" / "manifest.json").read_bytes()
    write(tmp_path / "stories.jsonl", first, last)
    message = rf"the text .*stories\.jsonl has changed since .*acts was harvested: .*{where}.*put the text back"
    with pytest.raises(ValueError, match=message):
        harvest(subject, tmp_path / "acts", 700, "all", model=model, show=False)
    assert (tmp_path / "acts" / "manifest.json").read_bytes() == before


def test_a_document_that_stands_in_anothers_place_is_named(subject, model, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        write(folder / f"{number}.jsonl", number, number + 1)
    subject = replace(subject, text=str(folder))
    harvest(subject, tmp_path / "acts", 400, "all", model=model, show=False)
    write(folder / "new.jsonl", 99, 100)
    with pytest.raises(ValueError, match=r"\d+\.jsonl row 1 is now \w+\.jsonl row 1"):
        harvest(subject, tmp_path / "acts", 700, "all", model=model, show=False)


@pytest.mark.parametrize("at_once", [64, 48])
def test_text_that_only_grew_is_gone_on_with(subject, model, tmp_path, monkeypatch, at_once):
    harvest(subject, tmp_path / "acts", 400, "all", model=model, show=False)
    write(tmp_path / "stories.jsonl", 0, 80)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", at_once)
    longer = harvest(subject, tmp_path / "acts", 900, "all", model=model, show=False)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 64)
    once = harvest(subject, tmp_path / "once", 900, "all", model=model, show=False)
    count = min(len(longer), len(once))
    assert count >= 900
    assert torch.allclose(rows_of(longer)[:count].float(), rows_of(once)[:count].float(), atol=1e-2)
    assert module.is_text_known(longer.manifest)


def test_a_store_that_does_not_say_its_text_is_gone_on_with(subject, model, tmp_path, capsys):
    harvest(subject, tmp_path / "acts", 400, "all", "fp32", model=model, show=False)
    path = tmp_path / "acts" / "manifest.json"
    manifest = read_json(path)
    del manifest["notes"][module.TEXT]
    path.write_text(json.dumps(manifest))
    harvest_to(str(tmp_path / "acts"), HarvestConfig(subject, 700, "all", "fp32"))
    assert (
        "acts does not say which text it is of, so whether that has changed cannot be told" in capsys.readouterr().out
    )
    once = harvest(subject, tmp_path / "once", 700, "all", "fp32", model=model, show=False)
    assert torch.equal(rows_of(Store(tmp_path / "acts"))[:700], rows_of(once)[:700])
    harvest_to(str(tmp_path / "acts"), HarvestConfig(subject, 800, "all", "fp32"))  # now it says it
    assert "does not say" not in capsys.readouterr().out
