"""From characters to the model's tokens and rows: against decoding prefix by prefix, and reading texts one by one."""

from pathlib import Path

import pytest
import torch
from recipes.world import SITE

from saelab.metrics.base import Setting
from saelab.metrics.probing.codes import rows_of
from saelab.models.language_model import LanguageModel
from saelab.models.tokens import special_tokens
from saelab.tasks.files import tasks_of
from saelab.tasks.rows import POOLED, collect
from saelab.tasks.task import Task

pytest_plugins = ["models.conftest", "recipes.small_world"]

TEXTS = [
    "def area(width, height):\n\treturn f\"{width}é\" # café ünï",
    "x = \"日本語 text\" + 'naïve'\n\n\n    @decorator\n",
    "the quick\tbrown  fox 🦊 jumps",
    "a",
]  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tiny_llama: Path, tiny_gpt2: Path) -> LanguageModel:
    return LanguageModel(
        *{"llama": (str(tiny_llama), SITE), "gpt2": (str(tiny_gpt2), "transformer.h.1")}[request.param]
    )


def about(places: list[list[int]], repeat: int = 8) -> list[Task]:
    """A task about some characters of each text, the texts being there often enough."""
    lines = [
        {"text": text, "split": split, "document": f"{n}{split}{again}", "marks": {"t": [[at, n % 2] for at in some]}}
        for split in ("train", "test")
        for again in range(repeat)
        for n, (text, some) in enumerate(zip(TEXTS, places, strict=True))
    ]
    return tasks_of(lines, "here", most=10**6)[0]


def expected(model: LanguageModel, text: str, at: int) -> torch.Tensor | None:
    """The row of the last token that is needed to have the character: the text is decoded token by token."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    for count in range(1, len(ids) + 1):
        decoded = model.tokenizer.decode(ids[:count])
        if len(decoded) > at and "\ufffd" not in decoded[: at + 1]:
            join = special_tokens(model.tokenizer)[0]
            row = torch.tensor([[join, *ids]])
            return model.activations(row[:, : model.context])[0, count] if count < row.shape[1] else None
    return None


def test_a_character_is_looked_up_in_the_token_that_holds_it(model):
    context = model.context - 1
    places = [[at for at in range(len(text)) if not text[at].isspace()] for text in TEXTS]
    (task,) = about(places)
    rows = collect([task], model)
    (found,) = rows.examples
    seen = 0
    for text, at, first, count in zip(found.task.text, found.task.at, found.first, found.count, strict=True):
        text = found.task.texts.texts[text]
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        wanted = expected(model, text, int(at))
        if wanted is not None and len(ids) <= context:
            torch.testing.assert_close(rows.x[first], wanted, rtol=1e-4, atol=1e-5)
            seen += 1
        assert count == 1
    assert seen > 0
    assert 0 < len(found.task) <= len(task)


def test_places_behind_the_models_context_are_left_out(model):
    text = "x " * 60
    lines = [
        {"text": text + str(n), "split": split, "marks": {"early": [[0, n % 2]], "late": [[110, n % 2]]}}
        for split in ("train", "test")
        for n in range(20)
    ]
    rows = collect(tasks_of(lines, "here")[0], model)
    assert [one.task.name for one in rows.examples] == ["early"]
    assert "to train on, fewer than 8" in rows.left_out["late"]
    assert f"the {model.context - 1} tokens that are read" in rows.left_out["late"]


def test_a_whole_text_has_its_last_token_and_evenly_spaced_others(model):
    lines = [{"text": ("fox " * (n % 5 + 1)).strip(), "label": n % 2} for n in range(80)]
    (task,), _ = tasks_of(lines, "here")
    rows = collect([task], model)
    (found,) = rows.examples
    for text, last, count in zip(found.task.text, found.last, found.count, strict=True):
        ids = model.tokenizer(found.task.texts.texts[text], add_special_tokens=False)["input_ids"]
        ids = ids[: model.context - 1]
        assert count == min(len(ids), POOLED)
        own = model.activations(torch.tensor([[special_tokens(model.tokenizer)[0], *ids]]))[0]
        torch.testing.assert_close(rows.x[last], own[-1], rtol=1e-4, atol=1e-5)


def test_a_row_asked_for_by_several_tasks_is_there_once(model):
    lines = [{"text": f"fox {n}", "marks": {"a": [[0, n % 2]], "b": [[0, 1 - n % 2]]}} for n in range(80)]
    tasks, _ = tasks_of(lines, "here")
    rows = collect(tasks, model)
    one, other = rows.examples
    assert len(rows.x) == len(torch.cat([one.first, other.first]).unique())


def test_a_tokenizer_that_does_not_fit_the_model_is_said(model, monkeypatch):
    (task,) = about([[0]] * 4)
    real = model.tokenizer

    class Other:
        is_fast, name = True, "other"
        bos_token_id = eos_token_id = pad_token_id = 0

        def __call__(self, texts, **options):
            found = real(texts, **options)
            found["input_ids"][0][0] = 50_000
            return found

    monkeypatch.setattr(model, "tokenizer", Other())
    with pytest.raises(ValueError, match="token 50000, .* 320"):
        collect([task], model)
    monkeypatch.setattr(model, "tokenizer", object())
    with pytest.raises(ValueError, match="which characters its tokens are"):
        collect([task], model)


class NoModel:
    why_no_model, model = "needs a model, and this data is activations only", None


def test_without_tasks_or_a_model_the_reason_is_given():
    with pytest.raises(ValueError, match="needs labelled tasks: give --tasks"):
        rows_of(Setting("sae", {}, NoModel()))
    with pytest.raises(ValueError, match="needs a model"):
        rows_of(Setting("sae", {}, NoModel(), about([[0]] * 4)))
