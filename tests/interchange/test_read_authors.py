"""Files of authors' own code and of vision models: their formulas in float64, written out here, against ours."""

import json
import sys
import types
from dataclasses import dataclass, field

import pytest
import torch
from interchange.foreign import (
    D,
    K,
    L,
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
from saelab.sae.activations.batch_topk import BatchTopK

W = weights() | {"W_enc": weights()["W_enc"].T}
CONFIG = {"act_size": D, "dict_size": L, "top_k": K, "model_name": "gemma-2-2b", "seq_len": 128,
          "hook_point": "blocks.8.hook_resid_pre", "model_dtype": "torch.bfloat16"}  # fmt: skip


def pre(w, x, centred=True) -> torch.Tensor:
    return (x.double() - w["b_dec"] * centred) @ w["W_enc"] + w["b_enc"]


def decoded(w, codes) -> torch.Tensor:
    return codes @ w["W_dec"] + w["b_dec"]


@both_precisions
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("name", ["vanilla", "topk", "batchtopk", "jumprelu", "batch-topk", "global-matryoshka-topk"])
def test_batchtopk_authors(tmp_path, name, unit, dtype):
    tensors, own = kept(W, dtype), {}
    own |= {"jumprelu.log_threshold": random(L, seed=5) - 1} if name == "jumprelu" else {}
    own |= {"threshold": torch.tensor(0.4)} if "-topk" in name else {}
    y, mean, size = normalised(rows()) if unit else (rows(), 0, 1)
    w = exact(tensors)
    product = pre(w, y, name != "jumprelu")
    if name == "vanilla":
        codes = product.relu()
    elif name == "jumprelu":
        codes = product.relu() * (product > own["jumprelu.log_threshold"].double().exp())
    else:
        product = product - w["b_enc"]  # which they leave out
        codes = product.where(product > 0.4, 0) if "-topk" in name else topk(product, K).relu()
    path = save(tmp_path / "it", "sae.pt", tensors | own, config=CONFIG | {"sae_type": name, "input_unit_norm": unit})
    sae, description = check(path, "batch_topk", codes, decoded(w, codes) * size + mean)
    assert sae.scale.per_row == unit
    assert description.source == {
        "model": "google/gemma-2-2b",
        "site": "model.layers.8:in",
        "target": None,
        "seq_len": 128,
    }
    if "-topk" in name:
        assert sae.activation.config() == BatchTopK(K).config()


def test_batchtopk_authors_that_say_less(tmp_path):
    about = {key: value for key, value in CONFIG.items() if key != "model_dtype"} | {"sae_type": "batch-topk"}
    path = save(tmp_path / "it", "sae.pt", W | {"threshold": torch.tensor(0.0)}, config=about)
    description = read(path)[1]
    assert description.notes == ["it has no threshold: read by the 3 largest of each row"]
    assert description.source == {}  # the first code changes the model's weights
    save(path, "sae.pt", W, config=about | {"sae_type": "new"})
    with pytest.raises(ValueError, match="the sae_type new is not something"):
        read(path)


@both_precisions
def test_hook_z(tmp_path, dtype):
    tensors = kept(W, dtype)
    about = {"act_size": D, "dict_size": L, "act_name": "blocks.3.attn.hook_z"}
    save(tmp_path, "gpt2-small_L3.pt", tensors)
    (tmp_path / "gpt2-small_L3_cfg.json").write_text(json.dumps(about))
    codes = pre(exact(tensors), rows()).relu()
    for path in (tmp_path, tmp_path / "gpt2-small_L3.pt"):
        description = check(path, "hook_z", codes, decoded(exact(tensors), codes))[1]
        assert description.source == {"model": "gpt2", "site": "transformer.h.3.attn.c_proj:in", "target": None}


def test_temporal_saes_are_refused_with_the_reason(tmp_path):
    save(tmp_path, "latest_ckpt.safetensors", {"D": torch.zeros(2, 2)})
    (tmp_path / "conf.yaml").write_text("sae: {}\n")
    with pytest.raises(ValueError, match="a temporal SAE is not something .* its codes depend on the tokens before"):
        read(tmp_path)


@dataclass
class RunnerConfig:
    """Stands for Prisma's, which is pickled as an object of its own package."""

    d_in: int = D
    architecture: str = "standard"
    activation_fn_str: str = "relu"
    activation_fn_kwargs: dict = field(default_factory=dict)
    normalize_activations: str = "none"
    model_name: str = "open-clip:laion/CLIP"
    is_transcoder: bool = False
    _dtype: torch.dtype = torch.float32

    def __setstate__(self, state: dict) -> None:
        raise AssertionError("this was run")


@pytest.fixture
def pickled(monkeypatch):
    """What a file is with such a config: its class is known while it is written, and not while it is read."""

    def write(path, config, tensors):
        name = "vit_prisma.sae.config"
        monkeypatch.setattr(RunnerConfig, "__module__", name)
        module = types.ModuleType(name)
        module.RunnerConfig = RunnerConfig
        for part in ("vit_prisma", "vit_prisma.sae", name):
            monkeypatch.setitem(sys.modules, part, module)
        torch.save({"cfg": config, "state_dict": tensors}, path)
        for part in ("vit_prisma", "vit_prisma.sae", name):
            monkeypatch.delitem(sys.modules, part)
        return path

    return write


@both_precisions
@pytest.mark.parametrize("how", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("beside", [False, True])
def test_prisma(tmp_path, pickled, how, beside, dtype):
    tensors = kept(W, dtype)
    settings = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": how}
    if beside:
        about = vars(RunnerConfig(**settings)) | {"_dtype": "float32", "expansion_factor": 3}
        path = save(tmp_path, "weights.pt", tensors, config=about)
    else:
        path = pickled(tmp_path / "n_images_2600058.pt", RunnerConfig(**settings), tensors)
    y, mean, size = normalised(rows(), how) if how != "none" else (rows(), 0, 1)
    codes = topk(pre(exact(tensors), y), K).relu()
    _, description = check(path, "prisma", codes, decoded(exact(tensors), codes) * size + mean)
    assert description.said["model_name"] == "open-clip:laion/CLIP"


def test_prisma_gated_and_transcoders(tmp_path, pickled):
    own = {"b_gate": random(L, seed=6) * 0.4, "b_mag": random(L, seed=7) * 0.4, "r_mag": random(L, seed=8) * 0.3}
    w = exact(W | own)
    product = (rows().double() - w["b_dec"]) @ w["W_enc"]
    codes = (product * w["r_mag"].exp() + w["b_mag"]).relu().where(product + w["b_gate"] > 0, 0)
    path = pickled(tmp_path / "gated.pt", RunnerConfig(architecture="gated"), W | own)
    check(path, "prisma", codes, decoded(w, codes))
    own = {"b_dec_out": random(D, seed=9), "W_skip": random(D, D, seed=10)}
    w, codes = exact(W | own), pre(exact(W), rows()).relu()
    path = pickled(tmp_path / "transcoder.pt", RunnerConfig(is_transcoder=True), W | own)
    x_hat = codes @ w["W_dec"] + w["b_dec_out"] + rows().double() @ w["W_skip"].T
    assert check(path, "prisma", codes, x_hat)[0].d_out == D


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architecture": "jumprelu"}, "the architecture jumprelu with relu is not"),
        ({"activation_fn_str": "tanh-relu"}, "the architecture standard with tanh-relu is not"),
        ({"activation_fn_str": "topk"}, "does not say 'k'"),
        ({"architecture": "gated", "activation_fn_str": "topk"}, "a gated SAE with topk is not|has no tensor"),
        ({"normalize_activations": "other"}, "normalize_activations 'other' is not"),
        ({"is_transcoder": True, "normalize_activations": "layer_norm"}, "a transcoder with normalize_activations"),
    ],
)
def test_prisma_that_cannot_be_read(tmp_path, pickled, settings, words):
    path = pickled(tmp_path / "it.pt", RunnerConfig(**settings), W)
    with pytest.raises(ValueError, match=words) as error:
        read(path)
    assert "\n" not in str(error.value)


PIUM = {"W_E": W["W_enc"], "b_E": W["b_enc"], "W_D": W["W_dec"], "b_D": W["b_dec"]}
R1 = {
    "encoder.weight": W["W_enc"].T,
    "encoder.bias": W["b_enc"],
    "decoder.weight": W["W_dec"].T,
    "decoder.bias": W["b_dec"],
}
HOOK, OUT = "blocks.9.hook_resid_post", "blocks.9.hook_mlp_out"
SETTINGS = {"sae_type": "sae", "d_model": D, "expansion_factor": 3.4, "act_fn": "relu", "top_k": K,
            "norm_activation": "inference", "hook_point_in": HOOK, "hook_point_out": HOOK,
            "sparsity_include_decoder_norm": False}  # fmt: skip


@both_precisions
@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("act", ["relu", "jumprelu", "topk", "batchtopk"])
def test_llamascopium(tmp_path, act, by_norm, dtype):
    logarithms = random(L, seed=5) - 1
    own = {"activation_function.log_jumprelu_threshold": logarithms} if act == "jumprelu" else {}
    tensors = kept(PIUM, dtype) | own
    w = exact(tensors)
    norms = w["W_D"].norm(dim=1) if by_norm else torch.ones(L, dtype=torch.float64)
    compared = (rows().double() @ w["W_E"] + w["b_E"]) * norms
    chosen = {"relu": compared.relu(), "jumprelu": compared * (compared > logarithms.double().exp())}
    theirs = chosen.get(act, topk(compared, K).relu()) / norms
    codes = theirs * norms if "topk" in act else theirs
    config = SETTINGS | {"act_fn": act, "sparsity_include_decoder_norm": by_norm}
    path = save(tmp_path, "sae_weights.safetensors", tensors, config=config)
    check(path, "llamascopium", codes, theirs @ w["W_D"] + w["b_D"])


@pytest.mark.parametrize("how", ["dataset-wise", "token-wise"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_llamascopium_scales_rows(tmp_path, how, suffix):
    own = {f"dataset_average_activation_norm.{HOOK}": torch.tensor(1.25)}
    y, _, size = normalised(rows(), "constant") if how == "token-wise" else (rows() * (D**0.5 / 1.25), 0, 1.25 / D**0.5)
    w = exact(PIUM)
    codes = (y.double() @ w["W_E"] + w["b_E"]).relu()
    tensors = PIUM | own if suffix == "safetensors" else {"sae": PIUM | own, "version": "2.0"}
    path = save(tmp_path, f"sae_weights.{suffix}", tensors, config=SETTINGS | {"norm_activation": how})
    check(path, "llamascopium", codes, (codes @ w["W_D"] + w["b_D"]) * size)


def test_llama_scope_r1(tmp_path):
    logarithms = random(L, seed=5) - 1
    config = {"d_model": D, "expansion_factor": 3, "hook_point_in": HOOK, "act_fn": "jumprelu",
              "norm_activation": "inference"}  # fmt: skip
    path = tmp_path / "Llama-Scope-R1-Distill" / "400M-Slimpajama" / "L9R"
    save(path, "sae_weights.safetensors", R1 | {"log_jumprelu_threshold": logarithms}, config=config)
    w = exact(R1)
    codes = rows().double() @ w["encoder.weight"].T + w["encoder.bias"]
    codes = codes * (codes > logarithms.double().exp())
    x_hat = codes @ w["decoder.weight"].T + w["decoder.bias"]
    description = check(path, "llamascopium", codes, x_hat)[1]
    model = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert description.source == {"model": model, "site": "model.layers.9", "target": None}


def test_llamascopium_transcoders_without_a_bias(tmp_path):
    tensors = {name: value for name, value in PIUM.items() if name != "b_D"}
    own = {f"dataset_average_activation_norm.{HOOK}": 1.25, f"dataset_average_activation_norm.{OUT}": 0.5}
    tensors |= {name: torch.tensor(norm) for name, norm in own.items()}
    config = SETTINGS | {"hook_point_out": OUT, "use_decoder_bias": False, "norm_activation": "dataset-wise"}
    w = exact(PIUM)
    codes = (rows().double() * (D**0.5 / 1.25) @ w["W_E"] + w["b_E"]).relu()
    path = save(tmp_path, "sae_weights.safetensors", tensors, config=config)
    check(path, "llamascopium", codes, codes @ w["W_D"] * (0.5 / D**0.5))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"sae_type": "lorsa"}, "sae_type lorsa is not something"),
        ({"use_glu_encoder": True}, "use_glu_encoder is not something"),
        ({"norm_activation": "batch-wise"}, "norm_activation 'batch-wise' is not something"),
        ({"norm_activation": "dataset-wise"}, "'dataset-wise' without the norm is not something"),
        ({"d_model": D + 1}, "W_E should be"),
    ],
)
def test_llamascopium_that_cannot_be_read(tmp_path, config, words):
    path = save(tmp_path, "sae_weights.safetensors", PIUM, config=SETTINGS | config)
    with pytest.raises(ValueError, match=words) as error:
        read(path)
    assert "\n" not in str(error.value)
