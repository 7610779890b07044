"""Random small causal models of many families of transformers, and where their blocks are.

A family is a config class, its options as a function of sizes, and the path of the list of its blocks. Norm gains are
moved away from 1 and weights enlarged, so that a gain, a scale or a cap that is left out shows.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Sizes:
    """Of a small model."""

    vocabulary: int
    width: int
    layers: int
    heads: int = 4
    context: int = 32

    def plain(self) -> dict[str, Any]:
        """As most configs call them."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.context,
            "intermediate_size": self.width + 8,
        }

    def shared(self) -> dict[str, Any]:
        """With two heads to a key and a value."""
        return self.plain() | {"num_key_value_heads": self.heads // 2}

    def grouped(self) -> dict[str, Any]:
        """The same, with the width of a head."""
        return self.shared() | {"head_dim": self.width // self.heads}

    def experts(self) -> dict[str, Any]:
        """With four experts, two of which are used."""
        return self.grouped() | {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}

    def gpt(self) -> dict[str, Any]:
        """As GPT-2's config calls them."""
        return {
            "vocab_size": self.vocabulary,
            "n_embd": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_positions": self.context,
        }

    def opt(self, projected: bool) -> dict[str, Any]:
        """Of OPT; the projected one has no last norm and narrower embeddings."""
        narrow = self.width // 2 if projected else self.width
        return self.plain() | {
            "ffn_dim": self.width + 8,
            "word_embed_proj_dim": narrow,
            "do_layer_norm_before": not projected,
        }

    def mamba(self) -> dict[str, Any]:
        """Of Mamba and Mamba 2."""
        return self.plain() | {
            "state_size": 4,
            "head_dim": 8,
            "num_heads": self.width // 4,
            "n_groups": 2,
            "chunk_size": 8,
        }


Family = tuple[str, Callable[[Sizes], dict[str, Any]], str]
LAYERS, H = "model.layers", "transformer.h"

FAMILIES: dict[str, Family] = {
    "BERT, decoder": ("Bert", lambda s: s.plain() | {"is_decoder": True}, "bert.encoder.layer"),
    "BioGPT": ("BioGpt", Sizes.plain, "biogpt.layers"),
    "BLOOM": ("Bloom", lambda s: s.plain() | {"n_layer": s.layers, "n_head": s.heads}, H),
    "CodeGen": ("CodeGen", lambda s: s.gpt() | {"rotary_dim": 2}, H),
    "Cohere": ("Cohere", lambda s: s.shared() | {"logit_scale": 0.25}, LAYERS),
    "Cohere 2": ("Cohere2", lambda s: s.grouped() | {"logit_scale": 0.25}, LAYERS),
    "DiffLlama": ("DiffLlama", Sizes.shared, LAYERS),
    "EXAONE 4": ("Exaone4", Sizes.grouped, LAYERS),
    "Falcon": ("Falcon", Sizes.plain, H),
    "Falcon, new": ("Falcon", lambda s: s.plain() | {"new_decoder_architecture": True, "num_kv_heads": 2}, H),
    "Falcon, sequential": ("Falcon", lambda s: s.plain() | {"parallel_attn": False}, H),
    "Gemma": ("Gemma", Sizes.grouped, LAYERS),
    "Gemma 2": ("Gemma2", lambda s: s.grouped() | {"final_logit_softcapping": 5.0}, LAYERS),
    "Gemma 3": ("Gemma3Text", Sizes.grouped, LAYERS),
    "GLM": ("Glm", Sizes.grouped, LAYERS),
    "GLM 4": ("Glm4", Sizes.grouped, LAYERS),
    "GPT": ("OpenAIGPT", Sizes.gpt, H),
    "GPT-2": ("GPT2", Sizes.gpt, H),
    "GPT-BigCode": ("GPTBigCode", Sizes.gpt, H),
    "GPT-J": ("GPTJ", lambda s: s.gpt() | {"rotary_dim": 2}, H),
    "GPT-Neo": (
        "GPTNeo",
        lambda s: s.plain() | {"num_layers": s.layers, "num_heads": s.heads, "window_size": 8,
                               "attention_types": [[["global"], s.layers]]},
        H,
    ),
    "GPT-NeoX": ("GPTNeoX", Sizes.plain, "gpt_neox.layers"),
    "GPT-NeoX, sequential": ("GPTNeoX", lambda s: s.plain() | {"use_parallel_residual": False}, "gpt_neox.layers"),
    "gpt-oss": ("GptOss", Sizes.experts, LAYERS),
    "Granite": (
        "Granite",
        lambda s: s.shared() | {"logits_scaling": 3.0, "residual_multiplier": 0.5},
        LAYERS,
    ),
    "Helium": ("Helium", Sizes.grouped, LAYERS),
    "Llama": ("Llama", Sizes.grouped, LAYERS),
    "Mamba": ("Mamba", Sizes.mamba, "backbone.layers"),
    "Mamba 2": ("Mamba2", Sizes.mamba, "backbone.layers"),
    "Ministral": ("Ministral", Sizes.grouped, LAYERS),
    "Mistral": ("Mistral", Sizes.grouped, LAYERS),
    "Mixtral": ("Mixtral", Sizes.experts, LAYERS),
    "MPT": (
        "Mpt",
        lambda s: {"vocab_size": s.vocabulary, "d_model": s.width, "n_layers": s.layers, "n_heads": s.heads,
                   "max_seq_len": s.context},
        "transformer.blocks",
    ),
    "nanochat": ("NanoChat", Sizes.grouped, LAYERS),
    "Nemotron": ("Nemotron", Sizes.grouped, LAYERS),
    "OLMo": ("Olmo", Sizes.plain, LAYERS),
    "OLMo 2": ("Olmo2", Sizes.plain, LAYERS),
    "OLMo 3": ("Olmo3", Sizes.plain, LAYERS),
    "OLMoE": ("Olmoe", Sizes.experts, LAYERS),
    "OPT": ("OPT", lambda s: s.opt(projected=False), "model.decoder.layers"),
    "OPT, projected": ("OPT", lambda s: s.opt(projected=True), "model.decoder.layers"),
    "Persimmon": ("Persimmon", Sizes.plain, LAYERS),
    "Phi": ("Phi", Sizes.plain, LAYERS),
    "Phi-3": ("Phi3", Sizes.shared, LAYERS),
    "Phi-MoE": ("Phimoe", Sizes.experts, LAYERS),
    "Qwen 2": ("Qwen2", Sizes.shared, LAYERS),
    "Qwen 3": ("Qwen3", Sizes.grouped, LAYERS),
    "RecurrentGemma": (
        "RecurrentGemma",
        lambda s: s.shared() | {"lru_width": s.width, "attention_window_size": 8,
                               "block_types": ("recurrent", "attention")},
        LAYERS,
    ),
    "RWKV": ("Rwkv", lambda s: s.plain() | {"context_length": s.context}, "rwkv.blocks"),
    "Seed-OSS": ("SeedOss", Sizes.grouped, LAYERS),
    "SmolLM 3": ("SmolLM3", Sizes.shared, LAYERS),
    "StableLM": ("StableLm", Sizes.shared, LAYERS),
    "StarCoder 2": ("Starcoder2", Sizes.shared, LAYERS),
    "XGLM": (
        "XGLM",
        lambda s: s.plain() | {"d_model": s.width, "num_layers": s.layers, "attention_heads": s.heads,
                               "ffn_dim": s.width + 8},
        "model.layers",
    ),
}  # fmt: skip


def made(family: str, draw: random.Random) -> tuple[Any, str]:
    """A random small model of a family, in evaluation mode, and the path of its blocks."""
    import transformers

    name, options, blocks = FAMILIES[family]
    # Heads no narrower than 8, a quarter of which some families turn in pairs; CodeGen wants a multiple of four heads.
    sizes = Sizes(draw.randint(64, 120), draw.choice([32, 64]), draw.choice([2, 2, 3]))
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{name}Config")(**options(sizes), **special)
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(draw.randrange(1 << 30))
            model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
            _enlarge(model, draw.uniform(2, 6))
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    return model, blocks


def _enlarge(model: nn.Module, factor: float) -> None:
    """Random numbers on every gain and bias of a norm; matrices times a factor."""
    for module in model.modules():
        if "norm" in type(module).__name__.lower():
            for value in module.parameters(recurse=False):
                value.add_(0.5 * torch.randn_like(value))
        elif isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D":
            module.weight.mul_(factor)  # type: ignore[operator]
