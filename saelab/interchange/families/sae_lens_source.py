"""What SAELens' files say of the model and the hook, and what they are to say of ours."""

from typing import Any

from saelab.interchange.files import Settings
from saelab.interchange.sites import CHANGES, hook_of, model_called, site_of, source

SAID = ("model_name", "hook_name", "hook_name_out", "hook_head_index", "context_size", "prepend_bos", "dataset_path")
FORM = "6.0.0"
"""The version whose form of cfg.json is written."""


def source_of(config: Settings) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The source where it is certain, what was said, and why it is not certain."""
    about = config.part("metadata") if config.get("metadata", dict) else config
    said = about.said(*SAID)
    model, hook = about.get("model_name", str), about.get("hook_name", str)
    if not model or not hook:
        return {}, said, []
    model = model_called(model)
    out, seq_len = about.get("hook_name_out", str), about.get("context_size", int)
    is_lens = about.get("model_class_name", str, "HookedTransformer") == "HookedTransformer"
    site, target = (site_of(model, name) if name and is_lens else name for name in (hook, out))
    if about.get("hook_head_index", int) is not None:
        return {}, said, [f"it reads one head of {hook}, which is not a site of its own"]
    if not site or (out and not target) or bool(out) != (config.get("d_out", int) is not None):
        return {}, said, [f"no site is {out if site and out else hook} of {model} for sure"]
    if is_lens and (why := _changed(about)):
        return {}, said, [f"{hook} may not be what {site} gives: {why}"]
    return source(model, site, target, seq_len), said, []


def _changed(about: Settings) -> str:
    """Why the hook may see other values than the model's own modules, if it may."""
    options = about.get("model_from_pretrained_kwargs", dict)
    if options is None:
        return "the file does not say how the model's weights were processed (model_from_pretrained_kwargs)"
    changed = [key for key in CHANGES if options.get(key)]
    return f"the model was loaded with {', '.join(changed)}" if changed else ""


def metadata_of(about: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Their metadata for a source, and what could not be said."""
    metadata: dict[str, Any] = {"sae_lens_version": FORM}
    model, site, target = about.get("model"), about.get("site"), about.get("target")
    if not model or not site:
        return metadata, ["it is not known which model and site the SAE is for"]
    metadata |= {"model_name": model, "prepend_bos": True, "model_from_pretrained_kwargs": {}}
    if about.get("seq_len"):
        metadata["context_size"] = about["seq_len"]
    hooks = {"hook_name": site} | ({"hook_name_out": target} if target else {})
    found = {key: hook_of(model, place) for key, place in hooks.items()}
    if all(found.values()):
        return metadata | found, []
    if any(place.endswith(":in") for place in hooks.values()):
        return metadata, [f"no hook of TransformerLens is {' and '.join(hooks.values())} for sure: left out"]
    # Then they are names of the model's own modules, whose output SAELens takes for this class of models.
    return metadata | hooks | {"model_class_name": "AutoModelForCausalLM"}, []
