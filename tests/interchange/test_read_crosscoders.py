"""Files of SAEs over several sites, crosscoders and cross-layer transcoders: their formulas in float64 against ours."""

import json
from itertools import product

import pytest
import torch
from interchange.foreign import K, L, both_precisions, check, exact, kept, random, save, topk

from saelab.interchange import read
from saelab.sae.dictionaries.cross_layer import CrossLayer
from saelab.sae.dictionaries.crosscoder import Crosscoder

D, S = 3, 2
STACKED = {
    "W_enc": random(S, D, L, seed=1) * 0.5,
    "b_enc": random(L, seed=2) * 0.3,
    "W_dec": random(L, S, D, seed=3),
    "b_dec": random(S, D, seed=4) * 0.7,
}
NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "b_dec": "decoder.bias"}
OTHER = {theirs: STACKED[name] for name, theirs in NAMES.items()}
OTHER["decoder.weight"] = STACKED["W_dec"].transpose(0, 1)


def rows() -> torch.Tensor:
    return random(40, S, D, seed=0) + 0.3


def pre(w, x=None) -> torch.Tensor:
    return torch.einsum("bsd,sdl->bl", rows().double() if x is None else x, w["W_enc"]) + w["b_enc"]


def decoded(w, codes) -> torch.Tensor:
    return torch.einsum("bl,lsd->bsd", codes, w["W_dec"]) + w["b_dec"]


@both_precisions
def test_kissane(tmp_path, dtype):
    tensors = kept(STACKED, dtype)
    codes = pre(exact(tensors)).relu()
    path = save(tmp_path / "blocks.14.hook_resid_pre", "cc_weights.pt", tensors, cfg={"d_in": D})
    x_hat = decoded(exact(tensors), codes).flatten(1)
    sae, description = check(path, "crosscoder", codes, x_hat, rows().flatten(1))
    assert type(sae.dictionary) is Crosscoder
    assert sae.dictionary.sites == S
    assert description.architecture == "ReLU crosscoder of 2 sites"


@both_precisions
@pytest.mark.parametrize("how", [None, "CROSSCODER", "SAE", "MIXED", "NONE"])
@pytest.mark.parametrize("scaled", [False, True])
def test_batchtopk_compares_latents_by_the_norms_of_their_directions(tmp_path, dtype, how, scaled):
    tensors = kept(OTHER, dtype) | {"k": torch.tensor(K), "threshold": torch.tensor(0.8)}
    ids = {"CROSSCODER": 1, "SAE": 2, "MIXED": 3, "NONE": 4}
    tensors |= {"code_normalization_id": torch.tensor(ids[how])} if how else {}
    mean, scale = random(S, D, seed=5), random(S, seed=6).abs() + 0.5
    tensors |= {
        "activation_mean": mean if scaled else torch.full((S, D), torch.nan),
        "activation_global_scale": scale if scaled else torch.ones(S),
    }
    w = exact(kept(STACKED, dtype))
    x, size, centre = rows().double(), scale.double()[:, None], mean.double()
    codes = pre(w, (x - centre) * size if scaled else x).relu()
    by_site = w["W_dec"].square().sum(2).sqrt()
    whole = by_site.square().sum(1).sqrt()
    norms = {"SAE": whole, "MIXED": 0.5 * whole + 0.2 * by_site.sum(1), "NONE": torch.ones(L)}.get(how, by_site.sum(1))
    codes = codes * (codes * norms > 0.8)
    x_hat = decoded(w, codes)
    config = {"code_normalization_alpha_sae": 0.5, "code_normalization_alpha_cc": 0.2, "dict_size": L}
    path = save(tmp_path, "model.safetensors", tensors, config=config)
    sae, _ = check(path, "crosscoder", codes, (x_hat / size + centre if scaled else x_hat).flatten(1), x.flatten(1))
    assert sae.activation.config()["name"] == "BatchTopK"


def test_without_a_threshold_each_row_keeps_its_k_largest(tmp_path):
    tensors = {f"_orig_mod.{name}": value for name, value in OTHER.items()}
    tensors |= {"_orig_mod.k": torch.tensor(K), "_orig_mod.threshold": torch.tensor(-1.0)}
    w = exact(STACKED)
    norms = w["W_dec"].norm(dim=2).sum(1)
    codes = topk(pre(w) * norms, K).relu()
    path = save(tmp_path, "model_final.pt", tensors)
    _, description = check(path, "crosscoder", codes, decoded(w, codes / norms).flatten(1), rows().flatten(1))
    assert "its threshold was never set: read by the 3 largest of each row" in description.notes


def test_a_relu_crosscoder_and_one_that_cannot_be_read(tmp_path):
    codes = pre(exact(STACKED)).relu()
    path = save(tmp_path, "ae.pt", OTHER)
    check(path / "ae.pt", "crosscoder", codes, decoded(exact(STACKED), codes).flatten(1), rows().flatten(1))
    save(path, "ae.pt", OTHER | {"code_normalization_id": torch.tensor(5)})
    with pytest.raises(ValueError, match="code_normalization DECOUPLED is not something"):
        read(path / "ae.pt")
    save(path, "ae.pt", OTHER, config={"encoder_layers": [1]})
    with pytest.raises(ValueError, match=r"encoder_layers \[1\] is not something"):
        read(path / "ae.pt")


# ---- cross-layer transcoders ----

F = L // S
LAYERS = [
    {"W_enc": random(F, D, seed=10 + n) * 0.5, "b_enc": random(F, seed=20 + n) * 0.3, "b_dec": random(D, seed=30 + n),
     "W_dec": random(F, S - n, D, seed=40 + n), "threshold": random(F, seed=50 + n).abs() * 0.5}
    for n in range(S)
]  # fmt: skip
ABOUT = {"model_name": "Qwen/Qwen3-4B", "model_kind": "cross_layer_transcoder", "feature_input_hook": "mlp.hook_in",
         "feature_output_hook": "mlp.hook_out"}  # fmt: skip
PLACE = {"model": "Qwen/Qwen3-4B", "site": "model.layers.0.mlp:in,model.layers.1.mlp:in",
         "target": "model.layers.0.mlp,model.layers.1.mlp"}  # fmt: skip


def formula(layers, jump: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [B, L] and what all layers write [B, S D]."""
    x, parts = rows().double(), []
    for n, w in enumerate(layers):
        f = x[:, n] @ w["W_enc"].T + w["b_enc"]
        parts.append(f * (f > w["threshold"]) if jump else f.relu())
    x_hat = torch.stack([w["b_dec"] for w in layers])[None].repeat(len(x), 1, 1)
    for n, m in product(range(S), range(S)):
        if m >= n:
            x_hat[:, m] += parts[n] @ layers[n]["W_dec"][:, m - n]
    return torch.cat(parts, 1), x_hat.flatten(1)


def tracer(folder, layers, jump):
    for n, w in enumerate(layers):
        encoder = {f"{name}_{n}": w[name] for name in ("W_enc", "b_enc", "b_dec", *(["threshold"] if jump else []))}
        save(folder, f"W_enc_{n}.safetensors", encoder)
        save(folder, f"W_dec_{n}.safetensors", {f"W_dec_{n}": w["W_dec"]})
    (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in ABOUT.items()))
    return folder


@both_precisions
@pytest.mark.parametrize("jump", [False, True])
def test_circuit_tracer(tmp_path, dtype, jump):
    layers = [kept(w, dtype) for w in LAYERS]
    path = tracer(tmp_path, layers, jump)
    codes, x_hat = formula([exact(w) for w in layers], jump)
    sae, description = check(path, "circuit_tracer_clt", codes, x_hat, rows().flatten(1))
    assert type(sae.dictionary) is CrossLayer
    assert description.source == PLACE


def gemma(folder, layers):
    for n, w in enumerate(layers):
        decoder = torch.cat([torch.zeros(F, n, D, dtype=w["W_dec"].dtype), w["W_dec"]], 1)
        vectors = {name: w[name] for name in ("b_enc", "b_dec", "threshold")}
        save(folder, f"params_layer_{n}.safetensors", {"w_enc": w["W_enc"].T, "w_dec": decoder} | vectors)
    (folder / "config.json").write_text(json.dumps({"model_name": "gemma-3-270m", "type": "clt"}))
    return folder


@both_precisions
def test_gemma_scope_2(tmp_path, dtype):
    layers = [kept(w, dtype) for w in LAYERS]
    codes, x_hat = formula([exact(w) for w in layers], True)
    check(gemma(tmp_path, layers), "gemma_scope_clt", codes, x_hat, rows().flatten(1))


def test_layers_that_do_not_fit_are_refused(tmp_path):
    path = gemma(tmp_path / "a", LAYERS)
    tensors = {"w_enc": LAYERS[1]["W_enc"].T, "w_dec": torch.ones(F, S, D)}
    save(path, "params_layer_1.safetensors", LAYERS[1] | tensors)
    with pytest.raises(ValueError, match="a layer 1 that writes to earlier ones is not something"):
        read(path)
    save(path, "params_layer_1.safetensors", LAYERS[1] | tensors | {"affine_skip_connection": torch.ones(D, D)})
    with pytest.raises(ValueError, match="with affine_skip_connection is not something"):
        read(path)
    path = tracer(tmp_path / "b", LAYERS, True)
    save(path, "W_dec_1.safetensors", {"W_dec_1": torch.ones(F, S, D)})
    with pytest.raises(ValueError, match=rf"W_dec_1 should be \[{F}, 1, {D}\], the file holds \[{F}, {S}, {D}\]"):
        read(path)
    (path / "W_dec_1.safetensors").unlink()
    with pytest.raises(ValueError, match="there is no file .*W_dec_1"):
        read(path)
