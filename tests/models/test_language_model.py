"""One site of a model: what is read there is what transformers says, what is put there reaches the logits."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers.utils import logging

from saelab.models import loading
from saelab.models.language_model import LanguageModel
from saelab.models.loading import BUNDLED, bundled_folder

IDS = torch.tensor([[0, 5, 9, 200, 31], [0, 7, 7, 12, 300]])


def bundled_or_skip() -> Path:
    try:
        return bundled_folder()
    except ValueError as error:
        pytest.skip(str(error))


def hidden_states(model: LanguageModel, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return model.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states


def copy_of(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place))


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def tiny(request) -> tuple[Path, str]:
    """Folder of a tiny model and the path of its blocks."""
    path = {"tiny_llama": "model.layers", "tiny_gpt2": "transformer.h"}[request.param]
    return request.getfixturevalue(request.param), path


# ---- reading ----


def test_activations_are_the_hidden_states(tiny):
    folder, path = tiny
    for layer in (0, 1):
        model = LanguageModel(str(folder), f"{path}.{layer}")
        states = hidden_states(model, IDS)
        assert torch.equal(model.activations(IDS), states[layer + 1])
        assert torch.equal(LanguageModel(str(folder), f"{path}.{layer}:out").activations(IDS), states[layer + 1])
        assert torch.equal(LanguageModel(str(folder), f"{path}.{layer}:in").activations(IDS), states[layer])


def test_run_gives_logits_and_the_same_activations(tiny):
    folder, path = tiny
    for side in ("in", "out"):
        model = LanguageModel(str(folder), f"{path}.1:{side}")
        logits, activations = model.run(IDS)
        with torch.no_grad():
            assert torch.equal(logits, model.model(input_ids=IDS).logits)
        assert torch.equal(activations, model.activations(IDS))
        assert logits.shape == (2, 5, 320)


def test_tuple_output_and_named_input(tiny_llama):
    """A Llama's attention gives (output, weights) and is given its input by name."""
    out = LanguageModel(str(tiny_llama), "model.layers.1.self_attn")
    given = LanguageModel(str(tiny_llama), "model.layers.1.self_attn:in")
    norm = LanguageModel(str(tiny_llama), "model.layers.1.input_layernorm")
    projected = LanguageModel(str(tiny_llama), "model.layers.1.self_attn.o_proj")
    assert torch.equal(out.activations(IDS), projected.activations(IDS))
    assert torch.equal(given.activations(IDS), norm.activations(IDS))
    for model in (out, given):
        logits, activations = model.run(IDS)
        assert torch.equal(model.forward_with(IDS, activations), logits)
        assert not torch.allclose(model.forward_with(IDS, activations * 0), logits)


def test_layers_above_the_site_are_skipped(tiny):
    folder, path = tiny
    model = LanguageModel(str(folder), f"{path}.1")
    calls = dict.fromkeys(range(3), 0)
    for layer in calls:

        def count(*_, layer=layer):
            calls[layer] += 1

        model.model.get_submodule(f"{path}.{layer}").register_forward_hook(count)
    model.activations(IDS)
    assert calls == {0: 1, 1: 1, 2: 0}
    model.run(IDS)
    assert calls == {0: 2, 1: 2, 2: 1}


@pytest.mark.parametrize(("side", "first"), [("in", 1), ("out", 2)])
def test_blocks_whose_output_is_replaced_are_not_run(tiny, side, first):
    folder, path = tiny
    model = LanguageModel(str(folder), f"{path}.1:{side}")
    logits, activations = model.run(IDS)
    assert torch.equal(model.forward_with(IDS, activations), logits)
    run = []
    for layer in range(3):
        inside = next(model.model.get_submodule(f"{path}.{layer}").children())
        inside.register_forward_hook(lambda *_, layer=layer: run.append(layer))
    assert torch.equal(model.forward_with(IDS, activations), logits)
    assert run == list(range(first, 3))
    assert torch.equal(model.run(IDS)[0], logits), "the blocks are as they were"


def test_blocks_that_hand_on_more_than_the_stream_are_run(tiny_llama):
    model = LanguageModel(str(tiny_llama), "model.layers.1")
    inner = model.model.model.layers[2]
    heard = {}
    model.model.model.layers[0].register_forward_hook(lambda _, args, out: heard.update(shift=args[0] - out))
    inner.register_forward_pre_hook(lambda _, args: (args[0] + heard["shift"], *args[1:]))
    logits, activations = model.run(IDS)
    torch.testing.assert_close(model.forward_with(IDS, activations), logits)


@pytest.mark.parametrize("keeps", [True, False])
def test_the_last_logits_alone(tiny, keeps):
    folder, path = tiny
    model = LanguageModel(str(folder), f"{path}.1")
    model._keeps_logits = keeps
    rows = torch.randn(model.activations(IDS).shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.forward_with(IDS, rows, last=2), model.forward_with(IDS, rows)[:, 3:])


def test_no_hook_and_no_gradient_is_left(tiny_llama):
    model = LanguageModel(str(tiny_llama), "model.layers.0")
    rows = model.activations(IDS)
    logits, _ = model.run(IDS)
    model.forward_with(IDS, rows)
    block = model.model.get_submodule("model.layers.0")
    assert not block._forward_hooks
    assert not block._forward_pre_hooks
    assert not logits.requires_grad
    assert not rows.requires_grad
    assert not rows.is_inference()  # or no SAE could be trained on them
    assert not model.model.training


def test_activations_do_not_change_when_the_model_goes_on_in_place(tiny_llama):
    model = LanguageModel(str(tiny_llama), "model.layers.0")
    expected = model.activations(IDS)
    model.model.get_submodule("model.layers.1").register_forward_pre_hook(lambda _, args: (args[0].mul_(2),))
    assert torch.equal(model.run(IDS)[1], expected)
    rows = expected.clone()
    model.forward_with(IDS, rows)
    assert torch.equal(rows, expected)


# ---- replacing ----


@pytest.mark.parametrize("side", ["in", "out"])
def test_run_with_its_own_activations_changes_nothing(tiny, side):
    folder, path = tiny
    model = LanguageModel(str(folder), f"{path}.1:{side}")
    logits, activations = model.run(IDS)
    assert torch.equal(model.forward_with(IDS, activations), logits)


@pytest.mark.parametrize("side", ["in", "out"])
def test_run_with_others_changes_the_logits_from_there_on(tiny, side):
    folder, path = tiny
    model = LanguageModel(str(folder), f"{path}.1:{side}")
    logits, activations = model.run(IDS)
    activations[0, 3] *= torch.linspace(0.5, 1.5, model.d_in)
    changed = model.forward_with(IDS, activations)
    assert torch.equal(changed[1], logits[1])
    assert torch.equal(changed[0, :3], logits[0, :3])
    assert (changed[0, 3:] != logits[0, 3:]).any(-1).all()
    assert torch.equal(model.run(IDS)[0], logits)  # and leaves nothing behind


def test_run_with_casts_to_the_models_dtype(tiny_llama):
    model = LanguageModel(str(tiny_llama), "model.layers.1", dtype="bfloat16")
    logits, activations = model.run(IDS)
    assert logits.dtype == activations.dtype == model.activations(IDS).dtype == torch.bfloat16
    assert torch.equal(model.forward_with(IDS, activations.double()), logits)


# ---- what is known of a model ----


def test_attributes(tiny):
    folder, path = tiny
    model = LanguageModel(str(folder), f"{path}.1")
    assert model.d_in == {"model.layers": 16, "transformer.h": 12}[path]
    assert (model.n_layers, model.context) == (3, 16)
    assert (model.name, model.site) == (str(folder), f"{path}.1")
    assert model.tokenizer("the dog", add_special_tokens=False)["input_ids"]
    wide = {"model.layers": "model.layers.1.mlp.up_proj", "transformer.h": "transformer.h.1.mlp.act"}[path]
    assert LanguageModel(str(folder), wide).d_in == {"model.layers": 24, "transformer.h": 48}[path]


def test_fingerprint(tiny_llama, tiny_gpt2, tmp_path):
    first = LanguageModel(str(tiny_llama), "model.layers.0").fingerprint
    assert len(first) == 64
    moved = copy_of(tiny_llama, tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"transformers_version": "5.0.0"}))
    assert LanguageModel(str(moved), "model.layers.2:in").fingerprint == first
    weights = safetensors.torch.load_file(moved / "model.safetensors")
    weights["model.norm.weight"][3] += 1
    safetensors.torch.save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert LanguageModel(str(moved), "model.layers.0").fingerprint != first
    assert LanguageModel(str(tiny_gpt2), "transformer.h.0").fingerprint != first


def test_fingerprint_sees_the_config(tiny_llama, tmp_path):
    other = copy_of(tiny_llama, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    names = [LanguageModel(str(folder), "model.layers.0").fingerprint for folder in (tiny_llama, other)]
    assert names[0] != names[1]


def test_bundled_model():
    bundled_or_skip()
    model = LanguageModel(BUNDLED, "model.layers.3")
    assert (model.d_in, model.n_layers, model.context) == (256, 6, 512)
    text = "import os\n\ndef read(path):\n    with open(path) as file:\n        return file.read()\n" * 3
    ids = torch.tensor([[model.tokenizer.bos_token_id, *model.tokenizer(text)["input_ids"]]])
    logits, activations = model.run(ids)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert loss < 2.5  # it knows Python
    assert torch.equal(activations, model.activations(ids))
    # Kept in float16, so it is the same model however it is loaded.
    assert LanguageModel(BUNDLED, "model.layers.0", dtype="float16").fingerprint == model.fingerprint


def test_loading_is_quiet_and_settings_come_back(tiny_llama, capfd):
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        LanguageModel(str(tiny_llama), "model.layers.0")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
    out, err = capfd.readouterr()
    assert "Loading weights" not in out + err


# ---- errors ----


def test_model_that_is_nowhere(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no folder '/no/such/model'"):
        LanguageModel("/no/such/model", "model.layers.0")
    with pytest.raises(ValueError, match=r"no folder '\./model'"):
        LanguageModel("./model", "model.layers.0")

    def refuse(text):
        def from_pretrained(*args, **kwargs):
            raise OSError(text)

        monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)

    refuse("We couldn't connect to 'https://huggingface.co' to load the files\nmore")
    with pytest.raises(ValueError, match=r"^cannot load the model 'gpt2': .*'pycode-7m'\)$"):  # fmt: skip
        LanguageModel("gpt2", "transformer.h.0")
    refuse(
        "nobody/x is not a local folder and is not a valid model identifier listed on 'https://huggingface.co'\nmore"
    )
    with pytest.raises(ValueError, match="the hub has no such model"):
        LanguageModel("nobody/x", "transformer.h.0")
    refuse("You are trying to access a gated repo.\nmore")
    with pytest.raises(ValueError, match=r"the hub's copy gives: You are .* repo\.$"):
        LanguageModel("nobody/x", "transformer.h.0")


def test_hub_out_of_reach_for_real():
    with pytest.raises(ValueError, match="the hub cannot be reached"):
        LanguageModel("nobody/nothing", "transformer.h.0")


@pytest.mark.parametrize("damage", ["weights", "no weights", "config"])
def test_damaged_folder(tiny_llama, tmp_path, damage):
    folder = copy_of(tiny_llama, tmp_path / "damaged")
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"\xff" * 400)
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    else:
        (folder / "config.json").write_text('{"model_type"')
    with pytest.raises(ValueError, match="folder is damaged or incomplete") as caught:
        LanguageModel(str(folder), "model.layers.0")
    assert "\n" not in str(caught.value)


def test_missing_weight_is_not_filled_with_random_numbers(tiny_llama, tmp_path):
    folder = copy_of(tiny_llama, tmp_path / "gap")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 .*layers\.1\.mlp\.up_proj\.weight"):
        LanguageModel(str(folder), "model.layers.0")


def test_missing_bundled_model(tmp_path, monkeypatch):
    monkeypatch.setattr(loading.importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match="pycode-7m is missing.*install saelab"):
        LanguageModel(BUNDLED, "model.layers.0")


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("model.layer.2", r"has no module 'model\.layer\.2'; closest: model\.layers\.2, "),
        ("", r"has no module ''; closest: "),
        ("model.layers.2:both", "the side 'both' of the site 'model.layers.2:both' is neither in nor out"),
        ("model.layers.2:", "the side '' of the site 'model.layers.2:' is neither in nor out"),
        ("model.layers", r"is never run itself; choose a module inside it, such as model\.layers\.0"),
        ("model.rotary_emb", r"holds torch\.float32 of shape \[1, 2, 8\] for token ids of shape \[2, 2\], expected"),
        ("model.embed_tokens:in", r"holds torch\.int64 of shape \[2, 2\] for"),
        ("model", r"the site 'model' of .* holds a BaseModelOutputWithPast for token ids"),
        ("model:in", r"holds torch\.int64 of shape \[2, 2\] for token ids"),
    ],
)  # fmt: skip
def test_bad_site(tiny_llama, site, message):
    with pytest.raises(ValueError, match=message) as caught:
        LanguageModel(str(tiny_llama), site)
    assert "\n" not in str(caught.value)


def test_module_that_is_run_more_than_once(tiny_llama):
    model = LanguageModel(str(tiny_llama), "model.layers.0.mlp.act_fn")
    block = model.model.get_submodule("model.layers.1.mlp")
    block.act_fn = model.model.get_submodule("model.layers.0.mlp.act_fn")
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.act_fn' .*run 2 times"):
        model._probe()


def test_bad_ids_and_activations(tiny_llama):
    model = LanguageModel(str(tiny_llama), "model.layers.1")
    long = torch.zeros(1, 17, dtype=torch.int64)
    calls = [model.activations, model.run, lambda ids: model.forward_with(ids, torch.zeros(1, 17, 16))]
    for call in calls:
        with pytest.raises(ValueError, match="17 tokens .*the 16 .*seq_len"):
            call(long)
    with pytest.raises(ValueError, match=r"\[R, T\], got torch.int64 .*\[5\]"):
        model.activations(IDS[0])
    with pytest.raises(ValueError, match=r"\[R, T\], got torch.float32"):
        model.activations(IDS.float())
    with pytest.raises(ValueError, match=r"\[2, 5, 16\], got \[2, 5, 8\]"):
        model.forward_with(IDS, torch.zeros(2, 5, 8))
    assert torch.equal(model.activations(IDS.int()), model.activations(IDS))


def test_bad_device_and_dtype(tiny_llama):
    with pytest.raises(ValueError, match="'float23'; did you mean 'float32'"):
        LanguageModel(str(tiny_llama), "model.layers.0", dtype="float23")
    with pytest.raises(ValueError, match="cannot use the device 'gpu': "):
        LanguageModel(str(tiny_llama), "model.layers.0", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cannot use the device 'cuda': "):
            LanguageModel(str(tiny_llama), "model.layers.0", device="cuda")


def test_tokens_that_the_model_does_not_know_are_said_to_come_from_another_tokenizer(tiny_llama):
    model = LanguageModel(str(tiny_llama), "model.layers.1")
    for read in (model.activations, model.run):
        with pytest.raises(ValueError, match="token 320, .* 320"):
            read(torch.tensor([[1, 320]]))
    assert model.activations(torch.tensor([[1, 319]])).shape == (1, 2, 16)


def test_a_tokenizer_of_far_fewer_tokens_is_anothers(tiny_llama, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(tiny_llama, folder)
    inner = Tokenizer(WordLevel({"the": 0, "fox": 1, "?": 2}, unk_token="?"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?").save_pretrained(folder)
    with pytest.raises(ValueError, match="mixed: it has 3 tokens, the model 320"):
        LanguageModel(str(folder), "model.layers.1")
