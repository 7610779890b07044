"""Names of places in a model: TransformerLens' hooks and module paths of transformers, where one is the other for sure.

Only architectures whose modules were compared with the hooks stand here. A hook has no site where TransformerLens
works on changed weights (`center_writing_weights`, `fold_ln`), or where a module's value is something else, such as
`ln2.hook_normalized`, which lies before the layer norm's weights.
"""

import re
from pathlib import Path
from typing import Any

from saelab.core.read import read_json

LLAMA = {
    "hook_resid_pre": ":in",
    "hook_resid_mid": ".post_attention_layernorm:in",
    "hook_resid_post": "",
    "hook_attn_out": ".self_attn",
    "attn.hook_z": ".self_attn.o_proj:in",
    "hook_mlp_out": ".mlp",
    "mlp.hook_post": ".mlp.down_proj:in",
}
SITES: dict[str, tuple[str, dict[str, str]]] = {
    "llama": ("model.layers", LLAMA),
    "gpt2": ("transformer.h", {
        "hook_resid_pre": ":in",
        "hook_resid_mid": ".ln_2:in",
        "hook_resid_post": "",
        "hook_attn_out": ".attn",
        "attn.hook_z": ".attn.c_proj:in",
        "hook_mlp_out": ".mlp",
        "mlp.hook_post": ".mlp.c_proj:in",
    }),
    "gpt_neox": ("gpt_neox.layers", {
        "hook_resid_pre": ":in",
        "hook_resid_post": "",
        "hook_attn_out": ".attention",
        "attn.hook_z": ".attention.dense:in",
        "hook_mlp_out": ".mlp",
        "mlp.hook_post": ".mlp.dense_4h_to_h:in",
    }),
    # What attention and MLP give passes a norm before it is added to the residual stream, and the hooks see it there.
    "gemma2": ("model.layers", LLAMA | {
        "hook_resid_mid": ".pre_feedforward_layernorm:in",
        "hook_attn_out": ".post_attention_layernorm",
        "hook_mlp_out": ".post_feedforward_layernorm",
    }),
}  # fmt: skip
"""By architecture: where its blocks are, and what follows a block's path for a hook's name."""

TYPES = {
    "gpt2": "gpt2", "gpt_neox": "gpt_neox", "llama": "llama", "mistral": "llama", "qwen2": "llama", "qwen3": "llama",
    "gemma": "llama", "gemma2": "gemma2", "gemma3_text": "gemma2",
}  # fmt: skip
"""The model_type of a model's config, and the architecture it has here."""

NAMES = (
    (r"(distil)?gpt2(-small|-medium|-large|-xl)?", "gpt2"),
    (r"pythia-.*", "gpt_neox"),
    (r"gemma-2-.*|gemma-3-(270m|1b).*", "gemma2"),
    (r"gemma-(2b|7b).*|(meta-)?llama-[23][.-](?!.*vision).*|deepseek-r1-distill-.*|mistral-7b-.*", "llama"),
    (r"qwen(2|2\.5|3)-[\d.]+b(-instruct|-base)?|smollm2?-.*|pycode-7m", "llama"),
)  # fmt: skip
OWNERS = {"pythia-": "EleutherAI", "gemma-": "google"}
CHANGES = ("center_writing_weights", "fold_ln", "fold_value_biases", "refactor_factored_attn_matrices")


def model_called(name: str) -> str:
    """A model's folder or name on the hub, from a name that TransformerLens may have shortened."""
    if name == "gpt2-small":
        return "gpt2"
    if "/" in name or Path(name).exists():
        return name
    return next((f"{owner}/{name}" for start, owner in OWNERS.items() if name.startswith(start)), name)


def architecture(model: str) -> str | None:
    """Which of SITES a model is, from its folder's config or its name; None if that is not certain."""
    config = Path(model) / "config.json"
    if config.is_file():
        try:
            return TYPES.get(read_json(config, {"model_type": str}, foreign=True)["model_type"])
        except (OSError, ValueError):
            return None
    owner, _, last = model.rpartition("/")
    known = (kind for pattern, kind in NAMES if re.fullmatch(pattern, last.lower()))
    # Names without an owner are the hub's own for few models, and abbreviations for others.
    return next(known, None) if owner or re.fullmatch(r"(distil)?gpt2.*|pycode-7m", last) else None


def site_of(model: str, hook: str) -> str | None:
    """The site of a hook such as `blocks.8.hook_resid_pre`; None if that is not certain."""
    found, kind = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook), architecture(model)
    if not found or not kind or found[2] not in SITES[kind][1]:
        return None
    blocks, places = SITES[kind]
    return f"{blocks}.{found[1]}{places[found[2]]}"


def hook_of(model: str, site: str) -> str | None:
    """The hook of a site; None if there is none for sure."""
    kind = architecture(model)
    if not kind:
        return None
    blocks, places = SITES[kind]
    found = re.fullmatch(rf"{re.escape(blocks)}\.(\d+)(.*?)(:out)?", site)
    hooks = [hook for hook, after in places.items() if found and after == found[2]]
    return f"blocks.{found[1]}.{hooks[0]}" if found and hooks else None


def module_path(model: str, path: str) -> str | None:
    """The path in a causal language model of a module of its base model; None if that is not certain."""
    kind = architecture(model)
    if not kind:
        return None
    head, below = SITES[kind][0].split(".", 1)
    return f"{head}.{path}" if re.match(rf"{below}\.\d+(\.|$)", path) else None


def source(
    model: str | None, site: str | None, target: str | None = None, seq_len: int | None = None
) -> dict[str, Any]:
    """What a run's source.json says of rows from there; empty unless model and site are known."""
    if not model or not site:
        return {}
    found = {"model": model, "site": site, "target": target}
    return found | ({"seq_len": seq_len} if seq_len and seq_len >= 2 else {})
