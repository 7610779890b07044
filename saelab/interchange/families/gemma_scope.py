"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors`, mostly with `config.json`).

    f = relu(pre) 1[pre > threshold]     pre = x W_enc + b_enc     x_hat = f W_dec + b_dec (+ x affine_skip_connection)

W_enc [D, L] and W_dec [L, D] are in capitals in the first and mostly not in the second. Which model and layer they are
for is in the names of the folders above, as they are on the hub, or in the config. The SAEs of embeddings are for
embeddings before the model multiplies them by sqrt(D). Cross-layer transcoders, which write to several layers, are
refused.
"""

import re
from typing import Any

from saelab.core.site_names import as_site
from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings, Tensors
from saelab.interchange.plain import Plain, plain_from
from saelab.interchange.sites import architecture, site_of, source

ONE, TWO, CONFIG = "params.npz", "params.safetensors", "config.json"
LAYOUT = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}
SKIP = "affine_skip_connection"
REPOSITORY = r"gemma-scope-(\d+b)-(pt|it)-(res|att|mlp|transcoders)\b.*/layer_(\d+)/"
HOOKS = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out"}


class GemmaScope(Family):
    """Files of Gemma Scope."""

    title = "gemma_scope"
    weights = (ONE, TWO)

    def claims(self, files: Files) -> bool:
        if files.has(ONE) or files.has(TWO):
            return True
        return any(
            files.lone_has(*names, suffixes=(".npz",)) for names in (("W_enc", "threshold"), ("w_enc", "threshold"))
        )

    def read(self, files: Files) -> tuple[Plain, Description]:
        path = files.lone or files.folder / (ONE if files.has(ONE) else TWO)
        tensors, where = files.tensors(path.name), f"{files.folder.resolve().as_posix()}/"
        config = files.settings(CONFIG) if (files.folder / CONFIG).is_file() else Settings(path, {})
        how = config.get("architecture", str, "jump_relu")
        if how != "jump_relu":
            raise config.refuse(f"the architecture {how}", "jump_relu is read")
        read, written = (config.get(f"hf_hook_point_{side}", str) for side in ("in", "out"))
        is_transcoder = "transcoder" in where or bool(written and written != read) or SKIP in tensors
        layout = {name: _spelled(tensors, theirs) for name, theirs in LAYOUT.items()}
        layout |= {"W_skip": f"{SKIP}.T"} if SKIP in tensors else {}
        if getattr(tensors.entries.get(layout["W_dec"]), "ndim", 2) == 3:
            raise config.refuse("a cross-layer transcoder", "SAEs and transcoders of one layer are read")
        plain = plain_from(tensors, layout, "jumprelu", is_transcoder)
        if not is_transcoder:
            plain.shift()
        found, said = _source_of(where, config)
        notes = ["it reads embeddings before they are multiplied by sqrt(D)"] if "/embedding/" in where else []
        kind = "JumpReLU " + ("skip " * ("W_skip" in layout)) + ("transcoder" if is_transcoder else "SAE")
        return plain, Description(self.title, kind, found, said, notes)


def _spelled(tensors: Tensors, name: str) -> str:
    """The name in capitals or not, as it is in the file."""
    return name if name.removesuffix(".T") in tensors else name.replace("W_", "w_")


def _source_of(where: str, config: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source where it is certain, and what was said."""
    said = config.said("model_name", "hf_hook_point_in", "hf_hook_point_out")
    if said:
        model = "google/" + config.need("model_name", str).removeprefix("google/").replace("-v3", "-3")
        model = model.removesuffix("-pt") if "270m" in model else model
        hooks = (config.get(f"hf_hook_point_{side}", str) for side in ("in", "out"))
        read, written = (as_site(hook) if hook else None for hook in hooks)
        return source(model, read, None if written == read else written) if architecture(model) else {}, said
    found = re.search(REPOSITORY, where)
    if not found:
        return {}, {}
    size, tuned, place, layer = found.groups()
    model = f"google/gemma-2-{size}" + "-it" * (tuned == "it")
    hook = HOOKS.get(place)  # what transcoders read lies before the weights of a norm, where no module ends
    return source(model, site_of(model, f"blocks.{layer}.{hook}") if hook else None), {"model": model, "layer": layer}
