"""Published collections of SAEs: their formulas in float64, written out here, against ours."""

import math

import numpy as np
import pytest
import torch
from interchange.foreign import (
    D,
    K,
    L,
    O,
    both_precisions,
    check,
    exact,
    kept,
    normalised,
    random,
    rows,
    save,
    topk,
    weights,
)

from saelab.interchange import read

W = weights()
THRESHOLD = random(L, seed=5).abs() * 0.5
JUMP = W | {"threshold": THRESHOLD}


def pre(centred: bool, x: torch.Tensor | None = None) -> torch.Tensor:
    w, x = exact(W), rows().double() if x is None else x
    return (x - w["b_dec"] * centred) @ w["W_enc"].T + w["b_enc"]


def decoded(codes: torch.Tensor) -> torch.Tensor:
    return codes @ exact(W)["W_dec"] + exact(W)["b_dec"]


def npz(folder, tensors, name="params.npz"):
    folder.mkdir(parents=True)
    np.savez(folder / name, **{key: value.numpy() for key, value in tensors.items()})
    return folder


def flipped(tensors, lower=False):
    tensors = tensors | {"W_enc": tensors["W_enc"].T}
    return {key.replace("W_", "w_") if lower else key: value for key, value in tensors.items()}


@pytest.mark.parametrize("lower", [False, True])
def test_gemma_scope_1(tmp_path, lower):
    codes = pre(False) * (pre(False) > THRESHOLD.double())
    path = npz(tmp_path / "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", flipped(JUMP, lower))
    _, description = check(path, "gemma_scope", codes, decoded(codes))
    assert description.source == {"model": "google/gemma-2-2b", "site": "model.layers.20", "target": None}
    check(path / "params.npz", "gemma_scope", codes, decoded(codes))


@pytest.mark.parametrize(
    ("folder", "site"),
    [
        ("gemma-scope-9b-it-att/layer_3/x", "model.layers.3.self_attn.o_proj:in"),
        ("models--google--gemma-scope-2b-pt-mlp/snapshots/0a/layer_3/x", "model.layers.3.post_feedforward_layernorm"),
        ("gemma-scope-2b-pt-transcoders/layer_3/x", None),
        ("gemma-scope-2b-pt-res/embedding/x", None),
        ("layer_3/width_16k", None),
    ],
)
def test_the_site_of_gemma_scope_1_is_in_the_folders_names(tmp_path, folder, site):
    sae, description = read(npz(tmp_path / folder, flipped(JUMP)))
    assert description.source.get("site") == site
    assert (sae.d_out is not None) == ("transcoders" in folder)
    assert any("before they are multiplied" in note for note in description.notes) == ("embedding" in folder)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_gemma_scope_2(tmp_path, skip, told):
    tensors = weights(O) | {"threshold": THRESHOLD} if skip else JUMP
    tensors = flipped(tensors, lower=True) | ({"affine_skip_connection": random(D, O, seed=9)} if skip else {})
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.7.output"}
    if skip:
        places = ("model.layers.7.pre_feedforward_layernorm.output", "model.layers.7.post_feedforward_layernorm.output")
        config |= dict(zip(("hf_hook_point_in", "hf_hook_point_out"), places, strict=True))
    path = save(tmp_path / "sae", "params.safetensors", tensors, **({"config": config} if told else {}))
    w, x = exact(tensors), rows().double()
    codes = pre(False) * (pre(False) > THRESHOLD.double())
    x_hat = codes @ w["w_dec"] + w["b_dec"] + (x @ w["affine_skip_connection"] if skip else 0)
    sae, description = check(path, "gemma_scope", codes, x_hat)
    assert (sae.d_out is not None) == skip
    if told:
        assert description.source["model"] == "google/gemma-3-1b-pt"
        assert description.source["site"] == config["hf_hook_point_in"].removesuffix(".output")
        assert description.source["target"] == ("model.layers.7.post_feedforward_layernorm" if skip else None)
    else:
        assert description.source == {}


def test_gemma_scope_2_of_larger_models_and_across_layers(tmp_path):
    config = {"model_name": "gemma-v3-4b-pt", "hf_hook_point_in": "model.layers.7.output"}
    tensors = flipped(JUMP, lower=True)
    assert read(save(tmp_path / "a", "params.safetensors", tensors, config=config))[1].source == {}
    tensors["w_dec"] = tensors["w_dec"][:, None].expand(L, 3, D)
    with pytest.raises(ValueError, match="a cross-layer transcoder is not something"):
        read(save(tmp_path / "b", "params.safetensors", tensors))
    with pytest.raises(ValueError, match=r"config.json: the architecture topk is not something"):
        read(save(tmp_path / "a", "params.safetensors", tensors, config={"architecture": "topk"}))


LLAMA = {"encoder.weight": W["W_enc"], "encoder.bias": W["b_enc"], "decoder.weight": W["W_dec"].T,
         "decoder.bias": W["b_dec"]}  # fmt: skip
HYPER = {"d_model": D, "act_fn": "jumprelu", "jump_relu_threshold": 0.3, "norm_activation": "dataset-wise",
         "dataset_average_activation_norm": {"in": 1.25, "out": 1.25}, "hook_point_in": "blocks.9.hook_resid_post",
         "hook_point_out": "blocks.9.hook_resid_post", "apply_decoder_bias_to_pre_encoder": False}  # fmt: skip


def llama(tmp_path, **hyperparams):
    path = save(tmp_path / "Llama3_1-8B-Base-L9R-8x", "none.pt", {}, hyperparams=HYPER | hyperparams)
    (path / "none.pt").unlink()
    save(path / "checkpoints", "final.safetensors", LLAMA)
    return path


def test_llama_scope(tmp_path):
    s = math.sqrt(D) / 1.25
    seen = pre(False, rows().double() * s)
    codes = seen * (seen > 0.3 * s)
    _, description = check(llama(tmp_path), "llama_scope", codes, decoded(codes) / s)
    # The same by the authors' way: weights that answer in the rows' own unit, and the threshold as it is.
    w = exact(W)
    own = rows().double() @ w["W_enc"].T + w["b_enc"] / s
    own = own * (own > 0.3)
    torch.testing.assert_close(own * s, codes)
    torch.testing.assert_close(own @ w["W_dec"] + w["b_dec"] / s, decoded(codes) / s)
    assert description.source == {"model": "meta-llama/Llama-3.1-8B", "site": "model.layers.9", "target": None}


@pytest.mark.parametrize(
    ("hyperparams", "words"),
    [
        ({"act_fn": "batchlayertopk"}, "act_fn batchlayertopk is not something"),
        ({"norm_activation": "batch-wise"}, "norm_activation 'batch-wise' is not something"),
        ({"use_glu_encoder": True}, "use_glu_encoder is not something"),
        ({"dataset_average_activation_norm": {"in": 1.0, "out": 2.0}}, "should be one number, in and out"),
        ({"dataset_average_activation_norm": None}, "'dataset-wise' without the norm is not something"),
        ({"dataset_average_activation_norm": {"in": 0}}, "should be one positive number"),
        ({"jump_relu_threshold": None}, "does not say 'jump_relu_threshold'"),
    ],
)
def test_llama_scope_that_cannot_be_read(tmp_path, hyperparams, words):
    with pytest.raises(ValueError, match=words) as error:
        read(llama(tmp_path, **hyperparams))
    assert "hyperparams.json" in str(error.value)


@pytest.mark.parametrize("centred", [False, True])
def test_llama_scope_transcoders_scale_what_they_write_by_its_own_norm(tmp_path, centred):
    places = {"hook_point_in": "blocks.9.ln2.hook_normalized", "hook_point_out": "blocks.9.hook_mlp_out"}
    norms = {"dataset_average_activation_norm": {"in": 1.25, "out": 0.5}}
    s, out = math.sqrt(D) / 1.25, math.sqrt(D) / 0.5
    seen = pre(False, rows().double() * s)
    codes = seen * (seen > 0.3 * s)
    more = {"apply_decoder_bias_to_pre_encoder": centred}  # which a transcoder does not do
    sae, description = check(llama(tmp_path, **places, **norms, **more), "llama_scope", codes, decoded(codes) / out)
    assert sae.d_out == D
    assert description.source == {}


def test_llama_scope_with_weights_for_rows_as_they_are(tmp_path):
    codes = pre(False) * (pre(False) > 0.3)
    check(llama(tmp_path, norm_activation="inference"), "llama_scope", codes, decoded(codes))


OPENAI = {"encoder.weight": W["W_enc"], "latent_bias": W["b_enc"], "decoder.weight": W["W_dec"].T,
          "pre_bias": W["b_dec"], "stats_last_nonzero": torch.zeros(L, dtype=torch.long)}  # fmt: skip


def test_openai(tmp_path):
    folder = tmp_path / "gpt2-small" / "resid_post_mlp" / "autoencoders"
    path = save(folder, "8.pt", OPENAI | {"activation": "ReLU"}, config={"n": 3}) / "8.pt"
    codes = pre(True).relu()
    _, description = check(path, "openai", codes, decoded(codes))
    assert description.source == {"model": "gpt2", "site": "transformer.h.8", "target": None}


@both_precisions
@pytest.mark.parametrize("tied", [False, True])
def test_openai_v5_normalises_each_row(tmp_path, tied, dtype):
    tensors = kept(OPENAI, dtype)
    if tied:
        tensors["decoder.linear.weight"] = tensors["encoder.weight"]
        del tensors["decoder.weight"]
    state = {"k": K, "postact_fn": "ReLU"}
    folder = tmp_path / "gpt2-small" / "resid_post_attn_v5_32k" / "autoencoders"
    save(folder, "8.pt", tensors | {"activation": "TopK", "activation_state_dict": state})
    w, (y, mean, size) = exact(tensors), normalised(rows())
    codes = topk((y - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"], K).relu()
    decoder = w["encoder.weight"] if tied else w["decoder.weight"].T
    x_hat = (codes @ decoder + w["pre_bias"]) * size + mean
    sae, description = check(folder / "8.pt", "openai", codes, x_hat)
    assert sae.scale.config() == {"name": "LayerNorm"}
    assert description.source["site"] == "transformer.h.8.ln_2:in"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"activation": "Identity"}, "8.pt: the activation Identity is not something"),
        ({"activation": "TopK"}, "8.pt does not say 'k'"),
        ({"activation": 3}, "activation: expected a text, got 3"),
        (
            {"activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "Identity"}},
            "with Identity is not",
        ),
    ],
)
def test_openai_that_cannot_be_read(tmp_path, entries, words):
    save(tmp_path, "8.pt", OPENAI | entries)
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


def test_goodfire(tmp_path):
    names = ("encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias")
    tensors = dict(zip(names, LLAMA.values(), strict=True))
    path = save(tmp_path, "Llama-3.1-8B-Instruct-SAE-l19.pth", tensors)
    codes = pre(False).relu()
    _, description = check(path, "goodfire", codes, decoded(codes))
    assert description.source["site"] == "model.layers.19"
    assert description.source["model"] == "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize("damage", ["truncated", "pickled"])
def test_a_damaged_npz(tmp_path, damage):
    path = npz(tmp_path / "sae", flipped(JUMP)) / "params.npz"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-300])
    else:
        np.savez(path, W_enc=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"params.npz is damaged") as error:
        read(tmp_path / "sae")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_circuit_tracer(tmp_path, jump, skip):
    tensors = dict(W)
    tensors |= {"activation_function.threshold": THRESHOLD} if jump else {}
    tensors |= {"W_skip": random(D, D, seed=9)} if skip else {}
    path = save(tmp_path, "layer_7.safetensors", tensors) / "layer_7.safetensors"
    about = "model_name: Qwen/Qwen3-4B\nmodel_kind: transcoder_set\n"
    (tmp_path / "config.yaml").write_text(
        about + "feature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n"
    )
    codes = pre(False)
    codes = codes * (codes > THRESHOLD.double()) if jump else codes.relu()
    x_hat = decoded(codes) + (rows().double() @ exact(tensors)["W_skip"].T if skip else 0)
    sae, description = check(path, "circuit_tracer", codes, x_hat)
    place = {"model": "Qwen/Qwen3-4B", "site": "model.layers.7.mlp:in", "target": "model.layers.7.mlp"}
    assert description.source == place
    assert sae.d_out == D
    (tmp_path / "config.yaml").write_text(about + "feature_input_hook: hook_resid_mid\nfeature_output_hook: ln\n")
    assert read(path)[1].source == {}


@pytest.mark.parametrize(
    ("tensors", "config", "words"),
    [
        ({}, "activation: topk\nk: 3\n", "the activation topk is not something"),
        ({"k": torch.tensor(3)}, "", "the activation topk is not something"),
        ({}, "model_kind: cross_layer_transcoder\n", "model_kind cross_layer_transcoder is not something"),
        ({"activation_function.threshold": -THRESHOLD}, "", "a threshold below zero is not something"),
        ({}, "[", "config.yaml is damaged"),
        ({}, "- 3\n", "config.yaml: expected a table, got a list of 1"),
    ],
)
def test_circuit_tracer_that_cannot_be_read(tmp_path, tensors, config, words):
    save(tmp_path, "layer_7.safetensors", W | tensors)
    if config:
        (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(ValueError, match=words) as error:
        read(tmp_path / "layer_7.safetensors")
    assert "\n" not in str(error.value)


def test_qwen_scope(tmp_path):
    tensors = W | {"W_dec": W["W_dec"].T}
    path = save(tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_3", "layer4.sae.pt", tensors) / "layer4.sae.pt"
    codes = topk(pre(False), 3).relu()
    _, description = check(path, "qwen_scope", codes, decoded(codes))
    assert description.source == {"model": "Qwen/Qwen3-1.7B-Base", "site": "model.layers.4", "target": None}
    moved = save(tmp_path / "mine", "layer4.sae.pt", tensors)
    with pytest.raises(ValueError, match=r"layer4.sae.pt does not say how many latents a row keeps"):
        read(moved)


def test_gemma_scope_2_with_one_hook_for_what_is_read_and_written_is_an_sae(tmp_path):
    hook = "model.layers.7.output"
    config = {"model_name": "google/gemma-3-1b-pt", "hf_hook_point_in": hook, "hf_hook_point_out": hook, "type": "sae"}
    path = save(tmp_path / "sae", "params.safetensors", flipped(JUMP, lower=True), config=config)
    codes = pre(False) * (pre(False) > THRESHOLD.double())
    sae, description = check(path, "gemma_scope", codes, decoded(codes))
    assert sae.d_out is None
    assert description.architecture == "JumpReLU SAE"
    assert description.source == {"model": "google/gemma-3-1b-pt", "site": "model.layers.7", "target": None}
