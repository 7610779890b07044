"""Files of SAELens: their documented formulas in float64, written out here, against ours."""

import pytest
import torch
from interchange.foreign import D, K, L, O, check, exact, normalised, random, rows, save, topk, weights

from saelab.interchange import read
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.gated import Gated
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU

HOOK = {"model_name": "gpt2", "hook_name": "blocks.8.hook_resid_pre", "context_size": 128,
        "model_from_pretrained_kwargs": {}}  # fmt: skip
THRESHOLD = random(L, seed=5).abs() * 0.5


def cfg(architecture: str = "standard", **more: object) -> dict:
    about = {"sae_lens_version": "6.54.12", **HOOK}
    return {"architecture": architecture, "d_in": D, "d_sae": L, "dtype": "float32", "device": "cuda",
            "apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": about} | more  # fmt: skip


def folder(tmp_path, tensors, config):
    tensors = tensors | {"W_enc": tensors["W_enc"].T}
    return save(tmp_path / "sae", "sae_weights.safetensors", tensors, cfg=config)


def pre(centred: bool = True, x: torch.Tensor | None = None) -> torch.Tensor:
    w = exact(weights())
    x = rows().double() if x is None else x
    return (x - w["b_dec"] * centred) @ w["W_enc"].T + w["b_enc"]


def decoded(codes: torch.Tensor) -> torch.Tensor:
    w = exact(weights())
    return codes @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize("centred", [True, False])
def test_standard(tmp_path, centred):
    path = folder(tmp_path, weights(), cfg(apply_b_dec_to_input=centred))
    codes = pre(centred).relu()
    sae, description = check(path, "sae_lens", codes, decoded(codes))
    assert type(sae.activation) is ReLU
    assert description.architecture == "standard"
    assert bool(description.notes) == (not centred)


@pytest.mark.parametrize("centred", [True, False])
def test_topk(tmp_path, centred):
    path = folder(tmp_path, weights(), cfg("topk", k=K, apply_b_dec_to_input=centred))
    codes = topk(pre(centred), K).relu()
    sae, _ = check(path, "sae_lens", codes, decoded(codes))
    assert sae.activation.config() == {"name": "TopK", "k": K}


def test_abstopk(tmp_path):
    path = folder(tmp_path, weights(), cfg("abstopk", k=K))
    size = topk(pre().abs(), K)
    codes = pre().where(size > 0, 0)
    check(path, "sae_lens", codes, decoded(codes))
    assert (codes < 0).any()


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_acts_rescaled_by_the_norms_of_directions(tmp_path, architecture):
    w, bare = exact(weights()), topk(pre(), K).relu()
    norms = w["W_dec"].norm(dim=1)
    tensors, config = weights(), cfg(architecture, k=K, rescale_acts_by_decoder_norm=True)
    if architecture == "topk":
        codes = topk(pre() * norms, K).relu()
    else:
        tensors |= {"topk_threshold": torch.tensor(1.5)}
        codes = (pre() * norms).relu()
        codes = codes.where(codes > 1.5, 0)
    check(folder(tmp_path, tensors, config), "sae_lens", codes, decoded(codes / norms))
    assert not torch.equal(codes != 0, bare != 0)  # the norms decide which are kept


@pytest.mark.parametrize("centred", [True, False])
def test_jumprelu(tmp_path, centred):
    tensors = weights() | {"threshold": THRESHOLD}
    path = folder(tmp_path, tensors, cfg("jumprelu", apply_b_dec_to_input=centred))
    codes = pre(centred).relu() * (pre(centred) > THRESHOLD.double())
    sae, _ = check(path, "sae_lens", codes, decoded(codes))
    assert type(sae.activation) is JumpReLU


def test_jumprelu_with_thresholds_at_and_below_zero(tmp_path):
    threshold = THRESHOLD - 0.3
    threshold[:3] = 0
    codes = pre().relu() * (pre() > threshold.double())
    check(folder(tmp_path, weights() | {"threshold": threshold}, cfg("jumprelu")), "sae_lens", codes, decoded(codes))


def test_jumprelu_of_early_versions_keeps_logarithms(tmp_path):
    tensors = weights() | {"log_threshold": THRESHOLD.log()}
    codes = pre().relu() * (pre() > THRESHOLD.double())
    check(folder(tmp_path, tensors, cfg("jumprelu")), "sae_lens", codes, decoded(codes))


def test_a_batchtopk_sae_kept_as_jumprelu_is_one_again(tmp_path):
    trained = {"training_architecture": "matryoshka_batchtopk", "training_architecture_details": {"k": 5}}
    tensors = weights() | {"threshold": torch.full((L,), 0.7)}
    config = cfg("jumprelu", metadata=HOOK | trained)
    codes = pre().where(pre() > 0.7, 0)
    sae, _ = check(folder(tmp_path, tensors, config), "sae_lens", codes, decoded(codes))
    assert sae.activation.config() == BatchTopK(5).config()
    assert torch.equal(sae.activation.threshold, torch.full((L,), 0.7))


@pytest.mark.parametrize("centred", [True, False])
def test_gated(tmp_path, centred):
    own = {"b_gate": random(L, seed=6) * 0.4, "b_mag": random(L, seed=7) * 0.4, "r_mag": random(L, seed=8) * 0.3}
    tensors = {key: value for key, value in weights().items() if key != "b_enc"} | own
    w = exact(tensors)
    product = (rows().double() - w["b_dec"] * centred) @ w["W_enc"].T
    gate, size = product + w["b_gate"], (product * w["r_mag"].exp() + w["b_mag"]).relu()
    codes = size.where(gate > 0, 0)
    path = folder(tmp_path, tensors, cfg("gated", apply_b_dec_to_input=centred))
    sae, _ = check(path, "sae_lens", codes, decoded(codes))
    assert type(sae.activation) is Gated


@pytest.mark.parametrize("skip", ["", "skip_"])
@pytest.mark.parametrize("jump", ["", "jumprelu_"])
def test_transcoders(tmp_path, skip, jump):
    tensors = weights(O)
    tensors |= {"W_skip": random(O, D, seed=9)} if skip else {}
    tensors |= {"threshold": THRESHOLD} if jump else {}
    config = cfg(f"{jump}{skip}transcoder", d_out=O, apply_b_dec_to_input=False)
    config["metadata"] |= {"hook_name": "blocks.3.attn.hook_z", "hook_name_out": "blocks.3.hook_mlp_out"}
    w, x = exact(tensors), rows().double()
    codes = (x @ w["W_enc"].T + w["b_enc"]).relu()
    codes = codes * (codes > w["threshold"]) if jump else codes
    x_hat = codes @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if skip else 0)
    sae, description = check(folder(tmp_path, tensors, config), "sae_lens", codes, x_hat)
    assert sae.d_out == O
    assert description.source["site"] == "transformer.h.3.attn.c_proj:in"
    assert description.source["target"] == "transformer.h.3.mlp"


def test_rows_scaled_by_a_factor_that_lies_beside(tmp_path):
    tensors = weights() | {"threshold": THRESHOLD}
    path = folder(tmp_path, tensors, cfg("jumprelu", normalize_activations="expected_average_only_in"))
    with pytest.raises(ValueError, match=r"cfg.json: normalize_activations 'expected_average_only_in' .* not in the"):
        read(path)
    (path / "activation_scaler.json").write_text('{"scaling_factor": 2.5}')
    seen = pre(x=rows().double() * 2.5)
    codes = seen.relu() * (seen > THRESHOLD.double())
    check(path, "sae_lens", codes, decoded(codes) / 2.5)


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("centred", [True, False])
def test_rows_normalised_one_by_one(tmp_path, how, centred):
    y, mean, size = normalised(rows(), how)
    codes = topk(pre(centred, y), K).relu()
    config = cfg("topk", k=K, normalize_activations=how, apply_b_dec_to_input=centred)
    sae, _ = check(folder(tmp_path, weights(), config), "sae_lens", codes, decoded(codes) * size + mean)
    assert sae.scale.per_row


@pytest.mark.parametrize("how", ["layer_norm", "expected_average_only_in"])
def test_what_a_transcoder_writes_is_not_brought_back(tmp_path, how):
    config = cfg("transcoder", d_out=O, apply_b_dec_to_input=False, normalize_activations=how)
    path = folder(tmp_path, weights(O), config)
    (path / "activation_scaler.json").write_text('{"scaling_factor": 2.5}')
    w, y = exact(weights(O)), normalised(rows())[0] if how == "layer_norm" else rows().double() * 2.5
    codes = (y @ w["W_enc"].T + w["b_enc"]).relu()
    check(path, "sae_lens", codes, codes @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("architecture", ["topk", "gated"])
def test_whitened_rows(tmp_path, architecture, centred):
    tensors = weights()
    own = {"b_gate": random(L, seed=6) * 0.4, "b_mag": random(L, seed=7) * 0.4, "r_mag": random(L, seed=8) * 0.3}
    if architecture == "gated":
        tensors = {key: value for key, value in tensors.items() if key != "b_enc"} | own
    config = cfg(architecture, k=K, normalize_activations="covariance_whitening", apply_b_dec_to_input=centred)
    path = folder(tmp_path, tensors, config)
    with pytest.raises(ValueError, match="put activation_whitening.safetensors beside it"):
        read(path)
    there, mean = random(D, D, seed=12) + 2 * torch.eye(D), random(D, seed=13)
    save(path, "activation_whitening.safetensors", {"mean": mean, "matrix": there, "inverse_matrix": there.inverse()})
    w, whitening = exact(tensors), exact({"mean": mean, "matrix": there, "back": there.inverse()})
    z = (rows().double() - whitening["mean"]) @ whitening["matrix"]
    product = (z - w["b_dec"] * centred) @ w["W_enc"].T
    if architecture == "gated":
        codes = (product * w["r_mag"].exp() + w["b_mag"]).relu().where(product + w["b_gate"] > 0, 0)
    else:
        codes = topk(product + w["b_enc"], K).relu()
    check(path, "sae_lens", codes, decoded(codes) @ whitening["back"] + whitening["mean"])


OLD = {"hook_point": "blocks.8.hook_resid_pre", "model_name": "gpt2-small", "d_in": D, "d_sae": L, "context_size": 64}


def test_old_files(tmp_path):
    codes = pre().relu()
    _, description = check(folder(tmp_path, weights(), OLD), "sae_lens", codes, decoded(codes))
    # It was trained on a model whose weights may have been changed, which is not said.
    assert description.source == {}
    assert "does not say how the model's weights were processed" in description.notes[0]
    loaded = OLD | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    assert "loaded with center_writing_weights" in read(folder(tmp_path, weights(), loaded))[1].notes[0]
    certain = read(folder(tmp_path, weights(), OLD | {"model_from_pretrained_kwargs": {}}))[1]
    assert certain.source == {"model": "gpt2", "site": "transformer.h.8:in", "target": None, "seq_len": 64}


def test_old_topk_and_old_normalisation(tmp_path):
    config = OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False}
    codes = topk(pre(), K).relu()
    check(folder(tmp_path, weights(), config), "sae_lens", codes, decoded(codes))
    with pytest.raises(ValueError, match="normalize_activations 'expected_average_only_in'"):
        read(folder(tmp_path, weights(), config | {"normalize_activations": True}))


def test_finetuned_codes_are_scaled_before_they_are_decoded(tmp_path):
    factor = random(L, seed=11).abs() + 0.5
    tensors, config = weights() | {"scaling_factor": factor}, OLD | {"finetuning_scaling_factor": True}
    codes = pre().relu()
    check(folder(tmp_path, tensors, config), "sae_lens", codes, decoded(codes * factor.double()))
    with pytest.raises(ValueError, match="finetuning_scaling_factor is off"):
        read(folder(tmp_path, tensors, OLD))
    check(folder(tmp_path, weights() | {"scaling_factor": torch.ones(L)}, OLD), "sae_lens", codes, decoded(codes))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "temporal"}, "the architecture temporal is not something.*depend on the tokens before"),
        ({"architecture": "matching_pursuit"}, "goes on until an error is reached"),
        ({"architecture": "new"}, "those that are read: standard, topk"),
        ({"normalize_activations": "by_hand"}, "normalize_activations 'by_hand' is not something"),
        ({"activation_fn": "tanh-relu"}, "activation_fn tanh-relu is not something"),
        ({"architecture": "topk"}, "does not say 'k'"),
        ({"architecture": "topk", "k": "many"}, 'k: expected a whole number, got "many"'),
        ({"architecture": "topk", "k": L + 1}, f"k must be from 1 to the number of latents, {L}"),
        ({"d_sae": L + 1}, rf"sae_weights.safetensors: W_enc should be \[{D}, {L + 1}\], the file holds \[{D}, {L}\]"),
        ({"architecture": "jumprelu"}, "sae_weights.safetensors has no tensor 'threshold'"),
        ({"metadata": 3}, "metadata: expected a table"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, config, words):
    path = folder(tmp_path, weights(), cfg() | config)
    with pytest.raises(ValueError, match=words) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("about", "site"),
    [
        ({"hook_name": "blocks.8.hook_resid_post"}, "transformer.h.8"),
        ({"model_name": "gemma-2-2b", "hook_name": "blocks.2.hook_resid_mid"},
         "model.layers.2.pre_feedforward_layernorm:in"),
        ({"model_name": "pythia-70m-deduped", "hook_name": "blocks.2.hook_mlp_out"}, "gpt_neox.layers.2.mlp"),
        ({"model_name": "google/gemma-2b", "hook_name": "blocks.2.hook_mlp_out"}, "model.layers.2.mlp"),
        ({"hook_name": "blocks.8.ln2.hook_normalized"}, None),
        ({"hook_name": "blocks.8.attn.hook_z", "hook_head_index": 3}, None),
        ({"model_name": "somebodys-model"}, None),
        ({"model_class_name": "AutoModelForCausalLM", "hook_name": "transformer.h.3"}, "transformer.h.3"),
    ],
)  # fmt: skip
def test_hooks_that_are_sites(tmp_path, about, site):
    source = read(folder(tmp_path, weights(), cfg(metadata=HOOK | about)))[1].source
    assert source.get("site") == site
    assert bool(source) == bool(site)


def test_half_precision_is_widened(tmp_path):
    tensors = {key: value.bfloat16() for key, value in weights().items()}
    sae, _ = read(folder(tmp_path, tensors, cfg()))
    assert sae.dictionary.W_enc.dtype == torch.float32
    assert torch.equal(sae.dictionary.W_dec, tensors["W_dec"].float())


def test_a_latent_without_a_direction_stays_at_zero(tmp_path):
    tensors = weights()
    tensors["W_dec"][3] = 0
    sae, description = read(folder(tmp_path, tensors, cfg("topk", k=K, rescale_acts_by_decoder_norm=True)))
    assert "latents without a direction stay at zero: 1" in description.notes
    w, x = exact(tensors), rows().double()
    norms = w["W_dec"].norm(dim=1)
    scaled = topk(((x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]) * norms, K).relu()
    with torch.no_grad():
        assert torch.allclose(sae.encode(rows()).dense().double(), scaled, atol=1e-5)
        assert torch.allclose(
            sae(rows()).double(), (scaled / norms.clamp_min(1e-9)) @ w["W_dec"] + w["b_dec"], atol=1e-5
        )
    assert not sae.dictionary.directions()[3].any()
