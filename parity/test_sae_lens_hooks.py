"""SAELens names places by TransformerLens' hooks (3.9.0): each that is taken for a site gives the value of that site.

Tiny models with random weights, in transformers and in TransformerLens, their weights as they are.
"""

# Shape letters: R rows of tokens, T tokens, D width at the site.

from pathlib import Path

import pytest
import torch
import transformers
from sharing import same
from transformer_lens import HookedTransformer
from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_gemma_weights,
    convert_gpt2_weights,
    convert_llama_weights,
    convert_mistral_weights,
    convert_neox_weights,
    convert_qwen2_weights,
    convert_qwen3_weights,
)
from transformers import PreTrainedModel

from saelab.core.site_names import HOOKED, families
from saelab.interchange.sites import architecture, hook_of, site_of
from saelab.models.sites import sites_of

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 8192}
LLAMA = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
MODELS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 8192},
    "gpt_neox": SIZES | {"intermediate_size": 48},
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA | {"pad_token_id": 0},
    "gemma3_text": LLAMA | {"query_pre_attn_scalar": 8, "pad_token_id": 0, "layer_types": ["full_attention"] * 2},
    "gemma2": LLAMA | {"query_pre_attn_scalar": 8, "pad_token_id": 0},
}


def tiny(kind: str, folder: Path) -> PreTrainedModel:
    """A model with weights that are nowhere special, its config saved in a folder."""
    torch.manual_seed(5)
    config = transformers.AutoConfig.for_model(kind, **MODELS[kind], attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    config.save_pretrained(folder)
    return model


ROTARY = {"positional_embedding_type": "rotary", "rotary_base": 10000, "rotary_dim": 8, "n_key_value_heads": 2}
GATED = ROTARY | {"normalization_type": "RMS", "final_rms": True, "gated_mlp": True, "d_mlp": 48, "eps": 1e-6}
THEIRS = {
    "gpt2": (convert_gpt2_weights, {"act_fn": "gelu_new", "d_mlp": 128, "eps": 1e-5}),
    "gpt_neox": (convert_neox_weights, ROTARY | {
        "act_fn": "gelu", "d_mlp": 48, "eps": 1e-5, "parallel_attn_mlp": True, "rotary_adjacent_pairs": False,
        "n_key_value_heads": None, "rotary_dim": 2,
    }),
    "llama": (convert_llama_weights, GATED | {"act_fn": "silu"}),
    "mistral": (convert_mistral_weights, GATED | {"act_fn": "silu"}),
    "qwen2": (convert_qwen2_weights, GATED | {"act_fn": "silu"}),
    "qwen3": (convert_qwen3_weights, GATED | {"act_fn": "silu", "use_qk_norm": True}),
    "gemma": (convert_gemma_weights, GATED | {"act_fn": "gelu_pytorch_tanh"}),
    "gemma3_text": (
        convert_gemma_weights,
        GATED
        | {"act_fn": "gelu_pytorch_tanh", "use_normalization_before_and_after": True, "use_qk_norm": True}
        | {"original_architecture": "Gemma3ForCausalLM", "rotary_base": 1000000},
    ),
    "gemma2": (convert_gemma_weights, GATED | {
        "act_fn": "gelu_pytorch_tanh", "use_normalization_before_and_after": True, "attn_scores_soft_cap": 50.0,
        "original_architecture": "Gemma2ForCausalLM",
    }),
}  # fmt: skip
"""How they turn the weights into theirs, and their settings, which otherwise go by the names of published models."""


def their(kind: str, model: PreTrainedModel) -> HookedTransformer:
    convert, settings = THEIRS[kind]
    sizes = {"n_layers": 2, "d_model": 32, "n_ctx": 64, "d_head": 8, "n_heads": 4, "d_vocab": 8192}
    config = HookedTransformerConfig(**sizes, **settings)
    theirs = HookedTransformer(config)
    theirs.load_state_dict(convert(model, config), strict=False)
    return theirs


@pytest.mark.parametrize("kind", MODELS)
def test_hooks_and_sites(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    model = tiny(kind, folder)
    theirs = their(kind, model)
    found = architecture(str(folder))
    assert found is not None
    tokens, seen = torch.randint(0, 8000, (2, 9)), {}
    places = [name for name in HOOKED if name in families()[found]["sites"]]
    hooks = [f"blocks.{layer}.{name}" for layer in (0, 1) for name in places]
    sites = {hook: site_of(str(folder), hook) for hook in hooks}
    handles = [
        sites_of(model, kind, site)[0].hook(
            tokens.shape, lambda value, hook=hook: seen.__setitem__(hook, value.clone())
        )
        for hook, site in sites.items()
    ]
    with torch.no_grad():
        model(tokens)
        _, cache = theirs.run_with_cache(tokens)
    for handle in handles:
        handle.remove()
    for hook, site in sites.items():
        assert hook_of(str(folder), site) == hook
        same(seen[hook], cache[hook].flatten(2), f"{hook} and {site}")
