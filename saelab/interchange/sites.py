"""Names of places in a model for when there is no model but its name: hooks of TransformerLens and sites of ours.

What families of models themselves told is in `saelab.core.site_names`; here is which family a name is of. A hook has no
site where TransformerLens works on changed weights (`center_writing_weights`, `fold_ln`), or where that is not certain.
"""

import os
import re
from pathlib import Path
from typing import Any

from saelab.core.read import read_json
from saelab.core.site_names import HOOKED, families, family_of, hook_parts

NAMES = (
    (r"(distil)?gpt2(-small|-medium|-large|-xl)?", "GPT-2"),
    (r"pythia-.*", "GPT-NeoX"),
    (r"gemma-2-.*", "Gemma 2"),
    (r"gemma-3-(270m|1b).*", "Gemma 3"),
    (r"gemma-(2b|7b).*", "Gemma"),
    (r"(meta-)?llama-[23][.-](?!.*vision).*|deepseek-r1-distill-llama.*|smollm2?-.*|pycode-7m", "Llama"),
    (r"mistral-7b-.*", "Mistral"),
    (r"qwen(2|2\.5)-[\d.]+b(-instruct|-base)?|deepseek-r1-distill-qwen.*", "Qwen 2"),
    (r"qwen3-[\d.]+b(-instruct|-base)?", "Qwen 3"),
    (r"phi-(1|1_5|2)", "Phi"),
    (r"phi-3(\.5)?-(mini|medium)-\d+k-instruct", "Phi-3"),
    (r"olmo-2-.*", "OLMo 2"),
    (r"opt-([\d.]+b|125m)", "OPT"),
    (r"opt-350m", "OPT, projected"),
    (r"bloomz?(-\d+[bm]\d?)?", "BLOOM"),
    (r"falcon-7b(-instruct)?", "Falcon"),
    (r"falcon-(40b|180b)(-instruct|-chat)?", "Falcon, new"),
    (r"mamba-[\d.]+[bm]-hf", "Mamba"),
)
OWNERS = {"pythia-": "EleutherAI", "gemma-": "google"}
CHANGES = ("center_writing_weights", "fold_ln", "fold_value_biases", "refactor_factored_attn_matrices")


def model_called(name: str) -> str:
    """A model's folder or name on the hub, from a name that TransformerLens may have shortened."""
    if name == "gpt2-small":
        return "gpt2"
    if "/" in name or os.path.exists(name):  # unlike Path.exists, whatever stands in a stranger's file
        return name
    return next((f"{owner}/{name}" for start, owner in OWNERS.items() if name.startswith(start)), name)


def architecture(model: str) -> str | None:
    """The family of a model, from its folder's config or its name; None if that is not certain."""
    config = Path(model) / "config.json"
    if os.path.isfile(config):
        try:
            return family_of(read_json(config, {"model_type": str}, foreign=True))
        except (OSError, ValueError):
            return None
    owner, _, last = model.rpartition("/")
    known = (kind for pattern, kind in NAMES if re.fullmatch(pattern, last.lower()))
    # Names without an owner are the hub's own for few models, and abbreviations for others.
    return next(known, None) if owner or re.fullmatch(r"(distil)?gpt2.*|pycode-7m", last) else None


def site_of(model: str, hook: str) -> str | None:
    """The site of a hook such as `blocks.8.hook_resid_pre`; None if that is not certain."""
    found, kind = hook_parts(hook), architecture(model)
    if not found or not kind or found[1] not in families()[kind]["sites"]:
        return None
    return f"{families()[kind]['blocks']}.{found[0]}{families()[kind]['sites'][found[1]]}"


def hook_of(model: str, site: str) -> str | None:
    """The hook of a site; None if there is none for sure."""
    kind = architecture(model)
    if not kind:
        return None
    found = re.fullmatch(rf"{re.escape(families()[kind]['blocks'])}\.(\d+)(.*?)(:out)?", site)
    places = families()[kind]["sites"]
    hooks = [hook for hook in HOOKED if found and hook in places and places[hook] == found[2]]
    return f"blocks.{found[1]}.{hooks[0]}" if found and hooks else None


def module_path(model: str, path: str) -> str | None:
    """The path in a causal language model of a module of its base model; None if that is not certain."""
    kind = architecture(model)
    if not kind:
        return None
    head, below = families()[kind]["blocks"].split(".", 1)
    return f"{head}.{path}" if re.match(rf"{below}\.\d+(\.|$)", path) else None


def source(
    model: str | None, site: str | None, target: str | None = None, seq_len: int | None = None
) -> dict[str, Any]:
    """What a run's source.json says of rows from there; empty unless model and site are known."""
    if not model or not site:
        return {}
    found = {"model": model, "site": site, "target": target}
    return found | ({"seq_len": seq_len} if seq_len and seq_len >= 2 else {})
