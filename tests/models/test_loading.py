"""Models that are not what saelab reads: the cause and the next step, in one line."""

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
import transformers

from saelab.models import loading
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject
from saelab.models.writer import LocalWriter

SIZES = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}


def refused(folder: Path | str, read=lambda name: LanguageModel(name, "model.layers.0")) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        read(str(folder))
    message = str(caught.value)
    assert "damaged or incomplete" not in message
    return message


@pytest.fixture
def folder(tiny_llama, tmp_path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tiny_llama.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}),
        ("tokenizer_config.json", {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.T", None]}}),
    ],
)
def test_code_of_a_models_own_is_named_and_not_run(folder, file, changes):
    edit(folder / file, **changes)
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise SystemExit")
    part = file.removesuffix(".json").removesuffix("_config")
    assert f"its {part} needs code that comes with it, which saelab never executes; choose" in refused(folder)
    assert not (folder / "ran").exists()


def test_a_model_type_that_transformers_does_not_know(folder):
    edit(folder / "config.json", model_type="llma")
    assert f"transformers {transformers.__version__} has no model type 'llma': install a newer one" in refused(folder)


@pytest.mark.parametrize("how", ["another version's", "cut off", "missing"])
def test_a_tokenizer_that_cannot_be_read(folder, how):
    file = folder / "tokenizer.json"
    if how == "another version's":
        inner = json.loads(file.read_text())
        inner["model"]["type"] = "BPE9"
        file.write_text(json.dumps(inner))
    elif how == "cut off":
        file.write_text('{"version"')
    else:
        file.unlink()
        (folder / "tokenizer_config.json").unlink()
    message = refused(folder) if how != "cut off" else refused(folder).replace("\n", " ")
    assert f"of another version of transformers than {transformers.__version__}" in message
    assert message.endswith("get all of them, or save the tokenizer again with this version")


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder(tmp_path, bos_tokenizer, kind):
    if kind == "t5":
        config = transformers.T5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        model = transformers.T5ForConditionalGeneration(config)
    else:
        config = transformers.BartConfig(vocab_size=320, d_model=16, encoder_layers=1, decoder_layers=1)
        model = transformers.BartForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    bos_tokenizer.save_pretrained(tmp_path)
    assert f"is an encoder-decoder ({kind}), which predicts from another text as well" in refused(tmp_path)


def test_a_model_without_a_causal_head(tmp_path, bos_tokenizer):
    config = transformers.EsmConfig(**SIZES, intermediate_size=8, mask_token_id=1)
    transformers.EsmForMaskedLM(config).save_pretrained(tmp_path)
    bos_tokenizer.save_pretrained(tmp_path)
    assert "has no causal language model for a EsmConfig; choose a causal language model" in refused(tmp_path)


def test_an_older_transformers_is_named_before_anything_is_read(folder, monkeypatch):
    found = importlib.metadata.version
    monkeypatch.setattr(
        loading.importlib.metadata, "version", lambda name: "4.57.1" if name == "transformers" else found(name)
    )
    for name in (folder, "pycode-7m", "no/such/model/there"):
        expected = "transformers 4.57.1 is installed, saelab needs 5 or newer: pip install 'transformers>=5'"
        assert refused(name) == expected


def test_the_version_needed_is_the_one_declared():
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    declared = [re.split(r"[;#]", one)[0].strip() for one in project["dependencies"]]
    assert f"transformers>={loading.NEEDED}" in declared
    assert "numpy>=2" in declared


# ---- causality ----


SITE = "bert.encoder.layer.0"


def bert(folder: Path, tokenizer, **options) -> str:
    config = transformers.BertConfig(**SIZES, intermediate_size=8, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertLMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_bidirectional_model_is_refused(tmp_path, bos_tokenizer):
    name = bert(tmp_path / "weak", bos_tokenizer)
    for read in (lambda name: LanguageModel(name, SITE), lambda name: LocalWriter(name, "cpu")):
        assert f"{name} is not causal: its logits at a token change with the token after it" in refused(name, read)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_bidirectional_model_is_refused_in_any_precision(tmp_path, bos_tokenizer, dtype):
    name = bert(tmp_path, bos_tokenizer, initializer_range=0.2)
    assert "is not causal" in refused(name, lambda name: LanguageModel(name, SITE, dtype=dtype))


def test_the_same_as_a_decoder_is_read(tmp_path, bos_tokenizer):
    model = LanguageModel(bert(tmp_path, bos_tokenizer, is_decoder=True), SITE)
    first, second = model.activations(torch.tensor([[3, 4, 5], [3, 4, 9]]))
    assert torch.equal(first[:2], second[:2])


# ---- a model itself ----


def test_a_model_and_its_tokenizer_are_read_like_a_folder(tiny_llama, bos_tokenizer):
    own = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    model, loaded = (
        LanguageModel(own, "model.layers.1", tokenizer=bos_tokenizer),
        LanguageModel(str(tiny_llama), "model.layers.1"),
    )
    ids = torch.tensor([[3, 4, 5]])
    assert model.model is own
    assert model.tokenizer is bos_tokenizer
    assert torch.equal(model.activations(ids), loaded.activations(ids))
    assert (model.fingerprint, model.name) == (loaded.fingerprint, str(tiny_llama))
    assert model.dtype == torch.float32
    half = LanguageModel(own.bfloat16(), "model.layers.1", tokenizer=bos_tokenizer)
    assert half.dtype == half.activations(ids).dtype == torch.bfloat16
    assert LanguageModel(own, "model.layers.1", dtype="float32", tokenizer=bos_tokenizer).dtype == torch.float32


def test_what_is_no_model_or_lacks_its_tokenizer(tiny_llama, bos_tokenizer):
    own = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    with pytest.raises(ValueError, match="tokenizer of .*missing.*tokenizer="):
        LanguageModel(own, "model.layers.1")
    for thing in (torch.nn.Linear(2, 2), 3, None):
        with pytest.raises(ValueError, match="causal language model .*got a "):
            LanguageModel(thing, "model.layers.1", tokenizer=bos_tokenizer)


def test_a_subject_of_a_model_says_what_works(tiny_llama):
    own = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    message = "model is a folder or a name, got a LlamaForCausalLM: save_pretrained it and name the folder, or give "
    with pytest.raises(ValueError, match=message):
        Subject(model=own)
